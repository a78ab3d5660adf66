//! InsightFace's networks, and the IR networks of AdaFace, CVLFace and face.evoLVe, against PyTorch in float64
//! (`reference/insightface.py`, `reference/ir.py`), with weights by the same formula.

mod support;

use ::safetensors::tensor::{Dtype, TensorView};
use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::embedder::Embedder;
use arcface_cu::graph::params::ParamTable;
use arcface_cu::recipe::config::Config;
use arcface_cu::weights::checkpoint::Weights;
use arcface_cu::weights::convention::{Convention, Foreign, Place, foreign};
use arcface_cu::weights::export;
use arcface_cu::weights::formats::safetensors;
use arcface_cu::weights::import::{self, ImportOptions};
use std::path::Path;

/// What float32 loses, relative to the largest element of an embedding: a hundred layers (r100), each off by some 6e-8 of
/// its own largest element, add up to at most 6e-6; three times that. (3e-6 was found for r100, 7e-7 for mbf.)
const TOLERANCE: f32 = 2e-5;

/// Numbers in [0, 1), multiples of 2^-24: SplitMix64 of the name's FNV-1a hash and the index.
fn hashed(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (1..=count as u64).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// A state dict's tensor by its name and shape.
fn value(Foreign { name, shape, .. }: &Foreign) -> Vec<f32> {
    let count = shape.iter().product();
    if name == "features.weight" {
        return vec![1.0; count];
    }
    let fan_in: usize = shape[1..].iter().product();
    let (low, high) = match name.rsplit('.').next() {
        _ if shape.len() > 1 => {
            let bound = (3.0 / fan_in as f64).sqrt();
            (-bound, bound)
        }
        Some("weight") => (0.3, 1.2),
        Some("bias" | "running_mean") => (-0.1, 0.1),
        Some("running_var") => (0.5, 1.5),
        _ => panic!("{name} is no tensor of a state dict"),
    };
    let numbers = hashed(name, count);
    numbers.map(|u| (low + u * (high - low)) as f32).collect()
}

/// The preset's network with weights by the formula.
fn weights(preset: &str) -> Weights {
    let config = Config::load(preset, None, &[]).unwrap();
    let model = config.model.build().unwrap();
    let table = ParamTable::new(&model);
    let (mut params, mut statistics) = table.init(0);
    for tensor in foreign(&model, &table, Convention::Torch) {
        if let Place::Implied(_) = tensor.place {
            continue;
        }
        let values = tensor.to_ours(&value(&tensor));
        match tensor.place {
            Place::Param(at) => params[at..][..values.len()].copy_from_slice(&values),
            Place::Statistic(at) => statistics[at..][..values.len()].copy_from_slice(&values),
            Place::Fixed(number) => assert!(values.iter().all(|&v| v == number)),
            Place::Implied(_) => unreachable!("passed over above"),
        }
    }
    Weights {
        config,
        params,
        statistics,
        ..support::random_weights()
    }
}

fn is_pytorchs(name: &str) {
    is_golden("insightface", name, &format!("insightface-{name}"));
}

fn is_golden(file: &str, name: &str, preset: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/reference/golden/{file}.safetensors"));
    let golden = safetensors::open(&golden).unwrap();
    let expected = &golden.get(name).unwrap().values;
    let weights = weights(preset);
    let mut cpu = Cpu::new();
    let mut embedder = Embedder::new(&mut cpu, &weights, 2, Element::F32).unwrap();
    let pictures = [0, 1].map(|number| support::picture(number, 112, 112));
    let found = embedder.embed(&pictures).unwrap();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let errors = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs() / largest);
    let worst = errors.fold(
        0.0_f32,
        |most, error| if error <= most { most } else { error },
    );
    println!("{name}: largest error {worst:e} of the largest element");
    assert!(worst <= TOLERANCE, "{name}: {worst}");
}

#[test]
fn r18() {
    is_pytorchs("r18");
}

#[test]
fn r34() {
    is_pytorchs("r34");
}

#[test]
fn r50() {
    is_pytorchs("r50");
}

#[test]
#[ignore = "4.8 billion multiply-adds for what r50 shows as well"]
fn r100() {
    is_pytorchs("r100");
}

#[test]
fn mbf() {
    is_pytorchs("mbf");
}

#[test]
fn ir18() {
    is_golden("ir", "ir18", "ir18");
}

#[test]
fn ir50() {
    is_golden("ir", "ir50", "ir50");
}

#[test]
#[ignore = "4.8 billion multiply-adds for what ir50 shows as well"]
fn ir101() {
    is_golden("ir", "ir101", "ir101");
}

#[test]
fn evolve_ir50() {
    is_golden("ir", "evolve-ir50", "evolve-ir50");
}

/// An exported state dict is imported as the network that it is.
#[test]
fn export_and_import() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state_dict.safetensors");
    // Tensors of IResNet34 with the names of IResNet18's are of the same shapes.
    for preset in ["insightface-mbf", "insightface-r34", "evolve-ir50"] {
        let weights = weights(preset);
        export::torch::write(&path, &weights).unwrap();
        let imported = import::open(&path, &ImportOptions::default()).unwrap();
        assert_eq!(imported.weights.config, weights.config);
        assert_eq!(imported.weights.params, weights.params);
        assert_eq!(imported.weights.statistics, weights.statistics);
        assert_eq!(imported.report.unused, []);
    }
}

