//! Marks as SVG text.

use super::{Align, COLOURS, Mark, SIZE};
use crate::report::markup::escape;
use std::fmt::Write as _;

/// The colours and letters of figures, for a page that holds them: light, and dark where the reader's screen is.
pub fn stylesheet() -> String {
    let variables = |dark: bool| -> String {
        (COLOURS.iter())
            .map(|(name, on_light, on_dark)| {
                let [r, g, b] = if dark { on_dark } else { on_light };
                format!("--{name}:#{r:02x}{g:02x}{b:02x};")
            })
            .collect()
    };
    let mut css = format!(
        ":root{{color-scheme:light dark;{}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{}}}}}\n",
        variables(false),
        variables(true)
    );
    for (name, ..) in COLOURS {
        let _ = writeln!(
            css,
            ".figure .{name}{{fill:var(--{name})}}.figure .{name}.line{{fill:none;stroke:var(--{name})}}"
        );
    }
    css.push_str(".figure text{font:12px system-ui,sans-serif;dominant-baseline:central}\n");
    css.push_str(".figure text.bold{font-weight:600;font-size:14px}\n");
    css.push_str(".figure .line{stroke-linejoin:round}\n");
    css
}

pub(super) fn write(title: &str, marks: &[Mark], style: bool) -> String {
    let (width, height) = SIZE;
    // Inside a page it is understood.
    let namespace = match style {
        true => " xmlns=\"http://www.w3.org/2000/svg\"",
        false => "",
    };
    let mut svg = format!(
        "<svg{namespace} class=\"figure\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\"><title>{}</title>\n",
        escape(title)
    );
    if style {
        let _ = writeln!(svg, "<style>{}</style>", stylesheet());
    }
    for mark in marks {
        write_mark(mark, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

fn write_mark(mark: &Mark, svg: &mut String) {
    // Writing to a string cannot fail.
    let _ = match mark {
        Mark::Area {
            rect: [x, y, width, height],
            paint,
            opacity,
        } => writeln!(
            svg,
            "<rect class=\"{}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill-opacity=\"{opacity}\"/>",
            paint.class()
        ),
        Mark::Line {
            points,
            paint,
            width,
            dash,
        } => {
            let points: String = points
                .iter()
                .map(|(x, y)| format!("{x:.2},{y:.2} "))
                .collect();
            let dash = match dash.pattern() {
                Some((on, off)) => format!(" stroke-dasharray=\"{on} {off}\""),
                None => String::new(),
            };
            writeln!(
                svg,
                "<polyline class=\"{} line\" stroke-width=\"{width}\"{dash} points=\"{}\"/>",
                paint.class(),
                points.trim_end()
            )
        }
        Mark::Text {
            text,
            at: (x, y),
            align,
            paint,
            bold,
            upwards,
        } => {
            let anchor = match align {
                Align::Start => "start",
                Align::Middle => "middle",
                Align::End => "end",
            };
            let turn = match upwards {
                true => format!(" transform=\"rotate(-90 {x:.2} {y:.2})\""),
                false => String::new(),
            };
            writeln!(
                svg,
                "<text class=\"{}{}\" x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\"{turn}>{}</text>",
                paint.class(),
                if *bold { " bold" } else { "" },
                escape(text)
            )
        }
    };
}
