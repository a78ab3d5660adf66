#!/usr/bin/env python3
"""Reads what `train --tensorboard` wrote with TensorBoard's own reader, and compares with metrics.csv and eval.csv.

    python -m pip install tensorboard
    W=$(mktemp -d); RUN="target/release/arcface-cu train --data generated:4x6 --preset demo --batch-size 8 --epochs 3 --eval SETS"
    $RUN --out $W/run --tensorboard $W/board --steps 5
    rm $W/run/checkpoints/*05.safetensors     # as if it had been killed in step 6, long after its last checkpoint
    $RUN --out $W/run --tensorboard $W/board --resume
    python tests/reference/read_events.py $W/board $W/run

Steps that the first session did in vain must be gone: each step once, with the numbers of metrics.csv.
"""
import csv
import io
import struct
import sys
from pathlib import Path

import tensorboard
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2


def single(text):
    """The float32 nearest to a number in decimal."""
    return struct.unpack("f", struct.pack("f", float(text)))[0]


def main(board, run):
    for path in sorted(board.iterdir()):
        events = [event_pb2.Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load()]
        start = [e.step for e in events if e.HasField("session_log")]
        steps = [e.step for e in events if e.HasField("summary")]
        print(f"{len(events)} events, version {events[0].file_version}, session starts at {start}, steps {min(steps)} to {max(steps)}")
    # TensorBoard's default keeps a sample of each series.
    reader = EventAccumulator(str(board), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = reader.Tags()
    print("scalars:", ", ".join(tags["scalars"]))
    print("pictures:", ", ".join(tags["images"]))
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for column in ("loss", "l2", "accuracy", "lr"):
        tag = "train/" + ("learning_rate" if column == "lr" else column)
        found = [(e.step, e.value) for e in reader.Scalars(tag)]
        expected = [(int(row["step"]), single(row[column])) for row in rows]
        assert found == expected, (tag, found, expected)
        print(f"{tag}: {len(found)} steps as in metrics.csv")
    for tag in ("train/images_per_s", "train/data_wait"):
        assert [e.step for e in reader.Scalars(tag)] == [int(row["step"]) for row in rows], tag
    evals = list(csv.DictReader(open(run / "eval.csv")))
    for row in evals:
        for column in ("accuracy", "auc", "eer"):
            found = {e.step: e.value for e in reader.Scalars(f"eval/{row['set']}/{column}")}
            assert found[int(row["step"])] == single(row[column]), (row, column)
    print(f"evaluations: {len(evals)} as in eval.csv")
    for tag in tags["images"]:
        for event in reader.Images(tag):
            picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
            assert picture.size == (event.width, event.height) == (112, 112), picture.size
    shown = [event.step for event in reader.Images(tags["images"][0])]
    print(f"pictures: {len(tags['images'])} of each of the steps {shown}")
    print(f"tensorboard {tensorboard.__version__ if hasattr(tensorboard, '__version__') else tensorboard.version.VERSION}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
