//! The loader: worker threads decode and augment batches ahead of the consumer, into buffers that are used again.
//!
//! One thread makes a batch, and its contents depend only on (seed, epoch, step). The same batches come in the same
//! order for any number of threads, and a loader that starts at any (epoch, step) continues as if it had never stopped.
//! Workers run at most [`LoaderOptions::ahead`] batches ahead of the consumer, so memory is bounded.

use crate::base::changes::Changes;
use crate::base::random::{Purpose, Random};
use crate::data::picture::augment::{self, Augment};
use crate::data::picture::may_be_aligned;
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a [`Loader`] makes batches.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Images in a batch, N.
    pub batch: usize,
    /// Decides the order of images and the augmentation.
    pub seed: u64,
    /// What is done to each image.
    pub augment: Augment,
    /// Only resize the images, and leave it to the device to change each as [`Batch::changes`] says.
    pub changes_on_device: bool,
    /// Worker threads; 0 means as many as there are for arithmetic.
    pub threads: usize,
    /// Batches that may be made before they are asked for; 0 means two more than threads.
    pub ahead: usize,
    /// Width and height of the images in a batch.
    pub size: usize,
    /// Instead of stopping at an image that cannot be read, put another one in its place, or leave it out where images come
    /// in order: a batch is then smaller, or empty.
    pub skip_bad: bool,
    /// With true: epoch after epoch without end, each in its own random order, full batches only. With false: the images
    /// in order, once, the last batch as small as it comes out (for evaluation).
    pub shuffle: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions {
            batch: 128,
            seed: 0,
            augment: Augment::default(),
            changes_on_device: false,
            threads: 0,
            ahead: 0,
            size: 112,
            skip_bad: false,
            shuffle: true,
        }
    }
}

/// N images with their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// N x side x side x 3, RGB, 0 to 255.
    pub pixels: Vec<u8>,
    /// Width and height of the images: what was asked for, or before it is cropped by the device.
    pub side: usize,
    /// What the device is to do with each image; empty where the loader has done it.
    pub changes: Vec<Changes>,
    /// N classes.
    pub labels: Vec<u32>,
    /// N indices in the data set.
    pub indices: Vec<u32>,
    /// The epoch, from 0.
    pub epoch: u32,
    /// The step in the epoch, from 0.
    pub step: u64,
    /// Images that could not be read and were replaced or left out: index and reason.
    bad: Vec<(u32, String)>,
    /// Images that are most likely no aligned faces.
    unaligned: usize,
}

impl Batch {
    /// Picture `i` as the network is trained on it, `size` x `size`: the loader's, or what the device makes of it.
    ///
    /// # Panics
    /// There is no such picture, or `size` is not what the loader was asked for.
    pub fn picture(&self, i: usize, size: usize) -> Image {
        let bytes = self.side * self.side * 3;
        let picture = &self.pixels[i * bytes..][..bytes];
        let pixels = match self.changes.get(i) {
            None => picture.to_vec(),
            Some(changes) => {
                let mut pixels = vec![0; size * size * 3];
                changes.apply(picture, self.side, size, &mut pixels);
                pixels
            }
        };
        assert_eq!(pixels.len(), size * size * 3, "a picture of the asked size");
        Image {
            width: size,
            height: size,
            pixels,
        }
    }

    /// The images that could not be read and were replaced or left out: index and reason.
    pub fn bad(&self) -> &[(u32, String)] {
        &self.bad
    }

    /// How many of the images are not square, or far larger than asked for: they are most likely no aligned faces.
    pub fn unaligned(&self) -> usize {
        self.unaligned
    }
}

/// Batches of a data set, made ahead by worker threads. Dropping it ends and joins them.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The number of the next batch, counted from the first batch of epoch 0.
    next: u64,
    failed: bool,
    waited: Duration,
    skipped: BTreeMap<u32, String>,
}

struct Shared {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
    steps: u64,
    state: Mutex<State>,
    /// A worker waits here until it may run ahead further.
    room: Condvar,
    /// The consumer waits here for its batch.
    made: Condvar,
}

