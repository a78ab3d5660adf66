//! What `--data` names.

use crate::data::faces::{FacesOptions, GeneratedFaces};
use crate::data::{self, Dataset};
use crate::{Error, Result};
use std::path::Path;

/// Opens an image folder, a RecordIO set, or `generated[:IDENTITIESxIMAGES]` faces (a file of that name: `./generated`).
pub(super) fn open(path: &Path) -> Result<Box<dyn Dataset>> {
    open_as(path, data::open)
}

/// As [`open`]; the identities of an image folder may have no image.
pub(super) fn open_with_gaps(path: &Path) -> Result<Box<dyn Dataset>> {
    open_as(path, data::open_with_gaps)
}

fn open_as(path: &Path, files: fn(&Path) -> Result<Box<dyn Dataset>>) -> Result<Box<dyn Dataset>> {
    match path
        .to_str()
        .and_then(|text| text.strip_prefix("generated"))
    {
        Some("") => Ok(Box::new(GeneratedFaces::new(FacesOptions::default())?)),
        Some(rest) if rest.starts_with(':') => {
            let options = faces(&rest[1..]).ok_or_else(|| {
                Error::Usage(format!(
                    "--data generated{rest}: expected generated:IDENTITIESxIMAGES, for example generated:300x40"
                ))
            })?;
            Ok(Box::new(GeneratedFaces::new(options)?))
        }
        _ => files(path),
    }
}

/// `300x40`
fn faces(text: &str) -> Option<FacesOptions> {
    let (identities, per_identity) = text.split_once('x')?;
    Some(FacesOptions {
        identities: identities.parse().ok()?,
        per_identity: per_identity.parse().ok()?,
        ..FacesOptions::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_faces_are_named_by_their_numbers() {
        let set = open(Path::new("generated:7x3")).unwrap();
        assert_eq!((set.len(), set.classes()), (21, 7));
        assert!(open(Path::new("generated")).unwrap().len() > 1000);
        for bad in ["generated:", "generated:7", "generated:7x", "generated:ax3"] {
            let Err(error) = open(Path::new(bad)) else {
                panic!("{bad} opens");
            };
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert!(open(Path::new("generated:0x3")).is_err());
        assert!(open(Path::new("./generated")).is_err());
    }
}
