"""InsightFace's networks in PyTorch, float64, with weights by a formula that tests/insightface.rs repeats.

Written from the definition of `arcface_torch/backbones` (layer names are those of its state dicts). Run it as

    python tests/reference/insightface.py > tests/reference/insightface.txt

It counts parameters, embeds two pictures with each network in eval mode and writes the embeddings, (2, 512) float32 a
network, to tests/reference/golden/insightface.safetensors. `read_torch_export.py` uses the networks as well.
"""

import math
import pathlib
import sys

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
BLOCKS = {
    "r18": [2, 2, 2, 2],
    "r34": [3, 4, 6, 3],
    "r50": [3, 4, 14, 3],
    "r100": [3, 13, 30, 3],
}


class Block(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c)
        self.conv1 = nn.Conv2d(c, k, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(k)
        self.prelu = nn.PReLU(k)
        self.conv2 = nn.Conv2d(k, k, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(k)
        self.downsample = None
        if stride != 1:
            shortcut = nn.Conv2d(c, k, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(k))

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    def __init__(self, blocks, size=512):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        c = 64
        for stage, (count, k) in enumerate(zip(blocks, [64, 128, 256, 512])):
            parts = [Block(c if i == 0 else k, k, 2 if i == 0 else 1) for i in range(count)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
            c = k
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, size)
        self.features = nn.BatchNorm1d(size)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad = False

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


class Layers(nn.Module):
    """Parts under the name `layers`."""

    def __init__(self, *parts, residual=False):
        super().__init__()
        self.layers = nn.Sequential(*parts)
        self.residual = residual

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.residual else y


def linear_block(c, k, kernel=1, stride=1, pad=0, groups=1):
    conv = nn.Conv2d(c, k, kernel, stride, pad, groups=groups, bias=False)
    return Layers(conv, nn.BatchNorm2d(k))


def conv_block(c, k, kernel=1, stride=1, pad=0, groups=1):
    conv = nn.Conv2d(c, k, kernel, stride, pad, groups=groups, bias=False)
    return Layers(conv, nn.BatchNorm2d(k), nn.PReLU(k))


def bottleneck(c, hidden, k, stride, residual):
    expand = conv_block(c, hidden)
    depthwise = conv_block(hidden, hidden, 3, stride, 1, groups=hidden)
    return Layers(expand, depthwise, linear_block(hidden, k), residual=residual)


def residuals(c, hidden, count):
    return Layers(*[bottleneck(c, hidden, c, 1, True) for _ in range(count)])


class MobileFaceNet(nn.Module):
    """`get_mbf` with blocks (1, 4, 6, 2) and scale 2. The second convolution has 64 groups of two channels: upstream
    scales the channels and leaves the groups."""

    def __init__(self, size=512):
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(3, 128, 3, 2, 1),
            conv_block(128, 128, 3, 1, 1, groups=64),
            bottleneck(128, 128, 128, 2, False),
            residuals(128, 128, 4),
            bottleneck(128, 256, 256, 2, False),
            residuals(256, 256, 6),
            bottleneck(256, 512, 256, 2, False),
            residuals(256, 256, 2),
        )
        self.conv_sep = conv_block(256, 512)
        self.features = Layers(
            linear_block(512, 512, 7, groups=512),
            nn.Flatten(),
            nn.Linear(512, size, bias=False),
            nn.BatchNorm1d(size),
        )

    def forward(self, x):
        return self.features(self.conv_sep(self.layers(x)))


def network(name):
    return MobileFaceNet() if name == "mbf" else IResNet(BLOCKS[name])


def hashed(name, count):
    """`count` numbers in [0, 1), multiples of 2^-24: SplitMix64 of the name's FNV-1a hash and the index."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def value(name, shape):
    """A state dict's tensor by its name and shape, float32."""
    if name == "features.weight":
        return np.ones(shape, np.float32)
    if len(shape) > 1:
        low = -math.sqrt(3 / math.prod(shape[1:]))
        high = -low
    else:
        ends = {
            "weight": (0.3, 1.2),
            "bias": (-0.1, 0.1),
            "running_mean": (-0.1, 0.1),
            "running_var": (0.5, 1.5),
        }
        low, high = ends[name.rsplit(".")[-1]]
    u = hashed(name, math.prod(shape))
    return (low + u * (high - low)).astype(np.float32).reshape(shape)


def filled(net):
    """The network with its weights by the formula, in float64 and eval mode."""
    state = {
        key: torch.from_numpy(value(key, tuple(tensor.shape)))
        for key, tensor in net.state_dict().items()
        if tensor.is_floating_point()
    }
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing)
    return net.double().eval()


def pictures():
    """Pictures 0 and 1 of tests/support, NCHW in [-1, 1]."""
    y, x = np.mgrid[0:112, 0:112]
    images = []
    for n in range(2):
        wave = (x * (3 + n % 7) + y * (2 + n % 5) + 17 * n) % 256
        images.append(np.stack([wave, (x + 29 * n) % 256 ^ 0x2A, (2 * y + x // 3) % 256]))
    return torch.from_numpy(np.stack(images) / 127.5 - 1.0)


def embed(networks, file):
    """Counts the parameters of each network by name, and writes the embeddings of two pictures."""
    # Imported here, so that other scripts can use the networks without it.
    import safetensors
    from safetensors.numpy import save_file

    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, safetensors {safetensors.__version__}")
    embeddings = {}
    for name, net in networks.items():
        net = filled(net)
        learnt = sum(p.numel() for p in net.parameters())
        statistics = sum(b.numel() for b in net.buffers() if b.is_floating_point())
        with torch.no_grad():
            embedding = net(pictures()).numpy()
        a, b = embedding
        cosine = a @ b / math.sqrt((a @ a) * (b @ b))
        largest = np.abs(embedding).max()
        print(f"{name}: {learnt} parameters, {statistics} statistics; largest {largest:.4f}, cosine {cosine:.4f}")
        embeddings[name] = embedding.astype(np.float32)
    save_file(embeddings, HERE / "golden" / file)


if __name__ == "__main__":
    embed({name: network(name) for name in [*BLOCKS, "mbf"]}, "insightface.safetensors")
