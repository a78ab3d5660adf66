//! SGD with momentum over the parameter slab.

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

/// A stretch of the parameter slab with one decay and one learning-rate multiplier.
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

/// Two numbers over the segments: the sum of squares of the gradients, and the sum of (decay / 2) w^2.
#[derive(Debug)]
pub struct SgdNorms<'a, T> {
    /// The parameter slab.
    pub params: &'a T,
    /// The gradient slab.
    pub grads: &'a T,
    /// Decay and learning-rate multiplier of each stretch.
    pub segments: &'a [Segment],
    /// Two elements.
    pub norms: &'a mut T,
}

/// One step of the slab. Nothing changes if the gradient's norm is not finite.
#[derive(Debug)]
pub struct SgdUpdate<'a, T> {
    /// The rule and its numbers.
    pub step: SgdStep,
    /// Decay and learning-rate multiplier of each stretch.
    pub segments: &'a [Segment],
    /// The gradient slab.
    pub grads: &'a T,
    /// What [`SgdNorms`] wrote for these gradients.
    pub norms: &'a T,
    /// The parameter slab.
    pub params: &'a mut T,
    /// The momentum slab.
    pub momentum: &'a mut T,
    /// A copy of the parameter slab in other elements, which is kept rounded from it.
    pub shadow: Option<&'a mut T>,
}
