//! The ArcFace head: forward in one sweep over the classes, backward stretch by stretch.
//!
//! Scratch memory. Both passes: the embeddings' unit vectors. Forward: two numbers for each row and walk of a block over the
//! classes ([`WALK_ROWS`], 4 MB). Backward: the gradients with respect to the cosines of one stretch of classes
//! ([`GRADIENTS`], 8 MB, or N x [`HEAD_STRETCH`] where that is more), which stays in the second-level cache; and partial d_x
//! ([`PARTIALS`], 16 MB, or one N x D where that is more).

use super::driver::{Driver, Memory};
use super::launch::{self, Address, word};
use super::tiles::{
    ARCFACE, ARCFACE_BPROP, ARCFACE_LOGITS, HEAD_STRETCH, SQUARE_COLUMNS, WARP, by_element,
    step_terms,
};
use super::tiling::{Tiling, is_chunks};
use super::{Buffer, Cuda, Program, Staging, blocks, bytes_of, sgd};
use crate::Result;
use crate::backend::geometry::HeadShard;
use crate::backend::margin::{Margin, MarginGradient, PiGuard};
use crate::backend::{ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, ClassRows, Element, head_rows};

/// The most blocks that walk the classes side by side, forward: four and more for every multiprocessor of the largest cards.
const WALKS: usize = 1024;
/// The most rows of their partial sums.
const WALK_ROWS: usize = 512 << 10;
/// Bytes of cosine gradients that exist at a time.
const GRADIENTS: usize = 8 << 20;
/// Bytes of all partial d_x, and the blocks that their sums are spread over.
const PARTIALS: usize = 16 << 20;
const SPLIT_BLOCKS: usize = 512;

/// How the work is cut; this depends only on the shapes.
#[derive(Clone, Copy)]
struct Walk {
    n: usize,
    d: usize,
    classes: usize,
    /// What the products multiply.
    element: Element,
    /// The tiles of N x V logits.
    logits: Tiling,
    /// Tiles of classes that a block of the forward pass walks, and how many blocks walk side by side.
    span: usize,
    walks: usize,
    /// Classes of a stretch of the backward pass: whole tiles.
    stretch: usize,
    /// The tiles of d_x, N x D, and of the update of a stretch.
    dx: Tiling,
    update: Tiling,
    /// Parts of a stretch, `chunk` classes each, that have their own partial d_x.
    splits: usize,
    chunk: usize,
}

impl Walk {
    fn new(shard: &HeadShard, element: Element) -> Self {
        let HeadShard { n, d, .. } = *shard;
        let classes = shard.classes();
        assert!(n > 0 && d > 0 && classes > 0, "an empty head: {shard:?}");
        let wide = is_chunks(element, d);
        let [n64, d64, v64] = [n, d, classes].map(|size| size as u64);
        let logits = Tiling::new(&ARCFACE_LOGITS, element, wide, n64, v64);
        let tiles = blocks(v64, logits.tile.n) as usize;
        let span = tiles.div_ceil((WALK_ROWS / n).clamp(1, WALKS));
        let whole = HEAD_STRETCH as usize;
        let stretch = (GRADIENTS / element.bytes() / n / whole * whole)
            .clamp(whole, classes.next_multiple_of(whole));
        let dx = Tiling::new(&ARCFACE_BPROP, element, wide, n64, d64);
        let most = (PARTIALS / 4 / (n * d)).min(SPLIT_BLOCKS / dx.tiles as usize);
        let splits = most.clamp(1, stretch / whole);
        Walk {
            n,
            d,
            classes,
            element,
            logits,
            span,
            walks: tiles.div_ceil(span),
            stretch,
            dx,
            update: Tiling::new(&ARCFACE_BPROP, element, wide, stretch as u64, d64),
            splits,
            chunk: stretch
                .div_ceil(splits)
                .next_multiple_of(step_terms(element) as usize),
        }
    }

    /// Tiles of batch rows.
    fn row_tiles(&self) -> usize {
        blocks(self.n as u64, self.logits.tile.m) as usize
    }

    /// The scratch of the forward pass, in floats: unit vectors, sums, largest logits, sums of squares.
    fn forward(&self) -> [usize; 4] {
        [
            self.unit(),
            self.walks * self.n,
            self.walks * self.n,
            self.walks,
        ]
    }

    /// The scratch of the backward pass, in floats: unit vectors, gradients, partial d_x, parts of q, parts of squares,
    /// factors, targets, whether the step is refused, tickets.
    fn backward(&self) -> [usize; 9] {
        let groups = self.d.div_ceil(SQUARE_COLUMNS as usize);
        [
            self.unit(),
            floats(self.element, self.n * self.stretch),
            self.splits * self.n * self.d,
            self.row_tiles() * self.stretch,
            groups * self.stretch,
            self.n,
            self.n,
            1,
            self.tickets(),
        ]
    }

