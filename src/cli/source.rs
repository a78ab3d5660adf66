//! What `--data` names.

use crate::Result;
use crate::data::{self, Dataset};
use std::path::Path;

/// Opens an image folder or a RecordIO set.
pub(super) fn open(path: &Path) -> Result<Box<dyn Dataset>> {
    data::open(path)
}
