//! Images a second through the loader, by number of threads: `cargo bench --bench loader [-- PATH]`.
//!
//! PATH is an image folder or RecordIO; without it, JPEGs of smoothed noise, 112x112, quality 95, are made in a temporary
//! folder. Every run's labels and pixels are summed and must agree, whatever the number of threads.

use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::data::loader::{Loader, LoaderOptions};
use arcface_cu::data::picture;
use arcface_cu::data::picture::augment::Augment;
use arcface_cu::data::{Dataset, Image, open};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn main() -> arcface_cu::Result<()> {
    // Cargo passes `--bench` along.
    let path = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let made = tempfile::tempdir().expect("a temporary folder");
    let path = match path {
        Some(path) => path.into(),
        None => {
            make_pictures(made.path());
            made.path().to_path_buf()
        }
    };
    let set: Arc<dyn Dataset> = open(&path)?.into();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{} images of {} ({cores} cores)", set.len(), path.display());

    // In no order, as in training.
    let mut order: Vec<usize> = (0..set.len()).collect();
    Random::new(1, Purpose::Faces, 1).shuffle(&mut order);
    let began = Instant::now();
    let read: usize = (order.iter().take(40_000))
        .map(|&i| {
            set.encoded(i)
                .map(|file| file.map_or(0, |file| file.bytes.len()))
        })
        .sum::<arcface_cu::Result<usize>>()?;
    let rate = order.len().min(40_000) as f64 / began.elapsed().as_secs_f64();
    println!("reading alone, 1 thread: {rate:.0} img/s ({read} bytes)");

    let mut picture = Image::default();
    let bytes: Vec<_> = (0..set.len().min(500))
        .filter_map(|i| set.encoded(i).ok().flatten())
        .collect();
    let began = Instant::now();
    for encoded in &bytes {
        picture::decode(&encoded.bytes, &mut picture).expect("an image");
    }
    let rate = bytes.len() as f64 / began.elapsed().as_secs_f64();
    println!("decoding alone, 1 thread: {rate:.0} img/s");

    let shift = Augment {
        shift: 6,
        flip: true,
        ..Augment::default()
    };
    for (name, augment) in [
        ("none", Augment::default()),
        ("shift and flip", shift),
        ("seed", Augment::seed()),
    ] {
        let mut sums = Vec::new();
        let mut threads = 1;
        while threads <= cores {
            let options = LoaderOptions {
                batch: 64.min(set.len()),
                threads,
                augment: augment.clone(),
                ..LoaderOptions::default()
            };
            let loader = Loader::new(Arc::clone(&set), options, 0, 0)?;
            let (images, sum, rate) = run(loader, 4000)?;
            println!("augmentation {name}, {threads} threads: {rate:.0} img/s ({images} images)");
            sums.push(sum);
            threads *= 2;
        }
        assert!(
            sums.windows(2).all(|w| w[0] == w[1]),
            "the batches differ: {sums:?}"
        );
    }
    Ok(())
}

/// Images loaded, a sum over all of them, images a second.
fn run(mut loader: Loader, images: usize) -> arcface_cu::Result<(usize, u64, f64)> {
    let (mut count, mut sum) = (0, 0_u64);
    let began = Instant::now();
    while count < images {
        let batch = loader.next().expect("epochs without end")?;
        count += batch.labels.len();
        let bytes = batch.pixels.iter().map(|&p| u64::from(p)).sum::<u64>();
        sum = sum.wrapping_mul(31).wrapping_add(bytes);
        loader.recycle(batch);
    }
    Ok((count, sum, count as f64 / began.elapsed().as_secs_f64()))
}

fn make_pictures(dir: &Path) {
    let mut random = Random::new(1, Purpose::Faces, 0);
    for identity in 0..20 {
        let sub = dir.join(identity.to_string());
        std::fs::create_dir(&sub).expect("a folder");
        for i in 0..20 {
            let pixels = (0..20 * 20 * 3).map(|_| random.next_u32() as u8).collect();
            let noise = Image {
                width: 20,
                height: 20,
                pixels,
            };
            let jpeg = picture::encode_jpeg(&picture::resize(&noise, 112, 112), 95);
            std::fs::write(sub.join(format!("{i}.jpg")), jpeg).expect("a file");
        }
    }
}
