//! What varies from image to image: light, expression, and the head's position with the geometry that follows from it.

use super::canvas::{Patch, smooth};
use super::identity::Identity;
use crate::base::random::Random;

/// Light that reaches the face, in the camera's frame.
pub(super) struct Light {
    pub(super) direction: [f32; 3],
    pub(super) ambient: f32,
    pub(super) diffuse: f32,
}

/// What the face does.
pub(super) struct Expression {
    /// 0 closed, 1 wide open.
    pub(super) mouth: f32,
    /// -1 glum, 1 beaming.
    pub(super) smile: f32,
    /// How far the brows are raised.
    pub(super) brows: f32,
    /// 1 open, 0 closed.
    pub(super) lids: f32,
    pub(super) gaze: [f32; 2],
}

/// The head's position: rotation rows (camera x, y, z of the head's axes), pixels a unit, centre in pixels.
pub(super) struct Pose {
    pub(super) rotation: [[f32; 3]; 3],
    pub(super) scale: f32,
    pub(super) centre: [f32; 2],
    /// The ellipsoid's half axes.
    pub(super) radii: [f32; 3],
    pub(super) yaw: (f32, f32),
    pub(super) pitch: (f32, f32),
    pub(super) roll: (f32, f32),
    /// The light's direction in the head's frame.
    pub(super) light: [f32; 3],
}

impl Pose {
    pub(super) fn new(person: &Identity, r: &mut Random, light: &Light) -> Self {
        let degrees = |d: f32| d.to_radians().sin_cos();
        let spread = |r: &mut Random, deviation: f32| deviation * r.normal().clamp(-2.0, 2.0);
        let yaw = degrees(spread(r, 6.0));
        let pitch = degrees(spread(r, 3.0));
        let roll = degrees(spread(r, 2.0));
        let (sy, cy) = yaw;
        let (sp, cp) = pitch;
        let (sr, cr) = roll;
        // About y, then about x (positive looks up: y points down), then in the image plane.
        let turned = [
            [cy, 0.0, sy],
            [sp * sy, cp, -sp * cy],
            [-cp * sy, sp, cp * cy],
        ];
        let rotation = [
            std::array::from_fn(|i| cr * turned[0][i] - sr * turned[1][i]),
            std::array::from_fn(|i| sr * turned[0][i] + cr * turned[1][i]),
            turned[2],
        ];
        let scale = 46.0 * (1.0 + spread(r, 0.015));
        let centre = [
            56.0 + spread(r, 0.7) - 0.25 * sy * scale,
            59.0 + spread(r, 0.7) + 0.2 * sp * scale,
        ];
        let light =
            std::array::from_fn(|i| (0..3).map(|k| rotation[k][i] * light.direction[k]).sum());
        Pose {
            rotation,
            scale,
            centre,
            radii: [1.03 * person.head.width, 1.1, person.head.depth],
            yaw,
            pitch,
            roll,
            light,
        }
    }

    pub(super) fn project(&self, p: [f32; 3]) -> [f32; 2] {
        std::array::from_fn(|k| {
            let row = &self.rotation[k];
            self.centre[k] + self.scale * (row[0] * p[0] + row[1] * p[1] + row[2] * p[2])
        })
    }

    /// Depth of the front surface at (x, y) of the face.
    pub(super) fn depth(&self, x: f32, y: f32) -> f32 {
        let [a, b, c] = self.radii;
        c * (1.0 - (x / a).powi(2) - (y / b).powi(2)).max(0.02).sqrt()
    }

    /// The tangent plane at (x, y) of the face, lifted by `lift`.
    pub(super) fn patch(&self, x: f32, y: f32, lift: f32) -> Option<Patch> {
        let z = self.depth(x, y);
        let [a, b, c] = self.radii;
        // Slopes of the surface; limited, as the ellipsoid falls away faster than a face does.
        let zx = (-c * c * x / (a * a * z)).clamp(-1.2, 1.2);
        let zy = (-c * c * y / (b * b * z)).clamp(-0.8, 0.8);
        let forward = std::array::from_fn(|k| {
            let row = &self.rotation[k];
            [
                self.scale * (row[0] + zx * row[2]),
                self.scale * (row[1] + zy * row[2]),
            ]
        });
        Patch::new(self.project([x, y, z + lift]), forward)
    }

    /// Brightness of a surface with this normal (head's frame, any length).
    #[inline(always)]
    pub(super) fn lit(&self, light: &Light, n: [f32; 3]) -> f32 {
        let l = &self.light;
        let dot = n[0] * l[0] + n[1] * l[1] + n[2] * l[2];
        let length = (n[0] * n[0] + n[1] * n[1] + n[2] * n[2]).sqrt();
        light.ambient + light.diffuse * (0.15 + 0.85 * dot / length).max(0.0)
    }

    pub(super) fn lit_at(&self, light: &Light, x: f32, y: f32) -> f32 {
        let [a, b, c] = self.radii;
        self.lit(
            light,
            [x / (a * a), y / (b * b), self.depth(x, y) / (c * c)],
        )
    }

