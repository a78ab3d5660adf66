//! An NVIDIA GPU as a driver, through the CUDA driver's own interface. Only this folder names cudarc.
//!
//! cudarc finds the library and provides the types. The functions are called through the table in `api`, which says
//! why. Nothing here panics; `library` reports a missing library and missing functions.

mod api;
mod context;
mod library;

pub use context::{Block, Mark};

use self::context::{Context, Staging};
use self::library::Library;
use super::driver::{Driver, Launch, Memory, Properties};
use super::launch::{KernelEntry, MOST_PARAMS};
use super::nvrtc::{Architecture, Cache, Compiled, Compiler, Prebuilt, Search, Sources};
use super::tiles::Program;
use crate::{Error, Result};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use std::collections::HashMap;
use std::ffi::{CString, OsString, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

/// The GPUs of a machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// The CUDA version that the driver speaks.
    pub driver: (u32, u32),
    /// What each GPU is, by its number.
    pub devices: Vec<Properties>,
}

impl Found {
    /// Looks for the driver and its GPUs.
    ///
    /// # Errors
    /// No driver, or one that is too old, does not start or sees no GPU.
    pub fn new() -> Result<Self> {
        let library = Library::open()?;
        let devices =
            (0..library.count()?).map(|ordinal| library.properties(library.device(ordinal)?));
        Ok(Found {
            driver: library.version,
            devices: devices.collect::<Result<_>>()?,
        })
    }
}

/// Where a GPU's programs come from, and how its memory is allocated.
#[derive(Debug)]
pub struct Setup {
    /// The kernels' text.
    pub sources: Sources,
    /// Programs that need no compiler.
    pub prebuilt: Prebuilt,
    /// Where to look for the compiler when a program is not prebuilt.
    pub search: Search,
    /// The architecture to compile for; None: the card's own machine code.
    pub architecture: Option<Architecture>,
    /// Where compiled programs are kept.
    pub cache: Cache,
    /// Whether memory comes from the driver's pool, in stream order, if the card has one. Without the pool the driver
    /// makes each allocation separately, and compute-sanitizer sees accesses beyond its end.
    pub pooled: bool,
}

impl Setup {
    /// The environment variable for the pool; 0 turns it off.
    pub const POOL: &str = "ARCFACE_CU_POOL";

    /// Reads the environment; `variable` returns the value of a variable.
    ///
    /// # Errors
    /// A variable has an invalid value.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>, cache: Cache) -> Result<Self> {
        let pool = variable(Self::POOL).unwrap_or_default();
        let pooled = match pool.to_str() {
            Some("" | "1") => true,
            Some("0") => false,
            _ => {
                let pool = pool.to_string_lossy();
                return Err(Error::Usage(format!(
                    "{} is {pool:?}: expected 0 for memory without a pool, or 1",
                    Self::POOL
                )));
            }
        };
        Ok(Setup {
            sources: Sources::new(&variable)?,
            prebuilt: Prebuilt::new(&variable)?,
            architecture: Architecture::chosen(&variable)?,
            search: Search::new(&variable),
            cache,
            pooled,
        })
    }
}

/// A GPU.
#[derive(Debug)]
pub struct Gpu {
    staging: Staging,
    compiler: Compiler,
    /// Programs that are compiled but not loaded yet. The first load compiles all of them.
    compiled: Option<HashMap<&'static str, Compiled>>,
    architecture: Architecture,
    properties: Properties,
    context: Arc<Context>,
}

impl Gpu {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// There is no driver or no such GPU; the GPU is too old or cannot run the chosen architecture; or a program is not
    /// prebuilt and cannot be compiled for this driver. Each message says what to do.
    pub fn open(ordinal: usize, setup: Setup) -> Result<Self> {
        let library = Library::open()?;
        let device = library.device(ordinal)?;
        let properties = library.properties(device)?;
        library::check_capability(ordinal, &properties)?;
        let architecture = library::architecture(ordinal, &properties, setup.architecture)?;
        let compiler = Compiler::new(
            setup.sources,
            setup.prebuilt,
            setup.search,
            Some(library.version),
            Some(architecture.clone()),
            setup.cache,
        );
        compiler.check(architecture.name())?;
        let context = Context::new(library, device, setup.pooled)?;
        Ok(Gpu {
            staging: Staging::new(&context)?,
            compiler,
            compiled: None,
            architecture,
            properties,
            context,
        })
    }

    /// The compiler of its kernels.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Loads PTX that is not one of the engine's programs; the driver compiles it.
    ///
    /// # Errors
    /// PTX that the driver refuses, or that lacks one of `kernels`.
    pub fn load_ptx(&self, name: &str, ptx: &str, kernels: &[KernelEntry]) -> Result<Vec<Kernel>> {
        self.kernels(name, terminated(ptx.into()), kernels)
    }

    fn kernels(&self, name: &str, image: Vec<u8>, kernels: &[KernelEntry]) -> Result<Vec<Kernel>> {
        let module = Arc::new(Module::new(&self.context, name, &image)?);
        let shared = self.properties.shared_per_block;
        kernels
            .iter()
            .map(|entry| Kernel::new(&module, entry, shared))
            .collect()
    }
}

/// PTX as the driver takes it, with a zero byte at the end.
fn terminated(mut ptx: Vec<u8>) -> Vec<u8> {
    ptx.push(0);
    ptx
}

/// A program on the device.
#[derive(Debug)]
struct Module {
    context: Arc<Context>,
    module: CUmodule,
}

// SAFETY: the driver takes modules from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Module {}

