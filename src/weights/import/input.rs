//! What a network takes for pixels: the order of colours, and the transform.

use super::fit::Fitted;
use super::torch::{self, Colours};
use crate::Result;
use crate::backend::InputTransform;
use crate::graph::params::ParamTable;
use crate::graph::{Model, NodeId, Op};
use crate::models::Family;
use crate::recipe::config::{Config, KnownNetwork, NetworkConfig};
use crate::weights::formats::tensors::TensorFile;
use std::path::Path;

/// Turns the channels of a network whose source takes blue, green, red; what a person should know of that.
pub(super) fn put_colours_right(
    path: &Path,
    prefix: &str,
    file: &TensorFile,
    config: &Config,
    fitted: &mut Fitted,
) -> Result<Option<String>> {
    let NetworkConfig::Known(KnownNetwork { backbone, .. }) = config.model.network else {
        return Ok(None);
    };
    Ok(match torch::colours(path, prefix, file, backbone) {
        Colours::Rgb => None,
        Colours::Bgr(why) => {
            turn_channels(&config.model.build()?, &mut fitted.params);
            Some(format!(
                "the network takes blue, green, red ({why}): the input channels of its first filters are swapped"
            ))
        }
        Colours::Unsaid => Some(unsaid()),
    })
}

/// What a person should know of the colours of a graph: as of a state dict that does not say.
pub(super) fn note_on_colours(config: &Config) -> Option<String> {
    let NetworkConfig::Known(KnownNetwork { backbone, .. }) = config.model.network else {
        return None;
    };
    (backbone.family() == Some(Family::AdaFace)).then(unsaid)
}

fn unsaid() -> String {
    "the file does not say in which order the network takes colours: red, green, blue is assumed; AdaFace's own weights take \
     blue, green, red (`import --bgr`)"
        .into()
}

/// Why an input transform can hardly be meant for pixels of 0..255, if so.
pub(super) fn implausible(input: &InputTransform) -> Option<String> {
    // Networks take some -3..3 (ImageNet's mean and deviation); far beyond that, or nearly nothing, is a mistake.
    const FAR: f32 = 30.0;
    const NARROW: f32 = 0.1;
    let ends = |c: usize| {
        [
            input.shift[c],
            255.0f32.mul_add(input.scale[c], input.shift[c]),
        ]
    };
    let wrong = |[a, b]: [f32; 2]| !(a.abs().max(b.abs()) <= FAR && (b - a).abs() >= NARROW);
    let [from, to] = (0..3).map(ends).find(|&ends| wrong(ends))?;
    Some(format!(
        "pixels of 0..255 become {from}..{to}, which can hardly be meant: if the graph takes other numbers, such as 0..1, \
         `import --input unit` says so"
    ))
}

/// `inner` of `outer`.
pub(super) fn composed(inner: InputTransform, outer: InputTransform) -> InputTransform {
    InputTransform {
        scale: std::array::from_fn(|c| inner.scale[c] * outer.scale[c]),
        shift: std::array::from_fn(|c| inner.scale[c] * outer.shift[c] + inner.shift[c]),
    }
}

/// Exchanges red and blue in the filters that read the picture.
pub(super) fn turn_channels(model: &Model, params: &mut [f32]) {
    let table = ParamTable::new(model);
    let reads = |inputs: &[NodeId]| {
        inputs
            .iter()
            .any(|input| model.node(*input).op == Op::Input)
    };
    for node in model.nodes().iter().filter(|node| reads(&node.inputs)) {
        for kernel in ["kernel", "depthwise_kernel"] {
            if let Ok((_, offset, shape)) = table.find(&format!("{}/{kernel}", node.name)) {
                let len: usize = shape.iter().product();
                for pixel in params[offset..][..len].as_chunks_mut::<3>().0 {
                    pixel.reverse();
                }
            }
        }
    }
}
