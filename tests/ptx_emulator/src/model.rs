//! A *modelled* time of a launch on a named card, from what the emulator counted.
//!
//! It is no measurement and no simulation: it says how long the launch takes if its busiest resource runs at full rate
//! and everything else hides behind it. Use it to see what bounds a kernel and whether a change moves the bound.
//!
//! **The model.** time = launch overhead + the largest of the resources' times. An SM's resource needs
//! `work / (rate a clock)` cycles; work is spread evenly over blocks, and the SM with the most blocks, `ceil(blocks /
//! SMs)` of them, ends last. Work of each resource, in warp instructions unless said otherwise:
//!
//! | resource | work | rate |
//! |---|---|---|
//! | issue | all but moves and parameter reads, which the assembler removes | 4 a clock |
//! | f32 | fma and other f32 arithmetic, f16/bf16 arithmetic | 128 or 64 lanes a clock |
//! | integer | integer, logic, comparison, selection | 64 lanes a clock |
//! | special | special functions and conversions, which share a unit; a division counts as one | 16 lanes a clock |
//! | f64 | f64 arithmetic | 64, 32 or 2 lanes a clock |
//! | exchange | shuffles, votes, matches, reductions within a warp | 32 lanes a clock |
//! | tensor | multiply-adds | by type |
//! | shared and L1 | wavefronts of shared memory, and 128-byte wavefronts of global, asynchronous and local accesses | 1 a clock |
//! | L2 | bytes of the global sectors; nothing is assumed to hit in L1 | the card's |
//! | DRAM | the bytes that the caller names: each tensor read or written once, when L2 catches every reuse | 0.9 of the card's |
//! | latency | a warp's global loads, four in flight at a time, 0.6 us each round, once a wave of resident blocks | - |
//!
//! **Occupancy.** Blocks that fit an SM: the least of what threads, registers (rounded up to 8 a thread), shared memory
//! (1 KiB of it reserved a block) and the block limit allow. A wave is as many on every SM.
//!
//! **Not modelled.** Dependent-issue stalls, instruction fetch, cache misses of a working set above L2, atomics beyond
//! their issue, partial waves' tails inside an SM, clock changes; `mma.sync` on Hopper reaches roughly two thirds of the
//! tensor rate, which only `wgmma` reaches. The rates come from the vendor's architecture papers and data sheets, except
//! where a card says that they were measured; the L2 bandwidths are round estimates.

use std::fmt;

use crate::counters::{Class, Counters};
use crate::matrix::Operand;

/// A card's rates.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its name.
    pub name: &'static str,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Clock in Hz under load.
    pub clock: f64,
    /// f32 fused multiply-adds a clock and SM.
    pub f32_lanes: f64,
    /// f64 fused multiply-adds a clock and SM.
    pub f64_lanes: f64,
    /// Integer operations a clock and SM.
    pub integer_lanes: f64,
    /// Special-function and conversion results a clock and SM.
    pub special_lanes: f64,
    /// Dense f16 and bf16 tensor-core FLOP, f32 accumulators, a clock and SM.
    pub tensor_half_flop: f64,
    /// Dense tf32 tensor-core FLOP a clock and SM.
    pub tensor_tf32_flop: f64,
    /// L2 bandwidth in bytes a second (an estimate).
    pub l2_bandwidth: f64,
    /// DRAM bandwidth of the data sheet in bytes a second.
    pub dram_bandwidth: f64,
    /// Resident warps an SM.
    pub max_warps: u32,
    /// Resident blocks an SM.
    pub max_blocks: u32,
    /// 32-bit registers an SM.
    pub registers: u32,
    /// Bytes of shared memory an SM.
    pub shared_per_sm: u32,
    /// Bytes of shared memory a block can have.
    pub shared_per_block: u32,
}

/// NVIDIA H100 SXM (sm_90).
pub const H100_SXM: Card = Card {
    name: "H100 SXM",
    capability: (9, 0),
    sms: 132,
    clock: 1.83e9,
    f32_lanes: 128.0,
    f64_lanes: 64.0,
    integer_lanes: 64.0,
    special_lanes: 16.0,
    tensor_half_flop: 4096.0,
    tensor_tf32_flop: 2048.0,
    l2_bandwidth: 5.5e12,
    dram_bandwidth: 3.35e12,
    max_warps: 64,
    max_blocks: 32,
    registers: 65_536,
    shared_per_sm: 228 * 1024,
    shared_per_block: 227 * 1024,
};

