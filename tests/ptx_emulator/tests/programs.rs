//! Calls, control flow and memory spaces of real programs. Sources: `ptx/programs.cu`.

use ptx_emulator::{Class, Counters, Machine, Module, Options};

fn load() -> (Machine, Module) {
    let machine = Machine::new(Options::default());
    let module = machine.load(include_str!("ptx/programs.ptx")).unwrap();
    (machine, module)
}

fn read(machine: &Machine, address: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    machine.read(address, &mut data).unwrap();
    data
}

fn words(machine: &Machine, address: u64, count: usize) -> Vec<u32> {
    read(machine, address, 4 * count)
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn run(machine: &Machine, module: &Module, kernel: &str, arguments: &[&[u8]]) -> Counters {
    machine
        .launch(module, kernel, [1, 1, 1], [32, 1, 1], 0, arguments)
        .unwrap_or_else(|fault| panic!("{fault}"))
}

#[test]
fn device_functions_are_called() {
    let (machine, module) = load();
    let y = machine.alloc(4 * 32).unwrap();
    let (n, stride, scale, tag) = (5, 1000i64, [0.25f32, 0.5, -0.125], [1u8, 2, 3, 4, 9]);
    let mut table = vec![0; 40];
    table[..4].copy_from_slice(&i32::to_le_bytes(n));
    table[8..16].copy_from_slice(&stride.to_le_bytes());
    for (k, value) in scale.iter().enumerate() {
        table[16 + 4 * k..][..4].copy_from_slice(&value.to_le_bytes());
    }
    table[28..33].copy_from_slice(&tag);
    run(&machine, &module, "calls", &[&table, &y.to_le_bytes()]);
    let expected: Vec<u32> = (0..32)
        .map(|t| {
            let mut a = t as f32;
            for i in 0..n {
                // a * scale + tag, then the sum: the compiler makes a fused product of it.
                let tag = f32::from(tag[((i + a as i32) & 3) as usize]);
                a += a.mul_add(scale[i as usize % 3], tag);
            }
            let (mut n, mut steps) = (t, 0);
            while t % 3 != 0 && n != 1 {
                n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
                steps += 1;
            }
            let sum = 2f32.mul_add(a, a + stride as f32);
            (steps as f32).mul_add(4.0, sum).to_bits()
        })
        .collect();
    assert_eq!(words(&machine, y, 32), expected);
}

#[test]
fn lanes_part_and_meet_again() {
    let (machine, module) = load();
    let y = machine.alloc(4 * 64).unwrap();
    let counters = run(&machine, &module, "divergence", &[&y.to_le_bytes()]);
    let one = |t: i32| {
        let mut v = 0i32;
        for i in 0..t {
            if i % 3 == 0 {
                continue;
            }
            if i * i > 500 {
                break;
            }
            match (i + t) % 7 {
                0 => v = v.wrapping_add(i),
                1 => v ^= t,
                2 => v = v.wrapping_add(3),
                3 => v = v.wrapping_sub(i * t),
                4 => v = v.wrapping_mul(3),
                5 => v = !v,
                _ => v = v.wrapping_add(1000),
            }
        }
        v
    };
    let values: Vec<i32> = (0..32).map(one).collect();
    let sum = values.iter().fold(0i32, |a, &b| a.wrapping_add(b));
    let got: Vec<i32> = words(&machine, y, 64).iter().map(|&w| w as i32).collect();
    assert_eq!(got[..32], values);
    assert_eq!(got[32..], [sum; 32]);
    // Five shuffles, each by the whole warp at once.
    assert_eq!(counters.of(Class::Warp), 5);
}

#[test]
fn pointers_lead_to_every_space() {
    let (machine, module) = load();
    let [y, h, sums, d] = [4, 2, 8, 8].map(|bytes| machine.alloc(bytes * 32).unwrap());
    machine.memset(sums, 0, 24).unwrap();
    let pointers = [y, h, sums, d].map(u64::to_le_bytes);
    let arguments: Vec<&[u8]> = pointers.iter().map(|p| &p[..]).collect();
    run(&machine, &module, "spaces", &arguments);
    let value = |t: usize| {
        let mut local = [1, 2, 3, 4];
        if t % 3 == 1 {
            local[t % 4] = 100 + t as i32;
        }
        100 + t as i32 + local[(t + 1) % 4]
    };
    let values: Vec<i32> = (0..32).map(value).collect();
    let got: Vec<i32> = words(&machine, y, 32).iter().map(|&w| w as i32).collect();
    assert_eq!(got, values);
    let halves = read(&machine, h, 64);
    let doubles = read(&machine, d, 256);
    for (t, &v) in values.iter().enumerate() {
        let half = i16::from_le_bytes(halves[2 * t..][..2].try_into().unwrap());
        let double = f64::from_le_bytes(doubles[8 * t..][..8].try_into().unwrap());
        assert_eq!(
            (i32::from(half), double),
            (-3 * v, f64::from(v).sqrt() / 3.0)
        );
    }
    let total: u64 = values.iter().map(|&v| (v as u64) << 31).sum();
    let sums = words(&machine, sums, 5);
    assert_eq!(u64::from(sums[0]) | u64::from(sums[1]) << 32, total);
    assert_eq!(sums[2] as i32, *values.iter().max().unwrap());
    assert_eq!(f32::from_bits(sums[4]), 16.0);
}

#[test]
fn what_is_not_known_names_its_line() {
    let kernel = |body: &str| {
        format!(
            ".version 9.0\n.target sm_90\n.address_size 64\n.entry k()\n{{\n.reg .b32 %r<4>;\n.reg .pred %p<2>;\n{body}\nret;\n}}\n"
        )
    };
    for body in [
        "wgmma.fence.sync.aligned;",
        "add.u32.strange %r1, %r2, %r3;",
        "mov.u32 %r1, %clusterid.x;",
        "add.u32 %r1, %r2;",
        "bra NOWHERE;",
        "ld.global.f32 %r1, [missing];",
        "add.u64 %r1, %r2, %r3;",
        "call (%r1), printf, (%r2);",
    ] {
        let error = Machine::new(Options::default())
            .load(&kernel(body))
            .expect_err(body);
        assert_eq!(error.line(), 8, "{error}");
    }
}
