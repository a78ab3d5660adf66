//! The image unrolled, one tile at a time: row m of the columns holds the window of output pixel m.
//!
//! A tile is made in two steps. The source rows that it needs are read once into a *patch*, activated and with the
//! padding's zeros around them; then each output pixel's window is copied out of the patch, a run of adjacent taps at a
//! time. Wide windows are unrolled in chunks (a few taps, or some of the channels of a 1x1 window), and the caller
//! accumulates one product a chunk.

use std::cell::RefCell;
use std::ops::Range;

use super::super::buffer::Buffer;
use super::super::gemm::Mat;
use super::super::panel::Windows;
use super::super::pending::{GradReader, Reader};
use super::super::tensor::round_all;
use crate::backend::geometry::Conv2d;

/// Columns of a chunk that holds several taps.
const TAP_COLUMNS: usize = 384;

/// Columns of a chunk of a 1x1 window.
const CHANNEL_COLUMNS: usize = 512;

/// A product's operand: pixels that can be read, all that is pending applied, rounded to the elements that they are stored
/// in. For a product is of numbers of that type, on every device.
pub(super) trait Source: Copy + Sync {
    /// The stored pixels, where they are float32 and nothing is pending.
    fn stored(&self) -> Option<&[f32]>;

    /// Writes some channels of some pixels, pixels x channels.
    fn read(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [f32]);
}

impl Source for Reader<'_> {
    fn stored(&self) -> Option<&[f32]> {
        Reader::stored(self)
    }

    fn read(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [f32]) {
        self.read_channels(pixels, channels, out);
        round_all(self.raw.element(), out);
    }
}

impl Source for GradReader<'_> {
    fn stored(&self) -> Option<&[f32]> {
        GradReader::stored(self)
    }

    fn read(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [f32]) {
        self.read_channels(pixels, channels, out);
        round_all(self.g.element(), out);
    }
}

/// Which source pixels an output pixel sees: output row i and tap row t meet source row `i * stride + t + origin`, and
/// the columns likewise; outside the source there are zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather {
    /// Source rows and columns of an image.
    pub(super) source: (usize, usize),
    /// Source channels.
    pub(super) c: usize,
    /// Output rows and columns of an image.
    pub(super) out: (usize, usize),
    /// Window rows and columns.
    pub(super) taps: (usize, usize),
    /// Step of the window.
    pub(super) stride: usize,
    /// Where the first window begins.
    pub(super) origin: (isize, isize),
}

/// The part of an image that a tile covers.
struct Band {
    image: usize,
    /// Output rows.
    rows: Range<usize>,
}

thread_local! {
    /// Patch and columns of the tile that a thread works on, grown once and kept.
    static TILE: RefCell<(Buffer, Buffer)> = RefCell::default();

    /// Where the windows of that tile begin.
    static STARTS: RefCell<Vec<usize>> = RefCell::default();
}

impl Gather {
    /// What a convolution's output sees of its input.
    pub(super) fn forward(geometry: &Conv2d) -> Self {
        let window = &geometry.window;
        Gather {
            source: (window.h, window.w),
            c: geometry.c,
            out: (window.p, window.q),
            taps: (window.r, window.s),
            stride: window.stride,
            origin: (-(window.pad.top as isize), -(window.pad.left as isize)),
        }
    }

    /// Window elements: columns of the unrolled image.
    pub(super) fn columns(&self) -> usize {
        self.taps.0 * self.taps.1 * self.c
    }

    /// Whether output pixels are source pixels.
    fn is_pointwise(&self) -> bool {
        self.is_single_tap() && self.stride == 1 && self.source == self.out
    }

    /// Whether every output pixel sees exactly one source pixel, never padding.
    fn is_single_tap(&self) -> bool {
        self.taps == (1, 1)
            && self.origin == (0, 0)
            && (self.out.0 - 1) * self.stride < self.source.0
            && (self.out.1 - 1) * self.stride < self.source.1
    }

    /// Columns of a chunk (the last may be narrower): all, some rows of taps, one tap, or some channels of the only tap.
    pub(super) fn chunk_columns(&self) -> usize {
        let row = self.taps.1 * self.c;
        if self.is_single_tap() {
            let chunks = self.c.div_ceil(CHANNEL_COLUMNS + CHANNEL_COLUMNS / 2);
            self.c.div_ceil(chunks).next_multiple_of(16).min(self.c)
        } else if row <= TAP_COLUMNS {
            (TAP_COLUMNS / row).min(self.taps.0) * row
        } else {
            self.c
        }
    }

