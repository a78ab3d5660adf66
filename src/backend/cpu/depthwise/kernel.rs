//! The inner loops of depthwise convolution: one row of outputs, or of gradients, from cached rows.
//!
//! Rows are pixels of `cp` channels, C rounded up to [`LANES`] with zeros, so that every step is a whole vector on any
//! machine. A block of output pixels is held in registers while the window's rows go by; an input pixel is loaded
//! once a window row and used by every output of the block that it touches, which leaves the multiply-add units the
//! bound (4.5 cycles a vector of outputs for a 3x3 window on two units), far above what memory delivers.

use pulp::{Simd, WithSimd};

/// Channels are padded to a multiple of this: the widest vector there is.
pub(super) const LANES: usize = 16;

/// The rows that a window touches: `count` slots of a ring, each with its row of taps.
#[derive(Clone, Copy, Debug)]
pub(super) struct TapRows {
    /// Offset in the ring of the first slot.
    pub(super) first: usize,
    /// Elements of a slot.
    pub(super) slot_len: usize,
    /// Elements of the ring, a multiple of `slot_len`.
    pub(super) ring_len: usize,
    /// How many rows.
    pub(super) count: usize,
    /// Offset of the first row's taps.
    pub(super) weights: usize,
    /// From one row's taps to the next one's.
    pub(super) weights_step: usize,
}

/// Where the outputs of a row lie, and what they see of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Taps a row.
    pub(super) taps: usize,
    /// Pixel of the slot under the first tap of the first output.
    pub(super) start: usize,
    /// Pixels of the slot from one output to the next.
    pub(super) step: usize,
    /// Outputs.
    pub(super) count: usize,
    /// Pixels of the output row from one output to the next.
    pub(super) out_step: usize,
}

/// out[j] = init + sum over rows and taps of ring[row][start + j step + tap] weights[row][tap], by channel.
pub(super) struct Correlate<'a> {
    pub(super) ring: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) rows: TapRows,
    pub(super) columns: Columns,
    pub(super) cp: usize,
    /// What to begin with: one pixel for all outputs, or what is in `out`.
    pub(super) init: Option<&'a [f32]>,
    pub(super) out: &'a mut [f32],
}

/// weights[row][tap] += sum over j of d_out[j] ring[row][start + j step + tap], by channel.
pub(super) struct Accumulate<'a> {
    pub(super) ring: &'a [f32],
    pub(super) weights: &'a mut [f32],
    pub(super) rows: TapRows,
    pub(super) columns: Columns,
    pub(super) cp: usize,
    pub(super) d_out: &'a [f32],
}

/// Asserts that every access of a row's walk lies inside its slice; the loops below then go unchecked.
fn check(rows: TapRows, columns: Columns, cp: usize, ring: &[f32], weights: &[f32], out: &[f32]) {
    let TapRows {
        first,
        slot_len,
        ring_len,
        count,
        weights: first_weights,
        weights_step,
    } = rows;
    assert!(cp > 0 && cp.is_multiple_of(LANES), "{cp} padded channels");
    if columns.count == 0 {
        return;
    }
    let last = columns.count - 1;
    assert!((last * columns.out_step + 1) * cp <= out.len(), "outputs");
    if count == 0 || columns.taps == 0 {
        return;
    }
    assert!(ring_len <= ring.len() && slot_len > 0 && ring_len.is_multiple_of(slot_len));
    assert!(first < ring_len && first.is_multiple_of(slot_len), "slot");
    let reach = columns.start + last * columns.step + columns.taps;
    assert!(reach * cp <= slot_len, "a window reaches beyond its row");
    let last_weights = first_weights + (count - 1) * weights_step;
    assert!(last_weights + columns.taps * cp <= weights.len(), "taps");
}

/// # Safety
/// `at` must be valid for reading one vector.
#[inline(always)]
unsafe fn load<S: Simd>(at: *const f32) -> S::f32s {
    // SAFETY: the caller's duty; every bit pattern is a vector, and the read may be unaligned.
    unsafe { at.cast::<S::f32s>().read_unaligned() }
}

/// # Safety
/// `at` must be valid for writing one vector.
#[inline(always)]
unsafe fn store<S: Simd>(at: *mut f32, value: S::f32s) {
    // SAFETY: the caller's duty; the write may be unaligned.
    unsafe { at.cast::<S::f32s>().write_unaligned(value) }
}

/// Offset of the ring's next slot.
#[inline(always)]
fn next_slot(slot: usize, rows: &TapRows) -> usize {
    let next = slot + rows.slot_len;
    if next == rows.ring_len { 0 } else { next }
}

