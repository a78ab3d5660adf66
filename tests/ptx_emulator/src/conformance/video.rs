//! Scalar video instructions, by the ISA's pseudocode: parts of words, an operation, saturation, and a second operation
//! or a merge.

use super::{Case, mixed, pairs};

pub(super) fn cases() -> Vec<Case> {
    [sums(), shifts(), comparisons()].concat()
}

/// Words whose bytes and halves are at the ends of their ranges.
fn inputs() -> Vec<[u32; 3]> {
    let words = [
        0,
        1,
        0x7f80_ff01,
        0x8000_7fff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x80ff_007f,
    ];
    let edges = pairs(&words)
        .into_iter()
        .map(|[a, b]| [a, b, a.rotate_left(7) ^ b]);
    edges.chain(mixed(150).as_chunks().0.to_vec()).collect()
}

/// `partSelectSignExtend`.
fn part(word: u32, select: &str, signed: bool) -> i64 {
    let (shift, bits) = match select.split_at_checked(1) {
        Some(("b", n)) => (8 * n.parse::<u32>().unwrap_or(0), 8),
        Some(("h", n)) => (16 * n.parse::<u32>().unwrap_or(0), 16),
        _ => (0, 32),
    };
    let aligned = u64::from(word >> shift) << (64 - bits);
    if signed {
        aligned as i64 >> (64 - bits)
    } else {
        (aligned >> (64 - bits)) as i64
    }
}

/// `optSaturate`.
fn saturate(value: i64, select: &str, signed: bool) -> i64 {
    let bits = match select.chars().next() {
        Some('b') => 8,
        Some('h') => 16,
        _ => 32,
    };
    if signed {
        value.clamp(-1 << (bits - 1), (1 << (bits - 1)) - 1)
    } else {
        value.clamp(0, (1 << bits) - 1)
    }
}

/// `optMerge`.
fn merge(value: i64, select: &str, c: u32) -> u32 {
    let value = value as u32;
    match select {
        "h0" => value & 0xffff | 0xffff_0000 & c,
        "h1" => value << 16 | 0x0000_ffff & c,
        "b0" => value & 0xff | 0xffff_ff00 & c,
        "b1" => (value & 0xff) << 8 | 0xffff_00ff & c,
        "b2" => (value & 0xff) << 16 | 0xff00_ffff & c,
        "b3" => (value & 0xff) << 24 | 0x00ff_ffff & c,
        _ => value,
    }
}

/// `optSecondaryOp`; the third operand has the sign of the result's type.
fn second(value: i64, op: &str, c: u32, signed: bool) -> i64 {
    let c = part(c, "", signed);
    match op {
        "add" => value.wrapping_add(c),
        "min" => value.min(c),
        "max" => value.max(c),
        _ => value,
    }
}

fn dotted(part: &str) -> String {
    if part.is_empty() {
        String::new()
    } else {
        format!(".{part}")
    }
}

/// Types of d, a and b, then which parts of them, and the second operation.
type Form = (
    [&'static str; 3],
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

/// One instruction. `sat` and the mode stand between its types and its operands; `apply` is its operation.
fn case(
    opcode: &str,
    mode: &str,
    sat: bool,
    (types, d, a, b, op2): Form,
    apply: fn(i64, i64) -> i64,
) -> Case {
    let [d_signed, a_signed, b_signed] = types.map(|ty| ty.starts_with('s'));
    let op = format!(
        "{opcode}.{}{}{}{}",
        types.join("."),
        if sat { ".sat" } else { "" },
        dotted(mode),
        dotted(op2)
    );
    let third = if d.is_empty() && op2.is_empty() {
        ""
    } else {
        ", %a2"
    };
    let body = format!(
        "{op} %d0{}, %a0{}, %a1{}{third};",
        dotted(d),
        dotted(a),
        dotted(b)
    );
    let name = format!("{op} of {d}, {a} and {b}");
    Case::lanes(&name, &body, &inputs(), move |[x, y, c]| {
        let value = apply(part(x, a, a_signed), part(y, b, b_signed));
        let value = if sat {
            saturate(value, d, d_signed)
        } else {
            value
        };
        [merge(second(value, op2, c, d_signed), d, c)]
    })
}

fn sums() -> Vec<Case> {
    type Sum = (&'static str, fn(i64, i64) -> i64);
    let operations: [Sum; 5] = [
        ("vadd", |a, b| a + b),
        ("vsub", |a, b| a - b),
        ("vabsdiff", |a, b| (a - b).abs()),
        ("vmin", i64::min),
        ("vmax", i64::max),
    ];
    let forms: [(bool, Form); 6] = [
        (false, (["u32", "u32", "u32"], "", "", "", "")),
        (true, (["s32", "u32", "s32"], "", "b0", "h0", "")),
        (true, (["u32", "s32", "s32"], "", "", "h1", "min")),
        (true, (["s32", "s32", "s32"], "", "b3", "b2", "add")),
        (true, (["s32", "s32", "u32"], "h0", "h1", "b1", "")),
        (false, (["u32", "s32", "u32"], "b2", "b3", "", "")),
    ];
    let cases = operations
        .into_iter()
        .flat_map(|(opcode, apply)| forms.map(|(sat, form)| case(opcode, "", sat, form, apply)));
    cases.collect()
}

fn shifts() -> Vec<Case> {
    let forms: [Form; 4] = [
        (["u32", "u32", "u32"], "", "", "", ""),
        (["s32", "s32", "u32"], "", "", "b1", "add"),
        (["s32", "s32", "u32"], "b1", "h1", "", ""),
        (["u32", "u32", "u32"], "h1", "b3", "b0", ""),
    ];
    let mut cases = Vec::new();
    for form in forms {
        cases.extend([
            case("vshr", "clamp", false, form, |a, n| a >> n.min(32)),
            case("vshr", "wrap", false, form, |a, n| a >> (n & 31)),
            case("vshl", "clamp", false, form, |a, n| {
                // A shift by 32 leaves nothing of the lower word.
                if n >= 32 { 0 } else { a << n }
            }),
            case("vshl", "wrap", false, form, |a, n| a << (n & 31)),
        ]);
    }
    cases.push(case(
        "vshr",
        "clamp",
        true,
        (["u32", "s32", "u32"], "", "", "", "max"),
        |a, n| a >> n.min(32),
    ));
    cases
}

fn comparisons() -> Vec<Case> {
    type Comparison = (&'static str, fn(i64, i64) -> bool);
    let comparisons: [Comparison; 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    let cases = comparisons.into_iter().map(|(name, holds)| {
        let body = format!(
            "vset.s32.u32.{name} %d0, %a0, %a1; vset.u32.u32.{name}.add %d1, %a0.h1, %a1.h0, %a2;\n\
             vset.s32.s32.{name} %d2.b3, %a0.b1, %a1.b2, %a2;"
        );
        Case::lanes(&format!("vset.{name}"), &body, &inputs(), |[x, y, c]| {
            let set = |a: &str, a_signed: bool, b: &str, b_signed: bool| {
                u32::from(holds(part(x, a, a_signed), part(y, b, b_signed)))
            };
            [
                set("", true, "", false),
                set("h1", false, "h0", false).wrapping_add(c),
                merge(set("b1", true, "b2", true).into(), "b3", c),
            ]
        })
    });
    cases.collect()
}
