//! The writer: a weights file as Keras 2 writes it, with strings of fixed length, which every version reads.

use crate::weights::formats::tensors::NamedTensor;
use crate::{Error, Result};
use hdf5_writer::{AttributeBuilder, DatasetBuilder, Hdf5Builder, WriteOptions};

/// A layer with its weights, which have whole names (`layer/kernel:0`).
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its name, and its group's.
    pub name: String,
    /// Its weights in Keras's order; a layer may have none.
    pub weights: Vec<NamedTensor>,
}

/// A weights file of these layers, in their order.
///
/// # Errors
/// A list of names that does not fit in 64 KiB, a name that is empty or there twice, a tensor whose shape is not that of its values.
pub fn encode(layers: &[Layer]) -> Result<Vec<u8>> {
    build(layers).map_err(|e| Error::Invalid(format!("the weights cannot be written as HDF5: {e}")))
}

fn build(layers: &[Layer]) -> hdf5_writer::Result<Vec<u8>> {
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    let mut file = Hdf5Builder::new()
        .attribute(strings("layer_names", &names)?)
        .attribute(AttributeBuilder::fixed_string("backend", "tensorflow"))
        // The version whose layout this is; readers look only for 1.
        .attribute(AttributeBuilder::fixed_string("keras_version", "2.4.0"));
    for layer in layers {
        let names: Vec<&str> = layer.weights.iter().map(|w| w.name.as_str()).collect();
        file = file.group_attribute(&layer.name, strings("weight_names", &names)?);
        for weight in &layer.weights {
            let place = format!("{}/{}", layer.name, weight.name);
            let shape: Vec<u64> = weight.shape.iter().map(|&side| side as u64).collect();
            file = file.dataset(DatasetBuilder::typed_data(place, shape, &weight.values)?);
        }
    }
    file.into_plan()?.encode(WriteOptions::default())
}

/// An empty list is one of float64, as NumPy makes it and Keras writes it.
fn strings(name: &str, values: &[&str]) -> hdf5_writer::Result<AttributeBuilder> {
    if values.is_empty() {
        AttributeBuilder::vector::<f64>(name, &[])
    } else {
        AttributeBuilder::fixed_string_vector(name, values)
    }
}
