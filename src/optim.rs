//! The optimizer's conventions: which SGD, who decays, and how the learning rate runs.

use crate::backend::{SgdForm, SgdStep};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a parameter is, for the question whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A convolution's filter.
    Filter,
    /// A filter that is part of the network's structure: it has no gradient and never changes.
    Fixed,
    /// A convolution's bias.
    Bias,
    /// gamma or beta of a batch norm.
    BatchNorm,
    /// PReLU's slopes.
    Slope,
    /// The weights of the layer that makes the embedding.
    EmbeddingFilter,
    /// Its bias.
    EmbeddingBias,
    /// The head's class rows.
    ClassRows,
}

/// How a decay value enters the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecayForm {
    /// PyTorch's `weight_decay`: adds value w.
    #[default]
    Torch,
    /// Keras's `l2(value)`, value sum(w^2) in the loss: adds 2 value w.
    KerasL2,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// None.
    #[default]
    None,
    /// All, batch norm and biases included (InsightFace).
    All,
    /// Filters, the embedding's weights and class rows; no batch norm, bias or slope.
    WeightsOnly,
    /// Weights and bias of the embedding layer, and class rows (the TensorFlow project `face_recognition_tf2`).
    HeadAndEmbedding,
    /// Weights and bias of the embedding layer (`arcface-tf2`).
    Embedding,
}

/// Decay: how much, in which convention, on which parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decay {
    /// The convention's number.
    pub value: f32,
    /// The convention.
    pub form: DecayForm,
    /// Who decays.
    pub coverage: Coverage,
}

impl Decay {
    /// The decay of a parameter: the gradient of (decay / 2) w^2 is added to its own. 0 where it is not covered.
    pub fn of(&self, role: Role) -> f32 {
        let covered = match self.coverage {
            Coverage::None => false,
            Coverage::All => role != Role::Fixed,
            Coverage::WeightsOnly => {
                matches!(role, Role::Filter | Role::EmbeddingFilter | Role::ClassRows)
            }
            Coverage::HeadAndEmbedding => matches!(
                role,
                Role::EmbeddingFilter | Role::EmbeddingBias | Role::ClassRows
            ),
            Coverage::Embedding => matches!(role, Role::EmbeddingFilter | Role::EmbeddingBias),
        };
        match (covered, self.form) {
            (false, _) => 0.0,
            (true, DecayForm::Torch) => self.value,
            (true, DecayForm::KerasL2) => 2.0 * self.value,
        }
    }
}

/// A stretch of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Span {
    /// Epochs, also in fractions.
    Epochs(f64),
    /// Steps.
    Steps(u64),
}

impl Span {
    fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Span::Epochs(epochs) => (epochs * steps_per_epoch as f64).round() as u64,
            Span::Steps(steps) => steps,
        }
    }
}

/// Points in training, counted from its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Milestones {
    /// The beginnings of these epochs, the first being 0.
    Epochs(Vec<u64>),
    /// These steps, the first being 0.
    Steps(Vec<u64>),
}

impl Milestones {
    fn passed(&self, step: u64, steps_per_epoch: u64) -> usize {
        let (points, unit) = match self {
            Milestones::Epochs(points) => (points, steps_per_epoch),
            Milestones::Steps(points) => (points, 1),
        };
        points
            .iter()
            .filter(|p| p.saturating_mul(unit) <= step)
            .count()
    }
}

/// How the learning rate runs after the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Course {
    /// The same throughout.
    #[default]
    Constant,
    /// Multiplied by `factor` at each milestone.
    Steps {
        /// Where.
        at: Milestones,
        /// By what.
        factor: f32,
    },
    /// A straight line from the end of the warm-up to 0 at the end of training.
    Linear,
    /// Half a cosine from the end of the warm-up to 0 at the end of training.
    Cosine,
}

/// The learning rate's course, with a warm-up before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// After the warm-up.
    pub course: Course,
    /// A straight line from 0 at step 0 to the full rate. It takes at most a third of the run, or a short run would
    /// hardly learn at the full rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Span>,
    /// Steps at which a linear or cosine course begins again, after a warm-up, and reaches 0 at the next of them or at the
    /// end of training. Other courses go on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<u64>,
}

