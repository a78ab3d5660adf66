"""Golden values of whole networks: PyTorch in float64, written from the papers' and frameworks' definitions alone.

Four narrow networks (Keras ResNet, Keras MobileNetV2, MobileFaceNet, InsightFace IResNet), each with its framework's
embedding, margin and SGD. One safetensors file per network; tests/device/golden.rs builds the same networks with the
graph's builder and compares. Weights are drawn here and rounded to float32, so both sides start from the same numbers.

    python golden.py            # needs torch, numpy, safetensors; writes golden/*.safetensors beside this file
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent


def rounded(values):
    """The nearest float32 numbers, as float64."""
    return torch.from_numpy(np.asarray(values, np.float32).astype(np.float64))


class Net:
    """Layers by name. Parameters appear at their first use, in our layouts: KRSC, RSC, KC, C."""

    def __init__(self, seed, epsilon, kept):
        self.random = np.random.default_rng(seed)
        self.epsilon, self.kept = epsilon, kept
        self.params, self.statistics, self.clipped = {}, {}, {}

    def draw(self, name, shape, deviation, centre=0.0):
        if name not in self.params:
            values = centre + deviation * self.random.standard_normal(shape)
            self.params[name] = rounded(values).requires_grad_()
        return self.params[name]

    def bias(self, name, k, wanted):
        return self.draw(f"{name}/bias", (k,), 0.1) if wanted else None

    def conv(self, name, x, k, kernel, stride=1, pad=(0, 0, 0, 0), bias=False):
        """`pad` is (left, right, top, bottom)."""
        c = x.shape[1]
        w = self.draw(f"{name}/kernel", (k, kernel, kernel, c), math.sqrt(2 / (kernel * kernel * c)))
        b = self.bias(name, k, bias)
        return F.conv2d(F.pad(x, pad), w.permute(0, 3, 1, 2), b, stride)

    def depthwise(self, name, x, kernel, stride=1, pad=(0, 0, 0, 0)):
        c = x.shape[1]
        w = self.draw(f"{name}/depthwise_kernel", (kernel, kernel, c), math.sqrt(2) / kernel)
        return F.conv2d(F.pad(x, pad), w.permute(2, 0, 1)[:, None], None, stride, groups=c)

    def dense(self, name, x, k):
        w = self.draw(f"{name}/kernel", (k, x.shape[1]), math.sqrt(1 / x.shape[1]))
        return F.linear(x, w, self.bias(name, k, True))

    def bn(self, name, x, gamma=True, centre=1.0, kept=None):
        c = x.shape[1]
        g = self.draw(f"{name}/gamma", (c,), 0.3, centre) if gamma else torch.ones(c)
        b = self.draw(f"{name}/beta", (c,), 0.3)
        mean = self.statistics.setdefault(f"{name}/moving_mean", torch.zeros(c))
        variance = self.statistics.setdefault(f"{name}/moving_variance", torch.ones(c))
        return F.batch_norm(x, mean, variance, g, b, True, 1 - (kept or self.kept), self.epsilon)

    def prelu(self, name, x):
        return F.prelu(x, self.draw(f"{name}/alpha", (x.shape[1],), 0.1, 0.25))

    def relu6(self, name, x):
        self.clipped[name] = (x > 6).double().mean().item()
        return F.relu6(x)


def same(amount):
    return (amount,) * 4


def keras_pad(x):
    """`correct_pad` for a strided 3x3 convolution: (0, 1) on even sizes, (1, 1) on odd."""
    h, w = x.shape[2:]
    return (w % 2, 1, h % 2, 1)


def flatten_hwc(x):
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def resnet(net, x):
    def conv(name, x, k, kernel, stride, pad):
        return net.bn(f"{name}_bn", net.conv(f"{name}_conv", x, k, kernel, stride, same(pad), bias=True))

    def bottleneck(name, x, k, stride, project):
        shortcut = conv(f"{name}_0", x, 4 * k, 1, stride, 0) if project else x
        y = F.relu(conv(f"{name}_1", x, k, 1, stride, 0))
        y = F.relu(conv(f"{name}_2", y, k, 3, 1, 1))
        return F.relu(shortcut + conv(f"{name}_3", y, 4 * k, 1, 1, 0))

    x = F.relu(conv("conv1", x, 8, 7, 2, 3))
    x = F.max_pool2d(x, 3, 2, 1)
    x = bottleneck("conv2_block1", x, 4, 1, True)
    x = bottleneck("conv2_block2", x, 4, 1, False)
    x = bottleneck("conv3_block1", x, 6, 2, True)
    return net.dense("dense", x.mean((2, 3)), 12)


def mobilenet_v2(net, x):
    x = net.conv("Conv1", x, 8, 3, 2, keras_pad(x))
    x = net.relu6("Conv1_relu", net.bn("bn_Conv1", x, centre=3.0))
    for block, (expansion, k, stride) in enumerate([(1, 4, 1), (6, 6, 2), (6, 6, 1), (6, 6, 1), (6, 8, 2)]):
        name = f"block_{block}" if block else "expanded_conv"
        y = x
        if block:
            y = net.conv(f"{name}_expand", y, expansion * x.shape[1], 1)
            y = net.relu6(f"{name}_expand_relu", net.bn(f"{name}_expand_BN", y, centre=2.0))
        y = net.depthwise(f"{name}_depthwise", y, 3, stride, keras_pad(y) if stride == 2 else same(1))
        y = net.relu6(f"{name}_depthwise_relu", net.bn(f"{name}_depthwise_BN", y, centre=2.0))
        y = net.bn(f"{name}_project_BN", net.conv(f"{name}_project", y, k, 1))
        x = x + y if stride == 1 and x.shape[1] == k else y
    x = net.relu6("out_relu", net.bn("Conv_1_bn", net.conv("Conv_1", x, 24, 1), centre=2.0))
    # arcface-tf2's output layer has Keras's default momentum, not the backbone's.
    x = net.bn("batch_normalization", x, kept=0.99)
    return net.bn("batch_normalization_1", net.dense("dense", flatten_hwc(x), 14), kept=0.99)


def mobilefacenet(net, x):
    def norm_prelu(name, x):
        return net.prelu(f"{name}_prelu", net.bn(f"{name}_bn", x))

    x = norm_prelu("conv1", net.conv("conv1", x, 8, 3, 2, same(1)))
    x = norm_prelu("conv2_dw", net.depthwise("conv2_dw", x, 3, 1, same(1)))
    for block, (expansion, k, stride) in enumerate([(2, 8, 2), (2, 8, 1), (4, 12, 2), (2, 12, 1), (2, 12, 1)]):
        name = f"block_{block + 1}"
        y = norm_prelu(f"{name}_expand", net.conv(f"{name}_expand", x, expansion * x.shape[1], 1))
        y = norm_prelu(f"{name}_dw", net.depthwise(f"{name}_dw", y, 3, stride, same(1)))
        y = net.bn(f"{name}_project_bn", net.conv(f"{name}_project", y, k, 1))
        x = x + y if stride == 1 and x.shape[1] == k else y
    x = norm_prelu("conv_last", net.conv("conv_last", x, 24, 1))
    x = net.bn("conv_global_dw_bn", net.depthwise("conv_global_dw", x, x.shape[2]))
    return net.bn("embedding_bn", net.conv("embedding", x, 10, 1))[:, :, 0, 0]


def iresnet(net, x):
    def block(name, x, k, stride):
        y = net.conv(f"{name}.conv1", net.bn(f"{name}.bn1", x), k, 3, 1, same(1))
        y = net.prelu(f"{name}.prelu", net.bn(f"{name}.bn2", y))
        y = net.bn(f"{name}.bn3", net.conv(f"{name}.conv2", y, k, 3, stride, same(1)))
        if stride > 1:
            shortcut = net.conv(f"{name}.downsample.0", x, k, 1, stride)
            x = net.bn(f"{name}.downsample.1", shortcut)
        return y + x

    x = net.prelu("prelu", net.bn("bn1", net.conv("conv1", x, 6, 3, 1, same(1))))
    x = block("layer1.0", x, 6, 2)
    x = block("layer1.1", x, 6, 1)
    x = block("layer2.0", x, 10, 2)
    x = block("layer2.1", x, 10, 1)
    return net.bn("features", net.dense("fc", flatten_hwc(net.bn("bn2", x)), 12), gamma=False)


def arcface(x, classes, labels, s, m, guard, straight_through):
    """Mean cross-entropy of ArcFace logits; m is added to the target's angle."""
    cos = F.normalize(x) @ F.normalize(classes).T
    rows = torch.arange(len(labels))
    target = cos[rows, labels]
    with_margin = torch.cos(torch.acos(target.clamp(-1 + 1e-7, 1 - 1e-7)) + m)
    if guard:
        with_margin = torch.where(target <= math.cos(math.pi - m), target - m * math.sin(m), with_margin)
    if straight_through:
        with_margin = target + (with_margin - target).detach()
    logits = s * cos.index_put((rows, labels), with_margin)
    return F.cross_entropy(logits, labels), target.detach()


