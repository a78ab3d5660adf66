#!/usr/bin/env python3
"""Makes small ONNX files as PyTorch's two exporters write them, for tests of the structural import.

    python tests/reference/make_onnx.py tests/reference/onnx      # needs torch, onnx, onnxscript, numpy

The network is a narrow relative of what is imported (arcface_cu::graph::Builder builds the same one in tests/onnx.rs): an
IResNet block with its own batch norm and PReLU, one with ReLU6 and depthwise filters, a flatten of a 2x2 map, a linear layer
and a batch norm. Beside the files: input.npy (3 pictures as the network takes them, NCHW) and output.npy, what PyTorch
answers. The same weights are in all of them, so all must give the same embeddings.

    legacy.onnx         torch.onnx.export(dynamo=False), opset 11, as InsightFace's files: conv and batch norm folded
    legacy_kept.onnx    the same with training=PRESERVE-like export: batch norms kept, opset 17
    legacy_view.onnx    x.view(x.size(0), -1) in the place of Flatten, dynamic batch: Shape, Gather, Concat, Reshape
    dynamo.onnx         torch.onnx.export(dynamo=True)
    inside.onnx         (x - 127.5) / 127.5 inside, linear layer as MatMul and Add, padding in nodes of its own
"""
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

warnings.filterwarnings("ignore")


def conv(i, o, k, s=1, groups=1, pad=None):
    return nn.Conv2d(i, o, k, s, k // 2 if pad is None else pad, groups=groups, bias=False)


class Net(nn.Module):
    """8x8 RGB to 5 numbers."""

    def __init__(self, view=False, inside=False):
        super().__init__()
        self.view, self.inside = view, inside
        self.conv1, self.bn1, self.prelu = conv(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)
        self.pool = nn.MaxPool2d(3, 2, 1)
        # An IResNet block: BN, conv, BN, PReLU, conv, BN; shortcut conv, BN.
        self.b_bn1, self.b_conv1, self.b_bn2, self.b_prelu = nn.BatchNorm2d(4), conv(4, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6)
        self.b_conv2, self.b_bn3 = conv(6, 6, 3, 2), nn.BatchNorm2d(6)
        self.d_conv, self.d_bn = conv(4, 6, 1, 2), nn.BatchNorm2d(6)
        # An inverted residual, padded on the right and below alone where `inside`.
        self.e_conv, self.e_bn, self.dw, self.dw_bn = conv(6, 8, 1), nn.BatchNorm2d(8), conv(8, 8, 3, 1, 8), nn.BatchNorm2d(8)
        self.p_conv, self.p_bn = conv(8, 6, 1), nn.BatchNorm2d(6)
        self.bn2, self.dropout = nn.BatchNorm2d(6), nn.Dropout(0.4)
        self.fc = nn.Linear(6 * 2 * 2, 5)
        self.features = nn.BatchNorm1d(5)

    def forward(self, x):
        if self.inside:
            x = (x - 127.5) / 127.5
            w = self.conv1.weight
            x = self.bn1(nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), w))
        else:
            x = self.bn1(self.conv1(x))
        x = self.pool(self.prelu(x))
        y = self.b_bn3(self.b_conv2(self.b_prelu(self.b_bn2(self.b_conv1(self.b_bn1(x))))))
        x = y + self.d_bn(self.d_conv(x))
        relu6 = nn.functional.relu6
        y = self.p_bn(self.p_conv(relu6(self.dw_bn(self.dw(relu6(self.e_bn(self.e_conv(x))))))))
        x = self.dropout(self.bn2(x + y))
        x = x.view(x.size(0), -1) if self.view else torch.flatten(x, 1)
        if self.inside:
            return self.features(torch.matmul(x, self.fc.weight.t()) + self.fc.bias)
        return self.features(self.fc(x))


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    net = Net().eval()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.3)
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.3, 2)
            if isinstance(m, nn.PReLU):
                m.weight.uniform_(-0.2, 0.6)
        net.features.weight.fill_(1)
    state = net.state_dict()
    pixels = torch.randint(0, 256, (3, 3, 8, 8)).float()
    x = (pixels - 127.5) / 127.5
    with torch.no_grad():
        y = net(x)
    np.save(out / "input.npy", x.numpy())
    np.save(out / "output.npy", y.numpy())

    def export(name, x, net, **options):
        net.load_state_dict(state)
        net.eval()
        torch.onnx.export(net, (x,), str(out / name), **options)
        model = onnx.load(out / name)
        onnx.checker.check_model(model)
        # Doc strings and source lines are most of a small file.
        for node in model.graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        del model.graph.value_info[:]
        for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
            value.doc_string = ""
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
        del model.graph.metadata_props[:]
        onnx.save_model(model, out / name, save_as_external_data=False)
        (out / (name + ".data")).unlink(missing_ok=True)
        ops = [node.op_type for node in model.graph.node]
        print(f"{name}: {(out / name).stat().st_size} bytes, opset {model.opset_import[0].version}: {' '.join(ops)}")

    batch = {"input": {0: "N"}}
    one = x[:1]
    old = {"dynamo": False, "input_names": ["input"]}
    export("legacy.onnx", one, Net(), opset_version=11, **old)
    export("legacy_kept.onnx", one, Net(), opset_version=17, training=torch.onnx.TrainingMode.PRESERVE,
           do_constant_folding=False, dynamic_axes=batch, **old)
    export("legacy_view.onnx", x[:2], Net(view=True), opset_version=12, dynamic_axes=batch, **old)
    export("inside.onnx", pixels[:2], Net(inside=True), opset_version=13, dynamic_axes=batch, **old)
    export("dynamo.onnx", x[:2], Net(), dynamo=True, external_data=False,
           dynamic_shapes={"x": {0: torch.export.Dim("N")}})
    print(f"torch {torch.__version__}, onnx {onnx.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
