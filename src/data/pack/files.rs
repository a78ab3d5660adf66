//! The folder that is packed to: what an earlier run left there, and what takes its place.

use super::tfrecord::IMAGES;
use super::{AT_ONCE, PackFormat, PackOptions};
use crate::base::exchange::Exchange;
use crate::data::Dataset;
use crate::data::formats::identities::{IDENTITIES, PACKED};
use crate::data::formats::index;
use crate::data::formats::tfrecord::Schema;
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) const RESERVED: &str = "reserved";

/// Whether a run makes a file of this name, in any format.
fn is_ours(name: &str) -> bool {
    let file = name.strip_suffix(index::ENDING).unwrap_or(name);
    let fixed = [IDENTITIES, "property", "train.idx", "train.rec"].contains(&name);
    fixed || file == "train.tfrecord" || is_of_row(file)
}

/// Whether this is `train-ddddd-of-ddddd.tfrecord`.
fn is_of_row(name: &str) -> bool {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("train-")
        .and_then(|rest| rest.strip_suffix(".tfrecord"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(i, n)| number(i) && number(n))
}

/// Whether an earlier run made the folder `name` of `out`: what it holds is, by the `identities.tsv` beside it, that run's.
fn is_our_folder(out: &Path, name: &str, earlier: &[PathBuf]) -> Result<bool> {
    let set = if name == IMAGES { PACKED } else { "reserved" };
    let tfrecord = (earlier.iter()).any(|path| path.extension().is_some_and(|e| e == "tfrecord"));
    if name == IMAGES && !tfrecord {
        return Ok(false);
    }
    let list = out.join(IDENTITIES);
    let text = match fs::read_to_string(&list) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.map_err(Error::io("reading", &list))?,
    };
    let labels: HashSet<&str> = (text.lines())
        .filter(|line| line.rsplit('\t').next() == Some(set))
        .filter_map(|line| line.split('\t').next())
        .collect();
    if labels.is_empty() {
        return Ok(false);
    }
    let dir = out.join(name);
    for entry in fs::read_dir(&dir).map_err(Error::io("listing the folder", &dir))? {
        let entry = entry.map_err(Error::io("listing the folder", &dir))?;
        if !(entry.file_name().to_str()).is_some_and(|name| labels.contains(name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The folder of a run.
pub(super) struct Files {
    exchange: Exchange,
    /// What an earlier run left there.
    earlier: Vec<PathBuf>,
}

impl Files {
    /// Looks at `out`, which is made where it is not there, and locks it.
    ///
    /// # Errors
    /// It cannot be listed, or holds what must not be replaced; another process is at work there.
    pub(super) fn create(out: &Path, options: &PackOptions, source: &dyn Dataset) -> Result<Self> {
        let exchange = Exchange::begin(out, "packing")?;
        let mut earlier = Vec::new();
        for entry in fs::read_dir(out).map_err(Error::io("listing the folder", out))? {
            let entry = entry.map_err(Error::io("listing the folder", out))?;
            if !entry.file_name().to_str().is_some_and(is_ours) {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                return Err(foreign(&path));
            }
            earlier.push(path);
        }
        let made = [
            (RESERVED, options.reserve_last > 0),
            (
                IMAGES,
                options.format == PackFormat::TfRecord(Schema::ArcfaceTf2Paths),
            ),
        ];
        for (name, made) in made {
            let path = out.join(name);
            if path.is_dir() && is_our_folder(out, name, &earlier)? {
                earlier.push(path);
            } else if made && path.exists() {
                return Err(foreign(&path));
            }
        }
        earlier.sort();
        if let Some(path) = earlier.first()
            && !options.overwrite
        {
            return Err(Error::data(
                path,
                "is there already; choose another folder, or --overwrite",
            ));
        }
        let files = Files { exchange, earlier };
        files.spare(source)?;
        Ok(files)
    }

    /// Refuses to remove what images of `source` are read from.
    fn spare(&self, source: &dyn Dataset) -> Result<()> {
        let earlier: Vec<PathBuf> = (self.earlier.iter())
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        if earlier.is_empty() {
            return Ok(());
        }
        let goes = |file: &Path| {
            let real = fs::canonicalize(file);
            real.is_ok_and(|real| earlier.iter().any(|path| real.starts_with(path)))
        };
        let lost = (0..source.len().div_ceil(AT_ONCE))
            .into_par_iter()
            .find_map_first(|block| {
                let start = block * AT_ONCE;
                let mut files: Vec<PathBuf> = (start..source.len().min(start + AT_ONCE))
                    .flat_map(|index| source.files(index))
                    .collect();
                // Those of many records are asked for once.
                files.sort_unstable();
                files.dedup();
                files.into_iter().find(|file| goes(file))
            });
        match lost {
            Some(file) => Err(Error::data(
                file,
                "is part of the data set and would be overwritten; choose another folder",
            )),
            None => Ok(()),
        }
    }

    /// Where the file or folder that is to be called `name` is written.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.exchange.path(name)
    }

    /// Puts the new files into the place of the earlier run's.
    pub(super) fn finish(self) -> Result<()> {
        let names = self.earlier.iter().filter_map(|path| path.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let stale: Vec<String> = names.filter(|name| !self.path(name).exists()).collect();
        self.exchange.commit(&stale)
    }
}

fn foreign(path: &Path) -> Error {
    Error::data(
        path,
        "is there already and not of an earlier run, so it is not replaced; choose another folder",
    )
}

#[cfg(test)]
mod tests {
    use crate::data::formats::tfrecord::Schema;
    use crate::data::pack::{PackFormat, PackOptions, pack};
    use crate::data::picture;
    use crate::data::{Image, Opening, open, open_with};
    use std::fs;
    use std::path::Path;

    /// `images/0/a.png` to `images/2/a.png` in `dir`, and a list of them.
    fn pictures(dir: &Path) {
        let picture = Image {
            width: 4,
            height: 4,
            pixels: (0..48).collect(),
        };
        let mut list = String::new();
        for label in 0..3 {
            let path = dir.join(format!("images/{label}/a.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, picture::encode_png(&picture)).unwrap();
            list += &format!("images/{label}/a.png {label}\n");
        }
        fs::write(dir.join("list.txt"), list).unwrap();
    }

    #[test]
    fn only_what_an_earlier_run_wrote_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        pictures(out);
        for name in ["train_x.tfrecord", "train-0-of-2.tfrecord"] {
            fs::write(out.join(name), "foreign").unwrap();
        }
        fs::create_dir(out.join("reserved")).unwrap();
        fs::write(out.join("reserved/notes.txt"), "foreign").unwrap();
        let source = open(&out.join("list.txt")).unwrap();
        let with = |format, reserve_last| {
            let options = PackOptions {
                format,
                reserve_last,
                overwrite: true,
                ..PackOptions::default()
            };
            pack(&*source, out, &options, &mut |_, _| {}).map(|_| ())
        };
        let paths = PackFormat::TfRecord(Schema::ArcfaceTf2Paths);
        for _ in 0..2 {
            with(PackFormat::RecordIo, 0).unwrap();
            // Folders that this run makes are refused.
            for (name, refused) in [
                ("reserved", with(PackFormat::RecordIo, 1)),
                ("images", with(paths, 0)),
            ] {
                let said = refused.unwrap_err().to_string();
                assert!(
                    said.contains(name) && said.contains("earlier run"),
                    "{said}"
                );
            }
        }
        // Nor are they taken for an earlier run's where its files would allow that, while the pictures are read from them.
        with(PackFormat::TfRecord(Schema::Seed), 0).unwrap();
        let said = with(PackFormat::RecordIo, 0).unwrap_err().to_string();
        assert!(said.contains("images/0/a.png"), "{said}");
        for name in [
            "train_x.tfrecord",
            "train-0-of-2.tfrecord",
            "reserved/notes.txt",
            "images/2/a.png",
            "train.tfrecord",
        ] {
            assert!(out.join(name).exists(), "{name}");
        }
    }

    #[test]
    fn a_data_set_is_not_packed_over_itself_and_its_folders_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("from"), dir.path().join("out"));
        pictures(&from);
        let mut options = PackOptions {
            format: PackFormat::TfRecord(Schema::ArcfaceTf2Paths),
            reserve_last: 1,
            overwrite: true,
            ..PackOptions::default()
        };
        let list = open(&from.join("list.txt")).unwrap();
        for _ in 0..2 {
            pack(&*list, &out, &options, &mut |_, _| {}).unwrap();
        }
        assert!(out.join("images/1/0001.png").is_file() && out.join("reserved/2").is_dir());
        // By its records, and by its pictures.
        let moved = dir.path().join("train.tfrecord");
        fs::copy(out.join("train.tfrecord"), &moved).unwrap();
        let opening = Opening {
            image_root: Some(&out),
            ..Opening::default()
        };
        for path in [&out, &moved] {
            let itself = open_with(path, &opening).unwrap();
            let said = pack(&*itself, &out, &options, &mut |_, _| {}).unwrap_err();
            assert!(said.to_string().contains("part of the data set"), "{said}");
        }
        (options.format, options.reserve_last) = (PackFormat::RecordIo, 0);
        pack(&*list, &out, &options, &mut |_, _| {}).unwrap();
        assert!(!out.join("images").exists() && !out.join("reserved").exists());
    }
}
