//! The ArcFace head: forward in one sweep over the classes, backward stretch by stretch.
//!
//! Scratch memory. Forward: two numbers for each row and tile of COLUMNS classes, N V / 16 bytes. Backward: the gradients
//! with respect to the cosines of one stretch of classes ([`GRADIENTS`], 16 MB, or N x COLUMNS where that is more), and up
//! to [`SPLITS`] partial d_x, which are 16 MB or less, or one N x D where that is more.

// The trait's own argument lists.
#![allow(clippy::too_many_arguments)]

use super::args::{self, Arg};
use super::driver::{Driver, Memory};
use super::tiles::{ARCFACE, ARCFACE_PRODUCT, Program, WARP, by_channels};
use super::{Buffer, Cuda, Staging, blocks, bytes_of, sgd};
use crate::Result;
use crate::backend::geometry::HeadShard;
use crate::backend::margin::{Margin, MarginGradient, PiGuard};
use crate::backend::{ArcFaceBprop, ArcFaceFprop, head_rows};

/// Cosine gradients that exist at a time.
const GRADIENTS: usize = 4 << 20;
/// The most partial d_x, and the blocks that their sums are spread over.
const SPLITS: usize = 64;
const SPLIT_BLOCKS: usize = 512;

/// How the work is cut; this depends only on the shapes.
#[derive(Clone, Copy, Debug)]
struct Walk {
    n: usize,
    d: usize,
    classes: usize,
    /// Classes of a stretch, whole tiles.
    stretch: usize,
    /// Parts of a stretch that d_x is summed over apart, of `chunk` classes each.
    splits: usize,
    chunk: usize,
}

impl Walk {
    fn new(shard: &HeadShard) -> Self {
        let HeadShard { n, d, .. } = *shard;
        let classes = shard.classes();
        assert!(n > 0 && d > 0 && classes > 0, "an empty head: {shard:?}");
        let [rows, columns, depth] =
            ["ROWS", "COLUMNS", "DEPTH"].map(|name| ARCFACE.constant(name) as usize);
        let stretch =
            (GRADIENTS / n / columns * columns).clamp(columns, classes.next_multiple_of(columns));
        let tiles = n.div_ceil(rows) * d.div_ceil(columns);
        let splits = (SPLIT_BLOCKS / tiles).clamp(1, SPLITS.min(stretch / columns));
        Walk {
            n,
            d,
            classes,
            stretch,
            splits,
            chunk: stretch.div_ceil(splits).next_multiple_of(depth),
        }
    }

    fn row_tiles(&self) -> usize {
        self.n.div_ceil(ARCFACE.constant("ROWS") as usize)
    }

    /// Blocks of ROWS x COLUMNS that cover a matrix.
    fn tiles(rows: usize, columns: usize) -> u64 {
        blocks(rows as u64, ARCFACE.constant("ROWS"))
            * blocks(columns as u64, ARCFACE.constant("COLUMNS"))
    }

    /// The program of the matrix products for rows of D numbers.
    fn product(&self) -> &'static Program {
        by_channels(&ARCFACE_PRODUCT, self.d)
    }
}

/// `struct HeadMargin`.
fn margin_arg(margin: &Margin) -> Arg {
    let Margin {
        scale,
        m1,
        m2,
        m3,
        pi_guard,
        clamp,
        gradient,
        normalise,
    } = *margin;
    let arg = [scale, m1, m2, m3, clamp, margin.offset()]
        .into_iter()
        .fold(Arg::of("HeadMargin"), Arg::f32);
    [
        pi_guard == PiGuard::Linear,
        gradient == MarginGradient::StraightThrough,
        normalise,
    ]
    .into_iter()
    .fold(arg, |arg, flag| arg.u32(usize::from(flag)))
}

/// The batch's labels on the device. They are uploaded only when they differ from the last ones: the backward pass uses
/// the labels of the forward pass again.
pub(super) struct Labels<D: Driver> {
    labels: Vec<u32>,
    memory: Staging<D>,
}

