//! A trained network as a function from pictures to embeddings.

use crate::backend::{Backend, Element, InputTransform};
use crate::data::Image;
use crate::data::picture::resize;
use crate::graph::infer::InferGraph;
use crate::weights::checkpoint::Weights;
use crate::{Error, Result};

/// Embeds pictures on a device.
#[derive(Debug)]
pub struct Embedder<'a, B: Backend> {
    backend: &'a mut B,
    graph: InferGraph<B>,
    input: InputTransform,
}

impl<'a, B: Backend> Embedder<'a, B> {
    /// The network that `weights` hold, in batches of up to `max_batch`.
    ///
    /// # Errors
    /// Not enough memory, or a configuration that makes no sense.
    pub fn new(
        backend: &'a mut B,
        weights: &Weights,
        max_batch: usize,
        element: Element,
    ) -> Result<Self> {
        let model = weights.model()?;
        let (params, statistics) = (&weights.params, &weights.statistics);
        Ok(Embedder {
            graph: InferGraph::new(backend, &model, params, statistics, max_batch, element)?,
            input: weights.config.model.input,
            backend,
        })
    }

    /// Embedding size D.
    pub fn size(&self) -> usize {
        self.graph.embedding_size()
    }

    /// Width and height of the network's input.
    pub fn image_size(&self) -> usize {
        self.graph.input_shape().h
    }

    /// Largest batch of one pass over the network.
    pub fn max_batch(&self) -> usize {
        self.graph.max_batch()
    }

    /// Embeds pictures of any size, which are resized to the network's input: N x D, not normalised.
    ///
    /// # Errors
    /// A picture without pixels, a device that fails.
    pub fn embed(&mut self, images: &[Image]) -> Result<Vec<f32>> {
        let pixels = self.pixels(images)?;
        self.embed_pixels(&pixels)
    }

    /// The pixels of pictures of any size, resized to the network's input: N x H x W x 3.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn pixels(&self, images: &[Image]) -> Result<Vec<u8>> {
        let size = self.image_size();
        let mut pixels = Vec::with_capacity(images.len() * size * size * 3);
        for image in images {
            if image.pixels.is_empty() {
                return Err(Error::Invalid(
                    "a picture without pixels cannot be embedded".into(),
                ));
            }
            if (image.width, image.height) == (size, size) {
                pixels.extend_from_slice(&image.pixels);
            } else {
                pixels.extend_from_slice(&resize(image, size, size).pixels);
            }
        }
        Ok(pixels)
    }

    /// Embeds RGB pixels, N x H x W x 3 of the network's input size: N x D, not normalised.
    ///
    /// # Errors
    /// A device that fails.
    pub fn embed_pixels(&mut self, pixels: &[u8]) -> Result<Vec<f32>> {
        self.graph.embed(self.backend, pixels, &self.input)
    }

    /// Embeds images whose RGB values are in [0, 1] (N x H x W x 3), which the network's own input transform takes on
    /// from there: N x D, not normalised.
    ///
    /// # Errors
    /// A device that fails.
    pub fn embed_unit_values(&mut self, values: &mut [f32]) -> Result<Vec<f32>> {
        let InputTransform { scale, shift } = self.input;
        for (i, value) in values.iter_mut().enumerate() {
            *value = *value * 255.0 * scale[i % 3] + shift[i % 3];
        }
        self.graph.embed_values(self.backend, values)
    }
}
