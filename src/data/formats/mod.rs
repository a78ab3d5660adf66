//! Data sets as other programs store them. Each reader's file opens with the format's layout.

pub mod bcolz;
pub mod bin;
mod blosc;
pub(crate) mod identities;
pub mod image_folder;
pub(crate) mod index;
pub(crate) mod labels;
pub mod landmarks;
pub mod list;
pub mod pairs;
pub mod recordio;
mod sharded;
pub(crate) mod shards;
pub(crate) mod tar;
pub(crate) mod text;
pub mod tfrecord;
pub mod webdataset;
