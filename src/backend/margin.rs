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
    /// A scale that is not positive, a margin that is not finite, a clamp outside [0, 1).
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("margin: {what}")));
        if !(self.scale > 0.0 && self.scale <= 1024.0) {
            return bad(format!("scale must be in (0, 1024], not {}", self.scale));
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

    /// Subtracted from every logit before exp: up to s = 64 exp(s cos) fits a float32 for any number of classes
    /// below 5e10, above that the scale itself is the bound.
    pub fn offset(&self) -> f32 {
        if self.scale > 64.0 { self.scale } else { 0.0 }
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
