//! A canvas of real-valued pixels, shapes given by signed distances, and what a camera does to a picture.

use super::identity::Colour;
use crate::base::random::Random;

/// Width and height of a generated image.
pub(super) const SIDE: usize = 112;

/// A rectangle `[left, top, right, bottom]` in pixels or in a patch's own units.
pub(super) type Bounds = [f32; 4];

/// Colours in rows, values around [0, 1], nothing clamped before the end.
pub(super) struct Canvas {
    pub(super) pixels: Vec<Colour>,
}

/// A flat piece of the face: an affine map between its own units and pixels.
///
/// Shapes are drawn in the patch's units, so turning the head foreshortens them.
pub(super) struct Patch {
    centre: [f32; 2],
    forward: [[f32; 2]; 2],
    inverse: [[f32; 2]; 2],
    /// Pixels a unit, the geometric mean over directions.
    unit: f32,
}

impl Patch {
    /// `forward` maps a step in the patch's units to a step in pixels. `None` where the patch is seen edge-on.
    pub(super) fn new(centre: [f32; 2], forward: [[f32; 2]; 2]) -> Option<Self> {
        let [[a, b], [c, d]] = forward;
        let det = a * d - b * c;
        let size = a * a + b * b + c * c + d * d;
        // Also turned away: a mirrored patch would show the back of the feature.
        if det <= 0.05 * size {
            return None;
        }
        let inverse = [[d / det, -b / det], [-c / det, a / det]];
        Some(Patch {
            centre,
            forward,
            inverse,
            unit: det.sqrt(),
        })
    }

    /// The same patch with its axes turned by `angle` radians and mirrored in x where `flip` is -1.
    pub(super) fn turned(&self, angle: f32, flip: f32) -> Self {
        let (sin, cos) = angle.sin_cos();
        let turn = |m: [[f32; 2]; 2]| {
            let [[a, b], [c, d]] = m;
            // forward * diag(flip, 1) * rotation
            let (a, c) = (a * flip, c * flip);
            [
                [a * cos + b * sin, -a * sin + b * cos],
                [c * cos + d * sin, -c * sin + d * cos],
            ]
        };
        let forward = turn(self.forward);
        let [[a, b], [c, d]] = forward;
        let det = a * d - b * c;
        Patch {
            centre: self.centre,
            forward,
            inverse: [[d / det, -b / det], [-c / det, a / det]],
            unit: self.unit,
        }
    }

    fn pixel_bounds(&self, local: Bounds) -> Bounds {
        let mut out = [f32::MAX, f32::MAX, f32::MIN, f32::MIN];
        for (u, v) in [
            (local[0], local[1]),
            (local[2], local[1]),
            (local[0], local[3]),
            (local[2], local[3]),
        ] {
            let x = self.centre[0] + self.forward[0][0] * u + self.forward[0][1] * v;
            let y = self.centre[1] + self.forward[1][0] * u + self.forward[1][1] * v;
            out = [
                out[0].min(x - 1.0),
                out[1].min(y - 1.0),
                out[2].max(x + 1.0),
                out[3].max(y + 1.0),
            ];
        }
        out
    }
}

impl Canvas {
    pub(super) fn new() -> Self {
        Canvas {
            pixels: vec![[0.0; 3]; SIDE * SIDE],
        }
    }

    /// Blends `shade(x, y) = (colour, coverage)` over the pixels whose centres lie within `bounds`.
    #[inline(always)]
    pub(super) fn blend(&mut self, bounds: Bounds, shade: impl Fn(f32, f32) -> (Colour, f32)) {
        let clamp = |v: f32| v.clamp(0.0, SIDE as f32) as usize;
        let (left, right) = (clamp(bounds[0].floor()), clamp(bounds[2].ceil()));
        for row in clamp(bounds[1].floor())..clamp(bounds[3].ceil()) {
            let y = row as f32 + 0.5;
            for (i, pixel) in self.pixels[row * SIDE..][..SIDE]
                .iter_mut()
                .enumerate()
                .take(right)
                .skip(left)
            {
                let (colour, alpha) = shade(i as f32 + 0.5, y);
                if alpha > 0.0 {
                    let alpha = alpha.min(1.0);
                    for (old, new) in pixel.iter_mut().zip(colour) {
                        *old += (new - *old) * alpha;
                    }
                }
            }
        }
    }

    /// Paints the shape `distance(u, v) < 0` of a patch in one colour, antialiased; `softness` widens the edge, in
    /// the patch's units.
    #[inline(always)]
    pub(super) fn paint(
        &mut self,
        patch: &Patch,
        local: Bounds,
        colour: Colour,
        strength: f32,
        softness: f32,
        distance: impl Fn(f32, f32) -> f32,
    ) {
        let sharpness = 1.0 / (1.0 / patch.unit + softness);
        let reach = 0.5 * softness;
        let bounds = patch.pixel_bounds([
            local[0] - reach,
            local[1] - reach,
            local[2] + reach,
            local[3] + reach,
        ]);
        let [[a, b], [c, d]] = patch.inverse;
        self.blend(bounds, |x, y| {
            let (x, y) = (x - patch.centre[0], y - patch.centre[1]);
            let (u, v) = (a * x + b * y, c * x + d * y);
            let cover = (0.5 - distance(u, v) * sharpness).clamp(0.0, 1.0);
            (colour, smooth(cover) * strength)
        });
    }

