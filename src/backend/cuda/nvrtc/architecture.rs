//! The architecture that kernels are compiled for: a card's own machine code, or PTX, which the driver compiles itself.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fmt;

/// An architecture that kernels are compiled for: `sm_90a` gives a cubin, `compute_80` gives PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    name: String,
    ptx: bool,
    capability: (u32, u32),
    suffix: Option<char>,
}

impl Architecture {
    /// The environment variable that chooses one.
    pub const VARIABLE: &str = "ARCFACE_CU_ARCH";

    /// The machine code of a card of this compute capability.
    pub fn of((major, minor): (u32, u32)) -> Self {
        // Hopper and the large Blackwell have instructions that need sm_90a and sm_100a, which no other card runs.
        let suffix = match (major, minor) {
            (9, 0) | (10, 0) => Some('a'),
            _ => None,
        };
        let letter = suffix.map(String::from).unwrap_or_default();
        Architecture {
            name: format!("sm_{major}{minor}{letter}"),
            ptx: false,
            capability: (major, minor),
            suffix,
        }
    }

    /// The architecture that the environment asks for, if any; `variable` returns the value of a variable.
    ///
    /// # Errors
    /// The value is not an architecture.
    pub fn chosen(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>> {
        let value = variable(Self::VARIABLE).filter(|value| !value.is_empty());
        let parse = |value: OsString| {
            let name = value.to_string_lossy();
            Self::parse(&name).ok_or_else(|| {
                Error::Usage(format!(
                    "{} is {name:?}, which is not an architecture: expected sm_N for machine code or compute_N for PTX, such as sm_90a or compute_80",
                    Self::VARIABLE
                ))
            })
        };
        value.map(parse).transpose()
    }

    /// The architecture of this name, such as `sm_90a` or `compute_80`.
    pub fn parse(name: &str) -> Option<Self> {
        let (kind, number) = name.split_once('_')?;
        let ptx = match kind {
            "sm" => false,
            "compute" => true,
            _ => return None,
        };
        let suffix = number.chars().last().filter(|c| matches!(c, 'a' | 'f'));
        let digits = number.strip_suffix(['a', 'f']).unwrap_or(number);
        if !(2..=3).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u32 = digits.parse().ok()?;
        Some(Architecture {
            name: name.to_owned(),
            ptx,
            capability: (number / 10, number % 10),
            suffix,
        })
    }

    /// Its name, as NVRTC takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it gives PTX, which the driver compiles for the card.
    pub fn is_ptx(&self) -> bool {
        self.ptx
    }

    /// Whether a card of this compute capability runs it. Machine code runs on later cards of its generation, PTX on
    /// all later ones; with the suffix `a` both run only on their own card, with `f` only on cards of its generation.
    pub fn runs_on(&self, card: (u32, u32)) -> bool {
        let generation = card.0 == self.capability.0 && card.1 >= self.capability.1;
        match self.suffix {
            Some('a') => card == self.capability,
            Some(_) => generation,
            None if self.ptx => card >= self.capability,
            None => generation,
        }
    }
}

/// Whether a driver that speaks CUDA `driver` loads what NVRTC `version` makes: machine code of its own major version or
/// an older one, PTX of its own version or an older one, since each version has its own PTX.
pub(super) fn driver_loads(driver: (u32, u32), version: (u32, u32), ptx: bool) -> bool {
    match ptx {
        true => version <= driver,
        false => version.0 <= driver.0,
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(value: &str) -> Result<Option<Architecture>> {
        Architecture::chosen(|name| (name == Architecture::VARIABLE).then(|| value.into()))
    }

    #[test]
    fn a_card_has_its_architecture() {
        for (capability, name) in [
            ((7, 5), "sm_75"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100a"),
            ((12, 0), "sm_120"),
        ] {
            let architecture = Architecture::of(capability);
            assert_eq!(architecture.name(), name);
            assert!(!architecture.is_ptx() && architecture.runs_on(capability));
            assert_eq!(chosen(name).unwrap(), Some(architecture));
        }
    }

    #[test]
    fn the_environment_chooses() {
        assert_eq!(Architecture::chosen(|_| None).unwrap(), None);
        assert_eq!(chosen("").unwrap(), None);
        let ptx = chosen("compute_80").unwrap().unwrap();
        assert!(ptx.is_ptx() && ptx.name() == "compute_80");
        for wrong in [
            "80",
            "sm80",
            "sm_8",
            "sm_9000",
            "sm_90b",
            "SM_80",
            "sm_",
            "gfx_90",
            "compute_8.0",
        ] {
            let error = chosen(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(
                text.contains(wrong) && text.contains(Architecture::VARIABLE),
                "{text}"
            );
        }
    }

    #[test]
    fn a_card_runs_what_was_made_for_it_or_an_older_one() {
        let runs = |name: &str, card| chosen(name).unwrap().unwrap().runs_on(card);
        for (name, card, expected) in [
            ("sm_80", (8, 6), true),
            ("sm_86", (8, 0), false),
            ("sm_80", (9, 0), false),
            ("sm_90a", (9, 0), true),
            ("sm_100a", (10, 3), false),
            ("sm_100f", (10, 3), true),
            ("compute_80", (12, 0), true),
            ("compute_90", (8, 9), false),
            ("compute_90a", (10, 0), false),
            ("compute_100f", (12, 0), false),
        ] {
            assert_eq!(runs(name, card), expected, "{name} on {card:?}");
        }
    }
}
