//! The typed configuration of a run: a preset, a TOML file over it, single settings over that.
//!
//! A checkpoint stores the whole of it, so that nothing that decided a number is lost.

use crate::backend::margin::Margin;
use crate::backend::{Backend, Element, InputTransform};
use crate::base::text;
use crate::base::text::shown;
use crate::data::formats::text::Text;
use crate::data::picture::augment::Augment;
use crate::graph::Model;
use crate::graph::layers::Layers;
use crate::head::Distribution;
use crate::models::{self, Embedding, Network};
use crate::optim::Optimizer;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use toml::{Table, Value};

/// Width and height of the input of the presets' networks, in pixels.
pub const IMAGE_SIZE: usize = 112;

/// No setting lies in more tables than this.
const DEEPEST: usize = 16;

/// Everything that determines a run's numbers, except the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The preset that this configuration started from.
    pub preset: String,
    /// The network.
    pub model: ModelConfig,
    /// What is done to each training picture.
    pub augment: Augment,
    /// The ArcFace layer.
    pub head: HeadConfig,
    /// Optimizer and learning-rate schedule.
    pub optimizer: Optimizer,
    /// The run itself.
    pub train: TrainConfig,
}

/// What activations and their gradients are stored in, and products multiply. Parameters, statistics and sums are float32
/// in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// What is best on the device.
    #[default]
    Auto,
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// The elements on this device.
    ///
    /// # Errors
    /// A device without bfloat16 that is asked for it.
    pub fn element(self, backend: &impl Backend) -> Result<Element> {
        let element = match self {
            Precision::Auto => backend.best_element(),
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        if backend.supports(element) {
            Ok(element)
        } else {
            Err(Error::Invalid(format!(
                "{element} cannot be computed on {}: use --precision f32",
                backend.describe()
            )))
        }
    }
}

impl From<Element> for Precision {
    fn from(element: Element) -> Self {
        match element {
            Element::F32 => Precision::F32,
            Element::Bf16 => Precision::Bf16,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Precision::Auto),
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err("expected auto, f32 or bf16".to_owned()),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Auto => "auto",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// The network and its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ModelFields", into = "ModelFields")]
pub struct ModelConfig {
    /// Its layers.
    pub network: NetworkConfig,
    /// From pixels 0..255 to the network's numbers.
    pub input: InputTransform,
}

/// The layers of a network.
#[derive(Clone, Debug, PartialEq)]
pub enum NetworkConfig {
    /// A network of this library.
    Known(KnownNetwork),
    /// Any other.
    Custom(Layers),
}

/// A network of this library.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnownNetwork {
    /// The backbone.
    pub backbone: Network,
    /// The layers that make the embedding.
    pub embedding: Embedding,
    /// The fraction of batch norm's running statistics that a step keeps; absent: the network's own.
    pub batch_norm_momentum: Option<f32>,
}

/// A [`ModelConfig`] as files hold it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFields {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    embedding: Option<Embedding>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    batch_norm_momentum: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    layers: Option<Layers>,
    input: InputTransform,
}

impl TryFrom<ModelFields> for ModelConfig {
    type Error = &'static str;

    fn try_from(fields: ModelFields) -> Result<Self, &'static str> {
        let ModelFields {
            network,
            embedding,
            batch_norm_momentum,
            layers,
            input,
        } = fields;
        let network = match (network, embedding, batch_norm_momentum, layers) {
            (Some(backbone), Some(embedding), batch_norm_momentum, None) => {
                NetworkConfig::Known(KnownNetwork {
                    backbone,
                    embedding,
                    batch_norm_momentum,
                })
            }
            (None, None, None, Some(layers)) => NetworkConfig::Custom(layers),
            _ => return Err("model takes network and embedding, or layers"),
        };
        Ok(ModelConfig { network, input })
    }
}

impl From<ModelConfig> for ModelFields {
    fn from(ModelConfig { network, input }: ModelConfig) -> Self {
        let (known, layers) = match network {
            NetworkConfig::Known(known) => (Some(known), None),
            NetworkConfig::Custom(layers) => (None, Some(layers)),
        };
        ModelFields {
            network: known.map(|known| known.backbone),
            embedding: known.map(|known| known.embedding),
            batch_norm_momentum: known.and_then(|known| known.batch_norm_momentum),
            layers,
            input,
        }
    }
}

/// The ArcFace layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Scale, margins and their conventions.
    pub margin: Margin,
    /// How class rows start.
    pub init: Distribution,
}

