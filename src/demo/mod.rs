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
use crate::base::files;
use crate::data::Dataset;
use crate::data::formats::image_folder::ImageFolder;
use crate::eval;
use crate::recipe::config::IMAGE_SIZE;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The evaluation set's name.
pub const SET: &str = "faces";

/// What tells a folder of an earlier demonstration from one that is not ours to write to.
const MARK: &str = "# Written by arcface-cu demo; running it again replaces what it wrote.\n";

const COMMANDS: &str = "commands.txt";

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
    /// Makes the folder ready: it must be new, empty, or left by an earlier demonstration, whose files go.
    ///
    /// # Errors
    /// There is something else in the folder, or a file cannot be removed.
    pub fn prepare(&self) -> Result<()> {
        let out = &self.out;
        fs::create_dir_all(out).map_err(Error::io("creating the folder", out))?;
        let io = || Error::io("listing the folder", out);
        let mut found = Vec::new();
        for entry in fs::read_dir(out).map_err(io())? {
            found.push(entry.map_err(io())?.file_name());
        }
        let mark = out.join(COMMANDS);
        let ours = fs::read_to_string(&mark).is_ok_and(|text| text.starts_with(MARK));
        if !ours && !found.is_empty() {
            return Err(Error::data(
                out,
                "is not empty and was not left by an earlier demo; choose another folder with --out",
            ));
        }
        for name in found {
            let text = name.to_string_lossy();
            if OWN.contains(&&*text) {
                remove(&out.join(&name))?;
            }
        }
        let mut text = String::from(MARK);
        for command in self.commands() {
            text.push_str(&shell_line(&command));
            text.push('\n');
        }
        files::write(&mark, text.as_bytes())
    }

    fn path(&self, name: &str) -> String {
        self.out.join(name).display().to_string()
    }

    /// The commands in their order: pack, train, eval, embed, each with its arguments as a user would type them.
    pub fn commands(&self) -> [Vec<String>; 4] {
        let out = self.out.display().to_string();
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

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
    .map_err(Error::io("removing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

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

        let out = dir.path().join("out");
        demo(&out).prepare().unwrap();
        fs::write(out.join("notes.txt"), "the user's").unwrap();
        fs::write(out.join("metrics.csv"), "old").unwrap();
        fs::create_dir(out.join("faces")).unwrap();
        demo(&out).prepare().unwrap();
        let mut left: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["commands.txt", "notes.txt"]);
    }

    #[test]
    fn lines_can_be_pasted_into_a_shell() {
        let line = shell_line(&["pack".into(), "--out".into(), "it's a/folder".into()]);
        assert_eq!(line, r"arcface-cu pack --out 'it'\''s a/folder'");
    }
}
