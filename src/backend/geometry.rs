//! Validated shapes, made once and shared by the host, the CPU and the GPU.
//!
//! N batch, H W C input height, width, channels, K filters, R S filter rows and columns, P Q output rows
//! and columns. Activations are NHWC, filters KRSC (depthwise: RSC).

use crate::{Error, Result};

/// Zero rows and columns added around an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same amount on all four sides.
    pub const fn same(amount: usize) -> Self {
        Padding {
            top: amount,
            bottom: amount,
            left: amount,
            right: amount,
        }
    }

    /// What Keras's `correct_pad` adds before a strided "valid" convolution with an odd `kernel`:
    /// (k/2 - 1, k/2) where the size is even, (k/2, k/2) where it is odd.
    pub const fn keras_strided(h: usize, w: usize, kernel: usize) -> Self {
        let half = kernel / 2;
        Padding {
            top: half - (1 - h % 2),
            bottom: half,
            left: half - (1 - w % 2),
            right: half,
        }
    }
}

/// A window that slides over an image: what convolutions and pooling have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Input rows.
    pub h: usize,
    /// Input columns.
    pub w: usize,
    /// Window rows.
    pub r: usize,
    /// Window columns.
    pub s: usize,
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Padding around the input.
    pub pad: Padding,
    /// Output rows.
    pub p: usize,
    /// Output columns.
    pub q: usize,
}

impl Window {
    /// One pixel on an image of one pixel.
    pub const POINT: Window = Window {
        h: 1,
        w: 1,
        r: 1,
        s: 1,
        stride: 1,
        pad: Padding {
            top: 0,
            bottom: 0,
            left: 0,
            right: 0,
        },
        p: 1,
        q: 1,
    };

    /// The longest stride: a gradient is computed for each of stride x stride phases, and a grid of CUDA's has up to
    /// 65,535 blocks in its second dimension.
    pub const LONGEST_STRIDE: usize = 255;

    /// Checks the sizes and computes P and Q.
    ///
    /// # Errors
    /// A zero size or stride, a stride beyond [`Window::LONGEST_STRIDE`], a window larger than the padded image, or padding as large as the window.
    pub fn new(
        (h, w): (usize, usize),
        (r, s): (usize, usize),
        stride: usize,
        pad: Padding,
    ) -> Result<Self> {
        let (padded_h, padded_w) = (h + pad.top + pad.bottom, w + pad.left + pad.right);
        if h == 0 || w == 0 || r == 0 || s == 0 || stride == 0 {
            return Err(Error::Invalid(format!(
                "a {r}x{s} window with stride {stride} on a {h}x{w} image: every size must be at least 1"
            )));
        }
        if stride > Self::LONGEST_STRIDE {
            return Err(Error::Invalid(format!(
                "a stride of {stride}: {} is the longest",
                Self::LONGEST_STRIDE
            )));
        }
        if padded_h < r || padded_w < s {
            return Err(Error::Invalid(format!(
                "a {r}x{s} window does not fit a {h}x{w} image padded to {padded_h}x{padded_w}"
            )));
        }
        if pad.top >= r || pad.bottom >= r || pad.left >= s || pad.right >= s {
            return Err(Error::Invalid(format!(
                "padding {pad:?} must be smaller than the {r}x{s} window"
            )));
        }
        Ok(Window {
            h,
            w,
            r,
            s,
            stride,
            pad,
            p: (padded_h - r) / stride + 1,
            q: (padded_w - s) / stride + 1,
        })
    }

    /// Whether the window is one pixel moved by one pixel, so that input and output pixels coincide.
    pub fn is_pointwise(&self) -> bool {
        self.r == 1 && self.s == 1 && self.stride == 1 && self.pad == Padding::default()
    }
}

/// A 2-D convolution (cross-correlation):
/// `y[n,p,q,k] = sum over r,s,c of x[n, p*stride+r-top, q*stride+s-left, c] w[k,r,s,c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Batch.
    pub n: usize,
    /// Input channels.
    pub c: usize,
    /// Filters, the output's channels.
    pub k: usize,
    /// Where the filter moves.
    pub window: Window,
}