def sgd(form, lr, mu, w, g, v):
    if form == "torch":
        v.mul_(mu).add_(g)
        w.sub_(lr * v)
    else:
        v.mul_(mu).sub_(lr * g)
        w.add_(mu * v - lr * g if form == "keras-nesterov" else v)


CASES = {
    "resnet": dict(
        network=resnet, seed=11, size=(25, 19), n=5, classes=9, scale=(1 / 255,) * 3, shift=(0.0,) * 3,
        epsilon=1.001e-5, kept=0.99, head=dict(s=30, m=0.5, guard=False, straight_through=False),
        sgd=("keras", 0.002, 0.8), clip=None,
        # Keras l2(5e-4) on the dense layer and the class rows.
        decay=lambda name: 1e-3 if name.startswith(("dense", "classes")) else 0.0,
    ),
    "mobilenet_v2": dict(
        network=mobilenet_v2, seed=12, size=(24, 19), n=6, classes=11, scale=(1 / 255,) * 3, shift=(0.0,) * 3,
        epsilon=1e-3, kept=0.999, head=dict(s=64, m=0.5, guard=True, straight_through=False),
        sgd=("keras-nesterov", 0.0002, 0.9), clip=None,
        decay=lambda name: 1e-3 if name.startswith("dense") else 0.0,
    ),
    "mobilefacenet": dict(
        network=mobilefacenet, seed=13, size=(33, 33), n=6, classes=7, scale=(1 / 127.5,) * 3, shift=(-1.0,) * 3,
        epsilon=1e-5, kept=0.9, head=dict(s=64, m=0.5, guard=False, straight_through=True),
        sgd=("torch", 0.005, 0.9), clip=5.0, decay=lambda name: 5e-4,
    ),
    "iresnet": dict(
        network=iresnet, seed=14, size=(21, 14), n=6, classes=8, scale=(1 / 127.5,) * 3, shift=(-1.0,) * 3,
        epsilon=1e-5, kept=0.9, head=dict(s=64, m=0.5, guard=False, straight_through=True),
        sgd=("torch", 0.005, 0.9), clip=5.0, decay=lambda name: 5e-4,
    ),
}


