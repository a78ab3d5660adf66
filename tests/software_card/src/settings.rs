//! The card's settings, from the environment.

use crate::faults::Requests;
use ptx_emulator::Arithmetic;
use std::path::PathBuf;

/// The card's properties, and the failures and the report to make.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    /// Whose arithmetic the tensor cores follow.
    pub(crate) arithmetic: Arithmetic,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Whether there is stream-ordered memory.
    pub(crate) pools: bool,
    /// Failures on request.
    pub(crate) requests: Requests,
    /// Where the report goes.
    pub(crate) report: Option<PathBuf>,
}

impl Settings {
    /// Reads the variables.
    ///
    /// # Panics
    /// If a value is invalid. The process ends, and with it the test that set the value.
    pub(crate) fn read() -> Self {
        fn variable<T>(name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            let parsed = parse(&value);
            assert!(
                parsed.is_some(),
                "software card: {name}={value} makes no sense"
            );
            parsed
        }
        let pair = |text: &str| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let number = |text: &str| text.parse::<u64>().ok();
        let capability = variable("SOFTWARE_CARD_CAPABILITY", pair).unwrap_or((8, 0));
        let named = |name: &str| name.parse::<Arithmetic>().ok();
        Settings {
            capability,
            arithmetic: variable("SOFTWARE_CARD_ARITHMETIC", named)
                .unwrap_or(Arithmetic::of_capability(capability)),
            memory: variable("SOFTWARE_CARD_MEMORY", number).unwrap_or(16 << 10) << 20,
            pools: variable("SOFTWARE_CARD_POOLS", number) != Some(0),
            requests: variable("SOFTWARE_CARD_FAIL", Requests::parse).unwrap_or_default(),
            report: variable("SOFTWARE_CARD_REPORT", |text| Some(text.into())),
        }
    }

    /// Bytes of shared memory that a block may have.
    pub(crate) fn shared_per_block(&self) -> u32 {
        match self.capability {
            (7, _) => 64 << 10,
            (8, 0 | 7) => 163 << 10,
            (8, _) | (12, _) => 99 << 10,
            _ => 227 << 10,
        }
    }
}
