//! The line between the graph and a device: the fused operations a device must offer, and the views they take.
//!
//! The idea that carries it: a value is *pending* where it can be. A convolution writes its raw output, and
//! everything that follows it pixel by pixel (batch norm's scale and shift, the activation) is applied by the
//! consumers as they read ([`Pending`]). Gradients travel the same way: what an operation writes for its input
//! is already behind the activation's derivative, with batch norm's two channel sums taken on the way out
//! ([`GradTarget`]), and the step through batch norm itself is applied by the next reader ([`PendingGrad`]).
//! Whether sums are taken in the loop that writes (the CPU) or in a pass of their own (CUDA, so far) is a device's choice.

mod activation;
pub mod cpu;
pub mod cuda;
pub mod geometry;
pub mod margin;

pub use activation::Activation;

use crate::Result;
use crate::base::changes::Changes;
use geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use margin::Margin;

/// The CUDA kernels' sources, embedded by the build script: (file name, text).
pub const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A read-only stretch of a device buffer.
#[derive(Debug)]
pub struct View<'a, T> {
    /// The buffer.
    pub buffer: &'a T,
    /// First element.
    pub offset: usize,
}

/// A value as its consumers see it: `activation(scale[c] raw + shift[c])`.
///
/// Padding is zero *after* scale, shift and activation.
#[derive(Debug)]
pub struct Pending<'a, T> {
    /// The stored tensor, NHWC.
    pub raw: &'a T,
    /// Batch-norm coefficients in the layout of [`bn`]; absent where the value is stored as it is.
    pub affine: Option<&'a T>,
    /// Applied last.
    pub activation: Activation<View<'a, T>>,
}

/// The gradient with respect to a raw tensor: `a[c] g + b[c] raw + c[c]`, or g alone.
#[derive(Debug)]
pub struct PendingGrad<'a, T> {
    /// The gradient of the normalised value, behind the activation's derivative.
    pub g: &'a T,
    /// The raw tensor and the coefficients of [`bn::backward_len`], where batch norm lies between.
    pub batch_norm: Option<(&'a T, &'a T)>,
}

/// Where an operation leaves the gradient with respect to its input.
#[derive(Debug)]
pub struct GradTarget<'a, T> {
    /// The gradient, the input's shape.
    pub g: &'a mut T,
    /// Add to what is there instead of replacing it.
    pub accumulate: bool,
    /// Set for the last operation to contribute: the gradient is complete and gets its finish.
    pub close: Option<Close<'a, T>>,
}

/// The finish of a complete gradient: multiply by the activation's derivative, take the channel sums.
#[derive(Debug)]
pub struct Close<'a, T> {
    /// The value that the gradient belongs to.
    pub value: Pending<'a, T>,
    /// Where the channel sums go, in the layout of [`sums`]; needed where the value has batch norm or slopes.
    pub sums: Option<&'a mut T>,
}

macro_rules! copy_views {
    ($($name:ident),*) => {$(
        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<'_, T> {}
    )*};
}
copy_views!(View, Pending, PendingGrad);

impl<'a, T> Pending<'a, T> {
    /// A value that is stored as it is read.
    pub fn plain(raw: &'a T) -> Self {
        Pending {
            raw,
            affine: None,
            activation: Activation::Identity,
        }
    }

    /// Whether consumers may read the stored tensor as it is.
    pub fn is_plain(&self) -> bool {
        self.affine.is_none() && self.activation.is_identity()
    }
}

impl<'a, T> PendingGrad<'a, T> {
    /// A gradient with nothing left to apply.
    pub fn plain(g: &'a T) -> Self {
        PendingGrad {
            g,
            batch_norm: None,
        }
    }
}

/// Layout of a batch norm's channel vectors, C elements each, one after the other.
pub mod bn {
    /// Forward coefficients: scale = gamma rstd, shift = beta - mean scale, mean, rstd = 1 / sqrt(var + eps).
    pub const SCALE: usize = 0;
    /// See [`SCALE`].
    pub const SHIFT: usize = 1;
    /// See [`SCALE`].
    pub const MEAN: usize = 2;
    /// See [`SCALE`].
    pub const RSTD: usize = 3;

    /// Elements of the forward coefficients.
    pub const fn forward_len(c: usize) -> usize {
        4 * c
    }

    /// Elements of the backward coefficients a, b, c of [`PendingGrad`](super::PendingGrad).
    pub const fn backward_len(c: usize) -> usize {
        3 * c
    }

    /// Elements of the batch moments: mean, then biased variance.
    pub const fn moments_len(c: usize) -> usize {
        2 * c
    }
}

