"""The generator that reads out through the network's own last layers.

```
 stage i    h ──► A ──► R ──► loss(…, y)       R: a copy of the last stage's readout, read-only
            ▲                  │                A: local blocks, trained by that loss; or nothing
            └──── ∂loss/∂h ◄───┘
```

In a network of residual blocks every h speaks nearly the language of the last one, so the readout
(a norm and a head) makes sense of it. The gradient is close to the true one, and nothing has to
come back for it: now and then a new copy of R comes from the last stage.

Source: SOLO (arXiv 2609.35440, 2026), whose local losses read out through the last module's
readout; the narrow blocks are those of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from asyncdni import tables
from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed
from asyncdni.nn.base import Array, Streams
from asyncdni.nn.torch.generator import ModuleGenerator
from asyncdni.nn.torch.layer import empty_copy
from asyncdni.nn.torch.loss import summed_loss
from asyncdni.nn.torch.model import make_model, make_readout

__all__ = ["ReadoutGenerator", "readout_forms", "readout_generator"]

#: What the names of a copy's arrays begin with: the last stage has one layer.
_LAYER = "0."
_HEAD_WIDTH = 32
#: The ratio of a block's hidden layer to its width.
_WIDER = 4


class ReadoutGenerator(ModuleGenerator):
    """A generator whose module is a `_Readout`. Its copy of R lies in `buffers`, beside "version",
    how many updates the last stage had made when it was copied: 0 for initial weights."""

    @property
    def version(self) -> int:
        """The version of the copy that is in use."""
        return int(self.buffers["version"])

    def adopt(self, version: int, weights: Mapping[str, Array]) -> None:
        """Read out through these weights ("0.head.weight") from now on, unless they are no newer
        than those in use."""
        if version <= self.version:
            return
        self.read_through(weights)
        self.buffers["version"][...] = version

    def read_through(self, weights: Mapping[str, Array]) -> None:
        """Put those of the weights that R has in the place of its own."""
        for name, array in weights.items():
            own = self.buffers.get(f"readout.{name.removeprefix(_LAYER)}")
            if own is not None:
                np.copyto(own, array)


class _Readout(nn.Module):
    def __init__(
        self,
        blocks: nn.Module,
        readout: nn.Module,
        summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.readout = readout.requires_grad_(False)
        self.register_buffer("version", torch.zeros((), dtype=torch.int64))
        self._sum = summed

    def loss(
        self, h: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        outputs = self.readout(self.blocks(h))
        if outputs.ndim > 2:  # windows, whose steps have targets of their own
            outputs, y = outputs.flatten(0, 1), y.flatten(0, 1)
            if mask is not None:
                outputs, y = outputs[mask.flatten()], y[mask.flatten()]
        return self._sum(outputs, y)


def readout_generator(
    options: tables.ReadoutGenerator,
    part: Mapping[str, Any],
    *,
    shape: Sequence[int],
    steps: int,
    loss: str,
    streams: Streams | None,
    allow_import: Allowed,
) -> ReadoutGenerator:
    """The generator for activations (B, *shape) of a network whose last stage is `part`.

    `steps`: as for `ModuleGenerator.build`; `streams` are those of the last stage's layer, from
    which it has its initial weights; None: R begins with zeros, as its weights are put there.
    Raises `ConfigError`."""

    def make() -> nn.Module:
        if streams is None:
            readout = _zeros(make_readout(part, options.begin, "meta", allow_import=allow_import))
        else:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(int(streams("init").integers(2**63)))
                readout = make_readout(part, options.begin, "cpu", allow_import=allow_import)
        blocks = _blocks(options, tuple(shape), causal=bool(steps), allow_import=allow_import)
        return _Readout(blocks, readout, summed_loss(loss, allow_import))

    return ReadoutGenerator(
        "generator readout",
        make,
        learning_rate=options.learning_rate,
        cure="the readout takes activations as they reach it in the last stage; give blocks of "
        'yours that make such ones of these, with blocks = 1, block = "mymodels:Class"',
    )


def readout_forms(
    part: Mapping[str, Any], begin: str, dtype: np.dtype[Any], *, allow_import: Allowed
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The shape and type of each array of a copy, by its name in the last stage."""
    module = make_readout(part, begin, "meta", allow_import=allow_import)
    return {
        _LAYER + name: (
            tuple(tensor.shape),
            dtype
            if tensor.is_floating_point()
            else torch.empty(0, dtype=tensor.dtype).numpy().dtype,
        )
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
    }


def _zeros(module: nn.Module) -> nn.Module:
    found = empty_copy(module, "cpu")
    for tensor in chain(found.parameters(), found.buffers()):
        tensor.data.zero_()
    return found


# --- the local blocks ----------------------------------------------------------------------------


def _blocks(
    options: tables.ReadoutGenerator,
    shape: tuple[int, ...],
    *,
    causal: bool,
    allow_import: Allowed,
) -> nn.Module:
    """A: `options.blocks` in a row, with a way down to their width and up again where they have
    another one than h."""
    if not options.blocks:
        return nn.Identity()
    maps = len(shape) == 3
    own = shape[0] if maps else shape[-1]
    width = options.width or own
    make = _maker(options.block, shape, causal, allow_import)
    row = nn.Sequential(*(make(width) for _ in range(options.blocks)))
    return row if width == own else _Narrow(own, width, row, maps=maps)


def _maker(
    block: str, shape: tuple[int, ...], causal: bool, allow_import: Allowed
) -> Callable[[int], nn.Module]:
    axes = {"transformer": (2, "windows (T, D)"), "conv": (3, "feature maps (C, H, W)")}
    if block in axes and len(shape) != axes[block][0]:
        raise ConfigError(
            f'schedule.generator.block: "{block}" takes {axes[block][1]}, and the activations are '
            f'{shape}; expected "mlp" or a class of yours, "mymodels:Class"'
        )
    if block == "transformer":
        return lambda width: _Transformer(width, causal)
    if block in ("conv", "mlp"):
        return _Conv if block == "conv" else _Mlp
    if ":" in block:
        return lambda width: make_model(block, {"width": width}, "cpu", allow_import=allow_import)
    raise ConfigError(
        f"schedule.generator.block: {block!r} is unknown; expected transformer, conv, mlp or a "
        'class of yours, "mymodels:Class"'
    )


class _Narrow(nn.Module):
    """h + up(blocks(down(h))); up begins at zero, so that it begins as h."""

    def __init__(self, own: int, width: int, blocks: nn.Module, *, maps: bool) -> None:
        super().__init__()
        self.down: nn.Module = nn.Conv2d(own, width, 1) if maps else nn.Linear(own, width)
        self.blocks = blocks
        self.up = nn.Conv2d(width, own, 1) if maps else nn.Linear(width, own)
        for weights in self.up.parameters():
            nn.init.zeros_(weights)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = h + self.up(self.blocks(self.down(h)))
        return found


class _Mlp(nn.Module):
    """x + a feed-forward network of the normalised x, over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, _WIDER * width), nn.Linear(_WIDER * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return found


class _Transformer(nn.Module):
    """Attention over x (B, T, D) and an `_Mlp`; causal where each step has its own target."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        heads = width // _HEAD_WIDTH
        self.heads = heads if heads and width % heads == 0 else 1
        self.causal = causal
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = _Mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        found: torch.Tensor = self.mlp(x + self.out(h.transpose(1, 2).flatten(2)))
        return found


class _Conv(nn.Module):
    """x + two 3 x 3 convolutions of x (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.second(self.norm(self.first(x)).relu())
        return found
