//! Copies to a device and back, too large and too many for the staging memory to hold at once.

mod support;

use arcface_cu::backend::{Backend, Element};
use support::devices::on_each_device;

/// A different number at every index.
fn number(i: usize) -> f32 {
    (i % (1 << 24)) as f32
}

fn large<B: Backend>(backend: &mut B) {
    let data: Vec<f32> = (0..(10 << 20) + 3).map(number).collect();
    let mut buffer = backend.alloc(Element::F32, data.len() + 5).unwrap();
    backend.upload(&data, &mut buffer, 5).unwrap();
    let (mut head, mut all) = (vec![f32::NAN; 7], vec![f32::NAN; data.len()]);
    backend
        .download_all(&mut [(&buffer, 0, &mut head), (&buffer, 5, &mut all)])
        .unwrap();
    assert_eq!(head, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert!(all == data);
}

fn many<B: Backend>(backend: &mut B) {
    let mut buffers: Vec<B::Buffer> = (0..50)
        .map(|i| backend.alloc(Element::F32, i + 1).unwrap())
        .collect();
    for (i, buffer) in buffers.iter_mut().enumerate() {
        backend.upload(&vec![number(i); i + 1], buffer, 0).unwrap();
    }
    let mut found: Vec<Vec<f32>> = (0..50).map(|i| vec![f32::NAN; i + 1]).collect();
    let parts = buffers.iter().zip(&mut found);
    let mut parts: Vec<_> = parts.map(|(buffer, to)| (buffer, 0, &mut to[..])).collect();
    backend.download_all(&mut parts).unwrap();
    for (i, found) in found.iter().enumerate() {
        assert!(found.iter().all(|x| *x == number(i)), "{i}: {found:?}");
    }
}

on_each_device! {
    large_copies_arrive: large,
    many_copies_arrive: many,
}
