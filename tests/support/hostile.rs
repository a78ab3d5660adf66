//! What tests of readers on damaged files share: a watch over allocations, damage, and the contents of a data set.
#![allow(dead_code, reason = "each test file uses a part of this")]

use arcface_cu::data::{Dataset, Image};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Remembers the largest single allocation of the process, whichever thread made it.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn note(size: usize) {
    LARGEST.fetch_max(size, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Runs `f`, which handles a small file, and checks that nothing in this process ever allocated much at once.
pub(crate) fn small<T>(f: impl FnOnce() -> T) -> T {
    let result = f();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= 65 << 20, "an allocation of {largest} bytes");
    result
}

/// Label and pixels of every image, or why not.
pub(crate) fn contents(set: &dyn Dataset) -> Vec<Result<(u32, Vec<u8>), String>> {
    let mut image = Image::default();
    (0..set.len())
        .map(|i| match set.read(i, &mut image) {
            Ok(()) => Ok((set.label(i), image.pixels.clone())),
            Err(e) => Err(e.to_string()),
        })
        .collect()
}

/// Nothing has the file open or mapped when this is called.
pub(crate) fn shorten(path: &Path, length: usize) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length as u64).unwrap();
}

pub(crate) fn damage(bytes: &[u8], flips: &[(usize, u8)], within: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for &(at, mask) in flips {
        changed[at % within.min(bytes.len())] ^= mask;
    }
    changed
}

pub(crate) fn flips() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), 1..=255_u8), 1..4)
}

/// Damage anywhere, or in the first bytes, where headers are.
pub(crate) fn within() -> impl Strategy<Value = usize> {
    prop_oneof![Just(usize::MAX), Just(20), Just(90)]
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
