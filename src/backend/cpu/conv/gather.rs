//! The windows of output pixels, where a product can take them.
//!
//! The source rows that a tile needs are read once into a *patch*, with all that is pending applied and the padding's zeros
//! around them; a window is then some runs of adjacent words of the patch. Windows of one stored pixel each stay where they
//! are.

use std::cell::RefCell;
use std::ops::Range;

use super::super::buffer::Buffer;
use super::super::pending::{GradReader, Reader};
use super::super::product::{Terms, Windows};
use super::super::tensor::{Stored, Tensor, round_all, with_floats};
use super::spread;
use crate::backend::Element;
use crate::backend::geometry::Conv2d;
use half::bf16;

/// A product's operand: pixels that can be read as words, all that is pending applied, rounded to the elements that they are
/// stored in. For a product is of numbers of that type, on every device.
#[derive(Clone, Copy)]
pub(super) struct Operand<R> {
    reader: R,
    terms: Terms,
}

impl<R: Source> Operand<R> {
    /// Words of a pixel's neighbouring channels.
    pub(super) fn new(reader: R, terms: Terms) -> Self {
        Operand { reader, terms }
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// Neighbouring channels of a pixel, as float32.
    #[inline(always)]
    pub(super) fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L] {
        self.reader.lanes(pixel, first)
    }

    /// The stored pixels, where they are words as they are.
    pub(super) fn stored(&self) -> Option<&[f32]> {
        match (self.reader.stored()?, self.terms) {
            (Tensor::F32(stored), Terms::Single) => Some(stored),
            (Tensor::Bf16(stored), Terms::Pair) if self.reader.channels().is_multiple_of(2) => {
                let whole = stored.len() / 2 * 2;
                Some(bytemuck::cast_slice(&stored[..whole]))
            }
            _ => None,
        }
    }

    /// Writes some words of some pixels, pixels x words.
    pub(super) fn read(&self, pixels: Range<usize>, words: Range<usize>, out: &mut [f32]) {
        let channels = self.reader.channels();
        let c = channels.div_ceil(self.terms.per_word());
        match (self.stored(), self.terms) {
            (Some(stored), _) if words.len() == c => {
                out.copy_from_slice(&stored[pixels.start * c..pixels.end * c]);
            }
            (_, Terms::Single) => {
                self.reader.read(pixels, words, out);
                round_all(self.reader.element(), out);
            }
            (_, Terms::Pair) if !channels.is_multiple_of(2) => {
                assert_eq!(words, 0..c, "all words of a pixel");
                with_floats(pixels.len() * c, |floats| {
                    let stored: &mut [bf16] = bytemuck::cast_slice_mut(floats);
                    let stored = &mut stored[..pixels.len() * channels];
                    self.reader.read(pixels, 0..channels, stored);
                    spread(stored, channels, out);
                });
            }
            (_, Terms::Pair) => {
                let channels = 2 * words.start..2 * words.end;
                let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
                self.reader.read(pixels, channels, out);
            }
        }
    }
}

/// What reads pixels.
pub(super) trait Source: Copy + Sync {
    /// The stored tensor, where nothing is pending.
    fn stored(&self) -> Option<Tensor<'_>>;

    /// Channels of a pixel.
    fn channels(&self) -> usize;

    /// What is stored.
    fn element(&self) -> Element;

    /// Channels `first..first + L` of a pixel, rounded to what is stored.
    fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L];

    /// Writes some channels of some pixels, pixels x channels.
    fn read<O: Stored>(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [O]);
}

impl Source for Reader<'_> {
    fn stored(&self) -> Option<Tensor<'_>> {
        self.is_plain().then_some(self.raw)
    }

    fn channels(&self) -> usize {
        self.c
    }

    fn element(&self) -> Element {
        self.raw.element()
    }

    #[inline(always)]
    fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L] {
        Reader::lanes(self, pixel, first)
    }

    fn read<O: Stored>(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [O]) {
        self.read_channels(pixels, channels, out);
    }
}

impl Source for GradReader<'_> {
    fn stored(&self) -> Option<Tensor<'_>> {
        self.is_plain().then_some(self.g)
    }

    fn channels(&self) -> usize {
        self.c
    }

    fn element(&self) -> Element {
        self.g.element()
    }

    #[inline(always)]
    fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L] {
        GradReader::lanes(self, pixel, first)
    }

    fn read<O: Stored>(&self, pixels: Range<usize>, channels: Range<usize>, out: &mut [O]) {
        self.read_channels(pixels, channels, out);
    }
}

