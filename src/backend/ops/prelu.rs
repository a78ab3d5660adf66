//! The gradient of PReLU's slopes.

/// Copies d_slope out of the channel sums into the gradient slab.
#[derive(Debug)]
pub struct PReluBprop<'a, T> {
    /// Channels.
    pub c: usize,
    /// In the layout of [`sums`](crate::backend::sums).
    pub sums: &'a T,
    /// The gradient slab.
    pub grads: &'a mut T,
    /// Where the C slopes begin in it.
    pub slope_at: usize,
}
