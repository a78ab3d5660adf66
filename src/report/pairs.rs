//! A contact sheet of verification pairs: the two pictures side by side with distance and verdict, to see what a
//! network takes for the same person and what it does not.

use std::path::Path;

use image::RgbImage;

use super::canvas::{Align, Canvas, Colour, Font, GREY, INK};
use super::picture_file;
use crate::base::error::Result;
use crate::verification::Verdict;

/// One pair of pictures, of any size (112x112 as a rule).
#[derive(Clone, Debug)]
pub struct PairPicture {
    /// The pictures.
    pub images: [RgbImage; 2],
    /// The pair's number in its set, counted from 0.
    pub pair: usize,
    /// Their squared distance.
    pub distance: f64,
    /// What the threshold made of them.
    pub verdict: Verdict,
}

/// Pairs a row.
const COLUMNS: usize = 4;
const MARGIN: i32 = 24;
const SPACING: i32 = 20;
const CAPTION: i32 = 28;
const HEADING: i32 = 40;

/// Draws the pairs under a heading for each verdict, the wrong ones first; `title` names the set and `threshold` is
/// the squared distance below which two pictures were taken for one person.
pub fn draw(title: &str, threshold: f64, pairs: &[PairPicture]) -> RgbImage {
    let sizes = || pairs.iter().flat_map(|p| &p.images);
    let width = sizes().map(|i| i.width() as i32).max().unwrap_or(112);
    let height = sizes().map(|i| i.height() as i32).max().unwrap_or(112);
    let groups: Vec<(Verdict, Vec<&PairPicture>)> = Verdict::ALL
        .into_iter()
        .map(|v| (v, pairs.iter().filter(|p| p.verdict == v).collect()))
        .collect();

    // Two pictures with a thin gap between them.
    let pair_width = 2 * width + 2;
    let pair_height = height + CAPTION;
    let rows = |n: usize| n.div_ceil(COLUMNS).max(1) as i32;
    let row_height = |n: usize| if n == 0 { CAPTION } else { pair_height };
    let sheet_height: i32 = groups
        .iter()
        .map(|(_, g)| HEADING + rows(g.len()) * row_height(g.len()))
        .sum();
    let columns = COLUMNS as i32;
    let mut canvas = Canvas::new(
        2 * MARGIN + columns * pair_width + (columns - 1) * SPACING,
        2 * MARGIN + 44 + sheet_height,
    );
    canvas.text(title, (MARGIN, MARGIN), Align::Left, Font::Title, INK);
    let rule =
        format!("taken for the same person where the squared distance is below {threshold:.2}");
    canvas.text(
        &rule,
        (MARGIN, MARGIN + 22),
        Align::Left,
        Font::Medium,
        GREY,
    );

    let mut y = MARGIN + 44;
    for (verdict, group) in &groups {
        let colour = colour(*verdict);
        let heading = format!("{verdict}: {}", meaning(*verdict));
        canvas.fill(MARGIN, y + 11, 10, 15, colour);
        canvas.text(
            &heading,
            (MARGIN + 18, y + 19),
            Align::Left,
            Font::Title,
            colour,
        );
        y += HEADING;
        if group.is_empty() {
            canvas.text(
                "none",
                (MARGIN + 18, y + 4),
                Align::Left,
                Font::Medium,
                GREY,
            );
            y += CAPTION;
        }
        for row in group.chunks(COLUMNS) {
            let mut x = MARGIN;
            for pair in row {
                canvas.frame([x, y, pair_width, height], 2, colour);
                canvas.paste(&pair.images[0], x, y);
                canvas.paste(&pair.images[1], x + width + 2, y);
                let below = y + height + 12;
                let distance = format!("distance {:.3}", pair.distance);
                canvas.text(&distance, (x, below), Align::Left, Font::Medium, INK);
                let number = format!("pair {}", pair.pair);
                canvas.text(
                    &number,
                    (x + pair_width, below),
                    Align::Right,
                    Font::Medium,
                    GREY,
                );
                x += pair_width + SPACING;
            }
            y += pair_height;
        }
    }
    canvas.into_image()
}

/// Draws the sheet to a picture file of the kind that its name tells.
///
/// # Errors
/// The name tells no kind of picture, or the file cannot be written.
pub fn save(path: &Path, title: &str, threshold: f64, pairs: &[PairPicture]) -> Result<()> {
    picture_file::save(&draw(title, threshold, pairs), path)
}

/// What a verdict says of two pictures.
pub fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::FalseAccept => "two people taken for one",
        Verdict::FalseReject => "one person taken for two",
        Verdict::RightAccept => "one person, recognised",
        Verdict::RightReject => "two people, told apart",
    }
}

/// Orange and blue, which the colour-blind tell apart too: dark for wrong, so that the errors stand out.
fn colour(verdict: Verdict) -> Colour {
    match verdict.is_right() {
        false => [200, 80, 0],
        true => [0, 100, 165],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A face of sorts in a colour of its own.
    fn face(seed: u32) -> RgbImage {
        RgbImage::from_fn(112, 112, |x, y| {
            let (dx, dy) = (x as f32 - 56.0, y as f32 - 60.0);
            let head = dx * dx / 1500.0 + dy * dy / 2400.0 < 1.0;
            let eye = (dx.abs() - 16.0).hypot(dy + 12.0) < 5.0;
            let mouth = dx.abs() < 15.0 && (dy - 25.0).abs() < 2.0;
            image::Rgb(match (head, eye || mouth) {
                (true, true) => [30, 20, 20],
                (true, false) => [200, 150 + (seed * 37 % 60) as u8, 120],
                _ => [(seed * 53 % 200) as u8, (y * 2) as u8, 120],
            })
        })
    }

    fn pair(k: usize, verdict: Verdict) -> PairPicture {
        PairPicture {
            images: [face(2 * k as u32), face(2 * k as u32 + 1)],
            pair: 17 * k,
            distance: 0.31 * k as f64,
            verdict,
        }
    }

    #[test]
    fn every_picture_is_on_the_sheet() {
        let pairs: Vec<PairPicture> = [3, 0, 4, 5]
            .into_iter()
            .zip(Verdict::ALL)
            .flat_map(|(n, v)| (0..n).map(move |k| pair(k, v)))
            .collect();
        let sheet = draw("lfw", 1.25, &pairs);
        let at = |x: u32, y: u32, part: &RgbImage| {
            part.enumerate_pixels()
                .step_by(97)
                .all(|(i, j, p)| sheet.get_pixel(x + i, y + j) == p)
        };
        // The first row: false accepts.
        let (x, y) = (MARGIN as u32, (MARGIN + 44 + HEADING) as u32);
        assert!(at(x, y, &pairs[0].images[0]));
        assert!(at(x + 114, y, &pairs[0].images[1]));
        assert!(at(x + 2 * (226 + 20), y, &pairs[2].images[0]));
        // The last row: the fifth right reject.
        let y = sheet.height() - (MARGIN + 112 + CAPTION) as u32;
        assert!(at(x, y, &pairs[11].images[0]));
        if let Ok(folder) = std::env::var("PICTURES") {
            save(&Path::new(&folder).join("pairs.png"), "lfw", 1.25, &pairs).unwrap();
        }
    }

    #[test]
    fn an_empty_sheet_says_none() {
        assert!(draw("lfw", 1.0, &[]).height() > 100);
    }
}
