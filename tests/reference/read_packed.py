"""Reads what `arcface-cu pack` wrote with the readers that the formats belong to, and prints what is in it. The same images
with the same labels print the same digest in every format.

    python read_packed.py rec FOLDER            # MXNet's MXIndexedRecordIO, as InsightFace uses it
    python read_packed.py tfrecord FOLDER       # TensorFlow's TFRecordDataset and parse_single_example
    python read_packed.py array FOLDER NAME [BIN]   # bcolz and NumPy; BIN: the InsightFace .bin that it was made of

MXNet 1.9.1 needs Python 3.8 and numpy < 1.24; TensorFlow was 2.21 and bcolz-zipline 1.13, on Python 3.11.
read_packed.txt keeps the commands and what was printed.
"""

import glob
import hashlib
import os
import sys


def sha(data):
    return hashlib.sha256(data).hexdigest()


def report(what, items):
    lines = sorted("%d %s" % (label, sha(data)) for label, data in items)
    labels = {label for label, _ in items}
    print(
        "%s: %d images, %d labels from %d to %d, digest %s"
        % (what, len(items), len(labels), min(labels), max(labels), sha("\n".join(lines).encode())[:16])
    )


def rec(folder):
    import mxnet as mx

    record = mx.recordio.MXIndexedRecordIO(
        os.path.join(folder, "train.idx"), os.path.join(folder, "train.rec"), "r"
    )
    header, _ = mx.recordio.unpack(record.read_idx(0))
    assert header.flag == 2, header
    first, end = int(header.label[0]), int(header.label[1])
    items = []
    for key in range(first, end):
        identity, _ = mx.recordio.unpack(record.read_idx(key))
        for image in range(int(identity.label[0]), int(identity.label[1])):
            head, data = mx.recordio.unpack(record.read_idx(image))
            label = head.label if isinstance(head.label, float) else head.label[0]
            items.append((int(label), data))
    picture = mx.image.imdecode(items[0][1]).asnumpy()
    report("MXNet %s, RecordIO by identity headers" % mx.__version__, items)
    print("  the first decodes to", picture.shape)


def tfrecord(folder):
    import tensorflow as tf

    files = sorted(glob.glob(os.path.join(folder, "*.tfrecord")))
    os.chdir(folder)  # img_path starts here
    text, number = tf.io.FixedLenFeature([], tf.string), tf.io.FixedLenFeature([], tf.int64)
    schemas = [
        ("seed", {"label": number, "filepath": text, "image_raw": text}),
        ("arcface-tf2", {"image/source_id": number, "image/filename": text, "image/encoded": text}),
        ("arcface-tf2 with paths", {"image/source_id": number, "image/img_path": text}),
    ]
    # TensorFlow checks both CRCs of every record.
    records = list(tf.data.TFRecordDataset([os.path.basename(f) for f in files]).as_numpy_iterator())
    for name, schema in schemas:
        try:
            tf.io.parse_single_example(records[0], schema)
        except tf.errors.InvalidArgumentError:
            continue
        items = []
        for record in records:
            parsed = tf.io.parse_single_example(record, schema)
            if name == "seed":
                label, data = parsed["label"], parsed["image_raw"]
            elif name == "arcface-tf2":
                label, data = parsed["image/source_id"], parsed["image/encoded"]
            else:
                label = parsed["image/source_id"]
                data = tf.io.read_file(parsed["image/img_path"])
            items.append((int(label), data.numpy()))
        report("TensorFlow %s, %s, %d files" % (tf.__version__, name, len(files)), items)
        print("  the first decodes to", tf.image.decode_jpeg(items[0][1], channels=3).shape)
        return
    sys.exit("no known schema in %s" % folder)


def array(folder, name, bin_path=None):
    import bcolz
    import numpy as np

    values = bcolz.carray(rootdir=os.path.join(folder, name), mode="r")
    same = np.load(os.path.join(folder, name + "_list.npy"))
    print(
        "bcolz %s, %s: %s %s, chunks of %d, %d pairs, %d of one person"
        % (bcolz.__version__, name, values.shape, values.dtype, values.chunklen, len(same), same.sum())
    )
    if bin_path is None:
        return
    import pickle

    import tensorflow as tf

    with open(bin_path, "rb") as file:
        bins, expected = pickle.load(file, encoding="bytes")
    assert same.tolist() == list(expected)
    decode = lambda data: tf.image.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    pixels = np.stack([decode(data) for data in bins]).astype(np.float32)
    # Back to the pixels of RGB pictures, HWC. Two JPEG decoders may differ by little.
    found = ((values[:] * 0.5 + 0.5) * 255)[:, ::-1].transpose(0, 2, 3, 1)
    error = np.abs(found - pixels)
    print(
        "  pickle %s: the same truth values; pixels differ from TensorFlow's by at most %.3f of 255, %.4f in the mean"
        % (os.path.basename(bin_path), error.max(), error.mean())
    )


{"rec": rec, "tfrecord": tfrecord, "array": array}[sys.argv[1]](*sys.argv[2:])
