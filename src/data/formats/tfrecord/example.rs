//! Reads and writes `tf.train.Example` in the three schemas of ArcFace projects.

use crate::data::formats::labels;
use prost::Message as _;

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

/// The messages of `tensorflow/core/example/example.proto` and `feature.proto`. A map is a list of entries.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Example {
        #[prost(message, optional, tag = "1")]
        pub(super) features: Option<Features>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Features {
        #[prost(message, repeated, tag = "1")]
        pub(super) feature: Vec<Entry>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<Feature>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Feature {
        #[prost(oneof = "Kind", tags = "1, 2, 3")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Bytes(BytesList),
        #[prost(message, tag = "2")]
        Float(FloatList),
        #[prost(message, tag = "3")]
        Int64(Int64List),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct BytesList {
        #[prost(bytes = "vec", repeated, tag = "1")]
        pub(super) value: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct FloatList {
        #[prost(float, repeated, tag = "1")]
        pub(super) value: Vec<f32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Int64List {
        #[prost(int64, repeated, tag = "1")]
        pub(super) value: Vec<i64>,
    }
}

use proto::{BytesList, Entry, Feature, Features, Int64List, Kind};

/// Where the picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Picture {
    /// Here: an image file.
    Encoded(Vec<u8>),
    /// In the file of this name.
    Path(String),
}

/// What is read of an example.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    /// A number in decimal digits, or a name.
    pub(crate) label: String,
    pub(crate) picture: Picture,
}

/// What is wrong with a record: where (in bytes from its start), what was expected, what found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) at: usize,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Malformed {
    fn new(at: usize, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Malformed {
            at,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// The one value of a feature.
enum One {
    Bytes(Vec<u8>),
    Int(i64),
    Float,
    /// None, or several.
    Not(usize),
}

impl One {
    fn of(feature: Option<Feature>) -> Self {
        let kind = feature.and_then(|feature| feature.kind);
        match kind {
            None => One::Not(0),
            Some(Kind::Bytes(list)) => match <[_; 1]>::try_from(list.value) {
                Ok([bytes]) => One::Bytes(bytes),
                Err(values) => One::Not(values.len()),
            },
            Some(Kind::Float(list)) => match list.value.len() {
                1 => One::Float,
                n => One::Not(n),
            },
            Some(Kind::Int64(list)) => match list.value[..] {
                [value] => One::Int(value),
                _ => One::Not(list.value.len()),
            },
        }
    }

    fn what(&self) -> String {
        match self {
            One::Bytes(_) => "bytes".into(),
            One::Int(_) => "an int64".into(),
            One::Float => "a float".into(),
            One::Not(0) => "an empty list".into(),
            One::Not(n) => format!("{n} values where one belongs"),
        }
    }
}

/// Reads a record.
pub(crate) fn parse(bytes: &[u8]) -> Result<Example, Malformed> {
    let mut rest = bytes;
    let example = proto::Example::decode(&mut rest).map_err(|why| {
        let at = bytes.len() - rest.len();
        Malformed::new(at, "a tf.train.Example", why.to_string())
    })?;
    let (mut label, mut picture, mut pictures) = (None, None, 0);
    let mut keys = Vec::new();
    for Entry { key, value } in example.features.unwrap_or_default().feature {
        match &key[..] {
            "label" | "image/source_id" => {
                let found = read_label(&key, One::of(value))?;
                if label.replace(found.clone()).is_some_and(|l| l != found) {
                    return Err(Malformed::new(
                        0,
                        "one label",
                        "two features with different ones",
                    ));
                }
            }
            "image_raw" | "image/encoded" => {
                let found = match One::of(value) {
                    One::Bytes(file) => Picture::Encoded(file),
                    other => return Err(wrong(&key, "an image file as bytes", &other)),
                };
                pictures += 1;
                picture = Some(found);
            }
            "image/img_path" => {
                let found = match One::of(value) {
                    One::Bytes(path) => Picture::Path(text(path, "a path in UTF-8")?),
                    other => return Err(wrong(&key, "a path as bytes", &other)),
                };
                pictures += 1;
                picture = Some(found);
            }
            _ => {}
        }
        // Only named in a message; a record may have any number.
        if keys.len() < 20 {
            keys.push(key);
        }
    }
    if pictures > 1 {
        let found = format!("{pictures} features with one: {}", keys.join(", "));
        return Err(Malformed::new(0, "one picture", found));
    }
    match (label, picture) {
        (Some(label), Some(picture)) => Ok(Example { label, picture }),
        (label, _) => Err(Malformed::new(
            0,
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

fn wrong(key: &str, expected: &str, found: &One) -> Malformed {
    let expected = format!("{expected} in the feature {key}");
    Malformed::new(0, expected, found.what())
}

fn text(bytes: Vec<u8>, expected: &str) -> Result<String, Malformed> {
    String::from_utf8(bytes).map_err(|why| {
        let bytes = why.as_bytes();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        Malformed::new(0, expected, format!("{shown:?}"))
    })
}

fn read_label(key: &str, value: One) -> Result<String, Malformed> {
    match value {
        One::Int(label) if label >= 0 => Ok(label.to_string()),
        One::Int(label) => Err(Malformed::new(
            0,
            format!("a label of 0 or above in the feature {key}"),
            label.to_string(),
        )),
        One::Bytes(name) => {
            let name = text(name, "a label in UTF-8")?;
            let expected = format!("a label of 0 or above, or a name, in the feature {key}");
            labels::check(&name)
                .map(str::to_owned)
                .map_err(|found| Malformed::new(0, expected, found))
        }
        other => Err(wrong(key, "an int64 or a text", &other)),
    }
}

/// An example as TensorFlow reads it: `image` is the image file, or its path.
pub(crate) fn encode(schema: Schema, label: u32, name: &str, image: &[u8]) -> Vec<u8> {
    let (label_key, name_key, image_key) = schema.keys();
    let entry = |key: &str, kind: Kind| Entry {
        key: key.to_owned(),
        value: Some(Feature { kind: Some(kind) }),
    };
    let bytes = |bytes: &[u8]| {
        Kind::Bytes(BytesList {
            value: vec![bytes.to_vec()],
        })
    };
    let label = Kind::Int64(Int64List {
        value: vec![label.into()],
    });
    let feature = std::iter::once(entry(label_key, label))
        .chain(name_key.map(|key| entry(key, bytes(name.as_bytes()))))
        .chain([entry(image_key, bytes(image))]);
    let features = Features {
        feature: feature.collect(),
    };
    proto::Example {
        features: Some(features),
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the protocol by hand: {"image_raw": BytesList([ff d8]), "label": Int64List([3], packed)}.
    const BY_HAND: &[u8] = b"\x0a\x25\
        \x0a\x13\x0a\x09image_raw\x12\x06\x0a\x04\x0a\x02\xff\xd8\
        \x0a\x0e\x0a\x05label\x12\x05\x1a\x03\x0a\x01\x03";

    #[test]
    fn an_example_by_hand() {
        let example = parse(BY_HAND).unwrap();
        assert_eq!(example.label, "3");
        assert_eq!(example.picture, Picture::Encoded(b"\xff\xd8".to_vec()));
        for length in 0..BY_HAND.len() {
            assert!(parse(&BY_HAND[..length]).is_err(), "{length}");
        }
        // A list that is one byte longer than what is in it.
        let mut longer = BY_HAND.to_vec();
        longer[18] += 1;
        let error = parse(&longer).unwrap_err();
        assert!(error.at <= longer.len(), "{error:?}");
        assert!(error.found.contains("Example.features"), "{error:?}");
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
            let example = parse(&bytes).unwrap();
            assert_eq!(example.label, "85741");
            let picture = match schema {
                Schema::ArcfaceTf2Paths => Picture::Path("images/a b/ö.jpg".into()),
                _ => Picture::Encoded(image.to_vec()),
            };
            assert_eq!(example.picture, picture);
        }
    }

    /// The label that is read where the feature `label` has these bytes.
    fn with(label: &[u8], image_key: &str) -> String {
        let mut features = Vec::new();
        for (key, feature) in [("label", label), (image_key, b"\x0a\x02\x0a\x00")] {
            let entry = [
                b"\x0a",
                &[key.len() as u8],
                key.as_bytes(),
                b"\x12",
                &[feature.len() as u8],
                feature,
            ];
            let entry = entry.concat();
            features.extend([b"\x0a", &[entry.len() as u8], &entry[..]].concat());
        }
        let example = [b"\x0a", &[features.len() as u8], &features[..]].concat();
        match parse(&example) {
            Ok(example) => example.label,
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
        let one_hot = with(b"\x1a\x06\x0a\x04\0\0\x01\0", "image_raw");
        assert!(
            one_hot.contains("found 4 values where one belongs"),
            "{one_hot}"
        );
        let names = with(b"\x0a\x06\x0a\x01a\x0a\x01b", "image_raw");
        assert!(names.contains("found 2 values"), "{names}");
        assert!(with(b"\x0a\x03\x0a\x01 ", "image_raw").contains("found no label"));
        let minus = b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert!(with(minus, "image_raw").contains("0 or above"));
        let found = with(b"\x1a\x02\x08\x09", "jpeg");
        assert!(
            found.contains("image_raw, image/encoded") && found.ends_with("label, jpeg"),
            "{found}"
        );
    }

    #[test]
    fn one_picture_and_one_label() {
        let bytes = |values: &[&[u8]]| {
            let value = values.iter().map(|v| v.to_vec()).collect();
            Kind::Bytes(BytesList { value })
        };
        let label = |value: &[i64]| {
            let value = value.to_vec();
            Kind::Int64(Int64List { value })
        };
        let parsed = |entries: Vec<(&str, Kind)>| {
            let entry = |(key, kind): (&str, Kind)| Entry {
                key: key.to_owned(),
                value: Some(Feature { kind: Some(kind) }),
            };
            let feature = entries.into_iter().map(entry).collect();
            let features = Some(Features { feature });
            let found = parse(&proto::Example { features }.encode_to_vec());
            found.map(|e| e.label).unwrap_or_else(|e| e.found)
        };
        let file = || ("image_raw", bytes(&[b"\xff\xd8"]));
        assert_eq!(parsed(vec![file(), ("label", label(&[3]))]), "3");
        assert_eq!(
            parsed(vec![file(), ("label", label(&[0, 1, 0]))]),
            "3 values where one belongs"
        );
        let two = ("image_raw", bytes(&[b"a", b"b"]));
        assert_eq!(
            parsed(vec![two, ("label", label(&[3]))]),
            "2 values where one belongs"
        );
        let other = ("image/img_path", bytes(&[b"a.jpg"]));
        assert!(parsed(vec![file(), other, ("label", label(&[3]))]).starts_with("2 features"));
        let labels = vec![
            file(),
            ("label", label(&[3])),
            ("image/source_id", label(&[4])),
        ];
        assert!(parsed(labels).contains("different"));
    }
}