    fn unit(&self) -> usize {
        floats(self.element, self.n * self.d)
    }

    /// One for each tile of classes of the update.
    fn tickets(&self) -> usize {
        blocks(self.stretch as u64, self.update.tile.m) as usize
    }
}

/// Floats that take as many bytes as `len` elements.
fn floats(element: Element, len: usize) -> usize {
    (len * element.bytes()).div_ceil(Element::F32.bytes())
}

/// Scratch memory for parts of so many floats, each where 16 bytes can be read at once.
fn scratch<D: Driver, const N: usize>(
    cuda: &mut Cuda<D>,
    parts: [usize; N],
) -> Result<[Address; N]> {
    let parts = parts.map(|len| len.next_multiple_of(4));
    let mut at = cuda.scratch(parts.iter().sum())?;
    Ok(parts.map(|len| {
        let next = at.floats(len);
        std::mem::replace(&mut at, next)
    }))
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

/// What products multiply, and where the class rows lie for them.
fn operand<M: Memory>(classes: &ClassRows<&Buffer<M>>) -> (Element, Address) {
    let operand = classes.rounded.unwrap_or(classes.rows);
    (operand.element, operand.at(0))
}

fn check<M>(
    walk: &Walk,
    x: &Buffer<M>,
    labels: &[u32],
    classes: &ClassRows<&Buffer<M>>,
    rows: &Buffer<M>,
) {
    let Walk {
        n, d, classes: v, ..
    } = *walk;
    assert!(x.len >= n * d, "x: {} floats, not {n} x {d}", x.len);
    assert_eq!(labels.len(), n, "labels");
    assert!(rows.len >= head_rows::len(n), "rows: {}", rows.len);
    check_classes(v, d, classes);
}

fn check_classes<M>(v: usize, d: usize, classes: &ClassRows<&Buffer<M>>) {
    assert!(classes.rows.len >= v * d, "class rows");
    assert!(classes.squares.len >= v, "squares");
    if let Some(rounded) = classes.rounded {
        assert!(rounded.len >= v * d, "rounded rows");
        assert_eq!(rounded.element, Element::Bf16, "rounded rows");
    }
}

pub(super) fn prepare<D: Driver>(
    cuda: &mut Cuda<D>,
    op: ArcFacePrepare<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let ArcFacePrepare { v, d, classes } = op;
    check_classes(v, d, &classes.read());
    let (element, rounded) = operand(&classes.read());
    let kernel = launch::ArcfacePrepare {
        classes: classes.rows.at(0),
        v: word(v),
        d: word(d),
        squares: classes.squares.at(0),
        rounded,
    };
    let program = by_element(&ARCFACE, element);
    let grid = [blocks(v as u64, program.threads / WARP), 1, 1];
    cuda.launch(program, grid, 0, kernel)
}

/// Queues x^, N x D, from x and the reciprocal lengths among `rows`.
fn unit_vectors<D: Driver>(
    cuda: &mut Cuda<D>,
    program: &'static Program,
    (x, rows): (&Buffer<D::Memory>, &Buffer<D::Memory>),
    (n, d): (usize, usize),
    unit: Address,
) -> Result<()> {
    let kernel = launch::ArcfaceUnit {
        x: x.at(0),
        rows: rows.at(0),
        n: word(n),
        d: word(d),
        unit,
    };
    let a_warp_a_row = [blocks(n as u64, program.threads / WARP), 1, 1];
    cuda.launch(program, a_warp_a_row, 0, kernel)
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: ArcFaceFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let ArcFaceFprop {
        ref shard,
        margin,
        x,
        ref classes,
        labels,
        rows,
    } = op;
    let (element, rounded) = operand(classes);
    let walk = Walk::new(shard, element);
    check(&walk, x, labels, classes, rows);
    let Walk {
        n, d, classes: v, ..
    } = walk;
    let labels = cuda.labels.address(&mut cuda.driver, labels)?;
    let [unit, sums, largest, square_sums] = scratch(cuda, walk.forward())?;
    let head_margin = margin.into();
    let program = by_element(&ARCFACE, element);
    let a_warp_a_row = [blocks(n as u64, program.threads / WARP), 1, 1];

    let kernel = launch::ArcfaceTargets {
        x: x.at(0),
        classes: classes.rows.at(0),
        labels,
        margin: head_margin,
        n: word(n),
        d: word(d),
        first: word(shard.first),
        v: word(v),
        rows: rows.at(0),
    };
    cuda.launch(program, a_warp_a_row, 0, kernel)?;

    unit_vectors(cuda, program, (x, rows), (n, d), unit)?;

    let kernel = launch::ArcfaceFprop {
        unit,
        classes: rounded,
        squares: classes.squares.at(0),
        labels,
        margin: head_margin,
        n: word(n),
        d: word(d),
        first: word(shard.first),
        v: word(v),
        span: word(walk.span),
        sums,
        largest,
        square_sums,
    };
    let grid = [(walk.row_tiles() * walk.walks) as u64, 1, 1];
    let logits = walk.logits;
    cuda.launch(logits.program, grid, logits.shared, kernel)?;

    let kernel = launch::ArcfaceRows {
        sums,
        largest,
        square_sums,
        labels,
        margin: head_margin,
        n: word(n),
        walks: word(walk.walks),
        first: word(shard.first),
        v: word(v),
        rows: rows.at(0),
    };
    let grid = [blocks(n as u64, WARP) + 1, 1, 1];
    cuda.launch(program, grid, 0, kernel)
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
        rows,
        classes,
        momentum,
        decay,
        ref step,
        dx,
    } = op;
    let (element, rounded) = operand(&classes.read());
    let walk = Walk::new(shard, element);
    check(&walk, x, labels, &classes.read(), rows);
    let Walk {
        n, d, classes: v, ..
    } = walk;
    assert!(momentum.len >= v * d, "momentum");
    assert!(dx.len >= n * d, "d_x: {} floats, not {n} x {d}", dx.len);
    let labels = cuda.labels.address(&mut cuda.driver, labels)?;
    let [
        unit,
        gradient,
        partials,
        q_parts,
        square_parts,
        factors,
        targets,
        refused,
        tickets,
    ] = scratch(cuda, walk.backward())?;
    let (head_margin, normalise) = (margin.into(), margin.normalise.into());
    let program = by_element(&ARCFACE, element);

    let kernel = launch::ArcfaceFactors {
        rows: rows.at(0),
        margin: head_margin,
        n: word(n),
        factors,
        targets,
        refused,
        tickets,
        ticket_count: word(walk.tickets()),
    };
    cuda.launch(program, [1, 1, 1], 0, kernel)?;

    unit_vectors(cuda, program, (x, rows), (n, d), unit)?;

    for begin in (0..v).step_by(walk.stretch) {
        let count = walk.stretch.min(v - begin);
        let operand = rounded.plus(begin * d * element.bytes());
        let kernel = launch::ArcfaceGradients {
            unit,
            classes: operand,
            squares: classes.squares.at(begin),
            labels,
            rows: rows.at(0),
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
        let grid = [walk.logits.tile.cover(n as u64, count as u64), 1, 1];
        let logits = walk.logits;
        cuda.launch(logits.program, grid, logits.shared, kernel)?;

        let kernel = launch::ArcfaceDx {
            gradient,
            classes: operand,
            refused,
            n: word(n),
            d: word(d),
            count: word(count),
            stride: word(walk.stretch),
            chunk: word(walk.chunk),
            begins: (begin == 0).into(),
            partials,
        };
        let grid = [walk.dx.tiles, walk.splits as u64, 1];
        cuda.launch(walk.dx.program, grid, walk.dx.shared, kernel)?;

        let kernel = launch::ArcfaceUpdate {
            gradient,
            unit,
            q_parts,
            refused,
            normalise,
            n: word(n),
            d: word(d),
            count: word(count),
            stride: word(walk.stretch),
            row_tiles: word(walk.row_tiles()),
            decay,
            form: sgd::form(step.form),
            lr: step.lr,
            mu: step.momentum,
            classes: classes.rows.at(begin * d),
            momentum: momentum.at(begin * d),
            rounded: operand,
            squares: classes.squares.at(begin),
            square_parts,
            tickets,
        };
        let grid = [walk.update.tile.cover(count as u64, d as u64), 1, 1];
        cuda.launch(walk.update.program, grid, walk.update.shared, kernel)?;
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
    cuda.launch(program, [n as u64, 1, 1], 0, kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a head takes besides class rows, momentum, the rounded copy, and one number per class.
    #[test]
    fn a_million_classes_take_thirty_two_megabytes_of_scratch() {
        let shard = HeadShard {
            n: 512,
            d: 512,
            first: 0,
            last: 1_000_000,
        };
        let walk = Walk::new(&shard, Element::Bf16);
        let rows = head_rows::len(shard.n);
        for scratch in [&walk.forward()[..], &walk.backward()] {
            let bytes = 4 * (scratch.iter().sum::<usize>() + rows);
            assert!(bytes <= 32_000_000, "{bytes} bytes: {scratch:?}");
        }
    }
}