/// NVIDIA A100 SXM 80 GB (sm_80).
pub const A100_SXM: Card = Card {
    name: "A100 SXM",
    capability: (8, 0),
    sms: 108,
    clock: 1.41e9,
    f32_lanes: 64.0,
    f64_lanes: 32.0,
    integer_lanes: 64.0,
    special_lanes: 16.0,
    tensor_half_flop: 2048.0,
    tensor_tf32_flop: 1024.0,
    l2_bandwidth: 4.5e12,
    dram_bandwidth: 2.04e12,
    max_warps: 64,
    max_blocks: 32,
    registers: 65_536,
    shared_per_sm: 164 * 1024,
    shared_per_block: 163 * 1024,
};

/// NVIDIA L4 (sm_89).
pub const L4: Card = Card {
    name: "L4",
    capability: (8, 9),
    sms: 58,
    clock: 2.04e9,
    f32_lanes: 128.0,
    f64_lanes: 2.0,
    integer_lanes: 64.0,
    special_lanes: 16.0,
    tensor_half_flop: 1024.0,
    tensor_tf32_flop: 512.0,
    l2_bandwidth: 2.0e12,
    dram_bandwidth: 0.3e12,
    max_warps: 48,
    max_blocks: 24,
    registers: 65_536,
    shared_per_sm: 100 * 1024,
    shared_per_block: 99 * 1024,
};

/// NVIDIA GeForce RTX 4090 (sm_89), whose tensor cores run at half rate with f32 accumulators.
pub const RTX_4090: Card = Card {
    name: "RTX 4090",
    sms: 128,
    clock: 2.52e9,
    tensor_half_flop: 512.0,
    tensor_tf32_flop: 256.0,
    l2_bandwidth: 5.0e12,
    dram_bandwidth: 1.01e12,
    ..L4
};

/// NVIDIA H200 SXM (sm_90). Two rates were measured on one: 790 TFLOP/s for bf16 products, and 4.3 TB/s, read and
/// written, for a copy. Its clock was 1.98 GHz after such a product.
pub const H200_SXM: Card = Card {
    name: "H200 SXM",
    clock: 1.98e9,
    tensor_half_flop: 790e12 / (132.0 * 1.98e9),
    tensor_tf32_flop: 395e12 / (132.0 * 1.98e9),
    dram_bandwidth: 4.3e12 / DRAM_EFFICIENCY,
    ..H100_SXM
};

/// The cards that have a name here.
pub const CARDS: [Card; 5] = [H100_SXM, A100_SXM, L4, RTX_4090, H200_SXM];

/// Seconds from one launch of a stream to the next that nothing hides.
const LAUNCH_OVERHEAD: f64 = 2.5e-6;
/// The part of the data sheet's DRAM bandwidth that a copy reaches.
const DRAM_EFFICIENCY: f64 = 0.9;
/// Seconds of a load that misses the caches.
const LOAD_LATENCY: f64 = 0.6e-6;
/// Loads that a warp keeps in flight.
const LOADS_IN_FLIGHT: f64 = 4.0;
const SCHEDULERS: f64 = 4.0;
const EXCHANGE_LANES: f64 = 32.0;
const WARP: f64 = 32.0;
const SECTOR: f64 = 32.0;
/// Sectors that L1 moves in a clock.
const SECTORS_A_WAVEFRONT: f64 = 4.0;
/// Shared memory that the system takes of every block.
const SHARED_RESERVED: u32 = 1024;

/// What the model needs to know of a launch beside its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Threads of a block.
    pub threads: u32,
    /// Registers a thread, as the assembler reports them.
    pub registers: u32,
    /// Bytes of shared memory a block, static and dynamic.
    pub shared_bytes: u32,
    /// Bytes of all memory that is read, plus those of all that is written, each once.
    pub dram_bytes: u64,
    /// The type of the tensor-core operands, where there are any.
    pub tensor: Operand,
}

/// What a launch may be bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Instruction issue.
    Issue,
    /// f32 and half arithmetic.
    F32,
    /// Integer arithmetic.
    Integer,
    /// Special functions and conversions.
    Special,
    /// f64 arithmetic.
    F64,
    /// Exchange within a warp.
    Exchange,
    /// Tensor cores.
    Tensor,
    /// Shared memory and L1.
    Shared,
    /// L2 bandwidth.
    L2,
    /// DRAM bandwidth.
    Dram,
    /// Latency of global loads.
    Latency,
}

