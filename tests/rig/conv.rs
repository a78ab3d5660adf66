//! Convolutions of both kinds, in all three directions.

use super::pending::{Activated, Behind, Grad, Target, To, Value};
use super::{Case, Filters, POISON, Rig, buffer, named};
use arcface_cu::Result;
use arcface_cu::backend::geometry::{Conv2d, Padding, PerChannel, Rows, Window};
use arcface_cu::backend::{
    Activation, Backend, Conv2dDgrad, Conv2dFprop, Conv2dPrepare, Conv2dWgrad, DepthwiseDgrad,
    DepthwiseFprop, DepthwiseWgrad, Element, Epilogue, FilterAt, GradTarget, Pending, PendingGrad,
    bn,
};
use std::fmt::Debug;

/// A window; padding: top, bottom, left, right.
pub fn window(
    size: (usize, usize),
    taps: (usize, usize),
    stride: usize,
    [top, bottom, left, right]: [usize; 4],
) -> Window {
    let pad = Padding {
        top,
        bottom,
        left,
        right,
    };
    Window::new(size, taps, stride, pad).expect("a valid window")
}

/// A parameter slab, and where filter and bias lie in it.
type Slab<'a, T> = (&'a Filters<T>, FilterAt);

/// The geometry of a convolution, which chooses the operation.
pub trait Geometry: Copy + Debug + Sync {
    /// Rows of the input and of the output.
    fn rows(&self) -> [Rows; 2];
    /// Elements of the filter.
    fn filter_len(&self) -> usize;

    /// The filter as inference prepares it, where the device has a form of its own.
    fn prepare<B: Backend>(self, _: &mut B, _: Slab<'_, B::Buffer>) -> Result<Option<B::Buffer>> {
        Ok(None)
    }

    /// y.
    fn fprop<B: Backend>(
        self,
        backend: &mut B,
        x: Pending<'_, B::Buffer>,
        slab: Slab<'_, B::Buffer>,
        prepared: Option<&B::Buffer>,
        y: &mut B::Buffer,
        epilogue: Epilogue<'_, B::Buffer>,
    ) -> Result<()>;

    /// The gradient of x.
    fn dgrad<B: Backend>(
        self,
        backend: &mut B,
        dy: PendingGrad<'_, B::Buffer>,
        slab: Slab<'_, B::Buffer>,
        dx: GradTarget<'_, B::Buffer>,
    ) -> Result<()>;

    /// The gradient of filter and bias.
    fn wgrad<B: Backend>(
        self,
        backend: &mut B,
        dy: PendingGrad<'_, B::Buffer>,
        x: Pending<'_, B::Buffer>,
        grads: &mut B::Buffer,
        filter: FilterAt,
    ) -> Result<()>;
}

/// The three directions by the operations of one kind of convolution.
macro_rules! directions {
    (
        $slab:ident, $prepared:ident;
        $fprop:ident $Fprop:ident { $($of_fprop:ident: $forward:expr),* },
        $dgrad:ident $Dgrad:ident { $($of_dgrad:ident: $backward:expr),* },
        $wgrad:ident $Wgrad:ident
    ) => {
        fn filter_len(&self) -> usize {
            self.filter_len()
        }

        fn fprop<B: Backend>(
            self,
            backend: &mut B,
            x: Pending<'_, B::Buffer>,
            ($slab, filter): Slab<'_, B::Buffer>,
            $prepared: Option<&B::Buffer>,
            y: &mut B::Buffer,
            epilogue: Epilogue<'_, B::Buffer>,
        ) -> Result<()> {
            backend.$fprop($Fprop {
                geometry: self,
                x,
                $($of_fprop: $forward,)*
                filter,
                y,
                epilogue,
            })
        }

        fn dgrad<B: Backend>(
            self,
            backend: &mut B,
            dy: PendingGrad<'_, B::Buffer>,
            ($slab, filter): Slab<'_, B::Buffer>,
            dx: GradTarget<'_, B::Buffer>,
        ) -> Result<()> {
            backend.$dgrad($Dgrad {
                geometry: self,
                dy,
                $($of_dgrad: $backward,)*
                filter,
                dx,
            })
        }

        fn wgrad<B: Backend>(
            self,
            backend: &mut B,
            dy: PendingGrad<'_, B::Buffer>,
            x: Pending<'_, B::Buffer>,
            grads: &mut B::Buffer,
            filter: FilterAt,
        ) -> Result<()> {
            backend.$wgrad($Wgrad {
                geometry: self,
                dy,
                x,
                grads,
                filter,
            })
        }
    };
}

impl Geometry for Conv2d {
    fn rows(&self) -> [Rows; 2] {
        [(self.pixels_in(), self.c), (self.pixels_out(), self.k)]
            .map(|(pixels, c)| Rows { pixels, c })
    }

    fn prepare<B: Backend>(
        self,
        backend: &mut B,
        (slab, filter): Slab<'_, B::Buffer>,
    ) -> Result<Option<B::Buffer>> {
        let len = B::prepared_len(&self);
        if len == 0 {
            return Ok(None);
        }
        let mut prepared = buffer(backend, Element::F32, &vec![POISON; len])?;
        backend.conv2d_prepare(Conv2dPrepare {
            geometry: self,
            filters: slab.of_products(),
            filter,
            prepared: &mut prepared,
        })?;
        Ok(Some(prepared))
    }

