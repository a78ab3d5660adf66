//! Dropout.

use super::pending::{Behind, Target, To, Value};
use super::{Case, Rig};
use arcface_cu::Result;
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{Backend, Dropout, DropoutDgrad, DropoutFprop};

/// Dropout of a value.
#[derive(Clone, Copy, Debug)]
pub struct Fprop {
    pub rows: Rows,
    pub x: Behind,
    pub dropout: Dropout,
}

impl Case for Fprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let x = Value::new(rig, "x", self.rows, self.x)?;
        let mut y = rig.poisoned_tensor(self.rows.len())?;
        rig.run(|backend| {
            backend.dropout_fprop(DropoutFprop {
                rows: self.rows,
                x: x.lend(),
                dropout: self.dropout,
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}

/// Its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Dgrad {
    pub rows: Rows,
    pub dropout: Dropout,
    pub to: To,
}

impl Case for Dgrad {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let dy = rig.random_tensor("dy", self.rows.len())?;
        let mut dx = Target::new(rig, self.rows, self.to)?;
        rig.run(|backend| {
            backend.dropout_dgrad(DropoutDgrad {
                rows: self.rows,
                dy: &dy,
                dropout: self.dropout,
                dx: dx.lend(),
            })
        })?;
        dx.keep(rig)
    }
}
