//! `tf.train.Example` in the three schemas that ArcFace projects write: read and made.

use crate::data::formats::labels;
use crate::encoding::protobuf::{Malformed, Message, Value, put_bytes, put_varint, varint};
use std::borrow::Cow;

/// The features of an image, as the projects call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// face_recognition_tf2: `label` (int64), `filepath` (bytes), `image_raw` (bytes, the image file).
    Seed,
    /// arcface-tf2: `image/source_id` (int64), `image/filename` (bytes), `image/encoded` (bytes, the image file).
    ArcfaceTf2,
    /// arcface-tf2 without pictures: `image/source_id` (int64), `image/img_path` (bytes, the path of the image file).
    ArcfaceTf2Paths,
}

impl Schema {
    /// The keys of label, name (which no reader needs) and image.
    fn keys(self) -> (&'static str, Option<&'static str>, &'static str) {
        match self {
            Schema::Seed => ("label", Some("filepath"), "image_raw"),
            Schema::ArcfaceTf2 => ("image/source_id", Some("image/filename"), "image/encoded"),
            Schema::ArcfaceTf2Paths => ("image/source_id", None, "image/img_path"),
        }
    }
}

/// Where the picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Picture<'a> {
    /// Here: an image file.
    Encoded(&'a [u8]),
    /// In the file of this name.
    Path(&'a str),
}

/// What is read of an example.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example<'a> {
    /// A number in decimal digits, or a name.
    pub(crate) label: Cow<'a, str>,
    pub(crate) picture: Picture<'a>,
}

/// The first value of a feature.
#[derive(Clone, Copy)]
enum First<'a> {
    Bytes(Message<'a>),
    Int(i64),
    Float,
    Nothing,
}

impl First<'_> {
    fn what(self) -> &'static str {
        match self {
            First::Bytes(_) => "bytes",
            First::Int(_) => "an int64",
            First::Float => "a float",
            First::Nothing => "an empty list",
        }
    }
}

/// Reads the record `bytes`, which begins `at` bytes into the file.
pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Example<'_>, Malformed> {
    let mut example = Message { bytes, at };
    let (mut label, mut picture) = (None, None);
    let mut keys = Vec::new();
    while let Some((number, value)) = example.field()? {
        let (1, Value::Bytes(mut features)) = (number, value) else {
            continue;
        };
        while let Some((number, value)) = features.field()? {
            let (1, Value::Bytes(entry)) = (number, value) else {
                continue;
            };
            let (key, feature) = read_entry(entry)?;
            match key {
                "label" | "image/source_id" => label = Some(read_label(key, feature)?),
                "image_raw" | "image/encoded" => {
                    picture = Some(match first(feature)? {
                        First::Bytes(file) => Picture::Encoded(file.bytes),
                        other => return Err(wrong(key, "an image file as bytes", feature, other)),
                    });
                }
                "image/img_path" => {
                    picture = Some(match first(feature)? {
                        First::Bytes(path) => Picture::Path(text(path, "a path in UTF-8")?),
                        other => return Err(wrong(key, "a path as bytes", feature, other)),
                    });
                }
                _ => {}
            }
            // Only named in a message; a record may have any number.
            if keys.len() < 20 {
                keys.push(key);
            }
        }
    }
    match (label, picture) {
        (Some(label), Some(picture)) => Ok(Example { label, picture }),
        (label, _) => Err(Malformed::new(
            at,
            if label.is_none() {
                "an example with the feature label or image/source_id"
            } else {
                "an example with the feature image_raw, image/encoded or image/img_path"
            },
            match keys.is_empty() {
                true => "one without features".into(),
                false => format!("one with {}", keys.join(", ")),
            },
        )),
    }
}

fn wrong(key: &str, expected: &str, feature: Message<'_>, found: First<'_>) -> Malformed {
    Malformed::new(
        feature.at,
        format!("{expected} in the feature {key}"),
        found.what(),
    )
}

fn text<'a>(message: Message<'a>, expected: &str) -> Result<&'a str, Malformed> {
    std::str::from_utf8(message.bytes).map_err(|_| {
        let shown = &message.bytes[..message.bytes.len().min(40)];
        Malformed::new(
            message.at,
            expected,
            format!("{:?}", String::from_utf8_lossy(shown)),
        )
    })
}

/// Key and feature of an entry of the map.
fn read_entry(mut entry: Message<'_>) -> Result<(&str, Message<'_>), Malformed> {
    let empty = Message {
        bytes: &[],
        at: entry.at,
    };
    let (mut key, mut feature) = ("", empty);
    while let Some((number, value)) = entry.field()? {
        match (number, value) {
            (1, Value::Bytes(name)) => key = text(name, "a feature's name in UTF-8")?,
            (2, Value::Bytes(message)) => feature = message,
            _ => {}
        }
    }
    Ok((key, feature))
}

