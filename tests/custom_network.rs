//! Networks that are not among those here: trained, saved with their layers, resumed, and used by the commands; and
//! files whose layers are wrong.

#[path = "support/hostile.rs"]
mod hostile;
mod support;

use arcface_cu::backend::Activation;
use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::Padding;
use arcface_cu::embedder::Embedder;
use arcface_cu::graph::layers::Layers;
use arcface_cu::graph::params::{Init, ParamTable};
use arcface_cu::graph::{BatchNorm, Builder, Model, Square};
use arcface_cu::models::{self, Embedding, Network};
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use arcface_cu::weights::checkpoint::{Checkpoint, Weights};
use arcface_cu::weights::export::onnx::{self, OnnxOptions};
use arcface_cu::weights::export::torch;
use arcface_cu::weights::import::onnx::match_model;
use hostile::small;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use support::training::assert_same_run;
use support::{Pictures, arcface_cu, picture, stderr_of_failure, stdout_of_success};

const INIT: Init = Init::HeFanOut;

/// Every kind of layer, on images of 40 pixels.
fn network() -> Model {
    build(true)
}

/// The same, with or without channels swapped outside a convolution in groups of two.
fn build(swapped: bool) -> Model {
    let (mut g, x) = Builder::new(40, 40);
    let (none, one, norm) = (Padding::default(), Padding::same(1), BatchNorm::default());
    let x = g.conv2d("stem", x, 8, Square::new(3, 2, one), false, INIT);
    let x = g.batch_norm("stem_bn", x, norm);
    let x = g.activation("stem_relu", x, Activation::Relu);
    let x = g.max_pool("pool", x, Square::new(3, 2, Padding { top: 0, ..one }));
    let y = match swapped {
        true => g.conv2d(
            "swap",
            x,
            8,
            Square::new(1, 1, none),
            false,
            Init::SwapPairs,
        ),
        false => x,
    };
    let y = g.depthwise("dw", y, Square::new(3, 1, one), true, Init::Normal(0.2));
    let fixed = BatchNorm {
        gamma: false,
        momentum: 0.75,
        ..norm
    };
    let y = g.batch_norm("dw_bn", y, fixed);
    let y = g.activation("dw_relu6", y, Activation::Relu6);
    let x = g.add("add", x, y);
    let x = g.conv2d(
        "last",
        x,
        12,
        Square::new(1, 1, none),
        true,
        Init::FanInUniform,
    );
    let x = g.activation("prelu", x, Activation::PRelu(()));
    let side = g.global_avg_pool("mean", x);
    let side = g.linear("side", side, 6, false, INIT);
    let x = g.dropout("dropout", x, 0.25);
    let x = g.flatten("flatten", x);
    let x = g.linear("fc", x, 6, true, Init::GlorotUniform);
    g.add("embedding", x, side);
    g.finish().unwrap()
}

fn config() -> Config {
    let settings = ["train.batch_size=4", "train.epochs=4", "augment.shift=2"];
    let config = Config::load("demo", None, &settings.map(String::from)).unwrap();
    config.with_network(&network()).unwrap()
}

fn trainer() -> Trainer<Cpu> {
    let data = Arc::new(Pictures(8));
    Trainer::new(Cpu::new(), config(), data, DataOptions::default()).unwrap()
}

fn steps(trainer: &mut Trainer<Cpu>, count: usize) {
    for _ in 0..count {
        trainer.step().unwrap();
    }
}

/// A checkpoint after one step, as bytes.
static SAVED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let mut trainer = trainer();
    steps(&mut trainer, 1);
    trainer.checkpoint().unwrap().save(&path).unwrap();
    fs::read(path).unwrap()
});

