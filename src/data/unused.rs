//! What lies in a data set and is no picture of it, counted by reason, with a few names.

use serde::Serialize;
use serde::ser::SerializeStruct as _;
use std::fmt;

/// Names that are kept for each reason.
const NAMED: usize = 5;

/// Why something in a data set is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A name that begins with a dot.
    Hidden,
    /// Not in the folder of an identity.
    FileBesideIdentities,
    /// Another kind of file among pictures.
    NoPicture,
    /// Deeper than pictures are looked for.
    FolderInIdentity,
    /// A class without a picture.
    EmptyClass,
    /// In the folder of a data set's files, and none of them.
    FileBesideRecords,
    /// The same, a folder.
    FolderBesideRecords,
    /// In the file, and not in its index.
    UnnamedRecord,
    /// In the index, and of no identity.
    RecordOfNoIdentity,
    /// Bytes between records that are none.
    NoRecord,
    /// A file of a WebDataset sample that is neither picture nor label.
    FileOfSample,
    /// A link or device in an archive.
    NoFile,
    /// In a file of landmarks, for a picture that is not there.
    LandmarksOfNoPicture,
}

impl Reason {
    const ALL: [Reason; 13] = [
        Reason::Hidden,
        Reason::FileBesideIdentities,
        Reason::NoPicture,
        Reason::FolderInIdentity,
        Reason::EmptyClass,
        Reason::FileBesideRecords,
        Reason::FolderBesideRecords,
        Reason::UnnamedRecord,
        Reason::RecordOfNoIdentity,
        Reason::NoRecord,
        Reason::FileOfSample,
        Reason::NoFile,
        Reason::LandmarksOfNoPicture,
    ];

    /// What it is, for one and for several, and the rest of the phrase.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        const FILE: (&str, &str) = ("file", "files");
        let ((one, several), rest) = match self {
            Reason::Hidden => (("hidden entry", "hidden entries"), ""),
            Reason::FileBesideIdentities => (FILE, " beside the identities"),
            Reason::NoPicture => (FILE, " of other kinds than the pictures that are read"),
            Reason::FolderInIdentity => (("folder", "folders"), " inside an identity's folder"),
            Reason::EmptyClass => (("class", "classes"), " without a picture"),
            Reason::FileBesideRecords => (FILE, " beside the data set's files"),
            Reason::FolderBesideRecords => (("folder", "folders"), " beside the data set's files"),
            Reason::UnnamedRecord => (("record", "records"), " that the index does not name"),
            Reason::RecordOfNoIdentity => (("record", "records"), " that no identity names"),
            Reason::NoRecord => (("place", "places"), " with bytes that are no record"),
            Reason::FileOfSample => (FILE, " that are neither picture nor label of a sample"),
            Reason::NoFile => (("link or device", "links or devices"), " in an archive"),
            Reason::LandmarksOfNoPicture => (("line", "lines"), " of landmarks without a picture"),
        };
        (one, several, rest)
    }
}

/// How much is not used for one reason: displays as "3 files beside the identities (a.txt, b.txt, ...)".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub(crate) reason: Reason,
    /// How many there are.
    pub count: u64,
    /// The names of the first few.
    pub names: Vec<String>,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, several, rest) = self.reason.words();
        let noun = if self.count == 1 { one } else { several };
        let more = if self.count > self.names.len() as u64 {
            ", ..."
        } else {
            ""
        };
        write!(
            f,
            "{} {noun}{rest} ({}{more})",
            self.count,
            self.names.join(", ")
        )
    }
}

impl Serialize for Leftover {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (_, several, rest) = self.reason.words();
        let mut fields = serializer.serialize_struct("Leftover", 3)?;
        fields.serialize_field("what", &format!("{several}{rest}"))?;
        fields.serialize_field("count", &self.count)?;
        fields.serialize_field("names", &self.names)?;
        fields.end()
    }
}

/// All that a data set holds and does not use, which its reader fills as it opens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unused(Vec<Leftover>);

impl Unused {
    /// Counts one more.
    pub(crate) fn add(&mut self, reason: Reason, name: impl Into<String>) {
        let leftover = self.of(reason);
        leftover.count += 1;
        if leftover.names.len() < NAMED {
            leftover.names.push(name.into());
        }
    }

    /// Counts what `other` counted, after what is here.
    pub(crate) fn merge(&mut self, other: Unused) {
        for mut more in other.0 {
            let leftover = self.of(more.reason);
            leftover.count += more.count;
            leftover.names.append(&mut more.names);
            leftover.names.truncate(NAMED);
        }
    }

    fn of(&mut self, reason: Reason) -> &mut Leftover {
        let place = self.0.iter().position(|l| l.reason == reason);
        let place = place.unwrap_or_else(|| {
            self.0.push(Leftover {
                reason,
                count: 0,
                names: Vec::new(),
            });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    /// Whether all is used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One for each reason.
    pub fn iter(&self) -> impl Iterator<Item = &Leftover> {
        self.0.iter()
    }
}

/// In an index: the number of reasons, and for each its number, the count, the number of names, and the names by length.
impl Unused {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend((self.0.len() as u32).to_le_bytes());
        for leftover in &self.0 {
            bytes.extend((leftover.reason as u32).to_le_bytes());
            bytes.extend(leftover.count.to_le_bytes());
            bytes.extend((leftover.names.len() as u32).to_le_bytes());
            for name in &leftover.names {
                bytes.extend((name.len() as u32).to_le_bytes());
                bytes.extend(name.as_bytes());
            }
        }
    }

    pub(crate) fn decode(rest: &mut &[u8]) -> Option<Self> {
        let mut unused = Unused::default();
        for _ in 0..take(rest)? {
            let reason = *Reason::ALL.get(take(rest)? as usize)?;
            let (low, high) = (take(rest)?, take(rest)?);
            let mut leftover = Leftover {
                reason,
                count: u64::from(high) << 32 | u64::from(low),
                names: Vec::new(),
            };
            for _ in 0..take(rest)? {
                let length = take(rest)? as usize;
                let (name, after) = rest.split_at_checked(length)?;
                leftover.names.push(String::from_utf8(name.to_vec()).ok()?);
                *rest = after;
            }
            unused.0.push(leftover);
        }
        Some(unused)
    }
}

fn take(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_named_and_kept() {
        let mut unused = Unused::default();
        unused.add(Reason::EmptyClass, "lonely");
        let mut more = Unused::default();
        (0..7).for_each(|i| more.add(Reason::FileBesideIdentities, format!("{i}.txt")));
        more.add(Reason::EmptyClass, "empty");
        unused.merge(more);
        let said: Vec<String> = unused.iter().map(ToString::to_string).collect();
        let expected = [
            "2 classes without a picture (lonely, empty)",
            "7 files beside the identities (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...)",
        ];
        assert_eq!(said, expected);
        let mut bytes = Vec::new();
        unused.encode(&mut bytes);
        assert_eq!(Unused::decode(&mut &bytes[..]), Some(unused));
        for length in 0..bytes.len() {
            assert_eq!(Unused::decode(&mut &bytes[..length]), None);
        }
        let all: Vec<u32> = Reason::ALL.iter().map(|&reason| reason as u32).collect();
        assert_eq!(all, Vec::from_iter(0..13));
    }
}
