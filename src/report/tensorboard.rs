//! TensorBoard's event files: the run's numbers and a few pictures, to be looked at while it goes on.
//!
//! A file `events.out.tfevents.TIME.HOST.PROCESS.0.v2` is a sequence of framed records (`framing.rs`), each an `Event`
//! message; the first tells the version. Scalars `train/loss`, `train/l2`, `train/accuracy`, `train/learning_rate`,
//! `train/images_per_s` and `train/data_wait` come with every step, `eval/SET/accuracy`, `auc` and `eer` with every
//! evaluation, pictures `input/0`, `input/1`, ... when the caller has them. Steps count as in `metrics.csv`.
//!
//! A resumed run begins a file of its own, behind those that are there. Its second event says that a session starts at the
//! next step; TensorBoard then drops what older files have of that step and later ones.

use super::StepReport;
use crate::base::text::shown;
use crate::encoding::framing;
use crate::verification::SetResult;
use crate::{Error, Result};
use image::{ImageEncoder as _, RgbImage};
use prost::Message as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// How the name of an event file begins, before the time in seconds.
const NAME: &str = "events.out.tfevents.";

/// The messages of TensorFlow's `event.proto` and `summary.proto`, as far as they are written.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Event {
        /// Seconds since 1970.
        #[prost(double, tag = "1")]
        pub(super) wall_time: f64,
        #[prost(int64, tag = "2")]
        pub(super) step: i64,
        #[prost(oneof = "What", tags = "3, 5, 7")]
        pub(super) what: Option<What>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum What {
        #[prost(string, tag = "3")]
        FileVersion(String),
        #[prost(message, tag = "5")]
        Summary(Summary),
        #[prost(message, tag = "7")]
        SessionLog(SessionLog),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Summary {
        #[prost(message, repeated, tag = "1")]
        pub(super) value: Vec<Value>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Value {
        #[prost(string, tag = "1")]
        pub(super) tag: String,
        #[prost(oneof = "Content", tags = "2, 4")]
        pub(super) content: Option<Content>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Content {
        #[prost(float, tag = "2")]
        Scalar(f32),
        #[prost(message, tag = "4")]
        Image(Image),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Image {
        #[prost(int32, tag = "1")]
        pub(super) height: i32,
        #[prost(int32, tag = "2")]
        pub(super) width: i32,
        /// Channels.
        #[prost(int32, tag = "3")]
        pub(super) colorspace: i32,
        /// PNG.
        #[prost(bytes = "vec", tag = "4")]
        pub(super) encoded: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct SessionLog {
        /// 1: a session starts.
        #[prost(int32, tag = "1")]
        pub(super) status: i32,
    }
}

use proto::{Content, Event, Image, SessionLog, Summary, Value, What};

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Begins the file of a new run in `folder`, which is made where it is not there.
    ///
    /// # Errors
    /// The folder holds event files already; a file cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        if newest(folder)?.is_some() {
            return Err(Error::Usage(format!(
                "{} already holds a run's event files, and TensorBoard would mix the two; name another folder",
                shown(folder)
            )));
        }
        Self::begin(folder, 0)
    }

    /// Begins the file with which a run goes on after `steps_done` steps.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn resume(folder: &Path, steps_done: u64) -> Result<Self> {
        let after = newest(folder)?.map_or(0, |time| time.saturating_add(1));
        let mut file = Self::begin(folder, after)?;
        let start = What::SessionLog(SessionLog { status: 1 });
        file.event(steps_done + 1, start)?;
        file.flush()?;
        Ok(file)
    }

    /// Begins a file whose time is at least `earliest`, since TensorBoard reads files in the order of their names.
    fn begin(folder: &Path, earliest: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))?;
        let time = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        // In the place of the host, which only the system's libraries know, the program's name.
        let name = format!(
            "{NAME}{:010}.{}.{}.0.v2",
            time.max(earliest),
            env!("CARGO_PKG_NAME"),
            std::process::id()
        );
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(Error::io("creating", &path))?;
        let mut file = EventFile {
            path,
            file: BufWriter::new(file),
        };
        file.event(0, What::FileVersion("brain.Event:2".into()))?;
        Ok(file)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a training step's numbers.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        let scalars = [
            ("loss", report.loss),
            ("l2", report.l2),
            ("accuracy", report.accuracy),
            ("learning_rate", report.lr),
            ("images_per_s", report.images_per_s()),
            ("data_wait", report.data_wait()),
        ];
        let scalars = scalars.map(|(name, x)| scalar(format!("train/{name}"), x));
        self.summary(report.step, scalars.into())
    }

    /// Writes an evaluation's numbers; `step` is the number of steps done before it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn eval(&mut self, step: u64, set: &SetResult) -> Result<()> {
        let v = &set.verification;
        let scalars = [("accuracy", v.accuracy), ("auc", v.auc), ("eer", v.eer)];
        let scalars = scalars.map(|(name, x)| scalar(format!("eval/{}/{name}", set.name), x));
        self.summary(step, scalars.into())
    }

    /// Writes pictures of a step's batch.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn pictures(&mut self, step: u64, pictures: &[RgbImage]) -> Result<()> {
        let value = |(i, picture): (usize, &RgbImage)| Value {
            tag: format!("input/{i}"),
            content: Some(Content::Image(encode(picture))),
        };
        self.summary(step, pictures.iter().enumerate().map(value).collect())
    }

    /// Hands everything to the system, for whoever reads the file now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("writing", &self.path))
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        self.event(step, What::Summary(Summary { value }))
    }

    fn event(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event {
            wall_time: UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64(),
            step: step as i64,
            what: Some(what),
        };
        self.file
            .write_all(&framing::frame(&event.encode_to_vec()))
            .map_err(Error::io("writing", &self.path))
    }
}

/// The time in the name of the newest event file in a folder, which may not be there.
fn newest(folder: &Path) -> Result<Option<u64>> {
    let io = || Error::io("listing the folder", folder);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io()(e)),
    };
    let mut newest = None;
    for entry in entries {
        let name = entry.map_err(io())?.file_name();
        let name = name.to_string_lossy();
        // Other writers put a name of the run before.
        if let Some((_, rest)) = name.split_once("tfevents.") {
            let time = rest.split('.').next().unwrap_or_default();
            newest = newest.max(Some(time.parse().unwrap_or(0)));
        }
    }
    Ok(newest)
}

fn scalar(tag: String, x: f64) -> Value {
    Value {
        tag,
        content: Some(Content::Scalar(x as f32)),
    }
}

fn encode(picture: &RgbImage) -> Image {
    let mut encoded = Vec::new();
    image::codecs::png::PngEncoder::new(&mut encoded)
        .write_image(
            picture,
            picture.width(),
            picture.height(),
            image::ExtendedColorType::Rgb8,
        )
        .expect("an RGB picture is written to memory");
    Image {
        height: picture.height() as i32,
        width: picture.width() as i32,
        colorspace: 3,
        encoded,
    }
}