impl Correlate<'_> {
    /// `BLOCK` outputs from output `j` on, for windows of `TAPS` columns that move by `STEP`.
    #[inline(always)]
    fn block<S: Simd, const TAPS: usize, const STEP: usize, const BLOCK: usize>(
        &mut self,
        simd: S,
        j: usize,
    ) {
        let (cp, rows) = (self.cp, self.rows);
        let out_step = self.columns.out_step * cp;
        let start = (self.columns.start + j * STEP) * cp;
        let out = self.out[j * out_step..].as_mut_ptr();
        for v in (0..cp).step_by(S::F32_LANES) {
            // SAFETY: `check` has shown that all outputs, all slots' pixels under their windows and all rows of
            // taps lie inside their slices, for whole pixels of `cp` channels, and v + F32_LANES <= cp.
            unsafe {
                let mut acc: [S::f32s; BLOCK] = match self.init {
                    Some(init) => [load::<S>(init.as_ptr().add(v)); BLOCK],
                    None => std::array::from_fn(|b| load::<S>(out.add(b * out_step + v))),
                };
                let mut slot = rows.first;
                let mut weights = self.weights.as_ptr().wrapping_add(rows.weights + v);
                for _ in 0..rows.count {
                    let x = self.ring.as_ptr().add(slot + start + v);
                    let w: [S::f32s; TAPS] =
                        std::array::from_fn(|tap| load::<S>(weights.add(tap * cp)));
                    for pixel in 0..(BLOCK - 1) * STEP + TAPS {
                        let x = load::<S>(x.add(pixel * cp));
                        for (b, acc) in acc.iter_mut().enumerate() {
                            if pixel >= b * STEP && pixel - b * STEP < TAPS {
                                *acc = simd.mul_add_e_f32s(x, w[pixel - b * STEP], *acc);
                            }
                        }
                    }
                    slot = next_slot(slot, &rows);
                    weights = weights.wrapping_add(rows.weights_step);
                }
                for (b, acc) in acc.into_iter().enumerate() {
                    store::<S>(out.add(b * out_step + v), acc);
                }
            }
        }
    }

    #[inline(always)]
    fn row<S: Simd, const TAPS: usize, const STEP: usize>(&mut self, simd: S) {
        let count = self.columns.count;
        let mut j = 0;
        while j + 4 <= count {
            self.block::<S, TAPS, STEP, 4>(simd, j);
            j += 4;
        }
        if j + 2 <= count {
            self.block::<S, TAPS, STEP, 2>(simd, j);
            j += 2;
        }
        if j < count {
            self.block::<S, TAPS, STEP, 1>(simd, j);
        }
    }

    /// Any window: an output at a time, `WIDTH` vectors of channels from `v` on.
    #[inline(always)]
    fn any<S: Simd, const WIDTH: usize>(&mut self, simd: S, j: usize, v: usize) {
        let (cp, rows, columns) = (self.cp, self.rows, self.columns);
        let start = (columns.start + j * columns.step) * cp;
        let out = self.out[j * columns.out_step * cp..].as_mut_ptr();
        let lane = |i: usize| v + i * S::F32_LANES;
        // SAFETY: as in `block`; the caller sees to v + WIDTH F32_LANES <= cp.
        unsafe {
            let init = self.init.map_or(out.cast_const(), <[f32]>::as_ptr);
            let mut acc: [S::f32s; WIDTH] = std::array::from_fn(|i| load::<S>(init.add(lane(i))));
            let mut slot = rows.first;
            for row in 0..rows.count {
                let x = self.ring.as_ptr().add(slot + start);
                let w = self.weights.as_ptr();
                let w = w.add(rows.weights + row * rows.weights_step);
                for tap in 0..columns.taps {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let at = tap * cp + lane(i);
                        *acc =
                            simd.mul_add_e_f32s(load::<S>(x.add(at)), load::<S>(w.add(at)), *acc);
                    }
                }
                slot = next_slot(slot, &rows);
            }
            for (i, acc) in acc.into_iter().enumerate() {
                store::<S>(out.add(lane(i)), acc);
            }
        }
    }
}

