//! The commands, each on a few small files, and what the workshop makes for them.

/// A command and what it needs and leaves.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Of the workshop's files and folders, those that it works on.
    pub(crate) inputs: &'static [&'static str],
    pub(crate) command: &'static str,
    /// What is added to go on after a run that was cut short.
    pub(crate) again: &'static str,
    /// Files and folders that it leaves; they are the same after every run.
    pub(crate) outputs: &'static [&'static str],
    /// Whether it replaces what an earlier run left, which stays whole until then.
    pub(crate) replaces: bool,
    /// Whether it takes seconds, so that not every one of its calls can have its turn.
    pub(crate) slow: bool,
}

/// Made once, in this order, beside pictures in `faces`, and pairs of them in `pairs.txt` and `before/pairs.txt`.
pub(crate) const PREPARATION: &[&str] = &[
    "train --preset demo --device cpu --data faces --out first --batch-size 4 --epochs 1 --steps 1",
    "pack --pairs pairs.txt --image-root faces --out sets",
    "pack --pairs before/pairs.txt --image-root faces --out arrays",
    "pack --data faces --out packed --format arcface-tf2-paths --reserve-last 2 --seed 5",
    "pack --data faces --out records --format seed-tfrecord --reserve-last 0",
    "embed --weights first/weights.safetensors --device cpu --data faces --ids 2 --per-id 2 --out ids",
    "embed --weights first/weights.safetensors --device cpu --data faces --all --out gallery",
    "export --weights first/weights.safetensors --to onnx --out model.onnx",
    "train --preset demo --device cpu --data faces --out half --batch-size 4 --epochs 2 --checkpoint-every 1 --steps 2",
    "export --weights first/weights.safetensors --to keras-h5 --out exported.h5",
    "import model.onnx --preset demo --out imported.safetensors",
];

const W: &str = "first/weights.safetensors";

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "train",
        inputs: &["faces", "sets"],
        command: "train --preset demo --device cpu --data faces --out run --batch-size 4 --epochs 2 --checkpoint-every 1 \
                  --eval sets --tensorboard board",
        again: "--resume",
        outputs: &["run"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "train --resume",
        inputs: &["faces", "half"],
        command: "train --device cpu --data faces --out half --resume",
        again: "",
        outputs: &["half"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "eval",
        inputs: &[W, "sets"],
        command: "eval --weights first/weights.safetensors --device cpu --data sets --json eval.json --pairs pairs.png \
                  --report report",
        again: "",
        outputs: &["eval.json", "pairs.png", "report"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "embed --all",
        inputs: &[W, "faces"],
        command: "embed --weights first/weights.safetensors --device cpu --data faces --all --out embedded --batch-size 4",
        again: "--resume",
        outputs: &["embedded"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "embed --images",
        inputs: &[W, "faces"],
        command: "embed --weights first/weights.safetensors --device cpu --images faces --format safetensors --out loose",
        again: "--resume",
        outputs: &["loose"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "embed --ids",
        inputs: &[W, "faces", "ids"],
        command: "embed --weights first/weights.safetensors --device cpu --data faces --ids 3 --per-id 3 --out ids --overwrite",
        again: "",
        outputs: &["ids"],
        // Its files are renamed one by one; until then they are read by the names that they still have.
        replaces: false,
        slow: false,
    },
    Case {
        name: "search",
        inputs: &["gallery"],
        command: "search --gallery gallery --query gallery --device cpu --json hits.json --csv hits.csv",
        again: "",
        outputs: &["hits.json", "hits.csv"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "verify",
        inputs: &[W, "faces"],
        command: "verify --weights first/weights.safetensors --device cpu faces/01/04.jpg faces/01/05.jpg --json",
        again: "",
        outputs: &[],
        replaces: false,
        slow: false,
    },
    Case {
        name: "pack to RecordIO",
        inputs: &["faces", "packed"],
        command: "pack --data faces --out packed --reserve-last 1 --overwrite",
        again: "",
        outputs: &["packed"],
        replaces: true,
        slow: false,
    },
    Case {
        name: "pack to TFRecord",
        inputs: &["faces"],
        command: "pack --data faces --out shards --format seed-tfrecord --shards 2 --reserve-last 0",
        again: "--overwrite",
        outputs: &["shards"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "pack --pairs",
        inputs: &["faces", "pairs.txt", "arrays"],
        command: "pack --pairs pairs.txt --image-root faces --out arrays --overwrite",
        again: "",
        outputs: &["arrays"],
        replaces: true,
        slow: false,
    },
    Case {
        name: "check",
        inputs: &["records"],
        command: "check --data records --batch-size 4 --json check.json",
        again: "",
        outputs: &["check.json"],
        replaces: false,
        slow: false,
    },
    Case {
        name: "import",
        inputs: &["model.onnx", "imported.safetensors"],
        command: "import model.onnx --preset demo --bgr --out imported.safetensors",
        again: "",
        outputs: &["imported.safetensors"],
        replaces: true,
        slow: false,
    },
    Case {
        name: "export",
        inputs: &[W, "exported.h5"],
        command: "export --weights first/weights.safetensors --to torch --out exported.h5",
        again: "",
        outputs: &["exported.h5"],
        replaces: true,
        slow: false,
    },
    Case {
        name: "plan",
        inputs: &[],
        command: "plan --preset demo --device cpu --classes 10 --memory 1",
        again: "",
        outputs: &[],
        replaces: false,
        slow: false,
    },
    Case {
        name: "info",
        inputs: &[],
        command: "info",
        again: "",
        outputs: &[],
        replaces: false,
        slow: false,
    },
    Case {
        name: "demo",
        inputs: &[],
        command: "demo --quick --device cpu --out demo",
        again: "",
        outputs: &["demo"],
        replaces: false,
        slow: true,
    },
];
