//! Figures: axes, curves and bars described once, and laid out as a list of marks that `svg` and `raster` write down.
//!
//! No plotting crate: those at hand take their letters in pictures from font files of the system, and a machine that
//! evaluates networks may have none. What is left of their work is this file.

mod raster;
mod svg;

use crate::base::error::Result;
use crate::base::files;
use image::RgbImage;
use std::path::Path;

pub use svg::stylesheet;

/// What a mark is painted with: a role, which is another colour on light and on dark paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// The background.
    Paper,
    /// Text.
    Ink,
    /// Text of second rank.
    Grey,
    /// Lines of the grid.
    Grid,
    /// Data; colours that the colour-blind tell apart, again from the first after [`SERIES`] of them.
    Series(usize),
}

/// Different colours of data.
pub const SERIES: usize = 7;

/// Each role's name, and its colours on light and dark paper.
const COLOURS: [(&str, [u8; 3], [u8; 3]); 4 + SERIES] = [
    ("paper", [255, 255, 255], [24, 26, 31]),
    ("ink", [32, 33, 36], [230, 232, 236]),
    ("grey", [95, 99, 106], [160, 166, 175]),
    ("grid", [222, 225, 230], [58, 62, 70]),
    ("s0", [0, 104, 170], [92, 180, 240]),
    ("s1", [208, 84, 0], [255, 150, 80]),
    ("s2", [0, 140, 100], [60, 210, 160]),
    ("s3", [140, 66, 155], [210, 150, 222]),
    ("s4", [184, 128, 0], [242, 204, 96]),
    ("s5", [84, 108, 122], [160, 190, 206]),
    ("s6", [196, 52, 110], [246, 140, 178]),
];

impl Paint {
    fn place(self) -> usize {
        match self {
            Paint::Paper => 0,
            Paint::Ink => 1,
            Paint::Grey => 2,
            Paint::Grid => 3,
            Paint::Series(n) => 4 + n % SERIES,
        }
    }

    fn class(self) -> &'static str {
        COLOURS[self.place()].0
    }

    fn light(self) -> [u8; 3] {
        COLOURS[self.place()].1
    }
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dash {
    /// Without gaps.
    Solid,
    /// Long dashes.
    Dashed,
    /// Short dashes.
    Dotted,
}

impl Dash {
    /// Lengths of dash and gap.
    fn pattern(self) -> Option<(f64, f64)> {
        match self {
            Dash::Solid => None,
            Dash::Dashed => Some((9.0, 4.0)),
            Dash::Dotted => Some((2.0, 4.0)),
        }
    }
}

/// An axis: its name, its range, and what is written beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    label: String,
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From `from` to `to`, which must be larger, in equal steps; `percent` writes 0.5 as "50 %".
    pub fn linear(label: &str, from: f64, to: f64, percent: bool) -> Self {
        let rough = ((to - from) / 8.0).max(1e-12);
        let decade = 10_f64.powf(rough.log10().floor());
        let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
        let factor = factors.into_iter().find(|f| f * decade >= rough * 0.999);
        let step = factor.unwrap_or(10.0) * decade;
        let scale = if percent { 100.0 } else { 1.0 };
        let decimals = (0..6).find(|&d| {
            let shifted = step * scale * 10_f64.powi(d);
            (shifted - shifted.round()).abs() < 1e-6
        });
        let decimals = decimals.unwrap_or(6) as usize;
        let first = (from / step - 1e-9).ceil() as i64;
        let last = (to / step + 1e-9).floor() as i64;
        let ticks = (first..=last)
            .map(|k| {
                let value = k as f64 * step;
                let unit = if percent { " %" } else { "" };
                (value, format!("{:.decimals$}{unit}", value * scale))
            })
            .collect();
        Axis {
            label: label.to_owned(),
            from,
            to,
            log: false,
            ticks,
        }
    }

    /// From 10 to the power of `from` to 10 to the power of `to`, which must be larger.
    pub fn decades(label: &str, from: i32, to: i32) -> Self {
        let text = |k: i32| match k {
            0 => "1".to_owned(),
            k => format!("1e{k}"),
        };
        Axis {
            label: label.to_owned(),
            from: 10_f64.powi(from),
            to: 10_f64.powi(to),
            log: true,
            ticks: (from..=to).map(|k| (10_f64.powi(k), text(k))).collect(),
        }
    }

    /// Where the axis begins.
    pub fn from(&self) -> f64 {
        self.from
    }

    /// Where `value` is, 0 at the axis's beginning and 1 at its end; what lies beyond is put there.
    fn place(&self, value: f64) -> f64 {
        let place = match self.log {
            true => (value.max(1e-300) / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        place.clamp(0.0, 1.0)
    }

    /// Values with a line of their own between the ticks.
    fn minor(&self) -> Vec<f64> {
        if !self.log {
            return Vec::new();
        }
        let decades = self.ticks.iter().take(self.ticks.len().saturating_sub(1));
        decades
            .flat_map(|(tick, _)| (2..10).map(move |k| tick * f64::from(k)))
            .collect()
    }
}

/// What is drawn in the frame of the axes.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// A curve through points.
    Curve {
        /// What the legend calls it; none: it is not in it.
        name: Option<String>,
        /// (x, y).
        points: Vec<(f64, f64)>,
        /// Its colour.
        paint: Paint,
        /// How it is drawn.
        dash: Dash,
    },
    /// Bars side by side, from y = 0.
    Bars {
        /// What the legend calls them.
        name: String,
        /// Bar i is from i times this to (i + 1) times this.
        width: f64,
        /// Their ends.
        heights: Vec<f64>,
        /// Their colour, through which others are seen.
        paint: Paint,
    },
    /// A vertical line with words at its upper end.
    Rule {
        /// Where.
        at: f64,
        /// The words.
        label: String,
    },
}

