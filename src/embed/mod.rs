//! Embedding: whole data sets, test identities or any pictures, as a stream.
//!
//! The result is a folder of files with one row per picture, a gallery:
//!
//! | file | content |
//! |---|---|
//! | `embeddings.npy` | f4, N x D, unit vectors; or `embeddings.safetensors`: the tensors `embeddings` and `labels` |
//! | `labels.npy` | i8, N: the identity's number; -1 for a loose picture, whose identity is unknown |
//! | `labels.tsv` | the name of each number |
//! | `files.txt` | one line per row: where the picture comes from |
//! | `embeddings.json` | the weights' fingerprint, the treatment of mirror images, and a hash of the pictures |
//! | `skipped.txt` | pictures that could not be read, if any |
//! | `similarity.png` | the similarity matrix, of up to [`SIMILARITY_LIMIT`] pictures |
//!
//! Test identities are taken from the last number downwards, as face_recognition_tf2 does with the people that it keeps
//! out of training. An identity's number is the name of its folder if all those names are distinct numbers
//! (`85741/0001.jpg`), else its position in the data set. The first images of each, in name order, are embedded;
//! identities with too few are skipped.

mod batches;
mod begin;
mod folder;
mod identities;
mod numbers;
mod partial;
mod pictures;
pub mod search;
mod state;
mod stored;
mod stream;

pub use batches::embed_images;
pub use begin::{Begun, Run, StreamOptions, Summary, begin, may_begin};
pub use folder::{GALLERY, Origin, SIMILARITY};
pub use identities::{Chosen, Event, Selection, choose};
pub use pictures::Pictures;
pub use state::Format;
pub use stored::{Stored, is_stored};
pub use stream::{Step, embed_all, embed_in_memory};

/// The most pictures in a similarity matrix: each needs at least one pixel.
pub const SIMILARITY_LIMIT: usize = 2000;
