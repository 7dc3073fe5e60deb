"""Batch normalisation (Ioffe and Szegedy 2015, algorithm 1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["BatchNorm"]


class BatchNorm:
    """y = (x - mean) / sqrt(var + epsilon) * weight + bias over x (B, D), as torch.nn.BatchNorm1d.

    Training normalises by the batch's own mean and (biased) variance, and moves `running_mean`
    and `running_var` (unbiased) towards them by the fraction `momentum`, in the order of the
    forwards; `evaluate` normalises by the running ones. A batch whose variance is not finite
    leaves the running ones as they are: they would never be rid of it.
    """

    def __init__(self, *, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        self.momentum = _number("momentum", momentum, "above 0 and at most 1", above=0, most=1)
        self.epsilon = _number("epsilon", epsilon, "above 0", above=0, most=np.inf)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._ones = np.ones(0)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 1 or shape[0] < 1:
            raise ConfigError(f"a batch_norm layer takes inputs of shape (D,), not {shape}")
        return shape

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        self.params = {"weight": np.ones(shape, dtype), "bias": np.zeros(shape, dtype)}
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.buffers = {
            "running_mean": np.zeros(shape, dtype),
            "running_var": np.ones(shape, dtype),
        }
        self.fresh = True
        self._ones = np.ones(0, dtype)
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        """(B, D) to (B, D). Raises `DataError` for a batch of one sample: it has no variance."""
        samples = len(x)
        if samples < 2:
            raise DataError(
                f"batch_norm was given a training batch of {samples} sample: a variance needs at "
                "least 2; choose a batch size that does not leave one over, or drop the layer"
            )
        forwarded(slot)
        ones = self._ones_of(x)
        mean = np.matmul(ones, x) / samples
        slot["centred"] = centred = rows(slot, "centred_rows", x.shape, x.dtype)
        np.subtract(x, mean, out=centred)
        y = rows(slot, "y", x.shape, x.dtype)
        var = np.matmul(ones, np.square(centred, out=y)) / samples  # y lends its memory
        self._track(mean, var * (samples / (samples - 1)))
        slot["inv_std"] = inv_std = 1 / np.sqrt(var + self.epsilon)
        np.multiply(centred, inv_std * self.params["weight"], out=y)
        y += self.params["bias"]
        return y

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        if not (learn or send):
            return None
        centred: Array = slot["centred"]
        inv_std: Array = slot["inv_std"]
        grad_bias = np.matmul(self._ones_of(grad_y), grad_y)
        grad_weight = np.einsum("ij,ij->j", grad_y, centred) * inv_std
        if learn:
            self._learn(grad_weight, grad_bias)
        if not send:
            return None
        samples = len(grad_y)
        grad_x = gradient(slot, grad_y.shape, grad_y.dtype)
        np.multiply(centred, inv_std * grad_weight / -samples, out=grad_x)
        grad_x += grad_y
        grad_x -= grad_bias / samples
        grad_x *= inv_std * self.params["weight"]
        return grad_x

    def evaluate(self, x: Array) -> Array:
        scale = self.params["weight"] / np.sqrt(self.buffers["running_var"] + self.epsilon)
        y: Array = x * scale
        y += self.params["bias"] - self.buffers["running_mean"] * scale
        return y

    def _ones_of(self, x: Array) -> Array:
        """Ones (B,): a product with them sums over the samples, faster than np.sum does."""
        if len(self._ones) < len(x):
            self._ones = np.ones(len(x), x.dtype)
        return self._ones[: len(x)]

    def _track(self, mean: Array, unbiased_var: Array) -> None:
        if not np.isfinite(unbiased_var).all():
            return
        for name, value in (("running_mean", mean), ("running_var", unbiased_var)):
            running = self.buffers[name]
            running *= 1 - self.momentum
            running += self.momentum * value

    def _learn(self, grad_weight: Array, grad_bias: Array) -> None:
        for name, grad in (("weight", grad_weight), ("bias", grad_bias)):
            if self.fresh:
                self.grads[name][...] = grad
            else:
                self.grads[name] += grad
        self.fresh = False


def _number(name: str, value: object, expected: str, *, above: float, most: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not above < value <= most:  # type: ignore[operator]
        raise ConfigError(f"{name} {value!r}: expected a number {expected}")
    return float(value)  # type: ignore[arg-type]
