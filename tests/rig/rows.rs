//! Operations on rows of channels: addition, the passing on and the finish of gradients.

use super::pending::{Activated, Behind, Grad, Target, To, Value};
use super::{Case, Rig};
use arcface_cu::Result;
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{Activation, AddDgrad, AddFprop, Backend, CloseGrad};

/// y = activation(a + b).
#[derive(Clone, Copy, Debug)]
pub struct Add {
    pub rows: Rows,
    pub a: Behind,
    pub b: Option<Behind>,
    pub activation: Activation,
}

impl Case for Add {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let rows = self.rows;
        let a = Value::new(rig, "a", rows, self.a)?;
        let b = self.b.map(|behind| Value::new(rig, "b", rows, behind));
        let b = b.transpose()?;
        let activated = Activated::new(rig, "slopes", (self.activation, rows.c))?;
        let mut y = rig.poisoned_tensor(rows.len())?;
        rig.run(|backend| {
            backend.add_fprop(AddFprop {
                rows,
                a: a.lend(),
                b: b.as_ref().map(Value::lend),
                activation: activated.lend(),
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}

/// Passes a gradient on.
#[derive(Clone, Copy, Debug)]
pub struct PassOn {
    pub rows: Rows,
    pub batch_norm: bool,
    pub to: To,
}

impl Case for PassOn {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let rows = self.rows;
        let dy = Grad::new(rig, rows, self.batch_norm)?;
        let mut dx = Target::new(rig, rows, self.to)?;
        rig.run(|backend| {
            backend.add_dgrad(AddDgrad {
                rows,
                dy: dy.lend(),
                dx: dx.lend(),
            })
        })?;
        dx.keep(rig)
    }
}

/// The finish of a gradient that is already in place.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    pub rows: Rows,
    pub value: Behind,
}

impl Case for Finish {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let rows = self.rows;
        let mut dx = Target::new(rig, rows, To::finish(self.value))?;
        rig.run(|backend| {
            let target = dx.lend();
            backend.close_grad(CloseGrad {
                rows,
                g: target.g,
                close: target.close.expect("a target with a finish"),
            })
        })?;
        dx.keep(rig)
    }
}