#[test]
fn every_network_here_is_the_same_after_the_trip_through_its_layers() {
    let embeddings = [
        Embedding::pool_dropout_dense(16),
        Embedding::batch_norm_dropout_flatten_dense(16),
        Embedding::insightface_e(16),
        Embedding::GlobalDepthwise { size: 16 },
        Embedding::InsightfaceGdc { size: 16 },
    ];
    let known = Network::ALL.into_iter().flat_map(|network| {
        embeddings.map(|embedding| models::build(network, 112, embedding).unwrap())
    });
    for model in known.chain([network()]) {
        let layers = Layers::of(&model).unwrap();
        assert_eq!(layers.build().unwrap(), model);
        let json = serde_json::to_string(&layers).unwrap();
        assert_eq!(serde_json::from_str::<Layers>(&json).unwrap(), layers);
    }
    let (mut g, x) = Builder::new(3, 4);
    g.global_avg_pool("pool", x);
    let error = Layers::of(&g.finish().unwrap()).unwrap_err().to_string();
    assert!(error.contains("3 x 4"), "{error}");
}

#[test]
fn the_layers_are_part_of_the_configuration() {
    let config = config();
    let text = config.to_toml().unwrap();
    let again: Config = toml::from_str(&text).unwrap();
    assert_eq!(config, again);
    assert_eq!(again.model.build().unwrap(), network());
    // Over a preset, as `--config` has it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, &text).unwrap();
    let over = Config::load("demo", Some(&path), &[]).unwrap();
    assert_eq!(over, config);
    let mixed = Config::load("demo", Some(&path), &["model.network=resnet50".into()]);
    let error = mixed.unwrap_err().to_string();
    assert!(
        error.contains("network and embedding, or layers"),
        "{error}"
    );
    // What is augmented is of the network's own size.
    let shift = ["augment.shift=40".to_owned()];
    let error = config.with(None, &shift).unwrap_err().to_string();
    assert!(error.contains("below the input size 40"), "{error}");
}

#[test]
fn comes_back_bit_by_bit_and_embeds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let mut trainer = trainer();
    steps(&mut trainer, 3);
    let saved = trainer.checkpoint().unwrap();
    saved.save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), saved);
    let weights = Weights::load(&path).unwrap();
    assert_eq!(weights, saved.weights);
    assert_eq!(weights.model().unwrap(), network());

    let images: Vec<_> = (0..3).map(|n| picture(n, 112, 112)).collect();
    let expected = trainer.embedder(2).unwrap().embed(&images).unwrap();
    let mut cpu = Cpu::new();
    let mut embedder = Embedder::new(&mut cpu, &weights, 2, Element::F32).unwrap();
    assert_eq!((embedder.size(), embedder.image_size()), (6, 40));
    assert_eq!(embedder.embed(&images).unwrap(), expected);
}

#[test]
fn a_resumed_run_is_the_run_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let mut whole = trainer();
    steps(&mut whole, 3);
    whole.checkpoint().unwrap().save(&path).unwrap();
    whole.fit(|_| {}).unwrap();

    let data = Arc::new(Pictures(8));
    let checkpoint = Checkpoint::load(&path).unwrap();
    let resumed = Trainer::resume(Cpu::new(), &checkpoint, data, DataOptions::default());
    let mut resumed = resumed.unwrap();
    resumed.fit(|_| {}).unwrap();
    assert_eq!(resumed.steps_done(), 8);
    assert_eq!(resumed.checkpoint().unwrap(), whole.checkpoint().unwrap());
}

/// The checkpoint with another header entry.
fn edited(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(SAVED[..8].try_into().unwrap()) as usize;
    let (header, tensors) = SAVED[8..].split_at(length);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let entry = &mut header["__metadata__"]["arcface_cu"];
    let mut metadata: Value = serde_json::from_str(entry.as_str().unwrap()).unwrap();
    edit(&mut metadata);
    *entry = metadata.to_string().into();
    let header = header.to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, tensors].concat()
}

/// A layer of the list.
fn layer<'a>(layers: &'a mut Value, name: &str) -> &'a mut Value {
    let mut layers = layers.as_array_mut().unwrap().iter_mut();
    layers.find(|layer| layer["name"] == name).unwrap()
}

