"""What the scripts of rivals that run ONNX files share: arguments, timing, the record.

A script gives `bench` its name, its version and a function that takes a file and a batch and returns a function that
embeds the batch once. The files are those that `cargo bench --bench train_step -- --onnx FOLDER` writes: the very networks
that this program runs, with batch norm folded.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np


def bench(rival, version, load):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    record = open(args.json, "w") if args.json else None
    random = np.random.default_rng(1)
    for name in args.networks:
        for batch in [args.batch, 1]:
            x = random.random((batch, 3, 112, 112), np.float32) * 2 - 1
            embed = load(args.folder / f"{name}.onnx", batch)
            steps = args.steps if batch > 1 else 3 * args.steps
            times = []
            for _ in range(steps + 2):
                begin = time.perf_counter()
                embedding = embed(x)
                times.append(time.perf_counter() - begin)
            assert embedding.shape[0] == batch and np.isfinite(embedding).all(), f"{name}: wrong answer"
            seconds = statistics.median(times[2:])
            print(f"{rival} {version} {name:18} batch {batch:4} {batch / seconds:9.1f} img/s {1e3 * seconds:9.2f} ms", flush=True)
            if record:
                line = dict(bench="rival", rival=rival, version=version, network=name, what="infer", batch=batch)
                line |= dict(images_per_second=batch / seconds, milliseconds=1e3 * seconds)
                print(json.dumps(line, separators=(",", ":")), file=record, flush=True)
