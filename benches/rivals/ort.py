"""ONNX Runtime on the CPU, float32: python benches/rivals/ort.py FOLDER NETWORK... (see onnx_networks.py)."""

import onnxruntime
import onnx_networks


def load(path, batch):
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("N", batch)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["embedding"], {"input": x})[0]


onnx_networks.bench("ONNX Runtime", onnxruntime.__version__, load)
