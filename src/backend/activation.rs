//! The activations, once for the whole engine.

/// What happens to a value after its scale and shift. `S` is the form of PReLU's slopes: nothing in a model's
/// description, an offset into the parameter slab in a program, a view of a buffer on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation<S = ()> {
    /// x.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// x where x > 0, `slope[c] x` elsewhere; C slopes.
    PRelu(S),
}

impl<S> Activation<S> {
    /// The same activation with its slopes given in another form.
    pub fn map<T>(self, slopes: impl FnOnce(S) -> T) -> Activation<T> {
        match self {
            Activation::Identity => Activation::Identity,
            Activation::Relu => Activation::Relu,
            Activation::Relu6 => Activation::Relu6,
            Activation::PRelu(s) => Activation::PRelu(slopes(s)),
        }
    }

    /// Whether a value stays as it is.
    pub fn is_identity(&self) -> bool {
        matches!(self, Activation::Identity)
    }
}
