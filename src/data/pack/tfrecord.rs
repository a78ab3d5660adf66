//! Packing to TFRecord, in one file or several.

use super::{Files, Groups, Sink};
use crate::data::Encoded;
use crate::data::formats::tfrecord::{Schema, example};
use crate::encoding::framing::frame;
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

/// The folder of image files beside the TFRecord files that name them.
pub(super) const IMAGES: &str = "images";

/// TFRecord files that are being written, one after the other.
pub(super) struct TfRecordSink {
    schema: Schema,
    paths: Vec<PathBuf>,
    images: PathBuf,
    /// The file that is being written, and its number.
    file: Option<(usize, BufWriter<File>)>,
    /// Images passed, and all that will be.
    done: usize,
    total: usize,
}

impl TfRecordSink {
    /// Begins `shards` files for `images` images; no more files than images are made.
    pub(super) fn create(
        files: &Files,
        schema: Schema,
        images: usize,
        shards: usize,
    ) -> Result<Self> {
        let shards = shards.clamp(1, images.max(1));
        let names: Vec<String> = match shards {
            1 => vec!["train.tfrecord".into()],
            n => (0..n)
                .map(|i| format!("train-{i:05}-of-{n:05}.tfrecord"))
                .collect(),
        };
        Ok(TfRecordSink {
            schema,
            paths: names.iter().map(|name| files.path(name)).collect(),
            images: files.path(IMAGES),
            file: None,
            done: 0,
            total: images,
        })
    }

    /// The file that is now to be written: each gets as many places of the order, images left out included.
    fn file(&mut self, shard: usize) -> Result<&mut BufWriter<File>> {
        let next = match &self.file {
            Some((number, _)) => number + 1,
            None => 0,
        };
        // A file all of whose images were left out is there and empty.
        for number in next..=shard {
            self.close()?;
            let path = &self.paths[number];
            let file = File::create(path).map_err(Error::io("creating", path))?;
            self.file = Some((number, BufWriter::with_capacity(1 << 20, file)));
        }
        let (_, file) = self.file.as_mut().expect("a file was made just now");
        Ok(file)
    }

    fn close(&mut self) -> Result<()> {
        let Some((number, mut file)) = self.file.take() else {
            return Ok(());
        };
        file.flush()
            .map_err(Error::io("writing", &self.paths[number]))
    }
}

impl Sink for TfRecordSink {
    fn push(&mut self, _place: usize, label: u32, number: usize, image: &Encoded) -> Result<()> {
        let name = format!("{label}/{number:04}.{}", image.extension);
        let example = if self.schema == Schema::ArcfaceTf2Paths {
            let path = self.images.join(&name);
            let folder = path.parent().unwrap_or(&self.images);
            fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))?;
            fs::write(&path, &image.bytes).map_err(Error::io("writing", &path))?;
            example::encode(
                self.schema,
                label,
                "",
                format!("{IMAGES}/{name}").as_bytes(),
            )
        } else {
            example::encode(self.schema, label, &name, &image.bytes)
        };
        let shard = self.done * self.paths.len() / self.total;
        self.done += 1;
        let written = self.file(shard)?.write_all(&frame(&example));
        written.map_err(Error::io("writing", &self.paths[shard]))
    }

    fn finish(mut self: Box<Self>, _groups: &Groups, _kept: usize) -> Result<()> {
        self.file(self.paths.len() - 1)?;
        self.close()
    }
}
