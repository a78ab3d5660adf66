//! The files of a folder of embeddings while they are being written.
//!
//! Rows are appended to `NAME.partial`. From time to time all of them are synced, and then `embeddings.state.json` is
//! written, with the job and the length of each file. When a killed run is resumed, anything beyond these lengths is
//! cut off. At the end the headers are written into the room left for them, the state is marked complete, and the files
//! are renamed. While the state is there and complete, some files may still be those of an earlier run: those of this one
//! are then read by the names that they still have. `.lock` is held all the time.

use super::folder::{FILES, LABELS, NAMES, NPY, SAFETENSORS, SKIPPED, remove_stale};
use super::state::{Format, Job, NPY_HEADER, SAFETENSORS_HEADER, STATE, State};
use super::stored::Gallery;
use crate::base::files;
use crate::base::text::one_line;
use crate::encoding::npy;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

struct Appended {
    name: &'static str,
    path: PathBuf,
    file: BufWriter<File>,
    len: u64,
}

impl Appended {
    /// A new file with room for a header, or an old one as long as it was.
    fn open(folder: &Path, name: &'static str, header: usize, len: Option<u64>) -> Result<Self> {
        let path = folder.join(format!("{name}.partial"));
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if len.is_none() {
            options.create(true).truncate(true);
        }
        let mut file = options.open(&path).map_err(Error::io("opening", &path))?;
        let found = file.metadata().map_err(Error::io("reading", &path))?.len();
        let len = match len {
            None => {
                file.write_all(&vec![0; header])
                    .map_err(Error::io("writing", &path))?;
                header as u64
            }
            Some(len) if len <= found => {
                file.set_len(len)
                    .and_then(|()| file.seek(SeekFrom::End(0)))
                    .map_err(Error::io("writing", &path))?;
                len
            }
            Some(len) => {
                return Err(Error::malformed(
                    &path,
                    found,
                    format!("{len} bytes, which an earlier run had written"),
                    "the end of the file",
                ));
            }
        };
        Ok(Appended {
            name,
            path,
            file: BufWriter::new(file),
            len,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(Error::io("writing", &self.path))
    }

    fn sync(&mut self) -> Result<()> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(Error::io("syncing", &self.path))
    }

    fn put_header(&mut self, header: &[u8], room: usize) -> Result<()> {
        if header.len() != room {
            return Err(Error::data(
                &self.path,
                format!("needs a header of {} bytes instead of {room}", header.len()),
            ));
        }
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(header))
            .map_err(Error::io("writing", &self.path))
    }
}

/// An unfinished folder of embeddings.
pub(super) struct Partial {
    folder: PathBuf,
    state: State,
    vectors: Appended,
    labels: Appended,
    files: Appended,
    skipped: Appended,
    /// What the gallery that is added to has left out.
    left_out: HashSet<String>,
    /// Whether files hold a part of a batch.
    torn: bool,
    /// Held so that no other process appends to the files.
    _lock: File,
}

