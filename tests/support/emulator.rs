//! A GPU that is none: the emulator of the kernels' PTX as a driver.

use arcface_cu::backend::cuda::Compiler;
use arcface_cu::backend::cuda::driver::{Driver, Launch, Memory, Properties};
use arcface_cu::backend::cuda::launch::KernelEntry;
use arcface_cu::backend::cuda::tiles::Program;
use arcface_cu::{Error, Result};
use ptx_emulator::{Arithmetic, Counters, Machine, Options};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of the made-up card's memory.
const MEMORY: u64 = 16 << 30;

/// The made-up card. Calls do their work before they return, so that all that is queued is always done.
pub(crate) struct Emulator {
    machine: Arc<Machine>,
    compiler: &'static Compiler,
    architecture: &'static str,
    properties: Properties,
    /// What was launched since the list was last taken, if it is kept.
    launches: Option<Vec<Launched>>,
    /// A fault to plant in every launch of a kernel.
    swap: Option<Swap>,
}

/// A kernel of a program on the made-up card.
pub(crate) struct Kernel {
    program: &'static Program,
    name: &'static str,
    module: Arc<ptx_emulator::Module>,
}

/// A launch, and what it did.
pub(crate) struct Launched {
    pub(crate) program: &'static Program,
    pub(crate) kernel: &'static str,
    pub(crate) launch: Launch,
    pub(crate) counters: Counters,
}

impl Emulator {
    /// A card that runs code of the oldest architecture with asynchronous copies, and checks that no result depends
    /// on the order of blocks and warps.
    pub(crate) fn new(compiler: &'static Compiler) -> Self {
        Self::with(compiler, "compute_80", true)
    }

    /// A card that runs code of this architecture; where `check_order`, every launch runs twice.
    pub(crate) fn with(
        compiler: &'static Compiler,
        architecture: &'static str,
        check_order: bool,
    ) -> Self {
        let options = Options {
            check_order,
            ..Options::default()
        };
        Self::build(compiler, architecture, options)
    }

    /// A card that runs Hopper's code and fuses every sum of a product that the assembler may fuse.
    pub(crate) fn fusing(compiler: &'static Compiler) -> Self {
        let options = Options {
            contract: true,
            ..Options::default()
        };
        Self::build(compiler, "compute_90a", options)
    }

    /// A card that exchanges two arguments of a kernel.
    pub(crate) fn swapping(compiler: &'static Compiler, swap: Swap) -> Self {
        Emulator {
            swap: Some(swap),
            ..Self::with(compiler, "compute_80", false)
        }
    }

    fn build(compiler: &'static Compiler, architecture: &'static str, options: Options) -> Self {
        let digits: u32 = (architecture.chars().filter(char::is_ascii_digit))
            .fold(0, |n, c| 10 * n + u32::from(c as u8 - b'0'));
        let options = Options {
            memory: MEMORY,
            arithmetic: Arithmetic::of_capability((digits / 10, digits % 10)),
            ..options
        };
        let properties = Properties {
            name: format!("emulated GPU ({})", options.arithmetic),
            capability: (digits / 10, digits % 10),
            multiprocessors: 16,
            memory: MEMORY,
            shared_per_block: options.shared_per_block,
            driver: (13, 0),
        };
        Emulator {
            machine: Arc::new(Machine::new(options)),
            compiler,
            architecture,
            properties,
            launches: None,
            swap: None,
        }
    }

    /// The launches since the last call; the first call begins the list.
    pub(crate) fn launches(&mut self) -> Vec<Launched> {
        self.launches.replace(Vec::new()).unwrap_or_default()
    }
}

/// A planted fault: two numbers among a kernel's arguments exchanged, each given by its argument and its first byte there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swap {
    pub(crate) kernel: &'static str,
    pub(crate) places: [(usize, usize); 2],
    /// Bytes of each number.
    pub(crate) bytes: usize,
}

impl Swap {
    fn apply(&self, args: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut swapped: Vec<Vec<u8>> = args.iter().map(|arg| arg.to_vec()).collect();
        let [a, b] = self.places;
        for ((arg, byte), (from, first)) in [(a, b), (b, a)] {
            let number = &args[from][first..][..self.bytes];
            swapped[arg][byte..][..self.bytes].copy_from_slice(number);
        }
        swapped
    }
}

/// What the emulator says, as this crate's error.
fn fault(fault: impl std::fmt::Display) -> Error {
    Error::Device(fault.to_string())
}

/// An allocation, freed when dropped.
#[derive(Debug)]
pub(crate) struct Allocation {
    machine: Arc<Machine>,
    address: u64,
}

impl Memory for Allocation {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.machine
            .free(self.address)
            .expect("an allocation is freed once");
    }
}

impl Driver for Emulator {
    type Memory = Allocation;
    type Kernel = Kernel;
    type Event = Instant;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&self) -> u64 {
        MEMORY - self.machine.memory_used()
    }

    fn alloc(&self, bytes: usize) -> Result<Allocation> {
        let address = self.machine.alloc(bytes.max(1) as u64).map_err(fault)?;
        Ok(Allocation {
            machine: self.machine.clone(),
            address,
        })
    }

    fn clear(&self, memory: &mut Allocation, bytes: usize) -> Result<()> {
        let cleared = self.machine.memset(memory.address, 0, bytes);
        cleared.map_err(fault)
    }

    fn upload(&mut self, src: &[u8], dst: &mut Allocation, offset: usize) -> Result<()> {
        let address = dst.address + offset as u64;
        self.machine.write(address, src).map_err(fault)
    }

    fn download<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a Allocation, usize, &'a mut [u8])>,
    ) -> Result<()> {
        for (src, offset, dst) in parts {
            let address = src.address + offset as u64;
            self.machine.read(address, dst).map_err(fault)?;
        }
        Ok(())
    }

    fn load(&mut self, program: &'static Program) -> Result<Vec<Kernel>> {
        let compiled = self.compiler.compile(program, self.architecture)?;
        let text = String::from_utf8_lossy(&compiled.image);
        let module = self.machine.load(&text);
        let module = module.map_err(|error| fault(format!("{}: {error}", program.file)))?;
        let module = Arc::new(module);
        let kernel = |entry: &KernelEntry| Kernel {
            program,
            name: entry.kernel,
            module: module.clone(),
        };
        Ok(program.kernels().1.iter().map(kernel).collect())
    }

    fn launch(&mut self, kernel: &Kernel, launch: Launch, args: &[&[u8]]) -> Result<()> {
        let Launch {
            grid,
            block,
            shared,
        } = launch;
        let Kernel {
            program,
            name,
            module,
        } = kernel;
        let swap = self.swap.filter(|swap| swap.kernel == *name);
        let swapped = swap.map(|swap| swap.apply(args));
        let swapped: Option<Vec<&[u8]>> =
            (swapped.as_ref()).map(|args| args.iter().map(Vec::as_slice).collect());
        let args = swapped.as_deref().unwrap_or(args);
        let counters = self
            .machine
            .launch(module, name, grid, [block, 1, 1], shared, args)
            .map_err(fault)?;
        if let Some(launches) = &mut self.launches {
            launches.push(Launched {
                program,
                kernel: name,
                launch,
                counters,
            });
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn record(&mut self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed(&mut self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok((*to - *from).as_secs_f64())
    }
}
