//! The card's state, and the order in which its work runs.

use crate::faults::{
    INVALID_CONTEXT, INVALID_HANDLE, NOT_INITIALIZED, NOT_READY, Status, is_fatal,
};
use crate::memory::{Device, Kind, Pinned};
use crate::queue::{Event, Handle, Stream, Work, broken};
use crate::settings::Settings;
use ptx_emulator::{KernelInfo, Machine, Module, Options};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// A function of a loaded module.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) module: Handle,
    pub(crate) info: KernelInfo,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub(crate) dynamic: u32,
}

/// What lives in the primary context.
#[derive(Debug)]
pub(crate) struct Context {
    /// Total bytes of memory.
    pub(crate) memory: u64,
    /// Bytes of shared memory that a block may have.
    pub(crate) shared_per_block: u32,
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    pub(crate) machine: Machine,
    pub(crate) device: Device,
    pub(crate) pinned: Pinned,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: HashMap<Handle, Event>,
    pub(crate) modules: HashMap<Handle, Module>,
    pub(crate) functions: HashMap<Handle, Function>,
    /// How many objects were made and released, by kind.
    counts: BTreeMap<&'static str, (u64, u64)>,
    next: Handle,
}

/// The card.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) settings: Settings,
    pub(crate) started: bool,
    /// Every call fails with this status.
    lost: Option<Status>,
    /// How often the primary context is retained, its handle, and what is in it.
    retained: u32,
    handle: Handle,
    context: Option<Context>,
}

thread_local! {
    /// The context that is current on this thread; 0 where none is.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
}

fn card() -> &'static Mutex<Card> {
    static CARD: OnceLock<Mutex<Card>> = OnceLock::new();
    CARD.get_or_init(|| {
        Mutex::new(Card {
            settings: Settings::read(),
            started: false,
            lost: None,
            retained: 0,
            handle: 0,
            context: None,
        })
    })
}

/// A call that needs no context: counted, and refused where it must fail.
pub(crate) fn call(
    function: &'static str,
    body: impl FnOnce(&mut Card) -> Result<(), Status>,
) -> Status {
    let mut card = card().lock().unwrap_or_else(PoisonError::into_inner);
    let requested = card.settings.requests.count(function);
    if let Some(lost) = card.lost {
        return lost;
    }
    let result = match requested {
        // A kernel fails when it runs.
        Some(status) if function == "cuLaunchKernel" && is_fatal(status) => {
            card.doom(status);
            Ok(())
        }
        Some(status) => Err(status),
        None => body(&mut card),
    };
    let status = result.err().unwrap_or(0);
    if is_fatal(status) {
        card.lost = Some(status);
    }
    status
}

/// A call in the context that is current on this thread.
pub(crate) fn call_in_context(
    function: &'static str,
    body: impl FnOnce(&mut Context) -> Result<(), Status>,
) -> Status {
    call(function, |card| {
        let current = CURRENT.get();
        let context = card.context.as_mut();
        let context = context.filter(|_| current == card.handle && current != 0);
        body(context.ok_or(INVALID_CONTEXT)?)
    })
}

impl Card {
    /// Refuses before `cuInit`.
    pub(crate) fn started(&self) -> Result<(), Status> {
        match self.started {
            true => Ok(()),
            false => Err(NOT_INITIALIZED),
        }
    }

    /// Retains the primary context; its handle.
    pub(crate) fn retain(&mut self) -> Result<Handle, Status> {
        self.started()?;
        if self.retained == 0 {
            // A new context never has the handle of a released one.
            self.handle += 1;
            self.context = Some(Context::new(&self.settings));
        }
        self.retained += 1;
        Ok(self.handle)
    }

    /// Releases it. The last release drops everything in it and writes the report.
    pub(crate) fn release(&mut self) -> Result<(), Status> {
        self.retained = self.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if self.retained > 0 {
            return Ok(());
        }
        let context = self.context.take().ok_or(INVALID_CONTEXT)?;
        let Some(path) = &self.settings.report else {
            return Ok(());
        };
        let counts = context.counts.iter();
        let counts = counts.map(|(kind, (made, released))| format!("{kind} {made} {released}"));
        let calls = self.settings.requests.calls();
        let calls = calls.map(|(function, calls)| format!("{function} {calls}"));
        let join = |words: &mut dyn Iterator<Item = String>| words.collect::<Vec<_>>().join(", ");
        let line = format!(
            "{}; {}\n",
            join(&mut counts.into_iter()),
            join(&mut calls.into_iter())
        );
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("software card: {}: {error}", path.display());
        }
        Ok(())
    }

    /// Makes a context current on this thread, or none.
    pub(crate) fn set_current(&self, handle: Handle) -> Result<(), Status> {
        if handle != 0 && (handle != self.handle || self.retained == 0) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.set(handle);
        Ok(())
    }

    /// Queues a failure in every stream.
    fn doom(&mut self, status: Status) {
        for stream in self.context.iter_mut().flat_map(|c| c.streams.values_mut()) {
            stream.queue.push_back(Work::Fail(status));
        }
    }
}

