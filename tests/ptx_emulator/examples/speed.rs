//! Measures the interpreter on a tiled product of matrices (`tests/ptx/sgemm.cu`).

use ptx_emulator::{Machine, Options};

fn main() {
    let size: u32 = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(512);
    let n = size as usize;
    let machine = Machine::new(Options::default());
    let module = machine
        .load(include_str!("../tests/ptx/sgemm.ptx"))
        .unwrap();
    println!("{:?}", module.kernel("sgemm").unwrap());
    let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 512.0;
    let a: Vec<f32> = (0..n * n).map(value).collect();
    let b: Vec<f32> = (0..n * n).map(|i| value(i + 17)).collect();
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let at: Vec<u64> = (0..3)
        .map(|_| machine.alloc(4 * (n * n) as u64).unwrap())
        .collect();
    machine.write(at[0], &bytes(&a)).unwrap();
    machine.write(at[1], &bytes(&b)).unwrap();
    let pointers: Vec<_> = at.iter().map(|p| p.to_le_bytes()).collect();
    let s = size.to_le_bytes();
    let arguments: [&[u8]; 6] = [&pointers[0], &pointers[1], &pointers[2], &s, &s, &s];
    let start = std::time::Instant::now();
    let counters = machine
        .launch(
            &module,
            "sgemm",
            [size / 128, size / 128, 1],
            [256, 1, 1],
            0,
            &arguments,
        )
        .unwrap_or_else(|fault| panic!("{fault}"));
    let seconds = start.elapsed().as_secs_f64();
    let mut c = vec![0; 4 * n * n];
    machine.read(at[2], &mut c).unwrap();
    let mut worst = 0f64;
    for k in 0..200 {
        let (i, j) = (k * 37 % n, k * 101 % n);
        let exact: f64 = (0..n)
            .map(|l| f64::from(a[i * n + l]) * f64::from(b[l * n + j]))
            .sum();
        let bits: [u8; 4] = c[4 * (i * n + j)..][..4].try_into().unwrap();
        worst = worst.max((f64::from(f32::from_le_bytes(bits)) - exact).abs());
    }
    println!("{counters}");
    println!(
        "{seconds:.3} s, {:.1} M warp instructions/s, {:.2} GMAC/s, worst error {worst:e}",
        counters.total() as f64 / seconds / 1e6,
        (n * n * n) as f64 / seconds / 1e9
    );
}