/// Which source pixels an output pixel sees. Output row i and tap row t read source row `i * stride + t + origin`; columns
/// work the same way. Outside the source they read zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather {
    /// Source rows and columns of an image.
    pub(super) source: (usize, usize),
    /// Words of a source pixel.
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
    /// The patch of the tile that a thread works on, and where its windows begin; grown once and kept.
    static PATCH: RefCell<(Buffer, Vec<usize>)> = RefCell::default();
}

impl Gather {
    /// What a convolution's output sees of its input.
    pub(super) fn forward(geometry: &Conv2d, terms: Terms) -> Self {
        let window = &geometry.window;
        Gather {
            source: (window.h, window.w),
            c: geometry.c.div_ceil(terms.per_word()),
            out: (window.p, window.q),
            taps: (window.r, window.s),
            stride: window.stride,
            origin: (-(window.pad.top as isize), -(window.pad.left as isize)),
        }
    }

    /// Words of a window.
    pub(super) fn words(&self) -> usize {
        self.taps.0 * self.taps.1 * self.c
    }

    /// Whether output pixels are source pixels.
    fn is_pointwise(&self) -> bool {
        self.is_single_tap() && self.stride == 1 && self.source == self.out
    }

    /// Whether every output pixel sees exactly one source pixel, never padding.
    pub(super) fn is_single_tap(&self) -> bool {
        self.taps == (1, 1)
            && self.origin == (0, 0)
            && (self.out.0 - 1) * self.stride < self.source.0
            && (self.out.1 - 1) * self.stride < self.source.1
    }

    /// Calls `f` with the windows of output pixels `pixels`, where they lie in the source or, where something is pending or
    /// padded, in a patch. Of windows of a single tap only `words` need be there; of all others all are.
    pub(super) fn windows<R: Source>(
        &self,
        source: Operand<R>,
        pixels: Range<usize>,
        words: Range<usize>,
        f: impl FnOnce(Windows<'_>),
    ) {
        let (c, terms) = (self.c, source.terms());
        PATCH.with_borrow_mut(|(patch, starts)| {
            starts.clear();
            if !self.is_single_tap() {
                let patch = self.fill_patch(source, pixels.clone(), patch);
                self.for_rows(&pixels, |columns, at| {
                    starts.extend(columns.map(|j| at + j * self.stride * c));
                });
                let line = self.patch_width() * c;
                let window = [self.taps.0, self.taps.1 * c, line];
                f(Windows::new(terms, patch, starts, window));
            } else if let Some(stored) = source.stored() {
                starts.extend(pixels.map(|pixel| self.only_pixel(pixel) * c + words.start));
                f(Windows::new(terms, stored, starts, [1, words.len(), 0]));
            } else {
                let patch = patch.at_least(pixels.len() * words.len());
                starts.extend((0..pixels.len()).map(|i| i * words.len()));
                if self.is_pointwise() {
                    source.read(pixels, words.clone(), patch);
                } else {
                    self.pick(source, pixels, words.clone(), patch);
                }
                f(Windows::new(terms, patch, starts, [1, words.len(), 0]));
            }
        });
    }

    /// The one source pixel of an output pixel.
    fn only_pixel(&self, pixel: usize) -> usize {
        let (row, j) = (pixel / self.out.1, pixel % self.out.1);
        let (image, i) = (row / self.out.0, row % self.out.0);
        (image * self.source.0 + i * self.stride) * self.source.1 + j * self.stride
    }

    /// Reads the one source pixel of each output pixel.
    fn pick<R: Source>(
        &self,
        source: Operand<R>,
        pixels: Range<usize>,
        words: Range<usize>,
        out: &mut [f32],
    ) {
        for (pixel, out) in pixels.zip(out.chunks_exact_mut(words.len())) {
            let at = self.only_pixel(pixel);
            source.read(at..at + 1, words.clone(), out);
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
    fn fill_patch<'p, R: Source>(
        &self,
        source: Operand<R>,
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

    /// Calls `f` for each stretch of output pixels in one row: their columns, and where in the patch the window of the row's
    /// column 0 begins.
    fn for_rows(&self, pixels: &Range<usize>, mut f: impl FnMut(Range<usize>, usize)) {
        let (h, w) = self.out;
        let line = self.patch_width() * self.c;
        let mut band_at = 0;
        for band in self.bands(pixels) {
            for i in band.rows.clone() {
                let begin = (band.image * h + i) * w;
                let columns = pixels.start.max(begin) - begin..pixels.end.min(begin + w) - begin;
                f(
                    columns,
                    band_at + (i - band.rows.start) * self.stride * line,
                );
            }
            band_at += self.patch_rows(&band) * line;
        }
    }
}
