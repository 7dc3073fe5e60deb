"""Layer normalisation (Ba, Kiros and Hinton 2016)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["LayerNorm"]


class LayerNorm:
    """y = (x - mean) / sqrt(var + epsilon) * weight + bias, with mean and (biased) variance over
    the last `axes` axes of each sample, as torch.nn.LayerNorm over a shape of so many axes.

    Weight and bias have the shape of those axes.
    """

    def __init__(self, *, axes: int = 1, epsilon: float = 1e-5) -> None:
        if not isinstance(axes, int) or isinstance(axes, bool) or axes < 1:
            raise ConfigError(f"axes {axes!r}: expected how many of the last axes are normalised")
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not epsilon > 0:
            raise ConfigError(f"epsilon {epsilon!r}: expected a number above 0")
        self.axes = axes
        self.epsilon = float(epsilon)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._ones = np.ones(0)  # sums over places are products with it, faster than np.sum

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < self.axes or min(shape) < 1:
            raise ConfigError(
                f"a layer_norm layer over the last {self.axes} axes takes inputs of at least so "
                f"many, without the batch axis, not of shape {shape}"
            )
        return shape

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        own = shape[len(shape) - self.axes :]
        self._width = math.prod(own)
        self.params = {"weight": np.ones(own, dtype), "bias": np.zeros(own, dtype)}
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.fresh = True
        self._ones = np.ones(self._width, dtype)
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        flat = x.reshape(-1, self._width)
        normal = rows(slot, "normal_rows", flat.shape, x.dtype)
        slot["inv_std"] = self._normalise(flat, normal)
        slot["normal"] = normal
        return self._scaled(normal, rows(slot, "y", x.shape, x.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        normal: Array = slot["normal"]
        flat = grad_y.reshape(normal.shape)
        if learn:
            self._learn(flat, normal)
        if not send:
            return None
        grad_x = gradient(slot, grad_y.shape, grad_y.dtype)
        return self._pull(flat, normal, slot["inv_std"], grad_x)

    def evaluate(self, x: Array) -> Array:
        normal = np.empty((x.size // self._width, self._width), x.dtype)
        self._normalise(x.reshape(normal.shape), normal)
        return self._scaled(normal, np.empty_like(x))

    def _normalise(self, flat: Array, normal: Array) -> Array:
        """Writes into `normal`; returns 1 / deviation (rows, 1)."""
        mean = np.matmul(flat, self._ones)[:, None] / self._width
        np.subtract(flat, mean, out=normal)
        var = np.einsum("ij,ij->i", normal, normal)[:, None] / self._width
        inv_std: Array = 1 / np.sqrt(var + self.epsilon)
        normal *= inv_std
        return inv_std

    def _scaled(self, normal: Array, y: Array) -> Array:
        flat = y.reshape(normal.shape)
        np.multiply(normal, self.params["weight"].reshape(-1), out=flat)
        flat += self.params["bias"].reshape(-1)
        return y

    def _pull(self, flat: Array, normal: Array, inv_std: Array, grad_x: Array) -> Array:
        """With g = grad_y weight: inv_std (g - mean(g) - normal mean(g normal))."""
        found = grad_x.reshape(normal.shape)
        np.multiply(flat, self.params["weight"].reshape(-1), out=found)
        mean = np.matmul(found, self._ones)[:, None] / self._width
        along = np.einsum("ij,ij->i", found, normal)[:, None] / self._width
        found -= mean
        found -= normal * along
        found *= inv_std
        return grad_x

    def _learn(self, flat: Array, normal: Array) -> None:
        found = {
            "weight": np.einsum("ij,ij->j", flat, normal),
            "bias": np.matmul(np.ones(len(flat), flat.dtype), flat),
        }
        for name, grad in self.grads.items():
            if self.fresh:
                grad[...] = found[name].reshape(grad.shape)
            else:
                grad += found[name].reshape(grad.shape)
        self.fresh = False
