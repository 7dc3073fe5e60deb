"""The generator `readout` of stages made of layers: gradients through a copy of the last stage.

    stage i    h ──► R ──► loss(…, y)       R: a copy of the last stage's layers, read-only
               ▲               │
               └─── ∂loss/∂h ◄─┘

It has no local blocks; where the network is one of PyTorch's modules, `nn.torch.readout` has them.
The idea is that of SOLO, arXiv 2609.35440.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asyncdni import tables
from asyncdni.nn.base import Array, Layer, Slot, Streams
from asyncdni.nn.layers.normalisation import rectify_in_norms
from asyncdni.nn.losses import WindowLoss, make_loss
from asyncdni.nn.optimizers import Adam, finite_norm, flatten

__all__ = ["Copy", "LayersReadout"]


class Copy:
    """A stage's copy of R, its arrays named as in the last stage ("0.weight").

    With `private_after`, R learns here once so many batches have come since the copy, until a newer
    one arrives.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        version: Array,
        *,
        moments: Mapping[str, Array],
        private_after: int,
    ) -> None:
        """`version` () int64 counts the updates that the last stage had made when R was copied;
        `moments` are those of the optimizer that R learns by, here."""
        self._arrays, self._version, self._moments = arrays, version, moments
        self._private_after = private_after
        self._waited, self._trained = np.zeros((), np.int64), np.zeros((), np.int64)

    @property
    def buffers(self) -> dict[str, Array]:
        """What checkpoints keep of a copy that may learn: the optimizer's moments, how many batches
        have come since the copy, and how many of all have trained R here."""
        if not self._private_after:
            return {}
        moments = {f"private.{name}": array for name, array in self._moments.items()}
        return {**moments, "private.waited": self._waited, "private.batches": self._trained}

    @property
    def version(self) -> int:
        """The version of the copy that is in use."""
        return int(self._version)

    @property
    def private(self) -> int | None:
        """How many batches have trained R here, as no new copy had come for too long; None: this
        was not asked for."""
        return int(self._trained) if self._private_after else None

    def adopt(self, version: int, weights: Mapping[str, Array]) -> None:
        """Read out through these weights from now on, unless they are no newer than those in
        use."""
        if version <= self.version:
            return
        self.read_through(weights)
        self._version[...] = version
        self._waited[...] = 0
        for moment in self._moments.values():
            moment[...] = 0

    def read_through(self, weights: Mapping[str, Array]) -> None:
        """Put those of the weights that R has in the place of its own."""
        for name in self._arrays.keys() & weights.keys():
            np.copyto(self._arrays[name], weights[name])

    def learns(self) -> bool:
        """Count a batch, and return whether R learns from it."""
        if not self._private_after:
            return False
        self._waited += 1
        learns = bool(self._waited > self._private_after)
        self._trained += learns
        return learns


class LayersReadout:
    """A `Generator` for activations h (B, *shape) that the last stage's layers take as they are,
    from one of them on: R. Its prediction is the gradient of the summed loss by h.

    The copy of R lies in `buffers` ("readout.<position>.<name>", as the last stage calls it),
    beside "version", how many updates the last stage had made when it was copied: 0 for initial
    weights. Batch norms have the statistics of h, and dropout the last stage's masks. With
    `private_after` there are Adam's moments as well ("private.first", …), how many batches have
    come since the copy ("private.waited"), and how many of all have trained R here
    ("private.batches").
    """

    #: The exit hands over samples as they are, not as rows, and the batch's id and context in the
    #: slot.
    whole = True

    def __init__(
        self, layers: Mapping[int, Layer], own: Sequence[Streams], options: tables.ReadoutGenerator
    ) -> None:
        """`layers`, not built yet, by their position in the last stage; `own` are their streams
        there, so that they begin with its initial weights."""
        self._layers, self._own = dict(layers), own
        self._options = options
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        *,
        shape: tuple[int, ...] = (),
    ) -> None:
        """See `Generator`; h is (B, *shape). Raises `ConfigError` for activations that the layers
        don't take."""
        layers = list(self._layers.values())
        rectify_in_norms(layers)
        for layer, own in zip(layers, self._own, strict=True):
            shape = layer.build(shape, dtype, own)
        self._loss = make_loss(loss)
        self._windows = WindowLoss(self._loss) if len(shape) == 2 else None
        self._vector, self._grads = flatten(layers)
        arrays = {
            f"{position}.{name}": array
            for position, layer in self._layers.items()
            for name, array in layer.params.items()
        }
        self._adam, version = Adam(), np.zeros((), np.int64)
        if self._options.private_after:
            self._adam.start(self._vector)
        self.readout = Copy(
            arrays,
            version,
            moments=self._adam.state,
            private_after=self._options.private_after,
        )
        named = {f"readout.{name}": array for name, array in arrays.items()}
        self.buffers = {**named, "version": version, **self.readout.buffers}

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Return ∂(summed loss)/∂h (B, *shape), which belongs to the slot; then make a step of R's
        own if its copy is too old. Steps that the data mask don't count."""
        layers = [slot.setdefault(f"layer{position}", {}) for position in self._layers]
        x = h
        for layer, own in zip(self._layers.values(), layers, strict=True):
            own["batch"] = slot["batch"]  # which dropout draws by
            x = layer.forward(x, own)
        learns = self.readout.learns()
        grad: Array | None = self._error(x, y, slot)
        for layer, own in zip(reversed(self._layers.values()), reversed(layers), strict=True):
            assert grad is not None
            layer.fresh = True
            grad = layer.backward(grad, own, learn=learns, send=True)
        if learns:
            self._step(len(h), rate_scale)
        assert grad is not None
        return grad

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Do nothing: R is the last stage's, and learns there."""

    def _error(self, x: Array, y: Array, slot: Slot) -> Array:
        kept: Slot = slot.setdefault("loss", {})
        if self._windows is None:
            self._loss.forward(x, y, kept)
            return self._loss.backward(kept)
        self._windows.forward(x, y, slot["context"].get("mask"), kept)
        return self._windows.backward(kept)

    def _step(self, samples: int, rate_scale: float) -> None:
        self._grads *= 1 / samples
        finite_norm(self._grads)
        self._adam.step(self._vector, self._grads, self._options.learning_rate * rate_scale)
