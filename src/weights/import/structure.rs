//! Which of the networks an ONNX graph is, or that it is one of its own.

use super::fit::Fitted;
use super::onnx::{Mismatch, Slabs, embedding_size, match_model, noted_input, own_network};
use super::{InputOrigin, Mapped, Report};
use crate::recipe::config::Config;
use crate::weights::formats::onnx::Graph;

/// A network, its parameters, and who says what it takes for pixels.
pub(super) type Structured = (Config, Fitted, InputOrigin);

/// The first candidate whose structure the graph has, with embeddings of the graph's size.
///
/// # Errors
/// There is none; of the candidate that it resembles for longest, the sentence tells where they part.
pub(super) fn by_structure(graph: &Graph, candidates: &[Config]) -> Result<Structured, String> {
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
            Ok(slabs) => return Ok(taken(config, graph, slabs)),
            Err(mismatch) => {
                let farther = |known: &Mismatch| mismatch.node > known.node;
                if nearest.as_ref().is_none_or(|(known, _)| farther(known)) {
                    nearest = Some((mismatch, config));
                }
            }
        }
    }
    Err(match nearest {
        Some((mismatch, config)) => format!(
            "like {} (preset {}) up to this: {mismatch}",
            config.model.network_name(),
            config.preset
        ),
        None => "there is no network to compare it with".into(),
    })
}

/// The graph as a network of its own, with the recipe of `base`.
///
/// # Errors
/// The first node that is no layer here.
pub(super) fn by_itself(graph: &Graph, base: &Config) -> Result<Structured, String> {
    let (model, slabs) = own_network(graph)?;
    let config = base.clone().with_network(&model);
    Ok(taken(config.map_err(|e| e.to_string())?, graph, slabs))
}

/// What the graph gave, laid out as from any file.
fn taken(mut config: Config, graph: &Graph, slabs: Slabs) -> Structured {
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
    (config, fitted, origin)
}
