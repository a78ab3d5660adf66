//! `identities.tsv`, which `pack` writes beside its files: what the classes were called that are numbers there.
//!
//! ```text
//! label<tab>name<tab>images<tab>set
//! 0<tab>Jane Doe<tab>12<tab>train
//! ```
//!
//! The set is `train` for the classes of the packed files, else `reserved`.

use crate::data::formats::text::Text;
use crate::data::unused::{Reason, Unused};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The file's name.
pub(crate) const IDENTITIES: &str = "identities.tsv";

/// Its first line.
pub(crate) const HEADING: &str = "label\tname\timages\tset";

/// What the packed classes are called.
pub(crate) const PACKED: &str = "train";

/// The names of classes that are called `labels` in a packed set in `folder`, if `identities.tsv` there has one for each of
/// them and for no others. A file of that name that is another set's is noted as not used.
///
/// # Errors
/// It cannot be read, or a line is malformed.
pub(crate) fn names<'a>(
    folder: &Path,
    labels: impl ExactSizeIterator<Item = &'a str>,
    unused: &mut Unused,
) -> Result<Option<Vec<String>>> {
    let path = folder.join(IDENTITIES);
    if !path.is_file() {
        return Ok(None);
    }
    let text = Text::read(&path)?;
    let mut named: HashMap<&str, &str> = HashMap::new();
    let mut lines = text.lines();
    let is_ours = lines.next().is_some_and(|(_, line)| line == HEADING);
    for (at, line) in lines.filter(|(_, line)| is_ours && !line.is_empty()) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [label, name, _, set] = fields[..] else {
            let found = format!("{line:?}");
            return Err(Error::malformed(
                &path,
                at,
                "four fields between tabs",
                found,
            ));
        };
        if set == PACKED {
            named.insert(label, name);
        }
    }
    let count = labels.len();
    let names: Option<Vec<String>> = labels
        .map(|label| named.get(label).map(|&name| name.to_owned()))
        .collect();
    let names = names.filter(|_| named.len() == count);
    if names.is_none() {
        unused.add(Reason::FileBesideRecords, IDENTITIES);
    }
    Ok(names)
}
