//! The emulator knows exactly the conversions that NVIDIA's assembler accepts.

use ptx_emulator::{Machine, Options};

const TYPES: [&str; 12] = [
    "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f16", "bf16", "f32", "f64",
];

/// The conversions that the assembler of NVRTC 13.0.88 accepts for sm_90a. There is one mask per modifiers and result
/// type: bit n is set if [`TYPES`]\[n\] may be the source.
#[rustfmt::skip]
const TAKEN: [(&str, [u32; 12]); 20] = [
    ("", [0x0ff, 0x0ff, 0x0ff, 0x0ff, 0x0ff, 0x0ff, 0x0ff, 0x0ff, 0x300, 0x300, 0x700, 0xf00]),
    ("sat", [0x0fe, 0x0fc, 0x0f8, 0x0f0, 0x0ef, 0x0ce, 0x08c, 0x008, 0x100, 0x000, 0x500, 0xd00]),
    ("ftz", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x700, 0x400]),
    ("rn", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0xeff, 0xdee, 0xaff, 0x2ff]),
    ("rz", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0xeff, 0xdee, 0xaff, 0x2ff]),
    ("rm", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0xeff, 0xdee, 0xaff, 0x2ff]),
    ("rp", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0xeff, 0xdee, 0xaff, 0x2ff]),
    ("rni", [0xd00, 0xf00, 0xf00, 0xf00, 0xd00, 0xf00, 0xf00, 0xf00, 0x100, 0x200, 0x400, 0x800]),
    ("rzi", [0xd00, 0xf00, 0xf00, 0xf00, 0xd00, 0xf00, 0xf00, 0xf00, 0x100, 0x200, 0x400, 0x800]),
    ("rn.sat", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0xcff, 0x000, 0x8ff, 0x0ff]),
    ("rn.ftz", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x400, 0xaff, 0x000]),
    ("rm.ftz", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x400, 0xaff, 0x000]),
    ("rni.sat", [0xd00, 0xd00, 0xd00, 0xd00, 0xd00, 0xd00, 0xd00, 0xd00, 0x100, 0x000, 0x400, 0x800]),
    ("rni.ftz", [0x400, 0x400, 0x400, 0x400, 0x400, 0x400, 0x400, 0x400, 0x000, 0x000, 0x400, 0x000]),
    ("rn.ftz.sat", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x000, 0x8ff, 0x000]),
    ("rn.relu", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x400, 0x000, 0x000]),
    ("rn.satfinite", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x400, 0x000, 0x000]),
    ("rz.satfinite", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x400, 0x400, 0x000, 0x000]),
    ("ftz.sat", [0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x000, 0x500, 0x400]),
    ("rna", [0; 12]),
];

fn bits(ty: &str) -> u32 {
    let digits = ty.trim_start_matches(char::is_alphabetic);
    digits.parse::<u32>().map_or(16, |bits| bits.max(16))
}

#[test]
fn the_conversions_of_the_assembler_are_known_and_no_others() {
    let machine = Machine::new(Options::default());
    let mut differences = Vec::new();
    for (modifiers, masks) in TAKEN {
        for (d, mask) in TYPES.into_iter().zip(masks) {
            for (n, s) in TYPES.into_iter().enumerate() {
                let dot = if modifiers.is_empty() { "" } else { "." };
                let op = format!("cvt{dot}{modifiers}.{d}.{s}");
                let (d, s) = (bits(d), bits(s));
                let ptx = format!(
                    ".version 9.0\n.target sm_90a\n.address_size 64\n.entry k()\n{{\n.reg .b{d} %d;\n.reg .b{s} %s;\n\
                     mov.b{s} %s, 0;\n{op} %d, %s;\nret;\n}}\n"
                );
                let taken = mask >> n & 1 == 1;
                if machine.load(&ptx).is_ok() != taken {
                    let known = if taken { "is not known" } else { "is no PTX" };
                    differences.push(format!("{op} {known}"));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Conversions of pairs, which have rules of their own.
#[test]
fn conversions_of_pairs_say_how_they_round() {
    let machine = Machine::new(Options::default());
    let load = |instruction: &str| {
        machine.load(&format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.entry k()\n{{\n.reg .b32 %r;\n.reg .b16 %h;\n.reg .f32 %f;\n\
             mov.b32 %r, 0; mov.b16 %h, 0; mov.f32 %f, 0f00000000;\n{instruction}\nret;\n}}\n"
        ))
    };
    for known in [
        "cvt.rn.f16x2.f32 %r, %f, %f;",
        "cvt.rz.relu.satfinite.bf16x2.f32 %r, %f, %f;",
        "cvt.rna.tf32.f32 %r, %f;",
        "cvt.rn.satfinite.relu.e4m3x2.f32 %h, %f, %f;",
        "cvt.rn.satfinite.e5m2x2.f16x2 %h, %r;",
        "cvt.rn.relu.f16x2.e5m2x2 %r, %h;",
    ] {
        load(known).unwrap_or_else(|error| panic!("{error}"));
    }
    for unknown in [
        "cvt.f16x2.f32 %r, %f, %f;",
        "cvt.rm.f16x2.f32 %r, %f, %f;",
        "cvt.rn.ftz.f16x2.f32 %r, %f, %f;",
        "cvt.tf32.f32 %r, %f;",
        "cvt.rn.ftz.tf32.f32 %r, %f;",
        "cvt.rn.e4m3x2.f32 %h, %f, %f;",
        "cvt.f16x2.e5m2x2 %r, %h;",
        "cvt.rn.satfinite.f16x2.e5m2x2 %r, %h;",
        "cvt.u32.b16 %r, %h;",
    ] {
        load(unknown).expect_err(unknown);
    }
}