type Edit = fn(&mut Value);

#[test]
fn wrong_layers_are_told_by_file_and_layer() {
    const HUGE: u64 = u64::MAX / 2;
    // Each a change to the list, and what the sentence must say.
    let cases: &[(&str, Edit)] = &[
        ("layer dw: reads add, which does not stand before it", |l| {
            layer(l, "dw")["reads"] = json!(["add"]);
        }),
        ("layer dw: reads dw, which", |l| {
            layer(l, "dw")["reads"] = json!(["dw"]);
        }),
        ("layer dw: reads nobody, which", |l| {
            layer(l, "dw")["reads"] = json!(["nobody"]);
        }),
        ("layer dw: cannot read 0 layers", |l| {
            layer(l, "dw")["reads"] = json!([]);
        }),
        ("layer add: cannot read 3 layers", |l| {
            layer(l, "add")["reads"] = json!(["pool", "pool", "pool"]);
        }),
        ("layer stem_bn: cannot read 2 layers", |l| {
            layer(l, "stem_bn")["reads"] = json!(["stem", "stem"]);
        }),
        ("layer add: adds", |l| {
            layer(l, "add")["reads"] = json!(["stem_relu", "pool"]);
        }),
        ("layer side: a linear layer needs a flat input", |l| {
            layer(l, "side")["reads"] = json!(["prelu"]);
        }),
        ("layer stem_bn: the name is taken", |l| {
            layer(l, "stem_relu")["name"] = json!("stem_bn");
            layer(l, "pool")["reads"] = json!(["stem_bn"]);
        }),
        ("layer input: the name is taken", |l| {
            layer(l, "embedding")["name"] = json!("input");
        }),
        ("layer momentum/stem: a name must not", |l| {
            layer(l, "embedding")["name"] = json!("momentum/stem");
        }),
        ("layer embedding: unknown variant `attention`", |l| {
            layer(l, "embedding")["op"]["kind"] = json!("attention");
        }),
        ("layer fc: missing field `units`", |l| {
            layer(l, "fc")["op"]
                .as_object_mut()
                .unwrap()
                .remove("units");
        }),
        ("layer fc: unknown field `rank`", |l| {
            layer(l, "fc")["op"]["rank"] = json!(3);
        }),
        ("layer fc: invalid value: integer `-1`", |l| {
            layer(l, "fc")["op"]["units"] = json!(-1);
        }),
        ("a network without layers", |l| *l = json!([])),
        ("layer stem: the first layer must be the input", |l| {
            l.as_array_mut().unwrap().remove(0);
        }),
        ("layer fc: only the first layer can be the input", |l| {
            layer(l, "fc")["op"] = json!({"kind": "input", "size": 9});
        }),
        ("layer map: the embedding must be flat", |l| {
            let map = json!({"name": "map", "reads": ["stem"], "op": {"kind": "relu"}});
            l.as_array_mut().unwrap().push(map);
        }),
        ("layer side: no other layer reads what it gives", |l| {
            layer(l, "embedding")["reads"] = json!(["fc", "fc"]);
        }),
        ("layer stem_bn: epsilon must be", |l| {
            layer(l, "stem_bn")["op"]["epsilon"] = json!(-1.0);
        }),
        ("layer dropout: a dropout rate must be", |l| {
            layer(l, "dropout")["op"]["rate"] = json!(1.5);
        }),
        ("layer swap: exchanging pairs", |l| {
            layer(l, "swap")["op"]["filters"] = json!(6);
        }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.safetensors");
    let refused = |edit: &dyn Fn(&mut Value)| {
        fs::write(&path, edited(|m| edit(&mut m["config"]["model"]["layers"]))).unwrap();
        let error = small(|| Checkpoint::load(&path)).unwrap_err().to_string();
        assert!(error.contains("wrong.safetensors: "), "{error}");
        assert_eq!(
            small(|| Weights::load(&path)).unwrap_err().to_string(),
            error
        );
        error
    };
    for (expected, edit) in cases {
        let error = refused(edit);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Sizes that overflow, and sizes that are only far larger than the file.
    for (name, key, sizes) in [
        ("input", "size", &[0, 1 << 16, HUGE][..]),
        ("stem", "filters", &[0, 1 << 30, HUGE]),
        ("stem", "kernel", &[0, 1 << 30, HUGE]),
        ("stem", "stride", &[0]),
        ("fc", "units", &[0, 1 << 28, HUGE]),
        ("dw", "kernel", &[0, 1 << 20, HUGE]),
        ("pool", "kernel", &[0, 1 << 30, HUGE]),
    ] {
        for size in sizes {
            let error = refused(&|l| layer(l, name)["op"][key] = json!(size));
            assert!(error.contains(&format!("layer {name}: ")), "{error}");
        }
    }
    for pad in [1 << 30, HUGE] {
        let error = refused(&|l| layer(l, "pool")["op"]["pad"] = [pad; 4].into());
        assert!(error.contains("layer pool: "), "{error}");
    }
    let error = refused(&|l| {
        for name in ["side", "fc"] {
            layer(l, name)["op"]["units"] = json!(1 << 20);
        }
    });
    assert!(error.contains("tensor side/kernel: expected"), "{error}");
    let error = refused(&|layers| {
        let layer = json!({"name": "x", "reads": ["input"], "op": {"kind": "relu"}});
        let layers = layers.as_array_mut().unwrap();
        layers.extend((0..20_000).map(|_| layer.clone()));
    });
    assert!(error.contains("layers is too large"), "{error}");
    // The header says the size of the input once more.
    fs::write(&path, edited(|m| m["input_size"] = json!(112))).unwrap();
    let error = Weights::load(&path).unwrap_err().to_string();
    assert!(error.contains("pictures of 112 pixels"), "{error}");
    // And the unchanged entry is read.
    fs::write(&path, edited(|_| {})).unwrap();
    Checkpoint::load(&path).unwrap();
}

proptest! {
    #![proptest_config(hostile::config(300))]
    #[test]
    fn a_damaged_header_is_an_error_or_a_network(flips in hostile::flips()) {
        let length = u64::from_le_bytes(SAVED[..8].try_into().unwrap()) as usize;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        fs::write(&path, hostile::damage(&SAVED, &flips, 8 + length)).unwrap();
        if let Ok(checkpoint) = small(|| Checkpoint::load(&path)) {
            prop_assert!(checkpoint.weights.model().is_ok());
        }
    }
}

#[test]
fn as_an_onnx_graph_it_has_the_same_parameters() {
    let model = build(false);
    let (params, statistics) = ParamTable::new(&model).init(5);
    let weights = Weights {
        config: config().with_network(&model).unwrap(),
        classes: 0,
        trained_on: None,
        imported_from: None,
        params,
        statistics,
    };
    let options = OnnxOptions {
        keep_batch_norm: true,
        transform_inside: false,
    };
    let graph = onnx::graph(&weights, options).unwrap();
    let slabs = match_model(&model, &graph).unwrap();
    assert_eq!(slabs.params, weights.params);
    assert_eq!(slabs.statistics, weights.statistics);
    assert!(!torch::state_dict(&weights).unwrap().is_empty());

    // A convolution on what is flat already has no place there.
    let (mut g, x) = Builder::new(4, 4);
    let x = g.flatten("flatten", x);
    g.conv2d(
        "conv",
        x,
        2,
        Square::new(1, 1, Padding::default()),
        false,
        INIT,
    );
    let model = g.finish().unwrap();
    let (params, statistics) = ParamTable::new(&model).init(5);
    let weights = Weights {
        config: config().with_network(&model).unwrap(),
        params,
        statistics,
        ..weights
    };
    let error = onnx::graph(&weights, options).unwrap_err().to_string();
    assert!(error.contains("layer conv moves a window"), "{error}");
}

/// `--weights` takes such a file, and training on the command line goes on with it.
#[test]
fn the_commands_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let faces = path("faces");
    support::commands::write_faces(Path::new(&faces), 8);
    let recipe = path("own.toml");
    fs::write(&recipe, config().to_toml().unwrap()).unwrap();
    let run = |words: &[&str]| stdout_of_success(&arcface_cu(words));
    let train = |out: &str, more: &[&str]| {
        let common = ["train", "--device", "cpu", "--data", &faces, "--out", out];
        run(&[&common[..], more].concat())
    };
    let [whole, stopped] = ["whole", "stopped"].map(path);
    train(&whole, &["--config", &recipe, "--steps", "3"]);
    train(&stopped, &["--config", &recipe, "--steps", "2"]);
    let text = train(&stopped, &["--resume", "--steps", "3"]);
    assert!(text.contains("network: custom, 6-d embedding"), "{text}");
    assert_same_run(Path::new(&whole), Path::new(&stopped), "resumed");

    let weights = format!("{whole}/weights.safetensors");
    let device = ["--device", "cpu", "--weights", &weights];
    let with = |words: &[&str]| run(&[words, &device[..]].concat());
    let picture = format!("{faces}/00/00.jpg");
    let text = with(&["verify", &picture, &picture]);
    assert!(text.starts_with("the same person"), "{text}");
    with(&["embed", "--images", &faces, "--out", &path("embedded")]);
    with(&["search", "--gallery", &faces, "--query", &picture]);
    let export = |format: &str| {
        let out = path(format);
        let words = ["--to", format, "--weights", &weights, "--out", &out];
        arcface_cu([&["export"], &words[..]].concat())
    };
    stdout_of_success(&export("keras-h5"));
    for format in ["onnx", "torch"] {
        let error = stderr_of_failure(&export(format), 1);
        assert!(error.contains("layer swap swaps channels"), "{error}");
    }
    // As a start: the network is the file's, whether the arguments name it or not; one that they name refuses it.
    let network = ["--set", "model.network=mobilefacenet"];
    let one = ["--init", &weights, "--steps", "1"];
    let [began, same] = ["began", "same"].map(path);
    train(&began, &[&one[..], &["--config", &recipe]].concat());
    let typed = ["--preset", "demo", "--batch-size", "4"];
    let text = train(&same, &[&one[..], &typed].concat());
    assert!(text.contains("network: custom, 6-d embedding"), "{text}");
    // Going on with the same words, whose preset has another network, and without the file.
    let on = ["--resume", "--init", "gone", "--steps", "2"];
    train(&same, &[&typed[..], &on].concat());
    let words = [
        "train",
        "--device",
        "cpu",
        "--data",
        &faces,
        "--out",
        &path("other"),
        "--batch-size",
        "4",
    ];
    let words = [&words[..], &one[..2], &network].concat();
    let error = stderr_of_failure(&arcface_cu(words), 1);
    assert!(error.contains("this is another network"), "{error}");
    let words = [
        "train", "--data", &faces, "--resume", "--out", &same, "--preset", "demo",
    ];
    let error = stderr_of_failure(&arcface_cu([&words[..], &one, &network].concat()), 2);
    assert!(
        error.contains("a resumed run keeps its settings"),
        "{error}"
    );
    let own = ["plan", "--infer", "--memory", "1", "--weights", &weights];
    let text = run(&own);
    assert!(text.contains("network: custom, 6-d embedding"), "{text}");
    let text = run(&[
        "plan",
        "--config",
        &recipe,
        "--memory",
        "1",
        "--classes",
        "4",
    ]);
    assert!(text.contains("network: custom, 6-d embedding"), "{text}");
}
