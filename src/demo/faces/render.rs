//! Paints one image: a person under one pose, light and expression.
//!
//! The head is an ellipsoid seen without perspective. A feature sits at a point of its surface and is drawn in the
//! tangent plane there, so that turning the head moves and foreshortens it; what covers large areas (hairline, beard,
//! light) is evaluated at the surface point under each pixel. The outline with its jaw is a flat shape that follows the
//! pose.

use super::canvas::{Bounds, Camera, Canvas, Patch, SIDE, ellipse, rounded_box, smooth, step};
use super::identity::{Colour, Identity, mix, scaled, stream};
use super::pose::{Expression, Light, Outline, Pose};
use crate::base::random::Random;

/// A sawtooth from -0.5 to 0.5 with period 1; `x` above -64.
#[inline(always)]
fn cycle(x: f32) -> f32 {
    let x = x + 64.0;
    x - x as i32 as f32 - 0.5
}

/// One image on its way: person, circumstances and canvas.
pub(super) struct Painter<'a> {
    pub(super) person: &'a Identity,
    pub(super) pose: Pose,
    pub(super) light: Light,
    pub(super) expression: Expression,
    pub(super) outline: Outline,
    pub(super) canvas: Canvas,
}

/// Renders image `variation` of person `identity` in the world `seed` into `bytes` (112x112, RGB).
pub(super) fn render(seed: u64, identity: u32, variation: u32, bytes: &mut Vec<u8>) {
    let person = Identity::new(seed, identity);
    let r = &mut stream(seed, identity, variation);
    let light = Light::new(r);
    let pose = Pose::new(&person, r, &light);
    let expression = Expression::new(r);
    let outline = Outline::new(&person, &pose, &expression);
    let mut painter = Painter {
        person: &person,
        pose,
        light,
        expression,
        outline,
        canvas: Canvas::new(),
    };
    painter.background(r);
    painter.behind(r);
    painter.head();
    painter.marks();
    painter.eyes();
    painter.nose();
    painter.mouth();
    if r.uniform() < 0.95 {
        painter.glasses();
    }
    let mut canvas = painter.canvas;
    canvas.blur(r.range(0.3, 0.9));
    camera(r).develop(&canvas, r, bytes);
}

/// A random exposure, colour temperature and grade of noise.
fn camera(r: &mut Random) -> Camera {
    let exposure = r.range(0.80, 1.18);
    let (temperature, tint) = (r.range(-0.05, 0.05), r.range(-0.015, 0.015));
    Camera {
        gain: [
            exposure * (1.0 + temperature),
            exposure * (1.0 + tint),
            exposure * (1.0 - temperature),
        ],
        saturation: r.range(0.85, 1.15),
        contrast: r.range(0.9, 1.1),
        noise: r.range(0.004, 0.020),
    }
}

fn random_colour(r: &mut Random) -> Colour {
    let value = r.range(0.05, 0.95);
    std::array::from_fn(|_| (value + r.range(-0.25, 0.25)).clamp(0.0, 1.0))
}