    /// The map from pixels to the head's surface.
    pub(super) fn surface(&self) -> Surface {
        let [r0, r1, r2] = self.rotation;
        let inverse = self.radii.map(|r| 1.0 / (r * r));
        let dot =
            |p: [f32; 3], q: [f32; 3]| -> f32 { (0..3).map(|i| p[i] * q[i] * inverse[i]).sum() };
        Surface {
            axes: [r0, r1, r2],
            square: [dot(r0, r0), 2.0 * dot(r0, r1), dot(r1, r1)],
            along: [dot(r0, r2), dot(r1, r2)],
            depth: dot(r2, r2),
            over_depth: 1.0 / dot(r2, r2),
        }
    }
}

/// The ellipsoid met by a line of sight: the quadratic equation's coefficients, as functions of the pixel.
pub(super) struct Surface {
    pub(super) axes: [[f32; 3]; 3],
    pub(super) square: [f32; 3],
    pub(super) along: [f32; 2],
    pub(super) depth: f32,
    pub(super) over_depth: f32,
}

impl Surface {
    /// The point of the head's surface under (x, y), in units from the head's centre, rolled as the image is.
    #[inline(always)]
    pub(super) fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let aa = self.square[0] * x * x + self.square[1] * x * y + self.square[2] * y * y - 1.0;
        let ab = self.along[0] * x + self.along[1] * y;
        // Beside the head: the point where the line passes closest, more or less.
        let t = (-ab + (ab * ab - aa * self.depth).max(0.0).sqrt()) * self.over_depth;
        let [r0, r1, r2] = &self.axes;
        std::array::from_fn(|i| r0[i] * x + r1[i] * y + r2[i] * t)
    }
}

/// The head's outline, upright: x to the right and y down from the head's centre, in units.
pub(super) struct Outline {
    pub(super) width: f32,
    pub(super) top: f32,
    pub(super) bottom: f32,
    pub(super) taper: f32,
    pub(super) square: f32,
    /// How far chin and crown are shifted sideways by turning the head.
    pub(super) shift: [f32; 2],
}

impl Outline {
    /// Signed distance, roughly, near the outline; far from it only the sign is right.
    #[inline(always)]
    pub(super) fn distance(&self, x: f32, y: f32, wider: &Widened) -> f32 {
        let down = y > 0.0;
        let over_height = if down {
            wider.over_bottom
        } else {
            wider.over_top
        };
        let b = y.abs() * over_height;
        let s = smooth(b.min(1.0));
        let (shift, taper, square) = if down {
            (self.shift[0], self.taper, 0.8 * self.square)
        } else {
            (self.shift[1], 0.0, 0.25)
        };
        let over_width = 1.0 / (wider.width * (1.0 - taper * s * b.min(1.0)));
        let a = (x - shift * s) * over_width;
        let (a2, b2) = (a * a, b * b);
        let (ca, cb) = (1.0 - square * a2.min(1.0), 1.0 - square * b2.min(1.0));
        let value = a2 * cb + b2 - 1.0;
        if value.abs() > 0.4 {
            return value;
        }
        let (ga, gb) = (2.0 * a * cb * over_width, 2.0 * b * ca * over_height);
        value / (ga * ga + gb * gb).sqrt().max(0.2)
    }

    /// The outline `side` wider and `above` higher.
    pub(super) fn widened(&self, side: f32, above: f32) -> Widened {
        Widened {
            width: self.width + side,
            over_top: 1.0 / (self.top + above),
            over_bottom: 1.0 / self.bottom,
        }
    }
}

/// The size of an outline, ready for [`Outline::distance`].
pub(super) struct Widened {
    pub(super) width: f32,
    pub(super) over_top: f32,
    pub(super) over_bottom: f32,
}

impl Light {
    pub(super) fn new(r: &mut Random) -> Self {
        let (x, y) = (r.range(-0.85, 0.85), r.range(-0.8, 0.35));
        let z = 0.75;
        let length = (x * x + y * y + z * z).sqrt();
        let ambient = r.range(0.55, 0.88);
        Light {
            direction: [x / length, y / length, z / length],
            ambient,
            diffuse: (1.08 - ambient) * r.range(0.85, 1.25),
        }
    }
}

impl Expression {
    pub(super) fn new(r: &mut Random) -> Self {
        Expression {
            mouth: if r.uniform() < 0.4 { r.uniform() } else { 0.0 },
            smile: r.range(-0.3, 0.9),
            brows: r.range(-0.02, 0.04),
            lids: if r.uniform() < 0.06 {
                r.range(0.1, 0.4)
            } else {
                r.range(0.65, 1.05)
            },
            gaze: [r.range(-0.4, 0.4), r.range(-0.15, 0.2)],
        }
    }
}

impl Outline {
    pub(super) fn new(person: &Identity, pose: &Pose, expression: &Expression) -> Self {
        let head = &person.head;
        let ((sy, cy), (sp, cp)) = (pose.yaw, pose.pitch);
        Outline {
            width: ((head.width * cy).powi(2) + (head.depth * sy).powi(2)).sqrt(),
            top: head.crown,
            bottom: (head.chin + 0.06 * expression.mouth) * cp - 0.4 * sp,
            taper: head.taper,
            square: head.square,
            shift: [0.45 * sy, -0.12 * sy],
        }
    }
}