impl Context {
    fn new(settings: &Settings) -> Self {
        Context {
            memory: settings.memory,
            shared_per_block: settings.shared_per_block(),
            capability: settings.capability,
            machine: Machine::new(Options {
                memory: settings.memory,
                shared_per_block: settings.shared_per_block(),
                arithmetic: settings.arithmetic,
                ..Options::default()
            }),
            device: Device::default(),
            pinned: Pinned::default(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            counts: BTreeMap::new(),
            next: 0x1000,
        }
    }

    /// Counts an object that was made.
    pub(crate) fn made(&mut self, kind: &'static str) {
        self.counts.entry(kind).or_default().0 += 1;
    }

    /// Counts an object that was released.
    pub(crate) fn released(&mut self, kind: &'static str) {
        self.counts.entry(kind).or_default().1 += 1;
    }

    /// A new handle for an object of this kind.
    pub(crate) fn handle(&mut self, kind: &'static str) -> Handle {
        self.made(kind);
        self.unowned_handle()
    }

    /// A new handle for an object that is released with its owner.
    pub(crate) fn unowned_handle(&mut self) -> Handle {
        self.next += 16;
        self.next
    }

    /// Allocates memory of the card.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<u64, Status> {
        let address = self.device.alloc(&self.machine, bytes)?;
        self.made("memory");
        Ok(address)
    }

    /// Queues work.
    pub(crate) fn queue(&mut self, stream: Handle, work: Work) -> Result<(), Status> {
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        stream.queue.push_back(work);
        Ok(())
    }

    /// Runs all work queued in a stream.
    pub(crate) fn synchronize(&mut self, stream: Handle) -> Result<(), Status> {
        self.run_until(stream, |_| false)
    }

    /// Runs all work queued in every stream.
    pub(crate) fn synchronize_all(&mut self) -> Result<(), Status> {
        let streams: Vec<Handle> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|s| self.synchronize(s))
    }

    /// Runs the work queued before the event was last recorded.
    pub(crate) fn wait(&mut self, event: Handle) -> Result<(), Status> {
        let found = self.events.get(&event).ok_or(INVALID_HANDLE)?;
        let (stream, recorded) = (found.stream, found.recorded);
        let passed = move |c: &Context| c.events.get(&event).is_none_or(|e| e.passed >= recorded);
        match self.streams.contains_key(&stream) {
            true => self.run_until(stream, passed),
            false => Ok(()),
        }
    }

    /// Milliseconds between two events that were passed.
    pub(crate) fn elapsed(&self, from: Handle, to: Handle) -> Result<f32, Status> {
        let at = |event: Handle| {
            let event = self.events.get(&event).ok_or(INVALID_HANDLE)?;
            if !event.timed || event.recorded == 0 {
                return Err(INVALID_HANDLE);
            }
            event
                .at
                .filter(|_| event.passed == event.recorded)
                .ok_or(NOT_READY)
        };
        let (from, to) = (at(from)?, at(to)?);
        Ok(1e3 * to.saturating_duration_since(from).as_secs_f32())
    }

    fn run_until(&mut self, stream: Handle, done: impl Fn(&Self) -> bool) -> Result<(), Status> {
        while !done(self) {
            let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            let Some(work) = stream.queue.pop_front() else {
                return Ok(());
            };
            self.run(work)?;
        }
        Ok(())
    }

    /// Runs a piece of work.
    pub(crate) fn run(&mut self, work: Work) -> Result<(), Status> {
        let machine = &self.machine;
        match work {
            Work::UploadPinned { to, from, bytes } => {
                if self.pinned.kind(from, bytes) != Ok(Kind::Pinned) {
                    return Err(broken("a copy reads pinned memory that was freed"));
                }
                // SAFETY: the memory is still allocated; whoever queued the copy leaves it alone until it has run.
                let data = unsafe { from.read(bytes) };
                machine.write(to, &data).map_err(broken)
            }
            Work::Upload { to, data } => machine.write(to, &data).map_err(broken),
            Work::Download {
                to,
                from,
                bytes,
                kind,
            } => {
                if self.pinned.kind(to, bytes) != Ok(kind) {
                    return Err(broken("a copy writes pinned memory that was freed"));
                }
                let mut data = vec![0; bytes];
                machine.read(from, &mut data).map_err(broken)?;
                // SAFETY: as above.
                unsafe { to.write(&data) };
                Ok(())
            }
            Work::Fill { to, value, bytes } => machine.memset(to, value, bytes).map_err(broken),
            Work::Free { address } => {
                machine.free(address).map_err(broken)?;
                self.released("memory");
                Ok(())
            }
            Work::Launch {
                module,
                code,
                kernel,
                grid,
                block,
                shared,
                arguments,
            } => {
                if !self.modules.contains_key(&module) {
                    return Err(broken(format_args!(
                        "{kernel} runs after its module was unloaded"
                    )));
                }
                let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
                let launched = machine.launch(&code, &kernel, grid, block, shared, &arguments);
                launched.map(drop).map_err(broken)
            }
            Work::Record { event, nth } => {
                // A destroyed event is passed and leaves no trace.
                if let Some(event) = self.events.get_mut(&event) {
                    event.passed = nth;
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Work::Fail(status) => Err(status),
        }
    }
}
