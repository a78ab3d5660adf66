//! The card is as strict as documented. Its state belongs to the process, so one test walks through all of it.

use crate::entry::*;
use crate::faults::{self, ILLEGAL_ADDRESS, INVALID_CONTEXT, INVALID_VALUE, Requests, Status};
use crate::memory::POISON;

fn done(status: Status) {
    assert_eq!(status, 0);
}

/// Calls a function that gives one value.
fn get<T: Default>(call: impl FnOnce(*mut T) -> Status) -> T {
    let mut value = T::default();
    done(call(&mut value));
    value
}

/// Pinned memory full of a byte.
fn pinned(byte: u8) -> &'static mut [u8; 64] {
    // SAFETY: the card's own memory of this size; no other code has its address.
    unsafe {
        let address = get(|to| cuMemHostAlloc(to, 64, 0));
        let memory = &mut *(address as *mut [u8; 64]);
        assert_eq!(*memory, [POISON; 64], "fresh pinned memory");
        memory.fill(byte);
        memory
    }
}

#[test]
fn it_is_as_unkind_as_a_gpu_may_be() {
    // SAFETY: every pointer that is passed here is to memory of the size that is passed with it.
    unsafe {
        let alloc = |stream| get(|to| cuMemAllocAsync(to, 64, stream));
        let up = |to: u64, from: &[u8; 64], stream| {
            done(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as usize, 64, stream));
        };
        let down = |to: &mut [u8; 64], from: u64, stream| {
            done(cuMemcpyDtoHAsync_v2(
                to.as_mut_ptr() as usize,
                from,
                64,
                stream,
            ));
        };

        done(cuInit(0));
        assert_eq!(cuMemFree_v2(0), INVALID_CONTEXT);
        let context = get(|to| cuDevicePrimaryCtxRetain(to, 0));
        assert_eq!(cuStreamSynchronize(0), INVALID_CONTEXT);
        done(cuCtxSetCurrent(context));
        let elsewhere = std::thread::spawn(|| cuMemFree_v2(0));
        assert_eq!(elsewhere.join().expect("a thread"), INVALID_CONTEXT);
        let stream = get(|to| cuStreamCreate(to, 0));

        // A copy from pinned memory reads it when it runs, and one from pageable memory at the call.
        let [a, b] = [alloc(stream), alloc(stream)];
        let source = pinned(1);
        let mut pageable = [2; 64];
        up(a, source, stream);
        up(b, &pageable, stream);
        source.fill(3);
        pageable.fill(4);
        // A copy to pinned memory leaves poison until its event has passed, and only what is waited for runs.
        let [first, second] = [pinned(0), pinned(0)];
        let event = get(|to| cuEventCreate(to, 0));
        down(first, a, stream);
        done(cuEventRecord(event, stream));
        down(second, b, stream);
        assert_eq!((*first, *second), ([POISON; 64], [POISON; 64]));
        done(cuEventSynchronize(event));
        assert_eq!((*first, *second), ([3; 64], [POISON; 64]));
        done(cuStreamSynchronize(stream));
        assert_eq!(*second, [2; 64]);
        // A copy to pageable memory waits.
        down(&mut pageable, a, stream);
        assert_eq!(pageable, [3; 64]);

        // Memory is freed once, when the stream comes to it, and counts as used until then.
        let free = || get(|to| cuMemGetInfo_v2(to, &mut 0));
        let before = free();
        done(cuMemFreeAsync(b, stream));
        assert_eq!(cuMemFreeAsync(b, stream), INVALID_VALUE);
        assert_eq!(free(), before);
        done(cuStreamSynchronize(stream));
        assert_eq!(free(), before + 64);

        // Touching it afterwards is a fault, from which the context does not recover.
        done(cuMemsetD8Async(b, 0, 64, stream));
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
        assert_eq!(cuMemGetInfo_v2(&mut 0, &mut 0), ILLEGAL_ADDRESS);
    }
}

#[test]
fn failures_come_when_they_are_asked_for() {
    let mut requests = Requests::parse("cuA:2:700,*:5:226").expect("a list");
    let calls = ["cuA", "cuB", "cuA", "cuA", "cuB", "cuA"];
    let found = calls.map(|function| requests.count(function));
    assert_eq!(found, [None, None, Some(700), None, Some(226), None]);
    assert!(faults::is_fatal(700) && !faults::is_fatal(226) && faults::known(226).is_none());
    assert!(Requests::parse("cuA:2").is_none() && Requests::parse("").is_none());
}
