//! The ArcFace layer: owns the class rows and their momentum, gives the loss, and trains itself in its backward pass.

use super::Margin;
use crate::backend::geometry::HeadShard;
use crate::backend::head_rows::{self, BEST_OTHER, SQUARES, TARGET_COS};
use crate::backend::{
    ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Backend, ClassRows, Element, SgdStep,
};
use crate::base::random::{Purpose, Random};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Class rows that share a stream of random numbers.
const INIT_ROWS: usize = 1024;

/// What the class rows are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Uniform in +-sqrt(6 / (D + V)), Keras's default.
    #[default]
    GlorotUniform,
    /// Normal with mean 0 and this standard deviation (InsightFace: 0.01).
    Normal(f32),
}

/// Where the class rows come from: a distribution, and a place among the random numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassInit {
    /// What the numbers are drawn from.
    pub distribution: Distribution,
    /// The run's seed.
    pub seed: u64,
    /// The parameter's number, below 2^32.
    pub index: u32,
}

/// A batch's loss and accuracy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadOutput {
    /// Mean cross-entropy over the batch, without any L2 term. Not finite where the embeddings or class rows are not:
    /// then [`ArcFace::backward`] changes nothing and gives NaN.
    pub loss: f64,
    /// Samples whose target has the largest cosine, margins aside.
    pub correct: usize,
    /// Sum of the squares of all class rows; their L2 term is decay / 2 times it.
    pub sum_squares: f64,
}

/// V class rows of D numbers with their loss. One shard: all classes are here.
#[derive(Debug)]
pub struct ArcFace<B: Backend> {
    margin: Margin,
    classes: usize,
    d: usize,
    max_batch: usize,
    weights: ClassRows<B::Buffer>,
    /// Whether the rows have changed since squares and rounded rows were made of them.
    stale: bool,
    momentum: B::Buffer,
    rows: B::Buffer,
    /// Batch of the last forward pass.
    n: usize,
    /// Its rows on the host, once they were read.
    host_rows: Vec<f32>,
}

impl<B: Backend> ArcFace<B> {
    /// A head for `classes` identities and embeddings of `d` numbers, in batches of up to `max_batch`. Its products multiply
    /// numbers of `element`; all that it gives and learns is float32.
    ///
    /// # Errors
    /// A margin that makes no sense, a size of 0, more classes than labels can name, not enough memory.
    pub fn new(
        backend: &mut B,
        element: Element,
        (classes, d): (usize, usize),
        max_batch: usize,
        margin: Margin,
        init: ClassInit,
    ) -> Result<Self> {
        margin.validate()?;
        if classes == 0 || d == 0 || max_batch == 0 || u32::try_from(classes).is_err() {
            return Err(Error::Invalid(format!(
                "a head for {classes} identities, {d}-d embeddings and batches of {max_batch}: every size must be \
                 at least 1, and identities fewer than 2^32"
            )));
        }
        let len = classes.checked_mul(d).ok_or_else(|| {
            Error::Invalid(format!("{classes} class rows of {d} numbers are too many"))
        })?;
        let mut head = ArcFace {
            margin,
            classes,
            d,
            max_batch,
            weights: ClassRows {
                rows: backend.alloc(Element::F32, len)?,
                squares: backend.alloc(Element::F32, classes)?,
                rounded: match element {
                    Element::F32 => None,
                    Element::Bf16 => Some(backend.alloc(element, len)?),
                },
            },
            stale: true,
            momentum: backend.alloc(Element::F32, len)?,
            rows: backend.alloc(Element::F32, head_rows::len(max_batch))?,
            n: 0,
            host_rows: vec![0.0; head_rows::len(max_batch)],
        };
        head.initialise(backend, init)?;
        Ok(head)
    }

