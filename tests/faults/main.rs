//! What the program does when the system fails it: a call that fails, a kill at any moment, two processes at once.
//!
//! Every command that reads or writes runs in a small folder of its own, with a library preloaded (`shim.c`) that
//! counts the system calls on that folder's files and makes one of them fail. Afterwards, whatever happened:
//!
//! - Exit code 0 comes with the very files of an undisturbed run. Any other comes with a sentence, never a panic.
//! - A finished result of before is whole, or the new one is.
//! - The same command again, undisturbed, ends with the files of an undisturbed run.
//!
//! The short form takes a few of the calls of each command, the long one (`tests/faults.sh`) all of them, and many more
//! kills.
#![cfg(target_os = "linux")]

mod cases;
mod run;
#[path = "../support/mod.rs"]
mod support;

use cases::{CASES, Case};
use rayon::prelude::*;
use run::{Calls, Ended, Tally, Workshop, is_long, spread};
use std::cell::Cell;
use std::fmt::Debug;
use std::time::Instant;

/// The calls that are made to fail, and how (`shim.c`): numbers of errors on Linux.
const FAULTS: [(&str, &str); 12] = [
    // No space: for one write, and from then on.
    ("write", "28:once"),
    ("write", "28:on"),
    // A failing disk.
    ("write", "5:once"),
    ("fsync", "5:once"),
    ("fsync", "5:on"),
    ("read", "5:once"),
    ("truncate", "5:once"),
    // Permission denied, no space for a name.
    ("open", "13:once"),
    ("open", "13:on"),
    ("rename", "13:once"),
    ("unlink", "13:once"),
    ("mkdir", "28:once"),
];

/// Runs the jobs of each command, on all cores, and prints what became of them.
fn for_each_case<T: Debug + Send + Sync>(
    test: &str,
    jobs: impl Fn(&Workshop, &Case) -> Vec<T>,
    run: impl Fn(&Workshop, &Case, &T, &mut Tally) + Sync,
) {
    let workshop = Workshop::shared();
    let began = Instant::now();
    let jobs: Vec<(&Case, T)> = (CASES.iter())
        .flat_map(|case| jobs(workshop, case).into_iter().map(move |job| (case, job)))
        .collect();
    let tallies = jobs.par_iter().map(|(case, job)| {
        let mut tally = Tally::default();
        tally.check(&format!("{job:?}"), |tally| run(workshop, case, job, tally));
        (case.name, tally)
    });
    let tallies: Vec<_> = tallies.collect();
    let mut all = Tally::default();
    for case in CASES {
        let mut of_case = Tally::default();
        for (_, tally) in tallies.iter().filter(|(name, _)| *name == case.name) {
            of_case.add(tally);
        }
        println!("{test}: {}: {of_case}", case.name);
        all.add(&of_case);
    }
    println!("{test}: {all}; {:.0} s", began.elapsed().as_secs_f64());
    assert!(all.wrong().is_empty(), "{}", all.wrong().join("\n\n"));
}

#[test]
fn any_call_may_fail() {
    let faults = |workshop: &Workshop, case: &Case| {
        let calls = &workshop.undisturbed(case).calls;
        // Of a slow command, some of the kinds in the short form.
        let kinds = FAULTS
            .iter()
            .step_by(if case.slow && !is_long() { 4 } else { 1 });
        kinds
            .flat_map(|(kind, how)| {
                let numbers = spread(case, calls.of(kind), 1).into_iter();
                numbers.map(move |n| format!("{kind}:{n}:{how}"))
            })
            .collect()
    };
    for_each_case("failing calls", faults, |workshop, case, fault, tally| {
        workshop.check_fault(case, fault, tally);
    });
}

#[test]
fn a_kill_at_any_call_is_survived() {
    let kills = |workshop: &Workshop, case: &Case| {
        let calls = workshop.undisturbed(case).calls.of("any");
        let numbers = spread(case, calls, 4).into_iter();
        numbers.map(|n| format!("any:{n}:kill")).collect()
    };
    for_each_case("kills at calls", kills, |workshop, case, kill, tally| {
        workshop.check_fault(case, kill, tally);
    });
}

