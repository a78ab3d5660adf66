//! What people look at: progress, metrics, pictures.

mod canvas;
pub mod figure;
pub(crate) mod markup;
pub mod metrics;
pub mod page;
pub mod pairs;
pub mod picture_file;
pub mod progress;
pub mod similarity;
pub mod tensorboard;
pub mod viridis;

/// What one training step did: the source of a line in `metrics.csv` and of the progress bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The epoch, counted from 1.
    pub epoch: u64,
    /// The steps done in the whole run, this one included.
    pub step: u64,
    /// The images in this step's batch.
    pub images: usize,
    /// The mean loss over the batch, without the L2 term.
    pub loss: f64,
    /// The L2 term, which a Keras model adds to the loss it prints.
    pub l2: f64,
    /// The share of the batch whose identity has the highest cosine, 0..1.
    pub accuracy: f64,
    /// The learning rate.
    pub lr: f64,
    /// How long the step took, in seconds, the wait for data included.
    pub seconds: f64,
    /// How long it waited for data, in seconds.
    pub waited: f64,
}

impl StepReport {
    /// Images per second; 0 where no time was measured.
    pub fn images_per_s(&self) -> f64 {
        ratio(self.images as f64, self.seconds)
    }

    /// The share of the step spent waiting for data, 0..1.
    pub fn data_wait(&self) -> f64 {
        ratio(self.waited, self.seconds)
    }
}

/// `part / whole`, and 0 where `whole` is 0.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