def pictures(random, count, n, h, w):
    """`count` batches of smooth coloured ramps and ripples under noise."""
    y, x = np.mgrid[0:h, 0:w]
    images = []
    for _ in range(count * n * 3):
        a, b, c, phase = random.uniform(-1, 1, 4)
        wave = np.sin(a * y + b * x + 6 * phase) + c * (y / h - x / w)
        images.append(128 + 60 * wave + 25 * random.standard_normal((h, w)))
    images = np.array(images).reshape(count, n, 3, h, w).transpose(0, 1, 3, 4, 2)
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def run(name, case):
    net = Net(case["seed"], case["epsilon"], case["kept"])
    h, w = case["size"]
    n, v, head = case["n"], case["classes"], case["head"]
    pixels = pictures(net.random, 2, n, h, w)
    labels = net.random.integers(0, v, (2, n))
    scale, shift = rounded(case["scale"]), rounded(case["shift"])
    inputs = [(torch.from_numpy(batch.astype(np.float64)) * scale + shift).permute(0, 3, 1, 2) for batch in pixels]

    first = case["network"](net, inputs[0]).detach()  # creates parameters and statistics
    for key, value in net.statistics.items():
        start = 1.0 if key.endswith("moving_variance") else 0.0
        value.copy_(rounded(start + 0.2 * net.random.standard_normal(value.shape)))
    classes = net.random.standard_normal((v, first.shape[1]))
    # One image looks away from its class (the guard's side of pi), one towards it.
    classes[labels[0, 0]] = -first[0].numpy() + 0.1 * classes[labels[0, 0]]
    if labels[0, 1] != labels[0, 0]:
        classes[labels[0, 1]] = first[1].numpy() + 0.3 * classes[labels[0, 1]]
    classes = rounded(classes).requires_grad_()

    values = {"pixels": pixels, "labels": labels.astype(np.int32)}

    def keep(prefix, table):
        for key, value in table.items():
            values[f"{prefix}/{key}"] = value.detach().numpy().astype(np.float32)

    everything = {**net.params, "classes": classes}
    keep("initial", everything)
    keep("initial", net.statistics)
    momentum = {key: torch.zeros_like(value) for key, value in everything.items()}
    form, lr, mu = case["sgd"]
    losses = []
    for step in range(10):
        x = case["network"](net, inputs[step % 2])
        loss, target = arcface(x, classes, torch.from_numpy(labels[step % 2]), **head)
        losses.append(loss.item())
        grads = dict(zip(everything, torch.autograd.grad(loss, list(everything.values()))))
        norm = math.sqrt(sum((g * g).sum().item() for key, g in grads.items() if key != "classes"))
        if step == 0:
            values["embedding"] = x.detach().numpy().astype(np.float32)
            keep("gradient", {key: g for key, g in grads.items() if key != "classes"})
            print(f"{name}: {sum(p.numel() for p in net.params.values())} parameters, target cosines "
                  f"{np.round(target.numpy(), 3)}, gradient norm {norm:.3f}")
            if net.clipped:
                print("  share above 6:", {key: round(share, 3) for key, share in net.clipped.items()})
        # The backbone's gradient alone is clipped, as InsightFace does.
        factor = min(1.0, case["clip"] / norm) if case["clip"] else 1.0
        with torch.no_grad():
            for key, value in everything.items():
                g = grads[key] if key == "classes" else factor * grads[key]
                sgd(form, lr, mu, value, g + case["decay"](key) * value, momentum[key])
        if step == 2:
            keep("after", everything)
            keep("after", net.statistics)
    values["losses"] = np.array(losses)
    print("  losses", np.round(losses, 4))
    path = HERE / "golden" / f"{name}.safetensors"
    # The format holds bytes in order, whatever the strides.
    save_file({key: np.ascontiguousarray(value) for key, value in values.items()}, path)
    print(f"  {path.stat().st_size} bytes")


if __name__ == "__main__":
    (HERE / "golden").mkdir(exist_ok=True)
    for name, case in CASES.items():
        run(name, case)
