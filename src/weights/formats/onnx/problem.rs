//! What can be wrong with a tensor of an ONNX file.

use crate::Error;
use std::path::Path;

/// What is wrong with a tensor: the end of a sentence that begins with it.
#[derive(Debug)]
pub(super) struct Problem(pub(super) String);

impl Problem {
    pub(super) fn of(self, path: &Path, what: &str) -> Error {
        Error::data(path, format!("{what} {}", self.0))
    }
}
