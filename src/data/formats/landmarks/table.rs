//! Landmarks in lines: text and CSV.

use super::{Landmarks, Order, PATHS, plain, point_of};
use crate::Result;
use crate::data::formats::text::Text;
use crate::data::picture::align::Points;

/// Ten numbers, and the path before them.
const COLUMNS: usize = 11;

/// Which column is what.
struct Columns {
    path: usize,
    /// Those of x and y of each point.
    points: [[usize; 2]; 5],
    /// How many a line has.
    count: usize,
}

impl Columns {
    /// Without a heading: the path, then x and y of each point.
    const PLAIN: Columns = Columns {
        path: 0,
        points: [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]],
        count: COLUMNS,
    };

    /// What a heading says, or what is wrong with it.
    fn of_heading(fields: &[String]) -> Result<Self, String> {
        let names: Vec<String> = fields.iter().map(|field| plain(field)).collect();
        let numbered: Vec<usize> = names.iter().filter_map(|name| number_of(name)).collect();
        // Points are counted from 0 or from 1.
        let first = numbered.iter().copied().min().unwrap_or(0);
        let place = |name: &str| {
            let (point, axis) = coordinate(name)?;
            let point = point_of(point).or_else(|| Some(number(point)? - first));
            point.filter(|&point| point < 5).map(|point| (point, axis))
        };
        let mut points = [[None; 2]; 5];
        for (column, name) in names.iter().enumerate() {
            let Some((point, axis)) = place(name) else {
                continue;
            };
            if points[point][axis].replace(column).is_some() {
                return Err(format!("a second column {:?}", fields[column]));
            }
        }
        if points.iter().flatten().any(Option::is_none) {
            return Err(
                "a heading that does not name x and y of five points (lefteye_x, ... or x1, ...)"
                    .into(),
            );
        }
        let path = (names.iter()).position(|name| PATHS.contains(&&name[..]));
        let path = path.or_else(|| names.iter().position(|name| place(name).is_none()));
        // CelebA's heading leaves out the path, which stands in front.
        let shift = usize::from(path.is_none());
        Ok(Columns {
            path: path.unwrap_or(0),
            points: points.map(|point| point.map(|column| column.unwrap_or(0) + shift)),
            count: fields.len() + shift,
        })
    }
}

/// The point and the axis that a plain name ends or begins with: `lefteyex`, `p1x`, `x1`.
fn coordinate(name: &str) -> Option<(&str, usize)> {
    for (axis, letter) in ['x', 'y'].into_iter().enumerate() {
        let point = name.strip_suffix(letter).or(name.strip_prefix(letter));
        if let Some(point) = point.filter(|p| point_of(p).is_some() || number(p).is_some()) {
            return Some((point, axis));
        }
    }
    None
}

/// The number of a point: `1`, `p1`, `landmark0`.
fn number(point: &str) -> Option<usize> {
    let digits = point.trim_start_matches(char::is_alphabetic);
    let kinds = ["", "p", "pt", "point", "landmark", "kp", "kps", "keypoint"];
    let known = kinds.contains(&&point[..point.len() - digits.len()]);
    known.then(|| digits.parse().ok()).flatten()
}

fn number_of(name: &str) -> Option<usize> {
    coordinate(name).and_then(|(point, _)| number(point))
}

/// What stands between the fields of a line.
fn separator(line: &str) -> Option<char> {
    // A path may hold commas, but hardly as many as there are numbers.
    match line.contains('\t') {
        true => Some('\t'),
        false => (line.matches(',').count() >= COLUMNS - 2).then_some(','),
    }
}

/// The fields of a line, `count` of them where spaces part them: then the first one may hold spaces.
fn fields(line: &str, count: usize) -> Result<Vec<String>, String> {
    match separator(line) {
        Some(',') => comma_separated(line),
        Some(tab) => Ok(line.split(tab).map(|f| f.trim().to_owned()).collect()),
        None => {
            let mut fields: Vec<String> = Vec::new();
            let mut rest = line.trim();
            while fields.len() + 1 < count
                && let Some((before, last)) = rest.rsplit_once(char::is_whitespace)
            {
                fields.push(last.to_owned());
                rest = before.trim_end();
            }
            fields.push(rest.to_owned());
            fields.reverse();
            Ok(fields)
        }
    }
}

/// As RFC 4180 has them, except that none holds a line break.
fn comma_separated(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        let (field, behind) = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim_end().to_owned(), &rest[end..])
            }
            Some(mut quoted) => {
                let mut field = String::new();
                loop {
                    let (text, behind) = quoted.split_once('"').ok_or("a quote without an end")?;
                    field += text;
                    match behind.strip_prefix('"') {
                        Some(more) => {
                            field.push('"');
                            quoted = more;
                        }
                        None => break (field, behind.trim_start()),
                    }
                }
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(more) => rest = more,
            None if behind.is_empty() => return Ok(fields),
            None => return Err(format!("{behind:?} behind a quote")),
        }
    }
}

pub(super) fn read(text: &Text, landmarks: &mut Landmarks) -> Result<()> {
    let (mut columns, mut order) = (Columns::PLAIN, Order::Assumed);
    let mut first = true;
    for ((at, line), number) in text.lines().zip(1..) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let shown: String = line.chars().take(80).collect();
        let bad = |found: &str| format!("{found}: {shown:?}");
        if first {
            // CelebA's count of pictures.
            if line.trim().parse::<u64>().is_ok() {
                continue;
            }
            first = false;
            let split = |count| fields(line, count).map_err(|why| bad(&why));
            // Where spaces part the columns, none of their names holds any.
            let words = split(usize::MAX).map_err(|why| landmarks.bad(at, number, &why))?;
            if words
                .iter()
                .skip(1)
                .all(|word| word.parse::<f64>().is_err())
                && words.len() > 1
            {
                columns = Columns::of_heading(&words)
                    .map_err(|why| landmarks.bad(at, number, &bad(&why)))?;
                order = Order::Said;
                continue;
            }
        }
        let found = parse(line, &columns).map_err(|why| landmarks.bad(at, number, &bad(&why)));
        let (name, points) = found?;
        landmarks.add(at, number, &name, (points, order))?;
    }
    Ok(())
}

fn parse(line: &str, columns: &Columns) -> Result<(String, Points), String> {
    let mut fields = fields(line, columns.count)?;
    if fields.len() != columns.count {
        let (found, expected) = (fields.len(), columns.count);
        return Err(format!("{found} fields instead of {expected}"));
    }
    let mut points = Points::default();
    for (point, places) in points.iter_mut().zip(columns.points) {
        for (value, place) in point.iter_mut().zip(places) {
            let field = &fields[place];
            *value = field
                .parse()
                .map_err(|_| format!("{field:?} where a coordinate belongs"))?;
        }
    }
    Ok((fields.swap_remove(columns.path), points))
}