    /// Draws the class rows; every block of rows has a stream of its own.
    fn initialise(&mut self, backend: &mut B, init: ClassInit) -> Result<()> {
        let limit = (6.0 / (self.d + self.classes) as f64).sqrt() as f32;
        let block_len = INIT_ROWS * self.d;
        let len = self.classes * self.d;
        // A few blocks at a time, so that the host never holds a copy of the matrix.
        const BLOCKS: usize = 16;
        let mut host = vec![0.0f32; (BLOCKS * block_len).min(len)];
        for (turn, at) in (0..len).step_by(BLOCKS * block_len).enumerate() {
            let host = &mut host[..(len - at).min(BLOCKS * block_len)];
            host.par_chunks_mut(block_len)
                .enumerate()
                .for_each(|(i, block)| {
                    let block_index = (turn * BLOCKS + i) as u64;
                    let stream = u64::from(init.index) | block_index << 32;
                    let mut random = Random::new(init.seed, Purpose::Init, stream);
                    for w in block {
                        *w = match init.distribution {
                            Distribution::GlorotUniform => random.range(-limit, limit),
                            Distribution::Normal(deviation) => deviation * random.normal(),
                        };
                    }
                });
            backend.upload(host, &mut self.weights.rows, at)?;
        }
        Ok(())
    }

    /// The loss's conventions.
    pub fn margin(&self) -> &Margin {
        &self.margin
    }

    /// V.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// D.
    pub fn dimension(&self) -> usize {
        self.d
    }

    /// Bytes on the device of class rows, their rounded copy, and their momentum.
    pub fn class_bytes(element: Element, classes: usize, d: usize) -> u64 {
        let rounded = match element {
            Element::F32 => 0,
            Element::Bf16 => element.bytes(),
        };
        (8 + rounded as u64) * classes as u64 * d as u64
    }

    /// Bytes on the device: those of the classes, and what is kept for a batch.
    pub fn bytes(element: Element, classes: usize, d: usize, max_batch: usize) -> u64 {
        let kept = classes + head_rows::len(max_batch);
        Self::class_bytes(element, classes, d) + 4 * kept as u64
    }

    /// Queues loss and accuracy of the embeddings `x` (at least N x D, the first N rows are read) with `labels` (N).
    /// [`ArcFace::output`] has them once [`ArcFace::reading`] was downloaded.
    ///
    /// # Errors
    /// A label of V or more, no sample or more than the head was made for, a device that fails.
    pub fn forward(&mut self, backend: &mut B, x: &B::Buffer, labels: &[u32]) -> Result<()> {
        let shard = self.shard(labels)?;
        self.n = shard.n;
        if self.stale {
            backend.arcface_prepare(ArcFacePrepare {
                v: self.classes,
                d: self.d,
                classes: self.weights.lend_mut(),
            })?;
            self.stale = false;
        }
        backend.arcface_fprop(ArcFaceFprop {
            shard,
            margin: &self.margin,
            x,
            classes: self.weights.lend(),
            labels,
            rows: &mut self.rows,
        })
    }

    /// What the last forward pass left on the device, for [`Backend::download_all`].
    pub fn reading(&mut self) -> (&B::Buffer, usize, &mut [f32]) {
        let host = &mut self.host_rows[..head_rows::len(self.n)];
        (&self.rows, 0, host)
    }

    /// Loss and accuracy of the batch whose [`ArcFace::reading`] was downloaded last.
    pub fn output(&self) -> HeadOutput {
        let (n, rows) = (self.n, &self.host_rows);
        let value = |which: usize, sample: usize| f64::from(rows[which * n + sample]);
        let scale = if self.margin.normalise {
            f64::from(self.margin.scale)
        } else {
            1.0
        };
        let (mut loss, mut correct) = (0.0, 0);
        for sample in 0..n {
            loss += head_rows::loss(rows, n, sample);
            let target = scale * value(TARGET_COS, sample);
            correct += usize::from(target > value(BEST_OTHER, sample));
        }
        HeadOutput {
            loss: loss / n as f64,
            correct,
            sum_squares: f64::from(rows[SQUARES * n]),
        }
    }

    /// After [`ArcFace::forward`] on the same `x` and `labels`: writes d(loss)/dx into the first N rows of `dx`, and
    /// **updates the class rows** by `step` in the same walk, with `decay` w added to their gradient. Where the loss is
    /// not finite, class rows and momentum stay as they are and `dx` is NaN.
    ///
    /// `step.clip` does not apply to class rows: their gradient never exists as a whole (InsightFace, too, clips the
    /// backbone alone).
    ///
    /// # Errors
    /// As [`ArcFace::forward`].
    pub fn backward(
        &mut self,
        backend: &mut B,
        x: &B::Buffer,
        labels: &[u32],
        step: &SgdStep,
        decay: f32,
        dx: &mut B::Buffer,
    ) -> Result<()> {
        let shard = self.shard(labels)?;
        backend.arcface_bprop(ArcFaceBprop {
            shard,
            margin: &self.margin,
            x,
            labels,
            rows: &self.rows,
            classes: self.weights.lend_mut(),
            momentum: &mut self.momentum,
            decay,
            step: *step,
            dx,
        })
    }