/// Where a figure has room for its legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corner {
    /// On the right, above.
    UpperRight,
    /// On the right, below.
    LowerRight,
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// A line under the title.
    pub subtitle: String,
    /// The axis from left to right.
    pub x: Axis,
    /// The axis from below upwards.
    pub y: Axis,
    /// What is drawn, the last one above all others.
    pub layers: Vec<Layer>,
    /// Where the legend is.
    pub legend: Corner,
}

/// The size of a figure, in logical pixels.
const SIZE: (f64, f64) = (760.0, 470.0);
/// The frame of the axes: left, top, right, bottom.
const FRAME: [f64; 4] = [72.0, 58.0, 742.0, 418.0];
/// A character's width, about.
const LETTER: f64 = 6.8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Start,
    Middle,
    End,
}

/// The smallest things that are drawn, in logical pixels, the first at the bottom.
#[derive(Clone, Debug, PartialEq)]
enum Mark {
    Area {
        /// Left, top, width, height.
        rect: [f64; 4],
        paint: Paint,
        opacity: f64,
    },
    Line {
        points: Vec<(f64, f64)>,
        paint: Paint,
        width: f64,
        dash: Dash,
    },
    Text {
        text: String,
        /// On the middle line, at the beginning, middle or end.
        at: (f64, f64),
        align: Align,
        paint: Paint,
        bold: bool,
        upwards: bool,
    },
}

impl Figure {
    /// The figure as SVG. With `style` it stands on its own; without, the page has to hold [`stylesheet`].
    pub fn svg(&self, style: bool) -> String {
        svg::write(&self.title, &self.marks(), style)
    }

    /// The figure as a picture on light paper.
    pub fn picture(&self) -> RgbImage {
        raster::draw(&self.marks())
    }