impl WithSimd for Correlate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        check(
            self.rows,
            self.columns,
            self.cp,
            self.ring,
            self.weights,
            self.out,
        );
        assert!(self.init.is_none_or(|init| init.len() == self.cp));
        match (self.columns.taps, self.columns.step) {
            (3, 1) => self.row::<S, 3, 1>(simd),
            (3, 2) => self.row::<S, 3, 2>(simd),
            (2, 1) => self.row::<S, 2, 1>(simd),
            (1, 1) => self.row::<S, 1, 1>(simd),
            _ => {
                for j in 0..self.columns.count {
                    let mut v = 0;
                    while v + 8 * S::F32_LANES <= self.cp {
                        self.any::<S, 8>(simd, j, v);
                        v += 8 * S::F32_LANES;
                    }
                    while v < self.cp {
                        self.any::<S, 1>(simd, j, v);
                        v += S::F32_LANES;
                    }
                }
            }
        }
    }
}

impl Accumulate<'_> {
    /// The share of `BLOCK` outputs from output `j` on.
    #[inline(always)]
    fn block<S: Simd, const TAPS: usize, const STEP: usize, const BLOCK: usize>(
        &mut self,
        simd: S,
        j: usize,
    ) {
        let (cp, rows) = (self.cp, self.rows);
        let start = (self.columns.start + j * STEP) * cp;
        let d_out = self.d_out[j * cp..].as_ptr();
        for v in (0..cp).step_by(S::F32_LANES) {
            // SAFETY: as in `Correlate::block`.
            unsafe {
                let d_out: [S::f32s; BLOCK] =
                    std::array::from_fn(|b| load::<S>(d_out.add(b * cp + v)));
                let mut slot = rows.first;
                let mut weights = self.weights.as_mut_ptr().wrapping_add(rows.weights + v);
                for _ in 0..rows.count {
                    let x = self.ring.as_ptr().add(slot + start + v);
                    let mut acc: [S::f32s; TAPS] =
                        std::array::from_fn(|tap| load::<S>(weights.add(tap * cp)));
                    for pixel in 0..(BLOCK - 1) * STEP + TAPS {
                        let x = load::<S>(x.add(pixel * cp));
                        for (b, d_out) in d_out.iter().enumerate() {
                            if pixel >= b * STEP && pixel - b * STEP < TAPS {
                                let acc = &mut acc[pixel - b * STEP];
                                *acc = simd.mul_add_e_f32s(x, *d_out, *acc);
                            }
                        }
                    }
                    for (tap, acc) in acc.into_iter().enumerate() {
                        store::<S>(weights.add(tap * cp), acc);
                    }
                    slot = next_slot(slot, &rows);
                    weights = weights.wrapping_add(rows.weights_step);
                }
            }
        }
    }

    #[inline(always)]
    fn row<S: Simd, const TAPS: usize, const STEP: usize>(&mut self, simd: S) {
        let count = self.columns.count;
        let mut j = 0;
        while j + 4 <= count {
            self.block::<S, TAPS, STEP, 4>(simd, j);
            j += 4;
        }
        if j + 2 <= count {
            self.block::<S, TAPS, STEP, 2>(simd, j);
            j += 2;
        }
        if j < count {
            self.block::<S, TAPS, STEP, 1>(simd, j);
        }
    }

    /// Any window: an output and a row of taps at a time, whose channels then lie one after the other.
    #[inline(always)]
    fn any<S: Simd>(&mut self, simd: S, j: usize) {
        let (cp, rows, columns) = (self.cp, self.rows, self.columns);
        let start = (columns.start + j * columns.step) * cp;
        let d_out = self.d_out[j * cp..].as_ptr();
        let mut slot = rows.first;
        for row in 0..rows.count {
            let weights = rows.weights + row * rows.weights_step;
            for tap in 0..columns.taps {
                for v in (0..cp).step_by(S::F32_LANES) {
                    // SAFETY: as in `Correlate::block`.
                    unsafe {
                        let x = self.ring.as_ptr().add(slot + start + tap * cp + v);
                        let w = self.weights.as_mut_ptr().add(weights + tap * cp + v);
                        let product = simd.mul_add_e_f32s(
                            load::<S>(x),
                            load::<S>(d_out.add(v)),
                            load::<S>(w),
                        );
                        store::<S>(w, product);
                    }
                }
            }
            slot = next_slot(slot, &rows);
        }
    }
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        assert_eq!(self.columns.out_step, 1);
        check(
            self.rows,
            self.columns,
            self.cp,
            self.ring,
            self.weights,
            self.d_out,
        );
        match (self.columns.taps, self.columns.step) {
            (3, 1) => self.row::<S, 3, 1>(simd),
            (3, 2) => self.row::<S, 3, 2>(simd),
            _ => (0..self.columns.count).for_each(|j| self.any(simd, j)),
        }
    }
}