/// The run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Images per step, N.
    pub batch_size: usize,
    /// Passes over the data.
    pub epochs: u64,
    /// Decides initial weights, order, augmentation and dropout.
    pub seed: u64,
    /// Steps between checkpoints, in addition to the one after each epoch; 0: none.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// What activations and gradients are stored in; a run records what it was. Checkpoints from before there was a choice
    /// have none: they were float32.
    #[serde(default = "before_there_was_a_choice")]
    pub precision: Precision,
}

fn before_there_was_a_choice() -> Precision {
    Precision::F32
}

impl ModelConfig {
    /// With a network of this library.
    pub fn known(backbone: Network, embedding: Embedding, input: InputTransform) -> Self {
        ModelConfig {
            network: NetworkConfig::Known(KnownNetwork {
                backbone,
                embedding,
                batch_norm_momentum: None,
            }),
            input,
        }
    }

    /// Builds the network.
    ///
    /// # Errors
    /// Settings that make no sense together.
    pub fn build(&self) -> Result<Model> {
        match &self.network {
            NetworkConfig::Known(known) => known.build(),
            NetworkConfig::Custom(layers) => layers.build(),
        }
    }

    /// Embedding size D.
    ///
    /// # Errors
    /// As [`ModelConfig::build`].
    pub fn embedding_size(&self) -> Result<usize> {
        Ok(self.build()?.embedding_size())
    }

    /// Sets the embedding size of a known network; a custom network keeps its own.
    pub fn set_embedding_size(&mut self, d: usize) {
        if let NetworkConfig::Known(known) = &mut self.network {
            known.embedding = known.embedding.with_size(d);
        }
    }

    /// The name of a known network; "custom" for any other.
    pub fn network_name(&self) -> &'static str {
        match &self.network {
            NetworkConfig::Known(known) => known.backbone.name(),
            NetworkConfig::Custom(_) => "custom",
        }
    }
}

impl KnownNetwork {
    /// Builds the network.
    ///
    /// # Errors
    /// Settings that make no sense together.
    pub fn build(&self) -> Result<Model> {
        let model = models::build(self.backbone, IMAGE_SIZE, self.embedding)?;
        match self.batch_norm_momentum {
            None => Ok(model),
            Some(kept) if (0.0..1.0).contains(&kept) => Ok(model.with_batch_norm_momentum(kept)),
            Some(kept) => Err(Error::Invalid(format!(
                "model.batch_norm_momentum must be in [0, 1), not {kept}"
            ))),
        }
    }
}

impl Config {
    /// This configuration with a TOML file and `key=value` settings (dotted keys) over it, in that order.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn with(&self, file: Option<&Path>, settings: &[String]) -> Result<Self> {
        let known = self.to_table()?;
        let mut table = known.clone();
        if let Some(path) = file {
            merge(&mut table, read_table(path)?);
            // A mistake in the file is reported with the file's name.
            parse(&table, &known).map_err(|e| Error::Usage(format!("{}: {e}", shown(path))))?;
        }
        for setting in settings {
            merge(&mut table, parse_setting(setting)?);
        }
        let config = parse(&table, &known)?;
        config.validate()?;
        Ok(config)
    }

    /// The keys of `model` that a TOML file and settings name.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; a setting is none.
    pub fn named_in_model(file: Option<&Path>, settings: &[String]) -> Result<BTreeSet<String>> {
        let mut table = match file {
            Some(path) => read_table(path)?,
            None => Table::new(),
        };
        for setting in settings {
            merge(&mut table, parse_setting(setting)?);
        }
        let model = table.get("model").and_then(Value::as_table);
        Ok(model.into_iter().flat_map(Table::keys).cloned().collect())
    }

    /// This recipe with another network.
    ///
    /// # Errors
    /// The network's input is not square.
    pub fn with_network(mut self, model: &Model) -> Result<Self> {
        self.model.network = NetworkConfig::Custom(Layers::of(model)?);
        Ok(self)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn validate(&self) -> Result<()> {
        self.to_table()?;
        let usage = |error: Error| Error::Usage(error.to_string());
        self.head.margin.validate().map_err(usage)?;
        self.optimizer.validate().map_err(usage)?;
        let model = self.model.build().map_err(usage)?;
        self.augment.check(model.input_shape().h).map_err(usage)?;
        let positive = [
            ("train.batch_size", self.train.batch_size as u64),
            ("train.epochs", self.train.epochs),
            ("train.keep_checkpoints", self.train.keep_checkpoints as u64),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::Usage(format!("{name} must be at least 1")));
            }
        }
        Ok(())
    }

    /// The preset that a configuration file says it started from, if it says so.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn preset_in(path: &Path) -> Result<Option<String>> {
        let table = read_table(path)?;
        Ok(table
            .get("preset")
            .and_then(Value::as_str)
            .map(str::to_owned))
    }

    /// The configuration as TOML text.
    ///
    /// # Errors
    /// A whole number is larger than those of TOML, which have 63 bits.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(&self.to_table()?).expect("a table is TOML"))
    }

    /// The settings that are not the same in `other`: key, value here, value there ("absent" where there is none).
    ///
    /// # Errors
    /// As [`Config::to_toml`].
    pub fn differences(&self, other: &Config) -> Result<Vec<[String; 3]>> {
        let flat = |config: &Config| {
            let mut values = BTreeMap::new();
            flatten("", &Value::Table(config.to_table()?), &mut values);
            Ok::<_, Error>(values)
        };
        let (here, there) = (flat(self)?, flat(other)?);
        let keys: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        let value = |values: &BTreeMap<String, String>, key| {
            values.get(key).cloned().unwrap_or_else(|| "absent".into())
        };
        Ok(keys
            .into_iter()
            .map(|key| [key.clone(), value(&here, key), value(&there, key)])
            .filter(|[_, here, there]| here != there)
            .collect())
    }

    fn to_table(&self) -> Result<Table> {
        let mut table = Table::try_from(self).map_err(|e| {
            Error::Invalid(format!(
                "the configuration cannot be TOML, whose largest number is {}: {e}",
                i64::MAX
            ))
        })?;
        table.iter_mut().for_each(|(_, value)| shorten(value));
        Ok(table)
    }
}

