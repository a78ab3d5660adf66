"""Small Keras HDF5 files of every layout, written by Keras itself and by h5py: golden/keras/*.h5.

    python make_keras_h5.py     # needs tensorflow, tf-keras, keras 3, h5py

`tests/keras_hostile.rs` reads them: fixed.h5, variable.h5 (strings), split.h5 (layer_names0, layer_names1), whole.h5 (model.save
with an optimizer), keras3.h5 (Keras 3's model.save), keras3.weights.h5 (its other format), gzip.h5
(chunked and compressed), types.h5 (float16, float64, big-endian float32, integers), clash.h5 (two layers' weights of one
name). Every weight's numbers tell which it is (`values`).
"""

import os
import pathlib

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import numpy as np

HERE = pathlib.Path(__file__).parent / "golden" / "keras"
WEIGHTS = {
    "conv": [("conv/kernel:0", (3, 3, 3, 4)), ("conv/bias:0", (4,))],
    "relu": [],
    "bn": [(f"bn/{w}:0", (4,)) for w in ("gamma", "beta", "moving_mean", "moving_variance")],
    "model": [("inner/dense/kernel:0", (4, 2)), ("dense_1/bias:0", (2,))],
}


def values(shape, start):
    """Element i of weight number `start` is start + i / 64: exact in half precision, too."""
    return (start + np.arange(np.prod(shape)) / 64).reshape(shape)


def write(name, strings, split=False, dtype=lambda i: "<f4", weights=WEIGHTS, **storage):
    with h5py.File(HERE / name, "w", libver="earliest") as file:
        layers = list(weights)
        if split:
            file.attrs["layer_names0"], file.attrs["layer_names1"] = strings(layers[:3]), strings(layers[3:])
        else:
            file.attrs["layer_names"] = strings(layers)
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.4.0"
        number = 0
        for layer in layers:
            group = file.create_group(layer)
            group.attrs["weight_names"] = strings([w for w, _ in weights[layer]])
            for weight, shape in weights[layer]:
                data = values(shape, number).astype(dtype(number))
                group.create_dataset(weight, data=data, **storage)
                number += 1
    print(name, (HERE / name).stat().st_size)


def fixed(names):
    return np.array([n.encode() for n in names]) if names else []


def variable(names):
    return np.array(names, dtype=h5py.string_dtype()) if names else []


def genuine():
    import keras
    import tensorflow as tf
    import tf_keras

    def model(keras):
        layers = keras.layers
        inside = keras.Sequential([keras.Input((5, 5, 4)), layers.DepthwiseConv2D(3, name="dw", use_bias=False)], name="inside")
        x = image = keras.Input((7, 7, 3), name="input_image")
        x = layers.Conv2D(4, 3, name="conv")(x)
        x = layers.BatchNormalization(name="bn")(inside(x))
        x = layers.PReLU(shared_axes=[1, 2], name="prelu")(x)
        x = layers.Dense(2, name="features")(layers.GlobalAveragePooling2D()(x))
        model = keras.Model(image, x)
        shapes = [w.shape for w in model.get_weights()]
        model.set_weights([values(shape, i).astype("f4") for i, shape in enumerate(shapes)])
        return model

    old = model(tf_keras)
    old.compile(tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9), "mse")
    old.optimizer._create_all_weights(old.trainable_variables)
    old.save(HERE / "whole.h5")
    new = model(keras)
    new.save(HERE / "keras3.h5")
    new.save_weights(HERE / "keras3.weights.h5")
    for name in ("whole.h5", "keras3.h5", "keras3.weights.h5"):
        print(name, (HERE / name).stat().st_size)
    print(f"TensorFlow {tf.__version__}, tf-keras {tf_keras.__version__}, Keras {keras.__version__}, h5py {h5py.__version__}")
    for w in old.weights:
        print(" ", w.name, tuple(w.shape))


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    write("fixed.h5", fixed)
    write("variable.h5", variable)
    write("split.h5", fixed, split=True)
    write("gzip.h5", fixed, chunks=True, compression="gzip")
    write("types.h5", variable, dtype=lambda i: ["<f2", "<f8", ">f4", "<i4"][i % 4])
    write("clash.h5", fixed, weights={"a": [("d/kernel:0", (2, 1))], "b": [("d/kernel:0", (1, 2)), ("d/bias:0", (2,))]})
    genuine()
