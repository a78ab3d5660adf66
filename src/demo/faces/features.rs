//! The features of the face: eyes and brows, nose, mouth, glasses. Each is drawn in the tangent plane at its place.

use super::canvas::{Patch, capsule, ellipse, rounded_box};
use super::identity::{mix, scaled};
use super::render::Painter;

impl Painter<'_> {
    pub(super) fn eyes(&mut self) {
        let (person, expression) = (self.person, &self.expression);
        let eyes = &person.eyes;
        for side in [-1.0f32, 1.0] {
            let Some(patch) = self.pose.patch(side * eyes.x, eyes.y, 0.0) else {
                continue;
            };
            // Mirrored, so that in both eyes +u points outwards; positive slant lifts the outer corner.
            let local = patch.turned(-eyes.slant, side);
            let tone = self.pose.lit_at(&self.light, side * eyes.x, eyes.y);
            let (w, open) = (eyes.width, expression.lids);
            let squint = 1.0 - 0.2 * expression.smile.max(0.0);
            let (upper, lower) = (
                eyes.height * open,
                0.62 * eyes.height * open * squint + 0.004,
            );
            let skin = scaled(person.skin, tone);
            let canvas = &mut self.canvas;

            let socket = scaled(skin, 0.72);
            canvas.paint(
                &local,
                [-0.3, -0.25, 0.3, 0.2],
                socket,
                0.45,
                0.12,
                |u, v| ellipse(u, v + 0.03, 0.19, 0.12),
            );
            if eyes.bags > 0.3 {
                canvas.paint(
                    &local,
                    [-0.2, 0.0, 0.2, 0.25],
                    scaled(skin, 0.62),
                    0.55 * eyes.bags,
                    0.03,
                    |u, v| {
                        let curve = 0.145 - 1.6 * u * u;
                        ((v - curve).abs() - 0.008).max(u.abs() - 0.16)
                    },
                );
            }
            let slope_u =
                move |u: f32, h: f32| 1.0 / (1.0 + (2.0 * h * u / (w * w)).powi(2)).sqrt();
            let almond = move |u: f32, v: f32| {
                let arc = 1.0 - (u / w).powi(2);
                let above = (-v - upper * arc) * slope_u(u, upper);
                let below = (v - lower * arc) * slope_u(u, lower);
                above.max(below)
            };
            let reach = [-w, -upper, w, lower];
            canvas.paint(
                &local,
                reach,
                scaled([0.93, 0.92, 0.90], 0.25 + 0.75 * tone),
                1.0,
                0.0,
                almond,
            );
            let gaze = [
                expression.gaze[0] * side * 0.14,
                expression.gaze[1] * 0.12 - 0.005,
            ];
            let iris = scaled(eyes.iris_colour, 0.3 + 0.7 * tone);
            for (radius, colour) in [
                (eyes.iris * 1.08, scaled(iris, 0.45)),
                (eyes.iris * 0.86, iris),
                (eyes.iris * 0.42, [0.03, 0.03, 0.03]),
            ] {
                canvas.paint(&local, reach, colour, 1.0, 0.0, |u, v| {
                    let (du, dv) = (u - gaze[0], v - gaze[1]);
                    almond(u, v).max((du * du + dv * dv).sqrt() - radius)
                });
            }
            let spark = [gaze[0] - 0.03 * side, gaze[1] - 0.03];
            canvas.paint(&local, reach, [1.0, 1.0, 1.0], 0.8, 0.0, |u, v| {
                let (du, dv) = (u - spark[0], v - spark[1]);
                almond(u, v).max((du * du + dv * dv).sqrt() - 0.018)
            });
            let lash = scaled(
                mix(eyes.brow_colour, [0.08, 0.06, 0.05], 0.6),
                0.4 + 0.4 * tone,
            );
            canvas.paint(
                &local,
                [-w - 0.03, -upper - 0.03, w + 0.03, 0.05],
                lash,
                0.95,
                0.0,
                |u, v| {
                    let arc = 1.0 - (u / w).powi(2);
                    let line = (v + upper * arc).abs() * slope_u(u, upper) - 0.015;
                    line.max(u.abs() - w - 0.02)
                },
            );
            canvas.paint(
                &local,
                [-w, 0.0, w, lower + 0.02],
                scaled(skin, 0.5),
                0.5,
                0.0,
                |u, v| {
                    let arc = 1.0 - (u / w).powi(2);
                    ((v - lower * arc).abs() - 0.007).max(u.abs() - w)
                },
            );
            if eyes.crease > 0.0 {
                let height = eyes.height + eyes.crease;
                canvas.paint(
                    &local,
                    [-w, -height - 0.02, w, 0.0],
                    scaled(skin, 0.5),
                    0.7,
                    0.0,
                    |u, v| {
                        let arc = 1.0 - (u / (w * 1.1)).powi(2);
                        ((v + height * arc).abs() - 0.009).max(u.abs() - w)
                    },
                );
            }

            let Some(brow) = self.pose.patch(
                side * eyes.x,
                eyes.y - eyes.brow_gap - expression.brows,
                0.03,
            ) else {
                continue;
            };
            let brow = brow.turned(0.0, side);
            let (length, thickness) = (eyes.brow_length, eyes.brow_thickness);
            let colour = scaled(eyes.brow_colour, 0.35 + 0.65 * tone);
            let high = 0.1 + eyes.brow_arch + length * eyes.brow_slant.abs();
            canvas.paint(
                &brow,
                [-length, -high, length, high],
                colour,
                0.92,
                0.012,
                |u, v| {
                    let t = u / length;
                    let middle = -eyes.brow_slant * u - eyes.brow_arch * (1.0 - t * t)
                        + 0.5 * eyes.brow_arch;
                    let half = thickness * (0.72 - 0.28 * t);
                    ((v - middle).abs() - half).max(u.abs() - length)
                },
            );
        }
    }

    pub(super) fn nose(&mut self) {
        let (person, light) = (self.person, &self.light);
        let shape = &person.nose_mouth;
        let tip_y = shape.nose_y;
        let pose = &self.pose;
        let root = pose.project([0.0, person.eyes.y - 0.02, pose.depth(0.0, 0.0) + 0.02]);
        let tip = pose.project([0.0, tip_y, pose.depth(0.0, tip_y) + shape.nose_height]);
        let unit = pose.scale;
        let tone = pose.lit_at(light, 0.0, tip_y);
        let skin = scaled(person.skin, tone);
        let (sr, cr) = pose.roll;
        let canvas = &mut self.canvas;
        let Some(page) = Patch::new([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]) else {
            return;
        };
        // The flank away from the light is dark, the other one bright; the far flank is narrower in a turned head.
        for side in [-1.0f32, 1.0] {
            let facing = pose.light[0] * side;
            let shade = if facing < 0.0 {
                0.74
            } else {
                0.84 + 0.36 * facing
            };
            let flank = unit * shape.bridge * (1.0 + side * pose.yaw.0 * -0.8).max(0.3);
            let wing = unit * shape.nose_width * 0.75 * (1.0 + side * pose.yaw.0 * -0.8).max(0.3);
            let from = [root[0] + side * flank * cr, root[1] + side * flank * sr];
            let to = [tip[0] + side * wing * cr, tip[1] + side * wing * sr];
            let thick = 0.035 * unit;
            let bounds = [
                from[0].min(to[0]) - thick,
                from[1].min(to[1]) - thick,
                from[0].max(to[0]) + thick,
                from[1].max(to[1]) + thick,
            ];
            canvas.paint(
                &page,
                bounds,
                scaled(skin, shade),
                0.65,
                0.07 * unit,
                |x, y| capsule(x, y, from, to, thick),
            );
        }
        let Some(ball) = pose.patch(0.0, tip_y, 0.7 * shape.nose_height) else {
            return;
        };
        let width = shape.nose_width;
        let under = scaled(skin, 0.62);
        // Wings with a dark rim, the ball of the tip, nostrils, and the shadow below.
        canvas.paint(
            &ball,
            [-width, -0.1, width, 0.16],
            under,
            0.6,
            0.03,
            |u, v| ellipse(u, v - 0.055, width * 1.02, 0.08),
        );
        for side in [-1.0f32, 1.0] {
            let x = side * width * 0.68;
            let bright = 0.92 + 0.16 * pose.light[0] * side;
            canvas.paint(
                &ball,
                [x - 0.15, -0.12, x + 0.15, 0.14],
                scaled(skin, bright),
                0.95,
                0.02,
                |u, v| ellipse(u - x, v - 0.015, width * 0.36, 0.062),
            );
        }
        let ball_size = 0.05 + 0.38 * width;
        canvas.paint(
            &ball,
            [-ball_size, -0.12, ball_size, 0.12],
            scaled(skin, 1.06),
            0.9,
            0.04,
            |u, v| ellipse(u, v + 0.005, ball_size, 0.085),
        );
        let hole = scaled(person.skin, 0.22);
        for side in [-1.0f32, 1.0] {
            let x = side * width * 0.46;
            let tall = (0.022 + 0.10 * pose.pitch.0).clamp(0.008, 0.045);
            canvas.paint(
                &ball,
                [x - 0.1, 0.0, x + 0.1, 0.14],
                hole,
                0.85,
                0.012,
                |u, v| ellipse(u - x, v - 0.07, width * 0.22, tall),
            );
        }
        if person.head.fold > 0.0 {
            for side in [-1.0f32, 1.0] {
                let at = |x: f32, y: f32| pose.project([side * x, y, pose.depth(x, y)]);
                let from = at(width + 0.06, tip_y + 0.02);
                let to = at(shape.mouth_width + 0.10, shape.mouth_y - 0.02);
                let thick = 0.012 * unit;
                let bounds = [
                    from[0].min(to[0]) - 2.0,
                    from[1].min(to[1]) - 2.0,
                    from[0].max(to[0]) + 2.0,
                    from[1].max(to[1]) + 2.0,
                ];
                canvas.paint(
                    &page,
                    bounds,
                    scaled(skin, 0.6),
                    0.75 * person.head.fold,
                    0.03 * unit,
                    |x, y| capsule(x, y, from, to, thick),
                );
            }
        }
    }

    pub(super) fn mouth(&mut self) {
        let (person, expression) = (self.person, &self.expression);
        let shape = &person.nose_mouth;
        let Some(patch) = self.pose.patch(0.0, shape.mouth_y, 0.04) else {
            return;
        };
        let tone = self.pose.lit_at(&self.light, 0.0, shape.mouth_y);
        let canvas = &mut self.canvas;
        let smile = expression.smile;
        let w = shape.mouth_width * (1.0 + 0.16 * smile.max(0.0) - 0.12 * expression.mouth);
        let bend = shape.corners + 0.07 * smile;
        let open = 0.17 * expression.mouth;
        let thin = 1.0 - 0.2 * smile.max(0.0);
        let (upper, lower) = (shape.upper_lip * thin, shape.lower_lip * thin);
        if let Some(beard) = &person.beard
            && beard.moustache > 0.0
        {
            let colour = scaled(beard.colour, 0.4 + 0.6 * tone);
            let reach = [-w - 0.1, -0.26, w + 0.1, 0.1];
            let (strength, a) = (0.9 * beard.moustache, w * 0.95);
            canvas.paint(&patch, reach, colour, strength, 0.035, |u, v| {
                ellipse(u, v + upper + 0.045 - 0.5 * u * u, a, 0.062)
            });
        }
        // Middle line: its ends rise with a smile.
        let line = move |u: f32| bend * (0.35 - (u / w).powi(2));
        let arc = move |u: f32| 1.0 - (u / w).powi(2);
        let top = move |u: f32| {
            let dip = shape.bow * (1.0 - (u / (0.3 * w)).powi(2)).max(0.0);
            line(u) - upper * arc(u) + dip
        };
        let bottom = move |u: f32| line(u) + (lower + open) * arc(u) * (0.75 + 0.25 * arc(u));
        let reach = [-w, -upper - 0.12, w, lower + open + 0.1];
        let slope = 0.85;
        let lips = scaled(shape.lip_colour, 0.1 + 0.9 * tone);
        canvas.paint(&patch, reach, scaled(lips, 1.06), 0.95, 0.008, |u, v| {
            ((v - bottom(u)).max(line(u) - v) * slope).max(u.abs() - w)
        });
        canvas.paint(&patch, reach, scaled(lips, 0.84), 0.95, 0.008, |u, v| {
            ((top(u) - v).max(v - line(u)) * slope).max(u.abs() - w)
        });
        let inner = w * 0.93;
        if open > 0.01 {
            let hollow = move |u: f32, v: f32| {
                let arc = 1.0 - (u / inner).powi(2);
                (line(u) - 0.004 - v).max(v - line(u) - open * arc) * slope
            };
            canvas.paint(&patch, reach, [0.20, 0.06, 0.06], 1.0, 0.0, hollow);
            canvas.paint(
                &patch,
                reach,
                scaled([0.92, 0.90, 0.86], 0.2 + 0.75 * tone),
                1.0,
                0.0,
                |u, v| hollow(u, v).max(v - line(u) - 0.055).max(u.abs() - 0.8 * w),
            );
        } else {
            canvas.paint(&patch, reach, scaled(lips, 0.35), 0.85, 0.004, |u, v| {
                ((v - line(u)).abs() - 0.009).max(u.abs() - inner)
            });
        }
        canvas.paint(
            &patch,
            [-0.2, lower + open, 0.2, lower + open + 0.15],
            scaled(person.skin, 0.6 * tone),
            0.4,
            0.06,
            |u, v| ellipse(u, v - lower - open - 0.06 - 0.3 * bend, 0.5 * w, 0.025),
        );
    }

    pub(super) fn glasses(&mut self) {
        let Some(glasses) = &self.person.glasses else {
            return;
        };
        let eyes = &self.person.eyes;
        let pose = &self.pose;
        let [a, b] = glasses.size;
        let a = a.min(eyes.x - 0.045);
        let radius = glasses.round * a.min(b);
        let colour = scaled(glasses.colour, 0.4 + 0.6 * self.light.ambient);
        let lift = pose.depth(0.0, eyes.y) + 0.10;
        // Both lenses lie in one plane in front of the face.
        let forward = std::array::from_fn(|k| {
            let row = &pose.rotation[k];
            [pose.scale * row[0], pose.scale * row[1]]
        });
        let Some(plane) = Patch::new(pose.project([0.0, eyes.y + 0.03, lift]), forward) else {
            return;
        };
        let reach = [-eyes.x - a - 0.05, -b - 0.05, eyes.x + a + 0.05, b + 0.05];
        self.canvas
            .paint(&plane, reach, [0.85, 0.9, 0.95], 0.10, 0.0, |u, v| {
                rounded_box(u.abs() - eyes.x, v, a, b, radius)
            });
        self.canvas.paint(&plane, reach, colour, 1.0, 0.0, |u, v| {
            let rim = rounded_box(u.abs() - eyes.x, v, a, b, radius).abs();
            let gap = eyes.x - a;
            let bridge = (v + 0.25 * b).abs().max(u.abs() - gap);
            rim.min(bridge) - glasses.frame
        });
        for side in [-1.0f32, 1.0] {
            let from = pose.project([side * (eyes.x + a), eyes.y - 0.03, lift]);
            let to = pose.project([side * self.person.head.width, eyes.y, 0.0]);
            // The far temple is hidden behind the head.
            if (to[0] - from[0]) * side < 0.0 {
                continue;
            }
            let thick = glasses.frame * pose.scale;
            let Some(page) = Patch::new([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]) else {
                return;
            };
            let bounds = [
                from[0].min(to[0]) - thick,
                from[1].min(to[1]) - thick,
                from[0].max(to[0]) + thick,
                from[1].max(to[1]) + thick,
            ];
            self.canvas.paint(&page, bounds, colour, 1.0, 0.0, |x, y| {
                capsule(x, y, from, to, thick)
            });
        }
    }
}
