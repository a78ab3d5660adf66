//! The main loop of the matrix products (`kernels/gemm.cuh`) has no bank conflicts.
//!
//! Each operation runs with a short and with a long sum in the same tile. What the long one does more is the main loop's.
//! All of its accesses to shared memory are 16 bytes wide, so a warp needs four passes over the banks for each.

use crate::oracles::check::results_of;
use crate::rig::Case;
use crate::rig::arcface;
use crate::rig::conv::{Dgrad, End, Fprop, Wgrad, window};
use crate::rig::pending::{Behind, To};
use crate::support::devices::compiler_or_skip;
use crate::support::emulator::{Emulator, Launched};
use arcface_cu::backend::cuda::tiles::{PROGRAMS, Program};
use arcface_cu::backend::cuda::{Compiler, Cuda};
use arcface_cu::backend::geometry::Conv2d;
use arcface_cu::backend::margin::Margin;
use arcface_cu::backend::{Activation, Element, SgdForm, SgdStep};
use ptx_emulator::Class;
use std::collections::BTreeSet;

/// Bytes of a step's terms in each row.
const STEP: usize = 64;

/// Steps of the short and the long sum. So few are not split over blocks.
const STEPS: [usize; 2] = [2, 4];

fn is_product(program: &Program) -> bool {
    program.constants.iter().any(|(name, _)| *name == "PART_M")
}

/// Passes over the banks, and the accesses of warps that they were for.
fn passes_and_accesses(launched: &Launched) -> [(u64, u64); 2] {
    let counters = &launched.counters;
    let stores = counters.of(Class::SharedStore) + counters.of(Class::AsyncCopy);
    [
        (
            counters.shared_load_wavefronts,
            counters.of(Class::SharedLoad),
        ),
        (counters.shared_store_wavefronts, stores),
    ]
}

/// A case's launch of a kernel.
fn launch(
    compiler: &'static Compiler,
    element: Element,
    kernel: &str,
    case: &impl Case,
) -> Launched {
    let mut cuda = Cuda::new(Emulator::with(compiler, "compute_80", false));
    cuda.driver().launches();
    results_of(element, &mut cuda, case, &[]);
    let mut launches = cuda.driver().launches().into_iter();
    let launched = launches.find(|launched| launched.kernel == kernel);
    launched.unwrap_or_else(|| panic!("{case:?} launches no {kernel}"))
}

/// Compares a kernel with sums of the one and the other length; `case(terms)`. Returns the program that ran.
fn check<C: Case>(
    compiler: &'static Compiler,
    element: Element,
    kernel: &str,
    case: impl Fn(usize) -> C,
) -> &'static str {
    let [short, long] = STEPS.map(|steps| {
        let case = case(steps * STEP / element.bytes());
        launch(compiler, element, kernel, &case)
    });
    let name = long.program.name;
    assert_eq!((short.program.name, short.launch), (name, long.launch));
    let counts = passes_and_accesses(&short)
        .into_iter()
        .zip(passes_and_accesses(&long));
    for (what, (short, long)) in ["loads", "stores"].iter().zip(counts) {
        let (passes, accesses) = (long.0 - short.0, long.1 - short.1);
        assert!(accesses > 0, "{name}: the main loop has no {what}");
        assert_eq!(
            passes,
            4 * accesses,
            "passes of the {what} of {kernel} in {name}"
        );
    }
    name
}

#[test]
fn the_main_loop_of_products_has_no_bank_conflicts() {
    let Some(compiler) = compiler_or_skip("the_main_loop_of_products_has_no_bank_conflicts") else {
        return;
    };
    let x = Behind::norm_and(Activation::Relu);
    // One image of `pixels` pixels and a filter of one tap: a matrix product.
    let product = |pixels: usize, c: usize, k: usize| Conv2d {
        n: 1,
        c,
        k,
        window: window((pixels / 8, 8), (1, 1), 1, [0; 4]),
    };
    let head = |n: usize, d: usize, v: usize| arcface::Bprop {
        forward: arcface::Fprop::whole(n, d, v, Margin::default()),
        decay: 0.1,
        step: SgdStep {
            form: SgdForm::Keras,
            lr: 0.1,
            momentum: 0.9,
            clip: None,
        },
    };
    let mut met = BTreeSet::new();
    for (m, n) in [(128, 128), (128, 64), (64, 64), (64, 32)] {
        for element in [Element::F32, Element::Bf16] {
            met.insert(check(compiler, element, "conv_fprop", |terms| Fprop {
                geometry: product(m, terms, n),
                x,
                bias: false,
                end: End::Raw,
            }));
            met.insert(check(compiler, element, "conv_dgrad", |terms| Dgrad {
                geometry: product(m, n, terms),
                batch_norm: true,
                to: To::REPLACE,
            }));
            met.insert(check(compiler, element, "conv_wgrad", |terms| Wgrad {
                geometry: product(terms, n, m),
                batch_norm: true,
                x,
                bias: false,
            }));
            let margin = Margin::default();
            met.insert(check(compiler, element, "arcface_fprop", |terms| {
                arcface::Fprop::whole(m, terms, n, margin)
            }));
            met.insert(check(compiler, element, "arcface_dx", |terms| {
                head(m, n, terms)
            }));
            met.insert(check(compiler, element, "arcface_update", |terms| {
                head(terms, n, m)
            }));
        }
    }
    // Every one that copies whole chunks.
    let wide = |program: &&&Program| {
        let bytes = program.vector as usize * program.element.bytes();
        is_product(program) && bytes == 16
    };
    let all: BTreeSet<&str> = PROGRAMS.iter().filter(wide).map(|p| p.name).collect();
    assert_eq!(met, all);
}
