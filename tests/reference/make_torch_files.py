"""PyTorch's files in golden/torch, which tests/readers_torch.rs reads and damages. Run it as

    python tests/reference/make_torch_files.py > tests/reference/make_torch_files.txt

Element i of a tensor is (i % 32 - 16) / 8 before it is cut or transposed, which every floating-point type holds exactly.
"""

import collections
import pathlib
import sys

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


def main():
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
    HERE.mkdir(exist_ok=True)
    for name, value in [("state_dict", state_dict()), ("checkpoint", checkpoint()), ("model", torch.nn.Linear(2, 2))]:
        for kind, is_zip in [("zip", True), ("legacy", False)]:
            path = HERE / f"{name}_{kind}.pth"
            torch.save(value, path, _use_new_zipfile_serialization=is_zip)
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
