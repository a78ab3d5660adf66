//! One block: its warps, who runs when, barriers.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use crate::counters::Counters;
use crate::exec::{self, Pattern};
use crate::fault::{Check, Fault, Place, Trouble};
use crate::matrix::Arithmetic;
use crate::memory::Global;
use crate::program::{BarrierReduce, File, Preset, Program, Reg, Special};
use crate::races::{BlockRaces, Fenced, Races, SECTOR};
use crate::row::{FULL, Row, Row64};
use crate::shared::Shared;

/// What all blocks of a launch share.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) global: &'a Global,
    pub(crate) parameters: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    /// Instructions that a warp may execute.
    pub(crate) budget: u64,
    /// Warps in descending order.
    pub(crate) reverse: bool,
    pub(crate) avx2: bool,
    pub(crate) arithmetic: Arithmetic,
    /// Another block has failed.
    pub(crate) stop: AtomicBool,
    pub(crate) races: Races,
    /// Held by atomic operations on eight bytes, which are two words of memory.
    pub(crate) pairs: Mutex<()>,
}

impl Launch<'_> {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// The block's place in the grid.
    pub(crate) fn block_at(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [index % x, index / x % y, index / x / y].map(|n| n as u32)
    }

    fn thread_at(&self, index: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [index % x, index / x % y, index / x / y]
    }
}

/// Lanes at one program counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) lanes: u32,
}

/// Lanes that wait at a barrier, and where their results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) group: Group,
    pub(crate) barrier: u32,
    pub(crate) result: Option<Reg>,
}

/// An asynchronous copy under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) lane: usize,
    pub(crate) group: u32,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) data: [u8; 16],
}

/// One warp.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    pub(crate) r32: Vec<Row>,
    pub(crate) r64: Vec<Row64>,
    pub(crate) pred: Vec<u32>,
    /// Lanes that the launch has, and those that have not exited.
    pub(crate) launched: u32,
    pub(crate) alive: u32,
    pub(crate) ready: Vec<Group>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) executed: u64,
    pub(crate) sync_epoch: u32,
    /// Local memory: a row a word, and which bytes of each lane's word were written.
    pub(crate) local: Vec<Row>,
    pub(crate) local_written: Vec<[u8; 32]>,
    pub(crate) copies: Vec<Copy>,
    pub(crate) committed: [u32; 32],
    pub(crate) fenced: Fenced,
    /// Where the warp stands, for messages.
    pub(crate) pc: u32,
}

/// A barrier's arrivals.
#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    arrived: u32,
    expected: u32,
    trues: u32,
    falses: u32,
    reduce: Option<BarrierReduce>,
}

/// Everything a block's warps share while they run.
#[derive(Debug)]
pub(crate) struct Env<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) shared: Shared,
    pub(crate) counters: Counters,
    pub(crate) races: BlockRaces,
    /// How often each basic block was entered.
    pub(crate) entries: Vec<u64>,
    pub(crate) patterns: Vec<Pattern>,
    barriers: [Barrier; 16],
    threads: u32,
    warps: u32,
    /// Groups that a barrier has set free: (barrier, result).
    released: VecDeque<(u32, u32)>,
}