/// Layout of the channel sums that close a gradient, C elements each. With v the value before its activation,
/// y^ = (raw - mean) rstd, and g the gradient behind the activation's derivative.
pub mod sums {
    /// Sum of g: batch norm's d_beta.
    pub const G: usize = 0;
    /// Sum of g y^: batch norm's d_gamma (not written where there is no batch norm).
    pub const G_NORMALISED: usize = 1;
    /// Sum over v <= 0 of v times the gradient before the derivative: PReLU's d_slope (zero for others).
    pub const SLOPE: usize = 2;

    /// Elements of all three.
    pub const fn len(c: usize) -> usize {
        3 * c
    }
}

/// Where a layer's filter and bias begin in the parameter slab, and their gradients in the gradient slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterAt {
    /// First element of the weights: K R S C, depthwise R S C.
    pub weights: usize,
    /// First element of the K (depthwise: C) biases.
    pub bias: Option<usize>,
}

/// Where a batch norm's parameters begin, and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormAt {
    /// gamma in the parameter slab; absent where the scale is fixed at 1.
    pub gamma: Option<usize>,
    /// beta in the parameter slab.
    pub beta: Option<usize>,
    /// Running mean (C), then running variance (C), in the statistics slab.
    pub statistics: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// The fraction of the running statistics that a step keeps (Keras's convention).
    pub momentum: f32,
}

/// What a convolution does with its output before writing it.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// Add the bias, if there is one.
    Raw,
    /// As `Raw`; also the batch moments of what was written, in the layout of [`bn::moments_len`].
    Moments(&'a mut T),
    /// For inference: add the bias, add `residual`, apply the activation.
    Activate {
        /// Added before the activation; the output's shape, stored as read.
        residual: Option<&'a T>,
        /// Applied last.
        activation: Activation<View<'a, T>>,
    },
}

/// Turns pixels 0..255 into the network's numbers: `x = pixel * scale[channel] + shift[channel]`, RGB.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputTransform {
    /// Factor a channel.
    pub scale: [f32; 3],
    /// Summand a channel.
    pub shift: [f32; 3],
}

/// Pictures that are still to be changed, each in its own way.
#[derive(Clone, Copy, Debug)]
pub struct Augmented<'a> {
    /// N x side x side x 3, RGB.
    pub pixels: &'a [u8],
    /// Width and height of the pictures.
    pub side: usize,
    /// Width and height after the crop.
    pub size: usize,
    /// What happens to each of the N pictures.
    pub changes: &'a [Changes],
}

/// Which rule turns a gradient into a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SgdForm {
    /// v = mu v - lr g; w += v.
    Keras,
    /// v = mu v - lr g; w += mu v - lr g.
    KerasNesterov,
    /// v = mu v + g; w -= lr v.
    Torch,
    /// v = mu v + g; w -= lr (g + mu v).
    TorchNesterov,
}

/// One step's numbers. The gradient is first scaled by the clip factor, then decay w is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// The rule.
    pub form: SgdForm,
    /// Learning rate.
    pub lr: f32,
    /// mu.
    pub momentum: f32,
    /// Largest Euclidean norm of the gradient slab; longer ones are scaled down to it.
    pub clip: Option<f32>,
}

/// A stretch of the parameter slab that shares its decay and its learning-rate multiplier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// First element.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    /// decay: the gradient of (decay / 2) w^2 is added.
    pub decay: f32,
    /// Multiplies the learning rate.
    pub lr_multiplier: f32,
}

/// The numbers that decide a dropout mask: element i is kept where Philox(seed, layer, step, i) >= rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in [0, 1).
    pub rate: f32,
    /// The run's seed.
    pub seed: u64,
    /// The layer's number.
    pub layer: u32,
    /// The step's number.
    pub step: u64,
}

/// What the head keeps for each row of the batch, one vector of N after the other.
pub mod head_rows {
    /// 1 / |x|.
    pub const INVERSE_NORM: usize = 0;
    /// The target's cosine; NaN-free only for rows whose label lies in the shard, 0 for the others.
    pub const TARGET_COS: usize = 1;
    /// The target's logit with its margin; 0 where the label lies outside the shard.
    pub const TARGET_LOGIT: usize = 2;
    /// d(target logit) / d(cos); 0 where the label lies outside the shard.
    pub const TARGET_SLOPE: usize = 3;
    /// Sum over the shard's classes of exp(logit - offset).
    pub const SUM_EXP: usize = 4;
    /// The largest logit without margin among the classes that are not the target.
    pub const BEST_OTHER: usize = 5;
    /// Subtracted before exp: for normalised heads [`Margin::offset`](super::Margin::offset), the same in all shards; for
    /// plain softmax the row's largest logit.
    pub const OFFSET: usize = 6;
    /// Behind the vectors: the sum of squares of the class rows, one number.
    pub const SQUARES: usize = 7;

