//! Readers, writers and the loader: pixels and labels, no device.
