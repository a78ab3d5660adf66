//! Operands that are pending: values behind batch norm and an activation, gradients behind batch norm, and targets of
//! gradients, with or without their finish.

use super::{Rig, named};
use arcface_cu::Result;
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{
    Activation, Backend, Close, GradTarget, Pending, PendingGrad, View, bn, sums,
};

/// Every activation.
pub const ACTIVATIONS: [Activation; 4] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu6,
    Activation::PRelu(()),
];

/// An activation with its slopes.
pub struct Activated<T> {
    activation: Activation,
    slopes: Option<(T, usize)>,
}

impl<T> Activated<T> {
    pub fn new<B: Backend<Buffer = T>>(
        rig: &mut Rig<'_, B>,
        name: &str,
        (activation, c): (Activation, usize),
    ) -> Result<Self> {
        let mut slopes = None;
        if activation == Activation::PRelu(()) {
            // Some slopes are negative.
            let (slab, [at]) = rig.slab([(name, named(name, c))])?;
            slopes = Some((slab, at));
        }
        Ok(Activated { activation, slopes })
    }

    pub fn lend(&self) -> Activation<View<'_, T>> {
        self.activation.map(|()| {
            let (buffer, offset) = self.slopes.as_ref().expect("a PReLU has slopes");
            View {
                buffer,
                offset: *offset,
            }
        })
    }
}

/// What is pending on a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behind {
    /// Whether it has a scale and a shift.
    pub affine: bool,
    /// Its activation.
    pub activation: Activation,
}

impl Behind {
    /// Nothing is pending.
    pub const NOTHING: Self = Behind {
        affine: false,
        activation: Activation::Identity,
    };

    /// Batch norm and an activation.
    pub const fn norm_and(activation: Activation) -> Self {
        Behind {
            affine: true,
            activation,
        }
    }

    /// Just an activation.
    pub const fn only(activation: Activation) -> Self {
        Behind {
            affine: false,
            activation,
        }
    }
}

/// A value.
pub struct Value<T> {
    raw: T,
    affine: Option<T>,
    activated: Activated<T>,
}

impl<T> Value<T> {
    pub fn new<B: Backend<Buffer = T>>(
        rig: &mut Rig<'_, B>,
        name: &str,
        rows: Rows,
        behind: Behind,
    ) -> Result<Self> {
        // Wide enough that ReLU6 cuts on both sides.
        let raw = named(name, rows.len()).iter().map(|v| 3.0 * v).collect();
        let raw = rig.tensor(name, raw)?;
        let mut affine = None;
        if behind.affine {
            let name = format!("{name} forward");
            let mut forward = named(&name, bn::forward_len(rows.c));
            for (i, v) in forward.iter_mut().enumerate() {
                *v = match i / rows.c {
                    bn::SCALE => 4.0 * *v + 0.5,
                    bn::SHIFT => 2.0 * *v + 0.5,
                    bn::RSTD => v.abs() + 0.5,
                    _ => *v,
                };
            }
            affine = Some(rig.filled(&name, forward)?);
        }
        let activated =
            Activated::new(rig, &format!("{name} slopes"), (behind.activation, rows.c))?;
        Ok(Value {
            raw,
            affine,
            activated,
        })
    }

    pub fn lend(&self) -> Pending<'_, T> {
        Pending {
            raw: &self.raw,
            affine: self.affine.as_ref(),
            activation: self.activated.lend(),
        }
    }
}

/// A gradient.
pub struct Grad<T> {
    g: T,
    batch_norm: Option<(T, T)>,
}

impl<T> Grad<T> {
    pub fn new<B: Backend<Buffer = T>>(
        rig: &mut Rig<'_, B>,
        rows: Rows,
        batch_norm: bool,
    ) -> Result<Self> {
        let g = rig.random_tensor("dy", rows.len())?;
        let mut coefficients = None;
        if batch_norm {
            let raw = rig.random_tensor("dy raw", rows.len())?;
            coefficients = Some((raw, rig.random("dy backward", bn::backward_len(rows.c))?));
        }
        Ok(Grad {
            g,
            batch_norm: coefficients,
        })
    }

    pub fn lend(&self) -> PendingGrad<'_, T> {
        PendingGrad {
            g: &self.g,
            batch_norm: self.batch_norm.as_ref().map(|(raw, k)| (raw, k)),
        }
    }
}

/// What a gradient's target does with a contribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct To {
    /// Adds it to what is there.
    pub accumulate: bool,
    /// Closes the gradient of such a value, with or without its sums.
    pub close: Option<(Behind, Sums)>,
}

/// Whether a finish takes the channel sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sums {
    Taken,
    Left,
}

impl To {
    /// Replaces what is there.
    pub const REPLACE: Self = To {
        accumulate: false,
        close: None,
    };

    /// Closes what is already there.
    pub const fn finish(value: Behind) -> Self {
        To {
            accumulate: true,
            close: Some((value, Sums::Taken)),
        }
    }

    /// Every kind of target for the gradient of such a value.
    pub fn all(value: Behind) -> [Self; 5] {
        let (taken, left) = (Some((value, Sums::Taken)), Some((value, Sums::Left)));
        [
            (false, None),
            (true, None),
            (false, taken),
            (true, taken),
            (true, left),
        ]
        .map(|(accumulate, close)| To { accumulate, close })
    }
}

/// A target.
pub struct Target<T> {
    g: T,
    accumulate: bool,
    close: Option<Value<T>>,
    sums: Option<T>,
}

impl<T> Target<T> {
    pub fn new<B: Backend<Buffer = T>>(rig: &mut Rig<'_, B>, rows: Rows, to: To) -> Result<Self> {
        let g = if to.accumulate {
            rig.random_tensor("dx", rows.len())?
        } else {
            rig.poisoned_tensor(rows.len())?
        };
        let (mut close, mut sums) = (None, None);
        if let Some((behind, taken)) = to.close {
            close = Some(Value::new(rig, "closed", rows, behind)?);
            if taken == Sums::Taken {
                sums = Some(rig.poisoned(sums::len(rows.c))?);
            }
        }
        Ok(Target {
            g,
            accumulate: to.accumulate,
            close,
            sums,
        })
    }

    pub fn lend(&mut self) -> GradTarget<'_, T> {
        GradTarget {
            g: &mut self.g,
            accumulate: self.accumulate,
            close: self.close.as_ref().map(|value| Close {
                value: value.lend(),
                sums: self.sums.as_mut(),
            }),
        }
    }

    /// Hands the rig the gradient and its sums.
    pub fn keep<B: Backend<Buffer = T>>(self, rig: &mut Rig<'_, B>) -> Result<()> {
        rig.keep([("dx", self.g)])?;
        rig.results.extend(self.sums.map(|sums| ("sums", sums)));
        Ok(())
    }
}