    fn shard(&self, labels: &[u32]) -> Result<HeadShard> {
        if labels.is_empty() || labels.len() > self.max_batch {
            return Err(Error::Invalid(format!(
                "a batch of {} samples: the head was made for 1 to {}",
                labels.len(),
                self.max_batch
            )));
        }
        if let Some(at) = labels.iter().position(|l| *l as usize >= self.classes) {
            return Err(Error::Invalid(format!(
                "label {} (sample {at} of the batch) does not exist: the head has {} identities, 0 to {}",
                labels[at],
                self.classes,
                self.classes - 1
            )));
        }
        Ok(HeadShard {
            n: labels.len(),
            d: self.d,
            first: 0,
            last: self.classes,
        })
    }

    /// The class rows, V x D.
    pub fn weights(&self) -> &B::Buffer {
        &self.weights.rows
    }

    /// Their momentum, V x D.
    pub fn momentum(&self) -> &B::Buffer {
        &self.momentum
    }

    /// The class rows to write, for checkpoints: V x D.
    pub fn weights_mut(&mut self) -> &mut B::Buffer {
        self.stale = true;
        &mut self.weights.rows
    }

    /// Their momentum to write, for checkpoints: V x D.
    pub fn momentum_mut(&mut self) -> &mut B::Buffer {
        &mut self.momentum
    }
}

/// The mean loss to expect before the first step: ln(1 + e^(a - t)) with a = ln of the sum over the other classes'
/// exps and t the target's logit at cos = 0; near ln(V-1) + s^2/(2D) + s sin m for ArcFace.
///
/// Cosines between random directions are near normal with variance 1/D, so the logits' deviation is s / sqrt(D);
/// the mean of e^logit counts only logits up to the largest that V - 1 draws are likely to meet. For plain softmax,
/// whose logits have no known size, ln V.
pub fn expected_initial_loss(margin: &Margin, d: usize, classes: usize) -> f64 {
    if classes < 2 {
        return 0.0;
    }
    if !margin.normalise {
        return (classes as f64).ln();
    }
    let others = (classes as f64 - 1.0).ln();
    let deviation = f64::from(margin.scale) / (d as f64).sqrt();
    let sum = if classes < 10 {
        // Too few to meet the distribution's tail.
        others
    } else {
        // The expected maximum of normal draws, in deviations, and the normal distribution up to it, moved by the
        // weight e^logit (Page's logistic approximation).
        let root = (2.0 * others).sqrt();
        let most = root - (others.ln() + (4.0 * std::f64::consts::PI).ln()) / (2.0 * root);
        let t = most - deviation;
        let below = -(-(1.5976 * t + 0.070_56 * t.powi(3))).exp().ln_1p();
        others + deviation * deviation / 2.0 + below
    };
    let excess = sum - f64::from(margin.target(0.0).0);
    excess.max(0.0) + (-excess.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_initial_losses_are_expected() {
        let seed = expected_initial_loss(&Margin::arcface(30.0, 0.5), 256, 85_742);
        let formula = 85_741f64.ln() + 900.0 / 512.0 + 30.0 * 0.5f64.sin();
        assert!(
            (seed - 27.5).abs() < 0.05 && (seed - formula).abs() < 0.02,
            "{seed}"
        );
        let cosface = expected_initial_loss(&Margin::cosface(16.0, 0.35), 512, 1000);
        let formula = 999f64.ln() + 256.0 / 1024.0 + 16.0 * 0.35;
        assert!((cosface - formula).abs() < 0.02, "{cosface}");
        let softmax = expected_initial_loss(&Margin::softmax(), 512, 1000);
        assert!((softmax - 1000f64.ln()).abs() < 1e-12);
    }
}
