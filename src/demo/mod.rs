//! What the demonstration needs besides the ordinary commands: generated people as picture files, and an evaluation set of
//! those whom the network has not seen.
//!
//! Everything lies in one folder, so that it can be looked at and used again:
//!
//! | path | written by | content |
//! |---|---|---|
//! | `commands.txt` | demo | the commands, one a line |
//! | `faces/` | demo | an image folder of generated people |
//! | `packed/` | pack | RecordIO of the people to train on; the others in `packed/reserved/` |
//! | `weights.safetensors`, `config.toml`, `metrics.csv`, `checkpoints/` | train | |
//! | `eval/faces`, `eval/faces_list.npy` | demo | pairs of the reserved people, a bcolz array |
//! | `eval.json`, `pairs.png` | eval | |
//! | `embeddings.npy`, `embeddings.json`, `labels.npy`, `labels.tsv`, `files.txt`, `similarity.png` | embed | reserved people |

pub mod faces;

use self::faces::FacesOptions;
use crate::base::exchange::{Exchange, UNFINISHED, remove};
use crate::base::files;
use crate::data::Dataset;
use crate::data::formats::image_folder::ImageFolder;
use crate::eval;
use crate::recipe::config::IMAGE_SIZE;
use crate::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The evaluation set's name.
pub const SET: &str = "faces";

/// What tells a folder of an earlier demonstration from one that is not ours to write to.
const MARK: &str = "# Written by arcface-cu demo; running it again replaces what it wrote.\n";

const COMMANDS: &str = "commands.txt";

/// The lock of a demonstration, whose commands lock the folder in turn.
const LOCK: &str = ".demo.lock";

/// What it does there.
const DOING: &str = "writing a demo";

/// What a demonstration leaves in its folder.
const OWN: [&str; 17] = [
    "faces",
    "packed",
    "eval",
    "config.toml",
    "checkpoints",
    "weights.safetensors",
    "metrics.csv",
    "eval.csv",
    "eval.json",
    "pairs.png",
    "embeddings.npy",
    "embeddings.json",
    "embeddings.state.json",
    "labels.npy",
    "labels.tsv",
    "files.txt",
    "similarity.png",
];

/// The size of a demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Generated people.
    pub people: usize,
    /// Pictures of each.
    pub per_person: usize,
    /// So many of the people, the last ones, are kept out of training.
    pub held_out: usize,
    /// Verification pairs of those.
    pub pairs: usize,
    /// How many people the similarity matrix shows, and how many pictures of each.
    pub shown: (usize, usize),
    /// Stop training after so many steps; none: when the preset's epochs are over.
    pub steps: Option<u64>,
}

impl Size {
    /// Learns people apart in a minute or two on two cores.
    pub const FULL: Size = Size {
        people: 340,
        per_person: 25,
        held_out: 40,
        pairs: 600,
        shown: (20, 20),
        steps: None,
    };

    /// Only shows that everything runs.
    pub const QUICK: Size = Size {
        people: 20,
        per_person: 8,
        held_out: 8,
        pairs: 60,
        shown: (6, 8),
        steps: Some(4),
    };
}

/// A demonstration in the folder `out`.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The folder for everything.
    pub out: PathBuf,
    /// Decides the people, and every random choice of the commands.
    pub seed: u64,
    /// How large it is.
    pub size: Size,
    /// What `--device` gets; none: nothing is passed on.
    pub device: Option<String>,
    /// What `--threads` gets; 0: nothing is passed on.
    pub threads: usize,
}

impl Demo {
    /// Makes the folder ready: it must be new, empty, or left by an earlier demonstration, whose files go. It is locked
    /// until the returned value is dropped.
    ///
    /// # Errors
    /// There is something else in the folder, another process is at work there, or a file cannot be removed.
    pub fn prepare(&self) -> Result<File> {
        let out = &self.out;
        self.refuse_foreign()?;
        let lock = files::lock_folder_by(out, LOCK, DOING)?;
        // The commands take the folder's own lock. They may have been cut short.
        let _theirs = Exchange::begin(out, DOING)?;
        for name in OWN {
            remove(&out.join(name))?;
        }
        let mark = out.join(COMMANDS);
        let mut text = String::from(MARK);
        for command in self.commands() {
            text.push_str(&shell_line(&command));
            text.push('\n');
        }
        files::write(&mark, text.as_bytes())?;
        Ok(lock)
    }

