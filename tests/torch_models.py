"""Small models written in PyTorch, each made by a plain callable, as a user's own file has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset, TensorDataset

__all__ = [
    "Doubled",
    "GradientMap",
    "Opaque",
    "OwnHead",
    "albert",
    "attention_gpt",
    "autoencoder",
    "branching",
    "dropped",
    "frozen_below",
    "gpt",
    "gpt2",
    "judge",
    "lstm",
    "masked",
    "mlp",
    "of_kinds",
    "opaque",
    "padded_sentences",
    "padding_loaders",
    "pictures",
    "points",
    "points_of_kinds",
    "positions_gpt",
    "resnet18",
    "returns_tuple",
    "sentences_of_kinds",
    "several_outputs",
    "text_windows",
    "tied",
    "training_reader",
]


def mlp(width: int = 32, inputs: int = 784, outputs: int = 10, depth: int = 3) -> nn.Sequential:
    """Linear, batch norm and an in-place ReLU, `depth` times, and a head."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(nn.Linear(width if index else inputs, width))
        layers += [nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def dropped(width: int = 16, inputs: int = 784, outputs: int = 10) -> nn.Sequential:
    """Two hidden layers with dropout."""
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.3)),
        nn.Linear(width, outputs),
    )


def frozen_below(width: int = 16, inputs: int = 784, outputs: int = 10) -> nn.Sequential:
    """A model of which only the head learns, and batch norm's statistics move."""
    model = mlp(width, inputs, outputs, depth=2)
    for parameter in model[:-1].parameters():
        parameter.requires_grad = False
    return model


def autoencoder(inputs: int = 784, code: int = 8) -> nn.Sequential:
    """An encoder and a decoder, which learn to give back the inputs (B, `inputs`)."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, code)),
        nn.Sequential(nn.Linear(code, 32), nn.Tanh(), nn.Linear(32, inputs), nn.Sigmoid()),
    )


# --- pictures ------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two convolutions and a skip connection around them (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or given != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet18(nn.Module):
    """ResNet-18 for pictures of 32 x 32: its first convolution is 3 x 3, without pooling."""

    def __init__(self, width: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._layer(width, width, 1)
        self.layer2 = self._layer(width, 2 * width, 2)
        self.layer3 = self._layer(2 * width, 4 * width, 2)
        self.layer4 = self._layer(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, outputs)

    @staticmethod
    def _layer(given: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(given, width, stride), BasicBlock(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(width: int = 64, channels: int = 3, outputs: int = 10) -> nn.Module:
    """ResNet-18; tests use a narrow one."""
    return ResNet18(width, channels, outputs)


# --- text ----------------------------------------------------------------------------------------


class CausalAttention(nn.Module):
    """Each step attends to itself and to those before it, whose mask is a buffer."""

    def __init__(self, width: int, heads: int, steps: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(steps, steps).triu(1).bool(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        q, k, v = self.qkv(x).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        scores = scores.masked_fill(self.mask[:steps, :steps], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, width))


class TorchAttention(nn.Module):
    """The same by PyTorch's own module, which returns a tuple and takes a mask."""

    def __init__(self, width: int, heads: int, steps: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)
        self.register_buffer("mask", torch.ones(steps, steps).triu(1).bool())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x, attn_mask=self.mask, need_weights=False)[0]


