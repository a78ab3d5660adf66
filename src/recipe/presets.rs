//! The named recipes. Each is a whole [`Config`]; where its numbers come from stands beside it.

use crate::backend::margin::{Margin, MarginGradient, PiGuard};
use crate::backend::{InputTransform, SgdForm};
use crate::base::text::no_such;
use crate::data::picture::augment::Augment;
use crate::head::Distribution;
use crate::models::{Embedding, Network};
use crate::optim::{Course, Coverage, Decay, DecayForm, Milestones, Optimizer, Schedule, Span};
use crate::recipe::config::{Config, HeadConfig, ModelConfig, Precision, TrainConfig};
use crate::{Error, Result};
use std::path::Path;

/// Names that [`get`] knows.
pub const NAMES: [&str; 15] = [
    "small",
    "demo",
    "seed-resnet50",
    "seed-mobilenetv2",
    "arcface-tf2-resnet50",
    "arcface-tf2-mobilenetv2",
    "insightface-r18",
    "insightface-r34",
    "insightface-r50",
    "insightface-r100",
    "insightface-mbf",
    // Before the others: as ONNX with batch norms folded it is one of those, too, whose extra batch norms do nothing.
    "evolve-ir50",
    "ir18",
    "ir50",
    "ir101",
];

/// x / 255, in [0, 1].
pub const UNIT_INPUT: InputTransform = InputTransform {
    scale: [1.0 / 255.0; 3],
    shift: [0.0; 3],
};

/// (x / 255 - 0.5) / 0.5, in [-1, 1].
pub const SYMMETRIC_INPUT: InputTransform = InputTransform {
    scale: [1.0 / 127.5; 3],
    shift: [-1.0; 3],
};

/// (x - 127.5) / 128, MXNet's.
pub const MXNET_INPUT: InputTransform = InputTransform {
    scale: [1.0 / 128.0; 3],
    shift: [-127.5 / 128.0; 3],
};

