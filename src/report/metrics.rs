//! The run's numbers as CSV files: `metrics.csv`, a line per training step, and `eval.csv`, a line per verification
//! set and evaluation.
//!
//! ```text
//! epoch,step,loss,l2,accuracy,lr,images_per_s,data_wait
//! epoch,step,set,accuracy,accuracy_std,threshold,auc,eer
//! ```
//!
//! Epochs count from 1; `step` is the number of steps done, so the first line of `metrics.csv` has step 1, and a line
//! of `eval.csv` that of the last step before the evaluation. `loss` is without the L2 term, accuracies are fractions,
//! `data_wait` is the share of the step spent waiting for data. A line is handed to the system as soon as it is known.
//! A resumed run first drops the lines of the steps it will do again, so that its files equal those of a run that was
//! never stopped, the two timing columns apart.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::StepReport;
use crate::base::error::{Error, Result};
use crate::base::text;
use crate::verification::SetResult;

const METRICS: (&str, &str) = (
    "metrics.csv",
    "epoch,step,loss,l2,accuracy,lr,images_per_s,data_wait\n",
);
const EVAL: (&str, &str) = (
    "eval.csv",
    "epoch,step,set,accuracy,accuracy_std,threshold,auc,eer\n",
);

/// No line of these files is longer, in bytes; without a limit a damaged file would be read as one line.
const LONGEST_LINE: u64 = 4096;

/// The two files, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    metrics: CsvFile,
    eval: CsvFile,
}

impl MetricsLog {
    /// Starts both files in `folder`, which exists, in the place of any that are there.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        Ok(MetricsLog {
            metrics: CsvFile::create(folder, METRICS)?,
            eval: CsvFile::create(folder, EVAL)?,
        })
    }

    /// Continues both files after `steps_done` steps, the last of which was verified unless its evaluation is `due`: lines of
    /// what is still to be done, and a line cut off in the middle, are dropped. A file that is not there is started.
    ///
    /// # Errors
    /// Where a file has another header or a line without a step, or cannot be read or written.
    pub fn resume(folder: &Path, steps_done: u64, due: bool) -> Result<Self> {
        let verified = steps_done.saturating_sub(due.into());
        Ok(MetricsLog {
            metrics: CsvFile::resume(folder, METRICS, steps_done)?,
            eval: CsvFile::resume(folder, EVAL, verified)?,
        })
    }

    /// Appends a training step's line to `metrics.csv`.
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        // As f32: what was computed has no more digits, and the shortest text that reads back the same is short.
        let [loss, l2, accuracy, lr] =
            [report.loss, report.l2, report.accuracy, report.lr].map(|x| x as f32);
        self.metrics.append(&format!(
            "{},{},{loss},{l2},{accuracy},{lr},{:.1},{:.4}\n",
            report.epoch,
            report.step,
            report.images_per_s(),
            report.data_wait()
        ))
    }

    /// Appends an evaluation's line to `eval.csv`; `step` is the number of steps done before it.
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn eval(&mut self, epoch: u64, step: u64, set: &SetResult) -> Result<()> {
        let mut line = format!("{epoch},{step},{}", field(&set.name));
        let v = &set.verification;
        for x in [v.accuracy, v.accuracy_std, v.threshold, v.auc, v.eer] {
            let Ok(()) = write!(line, ",{}", x as f32) else {
                unreachable!("writing to a String does not fail")
            };
        }
        line.push('\n');
        self.eval.append(&line)
    }

    /// Waits until everything is on the disk. Called before a checkpoint is written, so that after a power cut no
    /// line before the checkpoint is missing.
    ///
    /// # Errors
    /// Where the system reports that writing failed.
    pub fn sync(&self) -> Result<()> {
        for csv in [&self.metrics, &self.eval] {
            csv.file
                .sync_data()
                .map_err(Error::io("writing", &csv.path))?;
        }
        Ok(())
    }
}

/// A name as a CSV field: quoted where it needs to be, on one line.
fn field(name: &str) -> String {
    let name = text::one_line(name);
    if name.contains([',', '"']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name
    }
}

#[derive(Debug)]
struct CsvFile {
    file: File,
    path: PathBuf,
}

impl CsvFile {
    fn create(folder: &Path, (name, header): (&str, &str)) -> Result<Self> {
        let path = folder.join(name);
        let file = File::create(&path).map_err(Error::io("creating", &path))?;
        let mut csv = CsvFile { file, path };
        csv.append(header)?;
        Ok(csv)
    }

    fn resume(folder: &Path, kind: (&str, &str), steps_done: u64) -> Result<Self> {
        let path = folder.join(kind.0);
        // Appending, every line goes to the end, wherever reading has come to.
        let file = match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Self::create(folder, kind);
            }
            Err(e) => return Err(Error::io("opening", &path)(e)),
        };
        let kept = length_to_keep(BufReader::new(&file), &path, kind.1, steps_done)?;
        if kept == 0 {
            return Self::create(folder, kind);
        }
        file.set_len(kept).map_err(Error::io("shortening", &path))?;
        Ok(CsvFile { file, path })
    }

    fn append(&mut self, line: &str) -> Result<()> {
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io("writing", &self.path))
    }
}

