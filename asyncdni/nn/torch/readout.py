"""The generator that reads out through the network's own last layers.

```
 stage i    h ──► A ──► R ──► loss(…, y)       R: a copy of the last stage's readout, read-only
            ▲                  │                A: local blocks, trained by that loss; or nothing
            └──── ∂loss/∂h ◄───┘
```

In a network of residual blocks every h speaks nearly the language of the last one, so the readout
(a norm and a head) makes sense of it. The gradient is close to the true one, and nothing has to
come back for it: now and then a new copy of R comes from the last stage. A map M of that gradient,
the identity at first, may be fitted to true ones that come back now and then.

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
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.generators.readout import Copy
from asyncdni.nn.torch.generator import Learned, ModuleGenerator
from asyncdni.nn.torch.layer import aligned, empty_copy, tensor_of
from asyncdni.nn.torch.loss import summed_loss
from asyncdni.nn.torch.model import make_model, make_readout, readout_input

__all__ = ["ReadoutGenerator", "readout_forms", "readout_generator"]

#: What the names of a copy's arrays begin with: the last stage has one layer.
_LAYER = "0."
_HEAD_WIDTH = 32
#: How many places along each axis a map to other planes tells apart.
_PLACES = 4
#: The ratio of a block's hidden layer to its width.
_WIDER = 4


class ReadoutGenerator(ModuleGenerator):
    """A generator whose module is a `_Readout`. Its copy of R lies in `buffers`, beside "version",
    how many updates the last stage had made when it was copied: 0 for initial weights.

    With `options.private_after`, `buffers` also have Adam's moments for R ("private.first", …), how
    many batches have come since the copy ("private.waited"), and how many of all have trained R
    here ("private.batches"). With `options.map`, `params` have M too, as "map.weight" (D, D): D is
    the number of planes of feature maps, or the length of the last axis of other activations.
    """

    module: _Readout

    def __init__(
        self, make: Callable[[], _Readout], options: tables.ReadoutGenerator, cure: str
    ) -> None:
        """See `ModuleGenerator`."""
        super().__init__("generator readout", make, learning_rate=options.learning_rate, cure=cure)
        self._options = options

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        *,
        shape: tuple[int, ...] = (),
        steps: int = 0,
    ) -> None:
        """See `ModuleGenerator.build`."""
        super().build(width, outputs, loss, dtype, streams, shape=shape, steps=steps)
        if self._options.map:
            axis = 1 if len(shape) == 3 else -1
            self._map = _Map((1, *shape)[axis], axis)
            self._mapped = Learned(dict(self._map.named_parameters()), dtype)
            self.params |= {f"map.{name}": array for name, array in self._mapped.arrays.items()}
            self.buffers |= {f"map.{name}": array for name, array in self._mapped.state.items()}
        moments: dict[str, Array] = {}
        if self._options.private_after:
            self._private = Learned(dict(self.module.readout.named_parameters()), dtype)
            self.module.readout.requires_grad_(True)  # a gradient is computed when it is asked for
            self.buffers |= {f"readout.{name}": one for name, one in self._private.arrays.items()}
            moments = self._private.state
        named = {
            _LAYER + name.removeprefix("readout."): array
            for name, array in self.buffers.items()
            if name.startswith("readout.")
        }
        self.readout = Copy(
            named,
            self.buffers["version"],
            moments=moments,
            private_after=self._options.private_after,
        )
        self.buffers |= self.readout.buffers

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """See `ModuleGenerator.predict`."""
        found = super().predict(h, y, slot, rate_scale)
        if not self._options.map:
            return found
        slot["given"] = tensor_of(found)
        with torch.no_grad():
            mapped: Array = self._map(slot["given"]).numpy()
        return mapped

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Make one step of M towards the gradient (B, *shape) that came back, if there is an M."""
        if not self._options.map:
            return
        with torch.enable_grad():
            loss = (self._map(slot["given"]) - aligned(grad)).square().sum() / 2
        found = torch.autograd.grad(loss, self._mapped.parameters)
        self._mapped.step(found, len(grad), self.learning_rate * rate_scale)

    def _learns(self, slot: Slot) -> Sequence[Learned]:
        learning = [] if slot["batch"] % self._options.learn_every else [self._learned]
        if self.readout.learns():
            learning.append(self._private)
        return learning


class _Map(nn.Module):
    """M, a linear map of one axis of a gradient; it begins as the identity."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))
        self._axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = nn.functional.linear(x.movedim(self._axis, -1), self.weight)
        return found.movedim(-1, self._axis).contiguous()


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

    def make() -> _Readout:
        if streams is None:
            readout = _zeros(make_readout(part, options.begin, "meta", allow_import=allow_import))
        else:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(int(streams("init").integers(2**63)))
                readout = make_readout(part, options.begin, "cpu", allow_import=allow_import)
        blocks = _blocks(options, part, tuple(shape), causal=bool(steps), allow_import=allow_import)
        return _Readout(blocks, readout, summed_loss(loss, allow_import))

    return ReadoutGenerator(
        make,
        options,
        cure="the readout takes activations as they reach it in the last stage; feature maps with "
        'other planes need blocks = 2, block = "conv", and other activations blocks of yours that '
        'make such ones of these, blocks = 1, block = "mymodels:Class"',
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
    part: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    causal: bool,
    allow_import: Allowed,
) -> nn.Module:
    """A: `options.blocks` in a row, with a way down to their width and up again where they have
    another one than h; or convolutions that make the readout's planes of those of h."""
    if not options.blocks:
        return nn.Identity()
    maps = len(shape) == 3
    own = shape[0] if maps else shape[-1]
    width = options.width or own
    make = _maker(options.block, shape, causal, allow_import)
    if options.block == "conv":
        taken = readout_input(part, options.begin, allow_import=allow_import)
        if len(taken) == 3 and taken[0] != own:
            return _Planes(own, taken, width, options.blocks)
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


class _Planes(nn.Module):
    """Feature maps x (B, C, H, W) as a readout takes them, (B, P, h, w).

    They are x as it is, with the mean over h x w places and each plane as often as it takes, and
    what 3 x 3 convolutions with stride 2 find in it: a map of their 4 x 4 places, which begins at
    zero, to each of the P planes.
    """

    def __init__(self, own: int, taken: Sequence[int], width: int, blocks: int) -> None:
        super().__init__()
        self.planes, height, length = taken
        self.places = height, length
        inputs = [own, *[width] * (blocks - 1)]
        self.blocks = nn.Sequential(*(_halving(given, width) for given in inputs))
        self.up = nn.Conv2d(width, self.planes, _PLACES)
        for weights in self.up.parameters():
            nn.init.zeros_(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        times = -(-self.planes // x.shape[1])
        plain = nn.functional.adaptive_avg_pool2d(x, self.places).repeat(1, times, 1, 1)
        found = nn.functional.adaptive_avg_pool2d(self.blocks(x), _PLACES)
        added: torch.Tensor = plain[:, : self.planes] + self.up(found)
        return added


def _halving(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
