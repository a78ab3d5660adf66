//! Every check finds a planted fault, at its place, and passes its faultless twin. Sources: `ptx/faults.cu`.

use ptx_emulator::{Check, Counters, Fault, Machine, Module, Options};

const SOURCE: &str = include_str!("ptx/faults.cu");

struct Bench {
    machine: Machine,
    module: Module,
}

fn bench_with(options: Options) -> Bench {
    let machine = Machine::new(options);
    let module = machine.load(include_str!("ptx/faults.ptx")).unwrap();
    Bench { machine, module }
}

fn bench() -> Bench {
    bench_with(Options {
        instruction_budget: 100_000,
        ..Options::default()
    })
}

impl Bench {
    /// Memory of 4-byte words that holds 0, 1, 2, … as floats.
    fn floats(&self, count: usize) -> u64 {
        let address = self.machine.alloc(4 * count as u64).unwrap();
        let bytes: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.machine.write(address, &bytes).unwrap();
        address
    }

    fn empty(&self, count: usize) -> u64 {
        self.machine.alloc(4 * count as u64).unwrap()
    }

    fn words(&self, address: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.machine.read(address, &mut bytes).unwrap();
        bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// Runs a kernel whose parameters are pointers, then 4-byte numbers.
    fn run(
        &self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        pointers: &[u64],
        numbers: &[u32],
    ) -> Result<Counters, Fault> {
        let pointers: Vec<_> = pointers.iter().map(|p| p.to_le_bytes()).collect();
        let numbers: Vec<_> = numbers.iter().map(|n| n.to_le_bytes()).collect();
        let arguments: Vec<&[u8]> = pointers
            .iter()
            .map(|p| &p[..])
            .chain(numbers.iter().map(|n| &n[..]))
            .collect();
        let (grid, block) = ([blocks, 1, 1], [threads, 1, 1]);
        self.machine
            .launch(&self.module, kernel, grid, block, 0, &arguments)
    }
}

/// The line of `faults.cu` that has `text` in the kernel `kernel`.
fn line_of(kernel: &str, text: &str) -> u32 {
    let start = SOURCE
        .lines()
        .position(|l| l.contains(&format!("KERNEL {kernel}(")))
        .unwrap();
    let within = SOURCE.lines().skip(start).position(|l| l.contains(text));
    (start + within.unwrap() + 1) as u32
}

/// Asserts the check, the source line and, if given, the thread.
#[track_caller]
fn assert_fault(
    result: Result<Counters, Fault>,
    check: Check,
    kernel: &str,
    text: &str,
    thread: Option<u32>,
) {
    let fault = result.expect_err("the planted fault was not found");
    assert_eq!(fault.check, check, "{fault}");
    let place = fault.place.as_ref().unwrap_or_else(|| panic!("{fault}"));
    let expected = Some(("faults.cu".to_owned(), line_of(kernel, text)));
    assert_eq!(place.source, expected, "{fault}");
    if let Some(thread) = thread {
        assert_eq!(place.thread, [thread, 0, 0], "{fault}");
    }
    let sentence = fault.to_string();
    assert!(
        sentence.contains(kernel) && sentence.contains("faults.cu:"),
        "{sentence}"
    );
}

#[test]
fn global_memory_has_bounds() {
    let b = bench();
    let x = b.empty(128);
    b.run("global_bounds", 2, 64, &[x], &[0]).unwrap();
    let fault = b.run("global_bounds", 2, 64, &[x], &[5]);
    let text = fault.as_ref().unwrap_err().to_string();
    assert!(
        text.contains("block (1, 0, 0)") && text.contains("0 bytes behind the end"),
        "{text}"
    );
    assert_fault(fault, Check::OutOfBounds, "global_bounds", "x[", Some(59));
    let before = b.run("global_bounds", 1, 64, &[x], &[-1i32 as u32]);
    assert_fault(before, Check::OutOfBounds, "global_bounds", "x[", Some(0));
    b.machine.free(x).unwrap();
    let freed = b.run("global_bounds", 2, 64, &[x], &[0]);
    assert_fault(freed, Check::OutOfBounds, "global_bounds", "x[", Some(0));
}

#[test]
fn global_memory_is_written_before_it_is_read() {
    let b = bench();
    let (x, y) = (b.empty(64), b.empty(64));
    let bytes = vec![0; 4 * 40];
    b.machine.write(x, &bytes).unwrap();
    let fault = b.run("copy", 1, 64, &[x, y], &[]);
    assert_fault(fault, Check::Uninitialised, "copy", "y[", Some(40));
    let mut host = [0; 256];
    let fault = b.machine.read(x, &mut host).unwrap_err();
    assert_eq!(
        (fault.check, fault.address),
        (Check::Uninitialised, Some(x + 160))
    );
    b.machine.memset(x + 160, 1, 96).unwrap();
    b.run("copy", 1, 64, &[x, y], &[]).unwrap();
    assert_eq!(b.words(y, 64)[39..41], [0, 0x0101_0101]);
}

#[test]
fn shared_memory_has_bounds_and_is_written_before_it_is_read() {
    let b = bench();
    let y = b.empty(64);
    b.run("shared_bounds", 1, 64, &[y], &[0]).unwrap();
    let fault = b.run("shared_bounds", 1, 64, &[y], &[3]);
    assert_fault(
        fault,
        Check::OutOfBounds,
        "shared_bounds",
        "s[threadIdx.x + n]",
        Some(61),
    );
    b.run("shared_unwritten", 3, 64, &[y], &[64]).unwrap();
    let fault = b.run("shared_unwritten", 1, 64, &[y], &[50]);
    assert_fault(
        fault,
        Check::Uninitialised,
        "shared_unwritten",
        "y[",
        Some(50),
    );
}

#[test]
fn local_memory_has_bounds_and_is_written_before_it_is_read() {
    let b = bench();
    let y = b.floats(64);
    b.run("local_bounds", 1, 8, &[y], &[0]).unwrap();
    let fault = b.run("local_bounds", 1, 32, &[y], &[0]);
    assert_fault(
        fault,
        Check::OutOfBounds,
        "local_bounds",
        "a[(threadIdx.x + n)",
        Some(16),
    );
    b.run("local_unwritten", 1, 32, &[y], &[16]).unwrap();
    let fault = b.run("local_unwritten", 1, 32, &[y], &[10]);
    assert_fault(
        fault,
        Check::Uninitialised,
        "local_unwritten",
        "y[",
        Some(0),
    );
}

#[test]
fn vectors_are_aligned() {
    let b = bench();
    let y = b.empty(132);
    b.run("misaligned", 1, 32, &[y], &[0]).unwrap();
    b.run("misaligned", 1, 32, &[y], &[4]).unwrap();
    let fault = b.run("misaligned", 1, 32, &[y], &[2]);
    assert_fault(fault, Check::Misaligned, "misaligned", "float4", Some(0));
}

#[test]
fn races_in_shared_memory_are_found() {
    let b = bench();
    let y = b.empty(256);
    b.run("race", 2, 256, &[y], &[1]).unwrap();
    let fault = b.run("race", 1, 256, &[y], &[0]);
    let text = fault.as_ref().unwrap_err().to_string();
    assert!(text.contains("thread"), "{text}");
    assert_eq!(fault.unwrap_err().check, Check::SharedRace, "{text}");
    b.run("warp_race", 1, 32, &[y], &[1]).unwrap();
    let fault = b.run("warp_race", 1, 32, &[y], &[0]);
    assert_fault(fault, Check::SharedRace, "warp_race", "y[", Some(0));
    b.run("write_after_read", 1, 64, &[y], &[1]).unwrap();
    let fault = b.run("write_after_read", 1, 64, &[y], &[0]);
    assert_fault(
        fault,
        Check::SharedRace,
        "write_after_read",
        "float v",
        Some(32),
    );
}

#[test]
fn a_race_is_of_bytes_and_not_of_words() {
    let b = bench();
    let y = b.empty(16);
    b.run("bytes", 1, 64, &[y], &[0]).unwrap();
    assert_eq!(b.words(y, 16)[1], 0x0706_0504);
    let fault = b.run("bytes", 1, 64, &[y], &[1]);
    assert_fault(
        fault,
        Check::SharedRace,
        "bytes",
        "s[threadIdx.x] = threadIdx.x",
        Some(32),
    );
}

#[test]
fn one_store_of_different_values_is_a_race() {
    let b = bench();
    let y = b.empty(32);
    b.run("same_store", 1, 32, &[y], &[0]).unwrap();
    assert_eq!(b.words(y, 32), [7; 32]);
    let fault = b.run("same_store", 1, 32, &[y], &[1]);
    assert_fault(fault, Check::SharedRace, "same_store", "s[0] =", Some(1));
    // Two warps may store the same, but not each its own.
    let y = b.empty(64);
    b.run("same_store", 1, 64, &[y], &[0]).unwrap();
    assert_eq!(b.words(y, 64), [7; 64]);
    let fault = b.run("same_store", 1, 64, &[y], &[2]);
    assert_fault(fault, Check::SharedRace, "same_store", "s[0] =", Some(32));
}

#[test]
fn barriers_are_reached_by_all() {
    let b = bench();
    let y = b.empty(128);
    b.run("early_exit", 1, 128, &[y], &[128]).unwrap();
    b.run("early_exit", 1, 100, &[y], &[128]).unwrap();
    for n in [100, 64] {
        let fault = b.run("early_exit", 1, 128, &[y], &[n]);
        let text = fault.as_ref().unwrap_err().to_string();
        assert!(
            text.contains("exited") || text.contains("elsewhere"),
            "{text}"
        );
        assert_fault(fault, Check::Barrier, "early_exit", "__syncthreads", None);
    }
    b.run("divergent_barrier", 1, 128, &[y], &[128]).unwrap();
    let fault = b.run("divergent_barrier", 1, 128, &[y], &[40]);
    assert_fault(
        fault,
        Check::Barrier,
        "divergent_barrier",
        "__syncthreads",
        None,
    );
}

#[test]
fn asynchronous_copies_appear_at_their_wait() {
    let b = bench();
    let (x, y) = (b.floats(128), b.empty(128));
    b.run("copy_async", 1, 32, &[y, x], &[1]).unwrap();
    assert_eq!(b.words(y, 128)[3], 124f32.to_bits());
    let fault = b.run("copy_async", 1, 32, &[y, x], &[0]);
    assert_fault(fault, Check::AsyncCopy, "copy_async", "for (int i", None);
    b.run("copy_async_groups", 1, 32, &[y, x], &[0]).unwrap();
    // The first group has 8 of its 16 bytes and zeros.
    let expected = [4f32.to_bits(), 5f32.to_bits(), 0, 0];
    assert_eq!(b.words(y, 128)[4..8], expected);
    let fault = b.run("copy_async_groups", 1, 32, &[y, x], &[1]);
    assert_fault(
        fault,
        Check::AsyncCopy,
        "copy_async_groups",
        "s[second]",
        None,
    );
}

#[test]
fn a_last_block_adds_up_what_fences_and_tickets_order() {
    let b = bench();
    let (blocks, threads) = (40, 96);
    let count = (blocks * threads) as usize;
    let (total, parts, ticket) = (b.floats(threads as usize), b.floats(count), b.empty(1));
    b.machine.memset(ticket, 0, 4).unwrap();
    let run = |leaves_out: u32, fenced_by: u32| {
        let pointers = [total, parts, ticket];
        b.run(
            "last_block",
            blocks,
            threads,
            &pointers,
            &[leaves_out, fenced_by],
        )
    };
    for fenced_by in [0, 1] {
        // The last block has reset the ticket, so it serves again.
        for _ in 0..3 {
            let counters = run(0, fenced_by).unwrap();
            let expected: Vec<u32> = (0..96).map(|t| (40.0 * t as f32).to_bits()).collect();
            assert_eq!(b.words(total, 96), expected);
            let bytes = u64::from(4 * blocks * threads);
            assert_eq!(counters.dram_load_bytes, bytes + 32);
            assert_eq!(counters.dram_store_bytes, bytes + 4 * 96 + 32);
        }
        for leaves_out in [1, 2, 3] {
            // Without its barrier a fence by one thread covers its own warp.
            b.machine.memset(ticket, 0, 4).unwrap();
            let fault = run(leaves_out, fenced_by);
            let text = fault.as_ref().unwrap_err().to_string();
            assert!(text.contains("reads 4 bytes that block ("), "{text}");
            assert_fault(fault, Check::GlobalRace, "last_block", "sum += parts", None);
        }
        b.machine.memset(ticket, 0, 4).unwrap();
    }
}

#[test]
fn a_fence_covers_what_is_written_before_it() {
    let b = bench();
    let (total, parts, ticket) = (b.empty(1), b.floats(40), b.empty(1));
    b.machine.memset(ticket, 0, 4).unwrap();
    let run = |late: u32| b.run("one_number", 40, 1, &[total, parts, ticket], &[late]);
    run(0).unwrap();
    assert_eq!(b.words(total, 1), [780f32.to_bits()]);
    b.machine.memset(ticket, 0, 4).unwrap();
    assert_fault(
        run(1),
        Check::GlobalRace,
        "one_number",
        "sum += parts",
        None,
    );
}

#[test]
fn blocks_leave_each_others_memory_alone() {
    let b = bench();
    let y = b.floats(256);
    b.run("shift", 4, 64, &[y], &[0]).unwrap();
    // Blocks of three words share sectors, but no bytes.
    b.run("shift", 80, 3, &[y], &[0]).unwrap();
    let fault = b.run("shift", 80, 3, &[y], &[1]);
    assert_eq!(fault.unwrap_err().check, Check::GlobalRace);
    // Within a block the barrier orders reads and writes; across blocks nothing does.
    b.run("shift", 1, 256, &[y], &[1]).unwrap();
    for distance in [1, 64] {
        let fault = b.run("shift", 4, 64, &[y], &[distance]);
        assert_eq!(fault.unwrap_err().check, Check::GlobalRace);
    }
    let counters = b.run("flag", 8, 32, &[y], &[0]).unwrap();
    assert_eq!(
        (counters.dram_load_bytes, counters.dram_store_bytes),
        (0, 32)
    );
    let fault = b.run("flag", 8, 32, &[y], &[1]);
    let text = fault.as_ref().unwrap_err().to_string();
    assert!(text.contains("writes 4 bytes that block ("), "{text}");
    assert_fault(fault, Check::GlobalRace, "flag", "*y = own", Some(0));
}

#[test]
fn the_order_of_blocks_does_not_matter() {
    let b = bench_with(Options {
        check_order: true,
        ..Options::default()
    });
    let y = b.empty(8);
    b.run("order", 8, 32, &[y], &[0]).unwrap();
    assert_eq!(b.words(y, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    let one = Options {
        check_order: true,
        threads: 1,
        ..Options::default()
    };
    let b = bench_with(one);
    let y = b.empty(9);
    b.machine.memset(y + 32, 0, 4).unwrap();
    let fault = b.run("order", 8, 32, &[y], &[1]).unwrap_err();
    assert_eq!(
        (fault.check, fault.address),
        (Check::Order, Some(y)),
        "{fault}"
    );
}

#[test]
fn loops_without_end_traps_and_masks() {
    let b = bench();
    let y = b.empty(64);
    b.machine.memset(y, 0, 256).unwrap();
    let fault = b.run("endless", 1, 32, &[y], &[]);
    assert_fault(fault, Check::Budget, "endless", "while", None);
    b.run("traps", 1, 64, &[y], &[]).unwrap();
    b.machine.write(y + 4 * 40, &3u32.to_le_bytes()).unwrap();
    let fault = b.run("traps", 1, 64, &[y], &[]);
    assert_fault(fault, Check::Trap, "traps", "__trap", Some(40));
    b.run("mask", 1, 32, &[y], &[0xffff]).unwrap();
    assert_eq!(b.words(y, 32)[14..18], [15, 14, 16, 17]);
    let fault = b.run("mask", 1, 32, &[y], &[u32::MAX]);
    assert_fault(fault, Check::WarpMask, "mask", "__shfl", Some(0));
    b.run("read_only", 1, 32, &[y], &[0]).unwrap();
    assert_eq!(b.words(y, 5), [1, 2, 3, 4, 1]);
    let fault = b.run("read_only", 1, 32, &[y], &[1]);
    assert_fault(fault, Check::ReadOnly, "read_only", "if (writes)", None);
}

#[test]
fn named_barriers_and_reductions() {
    let b = bench();
    let y = b.empty(128);
    let counters = b.run("named", 1, 128, &[y], &[64]).unwrap();
    assert_eq!(counters.block_barriers, 3);
    let expected: Vec<u32> = (0..128)
        .map(|t| (t ^ 63) + 1000 + 10000 + 6_400_000)
        .collect();
    assert_eq!(b.words(y, 128), expected);
    let fault = b.run("named", 1, 128, &[y], &[96]);
    assert_fault(fault, Check::Barrier, "named", "barrier.sync", None);
}

#[test]
fn launches_that_make_no_sense_are_refused() {
    let b = bench();
    let y = b.empty(128);
    for (kernel, blocks, threads, pointers) in [
        ("copy", 1, 2048, &[y, y][..]),
        ("copy", 0, 32, &[y, y]),
        ("copy", 1, 32, &[y]),
        ("nothing", 1, 32, &[y, y]),
    ] {
        let fault = b.run(kernel, blocks, threads, pointers, &[]).unwrap_err();
        assert_eq!(fault.check, Check::Launch, "{fault}");
    }
}

#[test]
fn results_are_the_same_without_vector_instructions() {
    let plain = Options {
        vector: false,
        ..Options::default()
    };
    let [one, two] = [Options::default(), plain].map(|options| {
        let b = bench_with(options);
        let y = b.floats(256);
        b.run("race", 2, 256, &[y], &[1]).unwrap();
        b.words(y, 256)
    });
    assert_eq!(one, two);
}
