//! The emulator's micro-kernels on a GPU: what it was taught of the PTX ISA is what the card does.

use crate::support::devices::on_gpu;
use arcface_cu::backend::cuda::driver::{Driver, Launch, Memory};
use arcface_cu::backend::cuda::gpu::Gpu;
use arcface_cu::backend::cuda::launch::KernelEntry;
use ptx_emulator::conformance::{Case, ENTRY, cases};

/// Runs a case and judges its output.
fn run(gpu: &mut Gpu, case: &Case) -> Result<(), String> {
    let mut output = vec![0; case.expected.len()];
    let mut on_gpu = || {
        let entry = KernelEntry {
            file: "",
            kernel: ENTRY,
            params: &[8, 8],
            numbers: &[],
        };
        let kernels = gpu.load_ptx(&case.name, &case.ptx(), &[entry])?;
        let mut from = gpu.alloc(case.input.len())?;
        let mut to = gpu.alloc(output.len())?;
        gpu.upload(&case.input, &mut from, 0)?;
        gpu.clear(&mut to, output.len())?;
        let launch = Launch {
            grid: [case.grid(), 1, 1],
            block: case.block,
            shared: 0,
        };
        let args = [&from, &to].map(|memory| memory.address().to_ne_bytes());
        gpu.launch(&kernels[0], launch, &[&args[0], &args[1]])?;
        gpu.download([(&to, 0, &mut output[..])].into_iter())
    };
    on_gpu().map_err(|error| format!("{}: {error}", case.name))?;
    case.check(&output)
}

#[test]
fn every_case_of_the_emulator_holds_on_gpu() {
    on_gpu("every_case_of_the_emulator_holds_on_gpu", |cuda| {
        let gpu = cuda.driver();
        let (major, minor) = gpu.properties().capability;
        let here = cases()
            .into_iter()
            .filter(|c| c.min_sm <= 10 * major + minor);
        let failures: Vec<String> = here.filter_map(|case| run(gpu, &case).err()).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}