/// Runs blocks one after another.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    env: Env<'a>,
    warps: Vec<Warp>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>) -> Self {
        let program = launch.program;
        let threads = launch.threads();
        let count = threads.div_ceil(32);
        let warps = (0..count)
            .map(|index| {
                let lanes = (threads - 32 * index).min(32);
                let mut warp = Warp {
                    index,
                    r32: vec![Row::ZERO; program.rows32 as usize],
                    r64: vec![Row64::ZERO; program.rows64 as usize],
                    pred: vec![0; program.rows_pred as usize],
                    launched: FULL >> (32 - lanes),
                    local: vec![Row::ZERO; program.local_bytes as usize / 4],
                    local_written: vec![[0; 32]; program.local_bytes as usize / 4],
                    ..Warp::default()
                };
                for &(reg, preset) in &program.presets {
                    set_preset(&mut warp, launch, reg, preset, [0; 3]);
                }
                warp
            })
            .collect();
        let bytes = program.shared_bytes + launch.dynamic_shared;
        Self {
            env: Env {
                launch,
                shared: Shared::new(bytes, program.shared_grain),
                counters: Counters::default(),
                races: BlockRaces::default(),
                entries: vec![0; program.terminators.len()],
                patterns: vec![Pattern::default(); program.sides.len()],
                barriers: [Barrier::default(); 16],
                threads,
                warps: count,
                released: VecDeque::new(),
            },
            warps,
        }
    }

    /// Runs block `index` of the grid.
    pub(crate) fn run(&mut self, index: u64) -> Result<(), Box<Fault>> {
        let at = self.env.launch.block_at(index);
        self.env.shared.clear();
        self.env.races.begin(index);
        self.env.barriers = [Barrier::default(); 16];
        self.env.counters.blocks += 1;
        self.env.counters.warps += self.warps.len() as u64;
        for warp in &mut self.warps {
            warp.alive = warp.launched;
            warp.ready.clear();
            warp.ready.push(Group {
                pc: 0,
                lanes: warp.launched,
            });
            warp.waiting.clear();
            warp.executed = 0;
            warp.sync_epoch = 0;
            warp.copies.clear();
            warp.committed = [0; 32];
            warp.fenced = Fenced::default();
            warp.local_written.fill([0; 32]);
            for &row in &self.env.launch.program.unwritten {
                warp.pred[row as usize] = 0;
            }
            for &(reg, preset) in &self.env.launch.program.presets {
                if matches!(preset, Preset::Special(Special::Ctaid(_))) {
                    set_preset(warp, self.env.launch, reg, preset, at);
                }
            }
        }
        loop {
            let mut ran = false;
            for n in 0..self.warps.len() {
                let w = if self.env.launch.reverse {
                    self.warps.len() - 1 - n
                } else {
                    n
                };
                if self.warps[w].ready.is_empty() {
                    continue;
                }
                ran = true;
                if let Err(trouble) = exec::run(&mut self.env, &mut self.warps[w]) {
                    return Err(self.fault(w, *trouble, at));
                }
                while let Some((barrier, result)) = self.env.released.pop_front() {
                    self.release(barrier, result);
                }
            }
            if !ran {
                break;
            }
        }
        self.all_done(at)
    }

    /// Lets the groups that wait at `barrier` go on.
    fn release(&mut self, barrier: u32, result: u32) {
        for warp in &mut self.warps {
            let mut i = 0;
            while i < warp.waiting.len() {
                if warp.waiting[i].barrier != barrier {
                    i += 1;
                    continue;
                }
                let Waiting {
                    group, result: to, ..
                } = warp.waiting.swap_remove(i);
                match to {
                    Some(Reg {
                        file: File::Pred,
                        index,
                    }) => {
                        let row = &mut warp.pred[index as usize];
                        *row = if result != 0 {
                            *row | group.lanes
                        } else {
                            *row & !group.lanes
                        };
                    }
                    Some(reg) => {
                        let row = warp.r32[reg.index as usize].lanes_mut();
                        for (lane, value) in row.iter_mut().enumerate() {
                            if group.lanes >> lane & 1 != 0 {
                                *value = result;
                            }
                        }
                    }
                    None => {}
                }
                warp.ready.push(group);
            }
        }
    }

    /// After no warp can run: they have all exited, or a barrier was not reached by all.
    fn all_done(&self, at: [u32; 3]) -> Result<(), Box<Fault>> {
        let stuck = self.warps.iter().position(|w| !w.waiting.is_empty());
        let Some(w) = stuck else {
            return Ok(());
        };
        let waiting = self.warps[w].waiting[0];
        let barrier = &self.env.barriers[waiting.barrier as usize & 15];
        let missing = self.warps.iter().find(|other| {
            let here = other
                .waiting
                .iter()
                .filter(|x| x.barrier == waiting.barrier)
                .fold(0, |lanes, x| lanes | x.group.lanes);
            here != other.launched
        });
        let mut detail = format!(
            "{} of {} threads have reached barrier {}",
            barrier.arrived.min(self.env.threads),
            barrier.expected.min(self.env.threads),
            waiting.barrier
        );
        if let Some(other) = missing {
            let elsewhere = other.waiting.iter().find(|x| x.barrier != waiting.barrier);
            let here = other
                .waiting
                .iter()
                .filter(|x| x.barrier == waiting.barrier)
                .fold(0, |lanes, x| lanes | x.group.lanes);
            let lane = (other.launched & !here).trailing_zeros();
            let [x, y, z] = self.env.launch.thread_at(32 * other.index + lane);
            detail += &match elsewhere {
                Some(x2) => format!("; thread ({x}, {y}, {z}) waits at barrier {}", x2.barrier),
                None => format!("; thread ({x}, {y}, {z}) has exited"),
            };
        }
        let trouble = Trouble {
            check: Check::Barrier,
            lane: waiting.group.lanes.trailing_zeros() as usize,
            address: None,
            detail,
        };
        Err(self.fault_at(w, trouble, at, waiting.group.pc.saturating_sub(1)))
    }

    fn fault(&self, warp: usize, trouble: Trouble, at: [u32; 3]) -> Box<Fault> {
        self.fault_at(warp, trouble, at, self.warps[warp].pc)
    }

    fn fault_at(&self, warp: usize, trouble: Trouble, at: [u32; 3], pc: u32) -> Box<Fault> {
        let program = self.env.launch.program;
        let origin = program
            .origins
            .get(pc as usize)
            .copied()
            .unwrap_or_default();
        let (file, line) = origin.source;
        let thread = 32 * self.warps[warp].index + trouble.lane as u32;
        Box::new(Fault {
            check: trouble.check,
            kernel: program.name.clone(),
            place: Some(Box::new(Place {
                source: (line != 0).then(|| {
                    let name = program.files.get(&file);
                    (
                        name.cloned().unwrap_or_else(|| format!("file {file}")),
                        line,
                    )
                }),
                ptx_line: origin.line,
                instruction: program
                    .texts
                    .get(origin.text as usize)
                    .cloned()
                    .unwrap_or_default(),
                block: at,
                thread: self.env.launch.thread_at(thread),
            })),
            address: trouble.address,
            detail: trouble.detail,
        })
    }

    /// What the blocks did.
    pub(crate) fn counters(mut self) -> Counters {
        let program = self.env.launch.program;
        for (entries, classes) in self.env.entries.iter().zip(&program.block_classes) {
            for (sum, &n) in self.env.counters.instructions.iter_mut().zip(classes) {
                *sum += entries * u64::from(n);
            }
        }
        self.env.counters.dram_load_bytes = SECTOR * self.env.races.first.reads;
        self.env.counters.dram_store_bytes = SECTOR * self.env.races.first.writes;
        self.env.counters
    }
}

