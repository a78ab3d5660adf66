//! Marks as a picture, on light paper.

use super::{Align, Dash, Mark, SIZE};
use crate::report::canvas::{self, Canvas, Font};
use image::RgbImage;

/// Pixels of a picture a logical pixel: the bitmap font of 20 pixels is then as high as SVG's letters.
const SCALE: f64 = 1.5;

pub(super) fn draw(marks: &[Mark]) -> RgbImage {
    let whole = |x: f64| (x * SCALE).round() as i32;
    let mut canvas = Canvas::new(whole(SIZE.0), whole(SIZE.1));
    for mark in marks {
        match mark {
            Mark::Area {
                rect: [x, y, width, height],
                paint,
                opacity,
            } => {
                // Edges are rounded, not sizes: neighbours neither overlap nor leave a gap.
                let (left, top) = (whole(*x), whole(*y));
                let (right, bottom) = (whole(x + width), whole(y + height));
                let rect = [left, top, right - left, bottom - top];
                canvas.shade(rect, paint.light(), *opacity as f32);
            }
            Mark::Line {
                points,
                paint,
                width,
                dash,
            } => {
                for dash in dash.cut(points) {
                    let points: Vec<(f32, f32)> = dash
                        .iter()
                        .map(|(x, y)| ((x * SCALE) as f32, (y * SCALE) as f32))
                        .collect();
                    canvas.polyline(&points, (width * SCALE) as f32, paint.light());
                }
            }
            Mark::Text {
                text,
                at: (x, y),
                align,
                paint,
                bold,
                upwards,
            } => {
                let align = match align {
                    Align::Start => canvas::Align::Left,
                    Align::Middle => canvas::Align::Centre,
                    Align::End => canvas::Align::Right,
                };
                // The font has no bold face: struck twice.
                let strokes = if *bold { 2 } else { 1 };
                for stroke in 0..strokes {
                    let at = (whole(*x) + stroke, whole(*y));
                    match upwards {
                        true => canvas.text_upwards(text, at, align, Font::Large, paint.light()),
                        false => canvas.text(text, at, align, Font::Large, paint.light()),
                    }
                }
            }
        }
    }
    canvas.into_image()
}

impl Dash {
    /// Cuts a line into its dashes.
    fn cut(self, points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
        let Some((on, off)) = self.pattern() else {
            return vec![points.to_vec()];
        };
        let mut dashes = Vec::new();
        let Some(&first) = points.first() else {
            return dashes;
        };
        let (mut dash, mut drawing, mut left) = (vec![first], true, on);
        for segment in points.windows(2) {
            let ((ax, ay), (bx, by)) = (segment[0], segment[1]);
            let length = (bx - ax).hypot(by - ay);
            let mut done = 0.0;
            while length - done > left {
                done += left;
                let part = done / length;
                let here = (ax + part * (bx - ax), ay + part * (by - ay));
                if drawing {
                    dash.push(here);
                    dashes.push(std::mem::take(&mut dash));
                } else {
                    dash = vec![here];
                }
                drawing = !drawing;
                left = if drawing { on } else { off };
            }
            left -= length - done;
            if drawing {
                dash.push((bx, by));
            }
        }
        if drawing && dash.len() > 1 {
            dashes.push(dash);
        }
        dashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_are_as_long_as_they_should_be() {
        // 9 on, 4 off, around a corner after 12: 0..9, 13..22, 26..27.
        let dashes = Dash::Dashed.cut(&[(0.0, 0.0), (12.0, 0.0), (12.0, 15.0)]);
        let expected = [
            vec![(0.0, 0.0), (9.0, 0.0)],
            vec![(12.0, 1.0), (12.0, 10.0)],
            vec![(12.0, 14.0), (12.0, 15.0)],
        ];
        assert_eq!(dashes, expected);
        assert_eq!(Dash::Solid.cut(&[(0.0, 0.0), (1.0, 1.0)]).len(), 1);
        assert!(Dash::Dotted.cut(&[]).is_empty());
    }
}