    /// Writes `NAME.svg` and `NAME.png` to `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(format!("{name}.svg"));
        files::write(&path, self.svg(true).as_bytes())?;
        super::picture_file::save(&self.picture(), &folder.join(format!("{name}.png")))
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let [left, top, right, bottom] = FRAME;
        (
            left + self.x.place(x) * (right - left),
            bottom - self.y.place(y) * (bottom - top),
        )
    }

    fn marks(&self) -> Vec<Mark> {
        let mut marks = vec![Mark::Area {
            rect: [0.0, 0.0, SIZE.0, SIZE.1],
            paint: Paint::Paper,
            opacity: 1.0,
        }];
        let left = FRAME[0];
        marks.push(text(
            &self.title,
            (left, 20.0),
            Align::Start,
            Paint::Ink,
            true,
        ));
        marks.push(text(
            &self.subtitle,
            (left, 40.0),
            Align::Start,
            Paint::Grey,
            false,
        ));
        self.draw_grid(&mut marks);
        for layer in &self.layers {
            self.draw_layer(layer, &mut marks);
        }
        self.draw_frame(&mut marks);
        self.draw_legend(&mut marks);
        marks
    }

    fn draw_grid(&self, marks: &mut Vec<Mark>) {
        let [left, top, right, bottom] = FRAME;
        let mut line = |points: [(f64, f64); 2], width: f64| {
            marks.push(Mark::Line {
                points: points.into(),
                paint: Paint::Grid,
                width,
                dash: Dash::Solid,
            });
        };
        let across = |value: f64| self.at((value, self.y.from)).0;
        for x in self.x.minor() {
            line([(across(x), top), (across(x), bottom)], 0.4);
        }
        for (x, _) in &self.x.ticks {
            line([(across(*x), top), (across(*x), bottom)], 1.0);
        }
        for (y, _) in &self.y.ticks {
            let y = self.at((self.x.from, *y)).1;
            line([(left, y), (right, y)], 1.0);
        }
    }

    fn draw_layer(&self, layer: &Layer, marks: &mut Vec<Mark>) {
        match layer {
            Layer::Curve {
                points,
                paint,
                dash,
                ..
            } => marks.push(Mark::Line {
                points: points.iter().map(|&p| self.at(p)).collect(),
                paint: *paint,
                width: 2.0,
                dash: *dash,
            }),
            Layer::Bars {
                width,
                heights,
                paint,
                ..
            } => {
                let base = self.at((self.x.from, 0.0)).1;
                let mut outline = Vec::new();
                for (i, &height) in heights.iter().enumerate() {
                    let (x0, y) = self.at((i as f64 * width, height));
                    let (x1, _) = self.at(((i + 1) as f64 * width, height));
                    outline.extend([(x0, y), (x1, y)]);
                    if height > 0.0 {
                        marks.push(Mark::Area {
                            rect: [x0, y, x1 - x0, base - y],
                            paint: *paint,
                            opacity: 0.3,
                        });
                    }
                }
                marks.push(Mark::Line {
                    points: outline,
                    paint: *paint,
                    width: 1.5,
                    dash: Dash::Solid,
                });
            }
            Layer::Rule { at, label } => {
                let [_, top, right, bottom] = FRAME;
                let (x, _) = self.at((*at, self.y.from));
                marks.push(Mark::Line {
                    points: vec![(x, top), (x, bottom)],
                    paint: Paint::Ink,
                    width: 1.2,
                    dash: Dash::Dashed,
                });
                let fits = x + 8.0 + LETTER * label.chars().count() as f64 <= right;
                let (dx, align) = if fits {
                    (6.0, Align::Start)
                } else {
                    (-6.0, Align::End)
                };
                marks.push(text(label, (x + dx, top + 12.0), align, Paint::Ink, false));
            }
        }
    }

    fn draw_frame(&self, marks: &mut Vec<Mark>) {
        let [left, top, right, bottom] = FRAME;
        marks.push(Mark::Line {
            points: vec![(left, top), (left, bottom), (right, bottom)],
            paint: Paint::Grey,
            width: 1.0,
            dash: Dash::Solid,
        });
        for (x, label) in &self.x.ticks {
            let (x, _) = self.at((*x, self.y.from));
            marks.push(text(
                label,
                (x, bottom + 14.0),
                Align::Middle,
                Paint::Grey,
                false,
            ));
        }
        for (y, label) in &self.y.ticks {
            let (_, y) = self.at((self.x.from, *y));
            marks.push(text(label, (left - 7.0, y), Align::End, Paint::Grey, false));
        }
        let middle = ((left + right) / 2.0, bottom + 36.0);
        marks.push(text(
            &self.x.label,
            middle,
            Align::Middle,
            Paint::Ink,
            false,
        ));
        marks.push(Mark::Text {
            text: self.y.label.clone(),
            at: (14.0, (top + bottom) / 2.0),
            align: Align::Middle,
            paint: Paint::Ink,
            bold: false,
            upwards: true,
        });
    }

    fn draw_legend(&self, marks: &mut Vec<Mark>) {
        const LINE: f64 = 19.0;
        let entries: Vec<(&str, Paint, Dash, bool)> = (self.layers.iter())
            .filter_map(|layer| match layer {
                Layer::Curve {
                    name, paint, dash, ..
                } => Some((name.as_deref()?, *paint, *dash, false)),
                Layer::Bars { name, paint, .. } => Some((name, *paint, Dash::Solid, true)),
                Layer::Rule { .. } => None,
            })
            .collect();
        let longest = entries.iter().map(|e| e.0.chars().count()).max();
        let Some(longest) = longest else {
            return;
        };
        let [_, top, right, bottom] = FRAME;
        let (width, height) = (
            44.0 + LETTER * longest as f64,
            LINE * entries.len() as f64 + 8.0,
        );
        let x = right - width - 10.0;
        let y = match self.legend {
            Corner::UpperRight => top + 8.0,
            Corner::LowerRight => bottom - height - 10.0,
        };
        marks.push(Mark::Area {
            rect: [x, y, width, height],
            paint: Paint::Paper,
            opacity: 0.85,
        });
        for (i, (name, paint, dash, area)) in entries.into_iter().enumerate() {
            let middle = y + 4.0 + LINE * (i as f64 + 0.5);
            if area {
                marks.push(Mark::Area {
                    rect: [x + 6.0, middle - 5.0, 24.0, 10.0],
                    paint,
                    opacity: 0.5,
                });
            } else {
                marks.push(Mark::Line {
                    points: vec![(x + 6.0, middle), (x + 30.0, middle)],
                    paint,
                    width: 2.0,
                    dash,
                });
            }
            marks.push(text(
                name,
                (x + 37.0, middle),
                Align::Start,
                Paint::Ink,
                false,
            ));
        }
    }
}