class GptBlock(nn.Module):
    """Attention and a network of two layers, each behind a layer norm and beside a skip."""

    def __init__(self, attention: type[nn.Module], width: int, heads: int, steps: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention(width, heads, steps)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Ids (B, T) to logits (B, T, vocabulary); with `targets` it would return a loss too, as many
    a user's model does."""

    def __init__(
        self,
        attention: type[nn.Module],
        vocabulary: int,
        steps: int,
        width: int,
        blocks: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Parameter(0.02 * torch.randn(steps, width))
        self.h = nn.ModuleList(GptBlock(attention, width, heads, steps) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, ids: torch.Tensor, targets: torch.Tensor | None = None, scale: float = 1.0
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.wte(ids) + self.wpe[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = self.head(self.norm(x)) * scale
        if targets is None:
            return logits
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt(
    vocabulary: int = 12, steps: int = 8, width: int = 16, blocks: int = 4, heads: int = 2
) -> nn.Module:
    """A GPT with attention of its own."""
    return Gpt(CausalAttention, vocabulary, steps, width, blocks, heads)


def attention_gpt(
    vocabulary: int = 12, steps: int = 8, width: int = 16, blocks: int = 2, heads: int = 2
) -> nn.Module:
    """A GPT with PyTorch's attention."""
    return Gpt(TorchAttention, vocabulary, steps, width, blocks, heads)


class PositionsGpt(nn.Module):
    """A GPT whose forward makes the ids of positions, and takes fixed rows of a buffer."""

    def __init__(self, vocabulary: int, steps: int, width: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(steps, width)
        self.h = nn.ModuleList(GptBlock(CausalAttention, width, 2, steps) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        _, steps = ids.size()
        positions = torch.arange(0, steps, dtype=torch.long, device=ids.device)
        x = self.wte(ids) + self.wpe(positions) * torch.ones(1)
        for block in self.h:
            x = block(x) * self.scale[1:2]
        return self.head(x)


def positions_gpt(vocabulary: int = 12, steps: int = 8, width: int = 16) -> nn.Module:
    """A GPT that makes tensors in its forward."""
    return PositionsGpt(vocabulary, steps, width)


class Tied(nn.Module):
    """A language model whose head has the embedding's weights."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.wte(ids)))


def tied(vocabulary: int = 12, width: int = 8) -> nn.Module:
    """A model with one set of weights at both of its ends."""
    return Tied(vocabulary, width)


class Albert(nn.Module):
    """Classes of characters, by the same layer again and again."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.h = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for layer in self.h[1:]:
            layer.weight, layer.bias = self.h[0].weight, self.h[0].bias
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids)
        for layer in self.h:
            x = layer(x).tanh()
        return self.head(x)


def albert(vocabulary: int = 12, width: int = 9, layers: int = 3) -> nn.Module:
    """A model with one set of weights in all of its layers (Lan et al. 2019)."""
    return Albert(vocabulary, width, layers)


def gpt2(vocabulary: int = 12, steps: int = 8, width: int = 16, blocks: int = 1) -> nn.Module:
    """Hugging Face's GPT-2, without dropout; its head has the embedding's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": steps, "n_embd": width, "n_layer": blocks, "n_head": 2}
    noise = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **noise, **ends))


class OfKinds(nn.Module):
    """Classes of points, whose kind is added again behind the first layer."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.kinds, self.last = nn.Embedding(3, width), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor, kind: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.relu(self.first(x))
        h = torch.relu(self.second(h) + self.kinds(kind))
        return {"logits": self.last(h), "hidden": h}


def of_kinds(inputs: int = 37, width: int = 9, outputs: int = 5) -> nn.Module:
    """A model with two inputs, which returns a table."""
    return OfKinds(inputs, width, outputs)


class Steps(nn.Module):
    """The outputs of each step of an LSTM, without its states."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def lstm(vocabulary: int = 12, width: int = 16, layers: int = 2) -> nn.Sequential:
    """Ids (B, T) to logits (B, T, vocabulary)."""
    return nn.Sequential(
        nn.Embedding(vocabulary, width),
        *(Steps(width, width) for _ in range(layers)),
        nn.Linear(width, vocabulary),
    )


# --- models that are hard to cut -----------------------------------------------------------------


class Noisy(nn.Module):
    """A block that computes something else in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.after = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        return self.after(x * 2 if self.training else x)


def training_reader(width: int = 8) -> nn.Sequential:
    """A model with a block that reads self.training."""
    return nn.Sequential(nn.Linear(6, width), Noisy(width), nn.Linear(width, 3))


class Branching(nn.Module):
    """A block that takes one of two ways, as the numbers in its input say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "meta" or x.sum() > 0:
            return self.one(x)
        return self.other(x)


class BranchingModel(nn.Module):
    """A model with such a block in its middle, or with such a forward of its own."""

    def __init__(self, width: int, itself: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.block = Branching(width)
        self.last = nn.Linear(width, 3)
        self.itself = itself

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.itself and x.sum() > 0:
            x = x * 2
        return self.last(self.block(x).relu())


def branching(width: int = 8, itself: bool = False) -> nn.Module:
    """A model whose control flow depends on data: in a submodule, or in the model itself."""
    return BranchingModel(width, itself)


class Masked(nn.Module):
    """A buffer, a boolean mask of its input and a skip connection are used by all blocks, so that
    several tensors cross each cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positive = x[:, :1] > 0
        x = start = self.first(x)
        scale = self.scale
        for block in self.blocks:
            x = torch.where(positive, block(x) * scale, x) + start
        return self.last(x * self.scale)


def masked(width: int = 8) -> nn.Module:
    """A model with long skip connections, and a buffer that is read on both sides of each cut."""
    return Masked(width)


class SeveralOutputs(nn.Module):
    """The logits behind a table's key, or first in a tuple."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor] | tuple[torch.Tensor, ...]:
        hidden = self.first(x).tanh()
        logits = self.last(hidden)
        if self.kind == "dict":
            return {"hidden": hidden, "logits": logits}
        return logits, hidden


def several_outputs(kind: str = "dict", width: int = 8) -> nn.Module:
    """A model that returns a dict or a tuple."""
    return SeveralOutputs(kind, width)


class TakeFirst(nn.Module):
    """The first of several values."""

    def forward(self, x: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return x[0]


def returns_tuple(width: int = 8) -> nn.Sequential:
    """A model in which a tuple passes from one submodule, an nn.LSTM, to the next."""
    inner = nn.LSTM(width, width, batch_first=True)
    return nn.Sequential(nn.Embedding(12, width), inner, TakeFirst())


class IntegersBetween(nn.Module):
    """Whole numbers pass from its first submodule to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.choose = Largest()
        self.middle = nn.Linear(4, 3)
        self.second = nn.Embedding(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        place = self.choose(h)
        y = self.middle(h)
        return self.second(place) + y


class Largest(nn.Module):
    """The place of the largest number of each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


class WithoutRows(nn.Module):
    """A tensor without a row a sample passes from its first submodule to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.middle(self.first(x).mean(0))
        return self.last(mean).expand(x.shape[0], 3)


class ReplacesBuffer(nn.Module):
    """A running mean that is a new tensor after each forward in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


# --- data sets -----------------------------------------------------------------------------------


def text_windows(samples: int = 40, steps: int = 8, vocabulary: int = 12) -> tuple[Any, Any]:
    """Windows of ids (T,) of a text that is easy to learn, and the ids that follow (T,)."""
    starts = torch.arange(samples + 8)[:, None]
    ids = (3 * starts + torch.arange(steps + 1) + starts % 5) % vocabulary
    windows = TensorDataset(ids[:, :-1].float(), ids[:, 1:])
    return _parts(windows, samples)


def sentences(samples: int = 20, longest: int = 8, vocabulary: int = 12) -> tuple[Any, Any]:
    """Ids (T,) and the ids that follow (T,), of lengths 2 to `longest`; the longest is a test."""
    lengths = [2 + index % (longest - 2) for index in range(samples)]
    ids = [(3 * torch.arange(length + 1) + length) % vocabulary for length in [*lengths, longest]]
    pairs = [(one[:-1], one[1:]) for one in ids]
    return pairs[:-1], pairs[-1:]


def padded_sentences(samples: int = 20) -> tuple[Any, Any]:
    """The same, as tables of ids and of a mask of those that are there."""
    parts = sentences(samples)
    train, test = (
        [({"input_ids": x, "attention_mask": torch.ones_like(x)}, y) for x, y in part]
        for part in parts
    )
    return train, test


def padding_loaders(samples: int = 20, tables: bool = True) -> tuple[Any, Any]:
    """Loaders of sentences, padded to the longest of the batch: tables of ids and masks, or ids."""
    collate = partial(_collated, tables)
    train, test = (DataLoader(part, 8, collate_fn=collate) for part in sentences(samples))
    return train, test


def _collated(tables: bool, pairs: list[Any]) -> tuple[Any, Any]:
    ids, targets = zip(*pairs, strict=True)
    x = pad_sequence(ids, batch_first=True)
    y = pad_sequence(targets, batch_first=True, padding_value=-100)
    return ({"input_ids": x, "attention_mask": (y != -100).long()} if tables else x), y


def sentences_of_kinds(samples: int = 20) -> tuple[Any, Any]:
    """Loaders of sentences as tables of ids and masks, padded to the longest of the batch, and one
    class a sentence."""

    def collated(pairs: list[Any]) -> tuple[Any, Any]:
        x, y = _collated(True, pairs)
        return x, (y != -100).sum(1) % 3

    train, test = (DataLoader(part, 8, collate_fn=collated) for part in sentences(samples))
    return train, test


class Judge(nn.Module):
    """Classes of sentences: words that see each other, and the mean of those that are there."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.last, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        x = self.last(x + self.mix(x)[0]).tanh() * attention_mask.unsqueeze(2)
        return self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))


def judge(vocabulary: int = 12, width: int = 8) -> nn.Module:
    """A model with one output a sentence."""
    return Judge(vocabulary, width)


def points_of_kinds(samples: int = 60) -> tuple[Any, Any]:
    """Tuples of a point (D,) and its kind (), and the class of both."""
    train, test = (
        [((x, torch.tensor(index % 3)), (y + index % 3) % 5) for index, (x, y) in enumerate(part)]
        for part in points(samples)
    )
    return train, test


def pictures(
    samples: int = 24, channels: int = 3, size: int = 32, classes: int = 10
) -> tuple[Any, Any]:
    """Noise (C, S, S) around one picture a class, and its class."""
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(classes, channels, size, size, generator=generator)
    labels = torch.arange(samples + 8) % classes
    noise = torch.randn(len(labels), channels, size, size, generator=generator)
    return _parts(TensorDataset(means[labels] + noise, labels), samples)


def points(samples: int = 60, inputs: int = 37, classes: int = 5) -> tuple[Any, Any]:
    """Noise (D,) around one point a class, and its class."""
    generator = torch.Generator().manual_seed(8)
    means = torch.randn(classes, inputs, generator=generator)
    labels = torch.arange(samples + 8) % classes
    noise = torch.randn(len(labels), inputs, generator=generator)
    return _parts(TensorDataset(means[labels] + noise, labels), samples)


def _parts(whole: Any, samples: int) -> tuple[Any, Any]:
    """A training set of the first samples, and a test set of the others."""
    return Subset(whole, range(samples)), Subset(whole, range(samples, len(whole)))


# --- generators ----------------------------------------------------------------------------------


class GradientMap(nn.Module):
    """Maps activations (B, D) and one-hot classes to gradients (B, D); it begins at zero."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.map = nn.Linear(width + classes, width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        labels = functional.one_hot(y, self.classes).to(h.dtype)
        return self.map(torch.cat([functional.dropout(h, 0.1, self.training), labels], 1))


class Doubled(nn.Module):
    """A block of the user's for a local loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x + self.map(x)


class Opaque(nn.Module):
    """A block with a skip connection, whose forward can't be traced."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.map = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, width = x.shape
        return x + self.map(self.norm(x)).view(samples, width)


def opaque(head: bool = True) -> nn.Sequential:
    """Blocks that can't be traced, and a head behind them."""
    return nn.Sequential(
        nn.Linear(37, 8), *(Opaque(8) for _ in range(3)), *([nn.Linear(8, 5)] if head else [])
    )


class OwnHead(nn.Module):
    """A local head: its loss is that of a linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.head.bias.requires_grad = False

    def loss(self, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(h), y, reduction="sum")


# --- losses --------------------------------------------------------------------------------------


def smoothed(outputs: Any, targets: Any) -> Any:
    """A mean over samples, as users of PyTorch write it."""
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def unreduced(outputs: Any, targets: Any) -> Any:
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def of_values(outputs: Any, targets: Any) -> Any:
    """It does not take whole numbers as targets."""
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)


class ChangesInPlace(nn.Module):
    """A branch changes in place, behind a cut before `second`, what another one still uses."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Tanh(), nn.Linear(6, 6))  # autograd does not keep h
        self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)
        self.relu = nn.ReLU(in_place)

    def forward(self, x: Any) -> Any:
        h = self.first(x)
        same = h.view(-1, 6)
        k = self.middle(h)
        return self.last(self.second(k) + self.relu(h) + same)


class FailsBackward(nn.Module):
    """It changes in place what autograd needs for its own backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        h = self.first(x)
        y = self.last(h)
        h.mul_(2.0)
        return y + h.sum(1, keepdim=True)


def fails_backward() -> nn.Module:
    return FailsBackward()


def changes_in_place(in_place: bool = True) -> nn.Module:
    return ChangesInPlace(in_place)
