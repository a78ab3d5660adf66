//! The margin: how the target's cosine becomes its logit, and the slope of that map.
//!
//! logit = s cos(m1 theta + m2) - s m3 with theta = acos(cos). ArcFace is (1, m, 0) (Deng et al., CVPR 2019,
//! eq. 4), CosFace (1, 0, m) (Wang et al., CVPR 2018), SphereFace (m, 0, 0). The formulas stand below the backends,
//! since each evaluates them inside its fused walk over the classes.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What to do where theta + m2 would pass pi and cos(theta + m2) would rise again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PiGuard {
    /// Nothing.
    #[default]
    None,
    /// cos - m2 sin(m2) where cos <= cos(pi - m2).
    Linear,
}

/// How the gradient passes the margin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarginGradient {
    /// The derivative of the formula: for ArcFace, s sin(theta + m) / sin(theta).
    #[default]
    Full,
    /// As if the margin were a constant: s.
    StraightThrough,
}

/// The head's loss: scale, margins and their conventions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Margin {
    /// Logits are scale times cosine; without `normalise`, the products themselves and no scale.
    pub scale: f32,
    /// Factor on the target's angle.
    pub m1: f32,
    /// Added to the target's angle, in radians.
    pub m2: f32,
    /// Taken from the target's cosine.
    pub m3: f32,
    /// Guard beyond pi.
    pub pi_guard: PiGuard,
    /// The target's cosine is clamped to +-(1 - clamp) before the angle is taken.
    pub clamp: f32,
    /// Gradient through the margin.
    pub gradient: MarginGradient,
    /// Whether embeddings and class rows are brought to unit length; false is plain softmax without a bias.
    pub normalise: bool,
}

impl Default for Margin {
    fn default() -> Self {
        Margin {
            scale: 64.0,
            m1: 1.0,
            m2: 0.5,
            m3: 0.0,
            pi_guard: PiGuard::None,
            clamp: 1e-7,
            gradient: MarginGradient::Full,
            normalise: true,
        }
    }
}

impl Margin {
    /// ArcFace with the full gradient.
    pub fn arcface(scale: f32, m: f32) -> Self {
        Margin {
            scale,
            m2: m,
            ..Margin::default()
        }
    }

    /// CosFace.
    pub fn cosface(scale: f32, m: f32) -> Self {
        Margin {
            scale,
            m2: 0.0,
            m3: m,
            ..Margin::default()
        }
    }

