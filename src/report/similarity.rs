//! The similarity matrix of embedded images: a picture of E E^T, and its mean within and between identities.
//!
//! Row and column i are image i, identities are blocks, and the colour is the cosine on a *fixed* scale, -0.2 to 1:
//! two pictures can be compared, and a network that tells nobody apart does not look like one that does. Cosines of
//! different people scatter around 0 (by 1/sqrt(D) where embeddings point anywhere), so 0 must lie inside the scale
//! and not at its edge; below -0.2 there is next to nothing, and a scale from -1 would leave 40 % of its colours
//! unused. Lower values take the lowest colour, which the colour bar shows by its pointed end.

use std::path::Path;

use image::RgbImage;

use super::canvas::{Align, Canvas, Font, GREY, INK, WHITE};
use super::picture_file;
use super::viridis::viridis;
use crate::base::error::{Error, Result};

/// The cosines at the ends of the colour scale.
const SCALE: (f32, f32) = (-0.2, 1.0);

/// The matrix's side in pixels, about: cells grow to reach it, and of more images several share a pixel.
const SIDE: usize = 800;
/// The matrix's largest side in pixels.
const LARGEST_SIDE: usize = 2000;
/// The largest cell, in pixels.
const LARGEST_CELL: usize = 64;

/// The images of one identity, which lie one after the other, or a loose image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What to write beside the block: the identity's name or number, or the image's name.
    pub label: String,
    /// The number of its images.
    pub images: usize,
    /// Whether it is an identity.
    pub is_identity: bool,
}

impl Block {
    /// So many images of an identity.
    pub fn identity(label: &str, images: usize) -> Self {
        Block {
            label: label.to_owned(),
            images,
            is_identity: true,
        }
    }

    /// An image whose identity nobody told.
    pub fn loose(label: &str) -> Self {
        Block {
            label: label.to_owned(),
            images: 1,
            is_identity: false,
        }
    }
}

/// Mean cosines of pairs of different images; `None` where there is no such pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Means {
    /// Of two images of one identity.
    pub within: Option<f64>,
    /// Of images of two identities.
    pub between: Option<f64>,
    /// Of a loose image and any other.
    pub loose: Option<f64>,
}

impl std::fmt::Display for Means {
    /// "within identities 0.712, between identities 0.034, with loose images 0.101"
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Adding 0 after rounding turns -0 into 0.
        let number = |mean: Option<f64>| {
            mean.map_or("none".to_owned(), |m| {
                format!("{:.3}", (m * 1000.0).round() / 1000.0 + 0.0)
            })
        };
        let loose = self.loose.map(|_| number(self.loose));
        match (self.within.or(self.between), loose) {
            (None, None) => write!(f, "of pairs: there are none"),
            (None, Some(loose)) => write!(f, "of all pairs {loose}"),
            (_, loose) => {
                let (within, between) = (number(self.within), number(self.between));
                write!(
                    f,
                    "within identities {within}, between identities {between}"
                )?;
                loose.map_or(Ok(()), |loose| write!(f, ", with loose images {loose}"))
            }
        }
    }
}

/// Unit embeddings in blocks of identities.
pub struct Similarity<'a> {
    unit: Vec<f32>,
    dim: usize,
    blocks: &'a [Block],
}

impl<'a> Similarity<'a> {
    /// Takes n x `dim` embeddings, row-major, of any length but zero, the images of `blocks[0]` first.
    ///
    /// # Errors
    /// Where the numbers do not make as many rows as the blocks have images, there is no image, or an embedding is
    /// not finite or zero.
    pub fn new(embeddings: &[f32], dim: usize, blocks: &'a [Block]) -> Result<Self> {
        let images: usize = blocks.iter().map(|b| b.images).sum();
        if dim == 0 || images == 0 || embeddings.len() != images * dim {
            return Err(Error::Invalid(format!(
                "a similarity matrix of {images} images needs {images} rows of {dim} numbers: found {} numbers",
                embeddings.len()
            )));
        }
        let mut unit = Vec::with_capacity(embeddings.len());
        for (k, row) in embeddings.chunks_exact(dim).enumerate() {
            let length = row
                .iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt();
            if !(length > 0.0 && length.is_finite()) {
                return Err(Error::Invalid(format!(
                    "the embedding of image {k} has no direction: its length is {length}"
                )));
            }
            unit.extend(row.iter().map(|&x| (f64::from(x) / length) as f32));
        }
        Ok(Similarity { unit, dim, blocks })
    }

