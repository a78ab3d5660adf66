"""The rival of benches/train_step.rs: the same networks and the same step in PyTorch on the CPU.

    python tests/reference/bench_torch.py [resnet50] [mobilenet-v2] [mobilefacenet]

channels_last, float32, batch 32, as many threads as cores; the median of 7 steps after 2. Inference is
eval mode under inference_mode with batch norm folded by torch.fx.experimental.optimization.fuse.
"""

import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse

BATCH, CLASSES = 32, 1000


class ResNet50(nn.Module):
    """Keras's ResNet50: stride on the first 1x1, biases, GAP, Dense 256."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64, 1.001e-5), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        blocks, c = [], 64
        for stage, (n, k) in enumerate(zip([3, 4, 6, 3], [64, 128, 256, 512])):
            for i in range(n):
                blocks.append(Bottleneck(c, k, 2 if i == 0 and stage else 1, i == 0))
                c = 4 * k
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(2048, 256)

    def forward(self, x):
        return self.dense(F.dropout(self.blocks(self.stem(x)).mean((2, 3)), 0.5, self.training))


class Bottleneck(nn.Module):
    def __init__(self, c, k, stride, project):
        super().__init__()
        conv = lambda c, k, r, s: nn.Sequential(nn.Conv2d(c, k, r, s, r // 2), nn.BatchNorm2d(k, 1.001e-5))
        self.a, self.b, self.c = conv(c, k, 1, stride), conv(k, k, 3, 1), conv(k, 4 * k, 1, 1)
        self.project = conv(c, 4 * k, 1, stride) if project else nn.Identity()

    def forward(self, x):
        y = self.c(F.relu(self.b(F.relu(self.a(x), True)), True))
        return F.relu(y + self.project(x), True)


class MobileNetV2(nn.Module):
    """Keras's MobileNetV2, width 1.0 (symmetric padding: the same arithmetic), GAP, Dense 256."""

    def __init__(self):
        super().__init__()
        act = lambda: nn.ReLU6(True)
        layers, c = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32, 1e-3), act()], 32
        for t, k, n, s in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
            for i in range(n):
                layers.append(Inverted(c, k, t, s if i == 0 else 1, act, s == 1 or i > 0))
                c = k
        layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, 1e-3), act()]
        self.features = nn.Sequential(*layers)
        self.dense = nn.Linear(1280, 256)

    def forward(self, x):
        return self.dense(F.dropout(self.features(x).mean((2, 3)), 0.5, self.training))


class Inverted(nn.Module):
    def __init__(self, c, k, t, stride, act, residual):
        super().__init__()
        h, layers = c * t, []
        if t > 1:
            layers += [nn.Conv2d(c, h, 1, bias=False), nn.BatchNorm2d(h, 1e-3), act()]
        layers += [nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False), nn.BatchNorm2d(h, 1e-3), act()]
        layers += [nn.Conv2d(h, k, 1, bias=False), nn.BatchNorm2d(k, 1e-3)]
        self.layers = nn.Sequential(*layers)
        self.residual = residual and c == k and stride == 1

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileFaceNet(nn.Module):
    """Chen et al. 2018, table 1, D = 128."""

    def __init__(self):
        super().__init__()
        pre = lambda c: [nn.BatchNorm2d(c), nn.PReLU(c)]
        layers = [nn.Conv2d(3, 64, 3, 2, 1, bias=False), *pre(64), nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), *pre(64)]
        c = 64
        for t, k, n, s in [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]:
            for i in range(n):
                layers.append(Inverted2(c, k, t, s if i == 0 else 1, pre))
                c = k
        layers += [nn.Conv2d(128, 512, 1, bias=False), *pre(512), nn.Conv2d(512, 512, 7, groups=512, bias=False), nn.BatchNorm2d(512)]
        layers += [nn.Conv2d(512, 128, 1, bias=False), nn.BatchNorm2d(128), nn.Flatten()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Inverted2(nn.Module):
    def __init__(self, c, k, t, stride, pre):
        super().__init__()
        h = c * t
        self.layers = nn.Sequential(
            nn.Conv2d(c, h, 1, bias=False), *pre(h), nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False), *pre(h),
            nn.Conv2d(h, k, 1, bias=False), nn.BatchNorm2d(k))
        self.residual = c == k and stride == 1

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def arcface(x, w, labels, s=30.0, m=0.5):
    cos = F.linear(F.normalize(x), F.normalize(w))
    target = cos.gather(1, labels[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
    return F.cross_entropy(s * cos.scatter(1, labels[:, None], torch.cos(target.acos() + m)), labels)


def median(step, n=7):
    times = []
    for i in range(n + 2):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def main():
    networks = {"resnet50": ResNet50, "mobilenet-v2": MobileNetV2, "mobilefacenet": MobileFaceNet}
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    for name in sys.argv[1:] or networks:
        net = networks[name]().to(memory_format=torch.channels_last)
        x = torch.rand(BATCH, 3, 112, 112).mul(2).sub(1).to(memory_format=torch.channels_last)
        d = 128 if name == "mobilefacenet" else 256
        w = nn.Parameter(torch.randn(CLASSES, d) / math.sqrt(d))
        labels = torch.arange(BATCH)
        params = [*net.parameters(), w]
        optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4)

        def step():
            optimizer.zero_grad(set_to_none=True)
            arcface(net(x), w, labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()

        train = median(step)
        net.eval()
        folded = fuse(net).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            infer = median(lambda: folded(x))
            one = median(lambda: folded(x[:1]), 21)
        print(f"{name:18} train {BATCH / train:8.1f} img/s   infer {BATCH / infer:8.1f} img/s   batch 1 {1e3 * one:7.2f} ms")


main()
