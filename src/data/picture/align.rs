//! Alignment: a face is turned, scaled and moved so that its eyes, nose and mouth lie where networks expect them.
//!
//! The transform is the similarity (rotation, one scale, shift; no reflection) that brings five points of the face
//! nearest to [`TEMPLATE`] by least squares: Umeyama's. In the plane it is z -> m z + t over complex numbers, and with
//! both lists of points centred, m = sum(conj(p) q) / sum |p|^2.
//!
//! Each pixel of the result is the bilinear sample of the picture at its place under the inverse transform, with black
//! outside the picture: `cv2.warpAffine(picture, m, (size, size), borderValue=0)`, except that OpenCV rounds places to
//! 1/32 of a pixel and these are not rounded. Nothing is smoothed before it is made smaller, as in OpenCV.

use crate::base::changes::to_u8;
use crate::data::Image;

/// Five points (x, y) of a face, in pixels from the centre of the picture's first one: left eye, right eye, tip of the
/// nose, left and right corner of the mouth; left and right as in the picture.
pub type Points = [[f64; 2]; 5];

/// Where the points lie in an aligned picture of 112 x 112 pixels, as InsightFace has them. In one of another size they
/// are scaled by size / 112.
pub const TEMPLATE: Points = [
    [38.2946, 51.6963],
    [73.5318, 51.5014],
    [56.0252, 71.7366],
    [41.5493, 92.3655],
    [70.7299, 92.2041],
];

/// The template for a picture of `size` x `size` pixels.
pub fn template(size: usize) -> Points {
    TEMPLATE.map(|point| point.map(|x| x * size as f64 / 112.0))
}

/// Rotation, scale and shift: (x, y) -> (a x - b y + s, b x + a y + t).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    /// a and b.
    pub turn: [f64; 2],
    /// s and t.
    pub shift: [f64; 2],
}

/// A list of points around its centre.
struct Centred {
    centre: [f64; 2],
    points: Points,
    /// The sum of squared distances from the centre.
    spread: f64,
}

impl Centred {
    fn new(points: &Points) -> Self {
        let mean = |axis: usize| points.iter().map(|point| point[axis]).sum::<f64>() / 5.0;
        let centre = [mean(0), mean(1)];
        let points = points.map(|[x, y]| [x - centre[0], y - centre[1]]);
        Centred {
            centre,
            points,
            spread: points.iter().map(|[x, y]| x * x + y * y).sum(),
        }
    }

    /// The sum of conj(p) q over the points of both.
    fn product(&self, other: &Centred) -> [f64; 2] {
        let pairs = self.points.iter().zip(&other.points);
        pairs.fold([0.0; 2], |[a, b], ([x, y], [u, v])| {
            [a + x * u + y * v, b + x * v - y * u]
        })
    }
}

impl Similarity {
    /// The similarity that brings `from` nearest to `to`; none where there is none, since all points of `from` are one
    /// or a number is not finite.
    pub fn fit(from: &Points, to: &Points) -> Option<Self> {
        let (from, to) = (Centred::new(from), Centred::new(to));
        let turn = from.product(&to).map(|x| x / from.spread);
        let fitted = Similarity {
            turn,
            shift: [0.0; 2],
        };
        let [x, y] = fitted.apply(from.centre);
        let shift = [to.centre[0] - x, to.centre[1] - y];
        let scale = turn[0].hypot(turn[1]);
        let finite = scale.is_finite() && shift.iter().all(|x| x.is_finite());
        (finite && scale > f64::MIN_POSITIVE).then_some(Similarity { turn, shift })
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let [a, b] = self.turn;
        [a * x - b * y + self.shift[0], b * x + a * y + self.shift[1]]
    }

    /// The way back.
    pub fn inverse(&self) -> Self {
        let [a, b] = self.turn;
        let squared = a * a + b * b;
        let turn = [a / squared, -b / squared];
        let back = Similarity {
            turn,
            shift: [0.0; 2],
        };
        let [x, y] = back.apply(self.shift);
        Similarity {
            turn,
            shift: [-x, -y],
        }
    }
}

/// How much the points look like a face after the best turn, 0 to 1: 1 for those of the template, 0.78 for a face in
/// profile, 0.23 if left and right are exchanged.
pub fn likeness(points: &Points) -> f64 {
    let (points, template) = (Centred::new(points), Centred::new(&TEMPLATE));
    let [a, b] = points.product(&template);
    a.hypot(b) / (points.spread * template.spread).sqrt()
}