struct State {
    /// The batch that the next free worker takes.
    claim: u64,
    /// The batch that the consumer asks for next.
    wanted: u64,
    done: BTreeMap<u64, Result<Batch>>,
    spare: Vec<Batch>,
    /// The orders of the epochs in use.
    orders: BTreeMap<u32, Arc<Vec<u32>>>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No invariant of the state spans a panic: everything under the lock is complete after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch_and_step(&self, number: u64) -> (u32, u64) {
        ((number / self.steps) as u32, number % self.steps)
    }

    /// The batch after the last, if there is one.
    fn end(&self) -> u64 {
        if self.options.shuffle {
            u64::MAX
        } else {
            self.steps
        }
    }

    fn work(&self) {
        let mut image = Image::default();
        loop {
            let mut state = self.lock();
            while !state.stop
                && state.claim >= state.wanted.saturating_add(self.options.ahead as u64)
            {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let number = state.claim;
            if state.stop || number >= self.end() {
                return;
            }
            state.claim += 1;
            let mut batch = state.spare.pop().unwrap_or_default();
            let (epoch, step) = self.epoch_and_step(number);
            let order = self.options.shuffle.then(|| {
                let order = state.orders.entry(epoch).or_insert_with(|| {
                    Arc::new(order(self.options.seed, epoch, self.dataset.len()))
                });
                Arc::clone(order)
            });
            let oldest = self.epoch_and_step(state.wanted).0;
            state.orders.retain(|&epoch, _| epoch >= oldest);
            drop(state);

            let order = order.as_deref().map(Vec::as_slice);
            batch.epoch = epoch;
            batch.step = step;
            let made = self.fill(&mut batch, order, &mut image).map(|()| batch);
            self.lock().done.insert(number, made);
            self.made.notify_all();
        }
    }

    fn fill(&self, batch: &mut Batch, order: Option<&[u32]>, image: &mut Image) -> Result<()> {
        let o = &self.options;
        let first = batch.step as usize * o.batch;
        let count = o.batch.min(self.dataset.len() - first);
        batch.side = match o.changes_on_device {
            true => o.augment.side(o.size),
            false => o.size,
        };
        let bytes = batch.side * batch.side * 3;
        batch.pixels.resize(count * bytes, 0);
        batch.changes.clear();
        batch.labels.clear();
        batch.indices.clear();
        batch.bad.clear();
        batch.unaligned = 0;
        for place in first..first + count {
            let wanted = order.map_or(place as u32, |order| order[place]);
            let Some(index) = self.read(wanted, batch.epoch, image, &mut batch.bad)? else {
                continue;
            };
            let aligned = may_be_aligned(image.width, image.height, o.size);
            batch.unaligned += usize::from(!aligned);
            let out = &mut batch.pixels[batch.indices.len() * bytes..][..bytes];
            let place = (o.seed, batch.epoch, index);
            if o.changes_on_device {
                augment::resize_only(image, batch.side, out);
                batch.changes.push(o.augment.decide(place, o.size));
            } else {
                o.augment.apply(place, image, o.size, out);
            }
            batch.labels.push(self.dataset.label(index as usize));
            batch.indices.push(index);
        }
        batch.pixels.truncate(batch.indices.len() * bytes);
        Ok(())
    }

    /// Reads image `wanted`, or with `skip_bad` the first readable one of a sequence that (seed, epoch, image) decides, or
    /// none where images come in order.
    fn read(
        &self,
        wanted: u32,
        epoch: u32,
        image: &mut Image,
        bad: &mut Vec<(u32, String)>,
    ) -> Result<Option<u32>> {
        /// With nine of ten images bad, all of so many attempts fail once in 10^11 times.
        const ATTEMPTS: usize = 256;
        let place = u64::from(epoch) << 32 | u64::from(wanted);
        // The key is another than the augmentation's, so that the two do not draw the same numbers.
        let mut random = Random::new(!self.options.seed, Purpose::Shuffle, place);
        let mut index = wanted;
        for _ in 0..ATTEMPTS {
            // A decoder that panics on a hostile file must not leave the consumer waiting for this thread.
            let result = catch_unwind(AssertUnwindSafe(|| {
                self.dataset.read(index as usize, image)
            }))
            .unwrap_or_else(|_| {
                *image = Image::default();
                let place = self.dataset.describe(index as usize);
                Err(Error::Invalid(format!("{place}: the decoder panicked")))
            });
            match result {
                Ok(()) => return Ok(Some(index)),
                Err(error) if !self.options.skip_bad => return Err(error),
                Err(error) => bad.push((index, error.to_string())),
            }
            if !self.options.shuffle {
                return Ok(None);
            }
            index = random.below(self.dataset.len() as u32);
        }
        Err(Error::Invalid(format!(
            "none of {ATTEMPTS} images could be read; the first: {}",
            bad[bad.len() - ATTEMPTS].1
        )))
    }
}

/// The order of the images in an epoch.
fn order(seed: u64, epoch: u32, images: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..images as u32).collect();
    Random::new(seed, Purpose::Shuffle, u64::from(epoch)).shuffle(&mut order);
    order
}