impl Partial {
    /// Begins a job in `folder`, which `lock` keeps for this process, or goes on after `before`, a state of the same job. A new
    /// job begins with the rows of `gallery`, the gallery that it adds to, if any.
    ///
    /// # Errors
    /// A file is shorter than it was, or cannot be written.
    pub(super) fn open(
        folder: &Path,
        lock: File,
        job: Job,
        before: Option<State>,
        gallery: Option<&Gallery>,
    ) -> Result<Self> {
        let begins = before.is_none();
        if begins {
            // The state goes first: without it, what an earlier run has left is nothing.
            let left = [NPY, SAFETENSORS].map(|name| format!("{name}.partial"));
            remove_stale(folder, &[STATE, &left[0], &left[1]])?;
        }
        let path = folder.join(STATE);
        let (vectors, header) = job.format.vectors();
        let open = |name: &'static str, header: usize| {
            let len = match &before {
                None => None,
                Some(state) => Some(*state.lengths.get(name).ok_or_else(|| {
                    Error::data(&path, format!("does not say how long {name} is"))
                })?),
            };
            Appended::open(folder, name, header, len)
        };
        let mut partial = Partial {
            folder: folder.into(),
            vectors: open(vectors, header)?,
            labels: open(LABELS, NPY_HEADER)?,
            files: open(FILES, 0)?,
            skipped: open(SKIPPED, 0)?,
            left_out: gallery.map_or_else(HashSet::new, |g| g.skipped.iter().cloned().collect()),
            state: before.unwrap_or_else(|| State::new(job)),
            torn: false,
            _lock: lock,
        };
        if begins && let Some(gallery) = gallery {
            let stored = &gallery.stored;
            let labels = stored.labels.as_deref().unwrap_or_default();
            partial.rows(&stored.embeddings, labels, &stored.files)?;
            for why in &gallery.skipped {
                partial.state.skipped += 1;
                partial.skipped.append(format!("{why}\n").as_bytes())?;
            }
            partial.torn = false;
        }
        partial.sync()?;
        Ok(partial)
    }

    /// The run so far.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Appends rows. They count from [`advance`](Self::advance) on.
    pub(super) fn rows(&mut self, rows: &[f32], labels: &[i64], files: &[String]) -> Result<()> {
        self.torn = true;
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.vectors.append(&bytes)?;
        let bytes: Vec<u8> = labels.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.labels.append(&bytes)?;
        for file in files {
            self.files.append(file.as_bytes())?;
            self.files.append(b"\n")?;
        }
        self.state.rows += labels.len();
        Ok(())
    }

    /// Notes a picture that is left out, if the gallery that is added to did not. It counts from
    /// [`advance`](Self::advance) on.
    pub(super) fn skip(&mut self, why: &str) -> Result<()> {
        if self.left_out.contains(why) {
            return Ok(());
        }
        self.torn = true;
        self.state.skipped += 1;
        self.skipped.append(format!("{why}\n").as_bytes())
    }

    /// Counts a complete batch: `images` pictures embedded or left out, `unaligned` of them most likely not aligned.
    pub(super) fn advance(&mut self, images: usize, unaligned: usize) {
        self.state.done += images;
        self.state.unaligned += unaligned;
        self.torn = false;
    }

    /// Syncs everything appended so far. After a batch that was appended only in part it does nothing; the state before
    /// still counts.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.torn {
            return Ok(());
        }
        let files = [
            &mut self.vectors,
            &mut self.labels,
            &mut self.files,
            &mut self.skipped,
        ];
        for file in files {
            file.sync()?;
            self.state.lengths.insert(file.name.to_owned(), file.len);
        }
        self.state.save(&self.folder)
    }

    /// Writes the headers and gives the files their names; `names` are the identities' by number.
    pub(super) fn finish(mut self, names: &BTreeMap<i64, String>) -> Result<()> {
        let (rows, dim) = (self.state.rows, self.state.job.dim);
        match self.state.job.format {
            Format::Npy => {
                let header = npy::header("<f4", &[rows, dim]);
                self.vectors.put_header(&header, NPY_HEADER)?;
                let header = npy::header("<i8", &[rows]);
                self.labels.put_header(&header, NPY_HEADER)?;
            }
            Format::Safetensors => {
                self.labels.sync()?;
                let mut labels = self.labels.file.get_ref();
                labels
                    .seek(SeekFrom::Start(NPY_HEADER as u64))
                    .and_then(|_| io::copy(&mut labels, &mut self.vectors.file))
                    .map_err(Error::io("copying", &self.labels.path))?;
                let header = safetensors_header(rows, dim);
                self.vectors.put_header(&header, SAFETENSORS_HEADER)?;
            }
        }
        let mut text = String::from("label\tname\n");
        for (number, name) in names {
            text += &format!("{number}\t{}\n", one_line(name));
        }
        files::write(
            &self.folder.join(format!("{NAMES}.partial")),
            text.as_bytes(),
        )?;
        for file in [&mut self.vectors, &mut self.labels, &mut self.files] {
            file.sync()?;
        }
        self.skipped.sync()?;
        self.state.complete = true;
        self.state.save(&self.folder)?;
        self.state.place(&self.folder)
    }
}

