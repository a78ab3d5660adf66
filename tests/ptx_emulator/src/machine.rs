//! The machine: memory, modules, launches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::block::{Launch, Worker};
use crate::compact::compact;
use crate::counters::Counters;
use crate::exec;
use crate::fault::{Check, Fault, LoadError};
use crate::lower::{align, lower};
use crate::matrix::Arithmetic;
use crate::memory::{Global, Refusal};
use crate::parse::{Function, Tree, VarSpace, parse};
use crate::program::{Parameter, Program};

/// How a machine behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Instructions that a warp may execute in a launch; more is taken for an endless loop.
    pub instruction_budget: u64,
    /// Blocks that run at a time, each on a thread of rayon's pool; zero: as many as the pool has.
    pub threads: usize,
    /// Runs every launch a second time with blocks and warps in the opposite order and compares all memory.
    pub check_order: bool,
    /// Fuses products and sums that do not say how they round, wherever the assembler may.
    pub contract: bool,
    /// Bytes of global memory.
    pub memory: u64,
    /// Bytes of shared memory that a block may have.
    pub shared_per_block: u32,
    /// Uses AVX2 and FMA where the processor has them. Without, results are the same and come slowly.
    pub vector: bool,
    /// Whose arithmetic `mma` follows.
    pub arithmetic: Arithmetic,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instruction_budget: 1 << 28,
            threads: 0,
            check_order: false,
            contract: false,
            memory: 16 << 30,
            shared_per_block: 227 << 10,
            vector: true,
            arithmetic: Arithmetic::default(),
        }
    }
}

/// A kernel of a module, as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// The name.
    pub name: String,
    /// Parameters in order.
    pub parameters: Vec<Parameter>,
    /// Bytes of all parameters.
    pub parameter_bytes: u32,
    /// Registers that the PTX declares, of every type; the assembler needs far fewer.
    pub declared_registers: u32,
    /// Rows of 32 and of 64 bits that live at a time, constants included: near what the assembler needs.
    pub live_rows: (u32, u32),
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// The most threads of a block that the kernel allows, zero if it says nothing.
    pub max_threads: u32,
}

/// Loaded PTX. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Arc<HashMap<String, Program>>,
    globals: Arc<HashMap<String, u64>>,
}

impl Module {
    /// The kernels, by name.
    pub fn kernels(&self) -> Vec<KernelInfo> {
        let mut all: Vec<_> = self.kernels.values().map(info).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One kernel.
    pub fn kernel(&self, name: &str) -> Option<KernelInfo> {
        self.kernels.get(name).map(info)
    }

    /// The address of a variable of the module.
    pub fn variable(&self, name: &str) -> Option<u64> {
        self.globals.get(name).copied()
    }
}

fn info(program: &Program) -> KernelInfo {
    KernelInfo {
        name: program.name.clone(),
        parameters: program.parameters.clone(),
        parameter_bytes: program.parameter_bytes,
        declared_registers: program.declared_registers,
        live_rows: (program.rows32, program.rows64),
        shared_bytes: program.shared_bytes,
        local_bytes: program.local_bytes,
        max_threads: program.max_threads,
    }
}

/// A GPU's worth of memory, and what runs on it. All methods take `&self`; launches on one machine do not run at the
/// same time as allocations.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    global: RwLock<Global>,
}

impl Machine {
    /// A machine with nothing in it.
    pub fn new(options: Options) -> Self {
        let global = RwLock::new(Global::new(options.memory));
        Self { options, global }
    }

