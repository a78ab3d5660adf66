#!/usr/bin/env python3
"""Runs exported networks in ONNX Runtime and compares with this program's own embeddings.

    ARCFACE_CU_ONNX_OUT=/tmp/onnx cargo test --release --test onnx -- --ignored
    python -m pip install onnx onnxruntime numpy
    python tests/reference/check_onnx.py /tmp/onnx

That test writes every preset's network (embedding size 8, no weight left as it starts) four times, with batch norm folded and
kept and the input transform outside and inside, beside pixels.npy and what this program's CPU backend answers. Here each file
passes onnx.checker with shape inference, runs at batch 1 and 3, and must agree to 1e-4 of the largest number.
"""
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

TOLERANCE = 1e-4


def main(folder):
    pixels = np.load(folder / "pixels.npy").astype(np.float32).transpose(0, 3, 1, 2)
    worst = 0.0
    files = sorted(folder.glob("*.onnx"))
    for path in files:
        name = path.name.split(".")[0]
        expected = np.load(folder / f"{name}.npy")
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 8 and model.opset_import[0].version == 17, path
        notes = {entry.key: entry.value for entry in model.metadata_props}
        assert notes["colour_order"] == "RGB" and int(notes["embedding_size"]) == expected.shape[1], notes
        x = pixels
        if notes["input_transform"] == "outside":
            scale, shift = (np.array(notes[key].split(), np.float32)[:, None, None] for key in ("input_scale", "input_shift"))
            x = pixels * scale + shift
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        errors = []
        for batch in (1, 3):
            (found,) = session.run(["embedding"], {"input": x[:batch]})
            assert found.shape == (batch, expected.shape[1]), found.shape
            error = np.abs(found - expected[:batch]).max() / np.abs(expected).max()
            assert error <= TOLERANCE, f"{path.name}, batch {batch}: {error}"
            errors.append(error)
        worst = max(worst, *errors)
        ops = len(model.graph.node)
        print(f"{path.name}: {ops} nodes, relative error {errors[0]:.1e} at batch 1, {errors[1]:.1e} at batch 3")
    assert files, f"no .onnx file in {folder}"
    print(f"{len(files)} files agree, at worst to {worst:.1e}")
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
