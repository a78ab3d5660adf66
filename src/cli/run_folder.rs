//! A run's folder: `config.toml`, `metrics.csv`, `eval.csv`, `checkpoints/step-XXXXXXXX.safetensors`, `weights.safetensors`,
//! `weights.best.safetensors`, and `.lock`, which the process that trains holds.

use crate::base::files;
use crate::base::text::shown;
use crate::recipe::config::Config;
use crate::weights::checkpoint::{Checkpoint, Weights};
use crate::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The weights at the end.
pub(super) const LAST: &str = "weights.safetensors";

/// The weights of the best evaluation.
pub(super) const BEST: &str = "weights.best.safetensors";

/// Where a run leaves its files.
#[derive(Clone, Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
}

/// What `--resume` found.
#[derive(Debug)]
pub(super) struct Found {
    /// The newest whole checkpoint and its file.
    pub(super) checkpoint: Option<(PathBuf, Checkpoint)>,
    /// Newer files that could not be used, as sentences.
    pub(super) passed_over: Vec<String>,
}

impl RunFolder {
    /// The folder at `path`, which need not exist yet.
    pub(super) fn new(path: PathBuf) -> Self {
        RunFolder { path }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder, and takes it for this process until what comes back is dropped or the process ends.
    ///
    /// # Errors
    /// Another process trains into it, or the system refuses.
    pub(super) fn lock(&self) -> Result<File> {
        files::lock_folder(&self.path, "training")
    }

    /// Whether a run has left anything here.
    pub(super) fn has_run(&self) -> bool {
        ["config.toml", "metrics.csv", "checkpoints"]
            .iter()
            .any(|name| self.path.join(name).exists())
    }

    /// The stored configuration, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn config(&self) -> Result<Option<Config>> {
        let path = self.path.join("config.toml");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        toml::from_str(&text)
            .map(Some)
            .map_err(|e| Error::data(&path, format!("is not a run's configuration: {e}")))
    }

