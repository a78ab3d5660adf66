//! The arguments that make a configuration: `train`, `check` and `plan` share them.

use crate::Result;
use crate::recipe::config::Config;
use crate::recipe::presets;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The preset where none is named.
pub(super) const DEFAULT_PRESET: &str = "small";

/// A preset, a file over it, settings over that.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RecipeArgs {
    #[arg(long, value_name = "NAME", help = preset_help())]
    preset: Option<String>,
    /// TOML file with settings over the preset's, as `train --print-config` prints them. Default: none.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A single setting over both, for example --set optimizer.momentum=0.9; may be given again. Default: none.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Images per step. Default: the preset's.
    #[arg(long, value_name = "N", value_parser = whole_number)]
    batch_size: Option<u64>,
}

/// A whole number as a setting; TOML's largest is that of 63 bits.
pub(super) fn whole_number(text: &str) -> std::result::Result<u64, String> {
    match text.parse::<u64>() {
        Ok(number) if number > i64::MAX as u64 => Err(format!("the largest is {}", i64::MAX)),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn preset_help() -> String {
    format!(
        "Recipe to start from: {} [default: {DEFAULT_PRESET}]",
        presets::NAMES.join(", ")
    )
}

impl RecipeArgs {
    /// The file of settings.
    pub(super) fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The preset in use.
    pub(super) fn preset(&self) -> Result<String> {
        let in_file = match (&self.preset, &self.config) {
            (None, Some(path)) => Config::preset_in(path)?,
            _ => None,
        };
        let named = self.preset.clone().or(in_file);
        Ok(named.unwrap_or_else(|| DEFAULT_PRESET.to_owned()))
    }

    /// Whether a file or --set may set `key`.
    pub(super) fn sets(&self, key: &str) -> bool {
        let named = |setting: &String| setting.split_once('=').is_some_and(|(k, _)| k == key);
        self.config.is_some() || self.settings.iter().any(named)
    }

    /// What the arguments name of the network and its input: the keys of `model`.
    ///
    /// # Errors
    /// As [`Config::named_in_model`].
    pub(super) fn named_in_model(&self) -> Result<BTreeSet<String>> {
        Config::named_in_model(self.config.as_deref(), &self.settings)
    }

    /// The configuration, with the command's own `flags` (as settings) over it. Where neither preset nor file is named,
    /// it starts from `stored`, if there is one.
    ///
    /// # Errors
    /// Wrong usage.
    pub(super) fn config(&self, stored: Option<&Config>, flags: &[String]) -> Result<Config> {
        let base = match stored {
            Some(stored) if self.preset.is_none() && self.config.is_none() => stored.clone(),
            _ => presets::get(&self.preset()?)?,
        };
        let mut settings = self.settings.clone();
        settings.extend(self.batch_size.map(|n| format!("train.batch_size={n}")));
        settings.extend_from_slice(flags);
        base.with(self.config.as_deref(), &settings)
    }
}

/// The presets' own values, for the end of `--help`.
pub(super) fn presets_table() -> String {
    let mut text = String::from(
        "Presets (every setting: train --preset NAME --print-config):\n  \
         name                     batch  epochs  lr     momentum  decay   scale  margin  embedding  seed\n",
    );
    for name in presets::NAMES {
        let Ok(c) = presets::get(name) else {
            continue;
        };
        let Ok(d) = c.model.embedding_size() else {
            continue;
        };
        let (o, margin) = (&c.optimizer, &c.head.margin);
        text += &format!(
            "  {name:23}  {:<5}  {:<6}  {:<5}  {:<8}  {:<6}  {:<5}  {:<6}  {:<9}  {}\n",
            c.train.batch_size,
            c.train.epochs,
            o.lr,
            o.momentum,
            o.decay.value,
            margin.scale,
            margin.m2,
            d,
            c.train.seed,
        );
    }
    text
}
