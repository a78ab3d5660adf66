"""Loads exported state dicts into PyTorch's networks, strictly, and compares what they compute. Run it as

    mkdir -p /tmp/exports
    ARCFACE_CU_EXPORTS=/tmp/exports cargo test --release --test insightface -- --ignored write_exports
    python tests/reference/read_torch_export.py /tmp/exports > tests/reference/read_torch_export.txt

The files hold the weights by the formula in `insightface.py`, so every tensor and both embeddings are known.
"""

import pathlib
import sys

import safetensors
import torch
from safetensors.torch import load_file

from insightface import filled, network, pictures


def main():
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, safetensors {safetensors.__version__}")
    files = sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors"))
    assert files, f"{sys.argv[1]} has no exports"
    for path in files:
        net = network(path.stem)
        print(path.name, net.load_state_dict(load_file(path), strict=True))
        expected = filled(network(path.stem))
        net.double().eval()
        names = expected.state_dict()
        same = [torch.equal(net.state_dict()[name], names[name]) for name in names if names[name].is_floating_point()]
        with torch.no_grad():
            difference = (net(pictures()) - expected(pictures())).abs().max().item()
        print(f"  {sum(same)} of {len(same)} tensors are equal, largest difference of embeddings {difference}")
        assert all(same) and difference == 0.0


if __name__ == "__main__":
    main()
