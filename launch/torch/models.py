"""Models for the recipes beside this file, and where each is cut into four stages."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["CUTS", "gpt", "lstm", "mlp", "resnet18", "tied_gpt", "vit"]

#: For each model, the submodules at which all stages but the first begin.
CUTS = {
    "mlp": ["3", "6", "9"],
    "resnet18": ["layer2", "layer3", "layer4"],
    "gpt": ["h.1", "h.2", "h.3"],
    "tied_gpt": ["positions", "h.2", "head"],
    "lstm": ["2", "3", "4"],
    "vit": ["h.1", "h.2", "h.3"],
}


def mlp(width: int = 256) -> nn.Sequential:
    """784-w-w-w-10 with batch norm: the network of `launch/mnist.toml`."""
    layers: list[nn.Module] = []
    for inputs in (784, width, width):
        layers += nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(h)) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """ResNet-18 for small pictures: 3 x 3 first convolution, no first pooling."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for index in range(4):
            outputs = width * 2**index
            blocks = [Residual(inputs, outputs, 1 + (index > 0)), Residual(outputs, outputs, 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18(width: int = 64, channels: int = 1) -> ResNet18:
    return ResNet18(width, channels)


class Block(nn.Module):
    """Attention and a feed-forward network, each beside a shortcut, normalised before."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        shape = batch, steps, self.heads, width // self.heads
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(h.transpose(1, 2).reshape(batch, steps, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Positions(nn.Module):
    """Adds a vector of its own to each step of (B, T, W)."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(steps, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight[: x.shape[1]]


class Gpt(nn.Module):
    """A small GPT over characters (Radford et al. 2019): ids (B, T) to logits (B, T, V)."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, steps: int, *, tied: bool
    ) -> None:
        super().__init__()
        self.positions = Positions(steps, width)  # first, so that a seed draws what it always has
        self.tokens = nn.Embedding(vocabulary, width)
        self.h = nn.ModuleList(Block(width, heads, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:  # as in GPT-2; larger embeddings drown what blocks add to them
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.positions(self.tokens(ids))
        for block in self.h:
            x = block(x)
        return self.head(self.norm(x))


def gpt(
    vocabulary: int = 65, width: int = 128, layers: int = 4, heads: int = 4, steps: int = 64
) -> Gpt:
    return Gpt(vocabulary, width, layers, heads, steps, tied=False)


def tied_gpt(
    vocabulary: int = 65, width: int = 128, layers: int = 4, heads: int = 4, steps: int = 64
) -> Gpt:
    """The same with one set of weights as embedding and head."""
    return Gpt(vocabulary, width, layers, heads, steps, tied=True)


class Recurrent(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) that returns its outputs (B, T, W) at all steps,
    without its states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def lstm(vocabulary: int = 65, width: int = 128, layers: int = 3) -> nn.Sequential:
    """LSTMs over characters: ids (B, T) to logits (B, T, V). Each window begins without a state."""
    recurrent = [Recurrent(width) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(vocabulary, width), *recurrent, nn.Linear(width, vocabulary))


class Vit(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) whose head reads the
    mean of all patches: images (B, C, S, S) to logits (B, 10)."""

    def __init__(
        self, width: int, layers: int, heads: int, channels: int, size: int, patch: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty((size // patch) ** 2, width))
        self.h = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.h:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def vit(
    width: int = 64,
    layers: int = 4,
    heads: int = 4,
    channels: int = 1,
    size: int = 28,
    patch: int = 7,
) -> Vit:
    return Vit(width, layers, heads, channels, size, patch)