    /// Elements: seven vectors and the sum of squares.
    pub const fn len(n: usize) -> usize {
        SQUARES * n + 1
    }

    /// A sample's loss, from rows of a batch of `n` whose sums are complete.
    pub fn loss(rows: &[f32], n: usize, sample: usize) -> f64 {
        let value = |which: usize| f64::from(rows[which * n + sample]);
        value(SUM_EXP).ln() + value(OFFSET) - value(TARGET_LOGIT)
    }
}

/// The fused operations that a device offers. Every method writes into buffers that it is given; scratch space
/// is the device's own, grown once and kept. A buffer may be longer than the tensor in it (tensors share slots, and a
/// batch may be smaller than the largest): only the first elements count, and the rest stays as it is.
pub trait Backend: Send {
    /// Float32 elements on the device.
    type Buffer: Send + Sync + std::fmt::Debug;

    /// Whether pictures are better changed by [`Backend::augmented_input`] than by the loader's threads.
    const AUGMENTS: bool = false;

    /// One line for people: which device, with which features.
    fn describe(&self) -> String;

    /// Bytes that can still be allocated, besides what the device needs for itself.
    fn memory_available(&self) -> u64;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// Not enough memory.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;

    /// Elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// Copies host numbers into `dst[offset..]`.
    fn upload(&mut self, src: &[f32], dst: &mut Self::Buffer, offset: usize) -> Result<()>;

    /// Copies to the host: each (buffer, first element, destination). A device that works on while the host does waits
    /// for it here, once for all of them.
    fn download_all(&mut self, parts: &mut [(&Self::Buffer, usize, &mut [f32])]) -> Result<()>;

    /// Copies `src[offset..]` to the host.
    fn download(&mut self, src: &Self::Buffer, offset: usize, dst: &mut [f32]) -> Result<()> {
        self.download_all(&mut [(src, offset, dst)])
    }

    /// `y[i] = pixel[i] scale[i % 3] + shift[i % 3]`.
    fn input_transform(
        &mut self,
        pixels: &[u8],
        transform: &InputTransform,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// The input transform of pictures that are first cropped and changed; rounded to 0..255 in between, so that it does
    /// not matter who changes them.
    fn augmented_input(
        &mut self,
        pictures: Augmented<'_>,
        transform: &InputTransform,
        y: &mut Self::Buffer,
    ) -> Result<()> {
        let Augmented {
            pixels,
            side,
            size,
            changes,
        } = pictures;
        let mut changed = vec![0; changes.len() * size * size * 3];
        for ((changes, picture), out) in changes
            .iter()
            .zip(pixels.chunks_exact(side * side * 3))
            .zip(changed.chunks_exact_mut(size * size * 3))
        {
            changes.apply(picture, side, size, out);
        }
        self.input_transform(&changed, transform, y)
    }

    /// y = conv(x, w) (+ bias), then the epilogue.
    fn conv2d_fprop(
        &mut self,
        geometry: &Conv2d,
        x: Pending<'_, Self::Buffer>,
        params: &Self::Buffer,
        filter: FilterAt,
        y: &mut Self::Buffer,
        epilogue: Epilogue<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradient with respect to the activated input.
    fn conv2d_dgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Self::Buffer>,
        params: &Self::Buffer,
        filter: FilterAt,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradient with respect to weights and bias; replaces what `grads` holds there.
    fn conv2d_wgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Self::Buffer>,
        x: Pending<'_, Self::Buffer>,
        grads: &mut Self::Buffer,
        filter: FilterAt,
    ) -> Result<()>;

    /// Depthwise convolution; as [`Backend::conv2d_fprop`] with one RSC filter.
    fn depthwise_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Self::Buffer>,
        params: &Self::Buffer,
        filter: FilterAt,
        y: &mut Self::Buffer,
        epilogue: Epilogue<'_, Self::Buffer>,
    ) -> Result<()>;

