//! The tensors of a model file, whatever its format: names and layouts are the file's own.

/// A tensor as its file names it and lays it out.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its axes; empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements, the last axis fastest; as many as the shape says.
    pub values: Vec<f32>,
}

/// What a model file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile {
    /// The tensors of floating-point numbers, in the file's order; no name is there twice.
    pub tensors: Vec<NamedTensor>,
    /// What else is there: its name, and why it is left out.
    pub ignored: Vec<(String, String)>,
}

impl TensorFile {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&NamedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