/// A state dict with a prefix, beside other tensors.
fn write_with_prefix(path: &Path, prefix: &str, weights: &Weights, more: &[(&str, Vec<usize>)]) {
    let tensors = export::torch::state_dict(weights).unwrap();
    let names = tensors
        .into_iter()
        .map(|t| (format!("{prefix}{}", t.name), t.shape, t.values));
    let more = more.iter().map(|(name, shape)| {
        let count = shape.iter().product();
        ((*name).to_owned(), shape.clone(), vec![0.5; count])
    });
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = names
        .chain(more)
        .map(|(name, shape, values): (String, Vec<usize>, Vec<f32>)| {
            (
                name,
                shape,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = all.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(path, ::safetensors::serialize(views, None).unwrap()).unwrap();
}

/// AdaFace's checkpoints take blue, green, red, CVLFace's what the file beside them says, and others do not say.
#[test]
fn the_order_of_colours_is_the_sources() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let config = "model.embedding={kind=\"ir\", size=4, dropout=0}";
    let mut weights = weights("ir18");
    weights.config = Config::load("ir18", None, &[config.into()]).unwrap();
    let table = ParamTable::new(&weights.model().unwrap());
    (weights.params, weights.statistics) = table.init(5);
    // The file's own channels, red first.
    let (_, at, shape) = table.find("input_layer.0/kernel").unwrap();
    assert_eq!(shape, [64, 3, 3, 3]);
    let first = |weights: &Weights| weights.params[at..][..3].to_vec();
    let rgb = first(&weights);
    let bgr = [rgb[2], rgb[1], rgb[0]].to_vec();
    let head = [("state_dict.head.kernel", vec![4, 7])];
    let yaml = dir.path().join("model.yaml");
    let read = |prefix: &str, more: &[(&str, Vec<usize>)], by_hand: bool| {
        write_with_prefix(&path, prefix, &weights, more);
        let options = ImportOptions {
            bgr: by_hand,
            ..ImportOptions::default()
        };
        let imported = import::open(&path, &options).unwrap();
        if !by_hand && !more.is_empty() {
            let start = import::start(&path, &weights.config, 1).unwrap();
            assert_eq!(start.params, imported.weights.params, "{prefix}");
            assert_eq!(start.notes, imported.notes, "{prefix}");
        }
        (first(&imported.weights), imported.notes.join("; "))
    };
    let (found, notes) = read("state_dict.model.", &head, false);
    assert_eq!(found, bgr);
    assert!(
        notes.contains("AdaFace's weights") && notes.contains("swapped"),
        "{notes}"
    );
    assert_eq!(
        read("state_dict.model.", &head, true),
        (bgr.clone(), String::new())
    );
    let (found, notes) = read("state_dict.model.", &[], false);
    assert_eq!(found, rgb);
    assert!(notes.contains("--bgr"), "{notes}");
    assert!(read("", &[], false).1.contains("--bgr"));
    assert_eq!(read("net.", &[], false), (rgb.clone(), String::new()));
    for (order, expected) in [("'BGR'", &bgr), ("RGB", &rgb), ("\"BGR\"", &bgr)] {
        std::fs::write(&yaml, format!("name: ir18\ncolor_space: {order}\n")).unwrap();
        assert_eq!(read("net.", &[], false).0, *expected, "{order}");
    }
    // A model folder of Hugging Face's; what the .yaml says comes first.
    let json = dir.path().join("config.json");
    let config = |order: &str| {
        let text = format!("{{\"conf\": {{\"name\": \"ir18\", \"color_space\": \"{order}\"}}}}");
        std::fs::write(&json, text).unwrap();
    };
    std::fs::write(&yaml, "color_space: RGB\n").unwrap();
    config("BGR");
    assert_eq!(read("model.net.", &[], false).0, rgb);
    std::fs::remove_file(&yaml).unwrap();
    let (found, notes) = read("model.net.", &[], false);
    assert_eq!(found, bgr);
    assert!(
        notes.contains("config.json says color_space BGR"),
        "{notes}"
    );
    config("RGB");
    assert_eq!(read("model.net.", &[], false), (rgb.clone(), String::new()));
    std::fs::write(&json, "{\"color_space\": \"BGR\"}").unwrap();
    assert_eq!(read("model.net.", &[], false).0, bgr);
    std::fs::write(&json, "[").unwrap();
    assert_eq!(read("model.net.", &[], false).0, rgb);
}

/// A network that has all of ours and more among its layers would compute something else.
#[test]
fn more_of_the_same_layers_is_another_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut weights = weights("ir18");
    weights.config.model.set_embedding_size(4);
    let table = ParamTable::new(&weights.model().unwrap());
    (weights.params, weights.statistics) = table.init(5);
    let squeeze = "net.body.0.res_layer.se_block.fc1.weight";
    write_with_prefix(&path, "net.", &weights, &[(squeeze, vec![4, 64, 1, 1])]);
    let text = import::open(&path, &ImportOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("all of ir18") && text.contains("body.0.res_layer.se_block"),
        "{text}"
    );
    // What stands outside is nobody's.
    write_with_prefix(&path, "net.", &weights, &[("net.head.weight", vec![4, 64])]);
    import::open(&path, &ImportOptions::default()).unwrap();
}

/// Writes what `reference/read_torch_export.py` reads.
#[test]
#[ignore = "writes files for reference/read_torch_export.py into ARCFACE_CU_EXPORTS"]
fn write_exports() {
    let folder = std::env::var_os("ARCFACE_CU_EXPORTS").expect("ARCFACE_CU_EXPORTS is a folder");
    for name in ["r18", "r50", "mbf"] {
        let path = Path::new(&folder).join(format!("{name}.safetensors"));
        export::torch::write(&path, &weights(&format!("insightface-{name}"))).unwrap();
    }
}