    /// Unrolls the windows of output pixels `pixels`, columns `columns` only (whole chunks), and calls `f` with the
    /// range of columns and the matrix pixels x columns for each chunk.
    pub(super) fn unroll(
        &self,
        source: impl Source,
        pixels: Range<usize>,
        columns: Range<usize>,
        mut f: impl FnMut(Range<usize>, Mat<'_>),
    ) {
        if pixels.is_empty() {
            return;
        }
        let (c, m) = (self.c, pixels.len());
        if self.is_pointwise()
            && let Some(stored) = source.stored()
        {
            let data = &stored[pixels.start * c + columns.start..];
            let width = columns.len();
            f(columns, Mat::new(data, m, width, c));
            return;
        }
        TILE.with_borrow_mut(|(patch, tile)| {
            let single = self.is_single_tap();
            let patch = if single {
                &mut []
            } else {
                self.fill_patch(source, pixels.clone(), patch)
            };
            let step = self.chunk_columns();
            let mut start = columns.start;
            while start < columns.end {
                let chunk = start..(start + step).min(columns.end);
                let tile = tile.at_least(m * chunk.len());
                if self.is_pointwise() {
                    source.read(pixels.clone(), chunk.clone(), tile);
                } else if single {
                    self.pick(source, pixels.clone(), chunk.clone(), tile);
                } else {
                    self.copy_windows(patch, pixels.clone(), chunk.start / c..chunk.end / c, tile);
                }
                f(chunk.clone(), Mat::new(tile, m, chunk.len(), chunk.len()));
                start = chunk.end;
            }
        });
    }

    /// Calls `f` with the windows of output pixels `pixels`, where they lie in the source or, where something is
    /// pending or padded, in the patch.
    pub(super) fn windows(
        &self,
        source: impl Source,
        pixels: Range<usize>,
        f: impl FnOnce(Windows<'_>),
    ) {
        let c = self.c;
        TILE.with_borrow_mut(|(patch, _)| {
            STARTS.with_borrow_mut(|starts| {
                starts.clear();
                if !self.is_single_tap() {
                    let patch = self.fill_patch(source, pixels.clone(), patch);
                    self.for_rows(&pixels, |_, columns, at| {
                        starts.extend(columns.map(|j| at + j * self.stride * c));
                    });
                    let line = self.patch_width() * c;
                    f(Windows::new(
                        patch,
                        starts,
                        self.taps.0,
                        self.taps.1 * c,
                        line,
                    ));
                } else if let Some(stored) = source.stored() {
                    starts.extend(pixels.map(|pixel| self.only_pixel(pixel) * c));
                    f(Windows::new(stored, starts, 1, c, 0));
                } else {
                    let patch = patch.at_least(pixels.len() * c);
                    if self.is_pointwise() {
                        source.read(pixels.clone(), 0..c, patch);
                    } else {
                        self.pick(source, pixels.clone(), 0..c, patch);
                    }
                    starts.extend((0..pixels.len()).map(|i| i * c));
                    f(Windows::new(patch, starts, 1, c, 0));
                }
            });
        });
    }

    /// The one source pixel of an output pixel.
    fn only_pixel(&self, pixel: usize) -> usize {
        let (row, j) = (pixel / self.out.1, pixel % self.out.1);
        let (image, i) = (row / self.out.0, row % self.out.0);
        (image * self.source.0 + i * self.stride) * self.source.1 + j * self.stride
    }

    /// Reads the one source pixel of each output pixel.
    fn pick(
        &self,
        source: impl Source,
        pixels: Range<usize>,
        channels: Range<usize>,
        out: &mut [f32],
    ) {
        for (pixel, out) in pixels.zip(out.chunks_exact_mut(channels.len())) {
            let at = self.only_pixel(pixel);
            source.read(at..at + 1, channels.clone(), out);
        }
    }

    fn bands(&self, pixels: &Range<usize>) -> impl Iterator<Item = Band> + use<> {
        let (h, w) = self.out;
        let (first, last) = (pixels.start / w, (pixels.end - 1) / w);
        (first / h..=last / h).map(move |image| Band {
            image,
            rows: first.saturating_sub(image * h)..(last + 1 - image * h).min(h),
        })
    }

    /// Patch columns.
    fn patch_width(&self) -> usize {
        (self.out.1 - 1) * self.stride + self.taps.1
    }

    /// Patch rows of a band.
    fn patch_rows(&self, band: &Band) -> usize {
        (band.rows.len() - 1) * self.stride + self.taps.0
    }

    /// Reads what a tile sees, with zeros outside the source.
    fn fill_patch<'p>(
        &self,
        source: impl Source,
        pixels: Range<usize>,
        patch: &'p mut Buffer,
    ) -> &'p [f32] {
        let (c, (h, w), width) = (self.c, self.source, self.patch_width());
        let rows: usize = self.bands(&pixels).map(|band| self.patch_rows(&band)).sum();
        let patch = patch.at_least(rows * width * c);
        // Patch columns [left, right) lie in the source.
        let left = self.origin.1.min(0).unsigned_abs().min(width);
        let right = (w as isize - self.origin.1).clamp(left as isize, width as isize) as usize;
        let mut lines = patch.chunks_exact_mut(width * c);
        for band in self.bands(&pixels) {
            let top = (band.rows.start * self.stride) as isize + self.origin.0;
            let bottom = top + self.patch_rows(&band) as isize;
            for (row, line) in (top..bottom).zip(&mut lines) {
                if row < 0 || row >= h as isize || left == right {
                    line.fill(0.0);
                    continue;
                }
                let at = ((band.image * h + row as usize) * w) as isize + self.origin.1;
                let span = (at + left as isize) as usize..(at + right as isize) as usize;
                line[..left * c].fill(0.0);
                source.read(span, 0..c, &mut line[left * c..right * c]);
                line[right * c..].fill(0.0);
            }
        }
        patch
    }