impl Module {
    /// `image` is a whole cubin, or PTX that ends in a zero byte.
    fn new(context: &Arc<Context>, name: &str, image: &[u8]) -> Result<Self> {
        context.bind()?;
        let api = context.api();
        let mut module = null_mut();
        // SAFETY: a cubin's own header tells its length, and a zero byte ends PTX; it is copied.
        let status = unsafe { (api.module_load_data)(&mut module, image.as_ptr().cast()) };
        api.check(status, format_args!("loading {name} on the GPU"))?;
        Ok(Module {
            context: context.clone(),
            module,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // None of its kernels may be running. Where waiting fails, the GPU is lost, and the module with it.
        if self.context.synchronize().is_ok() {
            // SAFETY: loaded by `new`, unloaded only here.
            let _ = unsafe { (self.context.api().module_unload)(self.module) };
        }
    }
}

/// A kernel of a program on the device.
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    /// The size of each parameter in bytes.
    params: &'static [usize],
    function: CUfunction,
    /// The function lives as long as its module.
    _module: Arc<Module>,
}

// SAFETY: the driver takes functions from any thread.
unsafe impl Send for Kernel {}

impl Kernel {
    /// `shared` is the most shared memory that the card allows a block, in bytes.
    fn new(module: &Arc<Module>, entry: &KernelEntry, shared: u32) -> Result<Self> {
        let name = entry.kernel;
        let api = module.context.api();
        let check = |status| api.check(status, format_args!("loading {name} on the GPU"));
        let c_name = CString::new(name)
            .map_err(|_| Error::Device("a kernel's name holds a zero byte".to_owned()))?;
        let mut function = null_mut();
        // SAFETY: the module is loaded, and the function lives as long as it.
        check(unsafe { (api.module_get_function)(&mut function, module.module, c_name.as_ptr()) })?;
        // Allow all shared memory that the card gives a block, less the kernel's static part. The default limit is
        // lower.
        let fixed = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let dynamic = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let mut bytes = 0;
        // SAFETY: the function is alive, and the integer outlives the call.
        check(unsafe { (api.func_get_attribute)(&mut bytes, fixed, function) })?;
        let allowed = (shared as i32).saturating_sub(bytes);
        // SAFETY: the function is alive.
        check(unsafe { (api.func_set_attribute)(function, dynamic, allowed) })?;
        Ok(Kernel {
            name,
            params: entry.params,
            function,
            _module: module.clone(),
        })
    }
}

impl Driver for Gpu {
    type Memory = Block;
    type Kernel = Kernel;
    type Event = Mark;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&self) -> u64 {
        // A GPU that does not answer has none.
        self.context.memory_free().unwrap_or(0)
    }

    fn alloc(&self, bytes: usize) -> Result<Block> {
        Block::new(&self.context, bytes)
    }

    fn clear(&self, memory: &mut Block, bytes: usize) -> Result<()> {
        memory.clear(bytes)
    }

    fn upload(&mut self, src: &[u8], dst: &mut Block, offset: usize) -> Result<()> {
        self.staging.upload(src, dst.address() + offset as u64)
    }

    fn download<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a Block, usize, &'a mut [u8])>,
    ) -> Result<()> {
        let parts = parts.map(|(src, offset, dst)| (src.address() + offset as u64, dst));
        self.staging.download(parts)
    }

    fn load(&mut self, program: &'static Program) -> Result<Vec<Kernel>> {
        let name = self.architecture.name();
        let all = match &mut self.compiled {
            Some(all) => all,
            // A step needs nearly all of them. Compiled in parallel, they take the time of the slowest.
            none => none.insert(self.compiler.compile_all(name)?),
        };
        let compiled = match all.remove(program.name) {
            Some(compiled) => compiled,
            None => self.compiler.compile(program, name)?,
        };
        let image = match self.architecture.is_ptx() {
            true => terminated(compiled.image),
            false => compiled.image,
        };
        self.kernels(program.name, image, program.kernels().1)
    }

    fn launch(&mut self, kernel: &Kernel, launch: Launch, args: &[&[u8]]) -> Result<()> {
        self.context.bind()?;
        let Launch {
            grid,
            block,
            shared,
        } = launch;
        let given = args.iter().map(|arg| arg.len());
        if args.len() > MOST_PARAMS || !given.eq(kernel.params.iter().copied()) {
            return Err(Error::Device(format!(
                "{} takes parameters of {:?} bytes, and was given others",
                kernel.name, kernel.params
            )));
        }
        let mut params: [*mut c_void; MOST_PARAMS] = [null_mut(); _];
        for (param, arg) in params[..args.len()].iter_mut().zip(args) {
            *param = arg.as_ptr().cast_mut().cast();
        }
        let api = self.context.api();
        let [x, y, z] = grid;
        let stream = self.context.stream();
        // SAFETY: the function is alive with its module. The parameters have the number and the sizes that the kernel
        // declares, as checked above. They are copied before the call returns, and
        // the driver does not write them.
        let status = unsafe {
            (api.launch_kernel)(
                kernel.function,
                x,
                y,
                z,
                block,
                1,
                1,
                shared,
                stream,
                params.as_mut_ptr(),
                null_mut(),
            )
        };
        api.check(
            status,
            format_args!(
                "launching {}, {grid:?} blocks of {block} threads with {shared} bytes of shared memory",
                kernel.name
            ),
        )
    }

    fn synchronize(&mut self) -> Result<()> {
        self.context.synchronize()
    }

    fn record(&mut self) -> Result<Mark> {
        let mut mark = Mark::new(&self.context, true)?;
        mark.record()?;
        Ok(mark)
    }

    fn elapsed(&mut self, from: &Mark, to: &Mark) -> Result<f64> {
        from.seconds_to(to)
    }
}