impl Env<'_> {
    /// Lanes arrive at a barrier. Returns whether that completes it; the released groups are then set ready.
    pub(crate) fn arrive(
        &mut self,
        barrier: u32,
        lanes: u32,
        launched: u32,
        count: Option<u32>,
        reduce: BarrierReduce,
        predicate: u32,
    ) -> Result<(), String> {
        let Some(state) = self.barriers.get_mut(barrier as usize) else {
            return Err(format!("there are 16 barriers, and no barrier {barrier}"));
        };
        let all = 32 * self.warps;
        let expected = count.unwrap_or(all);
        if count.is_some_and(|n| n % 32 != 0 || n == 0) {
            return Err(format!("the count {expected} is no multiple of 32"));
        }
        if state.arrived > 0 && (state.expected != expected || state.reduce != Some(reduce)) {
            return Err(format!(
                "barrier {barrier} is waited for with different counts or reductions"
            ));
        }
        state.expected = expected;
        state.reduce = Some(reduce);
        // Lanes that the launch does not have count with the first lane of their warp.
        let absent = if lanes & 1 != 0 {
            32 - launched.count_ones()
        } else {
            0
        };
        state.arrived += lanes.count_ones() + absent;
        state.trues += (lanes & predicate).count_ones();
        state.falses += (lanes & !predicate).count_ones();
        if state.arrived < expected {
            return Ok(());
        }
        if state.arrived > expected {
            return Err(format!(
                "{} threads have reached barrier {barrier}, more than its count {expected}",
                state.arrived
            ));
        }
        let result = match reduce {
            BarrierReduce::None => 0,
            BarrierReduce::Popc => state.trues,
            BarrierReduce::And => u32::from(state.falses == 0),
            BarrierReduce::Or => u32::from(state.trues > 0),
        };
        if expected == all {
            self.counters.block_barriers += 1;
        }
        *state = Barrier::default();
        self.shared.advance();
        self.races.barrier();
        self.released.push_back((barrier, result));
        Ok(())
    }
}

fn set_preset(warp: &mut Warp, launch: &Launch<'_>, reg: Reg, preset: Preset, at: [u32; 3]) {
    let index = reg.index as usize;
    let first = 32 * warp.index;
    for lane in 0..32 {
        let value = match preset {
            Preset::Const(value) => value,
            Preset::Special(special) => {
                let lane = lane as u32;
                let thread = launch.thread_at(first + lane);
                u64::from(match special {
                    Special::Tid(axis) => thread[axis],
                    Special::Ntid(axis) => launch.block[axis],
                    Special::Ctaid(axis) => at[axis],
                    Special::Nctaid(axis) => launch.grid[axis],
                    Special::Lane => lane,
                    Special::Warp => warp.index,
                    Special::Warps => launch.threads().div_ceil(32),
                    Special::MaskEq => 1 << lane,
                    Special::MaskLt => (1 << lane) - 1,
                    Special::MaskLe => u32::MAX >> (31 - lane),
                    Special::MaskGt => !(u32::MAX >> (31 - lane)),
                    Special::MaskGe => !((1 << lane) - 1),
                    Special::DynamicShared => launch.program.shared_bytes,
                    Special::DynamicSize => launch.dynamic_shared,
                    Special::TotalShared => launch.program.shared_bytes + launch.dynamic_shared,
                })
            }
        };
        match reg.file {
            File::R32 => warp.r32[index].lanes_mut()[lane] = value as u32,
            File::R64 => warp.r64[index].lanes_mut()[lane] = value,
            File::Pred => {
                let bit = 1 << lane;
                let row = &mut warp.pred[index];
                *row = if value != 0 { *row | bit } else { *row & !bit };
            }
        }
    }
}
