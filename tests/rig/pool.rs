//! Max pooling and global average pooling.

use super::pending::{Behind, Target, To, Value};
use super::{Case, Rig};
use arcface_cu::Result;
use arcface_cu::backend::geometry::{GlobalPool, PerChannel, Rows};
use arcface_cu::backend::{
    Backend, GlobalAvgPoolDgrad, GlobalAvgPoolFprop, MaxPoolDgrad, MaxPoolFprop,
};

fn rows_in(geometry: &PerChannel) -> Rows {
    Rows {
        pixels: geometry.pixels_in(),
        c: geometry.c,
    }
}

/// The largest value of each window.
#[derive(Clone, Copy, Debug)]
pub struct Max {
    pub geometry: PerChannel,
    pub x: Behind,
}

impl Case for Max {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let geometry = self.geometry;
        let x = Value::new(rig, "x", rows_in(&geometry), self.x)?;
        let mut y = rig.poisoned_tensor(geometry.pixels_out() * geometry.c)?;
        rig.run(|backend| {
            backend.max_pool_fprop(MaxPoolFprop {
                geometry,
                x: x.lend(),
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}

/// The gradient of [`Max`].
#[derive(Clone, Copy, Debug)]
pub struct MaxDgrad {
    pub geometry: PerChannel,
    pub x: Behind,
    pub to: To,
}

impl Case for MaxDgrad {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let geometry = self.geometry;
        let dy = rig.random_tensor("dy", geometry.pixels_out() * geometry.c)?;
        let x = Value::new(rig, "x", rows_in(&geometry), self.x)?;
        let mut dx = Target::new(rig, rows_in(&geometry), self.to)?;
        rig.run(|backend| {
            backend.max_pool_dgrad(MaxPoolDgrad {
                geometry,
                dy: &dy,
                x: x.lend(),
                dx: dx.lend(),
            })
        })?;
        dx.keep(rig)
    }
}

fn global_rows(geometry: &GlobalPool) -> Rows {
    Rows {
        pixels: geometry.n * geometry.pixels,
        c: geometry.c,
    }
}

/// The mean of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    pub geometry: GlobalPool,
    pub x: Behind,
}

impl Case for Mean {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let geometry = self.geometry;
        let x = Value::new(rig, "x", global_rows(&geometry), self.x)?;
        let mut y = rig.poisoned_tensor(geometry.n * geometry.c)?;
        rig.run(|backend| {
            backend.global_avg_pool_fprop(GlobalAvgPoolFprop {
                geometry,
                x: x.lend(),
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}

/// The gradient of [`Mean`].
#[derive(Clone, Copy, Debug)]
pub struct MeanDgrad {
    pub geometry: GlobalPool,
    pub to: To,
}

impl Case for MeanDgrad {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let geometry = self.geometry;
        let dy = rig.random_tensor("dy", geometry.n * geometry.c)?;
        let mut dx = Target::new(rig, global_rows(&geometry), self.to)?;
        rig.run(|backend| {
            backend.global_avg_pool_dgrad(GlobalAvgPoolDgrad {
                geometry,
                dy: &dy,
                dx: dx.lend(),
            })
        })?;
        dx.keep(rig)
    }
}