impl<D: Driver> Labels<D> {
    pub(super) const EMPTY: Self = Labels {
        labels: Vec::new(),
        memory: Staging::EMPTY,
    };

    /// Their address.
    fn address(&mut self, driver: &mut D, labels: &[u32]) -> Result<u64> {
        if self.labels != labels {
            // Forget the old labels first: a failed upload must not look like a finished one.
            self.labels.clear();
            let memory = self.memory.reserve(driver, size_of_val(labels))?;
            driver.upload(bytes_of(labels), memory, 0)?;
            self.labels.extend_from_slice(labels);
        }
        Ok(self.memory.reserve(driver, 0)?.address())
    }
}

fn check<M>(
    walk: &Walk,
    x: &Buffer<M>,
    labels: &[u32],
    classes: &Buffer<M>,
    inverse_norms: &Buffer<M>,
    rows: &Buffer<M>,
) {
    let Walk {
        n, d, classes: v, ..
    } = *walk;
    assert!(x.len >= n * d, "x: {} floats, not {n} x {d}", x.len);
    assert_eq!(labels.len(), n, "labels");
    assert!(classes.len >= v * d, "class rows");
    assert!(inverse_norms.len >= v, "inverse norms");
    assert!(rows.len >= head_rows::len(n), "rows: {}", rows.len);
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: ArcFaceFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let ArcFaceFprop {
        ref shard,
        margin,
        x,
        classes,
        labels,
        inverse_norms,
        rows,
    } = op;
    let walk = Walk::new(shard);
    check(&walk, x, labels, classes, inverse_norms, rows);
    let Walk {
        n, d, classes: v, ..
    } = walk;
    let labels = args::address(cuda.labels.address(&mut cuda.driver, labels)?);
    let tiles = blocks(v as u64, ARCFACE.constant("COLUMNS"));
    let square_tiles = blocks(v as u64, ARCFACE.constant("NORM_ROWS"));
    let per_tile = tiles as usize * n;
    let sums = cuda.scratch(2 * per_tile + square_tiles as usize)?;
    let largest = sums + 4 * per_tile as u64;
    let squares = largest + 4 * per_tile as u64;
    let margin_arg = margin_arg(margin);

    let args = [
        args::buffer(classes),
        args::u32(v),
        args::u32(d),
        args::u32(usize::from(margin.normalise)),
        args::buffer(inverse_norms),
        args::address(squares),
    ];
    cuda.launch(&ARCFACE, "arcface_norms", [square_tiles, 1, 1], 0, &args)?;

    let args = [
        args::buffer(x),
        args::buffer(classes),
        labels,
        margin_arg,
        args::u32(n),
        args::u32(d),
        args::u32(shard.first),
        args::u32(v),
        args::buffer(rows),
    ];
    let grid = [blocks(n as u64, ARCFACE.threads / WARP), 1, 1];
    cuda.launch(&ARCFACE, "arcface_targets", grid, 0, &args)?;

    let args = [
        args::buffer(x),
        args::buffer(classes),
        labels,
        args::buffer(rows),
        args::buffer(inverse_norms),
        margin_arg,
        args::u32(n),
        args::u32(d),
        args::u32(shard.first),
        args::u32(v),
        args::address(sums),
        args::address(largest),
    ];
    let grid = [Walk::tiles(n, v), 1, 1];
    cuda.launch(walk.product(), "arcface_fprop", grid, 0, &args)?;

    let args = [
        args::address(sums),
        args::address(largest),
        args::address(squares),
        labels,
        margin_arg,
        args::u32(n),
        args::u32(tiles as usize),
        args::u32(square_tiles as usize),
        args::u32(shard.first),
        args::u32(v),
        args::buffer(rows),
    ];
    let grid = [blocks(n as u64, WARP) + 1, 1, 1];
    cuda.launch(&ARCFACE, "arcface_rows", grid, 0, &args)
}