/// (x / 255 - mean) / deviation of each channel of ImageNet, torchvision's.
pub const IMAGENET_INPUT: InputTransform = InputTransform {
    scale: [
        1.0 / (255.0 * 0.229),
        1.0 / (255.0 * 0.224),
        1.0 / (255.0 * 0.225),
    ],
    shift: [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
};

/// An input transform that has a name.
#[derive(Clone, Copy, Debug)]
pub struct NamedInput {
    /// Its name.
    pub name: &'static str,
    /// What it makes of a pixel x of 0..255.
    pub formula: &'static str,
    /// Its numbers.
    pub transform: InputTransform,
}

/// The input transforms in use.
pub const INPUTS: [NamedInput; 4] = [
    NamedInput {
        name: "unit",
        formula: "x/255",
        transform: UNIT_INPUT,
    },
    NamedInput {
        name: "symmetric",
        formula: "x/127.5 - 1",
        transform: SYMMETRIC_INPUT,
    },
    NamedInput {
        name: "mxnet",
        formula: "(x - 127.5)/128",
        transform: MXNET_INPUT,
    },
    NamedInput {
        name: "imagenet",
        formula: "(x/255 - mean)/std of ImageNet",
        transform: IMAGENET_INPUT,
    },
];

/// An input transform by name.
///
/// # Errors
/// There is none of that name; the sentence lists them.
pub fn input(name: &str) -> Result<InputTransform> {
    let known = INPUTS.iter().find(|known| known.name == name);
    known
        .map(|known| known.transform)
        .ok_or_else(|| Error::Usage(no_such("input", name, &INPUTS.map(|known| known.name))))
}

impl Config {
    /// A preset, changed by a TOML file and then by `key=value` settings (dotted keys).
    ///
    /// # Errors
    /// An unknown preset or key, or a value that is invalid or of the wrong type.
    pub fn load(preset: &str, file: Option<&Path>, settings: &[String]) -> Result<Self> {
        get(preset)?.with(file, settings)
    }
}

/// A preset by name.
///
/// # Errors
/// There is none of that name; the sentence lists them.
pub fn get(name: &str) -> Result<Config> {
    let config = match name {
        "small" => small(),
        "demo" => demo(),
        "seed-resnet50" => seed(Network::Resnet50),
        "seed-mobilenetv2" => seed(Network::MobilenetV2),
        "arcface-tf2-resnet50" => arcface_tf2(Network::Resnet50),
        "arcface-tf2-mobilenetv2" => arcface_tf2(Network::MobilenetV2),
        "insightface-r18" => insightface(Network::Iresnet18),
        "insightface-r34" => insightface(Network::Iresnet34),
        "insightface-r50" => insightface(Network::Iresnet50),
        "insightface-r100" => insightface(Network::Iresnet100),
        "insightface-mbf" => insightface_mbf(),
        "ir18" => ir(Network::Ir18, Embedding::ir(512)),
        "ir50" => ir(Network::Ir50, Embedding::ir(512)),
        "ir101" => ir(Network::Ir101, Embedding::ir(512)),
        "evolve-ir50" => ir(Network::EvolveIr50, Embedding::evolve_ir(512)),
        _ => {
            return Err(Error::Usage(no_such("preset", name, &NAMES)));
        }
    };
    Ok(Config {
        preset: name.to_string(),
        ..config
    })
}

/// For thousands of images on a CPU: the field's own small network, a mild margin, a cosine schedule.
fn small() -> Config {
    Config {
        preset: String::new(),
        model: ModelConfig::known(
            Network::Mobilefacenet,
            Embedding::GlobalDepthwise { size: 128 },
            SYMMETRIC_INPUT,
        ),
        // Pictures of one person often come from one event, in one light: without changes of colour the network
        // learns the light.
        augment: Augment {
            shift: 6,
            flip: true,
            brightness: 0.2,
            contrast: (0.7, 1.3),
            saturation: (0.5, 1.5),
            grey: 0.3,
            erase: 0.3,
            ..Augment::default()
        },
        head: HeadConfig {
            margin: Margin::arcface(32.0, 0.35),
            init: Distribution::Normal(0.01),
        },
        optimizer: Optimizer {
            form: SgdForm::Torch,
            momentum: 0.9,
            lr: 0.05,
            clip: None,
            decay: Decay {
                value: 5e-4,
                form: DecayForm::Torch,
                coverage: Coverage::All,
            },
            schedule: Schedule {
                course: Course::Cosine,
                warm_up: Some(Span::Steps(200)),
                restarts: Vec::new(),
            },
        },
        train: TrainConfig {
            batch_size: 64,
            epochs: 14,
            seed: 1,
            checkpoint_every: 0,
            keep_checkpoints: 2,
            precision: Precision::Auto,
        },
    }
}

/// For generated faces in a minute or two: a seventh of the arithmetic of `small`. Fourteen hundred steps are few, so the margin
/// is small (a large one is still in the way when they are over) and batches are small, for more steps.
fn demo() -> Config {
    let small = small();
    Config {
        model: ModelConfig::known(
            Network::MobilefacenetTiny,
            Embedding::GlobalDepthwise { size: 64 },
            small.model.input,
        ),
        augment: Augment {
            shift: 4,
            flip: true,
            ..Augment::default()
        },
        head: HeadConfig {
            margin: Margin::arcface(24.0, 0.2),
            ..small.head
        },
        optimizer: Optimizer {
            lr: 0.07,
            schedule: Schedule {
                course: Course::Cosine,
                warm_up: Some(Span::Steps(40)),
                restarts: Vec::new(),
            },
            ..small.optimizer
        },
        train: TrainConfig {
            batch_size: 16,
            epochs: 3,
            ..small.train
        },
        ..small
    }
}

/// The TensorFlow project whose job this program takes over (face_recognition_tf2).
fn seed(network: Network) -> Config {
    Config {
        preset: String::new(),
        model: ModelConfig::known(network, Embedding::pool_dropout_dense(256), UNIT_INPUT),
        augment: Augment::seed(),
        head: HeadConfig {
            margin: Margin::arcface(30.0, 0.5),
            init: Distribution::GlorotUniform,
        },
        optimizer: Optimizer {
            form: SgdForm::Keras,
            momentum: 0.8,
            lr: 0.01,
            clip: None,
            decay: Decay {
                value: 5e-4,
                form: DecayForm::KerasL2,
                coverage: Coverage::HeadAndEmbedding,
            },
            schedule: Schedule {
                course: Course::Steps {
                    at: Milestones::Epochs(vec![5, 10, 15, 20]),
                    factor: 0.1,
                },
                warm_up: None,
                restarts: Vec::new(),
            },
        },
        train: TrainConfig {
            batch_size: 512,
            epochs: 25,
            seed: 1,
            checkpoint_every: 0,
            keep_checkpoints: 2,
            precision: Precision::Auto,
        },
    }
}

/// arcface-tf2.
fn arcface_tf2(network: Network) -> Config {
    let seed = seed(network);
    Config {
        model: ModelConfig::known(
            network,
            Embedding::batch_norm_dropout_flatten_dense(512),
            seed.model.input,
        ),
        augment: Augment {
            flip: true,
            ..Augment::default()
        },
        head: HeadConfig {
            margin: Margin {
                pi_guard: PiGuard::Linear,
                gradient: MarginGradient::Full,
                ..Margin::arcface(64.0, 0.5)
            },
            init: Distribution::GlorotUniform,
        },
        optimizer: Optimizer {
            form: SgdForm::KerasNesterov,
            momentum: 0.9,
            lr: 0.01,
            clip: None,
            decay: Decay {
                value: 5e-4,
                form: DecayForm::KerasL2,
                coverage: Coverage::Embedding,
            },
            schedule: Schedule {
                course: Course::Constant,
                warm_up: None,
                restarts: Vec::new(),
            },
        },
        train: TrainConfig {
            batch_size: 128,
            epochs: 5,
            ..seed.train
        },
        ..seed
    }
}

/// InsightFace's arcface_torch on one device (`configs/ms1mv3_r50_onegpu.py`): its class rows and backbone share one
/// optimizer, and only the backbone's gradient is clipped. Other batch sizes want a rate in proportion.
fn insightface(network: Network) -> Config {
    Config {
        preset: String::new(),
        model: ModelConfig::known(network, Embedding::insightface_e(512), SYMMETRIC_INPUT),
        augment: Augment {
            flip: true,
            ..Augment::default()
        },
        head: HeadConfig {
            margin: Margin {
                clamp: 0.0,
                gradient: MarginGradient::StraightThrough,
                ..Margin::arcface(64.0, 0.5)
            },
            init: Distribution::Normal(0.01),
        },
        optimizer: Optimizer {
            form: SgdForm::Torch,
            momentum: 0.9,
            lr: 0.02,
            clip: Some(5.0),
            decay: Decay {
                value: 5e-4,
                form: DecayForm::Torch,
                coverage: Coverage::All,
            },
            schedule: Schedule {
                course: Course::Linear,
                warm_up: None,
                restarts: Vec::new(),
            },
        },
        train: TrainConfig {
            batch_size: 128,
            epochs: 20,
            seed: 1,
            checkpoint_every: 0,
            keep_checkpoints: 2,
            precision: Precision::Auto,
        },
    }
}

/// The IR networks, to go on with their weights: InsightFace's recipe with these layers.
fn ir(network: Network, embedding: Embedding) -> Config {
    let config = insightface(network);
    Config {
        model: ModelConfig::known(network, embedding, config.model.input),
        ..config
    }
}

/// The same with what `configs/ms1mv3_mbf.py` changes: decay 1e-4 and 40 epochs. (Its rate, 0.1, is for several GPUs.)
fn insightface_mbf() -> Config {
    let network = Network::InsightfaceMbf;
    let mut config = insightface(network);
    let embedding = Embedding::InsightfaceGdc { size: 512 };
    config.model = ModelConfig::known(network, embedding, config.model.input);
    config.optimizer.decay.value = 1e-4;
    config.train.epochs = 40;
    config
}
