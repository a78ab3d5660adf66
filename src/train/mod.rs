//! Training: a network with an ArcFace head, fitted to a data set step by step.
//!
//! The network is a preset's, or any other that a [`Builder`](crate::graph::Builder) makes. Its layers are part of
//! every file that is saved, so `--weights` takes such a file, too.
//!
//! ```
//! # use arcface_cu::{backend::{Activation, cpu::Cpu, geometry::Padding}, data::{Dataset, Image}};
//! # use arcface_cu::demo::faces::{FacesOptions, GeneratedFaces};
//! # use arcface_cu::graph::{BatchNorm, Builder, Square, params::Init};
//! # use arcface_cu::{recipe::config::Config, train::{DataOptions, Trainer}, weights::checkpoint::Checkpoint};
//! # let faces = FacesOptions { identities: 4, per_identity: 6, ..FacesOptions::default() };
//! # let faces = std::sync::Arc::new(GeneratedFaces::new(faces)?);
//! # let mut face = Image::default();
//! # faces.read(0, &mut face)?;
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let path = folder.path().join("checkpoint.safetensors");
//! # let data = DataOptions::default();
//! let (mut net, x) = Builder::new(64, 64);
//! let x = net.conv2d("conv1", x, 16, Square::new(3, 2, Padding::same(1)), false, Init::HeFanOut);
//! let x = net.batch_norm("bn1", x, BatchNorm::default());
//! let x = net.activation("prelu1", x, Activation::PRelu(()));
//! let x = net.global_avg_pool("pool", x);
//! net.linear("embedding", x, 32, true, Init::GlorotUniform);
//! // Head, optimizer and schedule are the preset's; its network is replaced.
//! let settings = ["train.batch_size=8".to_owned()];
//! let config = Config::load("demo", None, &settings)?.with_network(&net.finish()?)?;
//!
//! let mut trainer = Trainer::new(Cpu::new(), config, faces.clone(), data)?;
//! trainer.step()?;
//! trainer.checkpoint()?.save(&path)?;
//!
//! let mut trainer = Trainer::resume(Cpu::new(), &Checkpoint::load(&path)?, faces, data)?;
//! trainer.fit(|step| println!("step {}: loss {:.3}", step.step, step.loss))?;
//! assert_eq!(trainer.embedder(1)?.embed(&[face])?.len(), 32);
//! # Ok::<(), arcface_cu::Error>(())
//! ```

mod prospects;

pub use prospects::Prospects;

use crate::backend::{Augmented, Backend, InputTransform, Segment};
use crate::base::text::count;
use crate::data::fingerprint::Fingerprint;
use crate::data::loader::{Batch, Loader, LoaderOptions};
use crate::data::picture::augment::Augment;
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::graph::train::{TrainGraph, TrainSettings};
use crate::head::{ArcFace, ClassInit, expected_initial_loss};
use crate::optim::Role;
use crate::recipe::config::Config;
use crate::report::StepReport;
use crate::weights::checkpoint::{Checkpoint, ClassRows, Verified, Weights};
use crate::weights::import::Start;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// How a [`Trainer`] reads its data; changes no number of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataOptions {
    /// Threads that decode and augment; 0: one a core.
    pub threads: usize,
    /// Replace pictures that cannot be read by others instead of stopping.
    pub skip_bad: bool,
}

/// A network in training.
pub struct Trainer<B: Backend> {
    backend: B,
    config: Config,
    graph: TrainGraph<B>,
    head: ArcFace<B>,
    segments: Vec<Segment>,
    /// The class rows' decay.
    class_decay: f32,
    loader: Loader,
    trained_on: Fingerprint,
    /// The file that the weights began with.
    imported_from: Option<String>,
    steps_done: u64,
    /// Width and height of the network's input.
    image_size: usize,
    /// How many pictures of the next step's batch are kept.
    keep: usize,
    /// Those that were kept.
    kept: Vec<Image>,
}

impl<B: Backend> Trainer<B> {
    /// A new run on `dataset`, with the network, head and optimizer of `config`
    /// ([`Config::with_network`] replaces the network).
    ///
    /// # Errors
    /// Settings that make no sense, data that cannot be learnt from ([`Prospects`]), not enough memory.
    pub fn new(
        backend: B,
        config: Config,
        dataset: Arc<dyn Dataset>,
        data: DataOptions,
    ) -> Result<Self> {
        Self::start(backend, config, dataset, data, 0)
    }