    /// Plain softmax on the products of embeddings and class rows.
    pub fn softmax() -> Self {
        Margin {
            scale: 1.0,
            m2: 0.0,
            normalise: false,
            ..Margin::default()
        }
    }

    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// A scale outside (0, 128], a margin that is not finite, a clamp outside [0, 1).
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("margin: {what}")));
        // Above 128 a row's exps could all underflow in float32 behind the offset.
        if !(self.scale > 0.0 && self.scale <= 128.0) {
            return bad(format!("scale must be in (0, 128], not {}", self.scale));
        }
        if !(self.m1.is_finite() && self.m2.is_finite() && self.m3.is_finite() && self.m1 > 0.0) {
            return bad(format!(
                "m1 must be positive and m1, m2, m3 finite, not {}, {}, {}",
                self.m1, self.m2, self.m3
            ));
        }
        if !(0.0..1.0).contains(&self.clamp) {
            return bad(format!("clamp must be in [0, 1), not {}", self.clamp));
        }
        Ok(())
    }

    /// Subtracted from every logit before exp. exp(64) times 5e10 classes fits a float32, so that nothing need be
    /// taken away while no logit exceeds 64; above that, what the largest logit exceeds 64 by. (Subtracting the
    /// largest logit itself would let the exps of a whole row underflow: at the start all cosines are near 0.)
    pub fn offset(&self) -> f32 {
        let largest = self.scale * (1.0 + (-self.m3).max(0.0));
        (largest - 64.0).max(0.0)
    }

    /// The target's logit and its derivative with respect to the cosine.
    ///
    /// For plain softmax `cos` is the product itself, and so is the logit. Where the clamp is active the full
    /// gradient is that of the clamped point: a clamp that stopped the gradient would leave a row that points away
    /// from its class there for ever.
    pub fn target(&self, cos: f32) -> (f32, f32) {
        if !self.normalise {
            return (cos, 1.0);
        }
        let s = f64::from(self.scale);
        let (m1, m2, m3) = (f64::from(self.m1), f64::from(self.m2), f64::from(self.m3));
        // The bound in f64: in f32, 1 - 1e-7 is one of two neighbours of 1 and 1 - 1e-8 is 1 itself.
        let limit = 1.0 - f64::from(self.clamp);
        let cos = f64::from(cos).clamp(-limit, limit);
        let guarded = self.pi_guard == PiGuard::Linear && cos <= (std::f64::consts::PI - m2).cos();
        let (logit, slope) = if m1 == 1.0 && m2 == 0.0 {
            (cos - m3, 1.0)
        } else if guarded {
            (cos - m2 * m2.sin() - m3, 1.0)
        } else {
            let theta = cos.acos();
            let angle = m1 * theta + m2;
            // With clamp = 0 sin(theta) can be 0; the smallest positive float32 sine keeps the slope finite.
            let sin = (1.0 - cos * cos).sqrt().max(1e-7);
            (angle.cos() - m3, m1 * angle.sin() / sin)
        };
        let slope = match self.gradient {
            MarginGradient::Full => slope,
            MarginGradient::StraightThrough => 1.0,
        };
        ((s * logit) as f32, (s * slope) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivative of the logit by central differences in f64, for a margin whose target is smooth at `cos`.
    fn slope(margin: &Margin, cos: f64) -> f64 {
        let logit = |cos: f64| {
            let (s, m1) = (f64::from(margin.scale), f64::from(margin.m1));
            let angle = m1 * cos.acos() + f64::from(margin.m2);
            s * (angle.cos() - f64::from(margin.m3))
        };
        let h = 1e-6;
        (logit(cos + h) - logit(cos - h)) / (2.0 * h)
    }

    #[test]
    fn logits_and_slopes_are_the_formula_and_its_derivative() {
        let sphereface = Margin {
            m1: 1.35,
            m2: 0.0,
            ..Margin::arcface(30.0, 0.0)
        };
        let combined = Margin {
            m1: 0.9,
            m2: 0.4,
            m3: 0.15,
            ..Margin::default()
        };
        for margin in [
            Margin::arcface(64.0, 0.5),
            sphereface,
            combined,
            Margin::cosface(64.0, 0.35),
        ] {
            for cos in [-0.97f32, -0.6, -0.1, 0.0, 0.3, 0.81, 0.99] {
                let (logit, actual) = margin.target(cos);
                let theta = f64::from(cos).acos();
                let angle = f64::from(margin.m1) * theta + f64::from(margin.m2);
                let expected = f64::from(margin.scale) * (angle.cos() - f64::from(margin.m3));
                assert!(
                    (f64::from(logit) - expected).abs() <= 1e-5,
                    "{margin:?} {cos}: {logit}"
                );
                let expected = slope(&margin, f64::from(cos));
                let error = (f64::from(actual) - expected).abs();
                assert!(
                    error <= 1e-5 * expected.abs() + 1e-3,
                    "{margin:?} {cos}: {actual}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn straight_through_changes_the_slope_alone() {
        let full = Margin::arcface(64.0, 0.5);
        let straight = Margin {
            gradient: MarginGradient::StraightThrough,
            ..full
        };
        for cos in [-0.9, 0.2, 0.7] {
            assert_eq!(straight.target(cos), (full.target(cos).0, 64.0));
        }
    }

    #[test]
    fn the_guard_begins_at_pi_minus_m_and_is_continuous_in_direction() {
        let guarded = Margin {
            pi_guard: PiGuard::Linear,
            ..Margin::arcface(10.0, 0.5)
        };
        let edge = (std::f64::consts::PI - 0.5).cos() as f32;
        let (below, above) = (edge - 1e-3, edge + 1e-3);
        let line = |cos: f32| 10.0 * (cos - 0.5 * 0.5f32.sin());
        assert!((guarded.target(below).0 - line(below)).abs() < 1e-5);
        assert_eq!(guarded.target(below).1, 10.0);
        assert_eq!(
            guarded.target(above),
            Margin::arcface(10.0, 0.5).target(above)
        );
    }

    #[test]
    fn the_clamp_keeps_slopes_finite_and_alive() {
        for clamp in [0.0, 1e-7, 1e-3] {
            let margin = Margin {
                clamp,
                ..Margin::arcface(64.0, 0.5)
            };
            for cos in [-1.0, 1.0, 1.000_000_2] {
                let (logit, slope) = margin.target(cos);
                assert!(
                    logit.is_finite() && slope.is_finite() && slope != 0.0,
                    "{clamp} {cos}"
                );
            }
        }
    }

    #[test]
    fn offsets_keep_exps_in_range() {
        for (margin, offset) in [
            (Margin::arcface(30.0, 0.5), 0.0),
            (Margin::arcface(64.0, 0.5), 0.0),
            (Margin::arcface(100.0, 0.5), 36.0),
            (Margin::cosface(64.0, -0.25), 16.0),
            (Margin::softmax(), 0.0),
        ] {
            assert_eq!(margin.offset(), offset, "{margin:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Margin::default().validate().is_ok());
        let default = Margin::default;
        for margin in [
            Margin {
                scale: 0.0,
                ..default()
            },
            Margin {
                scale: f32::NAN,
                ..default()
            },
            Margin {
                scale: 1000.0,
                ..default()
            },
            Margin {
                m1: 0.0,
                ..default()
            },
            Margin {
                m2: f32::INFINITY,
                ..default()
            },
            Margin {
                clamp: 1.0,
                ..default()
            },
        ] {
            assert!(
                margin
                    .validate()
                    .unwrap_err()
                    .to_string()
                    .starts_with("margin: ")
            );
        }
    }
}
