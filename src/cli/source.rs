//! What `--data` names.

use super::environment::{cache_folder, variable};
use super::output;
use crate::base::text::shown;
use crate::data::unused::Leftover;
use crate::data::{self, Dataset, Opening};
use crate::demo::faces::{FacesOptions, GeneratedFaces};
use crate::report::progress::Counter;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A walk over a file is shown when it has taken so long.
const PATIENCE: Duration = Duration::from_secs(1);

const MEGABYTE: u64 = 1_000_000;

/// Where pictures are that a data set only names.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ImageRoot {
    /// Folder that relative paths of pictures start from, in lists and in TFRecord files with paths [default: the folder
    /// of the file that names them].
    #[arg(long, value_name = "DIR")]
    pub(super) image_root: Option<PathBuf>,
}

/// Opens what [`data::open_with`] knows, or `generated[:IDENTITIESxIMAGES]` faces (a file of that name: `./generated`),
/// and tells what is not used.
pub(super) fn open(path: &Path, root: &ImageRoot) -> Result<Box<dyn Dataset>> {
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
        _ => {
            let dataset = open_files(path, root)?;
            tell_unused(&*dataset);
            Ok(dataset)
        }
    }
}

/// Tells what a data set holds and does not use, a line for each reason.
pub(super) fn tell_unused(dataset: &dyn Dataset) {
    tell(dataset.unused().iter());
}

pub(super) fn tell<'a>(leftovers: impl Iterator<Item = &'a Leftover>) {
    leftovers.for_each(|leftover| output::say(format!("not used: {leftover}")));
}

/// Refuses the output folder `out` in the folder of pictures `data`: there it would be one more identity.
///
/// # Errors
/// Wrong usage.
pub(super) fn refuse_within(out: &Path, data: &Path) -> Result<()> {
    if !data.is_dir() || data::holds_data_files(data) {
        return Ok(());
    }
    let real = |path: &Path| {
        let absolute = std::path::absolute(path).ok()?;
        // What is not there yet has a folder above it that is.
        absolute.ancestors().find_map(|above| {
            let rest = absolute.strip_prefix(above).ok()?;
            Some(fs::canonicalize(above).ok()?.join(rest))
        })
    };
    match (real(out), real(data)) {
        (Some(real_out), Some(real_data)) if real_out.starts_with(&real_data) => {
            Err(Error::Usage(format!(
                "--out {} lies in {}, whose folders are identities: choose one elsewhere",
                shown(out),
                shown(data)
            )))
        }
        _ => Ok(()),
    }
}

fn open_files(path: &Path, root: &ImageRoot) -> Result<Box<dyn Dataset>> {
    let began = Instant::now();
    let counter: Mutex<(Option<Counter>, u64)> = Mutex::default();
    let progress = |done: u64, total: u64| {
        if began.elapsed() < PATIENCE {
            return;
        }
        let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
        let (counter, told) = &mut *counter;
        let counter = counter.get_or_insert_with(|| {
            Counter::megabytes("index", total / MEGABYTE, output::progress())
        });
        counter.advance((done / MEGABYTE).saturating_sub(*told));
        *told = (*told).max(done / MEGABYTE);
    };
    let cache = cache_folder(variable);
    let dataset = data::open_with(
        path,
        &Opening {
            image_root: root.image_root.as_deref(),
            cache: cache.as_deref(),
            progress: &progress,
        },
    );
    let (counter, _) = counter.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(counter) = counter {
        counter.finish();
    }
    dataset
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
        let open = |name: &str| open(Path::new(name), &ImageRoot::default());
        let set = open("generated:7x3").unwrap();
        assert_eq!((set.len(), set.classes()), (21, 7));
        assert!(open("generated").unwrap().len() > 1000);
        for bad in ["generated:", "generated:7", "generated:7x", "generated:ax3"] {
            let Err(error) = open(bad) else {
                panic!("{bad} opens");
            };
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert!(open("generated:0x3").is_err());
        assert!(open("./generated").is_err());
    }
}
