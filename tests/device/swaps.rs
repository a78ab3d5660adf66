//! Whether an operation's tests notice when two arguments of a launch are exchanged.
//!
//! The numbers that a kernel takes are exchanged two at a time, and each time some test of the kernel must fail.

use super::{ops_augment, ops_conv, ops_depthwise, ops_elementwise, ops_head, ops_sgd};
use crate::support::devices::{Emulated, compiler_or_skip};
use crate::support::emulator::{Emulator, Swap};
use arcface_cu::backend::cuda::launch::{KERNELS, KernelEntry, Number};
use arcface_cu::backend::cuda::{Compiler, Cuda};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Numbers that a kernel is given as part of `margin` and does not read: exchanging two of them changes nothing.
const UNREAD: &[(&str, &[&str])] = &[
    (
        "arcface_rows",
        &["scale", "m1", "m2", "m3", "clamp", "guarded", "straight"],
    ),
    (
        "arcface_factors",
        &["m1", "m2", "m3", "clamp", "offset", "guarded", "straight"],
    ),
    (
        "arcface_fprop",
        &["m1", "m2", "m3", "clamp", "guarded", "straight"],
    ),
    (
        "arcface_gradients",
        &["m1", "m2", "m3", "clamp", "offset", "guarded", "straight"],
    ),
];

/// Whether a kernel reads a number.
fn reads(kernel: &str, number: &Number) -> bool {
    let field = number.name.strip_prefix("margin.");
    let unread = |(name, fields): &(&str, &[&str])| {
        *name == kernel && field.is_some_and(|field| fields.contains(&field))
    };
    !UNREAD.iter().any(unread)
}

/// The tests that launch each kernel, the quickest first.
fn tests_of_kernels(compiler: &'static Compiler) -> BTreeMap<&'static str, Vec<Emulated>> {
    let bodies = [
        ops_augment::emulated::BODIES,
        ops_conv::emulated::BODIES,
        ops_depthwise::emulated::BODIES,
        ops_elementwise::emulated::BODIES,
        ops_head::emulated::BODIES,
        ops_sgd::emulated::BODIES,
    ];
    let mut tests: BTreeMap<&str, Vec<(Duration, Emulated)>> = BTreeMap::new();
    for &body in bodies.into_iter().flatten() {
        let mut cuda = Cuda::new(Emulator::with(compiler, "compute_80", false));
        cuda.driver().launches();
        let began = Instant::now();
        body.1(&mut cuda);
        let launches = cuda.driver().launches();
        let kernels: std::collections::BTreeSet<&str> =
            launches.iter().map(|launched| launched.kernel).collect();
        for kernel in kernels {
            tests
                .entry(kernel)
                .or_default()
                .push((began.elapsed(), body));
        }
    }
    for tests in tests.values_mut() {
        tests.sort_by_key(|(time, _)| *time);
    }
    (tests.into_iter())
        .map(|(kernel, tests)| (kernel, tests.into_iter().map(|(_, test)| test).collect()))
        .collect()
}

/// Pairs of numbers of one kind, each number with the next one of its kind.
fn pairs(entry: &KernelEntry) -> impl Iterator<Item = [&'static Number; 2]> {
    entry.numbers.iter().enumerate().filter_map(|(i, a)| {
        let b = entry.numbers[i + 1..].iter().find(|b| b.kind == a.kind);
        b.map(|b| [a, b])
    })
}

/// Tries up to `each` pairs of each kernel, and says which exchanges no test sees.
fn try_exchanges(test: &str, each: usize) {
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let tests = tests_of_kernels(compiler);
    let mut wrong = Vec::new();
    for entry in KERNELS {
        let tests = tests.get(entry.kernel).map_or(&[][..], Vec::as_slice);
        assert!(!tests.is_empty(), "no test launches {}", entry.kernel);
        for [a, b] in pairs(entry).take(each) {
            let swap = Swap {
                kernel: entry.kernel,
                places: [(a.arg, a.at), (b.arg, b.at)],
                bytes: a.bytes,
            };
            let fails = |(_, body): &Emulated| {
                let mut cuda = Cuda::new(Emulator::swapping(compiler, swap));
                catch_unwind(AssertUnwindSafe(|| body(&mut cuda))).is_err()
            };
            let matters = reads(entry.kernel, a) || reads(entry.kernel, b);
            if tests.iter().any(fails) != matters {
                let pair = format!("{}: {} and {}", entry.kernel, a.name, b.name);
                eprintln!("EXCHANGE {pair}");
                wrong.push(pair);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "exchanges that no test sees, or of numbers that are wrongly listed as unread:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn an_exchange_of_two_arguments_of_each_kernel_is_seen() {
    try_exchanges("an_exchange_of_two_arguments_of_each_kernel_is_seen", 1);
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn every_exchange_of_neighbouring_arguments_is_seen() {
    try_exchanges(
        "every_exchange_of_neighbouring_arguments_is_seen",
        usize::MAX,
    );
}