fn text(text: &str, at: (f64, f64), align: Align, paint: Paint, bold: bool) -> Mark {
    Mark::Text {
        text: text.to_owned(),
        at,
        align,
        paint,
        bold,
        upwards: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure {
            title: "A <curve> & bars".to_owned(),
            subtitle: "600 pairs".to_owned(),
            x: Axis::decades("false accept rate", -4, 0),
            y: Axis::linear("true accept rate", 0.0, 1.0, true),
            layers: vec![
                Layer::Curve {
                    name: Some("lfw".to_owned()),
                    points: vec![(1e-4, 0.2), (1e-2, 0.6), (1.0, 1.0)],
                    paint: Paint::Series(0),
                    dash: Dash::Dotted,
                },
                Layer::Bars {
                    name: "bars".to_owned(),
                    width: 0.1,
                    heights: vec![0.0, 0.3, 0.1],
                    paint: Paint::Series(8),
                },
                Layer::Rule {
                    at: 0.9,
                    label: "threshold".to_owned(),
                },
            ],
            legend: Corner::LowerRight,
        }
    }

    #[test]
    fn both_renderers_draw_every_mark() {
        let figure = figure();
        let svg = figure.svg(true);
        for words in [
            "A &lt;curve&gt; &amp; bars",
            "1e-3",
            "100 %",
            "threshold",
            "stroke-dasharray",
            "class=\"s1",
            "prefers-color-scheme: dark",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert!(
            !svg.contains("http") || svg.matches("http").count() == 1,
            "{svg}"
        );
        assert!(!figure.svg(false).contains("<style"));
        // The upper end of the curve is where the axes say, in its colour.
        let picture = figure.picture();
        let (x, y) = figure.at((1e-2, 0.6));
        let scale = f64::from(picture.width()) / SIZE.0;
        // It is dotted: near its place, not at it.
        let near = (-6..=6).flat_map(|dx| (-6..=6).map(move |dy| (dx, dy)));
        let near = near.into_iter().any(|(dx, dy)| {
            let at = |place: f64, d: i32| ((place * scale) as i32 + d) as u32;
            let pixel = picture.get_pixel(at(x, dx), at(y, dy));
            pixel.0[2] > 150 && pixel.0[0] < 60
        });
        assert!(near);
    }

    #[test]
    fn axes_have_round_numbers() {
        let labels = |axis: Axis| -> Vec<String> { axis.ticks.into_iter().map(|t| t.1).collect() };
        let percent = labels(Axis::linear("", 0.0, 1.0, true));
        assert_eq!((percent.len(), &percent[2][..]), (6, "40 %"));
        assert_eq!(
            labels(Axis::linear("", 0.0, 2.3, false)).last().unwrap(),
            "2.0"
        );
        assert_eq!(labels(Axis::decades("", -2, 0)), ["1e-2", "1e-1", "1"]);
        let axis = Axis::decades("", -2, 0);
        assert!((axis.place(0.1) - 0.5).abs() < 1e-9);
        assert_eq!((axis.place(0.0), axis.place(7.0)), (0.0, 1.0));
    }
}
