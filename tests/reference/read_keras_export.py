"""Networks of TensorFlow's Keras through this program and back, with no number of this program's in between.

    python read_keras_export.py ARCFACE_CU      # needs tensorflow, tf-keras (Keras 2), keras (Keras 3), h5py, numpy

For each network of face_recognition_tf2 and arcface-tf2, built here with Keras 2 as those projects build it (layers and names by
their public sources), with random weights and statistics:

1. Keras saves the weights, `arcface-cu import` reads them, `arcface-cu embed` embeds pictures: cosines to Keras's own embeddings.
2. `arcface-cu export --to keras-h5` writes them. h5py walks the file: every layer has its group, `weight_names` and float32 datasets.
3. Keras loads it into a new model with load_weights, by order and again with by_name=True: every weight has the same bits, and none
   kept its first value. Keras 3 loads it, too.

read_keras_export.txt keeps what was printed.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import keras as keras3
import numpy as np
import tensorflow as tf
import tf_keras as keras2

SIZE = 112


def arcface_layers(keras):
    """The class layers of the two projects: what they and their weights are called."""

    class ArcFaceLayer(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(int(shape[-1]), 24))

        def call(self, x):
            return tf.matmul(tf.nn.l2_normalize(x, 1), tf.nn.l2_normalize(self.w, 0))

    class ArcMarginPenaltyLogists(ArcFaceLayer):
        def build(self, shape):
            self.w = self.add_weight(name="weights", shape=(int(shape[-1]), 24))

    return ArcFaceLayer, ArcMarginPenaltyLogists


def seed(keras, application, head):
    keras.backend.clear_session()  # names are numbered by session
    layers = keras.layers
    image = layers.Input((SIZE, SIZE, 3), name="input_image")
    backbone = application(include_top=False, input_shape=(SIZE, SIZE, 3), weights=None, input_tensor=image)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(backbone.output))
    x = layers.Dense(256, name="features")(x)
    if head:
        x = arcface_layers(keras)[0]()(x)
    return keras.Model(image, x)


def arcface_tf2(keras, application, head):
    keras.backend.clear_session()
    layers = keras.layers
    image = layers.Input((SIZE, SIZE, 3), name="input_image")
    backbone = application(include_top=False, input_shape=(SIZE, SIZE, 3), weights=None)
    if "mobilenet" in backbone.name:
        backbone._name = "mobilenetv2_1.00_224"  # its name where it starts from ImageNet's weights, as it does there
    x = backbone(image)
    y = inside = layers.Input(x.shape[1:])
    y = layers.Dropout(0.5)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Dense(512)(layers.Flatten()(y)))
    x = keras.Model(inside, y, name="OutputLayer")(x)
    if head:
        inside = layers.Input(x.shape[1:])
        x = keras.Model(inside, arcface_layers(keras)[1]()(inside), name="ArcHead")(x)
    return keras.Model(image, x)


def randomise(model, random):
    """Numbers that keep activations in range, and no two weights alike."""
    values = []
    for weight in model.weights:
        shape, name = weight.shape, weight.name
        fan_in = np.prod(shape[:-1]) if len(shape) == 2 or shape[-1] > 1 else np.prod(shape[:2])
        if len(shape) > 1:
            value = random.standard_normal(shape) * np.sqrt(1.5 / fan_in)
        elif "gamma" in name or "variance" in name:
            value = random.uniform(0.7, 1.3, shape)
        else:
            value = 0.2 * random.standard_normal(shape)
        values.append(value.astype(np.float32))
    model.set_weights(values)


def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(w) for w in words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def structure(path):
    with h5py.File(path, "r") as file:
        layers = [name.decode() for name in file.attrs["layer_names"]]
        assert set(layers) == set(file.keys()) and len(set(layers)) == len(layers)
        assert file.attrs["backend"].decode() == "tensorflow" and file.attrs["keras_version"].decode()[0] == "2"
        weights, numbers = 0, 0
        for layer in layers:
            names = [name.decode() for name in file[layer].attrs["weight_names"]]
            found = []
            file[layer].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            assert sorted(found) == sorted(names), (layer, found, names)
            for name in names:
                data = file[layer][name]
                assert data.dtype == np.dtype("<f4") and data.chunks is None
                assert np.isfinite(data[()]).all()
                weights, numbers = weights + 1, numbers + data.size
        return f"{len(layers)} layers, {weights} weights, {numbers:,} numbers"


def same(what, model, expected, before):
    now = model.get_weights()
    assert len(now) == len(expected)
    for weight, a, b, old in zip(model.weights, now, expected, before):
        assert a.dtype == np.float32 and a.tobytes() == b.tobytes(), (what, weight.name)
        assert a.tobytes() != old.tobytes(), (what, weight.name, "was not loaded")
    return f"{len(now)} weights with the same bits"


def check(program, folder, name, build, application, head):
    random = np.random.default_rng(len(name))
    model = build(keras2, getattr(keras2.applications, application), head)
    randomise(model, random)
    path, own, out = folder / "a.h5", folder / "b.safetensors", folder / "c.h5"
    model.save_weights(path)
    run(program, "import", path, "--out", own)
    words = [program, "export", "--weights", own, "--to", "keras-h5", "--out", out]
    run(*words, *(["--classes"] if head else []))
    print(f"{name}: {structure(out)}")
    expected = model.get_weights()
    for by_name in (False, True):
        other = build(keras2, getattr(keras2.applications, application), head)
        randomise(other, np.random.default_rng(99))
        before = other.get_weights()
        other.load_weights(out, by_name=by_name)
        print(f"  Keras 2, by_name={by_name}: {same(name, other, expected, before)}")
    if not head:
        other = build(keras3, getattr(keras3.applications, application), head)
        other.load_weights(out)
        pixels = random.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
        images = []
        for i, image in enumerate(pixels):
            images.append(folder / f"{i}.png")
            images[-1].write_bytes(tf.io.encode_png(image).numpy())
        wanted = model.predict(pixels / np.float32(255), verbose=0)
        third = other.predict(pixels / np.float32(255), verbose=0)
        worst = np.abs(third - wanted).max() / np.abs(wanted).max()
        print(f"  Keras 3: outputs differ by {worst:.1e} of the largest")
        assert worst <= 1e-4
        run(program, "embed", "--weights", path, "--images", *images, "--out", folder / "e", "--overwrite", "--tta", "none", "--device", "cpu")
        ours = np.load(folder / "e" / "embeddings.npy")
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        worst = np.abs(ours - wanted).max() / np.abs(wanted).max()
        print(f"  arcface-cu embed of the .h5 itself: unit vectors differ by {worst:.1e} of the largest element")
        assert worst <= 1e-4


if __name__ == "__main__":
    program = pathlib.Path(sys.argv[1]).resolve()
    print(
        f"TensorFlow {tf.__version__}, tf-keras {keras2.__version__}, Keras {keras3.__version__}, h5py {h5py.__version__}"
        f" (HDF5 {h5py.version.hdf5_version}), NumPy {np.__version__}"
    )
    for head in (False, True):
        for name, build, application in [
            ("seed-mobilenetv2", seed, "MobileNetV2"),
            ("seed-resnet50", seed, "ResNet50"),
            ("arcface-tf2-mobilenetv2", arcface_tf2, "MobileNetV2"),
            ("arcface-tf2-resnet50", arcface_tf2, "ResNet50"),
        ]:
            with tempfile.TemporaryDirectory() as folder:
                title = name + (" with its ArcFace layer" if head else "")
                check(program, pathlib.Path(folder), title, build, application, head)