    fn images(&self) -> usize {
        self.unit.len() / self.dim
    }

    /// The mean cosines, in O(n D): the sum over all pairs of a set is the squared length of the set's sum.
    pub fn means(&self) -> Means {
        let squared = |sum: &[f64]| sum.iter().map(|x| x * x).sum::<f64>();
        let pairs = |n: usize| n as f64 * (n as f64 - 1.0);
        let add = |to: &mut [f64], sum: &[f64]| to.iter_mut().zip(sum).for_each(|(a, s)| *a += s);
        let mut rows = self.unit.chunks_exact(self.dim);
        // Sums over all images, and over those of identities; the same of cosines of images with themselves.
        let (mut all, mut known) = (vec![0.0; self.dim], vec![0.0; self.dim]);
        let (mut all_diagonal, mut known_images) = (0.0, 0);
        let (mut within, mut within_pairs, mut blocks) = (0.0, 0.0, 0.0);
        let mut known_diagonal = 0.0;
        for block in self.blocks {
            let mut sum = vec![0.0; self.dim];
            let mut diagonal = 0.0;
            for row in rows.by_ref().take(block.images) {
                for (s, &x) in sum.iter_mut().zip(row) {
                    *s += f64::from(x);
                    diagonal += f64::from(x).powi(2);
                }
            }
            add(&mut all, &sum);
            all_diagonal += diagonal;
            if block.is_identity {
                add(&mut known, &sum);
                known_diagonal += diagonal;
                known_images += block.images;
                blocks += squared(&sum);
                within += squared(&sum) - diagonal;
                within_pairs += pairs(block.images);
            }
        }
        let mean = |sum: f64, pairs: f64| (pairs > 0.0).then(|| sum / pairs);
        let among_known = squared(&known) - known_diagonal;
        Means {
            within: mean(within, within_pairs),
            between: mean(squared(&known) - blocks, pairs(known_images) - within_pairs),
            loose: mean(
                squared(&all) - all_diagonal - among_known,
                pairs(self.images()) - pairs(known_images),
            ),
        }
    }

    /// Draws the matrix with its labels, colour bar and means.
    ///
    /// Up to 2000 images have at least one pixel each; of more, neighbours share one, which shows their mean.
    pub fn draw(&self) -> RgbImage {
        let n = self.images();
        let per_pixel = n.div_ceil(LARGEST_SIDE);
        let means = self.neighbour_means(per_pixel);
        let cells = means.len() / self.dim;
        let cell = (SIDE / cells).clamp(1, LARGEST_CELL) as i32;
        let layout = Layout::new(self.blocks, cells, per_pixel, cell);

        let left = 42 + layout.label_width;
        let top = 66;
        let side = layout.side;
        let bar_left = left + side + 28;
        let title = self.title();
        let width = (bar_left + 104).max(left + Font::Title.width(&title) + 20);
        let height = top + side + layout.label_height_below() + 38;
        let mut canvas = Canvas::new(width, height);

        canvas.text(&title, (left, 24), Align::Left, Font::Title, INK);
        canvas.text(
            &format!("mean {}", self.means()),
            (left, 46),
            Align::Left,
            Font::Medium,
            GREY,
        );

        for (i, a) in means.chunks_exact(self.dim).enumerate() {
            for (j, b) in means.chunks_exact(self.dim).enumerate() {
                let cosine: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                canvas.fill(
                    left + layout.offsets[j],
                    top + layout.offsets[i],
                    cell,
                    cell,
                    colour(cosine),
                );
            }
        }
        canvas.frame([left, top, side, side], 1, INK);
        layout.draw_labels(&mut canvas, self.blocks, left, top);
        draw_colour_bar(&mut canvas, bar_left, top, side);
        canvas.into_image()
    }

    /// "Cosine similarity of 12 images of 3 identities and 2 loose images"
    fn title(&self) -> String {
        let (mut images, mut identities, mut loose) = (0, 0, 0);
        for block in self.blocks {
            match block.is_identity {
                true => (images, identities) = (images + block.images, identities + 1),
                false => loose += block.images,
            }
        }
        let count = |n: usize, one: &str, several: &str| {
            format!("{n} {}", if n == 1 { one } else { several })
        };
        let of_identities = format!(
            "{} of {}",
            count(images, "image", "images"),
            count(identities, "identity", "identities")
        );
        let loose_images = count(loose, "loose image", "loose images");
        let what = match (identities, loose) {
            (0, n) => count(n, "image", "images"),
            (_, 0) => of_identities,
            _ => format!("{of_identities} and {loose_images}"),
        };
        format!("Cosine similarity of {what}")
    }

