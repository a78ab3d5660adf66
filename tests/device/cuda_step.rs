//! What a training step asks of the driver: a device that computes nothing, and counts.

use crate::allocations::allocations;
use crate::support::Pictures;
use arcface_cu::Result;
use arcface_cu::backend::cuda::Cuda;
use arcface_cu::backend::cuda::driver::{Driver, Launch, Memory, Properties};
use arcface_cu::backend::cuda::tiles::Program;
use arcface_cu::backend::margin::Margin;
use arcface_cu::backend::{Augmented, Backend, Element, InputTransform, SgdForm, SgdStep};
use arcface_cu::base::changes::Changes;
use arcface_cu::graph::train::{TrainGraph, TrainSettings};
use arcface_cu::head::{ArcFace, ClassInit, Distribution};
use arcface_cu::models::{self, Embedding};
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use std::cell::Cell;
use std::sync::Arc;

/// Images per batch.
const BATCH: usize = 3;

/// Calls so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    allocations: usize,
    launches: usize,
    /// Uploads of one number per image.
    labels: usize,
    /// Places where the host waits.
    waits: usize,
}

/// Every number on it is 1: a sum of exps of 1, a logit of 1, a norm of 1.
struct Counting {
    properties: Properties,
    next: Cell<u64>,
    counts: Cell<Counts>,
}

#[derive(Debug)]
struct Nowhere(u64);

impl Memory for Nowhere {
    fn address(&self) -> u64 {
        self.0
    }
}

impl Counting {
    fn new() -> Self {
        Counting {
            properties: Properties {
                name: "nothing".into(),
                capability: (8, 0),
                multiprocessors: 1,
                memory: 1 << 40,
                shared_per_block: 48 << 10,
                driver: (13, 0),
            },
            next: Cell::new(256),
            counts: Cell::default(),
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

impl Driver for Counting {
    type Memory = Nowhere;
    type Kernel = ();
    type Event = ();

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&self) -> u64 {
        self.properties.memory
    }

    fn alloc(&self, bytes: usize) -> Result<Nowhere> {
        self.count(|c| c.allocations += 1);
        let address = self.next.get();
        self.next
            .set(address + (bytes as u64).next_multiple_of(256));
        Ok(Nowhere(address))
    }

    fn clear(&self, _: &mut Nowhere, _: usize) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, src: &[u8], _: &mut Nowhere, _: usize) -> Result<()> {
        self.count(|c| c.labels += usize::from(src.len() == 4 * BATCH));
        Ok(())
    }

    fn download<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a Nowhere, usize, &'a mut [u8])>,
    ) -> Result<()> {
        self.count(|c| c.waits += 1);
        for (_, _, to) in parts {
            for number in to.chunks_exact_mut(4) {
                number.copy_from_slice(&1f32.to_ne_bytes());
            }
        }
        Ok(())
    }

    fn load(&mut self, program: &'static Program) -> Result<Vec<()>> {
        Ok(vec![(); program.kernels().1.len()])
    }

    fn launch(&mut self, (): &(), _: Launch, _: &[&[u8]]) -> Result<()> {
        self.count(|c| c.launches += 1);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.count(|c| c.waits += 1);
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&mut self, (): &(), (): &()) -> Result<f64> {
        self.count(|c| c.waits += 1);
        Ok(0.0)
    }
}

#[test]
fn a_step_waits_once_uploads_labels_once_and_allocates_nothing() {
    for preset in ["small", "seed-resnet50", "arcface-tf2-mobilenetv2"] {
        let settings = [format!("train.batch_size={BATCH}")];
        let config = Config::load(preset, None, &settings).unwrap();
        let data = Arc::new(Pictures(12));
        let cuda = Cuda::new(Counting::new());
        let mut trainer = Trainer::new(cuda, config, data, DataOptions::default()).unwrap();
        let counts =
            |trainer: &mut Trainer<Cuda<Counting>>| trainer.backend().driver().counts.get();
        // The first step finds out how much scratch memory is needed.
        trainer.step().unwrap();
        let before = counts(&mut trainer);
        for _ in 0..3 {
            trainer.step().unwrap();
        }
        let after = counts(&mut trainer);
        assert_eq!(
            (after.allocations, after.waits),
            (before.allocations, before.waits + 3),
            "{preset}"
        );
        // The labels are uploaded once for both passes of the head.
        assert_eq!(after.labels - before.labels, 3, "{preset}");
        // Every step queues the same work.
        assert_eq!((after.launches - before.launches) % 3, 0, "{preset}");
        assert!(after.launches > before.launches, "{preset}");
    }
}

#[test]
fn memory_that_is_not_aligned_as_promised_is_refused() {
    let driver = Counting::new();
    driver.next.set(256 + 128);
    let error = Cuda::new(driver)
        .alloc(Element::F32, 4)
        .unwrap_err()
        .to_string();
    assert!(error.contains("0x180") && error.contains("256"), "{error}");
}

/// What the network, the head and the backend allocate on the host while they work on a batch.
#[test]
fn after_the_first_step_nothing_is_allocated_on_the_host() {
    let embedding = Embedding::PoolDropoutDense {
        size: 64,
        dropout: 0.5,
    };
    let models = [
        models::resnet50(112, embedding).unwrap(),
        models::mobilenet_v2(112, embedding).unwrap(),
        models::iresnet18(112, embedding).unwrap(),
    ];
    for model in models {
        let mut cuda = Cuda::new(Counting::new());
        let mut graph = TrainGraph::new(
            &mut cuda,
            &model,
            TrainSettings {
                seed: 1,
                max_batch: BATCH,
                ..TrainSettings::default()
            },
        )
        .unwrap();
        let margin = Margin::arcface(64.0, 0.5);
        let init = ClassInit {
            distribution: Distribution::Normal(0.01),
            seed: 1,
            index: 0,
        };
        let mut head =
            ArcFace::new(&mut cuda, Element::F32, (10, 64), BATCH, margin, init).unwrap();
        let segments = graph.segments(|_| 5e-4);
        let sgd = SgdStep {
            form: SgdForm::Torch,
            lr: 0.1,
            momentum: 0.9,
            clip: None,
        };
        let transform = InputTransform {
            scale: [1.0; 3],
            shift: [0.0; 3],
        };
        let unchanged = Changes {
            crop: [0; 2],
            shift: [0; 2],
            flip: false,
            brightness: 0.0,
            hue: 0.0,
            contrast: 1.0,
            saturation: 1.0,
            grey: false,
            erase: None,
        };
        let pixels = vec![0; BATCH * 112 * 112 * 3];
        let changes = vec![unchanged; BATCH];
        let mut step = |number: u64| {
            let pictures = Augmented {
                pixels: &pixels,
                side: 112,
                size: 112,
                changes: &changes,
            };
            let labels = [0, 1, number as u32];
            graph
                .forward_augmented(&mut cuda, pictures, &transform, number)
                .unwrap();
            let (x, dx) = graph.embeddings();
            head.forward(&mut cuda, x, &labels).unwrap();
            head.backward(&mut cuda, x, &labels, &sgd, 5e-4, dx)
                .unwrap();
            graph.backward(&mut cuda).unwrap();
            graph.measure(&mut cuda, &segments).unwrap();
            graph.update(&mut cuda, &segments, &sgd).unwrap();
            cuda.download_all(&mut [head.reading(), graph.reading()])
                .unwrap();
        };
        step(1);
        let before = allocations();
        step(2);
        step(3);
        assert_eq!(allocations() - before, 0, "{}", model.nodes()[1].name);
    }
}
