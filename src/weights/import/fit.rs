//! Named tensors, laid into the parameter slabs of a network.

use super::{Mapped, Missing, Report, keras};
use crate::graph::Model;
use crate::graph::params::ParamTable;
use crate::weights::convention::{Convention, Foreign, Place, foreign};
use crate::weights::formats::tensors::{NamedTensor, TensorFile};
use std::collections::{HashMap, HashSet};

/// A network's parameters, as far as a file gives them, and what became of the file's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    /// The parameter slab; what the file does not give is as a new network has it.
    pub(crate) params: Vec<f32>,
    /// The statistics slab, likewise.
    pub(crate) statistics: Vec<f32>,
    pub(crate) report: Report,
}

/// What a tensor of the network is in the file, or why it is not there.
struct Found<'a> {
    foreign: Foreign,
    tensor: Result<&'a NamedTensor, String>,
}

/// What a file has by name.
pub(super) struct Names<'a> {
    tensors: HashMap<String, &'a NamedTensor>,
    /// Why something else is no tensor.
    others: HashMap<&'a str, &'a str>,
}

impl<'a> Names<'a> {
    /// The names that `model` has for the tensors under this convention.
    pub(super) fn new(file: &'a TensorFile, model: &Model, convention: Convention) -> Self {
        let names: Vec<String> = match convention {
            Convention::Keras => keras::names(file, model),
            _ => file.tensors.iter().map(|t| t.name.clone()).collect(),
        };
        let others = file.ignored.iter().map(|(name, why)| (&name[..], &why[..]));
        Names {
            tensors: names.into_iter().zip(&file.tensors).collect(),
            others: others.collect(),
        }
    }

    /// The embedding size of the file's network, if that has the layer of `model` that makes the embedding.
    pub(super) fn embedding_size(&self, model: &Model, convention: Convention) -> Option<usize> {
        let all = foreign(model, &ParamTable::new(model), convention);
        let kernel = all.iter().find(|foreign| foreign.embedding)?;
        let shape = &self.tensors.get(&kernel.name)?.shape;
        (shape.len() == kernel.shape.len()).then(|| shape[kernel.units_axis()])
    }

    /// How many tensors of the network the file does not give, or gives in another shape, and how many it gives.
    pub(super) fn missing_and_given(
        &self,
        model: &Model,
        convention: Convention,
    ) -> (usize, usize) {
        let all = self.look_up(model, convention);
        let missing = all.iter().filter(|found| found.tensor.is_err()).count();
        (missing, all.len() - missing)
    }

    /// What of the network the file does not give.
    pub(super) fn missing(&self, model: &Model, convention: Convention) -> Vec<Missing> {
        let all = self.look_up(model, convention).into_iter();
        all.filter_map(|Found { foreign, tensor }| {
            Some(missing(
                &foreign,
                tensor.and_then(|t| fits(&foreign, t)).err()?,
            ))
        })
        .collect()
    }

    /// By name and shape; the numbers are looked at where they are taken.
    fn look_up(&self, model: &Model, convention: Convention) -> Vec<Found<'a>> {
        let all = foreign(model, &ParamTable::new(model), convention);
        let found = all.into_iter().filter_map(|foreign| {
            let Some(&tensor) = self.tensors.get(&foreign.name) else {
                // What is not stored here need not be stored there.
                let fixed = matches!(foreign.place, Place::Fixed(_) | Place::Implied(_));
                let other = self.others.get(&foreign.name[..]);
                return (!fixed || other.is_some()).then(|| Found {
                    tensor: Err(match other {
                        Some(why) => format!("in the file it is {why}"),
                        None => "the file has no such tensor".into(),
                    }),
                    foreign,
                });
            };
            let tensor = match tensor.shape == foreign.shape {
                true => Ok(tensor),
                false => Err(format!(
                    "expected shape {:?}, found {:?}",
                    foreign.shape, tensor.shape
                )),
            };
            Some(Found { foreign, tensor })
        });
        found.collect()
    }
}

fn missing(foreign: &Foreign, why: String) -> Missing {
    Missing {
        to: foreign.ours.clone(),
        from: foreign.name.clone(),
        why,
    }
}

/// Whether a tensor's numbers can be the parameter.
fn fits(foreign: &Foreign, tensor: &NamedTensor) -> Result<(), String> {
    if let Some(i) = tensor.values.iter().position(|v| !v.is_finite()) {
        return Err(format!("element {i} is {}", tensor.values[i]));
    }
    let (Place::Fixed(number) | Place::Implied(number)) = foreign.place else {
        return Ok(());
    };
    match tensor.values.iter().position(|v| *v != number) {
        Some(i) => Err(format!(
            "it is {number} and not learnt here, and element {i} is {}",
            tensor.values[i]
        )),
        None => Ok(()),
    }
}

/// Lays the tensors of `file` into a new network's slabs.
pub(crate) fn fit(model: &Model, convention: Convention, file: &TensorFile, seed: u64) -> Fitted {
    let names = Names::new(file, model, convention);
    let (mut params, mut statistics) = ParamTable::new(model).init(seed);
    let mut report = Report::default();
    let mut used = HashSet::new();
    for Found { foreign, tensor } in names.look_up(model, convention) {
        // A tensor that does not fit is reported only once.
        let there = names.tensors.get(&foreign.name);
        used.extend(there.map(|tensor| tensor.name.as_str()));
        let tensor = match tensor.and_then(|t| fits(&foreign, t).map(|()| t)) {
            Ok(tensor) => tensor,
            Err(why) => {
                report.missing.push(missing(&foreign, why));
                continue;
            }
        };
        let values = foreign.to_ours(&tensor.values);
        match foreign.place {
            Place::Param(offset) => params[offset..][..values.len()].copy_from_slice(&values),
            Place::Statistic(offset) => {
                statistics[offset..][..values.len()].copy_from_slice(&values);
            }
            Place::Fixed(_) | Place::Implied(_) => {}
        }
        report.mapped.push(Mapped {
            from: tensor.name.clone(),
            to: foreign.ours,
            shape: foreign.shape,
        });
    }
    let rest = file.tensors.iter();
    let rest = rest.filter(|t| !used.contains(t.name.as_str()));
    let why =
        |t: &NamedTensor| format!("the network has no such parameter, of shape {:?}", t.shape);
    report.unused = rest.map(|t| (t.name.clone(), why(t))).collect();
    report.unused.extend(file.ignored.iter().cloned());
    Fitted {
        params,
        statistics,
        report,
    }
}