    /// Draws the matrix to a picture file of the kind that its name tells.
    ///
    /// # Errors
    /// The name tells no kind of picture, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        picture_file::save(&self.draw(), path)
    }

    /// The mean embeddings of each `group` neighbouring images: their products are the means of the cosines.
    fn neighbour_means(&self, group: usize) -> Vec<f32> {
        let mut means = Vec::with_capacity(self.images().div_ceil(group) * self.dim);
        for rows in self.unit.chunks(group * self.dim) {
            let count = (rows.len() / self.dim) as f32;
            for d in 0..self.dim {
                let sum: f32 = rows.iter().skip(d).step_by(self.dim).sum();
                means.push(sum / count);
            }
        }
        means
    }
}

fn colour(cosine: f32) -> [u8; 3] {
    viridis((cosine - SCALE.0) / (SCALE.1 - SCALE.0))
}

/// Where cells and blocks lie along one side of the matrix, in pixels from its beginning.
struct Layout {
    /// Where each cell begins.
    offsets: Vec<i32>,
    /// Where each block begins and ends.
    spans: Vec<(i32, i32)>,
    /// The whole side.
    side: i32,
    /// The width of the widest label.
    label_width: i32,
    /// Whether the labels under the columns fit only upright.
    upright: bool,
}

const LABEL: Font = Font::Small;

impl Layout {
    fn new(blocks: &[Block], cells: usize, per_cell: usize, cell: i32) -> Self {
        // A thin line of background between identities, where it does not eat up the blocks.
        let gap = match cells as i32 * cell / blocks.len() as i32 {
            0..8 => 0,
            8..32 => 1,
            _ => 2,
        };
        let mut block_of = Vec::with_capacity(cells);
        let mut starts = Vec::with_capacity(blocks.len());
        let mut images = 0;
        for (k, block) in blocks.iter().enumerate() {
            starts.push(images / per_cell);
            images += block.images;
            block_of.resize(images.div_ceil(per_cell).min(cells), k);
        }
        let offsets: Vec<i32> = block_of
            .iter()
            .enumerate()
            .map(|(c, &block)| c as i32 * cell + block as i32 * gap)
            .collect();
        let side = offsets[cells - 1] + cell;
        let spans: Vec<(i32, i32)> = starts
            .iter()
            .zip(blocks)
            .map(|(&start, block)| {
                let last = (start + block.images.div_ceil(per_cell).max(1) - 1).min(cells - 1);
                (offsets[start.min(cells - 1)], offsets[last] + cell)
            })
            .collect();
        let label_width = blocks
            .iter()
            .map(|b| LABEL.width(&shortened(&b.label)))
            .max()
            .unwrap_or(0);
        let mean_span = side / blocks.len() as i32;
        Layout {
            offsets,
            spans,
            side,
            label_width,
            upright: label_width + 4 > mean_span,
        }
    }

    fn label_height_below(&self) -> i32 {
        if self.upright {
            self.label_width
        } else {
            LABEL.height()
        }
    }

    fn draw_labels(&self, canvas: &mut Canvas, blocks: &[Block], left: i32, top: i32) {
        let bottom = top + self.side;
        // Beside small blocks there is no room: a label that would touch the one before it is left out.
        let (mut free_beside, mut free_below) = (i32::MIN, i32::MIN);
        for (&(start, end), block) in self.spans.iter().zip(blocks) {
            if block.images == 0 {
                continue;
            }
            let middle = (start + end) / 2;
            let label = shortened(&block.label);
            let half = LABEL.height() / 2;
            if middle - half >= free_beside {
                free_beside = middle + half + 2;
                canvas.fill(left - 5, top + middle, 4, 1, INK);
                canvas.text(&label, (left - 9, top + middle), Align::Right, LABEL, INK);
            }
            let half = if self.upright {
                half
            } else {
                LABEL.width(&label) / 2
            };
            if middle - half < free_below {
                continue;
            }
            free_below = middle + half + 2;
            canvas.fill(left + middle, bottom + 1, 1, 4, INK);
            if self.upright {
                let at = (left + middle, bottom + 9);
                canvas.text_upwards(&label, at, Align::Right, LABEL, INK);
            } else {
                let at = (left + middle, bottom + 8 + LABEL.height() / 2);
                canvas.text(&label, at, Align::Centre, LABEL, INK);
            }
        }
        let at = (14, top + self.side / 2);
        canvas.text_upwards("identity", at, Align::Centre, Font::Medium, INK);
        let at = (
            left + self.side / 2,
            bottom + self.label_height_below() + 22,
        );
        canvas.text("identity", at, Align::Centre, Font::Medium, INK);
    }
}