    /// As [`Backend::conv2d_dgrad`].
    fn depthwise_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Self::Buffer>,
        params: &Self::Buffer,
        filter: FilterAt,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// As [`Backend::conv2d_wgrad`].
    fn depthwise_wgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Self::Buffer>,
        x: Pending<'_, Self::Buffer>,
        grads: &mut Self::Buffer,
        filter: FilterAt,
    ) -> Result<()>;

    /// Batch moments of a stored tensor, for a batch norm that does not follow a convolution.
    fn batch_norm_moments(
        &mut self,
        rows: Rows,
        x: &Self::Buffer,
        moments: &mut Self::Buffer,
    ) -> Result<()>;

    /// From the batch moments: the forward coefficients and the new running statistics
    /// (running = momentum running + (1 - momentum) batch, with the unbiased variance).
    fn batch_norm_fprop(
        &mut self,
        rows: Rows,
        moments: &Self::Buffer,
        params: &Self::Buffer,
        at: BatchNormAt,
        statistics: &mut Self::Buffer,
        forward: &mut Self::Buffer,
    ) -> Result<()>;

    /// From the channel sums: d_gamma and d_beta into `grads`, and the backward coefficients
    /// a = gamma rstd, b = -gamma rstd^2 mean(g y^), c = -gamma rstd mean(g) - b mean.
    fn batch_norm_bprop(
        &mut self,
        rows: Rows,
        sums: &Self::Buffer,
        forward: &Self::Buffer,
        grads: &mut Self::Buffer,
        at: BatchNormAt,
        backward: &mut Self::Buffer,
    ) -> Result<()>;

    /// Copies PReLU's d_slope out of the channel sums into `grads[slope_at..]`.
    fn prelu_bprop(
        &mut self,
        c: usize,
        sums: &Self::Buffer,
        grads: &mut Self::Buffer,
        slope_at: usize,
    ) -> Result<()>;

    /// y = activation(a + b), or activation(a): closes a residual block, or stores a pending value.
    fn add_fprop(
        &mut self,
        rows: Rows,
        a: Pending<'_, Self::Buffer>,
        b: Option<Pending<'_, Self::Buffer>>,
        activation: Activation<View<'_, Self::Buffer>>,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// Passes a gradient on unchanged but for what is pending: to an addition's inputs, and through a batch norm
    /// that follows no convolution.
    fn add_dgrad(
        &mut self,
        rows: Rows,
        dy: PendingGrad<'_, Self::Buffer>,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Finishes a gradient in place.
    fn close_grad(
        &mut self,
        rows: Rows,
        g: &mut Self::Buffer,
        close: Close<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Largest value of each window; padding never wins.
    fn max_pool_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Self::Buffer>,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// Each window's gradient goes to the first pixel, in row order, that holds the largest value, found anew from x.
    fn max_pool_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: &Self::Buffer,
        x: Pending<'_, Self::Buffer>,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Mean of each channel over an image, N x C.
    fn global_avg_pool_fprop(
        &mut self,
        geometry: GlobalPool,
        x: Pending<'_, Self::Buffer>,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// dy / (H W) to every pixel.
    fn global_avg_pool_dgrad(
        &mut self,
        geometry: GlobalPool,
        dy: &Self::Buffer,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Kept elements are divided by 1 - rate.
    fn dropout_fprop(
        &mut self,
        rows: Rows,
        x: Pending<'_, Self::Buffer>,
        dropout: Dropout,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// The same mask again.
    fn dropout_dgrad(
        &mut self,
        rows: Rows,
        dy: &Self::Buffer,
        dropout: Dropout,
        dx: GradTarget<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The head's forward pass over a shard's class tiles: fills `rows` ([`head_rows`]) and 1/|w| a class row in
    /// `inverse_norms`. Stores no logits.
    #[allow(clippy::too_many_arguments)]
    fn arcface_fprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Self::Buffer,
        classes: &Self::Buffer,
        labels: &[u32],
        inverse_norms: &mut Self::Buffer,
        rows: &mut Self::Buffer,
    ) -> Result<()>;

    /// The head's backward pass, from `rows` whose sums are complete over all shards: writes d_x of the mean loss,
    /// and updates the class rows and their momentum in the same walk. Where the loss of any row is not finite, class
    /// rows and momentum stay as they are, and d_x is NaN, so that nothing else is updated either: the host need not
    /// look at the loss in between.
    #[allow(clippy::too_many_arguments)]
    fn arcface_bprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Self::Buffer,
        labels: &[u32],
        inverse_norms: &Self::Buffer,
        rows: &Self::Buffer,
        classes: &mut Self::Buffer,
        momentum: &mut Self::Buffer,
        decay: f32,
        step: &SgdStep,
        dx: &mut Self::Buffer,
    ) -> Result<()>;

    /// Two numbers over the segments: the sum of squares of the gradients, and the sum of (decay / 2) w^2.
    fn sgd_norms(
        &mut self,
        params: &Self::Buffer,
        grads: &Self::Buffer,
        segments: &[Segment],
        norms: &mut Self::Buffer,
    ) -> Result<()>;

    /// One step of the slab. Nothing changes where the gradient's norm is not finite.
    fn sgd_update(
        &mut self,
        step: &SgdStep,
        segments: &[Segment],
        grads: &Self::Buffer,
        norms: &Self::Buffer,
        params: &mut Self::Buffer,
        momentum: &mut Self::Buffer,
    ) -> Result<()>;
}