impl Loader {
    /// The data set that the batches are made of.
    pub fn dataset(&self) -> &dyn Dataset {
        &*self.shared.dataset
    }

    /// Starts the workers; the first batch will be that of (`epoch`, `step`).
    ///
    /// # Errors
    /// The options make no sense, or (with shuffling) the set is smaller than a batch, or a thread cannot be started.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        mut options: LoaderOptions,
        epoch: u32,
        step: u64,
    ) -> Result<Self> {
        let images = dataset.len();
        if options.batch == 0 || options.size == 0 {
            return Err(Error::Invalid(
                "the batch and image sizes must be at least 1".into(),
            ));
        }
        options.augment.check(options.size)?;
        if images == 0 || u32::try_from(images).is_err() {
            return Err(Error::Invalid(format!(
                "a data set of {images} images cannot be loaded"
            )));
        }
        if options.shuffle && images < options.batch {
            return Err(Error::Invalid(format!(
                "the data set has {images} images, fewer than one batch of {}; use a smaller batch size",
                options.batch
            )));
        }
        if options.threads == 0 {
            options.threads = rayon::current_num_threads();
        }
        if options.ahead == 0 {
            options.ahead = options.threads + 2;
        }
        let steps = if options.shuffle {
            images / options.batch
        } else {
            images.div_ceil(options.batch)
        } as u64;
        if step > steps {
            return Err(Error::Invalid(format!(
                "cannot start at step {step} of an epoch of {steps} steps"
            )));
        }
        let next = u64::from(epoch) * steps + step;
        let threads = options.threads;
        let shared = Arc::new(Shared {
            dataset,
            options,
            steps,
            state: Mutex::new(State {
                claim: next,
                wanted: next,
                done: BTreeMap::new(),
                spare: Vec::new(),
                orders: BTreeMap::new(),
                stop: false,
            }),
            room: Condvar::new(),
            made: Condvar::new(),
        });
        let mut loader = Loader {
            shared,
            workers: Vec::new(),
            next,
            failed: false,
            waited: Duration::ZERO,
            skipped: BTreeMap::new(),
        };
        for i in 0..threads {
            let shared = Arc::clone(&loader.shared);
            // If a thread cannot be started, dropping the loader ends those that were.
            let worker = std::thread::Builder::new()
                .name(format!("loader {i}"))
                .spawn(move || shared.work())
                .map_err(|e| Error::Invalid(format!("starting loader thread {i}: {e}")))?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// Batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.shared.steps
    }

    /// Gives a batch's memory back, to be used for a later one.
    pub fn recycle(&self, batch: Batch) {
        let mut state = self.shared.lock();
        if state.spare.len() < self.shared.options.ahead {
            state.spare.push(batch);
        }
    }

    /// How long the consumer has waited for batches, in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The images that were replaced or left out in the batches so far, by index, and why.
    pub fn skipped(&self) -> &BTreeMap<u32, String> {
        &self.skipped
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    /// The next batch, waiting for it if need be. After an error there are no more.
    fn next(&mut self) -> Option<Result<Batch>> {
        if self.failed || self.next >= self.shared.end() {
            return None;
        }
        let began = Instant::now();
        let mut state = self.shared.lock();
        let made = loop {
            if let Some(made) = state.done.remove(&self.next) {
                break made;
            }
            state = (self.shared.made)
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.next += 1;
        state.wanted = self.next;
        drop(state);
        self.shared.room.notify_all();
        self.waited += began.elapsed();
        match &made {
            Ok(batch) => self.skipped.extend(batch.bad.iter().cloned()),
            Err(_) => self.failed = true,
        }
        Some(made)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so; there is nothing left to do for it.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures of 9x8 pixels that carry their index; those in `bad` cannot be read, 13 makes the decoder panic.
    struct Numbers {
        images: usize,
        bad: fn(usize) -> bool,
    }

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.images
        }

        fn classes(&self) -> usize {
            7
        }

        fn label(&self, index: usize) -> u32 {
            (index % 7) as u32
        }

        fn read(&self, index: usize, image: &mut Image) -> Result<()> {
            if (self.bad)(index) {
                assert_ne!(index, 13, "a decoder's own mistake");
                return Err(Error::Invalid(format!("{}: broken", self.describe(index))));
            }
            (image.width, image.height) = (9, 8);
            image.pixels.clear();
            image
                .pixels
                .extend((0..216).map(|i| ((i * i + i + index * 17) % 256) as u8));
            if index.is_multiple_of(3) {
                // Threads are not to finish in order.
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(())
        }

        fn describe(&self, index: usize) -> String {
            format!("number {index}")
        }
    }

    fn options(batch: usize, threads: usize) -> LoaderOptions {
        LoaderOptions {
            batch,
            threads,
            size: 6,
            seed: 3,
            augment: Augment {
                resize: Some(8),
                flip: true,
                brightness: 0.2,
                ..Augment::default()
            },
            ..LoaderOptions::default()
        }
    }

    fn load(
        images: usize,
        bad: fn(usize) -> bool,
        o: LoaderOptions,
        epoch: u32,
        step: u64,
    ) -> Loader {
        Loader::new(Arc::new(Numbers { images, bad }), o, epoch, step).unwrap()
    }

    fn take(loader: &mut Loader, n: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        for _ in 0..n {
            let batch = loader.next().unwrap().unwrap();
            batches.push(batch.clone());
            loader.recycle(batch);
        }
        batches
    }

    #[test]
    fn batches_do_not_depend_on_threads_and_resume_anywhere() {
        let good = |_| false;
        let all = take(&mut load(50, good, options(8, 1), 0, 0), 20);
        for threads in [2, 5] {
            assert_eq!(
                take(&mut load(50, good, options(8, threads), 0, 0), 20),
                all
            );
        }
        for (epoch, step) in [(0, 5), (1, 0), (2, 3), (1, 6)] {
            let mut loader = load(50, good, options(8, 3), epoch, step);
            assert_eq!(loader.steps_per_epoch(), 6);
            let start = epoch as usize * 6 + step as usize;
            assert_eq!(take(&mut loader, 4), all[start..start + 4]);
        }
        let mut seen: Vec<u32> = all[..6].iter().flat_map(|b| b.indices.clone()).collect();
        assert_ne!(
            seen,
            all[6..12]
                .iter()
                .flat_map(|b| b.indices.clone())
                .collect::<Vec<_>>()
        );
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 48);
        assert_eq!((all[11].epoch, all[11].step), (1, 5));
        for batch in &all {
            let labels: Vec<u32> = batch.indices.iter().map(|i| i % 7).collect();
            assert_eq!(batch.labels, labels);
        }
    }

    #[test]
    fn changes_left_to_the_device_give_the_same_images() {
        let made = take(&mut load(50, |_| false, options(8, 2), 0, 0), 8);
        let on_device = LoaderOptions {
            changes_on_device: true,
            ..options(8, 3)
        };
        let left = take(&mut load(50, |_| false, on_device, 0, 0), 8);
        for (made, left) in made.iter().zip(left) {
            assert_eq!((made.side, left.side, left.changes.len()), (6, 8, 8));
            assert!(made.changes.is_empty());
            let mut out = vec![0; 108];
            for (i, changes) in left.changes.iter().enumerate() {
                changes.apply(&left.pixels[i * 192..][..192], 8, 6, &mut out);
                assert_eq!(made.pixels[i * 108..][..108], out);
            }
            assert_eq!(made.indices, left.indices);
        }
    }

    #[test]
    fn without_shuffling_every_image_comes_once_in_order() {
        let sequential = LoaderOptions {
            shuffle: false,
            augment: Augment::default(),
            ..options(8, 3)
        };
        let loader = load(21, |_| false, sequential.clone(), 0, 0);
        let batches: Vec<Batch> = loader.map(Result::unwrap).collect();
        let sizes: Vec<usize> = batches.iter().map(|b| b.labels.len()).collect();
        assert_eq!(sizes, [8, 8, 5]);
        let indices: Vec<u32> = batches.iter().flat_map(|b| b.indices.clone()).collect();
        assert_eq!(indices, (0..21).collect::<Vec<_>>());
        assert_eq!(batches[2].pixels.len(), 5 * 108);
        assert_eq!(load(5, |_| false, sequential.clone(), 0, 0).count(), 1);
        // What cannot be read is left out: the others keep their batches.
        let skipping = LoaderOptions {
            skip_bad: true,
            ..sequential
        };
        let bad = |i| i == 3 || i == 13 || i >= 16;
        let left: Vec<Batch> = load(21, bad, skipping, 0, 0).map(Result::unwrap).collect();
        let indices: Vec<&[u32]> = left.iter().map(|b| &b.indices[..]).collect();
        let empty: &[u32] = &[];
        assert_eq!(
            indices,
            [
                &[0, 1, 2, 4, 5, 6, 7][..],
                &[8, 9, 10, 11, 12, 14, 15],
                empty
            ]
        );
        assert_eq!(left[0].pixels[3 * 108..], batches[0].pixels[4 * 108..]);
        assert_eq!((left[0].bad()[0].0, left[2].bad().len()), (3, 5));
    }

    #[test]
    fn a_bad_image_stops_or_is_replaced() {
        let bad = |i| i == 13 || i == 30;
        let mut loader = load(50, bad, options(10, 2), 0, 0);
        let error = loader.by_ref().take(5).find_map(Result::err).unwrap();
        let error = error.to_string();
        assert!(
            error.contains("number 13") || error.contains("number 30"),
            "{error}"
        );
        assert!(loader.next().is_none());

        let skipping = |threads| LoaderOptions {
            skip_bad: true,
            ..options(10, threads)
        };
        let mut loader = load(50, bad, skipping(4), 0, 0);
        let batches = take(&mut loader, 5);
        assert!(loader.skipped()[&13].contains("panicked"));
        assert!(loader.skipped()[&30].contains("number 30: broken"));
        assert_eq!(loader.skipped().len(), 2);
        assert!(
            batches
                .iter()
                .all(|b| b.indices.len() == 10 && !b.indices.iter().any(|&i| bad(i as usize)))
        );
        assert_eq!(take(&mut load(50, bad, skipping(1), 0, 0), 5), batches);

        let mut hopeless = load(50, |_| true, skipping(2), 0, 0);
        let error = hopeless.find_map(Result::err).unwrap().to_string();
        assert!(error.contains("none of 256 images"), "{error}");
    }

    #[test]
    fn dropping_ends_the_threads_and_waiting_is_measured() {
        let set = Arc::new(Numbers {
            images: 64,
            bad: |_| false,
        });
        let dataset: Arc<dyn Dataset> = set.clone();
        let mut loader = Loader::new(dataset, options(32, 3), 0, 0).unwrap();
        take(&mut loader, 2);
        assert!(loader.waited() > Duration::ZERO);
        drop(loader);
        assert_eq!(Arc::strong_count(&set), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let say = |o: LoaderOptions, step| {
            let set = Arc::new(Numbers {
                images: 20,
                bad: |_| false,
            });
            Loader::new(set, o, 0, step).err().unwrap().to_string()
        };
        assert!(say(options(21, 1), 0).contains("fewer than one batch of 21"));
        assert!(say(options(0, 1), 0).contains("at least 1"));
        assert!(say(options(10, 1), 3).contains("step 3"));
    }
}
