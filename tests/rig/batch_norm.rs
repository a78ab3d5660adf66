//! Batch norm: moments, coefficients, and the gradients of its parameters and of PReLU's slopes.

use super::{Case, Rig, named};
use arcface_cu::Result;
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{
    Backend, BatchNormAt, BatchNormBprop, BatchNormFprop, BatchNormMoments, PReluBprop, bn, sums,
};

/// Moments of a tensor whose values lie around `centre`.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    pub rows: Rows,
    pub centre: f32,
}

impl Case for Moments {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let rows = self.rows;
        let mut x = named("x", rows.len());
        x.iter_mut().for_each(|x| *x += self.centre);
        let x = rig.tensor("x", x)?;
        let mut moments = rig.poisoned(bn::moments_len(rows.c))?;
        rig.run(|backend| {
            backend.batch_norm_moments(BatchNormMoments {
                rows,
                x: &x,
                moments: &mut moments,
            })
        })?;
        rig.keep([("moments", moments)])
    }
}

/// Which parameters a batch norm has, and its constants.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub rows: Rows,
    pub gamma: bool,
    pub beta: bool,
    pub epsilon: f32,
    pub momentum: f32,
}

impl Norm {
    fn at(&self, gamma: usize, beta: usize, statistics: usize) -> BatchNormAt {
        BatchNormAt {
            gamma: self.gamma.then_some(gamma),
            beta: self.beta.then_some(beta),
            statistics,
            epsilon: self.epsilon,
            momentum: self.momentum,
        }
    }
}

/// From moments, with means around `centre`, to coefficients and running statistics.
#[derive(Clone, Copy, Debug)]
pub struct Fprop {
    pub norm: Norm,
    pub centre: f32,
}

impl Case for Fprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let (rows, c) = (self.norm.rows, self.norm.rows.c);
        let mut moments = named("moments", bn::moments_len(c));
        let (means, variances) = moments.split_at_mut(c);
        means.iter_mut().for_each(|v| *v += self.centre);
        variances.iter_mut().for_each(|v| *v = v.abs());
        let moments = rig.filled("moments", moments)?;
        let [gamma, beta] = ["gamma", "beta"].map(|name| (name, named(name, c)));
        let (params, [gamma, beta]) = rig.slab([gamma, beta])?;
        let running = ("statistics", named("statistics", 2 * c));
        let (mut statistics, [running]) = rig.slab([running])?;
        let mut forward = rig.poisoned(bn::forward_len(c))?;
        rig.run(|backend| {
            backend.batch_norm_fprop(BatchNormFprop {
                rows,
                moments: &moments,
                params: &params,
                at: self.norm.at(gamma, beta, running),
                statistics: &mut statistics,
                forward: &mut forward,
            })
        })?;
        rig.keep([("forward", forward), ("statistics", statistics)])
    }
}

/// From channel sums to the gradients of gamma, beta and slopes, and the backward coefficients.
#[derive(Clone, Copy, Debug)]
pub struct Bprop {
    pub norm: Norm,
}

impl Case for Bprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let (rows, c) = (self.norm.rows, self.norm.rows.c);
        let sums = rig.random("sums", sums::len(c))?;
        let forward = rig.random("forward", bn::forward_len(c))?;
        // What is there is replaced, or stays where the batch norm has no such parameter.
        let parts = ["gamma", "beta", "slopes"].map(|name| (name, named(name, c)));
        let (mut grads, [gamma, beta, slope_at]) = rig.slab(parts)?;
        let mut backward = rig.poisoned(bn::backward_len(c))?;
        rig.run(|backend| {
            backend.batch_norm_bprop(BatchNormBprop {
                rows,
                sums: &sums,
                forward: &forward,
                grads: &mut grads,
                at: self.norm.at(gamma, beta, 0),
                backward: &mut backward,
            })?;
            backend.prelu_bprop(PReluBprop {
                c,
                sums: &sums,
                grads: &mut grads,
                slope_at,
            })
        })?;
        rig.keep([("grads", grads), ("backward", backward)])
    }
}
