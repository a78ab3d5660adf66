//! What a run is made of: its configuration, and the named presets.

pub mod config;
pub mod presets;
