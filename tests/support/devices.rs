//! One test body, generic over the backend, on every device: the CPU, the GPU that is emulated, a GPU where there is one.

use super::emulator::Emulator;
use super::{required, skip};
use arcface_cu::backend::cpu::{Cpu, Instructions};
use arcface_cu::backend::cuda::gpu::{Found, Gpu, Setup};
use arcface_cu::backend::cuda::{Cache, Compiler, Cuda, Prebuilt, Search, Sources};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The folder for compiled kernels: where the environment says, else in the build folder that holds this program, else
/// with the temporary files.
pub(crate) fn kernels() -> PathBuf {
    let named = variable(Cache::VARIABLE).filter(|value| !value.is_empty());
    named.map_or_else(
        || {
            let program = std::env::current_exe().unwrap_or_default();
            let target = program.ancestors().find(|a| a.ends_with("target"));
            let folder = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
            folder.join("arcface-cu-kernels")
        },
        PathBuf::from,
    )
}

fn cache() -> Cache {
    Cache::at(kernels())
}

/// A compiler with this cache.
pub(crate) fn compiler_with(cache: Cache) -> Compiler {
    let sources = Sources::new(variable).unwrap_or_else(|error| panic!("{error}"));
    let search = Search::new(variable);
    Compiler::new(sources, Prebuilt::default(), search, None, None, cache)
}

/// The compiler that `tests/run.sh` installs or the environment names, with a cache in the build folder; the reason
/// if there is none.
pub(crate) fn compiler() -> Result<&'static Compiler, &'static str> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    let compiler = COMPILER.get_or_init(|| {
        let compiler = compiler_with(cache());
        match compiler.nvrtc() {
            Ok(_) => Ok(compiler),
            Err(error) => Err(error.to_string()),
        }
    });
    compiler.as_ref().map_err(String::as_str)
}

/// The compiler, or a line on standard error that says what was skipped; a failure where
/// `ARCFACE_CU_REQUIRE_NVRTC=1`.
#[track_caller]
pub(crate) fn compiler_or_skip(test: &str) -> Option<&'static Compiler> {
    match compiler() {
        Ok(compiler) => Some(compiler),
        Err(why) if required("ARCFACE_CU_REQUIRE_NVRTC") => panic!("{why}"),
        Err(_) => {
            skip(test, "NVRTC, which compiles the kernels, is not here");
            None
        }
    }
}

/// Runs a body on the emulated GPU.
pub(crate) fn on_emulator(test: &str, body: impl FnOnce(&mut Cuda<Emulator>)) {
    if let Some(compiler) = compiler_or_skip(test) {
        body(&mut Cuda::new(Emulator::new(compiler)));
    }
}

/// Runs a body on the emulated GPU, and on the one that runs Hopper's code and fuses sums of products. No result may
/// depend on whether the assembler fuses.
pub(crate) fn on_both_emulators(test: &str, body: impl Fn(&mut Cuda<Emulator>)) {
    on_emulator(test, &body);
    if let Some(compiler) = compiler_or_skip(test) {
        body(&mut Cuda::new(Emulator::fusing(compiler)));
    }
}

/// The first GPU. Without one, the test is reported and counted as skipped, or fails if `ARCFACE_CU_REQUIRE_GPU=1`. A
/// GPU that is present but cannot be used is always a failure.
pub(crate) fn gpu_or_skip(test: &str) -> Option<Cuda<Gpu>> {
    match Found::new() {
        Err(why) if required("ARCFACE_CU_REQUIRE_GPU") => panic!("{why}"),
        Err(why) => {
            skip(test, &why.to_string());
            None
        }
        Ok(_) => {
            let gpu = Setup::new(variable, cache()).and_then(|setup| Gpu::open(0, setup));
            Some(Cuda::new(gpu.expect("the GPU opens")))
        }
    }
}

/// Runs a body on the first GPU, as [`gpu_or_skip`] finds it.
pub(crate) fn on_gpu(test: &str, body: impl FnOnce(&mut Cuda<Gpu>)) {
    if let Some(mut gpu) = gpu_or_skip(test) {
        body(&mut gpu);
    }
}

/// The first GPU, if it is a real one. A test that would take minutes on a GPU in software is skipped there.
pub(crate) fn fast_gpu_or_skip(test: &str) -> Option<Cuda<Gpu>> {
    let software = |found: &Found| {
        let mut devices = found.devices.iter();
        devices.any(|d| d.name.starts_with("software card"))
    };
    if Found::new().is_ok_and(|found| software(&found)) {
        skip(test, "would take minutes on a GPU in software");
        return None;
    }
    gpu_or_skip(test)
}

/// Runs a body on the first GPU, as [`fast_gpu_or_skip`] finds it.
pub(crate) fn on_fast_gpu(test: &str, body: impl FnOnce(&mut Cuda<Gpu>)) {
    if let Some(mut gpu) = fast_gpu_or_skip(test) {
        body(&mut gpu);
    }
}

/// A test's name and its body on an emulated GPU.
pub(crate) type Emulated = (&'static str, fn(&mut Cuda<Emulator>));

/// The CPU, kept to the instructions that a variable names.
#[allow(dead_code, reason = "for tests of operations")]
pub(crate) fn cpu() -> Cpu {
    if let Ok(name) = std::env::var(Instructions::VARIABLE) {
        name.parse::<Instructions>().unwrap().keep_to();
    }
    Cpu::new()
}

/// Makes tests of bodies `fn body<B: Backend>(backend: &mut B)`: `on_cpu::name`, `emulated::name` and `on_gpu::name`.
/// Tests after `not emulated:` would take minutes there, and on a GPU in software. Single operations are emulated on
/// both cards; whole networks, marked by `networks;`, on one.
#[allow(unused_macros, reason = "each test file uses a part of this")]
macro_rules! on_each_device {
    (networks; $($rest:tt)*) => {
        crate::support::devices::on_each_device! { @on_emulator $($rest)* }
    };
    (@$emulate:ident $($name:ident: $body:ident),* $(,)? $(; not emulated: $($slow:ident: $slow_body:ident),* $(,)?)?) => {
        mod on_cpu {
            $(#[test]
            fn $name() {
                super::$body(&mut crate::support::devices::cpu());
            })*
            $($(#[test]
            fn $slow() {
                super::$slow_body(&mut crate::support::devices::cpu());
            })*)?
        }

        pub(crate) mod emulated {
            /// The bodies by name.
            #[allow(dead_code, reason = "only single operations are run with planted faults")]
            pub(crate) const BODIES: &[crate::support::devices::Emulated] =
                &[$((stringify!($name), |backend| super::$body(backend))),*];

            $(#[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                crate::support::devices::$emulate(test, |backend| super::$body(backend));
            })*
        }

        mod on_gpu {
            $(#[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                crate::support::devices::on_gpu(test, |backend| super::$body(backend));
            })*
            $($(#[test]
            fn $slow() {
                let test = concat!(module_path!(), "::", stringify!($slow));
                crate::support::devices::on_fast_gpu(test, |backend| super::$slow_body(backend));
            })*)?
        }
    };
    ($($rest:tt)*) => {
        crate::support::devices::on_each_device! { @on_both_emulators $($rest)* }
    };
}
#[allow(unused_imports, reason = "each test file uses a part of this")]
pub(crate) use on_each_device;