    /// Goes on where `checkpoint` was taken: the same data gives the same bits as a run that never stopped.
    ///
    /// # Errors
    /// As [`Trainer::new`]; also data with another number of images or identities.
    pub fn resume(
        backend: B,
        checkpoint: &Checkpoint,
        dataset: Arc<dyn Dataset>,
        data: DataOptions,
    ) -> Result<Self> {
        let Weights {
            config,
            classes,
            trained_on,
            imported_from,
            params,
            statistics,
        } = &checkpoint.weights;
        let trained = (checkpoint.images, *classes);
        if (dataset.len(), dataset.classes()) != trained {
            return Err(Error::Invalid(format!(
                "the checkpoint was trained on {} of {} and the data has {} of {}; a run goes on with its own data only",
                count(trained.0, "image"),
                count(trained.1, "identity"),
                dataset.len(),
                dataset.classes()
            )));
        }
        let steps_done = checkpoint.steps_done;
        let mut trainer = Self::start(backend, config.clone(), dataset, data, steps_done)?;
        trainer.imported_from.clone_from(imported_from);
        let state = [&params[..], statistics, &checkpoint.momentum];
        if let Some(trained_on) = trained_on
            && *trained_on != trainer.trained_on
        {
            return Err(Error::Invalid(
                "the checkpoint was trained on other images or labels, of the same number; a run goes on with its own data only".into(),
            ));
        }
        trainer.graph.set_state(&mut trainer.backend, state)?;
        let (backend, head) = (&mut trainer.backend, &mut trainer.head);
        backend.upload(&checkpoint.class_rows, head.weights_mut(), 0)?;
        backend.upload(&checkpoint.class_momentum, head.momentum_mut(), 0)?;
        Ok(trainer)
    }

    /// Puts other weights in the place of a new run's random ones, and the class rows of the classes that are the same: those
    /// of the same name; of classes that have only numbers, all if the data are the same, else none. Returns how many.
    ///
    /// # Errors
    /// A device that fails.
    pub fn begin_with(&mut self, start: Start) -> Result<usize> {
        let momentum = vec![0.0; start.params.len()];
        let state = [&start.params[..], &start.statistics, &momentum];
        self.imported_from = Some(start.file);
        self.graph.set_state(&mut self.backend, state)?;
        let Some(theirs) = start.classes else {
            return Ok(0);
        };
        let d = self.head.dimension();
        if theirs.rows.len() != theirs.classes * d {
            return Ok(0);
        }
        let same = self.same_classes(&theirs);
        let mut rows = vec![0.0; self.backend.len(self.head.weights())];
        self.backend.download(self.head.weights(), 0, &mut rows)?;
        for &(ours, its) in &same {
            rows[ours * d..][..d].copy_from_slice(&theirs.rows[its * d..][..d]);
        }
        self.backend.upload(&rows, self.head.weights_mut(), 0)?;
        Ok(same.len())
    }

