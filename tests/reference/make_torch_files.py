"""PyTorch's files in golden/torch, which tests/readers_torch.rs reads and damages. Run it as

    python tests/reference/make_torch_files.py > tests/reference/make_torch_files.txt

Element i of a tensor is (i % 32 - 16) / 8 before it is cut or transposed, which every floating-point type holds exactly.
"""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent / "golden" / "torch"


def numbers(*shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return ((torch.arange(count) % 32 - 16) / 8).reshape(shape).to(dtype)


def state_dict():
    weight = numbers(2, 3, 2, 2)
    return collections.OrderedDict(
        [
            ("conv.weight", weight),
            ("tied", weight),
            ("half", numbers(5, dtype=torch.float16)),
            ("bfloat", numbers(5, dtype=torch.bfloat16)),
            ("double", numbers(5, dtype=torch.float64)),
            ("transposed", numbers(3, 4).t()),
            ("cut", numbers(4, 6)[1:, ::2]),
            ("permuted", numbers(2, 3, 4).permute(2, 0, 1)),
            ("parameter", torch.nn.Parameter(numbers(3))),
            ("scalar", numbers(4)[3]),
            ("empty", numbers(0, 3)),
            ("bn.num_batches_tracked", torch.tensor(7)),
            ("mask", torch.tensor([True, False])),
        ]
    )


def checkpoint():
    parallel = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in parallel.parameters():
            parameter.copy_(numbers(*parameter.shape))
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    parallel(numbers(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in parallel.parameters():
            parameter.copy_(numbers(*parameter.shape))
            optimizer.state[parameter]["momentum_buffer"].copy_(numbers(*parameter.shape))
    return {
        "epoch": 3,
        "best": 0.5,
        "arch": "linear",
        "state_dict": parallel.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sizes": numbers(2, 3).shape,
        "history": [1, 2],
    }


class Mode(enum.Enum):
    FAST = 1


def objects():
    """A state dict beside what people keep with it, and among it one weight that is no tensor."""
    return {
        "state_dict": collections.OrderedDict([("weight", numbers(2, 3)), ("bias", numbers(2).numpy())]),
        "more": collections.defaultdict(list, scale=numbers(2)),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1")),
        "counts": collections.Counter("aab"),
        "queue": collections.deque([1, 2]),
        "names": {"a", "b"},
        "fixed": frozenset([1]),
        "path": pathlib.PurePosixPath("runs/1"),
        "mode": Mode.FAST,
        "callback": functools.partial(print, 1),
        "callbacks": {collections.OrderedDict: 1, ("a", 1): 2},
        "seed": 2**63 + 1,
        "size": -(2**70),
        "numpy_state": np.random.RandomState(0).get_state(),
        "date": datetime.date(2026, 1, 1),
        "quantised": torch.quantize_per_tensor(numbers(4), 0.125, 0, torch.qint8),
        "complex": torch.zeros(2, dtype=torch.complex64),
    }


def main():
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
    HERE.mkdir(exist_ok=True)
    files = [
        ("state_dict", state_dict()),
        ("checkpoint", checkpoint()),
        ("model", torch.nn.Linear(2, 2)),
        ("objects", objects()),
    ]
    for name, value in files:
        for kind, is_zip in [("zip", True), ("legacy", False)]:
            path = HERE / f"{name}_{kind}.pth"
            # Of the objects each form has another protocol.
            protocol = 4 if name == "objects" and is_zip else 2
            torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