    /// Blurs with the kernel of standard deviation `sigma` pixels, cut off at two pixels.
    pub(super) fn blur(&mut self, sigma: f32) {
        let weight = |d: f32| (-d * d / (2.0 * sigma * sigma)).exp();
        let total = 1.0 + 2.0 * (weight(1.0) + weight(2.0));
        let w = [1.0 / total, weight(1.0) / total, weight(2.0) / total];
        let mut row = [[0.0f32; 3]; SIDE + 4];
        for pixels in self.pixels.chunks_exact_mut(SIDE) {
            row[2..SIDE + 2].copy_from_slice(pixels);
            row[..2].fill(pixels[0]);
            row[SIDE + 2..].fill(pixels[SIDE - 1]);
            for (i, pixel) in pixels.iter_mut().enumerate() {
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = w[0] * row[i + 2][c]
                        + w[1] * (row[i + 1][c] + row[i + 3][c])
                        + w[2] * (row[i][c] + row[i + 4][c]);
                }
            }
        }
        // Down the columns a row at a time, keeping the two rows above as they were.
        let line = |pixels: &[Colour], y: usize| -> [Colour; SIDE] {
            std::array::from_fn(|x| pixels[y.min(SIDE - 1) * SIDE + x])
        };
        let mut above = [line(&self.pixels, 0), line(&self.pixels, 0)];
        for y in 0..SIDE {
            let here = line(&self.pixels, y);
            let (next, last) = ((y + 1).min(SIDE - 1) * SIDE, (y + 2).min(SIDE - 1) * SIDE);
            for x in 0..SIDE {
                for c in 0..3 {
                    // The rows below are still unblurred in this direction; at the bottom edge they repeat `here`.
                    let below = if y + 1 < SIDE {
                        self.pixels[next + x][c]
                    } else {
                        here[x][c]
                    };
                    let lower = if y + 1 < SIDE {
                        self.pixels[last + x][c]
                    } else {
                        here[x][c]
                    };
                    self.pixels[y * SIDE + x][c] = w[0] * here[x][c]
                        + w[1] * (above[1][x][c] + below)
                        + w[2] * (above[0][x][c] + lower);
                }
            }
            above = [above[1], here];
        }
    }
}

/// The smoothstep polynomial on [0, 1].
#[inline(always)]
pub(super) fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

/// 0 below `low`, 1 above `high`, smooth between.
#[inline(always)]
pub(super) fn step(low: f32, high: f32, x: f32) -> f32 {
    smooth(((x - low) * (1.0 / (high - low))).clamp(0.0, 1.0))
}

/// Signed distance to an axis-parallel ellipse around the origin, exact to first order near its edge.
#[inline(always)]
pub(super) fn ellipse(u: f32, v: f32, a: f32, b: f32) -> f32 {
    let (p, q) = (u / a, v / b);
    let (p2, q2) = (p / a, q / b);
    let inner = (p * p + q * q).sqrt();
    inner * (inner - 1.0) / (p2 * p2 + q2 * q2).sqrt().max(1e-6)
}

/// Signed distance to a box with half sides `a`, `b` and corners rounded by `radius`.
#[inline(always)]
pub(super) fn rounded_box(u: f32, v: f32, a: f32, b: f32, radius: f32) -> f32 {
    let (p, q) = (u.abs() - a + radius, v.abs() - b + radius);
    let outside = (p.max(0.0).powi(2) + q.max(0.0).powi(2)).sqrt();
    outside + p.max(q).min(0.0) - radius
}

/// Signed distance to the segment from `from` to `to`, thickened to radius `radius`.
#[inline(always)]
pub(super) fn capsule(x: f32, y: f32, from: [f32; 2], to: [f32; 2], radius: f32) -> f32 {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let (px, py) = (x - from[0], y - from[1]);
    let t = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
    ((px - t * dx).powi(2) + (py - t * dy).powi(2)).sqrt() - radius
}

/// What the camera does to the colours.
pub(super) struct Camera {
    /// Gains of red, green and blue: exposure and colour temperature.
    pub(super) gain: Colour,
    pub(super) saturation: f32,
    pub(super) contrast: f32,
    /// Standard deviation of the noise, for values in [0, 1].
    pub(super) noise: f32,
}

impl Camera {
    /// Develops `canvas` into bytes, RGB.
    pub(super) fn develop(&self, canvas: &Canvas, random: &mut Random, bytes: &mut Vec<u8>) {
        // Two fields of five bits sum to a triangular distribution of this deviation; a word serves three channels.
        let deviation = (2.0 * (32.0f32 * 32.0 - 1.0) / 12.0).sqrt();
        let noise = 255.0 * self.noise / deviation;
        // Saturation and contrast move every channel along with the pixel's grey.
        let own = self.saturation * self.contrast;
        let shared = (1.0 - self.saturation) * self.contrast;
        let offset = 0.5 * (1.0 - self.contrast);
        bytes.clear();
        bytes.resize(SIDE * SIDE * 3, 0);
        for (pixel, out) in canvas.pixels.iter().zip(bytes.chunks_exact_mut(3)) {
            let lit: Colour = std::array::from_fn(|c| pixel[c] * self.gain[c]);
            let grey = offset + shared * (0.3 * lit[0] + 0.59 * lit[1] + 0.11 * lit[2]);
            let mut word = random.next_u32();
            for (value, byte) in lit.into_iter().zip(out) {
                let value = grey + value * own;
                // The top of the scale bends instead of burning out.
                let above = (value - 0.8).max(0.0);
                let value = value.min(0.8) + 0.2 * above / (above + 0.2);
                let sum = (word & 31) + (word >> 5 & 31);
                word >>= 10;
                let value = value * 255.0 + noise * (sum as f32 - 31.0) + 0.5;
                *byte = value as u8;
            }
        }
    }
}
