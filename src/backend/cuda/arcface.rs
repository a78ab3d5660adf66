//! The ArcFace head: forward in one sweep over the classes, backward stretch by stretch.
//!
//! Scratch memory. Forward: two numbers for each row and tile of COLUMNS classes, N V / 16 bytes. Backward: the gradients
//! with respect to the cosines of one stretch of classes ([`GRADIENTS`], 16 MB, or N x COLUMNS where that is more), and up
//! to [`SPLITS`] partial d_x, which are 16 MB or less, or one N x D where that is more.

use super::driver::{Driver, Memory};
use super::launch::{self, Address, word};
use super::tiles::{
    ARCFACE, ARCFACE_PRODUCT, HEAD_COLUMNS, HEAD_DEPTH, HEAD_NORM_ROWS, HEAD_ROWS, Program, WARP,
};
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
    /// Parts of a stretch, `chunk` classes each, that have their own partial d_x.
    splits: usize,
    chunk: usize,
}

impl Walk {
    fn new(shard: &HeadShard) -> Self {
        let HeadShard { n, d, .. } = *shard;
        let classes = shard.classes();
        assert!(n > 0 && d > 0 && classes > 0, "an empty head: {shard:?}");
        let [rows, columns, depth] = [HEAD_ROWS, HEAD_COLUMNS, HEAD_DEPTH].map(|v| v as usize);
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
        self.n.div_ceil(HEAD_ROWS as usize)
    }

    /// Blocks of ROWS x COLUMNS that cover a matrix.
    fn tiles(rows: usize, columns: usize) -> u64 {
        blocks(rows as u64, HEAD_ROWS) * blocks(columns as u64, HEAD_COLUMNS)
    }

    /// The program of the matrix products for rows of D numbers.
    fn product(&self) -> &'static Program {
        &ARCFACE_PRODUCT[usize::from(self.d.is_multiple_of(4))]
    }
}

impl From<&Margin> for launch::HeadMargin {
    fn from(margin: &Margin) -> Self {
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
        launch::HeadMargin {
            scale,
            m1,
            m2,
            m3,
            clamp,
            offset: margin.offset(),
            guarded: (pi_guard == PiGuard::Linear).into(),
            straight: (gradient == MarginGradient::StraightThrough).into(),
            normalise: normalise.into(),
        }
    }
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
    fn address(&mut self, driver: &mut D, labels: &[u32]) -> Result<Address> {
        if self.labels != labels {
            // Forget the old labels first: a failed upload must not look like a finished one.
            self.labels.clear();
            let memory = self.memory.reserve(driver, size_of_val(labels))?;
            driver.upload(bytes_of(labels), memory, 0)?;
            self.labels.extend_from_slice(labels);
        }
        Ok(Address(self.memory.reserve(driver, 0)?.address()))
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
    let labels = cuda.labels.address(&mut cuda.driver, labels)?;
    let tiles = blocks(v as u64, HEAD_COLUMNS);
    let square_tiles = blocks(v as u64, HEAD_NORM_ROWS);
    let per_tile = tiles as usize * n;
    let sums = cuda.scratch(2 * per_tile + square_tiles as usize)?;
    let largest = sums.floats(per_tile);
    let squares = largest.floats(per_tile);
    let head_margin = margin.into();

    let kernel = launch::ArcfaceNorms {
        classes: classes.at(0),
        v: word(v),
        d: word(d),
        normalise: margin.normalise.into(),
        inverse_norms: inverse_norms.at(0),
        squares,
    };
    cuda.launch(&ARCFACE, [square_tiles, 1, 1], 0, kernel)?;

    let kernel = launch::ArcfaceTargets {
        x: x.at(0),
        classes: classes.at(0),
        labels,
        margin: head_margin,
        n: word(n),
        d: word(d),
        first: word(shard.first),
        v: word(v),
        rows: rows.at(0),
    };
    let grid = [blocks(n as u64, ARCFACE.threads / WARP), 1, 1];
    cuda.launch(&ARCFACE, grid, 0, kernel)?;

    let kernel = launch::ArcfaceFprop {
        x: x.at(0),
        classes: classes.at(0),
        labels,
        rows: rows.at(0),
        inverse_norms: inverse_norms.at(0),
        margin: head_margin,
        n: word(n),
        d: word(d),
        first: word(shard.first),
        v: word(v),
        sums,
        largest,
    };
    let grid = [Walk::tiles(n, v), 1, 1];
    cuda.launch(walk.product(), grid, 0, kernel)?;

    let kernel = launch::ArcfaceRows {
        sums,
        largest,
        squares,
        labels,
        margin: head_margin,
        n: word(n),
        tiles: tiles as u32,
        square_tiles: square_tiles as u32,
        first: word(shard.first),
        v: word(v),
        rows: rows.at(0),
    };
    let grid = [blocks(n as u64, WARP) + 1, 1, 1];
    cuda.launch(&ARCFACE, grid, 0, kernel)
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
    let labels = cuda.labels.address(&mut cuda.driver, labels)?;
    // The vectors that are read 16 bytes at a time come first: their lengths are multiples of 4.
    let mut end = 0;
    let mut place = |len: usize| {
        let begin = end;
        end += len;
        begin
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
        [gradient, partials, q_parts, factors, targets, refused].map(|at| scratch.floats(at));
    let (head_margin, normalise) = (margin.into(), margin.normalise.into());

    let kernel = launch::ArcfaceFactors {
        rows: rows.at(0),
        margin: head_margin,
        n: word(n),
        factors,
        targets,
        refused,
    };
    cuda.launch(&ARCFACE, [1, 1, 1], 0, kernel)?;

    for begin in (0..v).step_by(walk.stretch) {
        let count = walk.stretch.min(v - begin);
        let stretch_classes = classes.at(begin * d);
        let kernel = launch::ArcfaceGradients {
            x: x.at(0),
            classes: stretch_classes,
            labels,
            rows: rows.at(0),
            inverse_norms: inverse_norms.at(begin),
            margin: head_margin,
            factors,
            targets,
            refused,
            n: word(n),
            d: word(d),
            first: word(shard.first + begin),
            count: word(count),
            stride: word(walk.stretch),
            gradient,
            q_parts,
        };
        let grid = [Walk::tiles(n, count), 1, 1];
        cuda.launch(walk.product(), grid, 0, kernel)?;

        let kernel = launch::ArcfaceDx {
            gradient,
            classes: stretch_classes,
            refused,
            n: word(n),
            d: word(d),
            count: word(count),
            stride: word(walk.stretch),
            chunk: word(walk.chunk),
            begins: (begin == 0).into(),
            partials,
        };
        let grid = [Walk::tiles(n, d), walk.splits as u64, 1];
        cuda.launch(walk.product(), grid, 0, kernel)?;

        let kernel = launch::ArcfaceUpdate {
            gradient,
            x: x.at(0),
            q_parts,
            refused,
            normalise,
            n: word(n),
            d: word(d),
            count: word(count),
            stride: word(walk.stretch),
            decay,
            form: sgd::form(step.form),
            lr: step.lr,
            mu: step.momentum,
            classes: stretch_classes,
            momentum: momentum.at(begin * d),
        };
        let grid = [Walk::tiles(count, d), 1, 1];
        cuda.launch(walk.product(), grid, 0, kernel)?;
    }

    let kernel = launch::ArcfaceFinish {
        partials,
        x: x.at(0),
        rows: rows.at(0),
        refused,
        normalise,
        n: word(n),
        d: word(d),
        splits: word(walk.splits),
        out: dx.at(0),
    };
    cuda.launch(&ARCFACE, [n as u64, 1, 1], 0, kernel)
}