impl Schedule {
    /// The steps from which and to which the course runs that `step` is part of: all, or between two restarts.
    fn stretch(&self, step: u64, total_steps: u64) -> (u64, u64) {
        let restarts = match self.course {
            Course::Linear | Course::Cosine => &self.restarts[..],
            Course::Constant | Course::Steps { .. } => &[],
        };
        let begin = restarts.iter().rfind(|restart| **restart <= step);
        let end = restarts.iter().find(|restart| **restart > step);
        let begin = begin.copied().unwrap_or(0);
        let end = end.copied().unwrap_or(total_steps);
        (begin, end.max(begin))
    }

    /// Steps of the warm-up as it is asked for.
    pub fn warm_up_asked(&self, steps_per_epoch: u64) -> u64 {
        self.warm_up.map_or(0, |span| span.steps(steps_per_epoch))
    }

    /// Steps of the warm-up before the course that `step` is part of: those asked for, or a third of the course.
    pub fn warm_up(&self, step: u64, steps_per_epoch: u64, total_steps: u64) -> u64 {
        let (begin, end) = self.stretch(step, total_steps);
        self.warm_up_asked(steps_per_epoch).min((end - begin) / 3)
    }

    /// The factor on the learning rate at `step`, counted from 0, of `total_steps`.
    pub fn factor(&self, step: u64, steps_per_epoch: u64, total_steps: u64) -> f64 {
        let (begin, end) = self.stretch(step, total_steps);
        let warm_up = self.warm_up(step, steps_per_epoch, total_steps);
        let done = step - begin;
        if done < warm_up {
            return done as f64 / warm_up as f64;
        }
        // The fraction of the course done after warm-up.
        let over = || {
            let length = (end - begin).saturating_sub(warm_up);
            if length == 0 {
                1.0
            } else {
                ((done - warm_up) as f64 / length as f64).min(1.0)
            }
        };
        match &self.course {
            Course::Constant => 1.0,
            Course::Steps { at, factor } => {
                f64::from(*factor).powi(at.passed(step, steps_per_epoch) as i32)
            }
            Course::Linear => 1.0 - over(),
            Course::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * over()).cos()),
        }
    }
}

/// SGD with its conventions and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// The rule.
    pub form: SgdForm,
    /// mu.
    pub momentum: f32,
    /// The learning rate before the schedule.
    pub lr: f32,
    /// Largest norm of the backbone's gradient (class rows are never clipped); absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Weight decay.
    pub decay: Decay,
    /// The learning rate's course.
    pub schedule: Schedule,
}

impl Default for Optimizer {
    /// Torch SGD with momentum 0.9 at a constant 0.02; no decay, no clipping.
    fn default() -> Self {
        Optimizer {
            form: SgdForm::Torch,
            momentum: 0.9,
            lr: 0.02,
            // None, so that a file in which it is absent reads as it was written.
            clip: None,
            decay: Decay::default(),
            schedule: Schedule::default(),
        }
    }
}

impl Optimizer {
    /// The learning rate at `step`, counted from 0, of `total_steps`.
    pub fn lr(&self, step: u64, steps_per_epoch: u64, total_steps: u64) -> f32 {
        (f64::from(self.lr) * self.schedule.factor(step, steps_per_epoch, total_steps)) as f32
    }

