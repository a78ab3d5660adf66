"""The IR networks of AdaFace, CVLFace and face.evoLVe in PyTorch, float64, with weights by the formula of `insightface.py`.

Written from the definition of AdaFace's `net.py` and face.evoLVe's `backbone/model_irse.py` (layer names are those of their
state dicts). Run it as

    python tests/reference/ir.py > tests/reference/ir.txt

It counts parameters, embeds two pictures with each network in eval mode and writes the embeddings, (2, 512) float32 a
network, to tests/reference/golden/ir.safetensors.
"""

from torch import nn

from insightface import embed

BLOCKS = {
    "ir18": [2, 2, 2, 2],
    "ir50": [3, 4, 14, 3],
    "ir101": [3, 13, 30, 3],
    "evolve-ir50": [3, 4, 14, 3],
}


class Block(nn.Module):
    def __init__(self, c, k, stride, evolve):
        super().__init__()
        if c == k:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c),
            nn.Conv2d(c, k, 3, 1, 1, bias=False),
            *([] if evolve else [nn.BatchNorm2d(k)]),
            nn.PReLU(k),
            nn.Conv2d(k, k, 3, stride, 1, bias=False),
            nn.BatchNorm2d(k),
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


def network(name):
    evolve = name.startswith("evolve")
    blocks, c = [], 64
    for count, k in zip(BLOCKS[name], [64, 128, 256, 512]):
        for i in range(count):
            blocks.append(Block(c, k, 2 if i == 0 else 1, evolve))
            c = k
    net = nn.Sequential()
    net.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
    net.body = nn.Sequential(*blocks)
    net.output_layer = nn.Sequential(
        nn.BatchNorm2d(512),
        nn.Dropout(0.5 if evolve else 0.4),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 512),
        nn.BatchNorm1d(512, affine=evolve),
    )
    return net


if __name__ == "__main__":
    embed({name: network(name) for name in BLOCKS}, "ir.safetensors")