/// A modelled time. Its `Display` says that it is modelled.
#[derive(Clone, Debug, PartialEq)]
pub struct Modelled {
    /// The card's name.
    pub card: &'static str,
    /// Seconds, launch overhead included.
    pub seconds: f64,
    /// The resource that decides.
    pub bound: Resource,
    /// Every resource's seconds, the largest first.
    pub resources: Vec<(Resource, f64)>,
    /// Blocks that are resident on an SM at once.
    pub resident_blocks: u32,
    /// Resident warps over the most that an SM can hold.
    pub occupancy: f64,
    /// Rounds of resident blocks, the last one perhaps not full.
    pub waves: u64,
}

impl Card {
    /// Blocks that fit an SM at once; 0 if one alone does not fit.
    pub fn resident_blocks(&self, launch: &Launch) -> u32 {
        let warps = launch.threads.div_ceil(32).max(1);
        let registers = warps * 32 * launch.registers.max(1).next_multiple_of(8);
        if launch.shared_bytes > self.shared_per_block || registers > self.registers {
            return 0;
        }
        let shared = launch.shared_bytes + SHARED_RESERVED;
        (self.max_warps / warps)
            .min(self.registers / registers)
            .min(self.shared_per_sm / shared)
            .min(self.max_blocks)
    }

    /// The modelled time, or nothing if a block of the launch does not fit this card or nothing was launched.
    pub fn model(&self, launch: &Launch, counters: &Counters) -> Option<Modelled> {
        let resident_blocks = self.resident_blocks(launch);
        if resident_blocks == 0 || counters.blocks == 0 {
            return None;
        }
        let of =
            |classes: &[Class]| -> f64 { classes.iter().map(|&c| counters.of(c) as f64).sum() };
        let removed = of(&[Class::Move, Class::Parameter]);
        let tensor_flop = match launch.tensor {
            Operand::F16 | Operand::Bf16 => self.tensor_half_flop,
            Operand::Tf32 => self.tensor_tf32_flop,
        };
        let sectors = (counters.global_load_sectors + counters.global_store_sectors) as f64;
        let wavefronts = (counters.shared_load_wavefronts + counters.shared_store_wavefronts)
            as f64
            + sectors / SECTORS_A_WAVEFRONT
            + of(&[Class::Local]);
        // Cycles of one SM if it had all the work.
        let cycles = [
            (
                Resource::Issue,
                (counters.total() as f64 - removed) / SCHEDULERS,
            ),
            (
                Resource::F32,
                of(&[Class::Fma, Class::F32, Class::Half]) * WARP / self.f32_lanes,
            ),
            (
                Resource::Integer,
                of(&[Class::Integer]) * WARP / self.integer_lanes,
            ),
            (
                Resource::Special,
                of(&[Class::Special, Class::Conversion]) * WARP / self.special_lanes,
            ),
            (Resource::F64, of(&[Class::F64]) * WARP / self.f64_lanes),
            (
                Resource::Exchange,
                of(&[Class::Warp]) * WARP / EXCHANGE_LANES,
            ),
            (
                Resource::Tensor,
                2.0 * counters.tensor_multiply_adds as f64 / tensor_flop,
            ),
            (Resource::Shared, wavefronts),
        ];
        let sms = u64::from(self.sms);
        let busiest = counters.blocks.div_ceil(sms) as f64 / counters.blocks as f64;
        let waves = counters.blocks.div_ceil(sms * u64::from(resident_blocks));
        let loads_a_warp = counters.global_load_requests as f64 / counters.warps.max(1) as f64;
        let mut resources: Vec<_> = cycles
            .into_iter()
            .map(|(resource, cycles)| (resource, cycles * busiest / self.clock))
            .collect();
        resources.extend([
            (Resource::L2, sectors * SECTOR / self.l2_bandwidth),
            (
                Resource::Dram,
                launch.dram_bytes as f64 / (self.dram_bandwidth * DRAM_EFFICIENCY),
            ),
            (
                Resource::Latency,
                (loads_a_warp / LOADS_IN_FLIGHT).ceil() * LOAD_LATENCY * waves as f64,
            ),
        ]);
        resources.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (bound, longest) = resources[0];
        let warps = resident_blocks * launch.threads.div_ceil(32);
        Some(Modelled {
            card: self.name,
            seconds: LAUNCH_OVERHEAD + longest,
            bound,
            resources,
            resident_blocks,
            occupancy: f64::from(warps) / f64::from(self.max_warps),
            waves,
        })
    }
}