#[test]
fn a_kill_at_any_time_is_survived() {
    // Two for each command. The long form's are a thousand.
    let rounds = if is_long() { 30 } else { 1 };
    let state = Cell::new(0x9e37_79b9_u64);
    let random = || {
        // A linear congruential generator; the moments need only differ.
        let next = state.get().wrapping_mul(6_364_136_223_846_793_005);
        state.set(next.wrapping_add(1_442_695_040_888_963_407));
        (state.get() >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let moments = |workshop: &Workshop, case: &Case| {
        let took = workshop.undisturbed(case).took;
        // Twice in a row: what goes on after a kill may be killed, too.
        let pair = |_| [0, 1].map(|_| took.mul_f64(1.1 * random()));
        (0..rounds).map(pair).collect()
    };
    for_each_case(
        "kills at random",
        moments,
        |workshop, case, moments, tally| {
            let room = workshop.room(case);
            let mut command = case.command.to_owned();
            let mut last = None;
            for &moment in moments {
                let mut child = room.spawn(&command, None);
                std::thread::sleep(moment);
                let _ = child.kill();
                let ended = Ended::of(child.wait_with_output().unwrap());
                tally.count(&ended);
                workshop.check_ended(case, &room, &ended);
                command = format!("{} {}", case.command, case.again);
                last = Some(ended);
            }
            workshop.finish(case, &room, &last.expect("two runs"));
        },
    );
}

#[test]
fn of_two_processes_one_works_and_the_other_says_so() {
    let rounds = |_: &Workshop, _: &Case| (0..if is_long() { 10 } else { 1 }).collect();
    for_each_case("two at once", rounds, |workshop, case, _: &u32, tally| {
        let room = workshop.room(case);
        let pair = [0, 1].map(|_| room.spawn(case.command, None));
        let pair = pair.map(|child| Ended::of(child.wait_with_output().unwrap()));
        for ended in &pair {
            tally.count(ended);
            let said = ended.says(&["another process is", "already"]);
            assert!(ended.is_success() || said, "{}: {ended}", case.name);
        }
        let [first, second] = &pair;
        let one = first.is_success() || second.is_success();
        assert!(one, "{}: {first} {second}", case.name);
        let expected = &workshop.undisturbed(case).files;
        room.assert_files(case, expected, "two at once");
    });
}

/// A crash of the whole machine keeps what was synced. A kill cannot show that; the order of calls does: before a file gets
/// its name, everything written to it is synced.
#[test]
fn what_gets_its_name_has_been_synced() {
    let once = |_: &Workshop, _: &Case| vec!["calls"];
    for_each_case("synced before named", once, |workshop, case, _, tally| {
        let undisturbed = workshop.undisturbed(case);
        tally.count(&undisturbed.ended);
        println!("{}: {}", case.name, undisturbed.calls);
        let mut names = undisturbed.calls.named_unsynced();
        // What can be made again need not be.
        names.retain(|name| !name.ends_with(".arcface-index") && !name.starts_with("demo/faces/"));
        let name = case.name;
        assert!(
            names.is_empty(),
            "{name}: {names:?} get their names before they are synced"
        );
    });
}

/// The check of the order itself.
#[test]
fn the_order_of_calls_is_checked() {
    let unsynced = |log: &str| Calls::read(log).named_unsynced();
    let good = "write\ta.tmp\nfsync\ta.tmp\nrename\ta.tmp\ta\n";
    assert!(unsynced(good).is_empty());
    assert_eq!(
        unsynced("write\ta.tmp\nrename\ta.tmp\ta\nfsync\ta\n"),
        ["a"]
    );
    assert_eq!(
        unsynced("fsync\ta.tmp\nwrite\ta.tmp\nrename\ta.tmp\ta\n"),
        ["a"]
    );
    let folder = "write\tx/n/a\nwrite\tx/n/b\nfsync\tx/n/a\nrename\tx/n\tx/m\n";
    assert_eq!(unsynced(folder), ["x/m/b"]);
}