impl Conv2d {
    /// A fully connected layer C -> K as a 1x1 convolution on 1x1 images.
    pub fn linear(n: usize, c: usize, k: usize) -> Self {
        let window = Window::POINT;
        Conv2d { n, c, k, window }
    }

    /// Pixels of the whole batch's input, N H W.
    pub fn pixels_in(&self) -> usize {
        self.n * self.window.h * self.window.w
    }

    /// Pixels of the whole batch's output, N P Q.
    pub fn pixels_out(&self) -> usize {
        self.n * self.window.p * self.window.q
    }

    /// Elements of the filters, K R S C.
    pub fn filter_len(&self) -> usize {
        self.k * self.window.r * self.window.s * self.c
    }

    /// Multiply-adds of one pass.
    pub fn macs(&self) -> u64 {
        self.pixels_out() as u64 * (self.filter_len() as u64)
    }
}

/// A window on every channel by itself: depthwise convolution (filters RSC) and pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerChannel {
    /// Batch.
    pub n: usize,
    /// Channels, of input and output.
    pub c: usize,
    /// Where the window moves.
    pub window: Window,
}

impl PerChannel {
    /// Pixels of the whole batch's input, N H W.
    pub fn pixels_in(&self) -> usize {
        self.n * self.window.h * self.window.w
    }

    /// Pixels of the whole batch's output, N P Q.
    pub fn pixels_out(&self) -> usize {
        self.n * self.window.p * self.window.q
    }

    /// Elements of a depthwise filter, R S C.
    pub fn filter_len(&self) -> usize {
        self.window.r * self.window.s * self.c
    }

    /// Multiply-adds of one pass.
    pub fn macs(&self) -> u64 {
        self.pixels_out() as u64 * self.filter_len() as u64
    }
}

/// A tensor seen as rows of channels: `pixels` = N H W of the whole batch, `c` channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// N H W.
    pub pixels: usize,
    /// Channels.
    pub c: usize,
}

impl Rows {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.pixels * self.c
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Global average pooling: N images of `pixels` = H W pixels and C channels to N rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GlobalPool {
    /// Batch.
    pub n: usize,
    /// H W of one image.
    pub pixels: usize,
    /// Channels.
    pub c: usize,
}

/// The ArcFace head on a shard of the classes: N embeddings of D numbers against the class rows
/// `first..last` (a label outside the shard has its target elsewhere).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadShard {
    /// Batch.
    pub n: usize,
    /// Embedding size.
    pub d: usize,
    /// First identity of the shard.
    pub first: usize,
    /// One past the last identity of the shard.
    pub last: usize,
}

impl HeadShard {
    /// Class rows in this shard.
    pub fn classes(&self) -> usize {
        self.last - self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes_follow_keras() {
        let conv1 = Window::new((112, 112), (7, 7), 2, Padding::same(3)).unwrap();
        assert_eq!((conv1.p, conv1.q), (56, 56));
        let even = Padding::keras_strided(112, 112, 3);
        assert_eq!((even.top, even.bottom), (0, 1));
        let odd = Padding::keras_strided(7, 7, 3);
        assert_eq!((odd.top, odd.bottom), (1, 1));
        assert_eq!(Window::new((112, 112), (3, 3), 2, even).unwrap().p, 56);
        assert_eq!(Window::new((7, 7), (3, 3), 2, odd).unwrap().p, 4);
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for window in [
            Window::new((0, 4), (1, 1), 1, Padding::default()),
            Window::new((4, 4), (5, 5), 1, Padding::default()),
            Window::new((4, 4), (3, 3), 0, Padding::same(1)),
            Window::new((4, 4), (3, 3), 1, Padding::same(3)),
        ] {
            assert!(window.unwrap_err().to_string().contains("window"));
        }
    }
}