impl Painter<'_> {
    fn background(&mut self, r: &mut Random) {
        let (first, second) = (random_colour(r), random_colour(r));
        let angle = r.range(0.0, std::f32::consts::TAU);
        let (sin, cos) = angle.sin_cos();
        const CELLS: usize = 8;
        let strength = r.range(0.0, 0.35);
        let lattice: [[f32; CELLS + 1]; CELLS + 1] =
            std::array::from_fn(|_| std::array::from_fn(|_| r.range(-0.5, 0.5)));
        let columns: [(usize, f32); SIDE] = std::array::from_fn(|x| {
            let at = (x as f32 + 0.5) * CELLS as f32 / SIDE as f32;
            (at as usize, smooth(at.fract()))
        });
        for (y, row) in self.canvas.pixels.chunks_exact_mut(SIDE).enumerate() {
            let (j, v) = columns[y];
            let nodes: [f32; CELLS + 1] = std::array::from_fn(|i| {
                strength * (lattice[j][i] + (lattice[j + 1][i] - lattice[j][i]) * v)
            });
            for ((x, pixel), (i, u)) in row.iter_mut().enumerate().zip(columns) {
                let t = 0.5 + ((x as f32 - 55.5) * cos + (y as f32 - 55.5) * sin) * (0.5 / 79.0);
                let noise = nodes[i] + (nodes[i + 1] - nodes[i]) * u;
                *pixel = mix(first, second, t).map(|c| c + noise);
            }
        }
        for _ in 0..r.below(5) {
            let centre = [r.range(0.0, 112.0), r.range(0.0, 112.0)];
            let (sin, cos) = r.range(0.0, std::f32::consts::TAU).sin_cos();
            let (a, b) = (r.range(4.0, 30.0), r.range(4.0, 30.0));
            let (colour, softness) = (random_colour(r), r.range(0.0, 5.0));
            let boxed = r.uniform() < 0.5;
            let Some(patch) = Patch::new(centre, [[cos, -sin], [sin, cos]]) else {
                continue;
            };
            self.canvas
                .paint(&patch, [-a, -b, a, b], colour, 1.0, softness, |u, v| {
                    if boxed {
                        rounded_box(u, v, a, b, 2.0)
                    } else {
                        ellipse(u, v, a, b)
                    }
                });
        }
    }

    /// Hair behind the head, neck, clothes and ears.
    fn behind(&mut self, r: &mut Random) {
        let (person, pose) = (self.person, &self.pose);
        let (head, hair) = (&person.head, &person.hair);
        let (sr, cr) = pose.roll;
        let scale = pose.scale;
        let dim = self.light.ambient * 0.75 + 0.1;
        let lean = Patch::new(
            pose.centre,
            [[scale * cr, -scale * sr], [scale * sr, scale * cr]],
        );
        let Some(lean) = lean else { return };
        if hair.cover > 0.0 {
            let (a, top) = (
                head.width + 0.5 * hair.side + 0.05,
                head.crown + 0.6 * hair.volume,
            );
            let middle = 0.5 * (hair.length - top);
            let half = 0.5 * (hair.length + top);
            let shift = -0.25 * pose.yaw.0;
            self.canvas.paint(
                &lean,
                [-a + shift, -top, a + shift, hair.length],
                scaled(hair.colour, dim),
                1.0,
                0.04,
                |u, v| rounded_box(u - shift, v - middle, a, half, 0.95 * a.min(half)),
            );
        }
        let neck = head.width * (0.48 + 0.2 * head.square);
        self.canvas.paint(
            &lean,
            [-neck - 0.1, 0.3, neck + 0.1, 2.0],
            scaled(person.skin, 0.72 * dim + 0.1),
            1.0,
            0.02,
            |u, v| (u - 0.1 * pose.yaw.0).abs() - neck - 0.1 * (v - 1.2).max(0.0),
        );
        let clothes = random_colour(r);
        let (collar, slope) = (r.range(1.10, 1.30), r.range(0.1, 0.5));
        self.canvas
            .paint(&lean, [-2.0, 0.9, 2.0, 2.2], clothes, 1.0, 0.02, |u, v| {
                collar + 0.35 * (0.4 - u.abs()).max(0.0) + slope * (u.abs() - 0.4).max(0.0) - v
            });
        if hair.cover > 0.0 && hair.sideburn > 0.15 {
            return;
        }
        for side in [-1.0f32, 1.0] {
            let z = -0.02;
            let x = side * (head.width * 0.99 + head.ear_out);
            let middle = pose.project([x, 0.02, z]);
            let wide = head.ear * (0.5 + 0.5 * (side * pose.yaw.0).max(-0.5));
            let Some(ear) = Patch::new(
                middle,
                [[scale * cr, -scale * sr], [scale * sr, scale * cr]],
            ) else {
                continue;
            };
            let tone = pose.lit(&self.light, [side, 0.0, 0.6]);
            let (a, b) = (wide, 1.25 * head.ear);
            let reach = [-a, -b, a, b];
            let skin = scaled(person.skin, 0.95 * tone);
            self.canvas
                .paint(&ear, reach, skin, 1.0, 0.0, |u, v| ellipse(u, v, a, b));
            let inner = scaled(person.skin, 0.72 * tone);
            self.canvas.paint(&ear, reach, inner, 0.8, 0.03, |u, v| {
                ellipse(u, v + 0.1 * b, 0.6 * a, 0.6 * b)
            });
        }
    }

    /// Skin with its light, beard and front hair: everything evaluated pixel by pixel on the head's surface.
    fn head(&mut self) {
        let (person, pose, light, outline) = (self.person, &self.pose, &self.light, &self.outline);
        let (head, hair) = (&person.head, &person.hair);
        let (sr, cr) = pose.roll;
        let scale = pose.scale;
        let inverse = pose.radii.map(|r| 1.0 / (r * r));
        let reach = scale * (outline.width + hair.side + 0.10);
        let bounds: Bounds = [
            pose.centre[0] - reach,
            pose.centre[1] - scale * (outline.top + hair.volume + 0.15),
            pose.centre[0] + reach,
            pose.centre[1] + scale * (outline.bottom + 0.1).max(hair.sideburn),
        ];
        let beard = person.beard.as_ref();
        let mouth_y = person.nose_mouth.mouth_y;
        let (surface, unit) = (pose.surface(), 1.0 / scale);
        let (bare, covered) = (
            outline.widened(0.0, 0.0),
            outline.widened(hair.side, hair.volume),
        );
        self.canvas.blend(bounds, |px, py| {
            let (x, y) = ((px - pose.centre[0]) * unit, (py - pose.centre[1]) * unit);
            let (ux, uy) = (cr * x + sr * y, -sr * x + cr * y);
            let skin_cover = (0.5 - outline.distance(ux, uy, &bare) * scale).clamp(0.0, 1.0);
            let hair_edge = if hair.cover <= 0.0 {
                0.0
            } else if skin_cover >= 1.0 {
                1.0
            } else {
                (0.5 - outline.distance(ux, uy, &covered) * scale * 0.7).clamp(0.0, 1.0)
            };
            if skin_cover <= 0.0 && hair_edge <= 0.0 {
                return ([0.0; 3], 0.0);
            }
            let at = surface.at(x, y);
            let normal = [at[0] * inverse[0], at[1] * inverse[1], at[2] * inverse[2]];
            let mut tone = pose.lit(light, normal);
            let side = at[0].abs();
            // The hollow below the cheekbones, and the shade under the brow.
            let hollow =
                step(0.30, 0.62, side) * step(0.08, 0.30, at[1]) * (1.0 - step(0.4, 0.8, at[1]));
            tone *= 1.0 - 0.20 * head.cheekbone * hollow;
            let mut colour = scaled(person.skin, tone);
            if let Some(beard) = beard {
                let jaw =
                    step(0.0, 0.16, side - 0.50 + 0.30 * (at[1] - 0.2)) * step(-0.15, 0.30, at[1]);
                let under = step(0.0, 0.15, at[1] - mouth_y - 0.22 + 0.3 * side);
                let chin = under * (1.0 - step(0.22, 0.34, side));
                let below = under * beard.jaw.min(1.0);
                let strength = (beard.jaw * jaw).max(below).max(beard.chin * chin);
                colour = mix(
                    colour,
                    scaled(beard.colour, 0.4 + 0.6 * tone),
                    strength.min(1.0) * 0.9,
                );
            }
            let mut cover = skin_cover;
            if hair_edge > 0.0 {
                let dx = at[0] - hair.parting;
                let fall = if dx < 0.0 { hair.fall[0] } else { hair.fall[1] };
                let bump = step(0.12, 0.42, side) * (1.0 - step(0.50, 0.80, side));
                let ripple = cycle(at[0] * 5.0 + 0.25);
                let line = hair.line + fall * dx.abs() - hair.temple * bump
                    + hair.wave * (4.0 * ripple.abs() - 1.0);
                let from = head.width * 0.93 - 0.8 * hair.side;
                let field = (at[1] - line).min((from - side).max(at[1] - hair.sideburn));
                let hair_cover = (0.5 - field * scale * 0.6).clamp(0.0, 1.0) * hair_edge;
                if hair_cover > 0.0 {
                    let strand = cycle(at[0] * 9.0 + (at[1] + 0.6 * dx.abs()) * 3.5);
                    let shine = 0.85 + 0.3 * strand.abs() + 0.35 * (tone - 0.8).max(0.0);
                    let tint = scaled(hair.colour, (0.25 + 0.75 * tone) * shine);
                    // Over bare background there is hair alone; over skin the two are mixed.
                    cover = skin_cover.max(hair_cover);
                    colour = mix(colour, tint, hair_cover / cover.max(1e-6));
                }
            }
            (colour, cover)
        });
    }

    fn marks(&mut self) {
        let person = self.person;
        for mark in &person.marks {
            let Some(patch) = self.pose.patch(mark.x, mark.y, 0.0) else {
                continue;
            };
            let tone = self.pose.lit_at(&self.light, mark.x, mark.y);
            let colour = scaled([0.28, 0.16, 0.11], tone);
            let reach = mark.radius;
            self.canvas.paint(
                &patch,
                [-reach, -reach, reach, reach],
                colour,
                mark.strength,
                0.006,
                |u, v| (u * u + v * v).sqrt() - mark.radius,
            );
        }
        if person.head.cleft > 0.0
            && let Some(patch) = self.pose.patch(0.0, person.head.chin - 0.14, 0.0)
        {
            let colour = scaled(person.skin, 0.45);
            self.canvas.paint(
                &patch,
                [-0.04, -0.09, 0.04, 0.09],
                colour,
                0.6 * person.head.cleft,
                0.03,
                |u, v| ellipse(u, v, 0.018, 0.07),
            );
        }
    }
}
