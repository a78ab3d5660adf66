//! The ArcFace head on a shard of the classes.

use super::{Case, Rig, named};
use arcface_cu::Result;
use arcface_cu::backend::geometry::HeadShard;
use arcface_cu::backend::head_rows;
use arcface_cu::backend::margin::Margin;
use arcface_cu::backend::{
    ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Backend, ClassRows, Element, SgdStep,
};

/// The forward pass on the shard of `v` classes in all.
#[derive(Clone, Copy, Debug)]
pub struct Fprop {
    pub shard: HeadShard,
    pub v: usize,
    pub margin: Margin,
}

impl Fprop {
    /// A head that holds all classes.
    pub fn whole(n: usize, d: usize, v: usize, margin: Margin) -> Self {
        let shard = HeadShard {
            n,
            d,
            first: 0,
            last: v,
        };
        Fprop { shard, v, margin }
    }

    /// The same classes, embeddings and labels on another shard.
    pub fn on(mut self, first: usize, last: usize) -> Self {
        (self.shard.first, self.shard.last) = (first, last);
        self
    }

    /// Embeddings, all class rows, and labels.
    pub fn data(&self) -> (Vec<f32>, Vec<f32>, Vec<u32>) {
        let HeadShard { n, d, .. } = self.shard;
        let (mut x, mut w) = (named("x", n * d), named("classes", self.v * d));
        // Lengths from 0.5 to several: normalisation must matter.
        for (i, x) in x.chunks_mut(d).enumerate() {
            x.iter_mut().for_each(|x| *x *= 0.5 + i as f32 * 0.1);
        }
        for (i, w) in w.chunks_mut(d).enumerate() {
            w.iter_mut().for_each(|w| *w *= 0.1 + (i % 5) as f32 * 0.2);
        }
        // The first, the last, one class twice.
        let labels: Vec<u32> = (0..n)
            .map(|i| match i {
                0 => self.v as u32 - 1,
                1 => 0,
                _ => (i / 2 * 37 % self.v) as u32,
            })
            .collect();
        // Some near their class, one opposite to it (guard and clamp act there).
        for (i, label) in labels.iter().enumerate() {
            let w = &w[*label as usize * d..][..d];
            let pull = [0.0, 2.0, -9.0, 0.5, 30.0][i % 5];
            for (x, w) in x[i * d..][..d].iter_mut().zip(w) {
                *x += pull * w;
            }
        }
        (x, w, labels)
    }
}

/// What both passes read and write.
struct Head<T> {
    x: T,
    classes: ClassRows<T>,
    labels: Vec<u32>,
    rows: T,
}

impl<T> Head<T> {
    fn new<B: Backend<Buffer = T>>(rig: &mut Rig<'_, B>, case: &Fprop) -> Result<Self> {
        let HeadShard { n, d, first, last } = case.shard;
        let (x, classes, labels) = case.data();
        let mut head = Head {
            x: rig.filled("x", x)?,
            classes: ClassRows {
                rows: rig.filled("classes", classes[first * d..last * d].to_vec())?,
                squares: rig.poisoned(last - first)?,
                rounded: match rig.element {
                    Element::F32 => None,
                    Element::Bf16 => Some(rig.poisoned_tensor((last - first) * d)?),
                },
            },
            labels,
            rows: rig.poisoned(head_rows::len(n))?,
        };
        rig.backend.arcface_prepare(ArcFacePrepare {
            v: last - first,
            d,
            classes: head.classes.lend_mut(),
        })?;
        Ok(head)
    }

    fn fprop<B: Backend<Buffer = T>>(&mut self, backend: &mut B, case: &Fprop) -> Result<()> {
        backend.arcface_fprop(ArcFaceFprop {
            shard: case.shard,
            margin: &case.margin,
            x: &self.x,
            classes: self.classes.lend(),
            labels: &self.labels,
            rows: &mut self.rows,
        })
    }
}

/// Hands over class rows with what is kept of them.
fn keep_classes<B: Backend>(rig: &mut Rig<'_, B>, classes: ClassRows<B::Buffer>) -> Result<()> {
    rig.keep([("classes", classes.rows), ("squares", classes.squares)])?;
    (classes.rounded).map_or(Ok(()), |rounded| rig.keep([("rounded", rounded)]))
}

impl Case for Fprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let mut head = Head::new(rig, self)?;
        rig.run(|backend| head.fprop(backend, self))?;
        rig.keep([("rows", head.rows)])?;
        keep_classes(rig, head.classes)
    }
}

/// The backward pass and the update, after the device's own forward pass. A shard must be given rows with the sums of all
/// classes.
#[derive(Clone, Copy, Debug)]
pub struct Bprop {
    pub forward: Fprop,
    pub decay: f32,
    pub step: SgdStep,
}

impl Case for Bprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let HeadShard { n, d, .. } = self.forward.shard;
        let mut head = Head::new(rig, &self.forward)?;
        let mut momentum = rig.random("momentum", self.forward.shard.classes() * d)?;
        let mut dx = rig.poisoned(n * d)?;
        head.fprop(rig.backend, &self.forward)?;
        rig.give("rows", &mut head.rows)?;
        rig.run(|backend| {
            backend.arcface_bprop(ArcFaceBprop {
                shard: self.forward.shard,
                margin: &self.forward.margin,
                x: &head.x,
                labels: &head.labels,
                rows: &head.rows,
                classes: head.classes.lend_mut(),
                momentum: &mut momentum,
                decay: self.decay,
                step: self.step,
                dx: &mut dx,
            })
        })?;
        rig.keep([("dx", dx), ("momentum", momentum)])?;
        keep_classes(rig, head.classes)
    }
}