    directions!(
        slab, prepared;
        conv2d_fprop Conv2dFprop {
            params: &slab.params,
            filters: slab.of_products(),
            prepared: prepared
        },
        conv2d_dgrad Conv2dDgrad { filters: slab.of_products() },
        conv2d_wgrad Conv2dWgrad
    );
}

impl Geometry for PerChannel {
    fn rows(&self) -> [Rows; 2] {
        [self.pixels_in(), self.pixels_out()].map(|pixels| Rows { pixels, c: self.c })
    }

    directions!(
        slab, _prepared;
        depthwise_fprop DepthwiseFprop { params: &slab.params },
        depthwise_dgrad DepthwiseDgrad { params: &slab.params },
        depthwise_wgrad DepthwiseWgrad
    );
}

/// A random filter and bias.
fn filters<B: Backend>(
    rig: &mut Rig<'_, B>,
    geometry: &impl Geometry,
    bias: bool,
) -> Result<(Filters<B::Buffer>, FilterAt)> {
    let [_, rows] = geometry.rows();
    let weights = ("weights", named("weights", geometry.filter_len()));
    let biases = named("bias", if bias { rows.c } else { 0 });
    let (slab, [weights, begin]) = rig.filters([weights, ("bias", biases)])?;
    let bias = bias.then_some(begin);
    Ok((slab, FilterAt { weights, bias }))
}

/// What an fprop does with its output.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Raw,
    Moments,
    /// As inference runs it, with a prepared filter; with a residual, or without; then the activation.
    Activate(bool, Activation),
}

/// y = conv(x, w) (+ bias), then the epilogue.
#[derive(Clone, Copy, Debug)]
pub struct Fprop<G> {
    pub geometry: G,
    pub x: Behind,
    pub bias: bool,
    pub end: End,
}

impl<G: Geometry> Case for Fprop<G> {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let [rows_in, rows] = self.geometry.rows();
        let x = Value::new(rig, "x", rows_in, self.x)?;
        let (slab, filter) = filters(rig, &self.geometry, self.bias)?;
        let mut y = rig.poisoned_tensor(rows.len())?;
        let (mut moments, mut residual, mut activated) = (None, None, None);
        match self.end {
            End::Raw => {}
            End::Moments => moments = Some(rig.poisoned(bn::moments_len(rows.c))?),
            End::Activate(with_residual, activation) => {
                if with_residual {
                    residual = Some(rig.random_tensor("residual", rows.len())?);
                }
                activated = Some(Activated::new(rig, "slopes", (activation, rows.c))?);
            }
        }
        let prepared = match self.end {
            End::Activate(..) => self.geometry.prepare(rig.backend, (&slab, filter))?,
            End::Raw | End::Moments => None,
        };
        rig.run(|backend| {
            let epilogue = match (&mut moments, &activated) {
                (Some(moments), _) => Epilogue::Moments(moments),
                (_, Some(activated)) => Epilogue::Activate {
                    residual: residual.as_ref(),
                    activation: activated.lend(),
                },
                _ => Epilogue::Raw,
            };
            let slab = (&slab, filter);
            let prepared = prepared.as_ref();
            (self.geometry).fprop(backend, x.lend(), slab, prepared, &mut y, epilogue)
        })?;
        rig.keep([("y", y)])?;
        rig.results
            .extend(moments.map(|moments| ("moments", moments)));
        Ok(())
    }
}

/// The gradient with respect to the input.
#[derive(Clone, Copy, Debug)]
pub struct Dgrad<G> {
    pub geometry: G,
    pub batch_norm: bool,
    pub to: To,
}

impl<G: Geometry> Case for Dgrad<G> {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let [rows_in, rows_out] = self.geometry.rows();
        let dy = Grad::new(rig, rows_out, self.batch_norm)?;
        let (slab, filter) = filters(rig, &self.geometry, false)?;
        let mut dx = Target::new(rig, rows_in, self.to)?;
        rig.run(|backend| {
            let slab = (&slab, filter);
            self.geometry.dgrad(backend, dy.lend(), slab, dx.lend())
        })?;
        dx.keep(rig)
    }
}

/// The gradient with respect to the filter and its bias.
#[derive(Clone, Copy, Debug)]
pub struct Wgrad<G> {
    pub geometry: G,
    pub batch_norm: bool,
    pub x: Behind,
    pub bias: bool,
}

impl<G: Geometry> Case for Wgrad<G> {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let [rows_in, rows_out] = self.geometry.rows();
        let dy = Grad::new(rig, rows_out, self.batch_norm)?;
        let x = Value::new(rig, "x", rows_in, self.x)?;
        // What is there is replaced.
        let (
            Filters {
                params: mut grads, ..
            },
            filter,
        ) = filters(rig, &self.geometry, self.bias)?;
        rig.run(|backend| (self.geometry).wgrad(backend, dy.lend(), x.lend(), &mut grads, filter))?;
        rig.keep([("grads", grads)])
    }
}
