"""Batch normalisation of feature maps: one mean and deviation a channel, over all its planes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.batch_norm import BatchNorm
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["BatchNorm2d"]

#: Of samples that are worked on at a time, about, so that what is made of them stays in the cache.
_CHUNK_BYTES = 1 << 19


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for x (B, C, H, W) too, as torch.nn.BatchNorm2d; (B, D) as `BatchNorm` has it.

    Of a batch, only x, y and one mean and deviation a channel are kept.
    """

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ConfigError(
                f"a batch_norm layer takes inputs of shape (D,) or (C, H, W), not {shape}"
            )
        return shape

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        super().build(shape[:1], dtype, streams)
        self._scratch: Slot = {}
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        """Keeps a reference to x (B, C, H, W), which must stay as it is until the backward. Raises
        `DataError` for a batch that has no variance: one sample (of one place)."""
        if x.ndim == 2:
            return super().forward(x, slot)
        places = x.size // x.shape[1]
        if places < 2:
            raise DataError(
                "batch_norm was given a training batch of 1 sample of 1 x 1 planes: a variance "
                "needs at least 2 numbers; choose a batch size that does not leave one over"
            )
        forwarded(slot)
        slot["x"] = x
        slot["mean"] = mean = self._total(x) / places
        var = self._squares(x, mean) / places
        self._track(mean[:, 0], var[:, 0] * (places / (places - 1)))
        slot["inv_std"] = inv_std = 1 / np.sqrt(var + self.epsilon)
        return self._scaled(x, mean, inv_std, rows(slot, "y", x.shape, x.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        if grad_y.ndim == 2:
            return super().backward(grad_y, slot, learn=learn, send=send)
        if not (learn or send):
            return None
        x, mean, inv_std = slot["x"], slot["mean"], slot["inv_std"]
        grad_bias = self._total(grad_y)
        grad_weight = self._along(grad_y, x, mean) * inv_std
        if learn:
            self._learn(grad_weight[:, 0], grad_bias[:, 0])
        if not send:
            return None
        places = x.size // x.shape[1]
        grad_x = gradient(slot, x.shape, x.dtype)
        pull, scale = inv_std * grad_weight / places, inv_std * self.params["weight"][:, None]
        for part in _chunks(x):
            found = _flat(grad_x[part])
            np.subtract(_flat(x[part]), mean, out=found)
            found *= -pull
            found += _flat(grad_y[part])
            found -= grad_bias / places
            found *= scale
        return grad_x

    def evaluate(self, x: Array) -> Array:
        if x.ndim == 2:
            return super().evaluate(x)
        mean, var = self.buffers["running_mean"][:, None], self.buffers["running_var"][:, None]
        return self._scaled(x, mean, 1 / np.sqrt(var + self.epsilon), np.empty_like(x))

    def _scaled(self, x: Array, mean: Array, inv_std: Array, y: Array) -> Array:
        scale, bias = inv_std * self.params["weight"][:, None], self.params["bias"][:, None]
        for part in _chunks(x):
            found = np.subtract(_flat(x[part]), mean, out=_flat(y[part]))
            found *= scale
            found += bias
        return y

    # Sums by channel (C, 1): over places by a product with ones, then over samples.

    def _total(self, x: Array) -> Array:
        total: Array = np.matmul(_flat(x), self._ones_of(_flat(x)[0].T)).sum(axis=0)
        return total[:, None]

    def _squares(self, x: Array, mean: Array) -> Array:
        return self._summed(x, mean, None)

    def _along(self, grad_y: Array, x: Array, mean: Array) -> Array:
        """Σ grad_y (x - mean)"""
        return self._summed(x, mean, grad_y)

    def _summed(self, x: Array, mean: Array, other: Array | None) -> Array:
        """Σ (x - mean) other, or Σ (x - mean)² without another."""
        total = np.zeros(x.shape[1], x.dtype)
        for part in _chunks(x):
            flat = _flat(x[part])
            centred = rows(self._scratch, "centred", flat.shape, x.dtype)
            np.subtract(flat, mean, out=centred)
            np.multiply(centred, centred if other is None else _flat(other[part]), out=centred)
            total += np.matmul(centred, self._ones_of(centred[0].T)).sum(axis=0)
        return total[:, None]


def _flat(x: Array) -> Array:
    """(n, C, H W), a view."""
    return x.reshape(len(x), x.shape[1], -1)


def _chunks(x: Array) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // max(1, x[:1].nbytes))
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))
