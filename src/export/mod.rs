//! Networks for other programs.

pub mod keras_h5;
