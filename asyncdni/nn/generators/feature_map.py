"""The default generator of feature maps: the error of a pooled classifier, through a learned map.

As in `error`, a local head tells e = ∂loss/∂logits at once, and ĝ = e U is fitted to the true
gradients. Of a feature map the head sees the mean of each channel over a few cells only: far fewer
weights, which learn faster, and the rough place of things is still told. The map U reaches every
channel and place of its own: (K, C H W) is little beside the convolutions, and the gradient of a
class differs from place to place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.generators.error import ErrorGenerator
from asyncdni.nn.layers.slots import rows

__all__ = ["FeatureMapErrorGenerator"]


class FeatureMapErrorGenerator(ErrorGenerator):
    """ĝ = e U with e of a head on the means of `cells` x `cells` cells of each plane.

    "head.weight" is (K, C cells cells), "head.bias" (K,), "map" (K, C H W); see `ErrorGenerator`.
    Planes with fewer rows or columns than `cells` have as many cells as those. Of activations that
    are no feature maps it is an `ErrorGenerator`, to the last bit.
    """

    def __init__(
        self, *, cells: int = 4, head_learning_rate: float = 1e-2, rate: float = 0.03
    ) -> None:
        """`rate`: share of the error in the map that a fit removes, stable below 2."""
        super().__init__(head_learning_rate=head_learning_rate, rate=rate)
        if not isinstance(cells, int) or isinstance(cells, bool) or cells < 1:
            raise ConfigError(f"cells {cells!r}: expected a positive whole number")
        self.cells = cells

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        shape: tuple[int, ...] = (),
    ) -> None:
        """For feature maps h of `shape` (C, H, W), as rows of `width` = C H W, or for activations
        of another shape. All zero, so nothing is drawn from `streams`."""
        self._means: Array | None = None
        if len(shape) != 3:
            super().build(width, outputs, loss, dtype, streams)
            return
        channels, height, across = shape
        down, right = _means(height, self.cells), _means(across, self.cells)
        self._means = np.ascontiguousarray(np.kron(down, right).T, dtype)
        super().build(channels * self._means.shape[1], outputs, loss, dtype, streams)
        self.params["map"] = np.zeros((outputs, width), dtype)
        self._change, self._pulled = np.empty((2, outputs, width), dtype)

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """e U (B, C H W) for activations h (B, C H W) and targets y; then the head's step.

        e is of the head before its step, so the prediction does not know its own labels twice."""
        if self._means is None:
            return super().predict(h, y, slot, rate_scale)
        pooled = self._pool(h, self._means)
        shape = len(h), self._outputs
        logits = rows(self._scratch, "logits", shape, self._dtype)
        np.matmul(pooled, self.params["head.weight"].T, out=logits)
        logits += self.params["head.bias"]
        slot["error"] = error = rows(slot, "error_rows", shape, self._dtype)
        self._loss.error(logits, y, error)
        prediction = rows(slot, "prediction", h.shape, self._dtype)
        np.matmul(error, self.params["map"], out=prediction)
        self._step_head(pooled, error, rate_scale)
        return prediction

    def _pool(self, h: Array, means: Array) -> Array:
        """The means (B, C cells cells) of h (B, C H W), as one product with all planes."""
        places, cells = means.shape
        each = rows(self._scratch, "pooled", (h.size // places, cells), self._dtype)
        return np.matmul(h.reshape(-1, places), means, out=each).reshape(len(h), -1)


def _means(size: int, cells: int) -> Array:
    """(cells, size): row i takes the mean of the i-th of `cells` even parts, which overlap by one
    element where they are not even (as torch.nn.AdaptiveAvgPool2d has them)."""
    cells = min(cells, size)
    found = np.zeros((cells, size))
    for i in range(cells):
        first, last = i * size // cells, -(-(i + 1) * size // cells)
        found[i, first:last] = 1 / (last - first)
    return found