    fn read_lock(&self) -> std::sync::RwLockReadGuard<'_, Global> {
        self.global.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> std::sync::RwLockWriteGuard<'_, Global> {
        self.global.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates memory that holds nothing yet: reading it before it is written is a fault. The address is a multiple
    /// of 256, and far from every other allocation.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn alloc(&self, bytes: u64) -> Result<u64, Fault> {
        self.write_lock()
            .alloc(bytes)
            .map_err(|detail| host_fault("alloc", Check::Launch, None, detail))
    }

    /// Frees an allocation; its address is never used again.
    ///
    /// # Errors
    /// No allocation begins at `address`.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        if self.write_lock().free(address) {
            return Ok(());
        }
        let detail = "no allocation begins at this address".to_owned();
        Err(host_fault(
            "free",
            Check::OutOfBounds,
            Some(address),
            detail,
        ))
    }

    /// Bytes allocated.
    pub fn memory_used(&self) -> u64 {
        self.read_lock().used()
    }

    /// Copies to the machine.
    ///
    /// # Errors
    /// The range does not lie in one allocation.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.read_lock()
            .write(address, data)
            .map_err(|refusal| refused("write", refusal))
    }

    /// Fills `bytes` bytes with `value`.
    ///
    /// # Errors
    /// The range does not lie in one allocation.
    pub fn memset(&self, address: u64, value: u8, bytes: usize) -> Result<(), Fault> {
        self.read_lock()
            .fill(address, value, bytes)
            .map_err(|refusal| refused("memset", refusal))
    }

    /// Copies from the machine.
    ///
    /// # Errors
    /// The range does not lie in one allocation, or some of it was never written.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.read_lock()
            .read(address, data)
            .map_err(|refusal| refused("read", refusal))
    }

    /// Loads PTX: every kernel is decoded, and the module's variables are allocated.
    ///
    /// # Errors
    /// Text that is no PTX, or an instruction that the emulator does not know, with its line.
    pub fn load(&self, ptx: &str) -> Result<Module, LoadError> {
        let tree = parse(ptx)?;
        let globals = self.allocate_variables(&tree)?;
        let mut kernels = HashMap::new();
        for function in tree.functions.iter().filter(|f| f.entry && f.defined) {
            let lowered = lower(&tree, function, &globals)?;
            let shell = shell(&tree, function);
            let program = compact(lowered, shell, &self.options)?;
            kernels.insert(function.name.clone(), program);
        }
        Ok(Module {
            kernels: Arc::new(kernels),
            globals: Arc::new(globals),
        })
    }

    fn allocate_variables(&self, tree: &Tree) -> Result<HashMap<String, u64>, LoadError> {
        let mut addresses = HashMap::new();
        let mut global = self.write_lock();
        let here = |variable: &&crate::parse::Variable| {
            matches!(variable.space, VarSpace::Global | VarSpace::Const)
        };
        let failed = |name: &str, detail: String| LoadError::new(0, name, detail);
        for variable in tree.variables.iter().filter(here) {
            let address = global
                .alloc(u64::from(variable.bytes))
                .map_err(|detail| failed(&variable.name, detail))?;
            // A variable without an initial value holds zeros.
            let filled = global.fill(address, 0, variable.bytes as usize);
            filled.map_err(|r| failed(&variable.name, r.detail))?;
            addresses.insert(variable.name.clone(), address);
        }
        for variable in tree.variables.iter().filter(here) {
            let mut bytes = variable.initial.clone();
            for (at, name, addend) in &variable.pointers {
                let Some(target) = addresses.get(name) else {
                    let detail = format!("`{name}` is not declared");
                    return Err(failed(&variable.name, detail));
                };
                let pointer = target.wrapping_add(*addend as u64).to_le_bytes();
                let at = *at as usize;
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&pointer[..end - at]);
            }
            let address = addresses[&variable.name];
            global
                .write(address, &bytes)
                .map_err(|r| failed(&variable.name, r.detail))?;
            global.name(address, &variable.name, variable.space == VarSpace::Const);
        }
        Ok(addresses)
    }

    /// Runs `grid` blocks of `block` threads with `dynamic_shared` bytes of dynamic shared memory. `arguments` are the
    /// bytes of each parameter in order.
    ///
    /// # Errors
    /// A launch that the kernel or the machine cannot take, or the failed check with the lowest block among those that
    /// were found.
    pub fn launch(
        &self,
        module: &Module,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        arguments: &[&[u8]],
    ) -> Result<Counters, Fault> {
        let Some(program) = module.kernels.get(kernel) else {
            let detail = "the module has no kernel of this name".to_owned();
            return Err(host_fault(kernel, Check::Launch, None, detail));
        };
        let refuse = |detail: String| Err(host_fault(kernel, Check::Launch, None, detail));
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let limit = match program.max_threads {
            0 => 1024,
            n => u64::from(n.min(1024)),
        };
        if threads == 0 || threads > limit || block[2] > 64 {
            return refuse(format!(
                "a block of {block:?} threads; the kernel takes 1 to {limit}"
            ));
        }
        if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return refuse(format!("a grid of {grid:?} blocks"));
        }
        let shared = u64::from(program.shared_bytes) + u64::from(dynamic_shared);
        if shared > u64::from(self.options.shared_per_block) {
            return refuse(format!(
                "{shared} bytes of shared memory; a block may have {}",
                self.options.shared_per_block
            ));
        }
        if arguments.len() != program.parameters.len() {
            return refuse(format!(
                "{} arguments; the kernel has {} parameters",
                arguments.len(),
                program.parameters.len()
            ));
        }
        let mut parameters = vec![0; program.parameter_bytes as usize];
        for (parameter, argument) in program.parameters.iter().zip(arguments) {
            if argument.len() != parameter.bytes as usize {
                return refuse(format!(
                    "{} bytes for the parameter {} of {} bytes",
                    argument.len(),
                    parameter.name,
                    parameter.bytes
                ));
            }
            let first = parameter.offset as usize;
            parameters[first..first + argument.len()].copy_from_slice(argument);
        }
        let global = self.read_lock();
        let blocks = grid.iter().map(|&n| u64::from(n)).product();
        let mut launch = Launch {
            program,
            global: &global,
            parameters: &parameters,
            grid,
            block,
            dynamic_shared,
            budget: self.options.instruction_budget,
            reverse: false,
            arithmetic: self.options.arithmetic,
            avx2: self.options.vector && exec::has_avx2(),
            stop: AtomicBool::new(false),
            races: global.races(blocks),
            pairs: Mutex::new(()),
        };
        if !self.options.check_order {
            return self.run(&launch);
        }
        let before = global.snapshot();
        let counters = self.run(&launch)?;
        let after = global.snapshot();
        global.restore(&before);
        launch.reverse = true;
        launch.races = global.races(blocks);
        self.run(&launch)?;
        match global.difference(&after) {
            None => Ok(counters),
            Some((address, detail)) => Err(host_fault(kernel, Check::Order, Some(address), detail)),
        }
    }

    /// Runs all blocks on as many threads as are to be used.
    fn run(&self, launch: &Launch<'_>) -> Result<Counters, Fault> {
        let blocks = launch.blocks();
        let threads = match self.options.threads {
            0 => rayon::current_num_threads(),
            n => n,
        };
        let next = AtomicU64::new(0);
        let total = Mutex::new(Counters::default());
        let first: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
        let work = || {
            let mut worker = Worker::new(launch);
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n >= blocks || launch.stop.load(Relaxed) {
                    break;
                }
                let index = if launch.reverse { blocks - 1 - n } else { n };
                if let Err(fault) = worker.run(index) {
                    launch.stop.store(true, Relaxed);
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(other, _)| index < *other) {
                        *first = Some((index, *fault));
                    }
                    break;
                }
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            *total += &worker.counters();
        };
        let count = (threads as u64).min(blocks);
        if count <= 1 {
            work();
        } else {
            rayon::scope(|scope| {
                for _ in 0..count {
                    scope.spawn(|_| work());
                }
            });
        }
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, fault)) => Err(fault),
            None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// What a program has from its function before its code.
fn shell(tree: &Tree, function: &Function) -> Program {
    let mut offset = 0;
    let parameters = function
        .params
        .iter()
        .map(|parameter| {
            let at = align(offset, parameter.align);
            offset = at + parameter.bytes;
            Parameter {
                name: parameter.name.clone(),
                offset: at,
                bytes: parameter.bytes,
            }
        })
        .collect();
    Program {
        name: function.name.clone(),
        parameters,
        parameter_bytes: offset,
        max_threads: function.max_threads,
        declared_registers: function.registers.len() as u32,
        files: tree.files.clone(),
        ..Program::default()
    }
}

fn host_fault(kernel: &str, check: Check, address: Option<u64>, detail: String) -> Fault {
    Fault {
        check,
        kernel: kernel.to_owned(),
        place: None,
        address,
        detail,
    }
}

fn refused(what: &str, refusal: Refusal) -> Fault {
    host_fault(what, refusal.check, Some(refusal.address), refusal.detail)
}