/// The length in bytes of the header and the whole lines of the first `steps_done` steps; 0 where not even the header
/// was finished.
fn length_to_keep(
    mut file: impl BufRead,
    path: &Path,
    header: &str,
    steps_done: u64,
) -> Result<u64> {
    let mut kept = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        file.by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .map_err(Error::io("reading", path))?;
        let whole = line.ends_with(b"\n");
        if !whole && (line.len() as u64) < LONGEST_LINE {
            // The end, or a line that was being written when the run was killed.
            if kept == 0 && !header.as_bytes().starts_with(&line) {
                return Err(wrong_header(path, header, &line));
            }
            return Ok(kept);
        }
        if kept == 0 {
            if line != header.as_bytes() {
                return Err(wrong_header(path, header, &line));
            }
        } else {
            let step = std::str::from_utf8(&line)
                .ok()
                .and_then(|l| l.split(',').nth(1))
                .and_then(|s| s.parse::<u64>().ok());
            match step {
                Some(step) if step <= steps_done => {}
                Some(_) => return Ok(kept),
                None => {
                    return Err(Error::malformed(
                        path,
                        kept,
                        "a line with a step in its second column",
                        quoted(&line),
                    ));
                }
            }
        }
        kept += line.len() as u64;
    }
}

fn wrong_header(path: &Path, header: &str, line: &[u8]) -> Error {
    let expected = format!("the header \"{}\"", header.trim_end());
    Error::malformed(path, 0, expected, quoted(line))
}

/// The beginning of a line, for an error.
fn quoted(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(&line[..line.len().min(80)]);
    format!("\"{}\"", line.trim_end().escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verification::verify;

    fn report(step: u64) -> StepReport {
        StepReport {
            epoch: 1 + (step - 1) / 4,
            step,
            images: 32,
            loss: f64::from(20.0f32 / (step as f32 + 0.7)),
            l2: 0.25,
            accuracy: f64::from(step as f32 / 30.0),
            lr: f64::from(0.1f32),
            seconds: 0.5,
            waited: 0.125,
        }
    }

    fn set() -> SetResult {
        let same: Vec<bool> = (0..20).map(|k| k % 3 == 0).collect();
        let distances: Vec<f64> = (0..20).map(|k| f64::from(k * 7 % 20) / 6.0).collect();
        SetResult {
            name: "lfw, \"aligned\"".to_owned(),
            verification: verify(&distances, &same).unwrap(),
        }
    }

    fn steps(log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            log.step(&report(step)).unwrap();
            if step % 4 == 0 {
                log.eval(step / 4, step, &set()).unwrap();
            }
        }
    }

    fn contents(folder: &Path) -> [String; 2] {
        ["metrics.csv", "eval.csv"].map(|n| std::fs::read_to_string(folder.join(n)).unwrap())
    }

    #[test]
    fn a_resumed_log_equals_one_that_was_never_stopped() {
        let whole = tempfile::tempdir().unwrap();
        steps(&mut MetricsLog::create(whole.path()).unwrap(), 1..=11);
        let expected = contents(whole.path());
        assert_eq!(expected[0].lines().count(), 12);
        assert_eq!(expected[1].lines().count(), 3);
        let line = expected[0].lines().nth(3).unwrap();
        assert_eq!(line, "1,3,5.4054055,0.25,0.1,0.1,64.0,0.2500");
        assert!(expected[1].contains("\n2,8,\"lfw, \"\"aligned\"\"\",0."));

        // Stopped after 10 steps, with a half-written line, and resumed from a checkpoint at each step before.
        for resumed_at in 0..=10 {
            let folder = tempfile::tempdir().unwrap();
            steps(&mut MetricsLog::create(folder.path()).unwrap(), 1..=10);
            let path = folder.path().join("metrics.csv");
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"3,1").unwrap();
            let mut log = MetricsLog::resume(folder.path(), resumed_at, false).unwrap();
            steps(&mut log, resumed_at + 1..=11);
            log.sync().unwrap();
            assert_eq!(contents(folder.path()), expected, "resumed at {resumed_at}");
        }

        // The evaluation after step 8 is to be done again.
        let folder = tempfile::tempdir().unwrap();
        steps(&mut MetricsLog::create(folder.path()).unwrap(), 1..=8);
        let mut log = MetricsLog::resume(folder.path(), 8, true).unwrap();
        log.eval(2, 8, &set()).unwrap();
        steps(&mut log, 9..=11);
        assert_eq!(contents(folder.path()), expected);
    }

    #[test]
    fn absent_and_unfinished_files_are_started() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.csv"), "epoch,st").unwrap();
        steps(
            &mut MetricsLog::resume(folder.path(), 8, false).unwrap(),
            9..=9,
        );
        let [metrics, eval] = contents(folder.path());
        assert_eq!(metrics.lines().count(), 2);
        assert_eq!(eval, EVAL.1);
    }

    #[test]
    fn create_replaces_an_old_log() {
        let folder = tempfile::tempdir().unwrap();
        steps(&mut MetricsLog::create(folder.path()).unwrap(), 1..=9);
        MetricsLog::create(folder.path()).unwrap();
        assert_eq!(contents(folder.path()), [METRICS.1, EVAL.1]);
    }

    #[test]
    fn foreign_and_damaged_files_are_errors() {
        let says = |bytes: &[u8], words: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("metrics.csv"), bytes).unwrap();
            let text = MetricsLog::resume(folder.path(), 8, false)
                .unwrap_err()
                .to_string();
            assert!(
                text.contains("metrics.csv") && text.contains(words),
                "{text}"
            );
            // What is not ours stays as it is.
            assert_eq!(
                std::fs::read(folder.path().join("metrics.csv")).unwrap(),
                bytes
            );
        };
        says(b"step,loss\n1,2\n", "expected the header");
        says(b"something else", "expected the header");
        says(&[b'x'; 10_000], "expected the header");
        let with = |line: &[u8]| [METRICS.1.as_bytes(), b"1,1,2\n", line].concat();
        says(&with(b"1,two,3\n"), "byte 60: expected a line with a step");
        says(&with(b"\xff\xfe\n"), "byte 60");
        says(&with(&[b'1'; 10_000]), "byte 60");
        let text = MetricsLog::create(Path::new("/nonexistent"))
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("creating /nonexistent/metrics.csv"),
            "{text}"
        );
    }
}
