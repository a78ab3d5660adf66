//! Landmarks in JSON.

use super::{Landmarks, Order, PATHS, plain, point_of};
use crate::data::formats::text::Text;
use crate::data::picture::align::Points;
use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// What points are called, where they stand beside a path.
const POINTS: [&str; 6] = [
    "landmarks",
    "landmark",
    "points",
    "keypoints",
    "kps",
    "landmark5",
];

/// An object's members in their order, those of one name too, each as it stands in the text.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The text, to tell where a part of it stands.
struct Source<'a> {
    text: &'a str,
    start: u64,
    /// The last place asked for, and its line. Parts come in order.
    last: (usize, usize),
}

impl Source<'_> {
    /// The byte in the file and the line at which `part` of the text begins.
    fn place(&mut self, part: &str) -> (u64, usize) {
        let at = part.as_ptr() as usize - self.text.as_ptr() as usize;
        let (from, line) = if at < self.last.0 { (0, 1) } else { self.last };
        let line = line + self.text[from..at].matches('\n').count();
        self.last = (at, line);
        (self.start + at as u64, line)
    }
}

pub(super) fn read(text: &Text, landmarks: &mut Landmarks) -> Result<()> {
    let start = text.lines().next().map_or(0, |(at, _)| at);
    let text = text.as_str();
    let mut source = Source {
        text,
        start,
        last: (0, 1),
    };
    let path = landmarks.path.clone();
    let broken = |e: serde_json::Error| Error::data(&path, format!("is not JSON: {e}"));
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = value.map_err(broken)?;
        if value.get().starts_with('[') {
            let entries: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(broken)?;
            for entry in entries {
                record(entry, &mut source, landmarks)?;
            }
            continue;
        }
        let Ok(Members(members)) = serde_json::from_str(value.get()) else {
            let (at, line) = source.place(value.get());
            return Err(landmarks.bad(at, line, "neither an object nor a list"));
        };
        let is_record = (members.iter())
            .any(|(name, value)| PATHS.contains(&&plain(name)[..]) && value.get().starts_with('"'));
        if is_record {
            record(value, &mut source, landmarks)?;
            continue;
        }
        for (name, value) in members {
            let (at, line) = source.place(value.get());
            let points = parse(value).map_err(|why| landmarks.bad(at, line, &why))?;
            landmarks.add(at, line, &name, points)?;
        }
    }
    Ok(())
}

/// An object with a path and points.
fn record(entry: &RawValue, source: &mut Source<'_>, landmarks: &mut Landmarks) -> Result<()> {
    let (at, line) = source.place(entry.get());
    let bad = |why: &str| landmarks.bad(at, line, why);
    let Ok(Value::Object(members)) = serde_json::from_str(entry.get()) else {
        return Err(bad("an entry that is no object with a path and points"));
    };
    let mut names = (members.iter()).filter_map(|(name, value)| {
        let known = PATHS.contains(&&plain(name)[..]);
        value.as_str().filter(|_| known)
    });
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(bad(
            "an object without one path (\"file\", \"path\", \"image\", ...)",
        ));
    };
    let points = points_in(&Value::Object(members.clone())).map_err(|why| bad(&why))?;
    landmarks.add(at, line, name, points)
}

fn parse(value: &RawValue) -> Result<(Points, Order), String> {
    let value = serde_json::from_str(value.get()).map_err(|e| e.to_string())?;
    points_in(&value)
}

/// The points that a value holds in one of the known ways.
fn points_in(value: &Value) -> Result<(Points, Order), String> {
    const UNKNOWN: &str = "points that are neither five lists [x, y] nor ten numbers";
    match value {
        Value::Array(values) => {
            let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
            if let Some(numbers) = numbers.filter(|numbers| numbers.len() == 10) {
                let mut pairs = numbers.as_chunks::<2>().0.iter().copied();
                let points = [(); 5].map(|()| pairs.next().unwrap_or_default());
                return Ok((points, Order::Assumed));
            }
            let pairs: Option<Vec<[f64; 2]>> = values.iter().map(pair).collect();
            if let Some(points) = pairs.and_then(|pairs| pairs.try_into().ok()) {
                return Ok((points, Order::Said));
            }
            match &values[..] {
                [face @ (Value::Array(_) | Value::Object(_))] => points_in(face),
                faces if faces.iter().all(|face| points_in(face).is_ok()) => {
                    Err(format!("{} faces where one belongs", faces.len()))
                }
                _ => Err(UNKNOWN.into()),
            }
        }
        Value::Object(members) => {
            let mut points = [None; 5];
            for (name, value) in members {
                let name = plain(name);
                if POINTS.contains(&&name[..]) {
                    return points_in(value);
                }
                if let Some(point) = point_of(&name) {
                    let found = pair(value).ok_or(UNKNOWN)?;
                    if points[point].replace(found).is_some() {
                        return Err(format!("the point {name} twice"));
                    }
                }
            }
            match points {
                [Some(a), Some(b), Some(c), Some(d), Some(e)] => Ok(([a, b, c, d, e], Order::Said)),
                _ => Err("no points (\"landmarks\", \"points\", \"left_eye\", ...)".into()),
            }
        }
        _ => Err(UNKNOWN.into()),
    }
}

/// `[x, y]`
fn pair(value: &Value) -> Option<[f64; 2]> {
    match &value.as_array()?[..] {
        [x, y] => Some([x.as_f64()?, y.as_f64()?]),
        _ => None,
    }
}