    /// The numbers of one step.
    pub fn step(&self, step: u64, steps_per_epoch: u64, total_steps: u64) -> SgdStep {
        SgdStep {
            form: self.form,
            lr: self.lr(step, steps_per_epoch, total_steps),
            momentum: self.momentum,
            clip: self.clip,
        }
    }

    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// A negative or infinite rate, decay or factor, a momentum outside [0, 1), a clip or warm-up that is not
    /// positive.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, what: &str, value: f64| {
            if fine {
                Ok(())
            } else {
                Err(Error::Invalid(format!("optimizer: {what}, not {value}")))
            }
        };
        let rate = |v: f32| v.is_finite() && v >= 0.0;
        check(rate(self.lr), "lr must be 0 or more", self.lr.into())?;
        check(
            (0.0..1.0).contains(&self.momentum),
            "momentum must be in [0, 1)",
            self.momentum.into(),
        )?;
        check(
            rate(self.decay.value),
            "decay.value must be 0 or more",
            self.decay.value.into(),
        )?;
        if let Some(clip) = self.clip {
            check(clip > 0.0, "clip must be positive", clip.into())?;
        }
        if let Course::Steps { factor, .. } = self.schedule.course {
            check(
                rate(factor),
                "schedule.course.steps.factor must be 0 or more",
                factor.into(),
            )?;
        }
        let restarts = &self.schedule.restarts;
        if let Some(pair) = restarts.windows(2).find(|pair| pair[0] >= pair[1]) {
            let found = pair[1] as f64;
            check(false, "schedule.restarts must be in order", found)?;
        }
        if let Some(Span::Epochs(epochs)) = self.schedule.warm_up {
            check(
                epochs.is_finite() && epochs >= 0.0,
                "schedule.warm_up.epochs must be 0 or more",
                epochs,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(course: Course, warm_up: Option<Span>) -> Schedule {
        Schedule {
            course,
            warm_up,
            restarts: Vec::new(),
        }
    }

    #[test]
    fn warm_up_is_a_line_from_zero() {
        for warm_up in [Span::Steps(10), Span::Epochs(2.5)] {
            let schedule = schedule(Course::Constant, Some(warm_up));
            let at = |step| schedule.factor(step, 4, 100);
            assert_eq!(at(0), 0.0);
            assert_eq!(at(5), 0.5);
            assert_eq!(at(9), 0.9);
            assert_eq!((at(10), at(99), at(1000)), (1.0, 1.0, 1.0));
        }
    }

    #[test]
    fn steps_fall_at_the_first_step_of_their_epoch() {
        let optimizer = Optimizer {
            lr: 0.01,
            schedule: schedule(
                Course::Steps {
                    at: Milestones::Epochs(vec![5, 10, 15, 20]),
                    factor: 0.1,
                },
                None,
            ),
            ..Optimizer::default()
        };
        let at = |step| optimizer.lr(step, 7, 175);
        assert_eq!((at(0), at(34)), (0.01, 0.01));
        for (step, lr) in [
            (35, 1e-3),
            (69, 1e-3),
            (70, 1e-4),
            (105, 1e-5),
            (140, 1e-6),
            (174, 1e-6),
        ] {
            assert!((f64::from(at(step)) / lr - 1.0).abs() < 1e-6, "{step}");
        }
        let steps = schedule(
            Course::Steps {
                at: Milestones::Steps(vec![3, 6]),
                factor: 0.5,
            },
            None,
        );
        let factors: Vec<f64> = (0..8).map(|s| steps.factor(s, 7, 8)).collect();
        assert_eq!(factors, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn linear_and_cosine_reach_zero_at_the_end() {
        let linear = schedule(Course::Linear, Some(Span::Steps(20)));
        let cosine = schedule(Course::Cosine, Some(Span::Steps(20)));
        for s in [&linear, &cosine] {
            let at = |step| s.factor(step, 10, 120);
            assert_eq!((at(0), at(10), at(20)), (0.0, 0.5, 1.0));
            assert!((at(70) - 0.5).abs() < 1e-12);
            assert!(at(119) > 0.0 && at(119) < 0.011);
            assert!(at(120).abs() < 1e-12 && at(500).abs() < 1e-12);
        }
        assert!((linear.factor(45, 10, 120) - 0.75).abs() < 1e-12);
        let quarter = 0.5 * (1.0 + std::f64::consts::FRAC_PI_4.cos());
        assert!((cosine.factor(45, 10, 120) - quarter).abs() < 1e-12);
    }

    #[test]
    fn a_warm_up_takes_at_most_a_third() {
        for course in [Course::Linear, Course::Cosine, Course::Constant] {
            let schedule = schedule(course, Some(Span::Steps(20)));
            for (total, used) in [(60, 20), (59, 19), (21, 7), (2, 0), (0, 0)] {
                assert_eq!(schedule.warm_up(0, 10, total), used);
                let at = |step| schedule.factor(step, 10, total);
                let rises = (0..used).all(|step| at(step) == step as f64 / used as f64);
                assert!(
                    rises && (total == 0 || at(used) == 1.0),
                    "{schedule:?} {total}"
                );
            }
        }
        let linear = schedule(Course::Linear, Some(Span::Steps(20)));
        assert_eq!(linear.factor(21, 10, 21), 0.0);
        assert_eq!(linear.factor(0, 10, 0), 0.0);
    }

    #[test]
    fn a_restart_begins_the_course_again() {
        for course in [Course::Linear, Course::Cosine] {
            let plain = schedule(course, Some(Span::Steps(4)));
            let restarted = Schedule {
                restarts: vec![30, 50],
                ..plain.clone()
            };
            for step in 0..90 {
                let expected = match step {
                    0..30 => plain.factor(step, 10, 30),
                    30..50 => plain.factor(step - 30, 10, 20),
                    _ => plain.factor(step - 50, 10, 40),
                };
                assert_eq!(restarted.factor(step, 10, 90), expected, "{step}");
            }
        }
        // There is nothing to begin again.
        let constant = Schedule {
            restarts: vec![30],
            ..schedule(Course::Constant, Some(Span::Steps(4)))
        };
        assert_eq!(constant.factor(30, 10, 60), 1.0);
        let wrong = Optimizer {
            schedule: Schedule {
                restarts: vec![30, 30],
                ..Schedule::default()
            },
            ..Optimizer::default()
        };
        assert!(wrong.validate().is_err());
    }

    #[test]
    fn decay_follows_form_and_coverage() {
        let roles = [
            Role::Filter,
            Role::Bias,
            Role::BatchNorm,
            Role::Slope,
            Role::EmbeddingFilter,
            Role::EmbeddingBias,
            Role::ClassRows,
        ];
        for (coverage, covered) in [
            (Coverage::None, [0, 0, 0, 0, 0, 0, 0]),
            (Coverage::All, [1, 1, 1, 1, 1, 1, 1]),
            (Coverage::WeightsOnly, [1, 0, 0, 0, 1, 0, 1]),
            (Coverage::HeadAndEmbedding, [0, 0, 0, 0, 1, 1, 1]),
            (Coverage::Embedding, [0, 0, 0, 0, 1, 1, 0]),
        ] {
            for (form, value) in [(DecayForm::Torch, 5e-4), (DecayForm::KerasL2, 1e-3)] {
                let decay = Decay {
                    value: 5e-4,
                    form,
                    coverage,
                };
                for (role, covered) in roles.iter().zip(covered) {
                    assert_eq!(
                        decay.of(*role),
                        covered as f32 * value,
                        "{coverage:?} {role:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn configuration_reads_as_people_write_it() {
        let seed: Optimizer = toml::from_str(
            r#"
            form = "keras"
            momentum = 0.8
            lr = 0.01
            decay = { value = 5e-4, form = "keras-l2", coverage = "head-and-embedding" }
            schedule = { warm_up = { epochs = 1 }, course = { steps = { at = { epochs = [5, 10] }, factor = 0.1 } } }
            "#,
        )
        .unwrap();
        assert_eq!(seed.form, SgdForm::Keras);
        assert_eq!(seed.decay.of(Role::ClassRows), 1e-3);
        assert_eq!(seed.schedule.warm_up, Some(Span::Epochs(1.0)));
        for text in [
            "clip = 5.0\nschedule = { course = \"linear\" }",
            "schedule = { course = \"cosine\", warm_up = { steps = 9 } }",
        ] {
            let optimizer: Optimizer = toml::from_str(text).unwrap();
            let again: Optimizer = toml::from_str(&toml::to_string(&optimizer).unwrap()).unwrap();
            assert_eq!(optimizer, again);
            let again = serde_json::from_str(&serde_json::to_string(&optimizer).unwrap()).unwrap();
            assert_eq!(optimizer, again);
        }
        assert!(toml::from_str::<Optimizer>("momentun = 0.9").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let default = Optimizer::default;
        assert!(default().validate().is_ok());
        let decay = Decay {
            value: -1.0,
            ..Decay::default()
        };
        for optimizer in [
            Optimizer {
                lr: f32::NAN,
                ..default()
            },
            Optimizer {
                momentum: 1.0,
                ..default()
            },
            Optimizer {
                clip: Some(0.0),
                ..default()
            },
            Optimizer { decay, ..default() },
        ] {
            assert!(
                optimizer
                    .validate()
                    .unwrap_err()
                    .to_string()
                    .starts_with("optimizer: ")
            );
        }
    }
}