/// The first value in the list that a feature is.
fn first(mut feature: Message<'_>) -> Result<First<'_>, Malformed> {
    let mut found = First::Nothing;
    while let Some((kind, value)) = feature.field()? {
        let Value::Bytes(mut list) = value else {
            continue;
        };
        while let Some((number, value)) = list.field()? {
            let value = match (kind, number, value) {
                (1, 1, Value::Bytes(bytes)) => First::Bytes(bytes),
                (2, 1, _) => First::Float,
                (3, 1, Value::Varint(value)) => First::Int(value as i64),
                (3, 1, Value::Bytes(mut packed)) if !packed.bytes.is_empty() => {
                    First::Int(varint(&mut packed)? as i64)
                }
                _ => continue,
            };
            if matches!(found, First::Nothing) {
                found = value;
            }
        }
    }
    Ok(found)
}

fn read_label<'a>(key: &str, feature: Message<'a>) -> Result<Cow<'a, str>, Malformed> {
    match first(feature)? {
        First::Int(label) if label >= 0 => Ok(label.to_string().into()),
        First::Int(label) => Err(Malformed::new(
            feature.at,
            format!("a label of 0 or above in the feature {key}"),
            label.to_string(),
        )),
        First::Bytes(name) => {
            let name = labels::check(text(name, "a label in UTF-8")?);
            let expected = format!("a label of 0 or above, or a name, in the feature {key}");
            name.map(Cow::Borrowed)
                .map_err(|found| Malformed::new(feature.at, expected, found))
        }
        other => Err(wrong(key, "an int64 or a text", feature, other)),
    }
}

/// An example in the bytes that TensorFlow reads: `image` is the image file, or its path.
pub(crate) fn encode(schema: Schema, label: u32, name: &str, image: &[u8]) -> Vec<u8> {
    let (label_key, name_key, image_key) = schema.keys();
    let mut features = Vec::with_capacity(image.len() + name.len() + 120);
    let mut entry = |key: &str, kind: u64, list: &[u8]| {
        let mut feature = Vec::with_capacity(list.len() + 10);
        put_bytes(&mut feature, kind, list);
        let mut entry = Vec::with_capacity(feature.len() + key.len() + 20);
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &feature);
        put_bytes(&mut features, 1, &entry);
    };
    let list = |bytes: &[u8]| {
        let mut list = Vec::with_capacity(bytes.len() + 10);
        put_bytes(&mut list, 1, bytes);
        list
    };
    let mut packed = Vec::new();
    put_varint(&mut packed, label.into());
    entry(label_key, 3, &list(&packed));
    if let Some(key) = name_key {
        entry(key, 1, &list(name.as_bytes()));
    }
    entry(image_key, 1, &list(image));
    let mut example = Vec::with_capacity(features.len() + 10);
    put_bytes(&mut example, 1, &features);
    example
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the protocol by hand: {"image_raw": BytesList([ff d8]), "label": Int64List([3, 4, 5], packed)}.
    const BY_HAND: &[u8] = b"\x0a\x27\
        \x0a\x13\x0a\x09image_raw\x12\x06\x0a\x04\x0a\x02\xff\xd8\
        \x0a\x10\x0a\x05label\x12\x07\x1a\x05\x0a\x03\x03\x04\x05";

    #[test]
    fn an_example_by_hand() {
        let example = parse(BY_HAND, 0).unwrap();
        assert_eq!(example.label, "3");
        assert_eq!(example.picture, Picture::Encoded(b"\xff\xd8"));
        for length in 0..BY_HAND.len() {
            assert!(parse(&BY_HAND[..length], 0).is_err(), "{length}");
        }
        // A list that is one byte longer than what is in it.
        let mut longer = BY_HAND.to_vec();
        longer[18] += 1;
        let error = parse(&longer, 100).unwrap_err();
        assert_eq!(
            (error.at, &error.found[..]),
            (119, "4 bytes to the end of its message")
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let big = vec![7; 300];
        for (schema, image) in [
            (Schema::Seed, &big[..]),
            (Schema::ArcfaceTf2, b""),
            (Schema::ArcfaceTf2Paths, b"images/a b/\xc3\xb6.jpg"),
        ] {
            let bytes = encode(schema, 85_741, "0001.jpg", image);
            let example = parse(&bytes, 0).unwrap();
            assert_eq!(example.label, "85741");
            let picture = match schema {
                Schema::ArcfaceTf2Paths => Picture::Path("images/a b/ö.jpg"),
                _ => Picture::Encoded(image),
            };
            assert_eq!(example.picture, picture);
        }
    }

    fn with(label: &[u8], image_key: &str) -> String {
        let mut features = Vec::new();
        for (key, feature) in [("label", label), (image_key, b"\x0a\x02\x0a\x00")] {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            put_bytes(&mut entry, 2, feature);
            put_bytes(&mut features, 1, &entry);
        }
        let mut example = Vec::new();
        put_bytes(&mut example, 1, &features);
        match parse(&example, 0) {
            Ok(example) => example.label.into_owned(),
            Err(e) => format!("{}, found {}", e.expected, e.found),
        }
    }

    #[test]
    fn labels_of_every_kind() {
        // Int64List: packed, one by one; BytesList; FloatList; nothing; -1.
        assert_eq!(with(b"\x1a\x03\x0a\x01\x09", "image_raw"), "9");
        assert_eq!(with(b"\x1a\x02\x08\x09", "image_raw"), "9");
        assert_eq!(with(b"\x0a\x07\x0a\x05 n/1 ", "image_raw"), "n/1");
        assert!(with(b"\x12\x06\x0a\x04\0\0\0\0", "image_raw").contains("found a float"));
        assert!(with(b"\x1a\x00", "image_raw").contains("found an empty list"));
        assert!(with(b"\x0a\x03\x0a\x01 ", "image_raw").contains("found no label"));
        let minus = b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert!(with(minus, "image_raw").contains("0 or above"));
        let found = with(b"\x1a\x02\x08\x09", "jpeg");
        assert!(
            found.contains("image_raw, image/encoded") && found.ends_with("label, jpeg"),
            "{found}"
        );
    }
}