    /// Pairs of our class and the one of `theirs` that is the same.
    fn same_classes(&self, theirs: &ClassRows) -> Vec<(usize, usize)> {
        match (self.class_names(), &theirs.names) {
            (Some(ours), Some(names)) => {
                let places: HashMap<&str, usize> = names
                    .iter()
                    .enumerate()
                    .map(|(i, name)| (&name[..], i))
                    .collect();
                let place = |name: &String| places.get(&name[..]).copied();
                let ours = ours.iter().enumerate();
                ours.filter_map(|(i, name)| Some((i, place(name)?)))
                    .collect()
            }
            _ if theirs.trained_on.as_ref() == Some(&self.trained_on) => (0..self.head.classes())
                .map(|class| (class, class))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// What the classes are called, if that is more than their numbers.
    fn class_names(&self) -> Option<Vec<String>> {
        let dataset = self.loader.dataset();
        let names: Vec<String> = (0..dataset.classes() as u32)
            .map(|label| dataset.class_name(label))
            .collect();
        let is_number = |(label, name): (usize, &String)| *name == label.to_string();
        (!names.iter().enumerate().all(is_number)).then_some(names)
    }

    fn start(
        mut backend: B,
        mut config: Config,
        dataset: Arc<dyn Dataset>,
        data: DataOptions,
        steps_done: u64,
    ) -> Result<Self> {
        config.validate()?;
        Prospects::of(&config, &*dataset, steps_done)?.accept()?;
        let element = config.train.precision.element(&backend)?;
        config.train.precision = element.into();
        let model = config.model.build()?;
        let image_size = model.input_shape().h;
        let batch = config.train.batch_size;
        let (images, classes) = (dataset.len(), dataset.classes());
        let seed = config.train.seed;
        let steps_per_epoch = (images / batch) as u64;
        let (epoch, step) = (steps_done / steps_per_epoch, steps_done % steps_per_epoch);
        let options = LoaderOptions {
            batch,
            seed,
            // Where nothing changes, the plain input transform is less work.
            changes_on_device: B::AUGMENTS && config.augment != Augment::default(),
            augment: config.augment.clone(),
            threads: data.threads,
            ahead: 0,
            size: image_size,
            skip_bad: data.skip_bad,
            shuffle: true,
        };
        let trained_on = Fingerprint::of(&*dataset, data.skip_bad)?;
        let loader = Loader::new(dataset, options, epoch as u32, step)?;
        let init = ClassInit {
            distribution: config.head.init,
            seed,
            // Past every parameter of the graph.
            index: u32::MAX,
        };
        let margin = config.head.margin;
        let size = model.embedding_size();
        let head_bytes = ArcFace::<B>::bytes(element, classes, size, batch);
        let settings = TrainSettings {
            seed,
            max_batch: batch,
            element,
            head_bytes,
        };
        let graph = TrainGraph::new(&mut backend, &model, settings)?;
        let head = ArcFace::new(&mut backend, element, (classes, size), batch, margin, init)?;
        let decay = config.optimizer.decay;
        Ok(Trainer {
            segments: graph.segments(|param| decay.of(param.role)),
            class_decay: decay.of(Role::ClassRows),
            backend,
            config,
            graph,
            head,
            loader,
            trained_on,
            imported_from: None,
            steps_done,
            image_size,
            keep: 0,
            kept: Vec::new(),
        })
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The ArcFace layer.
    pub fn head(&self) -> &ArcFace<B> {
        &self.head
    }

    /// The network.
    pub fn graph(&self) -> &TrainGraph<B> {
        &self.graph
    }

    /// Steps done since the beginning of the run.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.loader.steps_per_epoch()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.steps_per_epoch() * self.config.train.epochs
    }

    /// Pictures that were replaced because they could not be read, and why.
    pub fn skipped(&self) -> &std::collections::BTreeMap<u32, String> {
        self.loader.skipped()
    }

    /// Keeps the first `count` pictures of the next step's batch as the network is trained on them, augmented.
    pub fn keep_pictures(&mut self, count: usize) {
        self.keep = count;
    }

    /// The pictures that were kept since the last call.
    pub fn take_pictures(&mut self) -> Vec<Image> {
        std::mem::take(&mut self.kept)
    }

    /// What the loss should be near at step 0, if labels and input are what they should be.
    pub fn expected_initial_loss(&self) -> f64 {
        expected_initial_loss(
            self.head.margin(),
            self.head.dimension(),
            self.head.classes(),
        )
    }

    /// Does one step.
    ///
    /// # Errors
    /// A picture that cannot be read; a device that fails; a loss or gradient that is not finite: then parameters and
    /// momentum are as they were, and so are the class rows unless the loss was finite and the network's gradient was
    /// not (they move in the head's backward pass, before that gradient exists). Running statistics have moved.
    pub fn step(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        let waited = self.loader.waited();
        let batch = self.loader.next().expect("a shuffling loader has no end")?;
        let (step, backend) = (self.steps_done, &mut self.backend);
        let (steps_per_epoch, epochs) = (self.loader.steps_per_epoch(), self.config.train.epochs);
        let total = steps_per_epoch * epochs;
        let sgd = self.config.optimizer.step(step, steps_per_epoch, total);
        let input = (&self.config.model.input, self.image_size);

        forward(backend, &mut self.graph, input, &batch, step)?;
        let (x, dx) = self.graph.embeddings();
        self.head.forward(backend, x, &batch.labels)?;
        self.head
            .backward(backend, x, &batch.labels, &sgd, self.class_decay, dx)?;
        self.graph.backward(backend)?;
        self.graph.measure(backend, &self.segments)?;
        self.graph.update(backend, &self.segments, &sgd)?;
        // The one place in a step where the host waits for the device: all of the above refuses by itself what is not
        // finite.
        backend.download_all(&mut [self.head.reading(), self.graph.reading()])?;
        let (output, norms) = (self.head.output(), self.graph.norms());
        if !output.loss.is_finite() {
            // The backward pass has used the activations' memory again; from the same parameters come the same ones.
            forward(backend, &mut self.graph, input, &batch, step)?;
            return Err(Error::NotFinite {
                step: step + 1,
                what: "the loss",
                layer: self.graph.first_layer_not_finite(backend)?,
            });
        }
        if !norms.gradient.is_finite() {
            return Err(Error::NotFinite {
                step: step + 1,
                what: "the gradient",
                layer: self.graph.first_gradient_not_finite(backend)?,
            });
        }
        self.steps_done += 1;

        let images = batch.labels.len();
        let kept = std::mem::take(&mut self.keep).min(images);
        self.kept
            .extend((0..kept).map(|i| batch.picture(i, self.image_size)));
        self.loader.recycle(batch);
        Ok(StepReport {
            epoch: step / steps_per_epoch + 1,
            step: self.steps_done,
            images,
            loss: output.loss,
            l2: norms.l2 + 0.5 * f64::from(self.class_decay) * output.sum_squares,
            accuracy: output.correct as f64 / images as f64,
            lr: f64::from(sgd.lr),
            seconds: began.elapsed().as_secs_f64(),
            waited: (self.loader.waited() - waited).as_secs_f64(),
        })
    }

    /// Runs to the end of the last epoch, telling `observe` of each step.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn fit(&mut self, mut observe: impl FnMut(&StepReport)) -> Result<()> {
        while self.steps_done < self.total_steps() {
            observe(&self.step()?);
        }
        Ok(())
    }

    /// The network's weights as they are now.
    ///
    /// # Errors
    /// A device that fails.
    pub fn weights(&mut self) -> Result<Weights> {
        let [params, statistics, _] = self.graph.state(&mut self.backend)?;
        Ok(self.weights_of(params, statistics))
    }

    fn weights_of(&self, params: Vec<f32>, statistics: Vec<f32>) -> Weights {
        Weights {
            config: self.config.clone(),
            classes: self.head.classes(),
            trained_on: Some(self.trained_on.clone()),
            imported_from: self.imported_from.clone(),
            params,
            statistics,
        }
    }

    /// Everything that the rest of the run depends on.
    ///
    /// # Errors
    /// A device that fails.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let [params, statistics, momentum] = self.graph.state(&mut self.backend)?;
        let mut read = |buffer: &B::Buffer| {
            let mut values = vec![0.0; self.backend.len(buffer)];
            self.backend.download(buffer, 0, &mut values)?;
            Ok::<_, Error>(values)
        };
        let (class_rows, class_momentum) =
            (read(self.head.weights())?, read(self.head.momentum())?);
        Ok(Checkpoint {
            weights: self.weights_of(params, statistics),
            momentum,
            class_rows,
            class_momentum,
            images: self.trained_on.images,
            steps_done: self.steps_done,
            class_names: self.class_names(),
            verified: Verified::default(),
        })
    }

    /// The network as it is now, ready to embed, in batches of up to `max_batch`.
    ///
    /// # Errors
    /// Not enough memory, a device that fails.
    pub fn embedder(&mut self, max_batch: usize) -> Result<Embedder<'_, B>> {
        let weights = self.weights()?;
        let element = self.config.train.precision.element(&self.backend)?;
        Embedder::new(&mut self.backend, &weights, max_batch, element)
    }
}

/// The forward pass on a batch as the loader left it: changed already, or to be changed by the device.
fn forward<B: Backend>(
    backend: &mut B,
    graph: &mut TrainGraph<B>,
    (input, image_size): (&InputTransform, usize),
    batch: &Batch,
    step: u64,
) -> Result<()> {
    if batch.changes.is_empty() {
        return graph.forward(backend, &batch.pixels, input, step);
    }
    let pictures = Augmented {
        pixels: &batch.pixels,
        side: batch.side,
        size: image_size,
        changes: &batch.changes,
    };
    graph.forward_augmented(backend, pictures, input, step)
}
