//! Face recognition with ArcFace: train a network with the additive angular margin loss (Deng et al., CVPR 2019),
//! evaluate it on verification sets, and embed faces of people it has never seen.
//!
//! Everything the `arcface-cu` program does is here. A backbone with an ArcFace head, fitted to a data set, and an
//! image embedded with it:
//!
//! ```
//! use arcface_cu::backend::cpu::Cpu;
//! use arcface_cu::data::{Dataset, Image};
//! use arcface_cu::demo::faces::{FacesOptions, GeneratedFaces};
//! use arcface_cu::recipe::config::Config;
//! use arcface_cu::train::{DataOptions, Trainer};
//! use std::sync::Arc;
//!
//! # fn main() -> arcface_cu::Result<()> {
//! // A preset names backbone, embedding layer, head, optimizer and schedule; settings change single values.
//! let settings = ["model.embedding.size=64", "head.margin.m2=0.4", "train.batch_size=8", "train.epochs=2"];
//! let config = Config::load("demo", None, &settings.map(String::from))?;
//! // Any `Dataset` will do: `data::open` gives one for an image folder, RecordIO, TFRecord, WebDataset or a list.
//! let faces = FacesOptions { identities: 4, per_identity: 6, ..FacesOptions::default() };
//! let faces = Arc::new(GeneratedFaces::new(faces)?);
//!
//! let mut trainer = Trainer::new(Cpu::new(), config, faces.clone(), DataOptions::default())?;
//! trainer.fit(|step| println!("step {}: loss {:.3}, accuracy {:.3}", step.step, step.loss, step.accuracy))?;
//!
//! let mut face = Image::default();
//! faces.read(0, &mut face)?;
//! let embedding = trainer.embedder(1)?.embed(&[face])?;
//! assert_eq!(embedding.len(), 64);
//! # Ok(())
//! # }
//! ```
//!
//! How it is built, from the bottom: [`backend`] is the line to a device and its fused operations; [`graph`] turns a
//! model of [`models`] into a program of them, forward and backward, and [`head`] is the loss; [`data`] reads pictures
//! and knows no device; [`train`], [`eval`], [`embed`] and [`embedder`] put them to work, and [`cli`] is the program.

pub mod backend;
pub mod base;
pub mod cli;
pub mod data;
pub mod demo;
pub mod embed;
pub mod embedder;
pub mod encoding;
pub mod eval;
pub mod graph;
pub mod head;
pub mod models;
pub mod optim;
pub mod recipe;
pub mod report;
pub mod train;
pub mod verification;
pub mod weights;

pub use base::error::{Error, Result};