impl fmt::Display for Modelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "modelled on {}: {:.1} us, bound by {:?}; {} blocks an SM ({:.0} % of its warps), {} waves;",
            self.card,
            self.seconds * 1e6,
            self.bound,
            self.resident_blocks,
            self.occupancy * 100.0,
            self.waves
        )?;
        for (resource, seconds) in self.resources.iter().take(4).filter(|r| r.1 > 0.0) {
            write!(f, " {resource:?} {:.1} us", seconds * 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCH: Launch = Launch {
        threads: 256,
        registers: 32,
        shared_bytes: 0,
        dram_bytes: 0,
        tensor: Operand::Bf16,
    };

    fn counters(blocks: u64, instructions: &[(Class, u64)]) -> Counters {
        let mut counters = Counters {
            blocks,
            warps: 8 * blocks,
            ..Counters::default()
        };
        for &(class, n) in instructions {
            counters.instructions[class as usize] = n;
        }
        counters
    }

    fn assert_close(got: f64, expected: f64) {
        let error = (got / expected - 1.0).abs();
        assert!(error <= 1e-12, "{got} where {expected} is expected");
    }

    /// The rates times SMs and clock are the data sheets' peaks.
    #[test]
    fn peaks_are_the_data_sheets() {
        let peak = |card: &Card, flop: f64| f64::from(card.sms) * card.clock * flop / 1e12;
        let expected = [(989.4, 494.7), (311.9, 155.9), (121.2, 60.6), (165.2, 82.6)];
        for (card, (half, tf32)) in CARDS.iter().zip(expected) {
            let (got_half, got_tf32) = (
                peak(card, card.tensor_half_flop),
                peak(card, card.tensor_tf32_flop),
            );
            assert!((got_half - half).abs() <= 0.1, "{}: {got_half}", card.name);
            assert!((got_tf32 - tf32).abs() <= 0.1, "{}: {got_tf32}", card.name);
        }
        assert!((peak(&A100_SXM, 2.0 * A100_SXM.f32_lanes) - 19.5).abs() <= 0.05);
        assert!((peak(&RTX_4090, 2.0 * RTX_4090.f32_lanes) - 82.6).abs() <= 0.05);
        // The H200's are measured, except for float32.
        assert!((peak(&H200_SXM, 2.0 * H200_SXM.f32_lanes) - 66.9).abs() <= 0.05);
        assert!((peak(&H200_SXM, H200_SXM.tensor_half_flop) - 790.0).abs() <= 0.1);
        assert!((H200_SXM.dram_bandwidth * DRAM_EFFICIENCY / 1e12 - 4.3).abs() <= 1e-9);
    }

    #[test]
    fn occupancy() {
        let with = |threads, registers, shared_bytes| Launch {
            threads,
            registers,
            shared_bytes,
            ..LAUNCH
        };
        // Threads: 64 warps hold eight blocks of eight.
        assert_eq!(H100_SXM.resident_blocks(&with(256, 32, 0)), 8);
        // Registers: 100 are rounded up to 104; 65,536 / (256 * 104) = 2.46.
        assert_eq!(H100_SXM.resident_blocks(&with(256, 100, 0)), 2);
        // Shared memory: 48 + 1 KiB each in 228 KiB.
        assert_eq!(H100_SXM.resident_blocks(&with(128, 32, 48 * 1024)), 4);
        // 99 + 1 KiB fill an L4's SM, one more byte does not fit.
        assert_eq!(L4.resident_blocks(&with(128, 32, 99 * 1024)), 1);
        assert_eq!(L4.resident_blocks(&with(128, 32, 99 * 1024 + 1)), 0);
        // Tiny blocks end at the block limit; a last warp that is not full counts as one.
        assert_eq!(L4.resident_blocks(&with(32, 16, 0)), 24);
        assert_eq!(L4.resident_blocks(&with(33, 16, 0)), 24);
        assert_eq!(L4.resident_blocks(&with(1024, 65, 0)), 0);
        assert_eq!(L4.resident_blocks(&with(1024, 64, 0)), 1);
        assert_eq!(L4.model(&with(1024, 65, 0), &counters(1, &[])), None);
        assert_eq!(L4.model(&LAUNCH, &counters(0, &[])), None);
    }

    /// 132,000 fma on 132 blocks: 1,000 an SM, 250 cycles in the f32 lanes and as many to issue.
    #[test]
    fn arithmetic() {
        let one_wave = H100_SXM
            .model(
                &LAUNCH,
                &counters(132, &[(Class::Fma, 132_000), (Class::Move, 1 << 40)]),
            )
            .unwrap();
        assert_close(one_wave.seconds, 2.5e-6 + 250.0 / 1.83e9);
        assert_eq!((one_wave.resident_blocks, one_wave.waves), (8, 1));
        assert_close(one_wave.occupancy, 1.0);
        // On an A100 half the lanes: 108,000 fma on 108 blocks take 500 cycles.
        let a100 = A100_SXM
            .model(&LAUNCH, &counters(108, &[(Class::Fma, 108_000)]))
            .unwrap();
        assert_eq!(a100.bound, Resource::F32);
        assert_close(a100.seconds, 2.5e-6 + 500.0 / 1.41e9);
        // One block more than SMs: one SM has two of 133 blocks.
        let quantised = H100_SXM
            .model(&LAUNCH, &counters(133, &[(Class::Special, 133_000)]))
            .unwrap();
        assert_eq!(quantised.bound, Resource::Special);
        assert_close(quantised.seconds, 2.5e-6 + 2_000.0 * 2.0 / 1.83e9);
        let text = quantised.to_string();
        assert!(
            text.starts_with("modelled on H100 SXM: 4.7 us, bound by Special"),
            "{text}"
        );
    }

    #[test]
    fn tensor_cores() {
        let mut work = counters(132, &[(Class::Tensor, 1)]);
        // 2^40 multiply-adds: 2^41 / (132 * 4096) cycles.
        work.tensor_multiply_adds = 1 << 40;
        let half = H100_SXM.model(&LAUNCH, &work).unwrap();
        assert_eq!(half.bound, Resource::Tensor);
        assert_close(
            half.seconds,
            2.5e-6 + (41f64).exp2() / (132.0 * 4096.0 * 1.83e9),
        );
        let tf32 = Launch {
            tensor: Operand::Tf32,
            ..LAUNCH
        };
        let tf32 = H100_SXM.model(&tf32, &work).unwrap();
        assert_close(tf32.seconds - 2.5e-6, 2.0 * (half.seconds - 2.5e-6));
    }

    #[test]
    fn memory() {
        let mut work = counters(1056, &[(Class::GlobalLoad, 8448)]);
        work.global_load_requests = 8448;
        work.global_load_sectors = 8448 * 4;
        // One load a warp, all 1056 blocks resident: one round of latency.
        let latency = H100_SXM.model(&LAUNCH, &work).unwrap();
        assert_eq!((latency.bound, latency.waves), (Resource::Latency, 1));
        assert_close(latency.seconds, 2.5e-6 + 0.6e-6);
        // A copy of 3.015 GB takes a millisecond.
        let copy = Launch {
            dram_bytes: 3_015_000_000,
            ..LAUNCH
        };
        let copy = H100_SXM.model(&copy, &work).unwrap();
        assert_eq!(copy.bound, Resource::Dram);
        assert_close(copy.seconds, 2.5e-6 + 1e-3);
        // 2^36 sectors of L2 and a quarter as many wavefronts of L1 in each SM's share.
        work.global_load_sectors = 1 << 36;
        let l2 = H100_SXM.model(&LAUNCH, &work).unwrap();
        assert_eq!(l2.bound, Resource::L2);
        assert_close(l2.seconds, 2.5e-6 + (41f64).exp2() / 5.5e12);
        work.shared_load_wavefronts = 1 << 40;
        let shared = H100_SXM.model(&LAUNCH, &work).unwrap();
        assert_eq!(shared.bound, Resource::Shared);
        let wavefronts = (40f64).exp2() + (34f64).exp2();
        assert_close(shared.seconds, 2.5e-6 + wavefronts / 132.0 / 1.83e9);
    }
}
