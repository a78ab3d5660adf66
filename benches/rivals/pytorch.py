"""The counterpart of benches/train_step.rs: the same networks and the same step in PyTorch.

    python benches/rivals/pytorch.py [--device cpu|cuda] [--bf16] [--train] [--infer] [--batch N] [--json FILE]
        [--steps N] [NETWORK...]

On the CPU: channels_last, float32 (--bf16: autocast), batch 32, as many threads as cores; the median of 7 steps after 2.
Inference is eval mode under inference_mode with batch norm folded by torch.fx.experimental.optimization.fuse.

On a GPU: channels_last, bf16 autocast, batch 512, the median of 20 steps after 5. Training runs in eager mode, and for
ResNet50 also compiled (torch.compile) and as one CUDA graph. A run that fails is reported, and the next one follows.
--json writes one object per line, each as soon as it is known.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse

# The parcel for a machine with a GPU holds both files in one folder.
sys.path.append(str(pathlib.Path(__file__).parent / "../../tests/reference"))
import insightface

CLASSES = 1000


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


# Network and embedding size.
NETWORKS = {
    "resnet50": (ResNet50, 256),
    "mobilenet-v2": (MobileNetV2, 256),
    "mobilefacenet": (MobileFaceNet, 128),
    "iresnet50": (lambda: insightface.network("r50"), 512),
    "iresnet100": (lambda: insightface.network("r100"), 512),
    "insightface-mbf": (lambda: insightface.network("mbf"), 512),
}
CPU_NETWORKS = ["resnet50", "mobilenet-v2", "mobilefacenet"]


class Bench:
    def __init__(self, device, steps, bf16):
        self.device = torch.device(device)
        self.gpu = device != "cpu"
        self.bf16 = bf16 or self.gpu
        self.batch = 512 if self.gpu else 32
        self.steps = steps or (20 if self.gpu else 7)

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    def autocast(self):
        # The cache is off, because a captured graph must not use it.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def median(self, step, n):
        times = []
        for i in range(n + (5 if self.gpu else 2)):
            self.wait()
            begin = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[-n:])

    def network(self, name):
        make, d = NETWORKS[name]
        return make().to(self.device, memory_format=torch.channels_last), d

    def pixels(self):
        x = torch.rand(self.batch, 3, 112, 112, device=self.device)
        return x.mul(2).sub(1).to(memory_format=torch.channels_last)

    def train(self, name, kind):
        """Seconds of a step: `eager`, `compiled` or `graph`."""
        net, d = self.network(name)
        x = self.pixels()
        w = nn.Parameter(torch.randn(CLASSES, d, device=self.device) / math.sqrt(d))
        labels = torch.arange(self.batch, device=self.device)
        params = [p for p in [*net.parameters(), w] if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4)
        run = torch.compile(net) if kind == "compiled" else net

        def step():
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                embedding = run(x)
            loss = arcface(embedding.float(), w, labels)
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in params if p is not w], 5.0)
            optimizer.step()
            return loss

        if kind != "graph":
            return self.median(step, self.steps)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return self.median(graph.replay, self.steps)

    def infer(self, name, batch):
        net, _ = self.network(name)
        x = self.pixels()[:batch]
        folded = fuse(net.eval()).to(memory_format=torch.channels_last)
        with torch.inference_mode(), self.autocast():
            return self.median(lambda: folded(x), self.steps if batch > 1 else 3 * self.steps)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--bf16", action="store_true", help="on the CPU as well")
    parser.add_argument("--train", action="store_true", help="training alone")
    parser.add_argument("--infer", action="store_true", help="inference alone")
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    args = parser.parse_args()
    for name in args.networks:
        if name not in NETWORKS:
            parser.error(f"{name} is none of {', '.join(NETWORKS)}")
    torch.manual_seed(1)
    bench = Bench(args.device, args.steps, args.bf16)
    bench.batch = args.batch or bench.batch
    if bench.gpu:
        # The usual settings for speed: TF32 where float32 is left, the fastest algorithm of each convolution.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    where = torch.cuda.get_device_name() if bench.gpu else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, batch {bench.batch}", flush=True)
    record = open(args.json, "w") if args.json else None
    failed = False

    def tell(name, what, batch, kind, measure):
        nonlocal failed
        try:
            seconds = measure()
        except Exception as error:  # noqa: BLE001
            print(f"{name:18} {what:6} {kind:9} failed: {error}", flush=True)
            failed = True
            return
        print(f"{name:18} {what:6} {kind:9} batch {batch:4} {batch / seconds:9.1f} img/s {1e3 * seconds:9.2f} ms", flush=True)
        if record:
            line = dict(bench="torch", torch=torch.__version__, device=where, network=name, what=what, kind=kind)
            line |= dict(rival="PyTorch bf16" if bench.bf16 else "PyTorch", version=torch.__version__)
            line |= dict(batch=batch, images_per_second=batch / seconds, milliseconds=1e3 * seconds)
            print(json.dumps(line, separators=(",", ":")), file=record, flush=True)

    names = args.networks or CPU_NETWORKS
    train, infer = (args.train, args.infer) if args.train or args.infer else (True, True)
    # Training of all networks comes first, because it matters most.
    for name in names if train else []:
        tell(name, "train", bench.batch, "eager", lambda: bench.train(name, "eager"))
    if train and bench.gpu and "resnet50" in names:
        for kind in ["compiled", "graph"]:
            tell("resnet50", "train", bench.batch, kind, lambda: bench.train("resnet50", kind))
    for name in names if infer else []:
        for batch in [bench.batch, 1]:
            tell(name, "infer", batch, "eager", lambda: bench.infer(name, batch))
    sys.exit(failed)


main()
