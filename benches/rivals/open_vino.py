"""OpenVINO on the CPU: python benches/rivals/open_vino.py FOLDER NETWORK... (see onnx_networks.py). In float32, which it
is told: where a processor multiplies bfloat16 it would choose that. ARCFACE_CU_BF16=1 lets it."""

import os

import openvino
import onnx_networks

BF16 = os.environ.get("ARCFACE_CU_BF16") == "1"


def load(path, batch):
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, 3, 112, 112])
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if BF16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
    run = core.compile_model(model, "CPU", hint)
    return lambda x: run(x)[0]


onnx_networks.bench("OpenVINO bf16" if BF16 else "OpenVINO", openvino.__version__.split("-")[0], load)
