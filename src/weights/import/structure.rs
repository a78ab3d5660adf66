//! Which of the networks an ONNX graph is.

use super::fit::Fitted;
use super::onnx::{Mismatch, embedding_size, match_model, noted_input};
use super::{InputOrigin, Mapped, Report};
use crate::recipe::config::Config;
use crate::weights::formats::onnx::Graph;
use crate::{Error, Result};
use std::path::Path;

/// The first candidate whose structure the graph has, with embeddings of the graph's size; and who says what it takes for
/// pixels.
///
/// # Errors
/// There is none; of the candidate that it resembles for longest, the sentence tells where they part.
pub(super) fn by_structure(
    path: &Path,
    graph: &Graph,
    candidates: &[Config],
) -> Result<(Config, Fitted, InputOrigin)> {
    let d = embedding_size(graph);
    let mut nearest: Option<(Mismatch, Config)> = None;
    for config in candidates {
        let mut config = config.clone();
        if let Some(d) = d {
            config.model.set_embedding_size(d);
        }
        let Ok(model) = config.model.build() else {
            continue;
        };
        match match_model(&model, graph) {
            Ok(slabs) => {
                let (input, origin) = match (slabs.input, noted_input(graph)) {
                    (Some(input), _) => (input, InputOrigin::Graph),
                    (None, Some(input)) => (input, InputOrigin::File),
                    (None, None) => (config.model.input, InputOrigin::Preset),
                };
                config.model.input = input;
                let mapped = slabs.layers.into_iter().map(|(from, to)| Mapped {
                    from,
                    to,
                    shape: Vec::new(),
                });
                let report = Report {
                    mapped: mapped.collect(),
                    missing: Vec::new(),
                    unused: slabs.unused,
                };
                let fitted = Fitted {
                    params: slabs.params,
                    statistics: slabs.statistics,
                    report,
                };
                return Ok((config, fitted, origin));
            }
            Err(mismatch) => {
                let farther = |known: &Mismatch| mismatch.node > known.node;
                if nearest.as_ref().is_none_or(|(known, _)| farther(known)) {
                    nearest = Some((mismatch, config));
                }
            }
        }
    }
    Err(Error::data(
        path,
        match nearest {
            Some((mismatch, config)) => format!(
                "is none of the networks here. It is like {} (preset {}) up to this: {mismatch}",
                config.model.network_name(),
                config.preset
            ),
            None => "there is no network to compare it with".into(),
        },
    ))
}