    /// Before anything is written there, a lock included.
    fn refuse_foreign(&self) -> Result<()> {
        let out = &self.out;
        if !out.exists() {
            return Ok(());
        }
        let is_own =
            |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK));
        let io = || Error::io("listing the folder", out);
        for entry in fs::read_dir(out).map_err(io())? {
            let name = entry.map_err(io())?.file_name();
            let name = name.to_string_lossy();
            // What a demonstration leaves that was killed before its mark was there.
            let harmless =
                name.ends_with(".lock") || files::is_temporary(&name) || name == UNFINISHED;
            // The mark is looked for once something else is seen: another demonstration may just have written it.
            if !harmless && !is_own(&out.join(COMMANDS)) {
                return Err(Error::data(
                    out,
                    "is not empty and was not left by an earlier demo; choose another folder with --out",
                ));
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.out.join(name).to_string_lossy().into_owned()
    }

    /// The commands in their order: pack, train, eval, embed, each with its arguments as a user would type them.
    pub fn commands(&self) -> [Vec<String>; 4] {
        let out = self.out.to_string_lossy().into_owned();
        let faces = self.path("faces");
        let packed = self.path("packed");
        let weights = self.path("weights.safetensors");
        let held_out = self.size.held_out.to_string();
        let seed = self.seed.to_string();
        let steps = self.size.steps.map(|s| s.to_string());
        let (ids, per_id) = (self.size.shown.0.to_string(), self.size.shown.1.to_string());

        let mut pack = vec![
            "pack",
            "--data",
            &faces,
            "--out",
            &packed,
            "--reserve-last",
            &held_out,
            "--seed",
            &seed,
        ];
        let mut train = vec![
            "train", "--data", &packed, "--preset", "demo", "--seed", &seed, "--out", &out,
        ];
        if let Some(steps) = &steps {
            train.extend(["--steps", steps]);
        }
        let (data, json, pairs) = (
            self.path("eval"),
            self.path("eval.json"),
            self.path("pairs.png"),
        );
        let mut eval = vec![
            "eval",
            "--weights",
            &weights,
            "--data",
            &data,
            "--sets",
            SET,
            "--json",
            &json,
            "--pairs",
            &pairs,
        ];
        let reserved = self.path("packed/reserved");
        let mut embed = vec![
            "embed",
            "--weights",
            &weights,
            "--data",
            &reserved,
            "--ids",
            &ids,
            "--per-id",
            &per_id,
            "--out",
            &out,
        ];
        if let Some(device) = &self.device {
            for command in [&mut train, &mut eval, &mut embed] {
                command.extend(["--device", device]);
            }
        }
        let threads = self.threads.to_string();
        if self.threads > 0 {
            for command in [&mut pack, &mut train, &mut eval, &mut embed] {
                command.extend(["--threads", &threads]);
            }
        }
        [pack, train, eval, embed]
            .map(|command| command.iter().map(|&word| word.to_owned()).collect())
    }

    /// Writes the generated people as an image folder. `progress` is called from several threads, once a picture.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_faces(&self, progress: impl Fn() + Sync) -> Result<()> {
        let options = FacesOptions {
            identities: self.size.people,
            per_identity: self.size.per_person,
            seed: self.seed,
            first_identity: 0,
        };
        faces::write_image_folder(&self.out.join("faces"), &options, |_| progress())
    }

    /// Writes the evaluation set of the people that `pack` has reserved. `progress` is told of pictures done since the
    /// last call.
    ///
    /// # Errors
    /// A file cannot be read or written, or is missing.
    pub fn write_pairs(&self, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let Size {
            held_out,
            per_person,
            pairs,
            ..
        } = self.size;
        let folder = self.out.join("packed/reserved");
        let reserved = ImageFolder::open(&folder)?;
        if reserved.len() != held_out * per_person {
            return Err(Error::data(
                &folder,
                format!(
                    "expected {held_out} people with {per_person} pictures each, found {} pictures of {} people",
                    reserved.len(),
                    reserved.classes()
                ),
            ));
        }
        let pairs = faces::verification_pairs(held_out, per_person, pairs, self.seed)?;
        let dir = self.out.join("eval");
        eval::write_set(&dir, SET, &reserved, &pairs, IMAGE_SIZE, progress)?;
        Ok(())
    }
}

/// A command as it is typed in a shell.
pub fn shell_line(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=,+@%".contains(c);
    let mut line = String::from("arcface-cu");
    for word in command {
        line.push(' ');
        if !word.is_empty() && word.chars().all(plain) {
            line.push_str(word);
        } else {
            line.push_str(&format!("'{}'", word.replace('\'', r"'\''")));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn demo(out: &Path) -> Demo {
        Demo {
            out: out.into(),
            seed: 3,
            size: Size::QUICK,
            device: None,
            threads: 0,
        }
    }

    #[test]
    fn only_its_own_folder_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("eval.json"), "precious").unwrap();
        let error = demo(&mine).prepare().unwrap_err().to_string();
        assert!(error.contains("not left by an earlier demo"), "{error}");
        assert_eq!(fs::read(mine.join("eval.json")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);

        let out = dir.path().join("out");
        demo(&out).prepare().unwrap();
        fs::create_dir(out.join(".exchange")).unwrap();
        fs::write(out.join(".exchange/files.txt"), "old").unwrap();
        fs::write(out.join("notes.txt"), "the user's").unwrap();
        fs::write(out.join("metrics.csv"), "old").unwrap();
        fs::create_dir(out.join("faces")).unwrap();
        demo(&out).prepare().unwrap();
        let mut left: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".demo.lock", ".lock", "commands.txt", "notes.txt"]);
    }

    #[test]
    fn one_demo_writes_to_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let held = demo(&out).prepare().unwrap();
        let error = demo(&out).prepare().unwrap_err().to_string();
        assert!(
            error.contains("another process is writing a demo"),
            "{error}"
        );
        // Its commands take the folder's own lock.
        let train = files::lock_folder(&out, "training").unwrap();
        drop(held);
        let error = demo(&out).prepare().unwrap_err().to_string();
        assert!(error.contains("another process is training"), "{error}");
        drop(train);
        // Killed before it left its mark.
        fs::remove_file(out.join(COMMANDS)).unwrap();
        files::create(&out.join(COMMANDS)).unwrap();
        fs::create_dir(out.join(UNFINISHED)).unwrap();
        demo(&out).prepare().unwrap();
    }

    #[test]
    fn lines_can_be_pasted_into_a_shell() {
        let line = shell_line(&["pack".into(), "--out".into(), "it's a/folder".into()]);
        assert_eq!(line, r"arcface-cu pack --out 'it'\''s a/folder'");
    }
}