pub(super) fn bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: ArcFaceBprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let ArcFaceBprop {
        ref shard,
        margin,
        x,
        labels,
        inverse_norms,
        rows,
        classes,
        momentum,
        decay,
        ref step,
        dx,
    } = op;
    let walk = Walk::new(shard);
    check(&walk, x, labels, classes, inverse_norms, rows);
    let Walk {
        n, d, classes: v, ..
    } = walk;
    assert!(momentum.len >= v * d, "momentum");
    assert!(dx.len >= n * d, "d_x: {} floats, not {n} x {d}", dx.len);
    let labels = args::address(cuda.labels.address(&mut cuda.driver, labels)?);
    // The vectors that are read 16 bytes at a time come first: their lengths are multiples of 4.
    let mut end = 0;
    let mut place = |len: usize| {
        let begin = end;
        end += len;
        4 * begin as u64
    };
    let [gradient, partials, q_parts, factors, targets, refused] = [
        n * walk.stretch,
        walk.splits * n * d,
        walk.row_tiles() * walk.stretch,
        n,
        n,
        1,
    ]
    .map(&mut place);
    let scratch = cuda.scratch(end)?;
    let [gradient, partials, q_parts, factors, targets, refused] =
        [gradient, partials, q_parts, factors, targets, refused]
            .map(|at| args::address(scratch + at));
    let (margin_arg, normalise) = (margin_arg(margin), usize::from(margin.normalise));

    let args = [
        args::buffer(rows),
        margin_arg,
        args::u32(n),
        factors,
        targets,
        refused,
    ];
    cuda.launch(&ARCFACE, "arcface_factors", [1, 1, 1], 0, &args)?;

    for begin in (0..v).step_by(walk.stretch) {
        let count = walk.stretch.min(v - begin);
        let stretch_classes = args::address(classes.at(begin * d));
        let args = [
            args::buffer(x),
            stretch_classes,
            labels,
            args::buffer(rows),
            args::address(inverse_norms.at(begin)),
            margin_arg,
            factors,
            targets,
            refused,
            args::u32(n),
            args::u32(d),
            args::u32(shard.first + begin),
            args::u32(count),
            args::u32(walk.stretch),
            gradient,
            q_parts,
        ];
        let grid = [Walk::tiles(n, count), 1, 1];
        cuda.launch(walk.product(), "arcface_gradients", grid, 0, &args)?;

        let args = [
            gradient,
            stretch_classes,
            refused,
            args::u32(n),
            args::u32(d),
            args::u32(count),
            args::u32(walk.stretch),
            args::u32(walk.chunk),
            args::u32(usize::from(begin == 0)),
            partials,
        ];
        let grid = [Walk::tiles(n, d), walk.splits as u64, 1];
        cuda.launch(walk.product(), "arcface_dx", grid, 0, &args)?;

        let args = [
            gradient,
            args::buffer(x),
            q_parts,
            refused,
            args::u32(normalise),
            args::u32(n),
            args::u32(d),
            args::u32(count),
            args::u32(walk.stretch),
            args::f32(decay),
            args::u32(sgd::form(step.form)),
            args::f32(step.lr),
            args::f32(step.momentum),
            stretch_classes,
            args::address(momentum.at(begin * d)),
        ];
        let grid = [Walk::tiles(count, d), 1, 1];
        cuda.launch(walk.product(), "arcface_update", grid, 0, &args)?;
    }

    let args = [
        partials,
        args::buffer(x),
        args::buffer(rows),
        refused,
        args::u32(normalise),
        args::u32(n),
        args::u32(d),
        args::u32(walk.splits),
        args::buffer(dx),
    ];
    cuda.launch(&ARCFACE, "arcface_finish", [n as u64, 1, 1], 0, &args)
}