/// Long labels keep their beginning.
fn shortened(label: &str) -> String {
    const LONGEST: usize = 16;
    if label.chars().count() <= LONGEST {
        return label.to_owned();
    }
    let start: String = label.chars().take(LONGEST - 2).collect();
    format!("{start}..")
}

/// A bar of all colours with numbers on its right; its pointed lower end stands for everything below the scale.
fn draw_colour_bar(canvas: &mut Canvas, left: i32, top: i32, height: i32) {
    const WIDTH: i32 = 22;
    const POINT: i32 = 12;
    let length = (height - POINT).max(1);
    for y in 0..length {
        let t = 1.0 - (y as f32 + 0.5) / length as f32;
        canvas.fill(left, top + y, WIDTH, 1, viridis(t));
    }
    canvas.frame([left, top, WIDTH, length], 1, INK);
    canvas.fill(left, top + length, WIDTH, 1, viridis(0.0));
    for y in 0..=POINT {
        let inset = y * WIDTH / (2 * POINT);
        canvas.fill(left - 1, top + length + y, WIDTH + 2, 1, WHITE);
        canvas.fill(
            left - 1 + inset,
            top + length + y,
            WIDTH + 2 - 2 * inset,
            1,
            INK,
        );
        let inside = WIDTH - 2 * inset - 2;
        if inside > 0 && y < POINT {
            canvas.fill(left + 1 + inset, top + length + y, inside, 1, viridis(0.0));
        }
    }
    // In tenths, so that ticks are exact.
    for tenths in (-2..=10).step_by(2) {
        let t = (tenths as f32 / 10.0 - SCALE.0) / (SCALE.1 - SCALE.0);
        let y = top + ((1.0 - t) * (length - 1) as f32).round() as i32;
        canvas.fill(left + WIDTH + 1, y, 4, 1, INK);
        let number = format!("{:.1}", f64::from(tenths) / 10.0);
        let right = left + WIDTH + 13 + Font::Medium.width("-0.2");
        canvas.text(&number, (right, y), Align::Right, Font::Medium, INK);
    }
    let at = (left + WIDTH + 64, top + height / 2);
    canvas.text_upwards("cosine", at, Align::Centre, Font::Medium, INK);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::{Purpose, Random};

    fn blocks(sizes: &[usize]) -> Vec<Block> {
        sizes
            .iter()
            .enumerate()
            .map(|(k, &images)| Block::identity(&(85741 - k).to_string(), images))
            .collect()
    }

    /// Embeddings around a direction of each block's own.
    fn embeddings(blocks: &[Block], dim: usize, noise: f32) -> Vec<f32> {
        let mut all = Vec::new();
        for (k, block) in blocks.iter().enumerate() {
            let mut random = Random::new(3, Purpose::Faces, k as u64);
            let centre: Vec<f32> = (0..dim).map(|_| random.normal()).collect();
            for _ in 0..block.images {
                let length = random.range(0.5, 7.0);
                all.extend(
                    centre
                        .iter()
                        .map(|c| length * (c + noise * random.normal())),
                );
            }
        }
        all
    }

    #[test]
    fn means_are_those_of_the_matrix() {
        // The last two are loose.
        let mut blocks = blocks(&[3, 1, 5, 2]);
        blocks.extend(["a", "b"].map(Block::loose));
        let dim = 7;
        let e = embeddings(&blocks, dim, 0.8);
        let of: Vec<usize> = blocks
            .iter()
            .enumerate()
            .flat_map(|(k, b)| vec![k; b.images])
            .collect();
        let cosine = |i: usize, j: usize| {
            let (a, b) = (&e[i * dim..][..dim], &e[j * dim..][..dim]);
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter()
                    .zip(b)
                    .map(|(&x, &y)| f64::from(x) * f64::from(y))
                    .sum()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let mut sums = [[0.0; 2]; 3];
        for i in 0..of.len() {
            for j in (0..of.len()).filter(|&j| j != i) {
                let loose = of[i].max(of[j]) > 3;
                let s = &mut sums[if loose {
                    2
                } else {
                    usize::from(of[i] != of[j])
                }];
                s[0] += cosine(i, j);
                s[1] += 1.0;
            }
        }
        let means = Similarity::new(&e, dim, &blocks).unwrap().means();
        let expected = sums.map(|[sum, count]| sum / count);
        assert!((means.within.unwrap() - expected[0]).abs() <= 1e-6);
        assert!((means.between.unwrap() - expected[1]).abs() <= 1e-6);
        assert!((means.loose.unwrap() - expected[2]).abs() <= 1e-6);
    }

    #[test]
    fn loose_images_are_no_identities() {
        let of = |blocks: &[Block]| {
            let e = embeddings(blocks, 5, 0.4);
            let similarity = Similarity::new(&e, 5, blocks).unwrap();
            (similarity.title(), similarity.means())
        };
        let (title, means) = of(&["a", "b", "c"].map(Block::loose));
        assert_eq!(title, "Cosine similarity of 3 images");
        assert_eq!((means.within, means.between), (None, None));
        assert!(means.to_string().starts_with("of all pairs "), "{means}");
        let (title, means) = of(&[Block::identity("ann", 2), Block::loose("b")]);
        assert_eq!(
            title,
            "Cosine similarity of 2 images of 1 identity and 1 loose image"
        );
        let means = means.to_string();
        assert!(
            means.contains("between identities none, with loose images "),
            "{means}"
        );
        let (title, means) = of(&blocks(&[2, 3]));
        assert_eq!(title, "Cosine similarity of 5 images of 2 identities");
        assert_eq!(means.loose, None);
    }

    #[test]
    fn means_that_do_not_exist_are_none() {
        for one in [Block::identity("a", 1), Block::loose("a")] {
            let one = [one];
            let means = Similarity::new(&[2.0, 0.0], 2, &one).unwrap().means();
            assert_eq!(means, Means::default());
        }
    }

    #[test]
    fn cells_have_the_colour_of_their_cosine() {
        let blocks = blocks(&[1, 1]);
        let image = Similarity::new(&[3.0, 0.0, 0.3, 0.4], 2, &blocks)
            .unwrap()
            .draw();
        let count = |c: [u8; 3]| image.pixels().filter(|p| p.0 == c).count();
        // Two cells on the diagonal, two beside it, of 64 x 64 pixels; the colour bar adds a few lines.
        for cosine in [1.0, 0.6] {
            let cells = count(colour(cosine)) as i32 - 2 * 64 * 64;
            assert!(
                (0..200).contains(&cells),
                "{cosine}: {cells} pixels too many"
            );
        }
    }

    #[test]
    fn many_images_share_pixels_and_odd_blocks_draw() {
        for sizes in [
            vec![1],
            vec![1; 900],
            vec![0, 3, 0, 1, 0],
            vec![2100, 3, 2000],
            vec![1; 2500],
        ] {
            let blocks = blocks(&sizes);
            let e = embeddings(&blocks, 2, 0.3);
            let image = Similarity::new(&e, 2, &blocks).unwrap().draw();
            assert!(image.width() < 2400 && image.height() < 2400);
        }
    }

    #[test]
    fn what_has_no_similarity_is_an_error() {
        let blocks = blocks(&[2]);
        let says = |e: &[f32], dim, words: &str| {
            let text = Similarity::new(e, dim, &blocks).err().unwrap().to_string();
            assert!(text.contains(words), "{text}");
        };
        says(&[1.0; 5], 2, "2 rows of 2 numbers: found 5");
        says(&[1.0; 4], 0, "2 rows of 0");
        says(&[1.0, 1.0, 0.0, 0.0], 2, "image 1 has no direction");
        says(&[f32::NAN, 1.0, 0.0, 2.0], 2, "image 0 has no direction");
        assert!(Similarity::new(&[], 2, &[]).is_err());
    }

    /// Writes pictures to look at: `PICTURES=folder cargo test --release --lib pictures -- --ignored`.
    #[test]
    #[ignore = "for people to look at"]
    fn pictures() {
        let folder = std::env::var("PICTURES").expect("PICTURES names a folder");
        for (name, sizes, noise) in [
            ("400", vec![20; 20], 0.9),
            ("small", vec![3, 2, 4], 0.5),
            ("many", vec![4; 150], 0.5),
            ("uneven", vec![30, 3, 90, 1, 1, 50], 1.5),
        ] {
            let blocks = blocks(&sizes);
            let e = embeddings(&blocks, 128, noise);
            let path = Path::new(&folder).join(format!("similarity-{name}.png"));
            Similarity::new(&e, 128, &blocks)
                .unwrap()
                .save(&path)
                .unwrap();
        }
    }
}
