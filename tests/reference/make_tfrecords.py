"""Writes golden/tfrecord/ with TensorFlow: what tests/readers_records.rs must read. Tiny PNM pictures stand for JPEGs.

    python -m pip install tensorflow-cpu      # made with tensorflow 2.21
    python make_tfrecords.py
"""

import os

import tensorflow as tf

golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "tfrecord")


def ints(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def picture(k):
    """1 x 2 pixels: (k, 1, 2), (k, 3, 4)."""
    return b"P6 2 1 255\n" + bytes([k, 1, 2, k, 3, 4])


def write(name, examples):
    with tf.io.TFRecordWriter(os.path.join(golden, name)) as writer:
        for features in examples:
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


# Labels with gaps, not in order.
LABELS = [7, 0, 300, 7, 12]

write(
    "seed.tfrecord",
    [
        {"label": ints(label), "filepath": text(f"{label}/{k}.jpg"), "image_raw": text(picture(k))}
        for k, label in enumerate(LABELS)
    ],
)
write(
    "arcface_tf2.tfrecord",
    [
        {
            "image/source_id": ints(label),
            "image/filename": text(f"{k}.jpg"),
            "image/encoded": text(picture(k)),
        }
        for k, label in enumerate(LABELS)
    ],
)
# Names instead of numbers; pictures in files.
os.makedirs(os.path.join(golden, "faces"), exist_ok=True)
for k in range(3):
    with open(os.path.join(golden, "faces", f"{k}.ppm"), "wb") as file:
        file.write(picture(k))
write(
    "arcface_tf2_paths.tfrecord",
    [
        {"image/source_id": text(name), "image/img_path": text(f"faces/{k}.ppm")}
        for k, name in enumerate(["n000012", "n000003", "n000012"])
    ],
)