    /// Copies each pixel's taps `taps` (row by row) out of the patch.
    fn copy_windows(
        &self,
        patch: &[f32],
        pixels: Range<usize>,
        taps: Range<usize>,
        out: &mut [f32],
    ) {
        let (c, s) = (self.c, self.taps.1);
        let (line, step, width) = (self.patch_width() * c, self.stride * c, taps.len() * c);
        self.for_rows(&pixels, |m, columns, row_at| {
            let out = &mut out[m * width..][..columns.len() * width];
            let mut tap = taps.start;
            while tap < taps.end {
                let (r, first) = (tap / s, tap % s);
                let run = (s - first).min(taps.end - tap);
                let at = row_at + r * line;
                copy_runs(
                    &patch[at + first * c + columns.start * step..],
                    step,
                    &mut out[(tap - taps.start) * c..],
                    width,
                    run * c,
                    columns.len(),
                );
                tap += run;
            }
        });
    }

    /// Calls `f` for each stretch of output pixels in one row: the first one's number among `pixels`, their columns, and
    /// where in the patch the window of the row's column 0 begins.
    fn for_rows(&self, pixels: &Range<usize>, mut f: impl FnMut(usize, Range<usize>, usize)) {
        let (h, w) = self.out;
        let line = self.patch_width() * self.c;
        let (mut band_at, mut m) = (0, 0);
        for band in self.bands(pixels) {
            for i in band.rows.clone() {
                let begin = (band.image * h + i) * w;
                let columns = pixels.start.max(begin) - begin..pixels.end.min(begin + w) - begin;
                let count = columns.len();
                f(
                    m,
                    columns,
                    band_at + (i - band.rows.start) * self.stride * line,
                );
                m += count;
            }
            band_at += self.patch_rows(&band) * line;
        }
    }
}

/// Copies `count` runs of `len` numbers, `from_step` apart, to places `to_step` apart.
#[inline]
fn copy_runs(
    from: &[f32],
    from_step: usize,
    to: &mut [f32],
    to_step: usize,
    len: usize,
    count: usize,
) {
    if len >= 48 {
        for i in 0..count {
            to[i * to_step..][..len].copy_from_slice(&from[i * from_step..][..len]);
        }
        return;
    }
    // A library call for a few numbers costs more than the copy; the last eight overlap the ones before.
    for i in 0..count {
        let from = &from[i * from_step..][..len];
        let to = &mut to[i * to_step..][..len];
        if len < 8 {
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
            continue;
        }
        for (to, from) in to
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(from.as_chunks::<8>().0)
        {
            *to = *from;
        }
        *to.last_chunk_mut::<8>().expect("eight") = *from.last_chunk::<8>().expect("eight");
    }
}
