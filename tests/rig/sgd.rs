//! SGD on a parameter slab.

use super::{Case, POISON, Rig, named, noise};
use arcface_cu::Result;
use arcface_cu::backend::{Backend, Element, Segment, SgdForm, SgdNorms, SgdStep, SgdUpdate};

/// Every rule.
pub const FORMS: [SgdForm; 4] = [
    SgdForm::Keras,
    SgdForm::KerasNesterov,
    SgdForm::Torch,
    SgdForm::TorchNesterov,
];

/// Steps by random gradients, one at each learning rate; between the segments lies poison.
#[derive(Clone, Debug)]
pub struct Steps {
    pub step: SgdStep,
    pub lrs: Vec<f32>,
    pub segments: Vec<Segment>,
    /// Elements of the slab.
    pub len: usize,
}

impl Steps {
    /// The numbers that lie in segments.
    fn within(&self, mut values: Vec<f32>) -> Vec<f32> {
        let mut end = 0;
        for segment in &self.segments {
            values[end..segment.offset].fill(POISON);
            end = segment.offset + segment.len;
        }
        values[end..].fill(POISON);
        values
    }
}

impl Case for Steps {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let segments = &self.segments[..];
        let mut params = rig.filled("params", self.within(named("params", self.len)))?;
        let mut momentum = rig.filled("momentum", self.within(named("momentum", self.len)))?;
        let mut shadow = None;
        if rig.element != Element::F32 {
            shadow = Some(rig.poisoned_tensor(self.len)?);
        }
        for (i, lr) in self.lrs.iter().enumerate() {
            let grads = rig.filled("grads", self.within(noise(self.len, 10 + i as u64)))?;
            let mut norms = rig.poisoned(2)?;
            let step = SgdStep {
                lr: *lr,
                ..self.step
            };
            rig.run(|backend| {
                backend.sgd_norms(SgdNorms {
                    params: &params,
                    grads: &grads,
                    segments,
                    norms: &mut norms,
                })?;
                backend.sgd_update(SgdUpdate {
                    step,
                    segments,
                    grads: &grads,
                    norms: &norms,
                    params: &mut params,
                    momentum: &mut momentum,
                    shadow: shadow.as_mut(),
                })
            })?;
            rig.keep([("norms", norms)])?;
        }
        rig.results.extend(shadow.map(|shadow| ("shadow", shadow)));
        rig.keep([("params", params), ("momentum", momentum)])
    }
}