/// Gives a number that came from an `f32` the fewest digits that read back as the same `f32`: 0.05, not
/// 0.05000000074505806.
fn shorten(value: &mut Value) {
    match value {
        Value::Float(x) if f64::from(*x as f32) == *x => {
            *x = (*x as f32)
                .to_string()
                .parse()
                .expect("a printed number reads back");
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| shorten(value)),
        _ => {}
    }
}

/// Every value that is not a table, as text under its dotted key.
fn flatten(key: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let Value::Table(table) = value else {
        into.insert(key.to_owned(), value.to_string());
        return;
    };
    for (name, value) in table {
        let dot = if key.is_empty() { "" } else { "." };
        flatten(&format!("{key}{dot}{name}"), value, into);
    }
}

/// The configuration in `table`, an edited form of `known`.
fn parse(table: &Table, known: &Table) -> Result<Config> {
    let config = Value::Table(table.clone()).try_into();
    config.map_err(|e: toml::de::Error| Error::Usage(explain(&e, table, known)))
}

fn read_table(path: &Path) -> Result<Table> {
    let text = Text::read(path)?;
    toml::from_str(text.as_str()).map_err(|e| Error::Usage(format!("{}: {e}", shown(path))))
}

/// Lays `over` on `base`: tables are merged, everything else replaces. A table that names another `kind` or another
/// variant replaces as well, since its fields are others.
fn merge(base: &mut Table, over: Table) {
    if over.contains_key("layers") {
        // A list of layers replaces a network given by name.
        for key in ["network", "embedding", "batch_norm_momentum"] {
            base.remove(key);
        }
    }
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if compatible(&key, old, &new) => {
                merge(old, new);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn compatible(key: &str, old: &Table, new: &Table) -> bool {
    match new.get("kind") {
        Some(kind) => old.get("kind") == Some(kind),
        // The schedule's course and its milestones are variants named by their only key.
        None => !matches!(key, "course" | "at" | "warm_up") || old.keys().eq(new.keys()),
    }
}

/// `a.b.c=value` as nested tables; what is not TOML is taken as text, so that `network=resnet50` needs no quotes.
fn parse_setting(setting: &str) -> Result<Table> {
    let (key, text) = setting.split_once('=').ok_or_else(|| {
        Error::Usage(format!(
            "--set takes key=value, for example optimizer.lr=0.1; found {setting}"
        ))
    })?;
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.trim().to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    if parts.len() > DEEPEST {
        return Err(Error::Usage(format!(
            "a key of --set has {} parts; no setting has more than {DEEPEST}",
            parts.len()
        )));
    }
    let last = parts.pop().expect("split gives at least one part");
    let mut table = Table::from_iter([(last.to_string(), value)]);
    for part in parts.into_iter().rev() {
        table = Table::from_iter([(part.to_string(), Value::Table(table))]);
    }
    Ok(table)
}

/// The parser's message on one line, with the key of `known` that may have been meant and the hint where to look.
fn explain(error: &toml::de::Error, table: &Table, known: &Table) -> String {
    let text = error.to_string();
    let line = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let meant = meant(&line, table, known);
    let meant = meant.map_or_else(String::new, |key| format!("; did you mean {key}?"));
    format!("configuration: {line}{meant} (`arcface-cu train --print-config` shows every key)")
}

/// The key of `known` that the one of `table` which the parser's message refuses may be a slip of the pen for.
fn meant(message: &str, table: &Table, known: &Table) -> Option<String> {
    let keys = |table: &Table| -> BTreeSet<String> {
        let mut values = BTreeMap::new();
        flatten("", &Value::Table(table.clone()), &mut values);
        values.into_keys().collect()
    };
    let refused = |part: &str| message.contains(&format!("unknown field `{part}`"));
    let (table, known) = (keys(table), keys(known));
    let mut wrong = table.difference(&known);
    let wrong = wrong.find(|key| key.split('.').any(refused))?;
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let elsewhere = known.iter().find(|known| last(known) == last(wrong));
    let near = || text::nearest(wrong, known.iter().map(String::as_str));
    elsewhere.cloned().or_else(|| near().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Course;

    fn load(settings: &[&str]) -> Result<Config> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        Config::load("small", None, &settings)
    }

    #[test]
    fn settings_reach_their_place() {
        let config = load(&[
            "optimizer.lr=0.25",
            "model.network=resnet50",
            "model.embedding={kind=\"pool-dropout-dense\", size=32, dropout=0}",
            "optimizer.schedule.course=constant",
            "train.epochs=3",
        ])
        .unwrap();
        assert_eq!(config.optimizer.lr, 0.25);
        let NetworkConfig::Known(known) = config.model.network else {
            panic!("a network by name");
        };
        assert_eq!(known.backbone, Network::Resnet50);
        assert_eq!(known.embedding.size(), 32);
        assert_eq!(config.optimizer.schedule.course, Course::Constant);
        assert_eq!(config.train.epochs, 3);
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_wrong_usage() {
        for bad in [
            "optimizer.learning_rate=1",
            "optimizer.lr=fast",
            "optimizer.lr",
            "train.batch_size=0",
            "head.margin.scale=-1",
            "model.embedding.size=0",
        ] {
            let error = load(&[bad]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}: {error}");
        }
    }

    #[test]
    fn a_wrong_key_is_told_the_right_one() {
        for (wrong, right) in [
            ("lr=0.1", "did you mean optimizer.lr?"),
            ("train.batchsize=8", "did you mean train.batch_size?"),
            ("optimizer.momentun=0.5", "did you mean optimizer.momentum?"),
            ("optimizer.clip=5", ""),
        ] {
            let result = load(&["optimizer.clip=5", wrong]);
            match right {
                "" => drop(result.unwrap()),
                _ => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(right), "{wrong}: {error}");
                }
            }
        }
        let error = load(&["train.xyzzy=8"]).unwrap_err().to_string();
        assert!(error.contains("xyzzy"), "{error}");
    }

    #[test]
    fn every_preset_survives_the_trip_through_toml() {
        for name in crate::recipe::presets::NAMES {
            let config = Config::load(name, None, &[]).unwrap();
            let again: Config = toml::from_str(&config.to_toml().unwrap()).unwrap();
            assert_eq!(config, again);
            assert!(
                !config.to_toml().unwrap().contains("0000000"),
                "{}",
                config.to_toml().unwrap()
            );
        }
    }

    #[test]
    fn what_toml_cannot_hold_is_refused() {
        let mut config = load(&[]).unwrap();
        config.train.seed = u64::MAX;
        let text = serde_json::to_string(&config).unwrap();
        let config: Config = serde_json::from_str(&text).unwrap();
        for result in [
            config.validate(),
            config.to_toml().map(drop),
            config.with(None, &[]).map(drop),
            config.differences(&config).map(drop),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("9223372036854775807"), "{error}");
        }
        let deep = format!("a{}=1", ".a".repeat(30_000));
        let error = load(&[&deep]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().len() < 200, "{error}");
    }

    #[test]
    fn differences_are_named() {
        let (a, b) = (
            load(&[]).unwrap(),
            load(&["optimizer.lr=0.3", "model.batch_norm_momentum=0.5"]).unwrap(),
        );
        assert_eq!(
            a.differences(&b).unwrap(),
            [
                ["model.batch_norm_momentum", "absent", "0.5"],
                ["optimizer.lr", "0.05", "0.3"]
            ]
        );
        assert!(a.differences(&a).unwrap().is_empty());
    }
}