/// The points with left and right exchanged.
pub fn sides_exchanged(&[eye, other_eye, nose, mouth, other_mouth]: &Points) -> Points {
    [other_eye, eye, nose, other_mouth, mouth]
}

/// The face with these points, aligned in a picture of `size` x `size` pixels.
///
/// # Errors
/// A clause that says why not: the points are no face's, or lie outside the picture.
pub fn align(image: &Image, points: &Points, size: usize) -> Result<Image, String> {
    let fitted = Similarity::fit(points, &template(size))
        .ok_or("its landmarks are one point, or not finite")?;
    let [x, y] = Centred::new(points).centre;
    let (width, height) = (image.width as f64, image.height as f64);
    if !(0.0..width).contains(&x) || !(0.0..height).contains(&y) {
        return Err(format!(
            "its landmarks lie around ({x:.1}, {y:.1}), outside its {width} x {height} pixels"
        ));
    }
    let back = fitted.inverse();
    let mut pixels = Vec::with_capacity(size * size * 3);
    for y in 0..size {
        for x in 0..size {
            pixels.extend(sample(image, back.apply([x as f64, y as f64])));
        }
    }
    Ok(Image {
        width: size,
        height: size,
        pixels,
    })
}

/// The picture's colour at a place, between its pixels; black outside.
fn sample(image: &Image, [x, y]: [f64; 2]) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (width, height) = (image.width as f64, image.height as f64);
    if !(left >= -1.0 && top >= -1.0 && left < width && top < height) {
        return [0; 3];
    }
    let (across, down) = ((x - left) as f32, (y - top) as f32);
    let pixel = |dx: f64, dy: f64| -> [f32; 3] {
        let (x, y) = (left + dx, top + dy);
        if x < 0.0 || y < 0.0 || x >= width || y >= height {
            return [0.0; 3];
        }
        let at = (y as usize * image.width + x as usize) * 3;
        [0, 1, 2].map(|c| f32::from(image.pixels[at + c]))
    };
    let [upper_left, upper_right] = [pixel(0.0, 0.0), pixel(1.0, 0.0)];
    let [lower_left, lower_right] = [pixel(0.0, 1.0), pixel(1.0, 1.0)];
    [0, 1, 2].map(|c| {
        let upper = upper_left[c] + (upper_right[c] - upper_left[c]) * across;
        let lower = lower_left[c] + (lower_right[c] - lower_left[c]) * across;
        to_u8(upper + (lower - upper) * down)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::{Purpose, Random};

    /// The similarity by the normal equations of least squares, solved by elimination: four unknowns, ten equations
    /// a x - b y + s = u and b x + a y + t = v.
    fn naive(from: &Points, to: &Points) -> [f64; 4] {
        let mut system = [[0.0_f64; 5]; 4];
        for ([x, y], [u, v]) in from.iter().zip(to) {
            for (row, right) in [([*x, -*y, 1.0, 0.0], u), ([*y, *x, 0.0, 1.0], v)] {
                for i in 0..4 {
                    for j in 0..4 {
                        system[i][j] += row[i] * row[j];
                    }
                    system[i][4] += row[i] * right;
                }
            }
        }
        for column in 0..4 {
            let best = (column..4)
                .max_by(|&i, &j| system[i][column].abs().total_cmp(&system[j][column].abs()))
                .unwrap();
            system.swap(column, best);
            for row in 0..4 {
                if row != column {
                    let pivot = system[column];
                    let factor = system[row][column] / pivot[column];
                    for (value, pivot) in system[row].iter_mut().zip(pivot) {
                        *value -= factor * pivot;
                    }
                }
            }
        }
        [0, 1, 2, 3].map(|i| system[i][4] / system[i][i])
    }

    /// `cv2.warpAffine` by its definition, without its rounding of places: every source pixel has a tent of width 2.
    fn naive_warp(image: &Image, [a, b, s, t]: [f64; 4], size: usize) -> Vec<f64> {
        let mut values = Vec::new();
        let determinant = a * a + b * b;
        for row in 0..size {
            for column in 0..size {
                let (u, v) = (column as f64 - s, row as f64 - t);
                let (x, y) = ((a * u + b * v) / determinant, (a * v - b * u) / determinant);
                let mut sum = [0.0; 3];
                for i in y.floor() as i64..=y.floor() as i64 + 1 {
                    for j in x.floor() as i64..=x.floor() as i64 + 1 {
                        let weight = (1.0 - (x - j as f64).abs()) * (1.0 - (y - i as f64).abs());
                        let inside = (0..image.width as i64).contains(&j)
                            && (0..image.height as i64).contains(&i);
                        for (c, sum) in sum.iter_mut().enumerate() {
                            if inside {
                                let at = (i as usize * image.width + j as usize) * 3 + c;
                                *sum += weight * f64::from(image.pixels[at]);
                            }
                        }
                    }
                }
                values.extend(sum);
            }
        }
        values
    }

    /// The template turned, scaled, moved and shaken.
    fn face(seed: u64) -> Points {
        let mut random = Random::new(seed, Purpose::Faces, 0);
        let mut number = |from: f32, to: f32| f64::from(random.range(from, to));
        let (angle, scale) = (number(-3.1, 3.1), number(0.3, 4.0));
        let (dx, dy) = (number(20.0, 90.0), number(20.0, 90.0));
        TEMPLATE.map(|[x, y]| {
            let (x, y) = (x - 56.0 + number(-6.0, 6.0), y - 72.0 + number(-6.0, 6.0));
            [
                dx + scale * (x * angle.cos() - y * angle.sin()),
                dy + scale * (x * angle.sin() + y * angle.cos()),
            ]
        })
    }

    fn picture(width: usize, height: usize) -> Image {
        let mut random = Random::new(7, Purpose::Faces, 1);
        let pixels = (0..width * height * 3).map(|_| random.below(256) as u8);
        Image {
            width,
            height,
            pixels: pixels.collect(),
        }
    }

    #[test]
    fn the_fit_is_that_of_the_normal_equations() {
        for seed in 0..200 {
            let from = face(seed);
            for size in [112, 64, 224] {
                let to = template(size);
                let Similarity { turn, shift } = Similarity::fit(&from, &to).unwrap();
                let found = [turn[0], turn[1], shift[0], shift[1]];
                for (f, e) in found.iter().zip(naive(&from, &to)) {
                    assert!(
                        (f - e).abs() <= 1e-9 * e.abs().max(1.0),
                        "{f} instead of {e}"
                    );
                }
            }
        }
        let exact = Similarity::fit(&TEMPLATE, &TEMPLATE).unwrap();
        assert!((exact.turn[0] - 1.0).abs() <= 1e-12 && exact.turn[1].abs() <= 1e-12);
    }

    #[test]
    fn pictures_are_sampled_as_the_definition_says() {
        let image = picture(120, 97);
        // Faces inside, at the border and beyond it.
        for seed in 0..40 {
            let points = face(seed);
            let [x, y] = Centred::new(&points).centre;
            if !(0.0..120.0).contains(&x) || !(0.0..97.0).contains(&y) {
                continue;
            }
            for size in [112, 40] {
                let aligned = align(&image, &points, size).unwrap();
                let expected = naive_warp(&image, naive(&points, &template(size)), size);
                assert_eq!(aligned.pixels.len(), expected.len());
                for (k, (&found, &value)) in aligned.pixels.iter().zip(&expected).enumerate() {
                    let off = (f64::from(found) - value).abs();
                    // Half for rounding to whole numbers, the rest for blending in f32.
                    assert!(
                        off <= 0.501,
                        "seed {seed}, value {k}: {found} instead of {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_aligned_picture_stays_as_it_is() {
        let image = picture(112, 112);
        assert_eq!(align(&image, &TEMPLATE, 112).unwrap(), image);
    }

    #[test]
    fn points_that_are_no_face_are_refused_and_exchanged_sides_are_seen() {
        let image = picture(112, 112);
        let one = [[3.0, 4.0]; 5];
        assert!(Similarity::fit(&one, &TEMPLATE).is_none());
        assert!(align(&image, &one, 112).unwrap_err().contains("one point"));
        for bad in [f64::NAN, f64::INFINITY, 1e300] {
            let mut points = TEMPLATE;
            points[2][1] = bad;
            assert!(Similarity::fit(&points, &TEMPLATE).is_none(), "{bad}");
            assert!(align(&image, &points, 112).is_err(), "{bad}");
        }
        let far = TEMPLATE.map(|[x, y]| [x + 500.0, y]);
        let why = align(&image, &far, 112).unwrap_err();
        assert!(why.contains("outside its 112 x 112 pixels"), "{why}");
        let [a, b, c, d, e] = TEMPLATE;
        assert!((likeness(&TEMPLATE) - 1.0).abs() <= 1e-12);
        assert!(likeness(&[b, a, c, e, d]) < 0.25);
        let profile = TEMPLATE.map(|[_, y]| [56.0, y]);
        assert!((0.75..0.8).contains(&likeness(&profile)));
    }
}