/// The length of the header, and the header padded with spaces, which the format allows.
fn safetensors_header(rows: usize, dim: usize) -> Vec<u8> {
    let (middle, end) = (rows * dim * 4, rows * dim * 4 + rows * 8);
    let text = format!(
        "{{\"embeddings\":{{\"dtype\":\"F32\",\"shape\":[{rows},{dim}],\"data_offsets\":[0,{middle}]}},\
         \"labels\":{{\"dtype\":\"I64\",\"shape\":[{rows}],\"data_offsets\":[{middle},{end}]}}}}"
    );
    let room = SAFETENSORS_HEADER - 8;
    let mut header = (room as u64).to_le_bytes().to_vec();
    header.extend(format!("{text:<room$}").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::super::Stored;
    use super::*;
    use crate::base::files::lock_folder;
    use crate::verification::Tta;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn partial(folder: &Path) -> Partial {
        let job = Job {
            weights: "0123".to_owned(),
            source: "pictures".to_owned(),
            images: 3,
            tta: Tta::None,
            format: Format::Npy,
            batch: 1,
            dim: 2,
            added_to: 0,
        };
        let lock = lock_folder(folder, "embedding").unwrap();
        let before = State::read(folder).unwrap();
        Partial::open(folder, lock, job, before, None).unwrap()
    }

    fn append(partial: &mut Partial, picture: usize) -> Result<()> {
        let name = format!("picture {picture}");
        partial.rows(&[1.0, picture as f32], &[picture as i64], &[name])?;
        partial.advance(1, 0);
        Ok(())
    }

    #[test]
    fn a_batch_of_which_a_part_was_written_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = partial(dir.path());
        append(&mut run, 0).unwrap();
        run.sync().unwrap();
        // Vectors are appended, labels cannot be: a handle that only reads.
        let read_only = File::open(&run.labels.path).unwrap();
        let labels = BufWriter::with_capacity(0, read_only);
        let whole = std::mem::replace(&mut run.labels.file, labels);
        append(&mut run, 1).unwrap_err();
        run.labels.file = whole;
        run.sync().unwrap();
        drop(run);
        let mut run = partial(dir.path());
        assert_eq!((run.state().done, run.state().rows), (1, 1));
        append(&mut run, 1).unwrap();
        append(&mut run, 2).unwrap();
        run.finish(&BTreeMap::new()).unwrap();
        let stored = Stored::open(dir.path()).unwrap();
        assert_eq!(stored.files, ["picture 0", "picture 1", "picture 2"]);
        assert_eq!(stored.labels, Some(vec![0, 1, 2]));
    }

    /// Runs that replace one another, and a reader that never sees parts of two.
    #[test]
    fn what_is_read_while_it_is_replaced_is_of_one_run() {
        const RUNS: usize = 150;
        let dir = tempfile::tempdir().unwrap();
        let write = |picture: usize| {
            let mut run = partial(dir.path());
            (0..3).for_each(|_| append(&mut run, picture).unwrap());
            run.finish(&BTreeMap::from([(picture as i64, "x".to_owned())]))
                .unwrap();
        };
        write(0);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..=RUNS).for_each(write);
                is_done.store(true, Ordering::Relaxed);
            });
            let mut last = 0;
            while !is_done.load(Ordering::Relaxed) {
                let stored = Stored::open(dir.path()).unwrap();
                let label = stored.labels.as_ref().unwrap()[0];
                assert_eq!(stored.labels, Some(vec![label; 3]));
                assert_eq!(stored.files, vec![format!("picture {label}"); 3]);
                assert_eq!(stored.names.keys().collect::<Vec<_>>(), [&label]);
                let ratio = stored.embeddings[1] / stored.embeddings[0];
                assert!(
                    (ratio - label as f32).abs() <= 1e-5 * ratio,
                    "{ratio} {label}"
                );
                assert!(label >= last);
                last = label;
            }
        });
    }

    #[test]
    fn a_run_killed_amid_the_names_is_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = partial(dir.path());
        append(&mut run, 5).unwrap();
        let mut state = run.state.clone();
        run.finish(&BTreeMap::new()).unwrap();
        // As a kill amid the names leaves it: the labels are still those of an earlier run.
        state.complete = true;
        state.save(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::rename(at(LABELS), at("labels.npy.partial")).unwrap();
        let labels = npy::Npy {
            shape: vec![1],
            elements: npy::Elements::I64(vec![7]),
        };
        npy::write(&at(LABELS), &labels).unwrap();
        let expected = Stored::open(dir.path()).unwrap();
        assert_eq!(
            (expected.labels.as_deref(), expected.rows()),
            (Some(&[5][..]), 1)
        );
        assert_eq!(expected.origin, Some(state.job.origin()));
        state.place(dir.path()).unwrap();
        assert_eq!(Stored::open(dir.path()).unwrap(), expected);
        assert!(!at(STATE).exists() && !at("labels.npy.partial").exists());
    }
}