    /// Makes the folder and stores the configuration.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn begin(&self, config: &Config) -> Result<()> {
        let checkpoints = self.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("creating the folder", &checkpoints))?;
        files::write(&self.path.join("config.toml"), config.to_toml()?.as_bytes())
    }

    /// The newest whole checkpoint. Removes what a killed run was just writing.
    ///
    /// # Errors
    /// The folder cannot be read, or there are checkpoints and none can be used.
    pub(super) fn find(&self) -> Result<Found> {
        let mut found = Found {
            checkpoint: None,
            passed_over: Vec::new(),
        };
        for (step, path) in self.list()?.into_iter().rev() {
            let reason = match Checkpoint::load(&path) {
                Ok(checkpoint) if checkpoint.steps_done == step => {
                    found.checkpoint = Some((path, checkpoint));
                    break;
                }
                Ok(checkpoint) => format!(
                    "{}: holds step {}, not the step in its name",
                    shown(path),
                    checkpoint.steps_done
                ),
                Err(error) => error.to_string(),
            };
            found.passed_over.push(reason);
        }
        if found.checkpoint.is_none() && !found.passed_over.is_empty() {
            return Err(Error::data(
                self.checkpoints(),
                format!(
                    "no checkpoint can be used ({}); another --out begins again",
                    found.passed_over.join("; ")
                ),
            ));
        }
        Ok(found)
    }

    /// Writes a checkpoint and then deletes all but the last `keep` up to it.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn save(&self, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
        let step = checkpoint.steps_done;
        let path = self
            .checkpoints()
            .join(format!("step-{step:08}.safetensors"));
        checkpoint.save(&path)?;
        self.delete_old(step, keep)?;
        Ok(path)
    }

    /// Deletes all checkpoints up to a step but the last `keep`, which a killed run may have left. Files of later steps,
    /// which a resumed run passed over as broken, do not count; the run overwrites them when it gets there.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn delete_old(&self, step: u64, keep: usize) -> Result<()> {
        let mut up_to = self.list()?;
        up_to.retain(|(s, _)| *s <= step);
        for (_, old) in up_to.iter().rev().skip(keep) {
            fs::remove_file(old).map_err(Error::io("deleting", old))?;
        }
        Ok(())
    }

    /// Writes the final weights, or the best so far.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn save_weights(&self, name: &str, weights: &Weights) -> Result<PathBuf> {
        let path = self.path.join(name);
        weights.save(&path)?;
        Ok(path)
    }

    /// The file with a run's weights: the last, else the best, else the newest checkpoint; none if no run has left any here.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn weights(&self) -> Result<Option<PathBuf>> {
        if !self.path.join("config.toml").is_file() {
            return Ok(None);
        }
        let ended = [LAST, BEST].map(|name| self.path.join(name));
        if let Some(file) = ended.into_iter().find(|file| file.is_file()) {
            return Ok(Some(file));
        }
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("listing the folder", &folder)(e)),
        };
        let mut newest = None;
        for entry in entries {
            let entry = entry.map_err(Error::io("listing the folder", &folder))?;
            let step = step_of(&entry.file_name().to_string_lossy());
            newest = newest.max(step.map(|step| (step, entry.path())));
        }
        Ok(newest.map(|(_, path)| path))
    }

    fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Checkpoint files by step, oldest first; other names are nobody's business here. Half-written files, which a
    /// killed run leaves, are removed.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("listing the folder", &folder)(e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(Error::io("listing the folder", &folder))?
                .path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("step-") && name.ends_with(files::TEMPORARY) {
                fs::remove_file(&path).map_err(Error::io("deleting", &path))?;
            } else if let Some(step) = step_of(&name) {
                files.push((step, path));
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The step in a checkpoint's name.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
    step.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;
    use crate::weights::checkpoint::Verified;

    fn checkpoint(steps_done: u64) -> Checkpoint {
        let config = Config::load("demo", None, &[]).unwrap();
        let table = ParamTable::new(&config.model.build().unwrap());
        let (params, statistics) = table.init(3);
        let d = config.model.embedding_size().unwrap();
        Checkpoint {
            momentum: params.clone(),
            class_rows: vec![0.25; 3 * d],
            class_momentum: vec![0.5; 3 * d],
            images: 9,
            steps_done,
            class_names: None,
            verified: Verified::default(),
            weights: Weights {
                config,
                classes: 3,
                trained_on: None,
                imported_from: None,
                params,
                statistics,
            },
        }
    }

    fn steps(folder: &RunFolder) -> Vec<u64> {
        folder
            .list()
            .unwrap()
            .iter()
            .map(|(step, _)| *step)
            .collect()
    }

    #[test]
    fn the_last_are_kept_and_the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(dir.path().join("run"));
        assert!(!folder.has_run());
        assert!(folder.find().unwrap().checkpoint.is_none());
        folder.begin(&checkpoint(0).weights.config).unwrap();
        assert!(folder.has_run());
        for step in [2, 4, 6, 9] {
            folder.save(&checkpoint(step), 3).unwrap();
        }
        assert_eq!(steps(&folder), [4, 6, 9]);

        // The newest is torn, another was being written, a third has another's name.
        let file = |name: &str| folder.checkpoints().join(name);
        let whole = fs::read(file("step-00000009.safetensors")).unwrap();
        fs::write(
            file("step-00000009.safetensors"),
            &whole[..whole.len() - 100],
        )
        .unwrap();
        fs::write(file("step-00000012.safetensors.tmp"), &whole[..99]).unwrap();
        fs::copy(
            file("step-00000004.safetensors"),
            file("step-00000007.safetensors"),
        )
        .unwrap();
        let found = folder.find().unwrap();
        assert_eq!(found.checkpoint.unwrap().1.steps_done, 6);
        assert_eq!(found.passed_over.len(), 2);
        assert!(found.passed_over[0].contains("step-00000009"));
        assert!(found.passed_over[1].contains("holds step 4"));
        assert!(!file("step-00000012.safetensors.tmp").exists());

        // What a run that was killed before it deleted them has left.
        folder.save(&checkpoint(3), 9).unwrap();
        folder.save(&checkpoint(6), 9).unwrap();
        folder.delete_old(6, 2).unwrap();
        assert_eq!(steps(&folder), [4, 6, 7, 9]);

        // Broken files of later steps push no good one out.
        folder.save(&checkpoint(7), 2).unwrap();
        assert_eq!(steps(&folder), [6, 7, 9]);
        folder.save(&checkpoint(9), 2).unwrap();
        assert_eq!(steps(&folder), [7, 9]);
        assert!(folder.find().unwrap().passed_over.is_empty());
    }

    #[test]
    fn a_runs_weights_are_its_last_its_best_or_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(dir.path().to_path_buf());
        let name = || {
            let path = folder.weights().unwrap();
            path.map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        };
        fs::write(dir.path().join(LAST), "of no run").unwrap();
        assert_eq!(name(), None);
        fs::remove_file(dir.path().join(LAST)).unwrap();
        folder.begin(&checkpoint(0).weights.config).unwrap();
        assert_eq!(name(), None);
        for step in [9, 10] {
            folder.save(&checkpoint(step), 5).unwrap();
        }
        let torn = folder.checkpoints().join("step-00000011.safetensors.tmp");
        fs::write(&torn, "half").unwrap();
        assert_eq!(name().as_deref(), Some("step-00000010.safetensors"));
        assert!(torn.exists(), "another process may be writing it");
        fs::write(dir.path().join(BEST), "x").unwrap();
        assert_eq!(name().as_deref(), Some(BEST));
        fs::write(dir.path().join(LAST), "x").unwrap();
        assert_eq!(name().as_deref(), Some(LAST));
    }

    #[test]
    fn only_one_process_trains_into_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(dir.path().join("run"));
        let held = folder.lock().unwrap();
        let error = folder.lock().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("training into") && error.to_string().contains("run"));
        drop(held);
        folder.lock().unwrap();
    }

    #[test]
    fn broken_checkpoints_alone_are_no_reason_to_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(dir.path().to_path_buf());
        folder.begin(&checkpoint(0).weights.config).unwrap();
        assert_eq!(
            folder.config().unwrap().unwrap(),
            checkpoint(0).weights.config
        );
        fs::write(
            folder.checkpoints().join("step-00000003.safetensors"),
            "nothing",
        )
        .unwrap();
        let error = folder.find().unwrap_err().to_string();
        assert!(error.contains("no checkpoint can be used"), "{error}");
    }
}
