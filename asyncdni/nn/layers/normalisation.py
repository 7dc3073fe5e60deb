"""Normalisation: over the batch, of vectors and feature maps, and over each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import (
    Array,
    Layer,
    Slot,
    Streams,
    accumulate,
    forwarded,
    gradient,
    rows,
    slices,
)
from asyncdni.nn.fused import loops_of
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.options import is_whole

__all__ = ["BatchNorm", "BatchNorm2d", "LayerNorm", "rectify_in_norms"]


class BatchNorm:
    """Batch normalisation (Ioffe and Szegedy 2015, algorithm 1) of x (B, D): y = (x - mean) /
    sqrt(var + epsilon) * weight + bias, as torch.nn.BatchNorm1d.

    Training normalises by the batch's own mean and (biased) variance, and moves `running_mean`
    and `running_var` (unbiased) towards them by the fraction `momentum`, in the order of the
    forwards; `evaluate` normalises by these running statistics. A batch whose variance is not
    finite leaves them as they are, because they would never become finite again.
    """

    def __init__(
        self,
        *,
        momentum: float = 0.1,  # how far a batch moves the running statistics towards its own
        epsilon: float = 1e-5,  # added to the variance, so that nothing is divided by 0
    ) -> None:
        self.momentum = _number("momentum", momentum, "above 0 and at most 1", above=0, most=1)
        self.epsilon = _number("epsilon", epsilon, "above 0", above=0, most=np.inf)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._ones = np.ones(0)
        self._relu: Relu | None = None  # the next layer, where this one does its forward

    def rectify_for(self, relu: Relu) -> None:
        """Give outputs of training as `relu`, the next layer, would, while they are in the cache.
        There is then one array for both layers in each slot."""
        self._relu, relu.is_done = relu, True

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
        """Return x (B, D) normalised. Raises `DataError` for a batch of one sample, which has no
        variance."""
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
        y = rows(slot, "y", x.shape, x.dtype)
        loops = loops_of(x, self.params["weight"])
        if loops is not None:
            loops.centre(x, mean, centred, y)
        else:
            np.square(np.subtract(x, mean, out=centred), out=y)
        var = np.matmul(ones, y) / samples  # y has lent its memory
        self._track(mean, var * (samples / (samples - 1)))
        slot["inv_std"] = inv_std = 1 / np.sqrt(var + self.epsilon)
        scale, shift = inv_std * self.params["weight"], self.params["bias"]
        if loops is not None:
            least = np.array([-np.inf if self._relu is None else 0], x.dtype)
            loops.scale_and_shift(centred, scale, shift, least, y)
        else:
            np.multiply(centred, scale, out=y)
            y += shift
            if self._relu is not None:
                np.maximum(y, self._relu.zeros, out=y)
        return y

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        if not (learn or send):
            return None
        centred: Array = slot["centred"]
        inv_std: Array = slot["inv_std"]
        grad_bias = np.matmul(self._ones_of(grad_y), grad_y)
        grad_weight = np.einsum("ij,ij->j", grad_y, centred) * inv_std
        if learn:
            accumulate(self, {"weight": grad_weight, "bias": grad_bias})
        if not send:
            return None
        samples = len(grad_y)
        grad_x = gradient(slot, grad_y.shape, grad_y.dtype)
        along, mean = inv_std * grad_weight / -samples, grad_bias / samples
        scale = inv_std * self.params["weight"]
        loops = loops_of(grad_y, centred)
        if loops is not None:
            loops.normalised_back(centred, grad_y, along, mean, scale, grad_x)
        else:
            np.multiply(centred, along, out=grad_x)
            grad_x += grad_y
            grad_x -= mean
            grad_x *= scale
        return grad_x

    def evaluate(self, x: Array) -> Array:
        scale = self.params["weight"] / np.sqrt(self.buffers["running_var"] + self.epsilon)
        y: Array = x * scale
        y += self.params["bias"] - self.buffers["running_mean"] * scale
        return y

    def _ones_of(self, x: Array) -> Array:
        """Return ones (B,): a product with them sums over the samples, faster than np.sum does."""
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


def _number(name: str, value: object, expected: str, *, above: float, most: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not above < value <= most:  # type: ignore[operator]
        raise ConfigError(f"{name} {value!r}: expected a number {expected}")
    return float(value)  # type: ignore[arg-type]


def rectify_in_norms(layers: Sequence[Layer]) -> None:
    """Let each batch norm that a relu follows do the forward of both, with the same numbers."""
    for norm, relu in pairwise(layers):
        ours = type(norm) is BatchNorm or type(norm) is BatchNorm2d  # no class made of them
        if isinstance(norm, BatchNorm) and ours and type(relu) is Relu:
            norm.rectify_for(relu)


#: How many bytes of samples, about, are worked on at a time, so that results stay in the cache.
_CHUNK_BYTES = 1 << 19


class BatchNorm2d(BatchNorm):
    """Batch normalisation of feature maps x (B, C, H, W), as torch.nn.BatchNorm2d: one mean and
    deviation a channel, over all its planes. Inputs (B, D) are treated as by `BatchNorm`.

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
        """Normalise x (B, C, H, W), keeping a reference to it: it must not change until the
        backward. Raises `DataError` for a batch that has no variance: one sample of 1 x 1 planes,
        or one vector."""
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
        return self._scaled(x, mean, inv_std, rows(slot, "y", x.shape, x.dtype), self._relu)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        if grad_y.ndim == 2:
            return super().backward(grad_y, slot, learn=learn, send=send)
        if not (learn or send):
            return None
        x, mean, inv_std = slot["x"], slot["mean"], slot["inv_std"]
        grad_bias = self._total(grad_y)
        grad_weight = self._along(grad_y, x, mean) * inv_std
        if learn:
            accumulate(self, {"weight": grad_weight[:, 0], "bias": grad_bias[:, 0]})
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
        return self._scaled(x, mean, 1 / np.sqrt(var + self.epsilon), np.empty_like(x), None)

    def _scaled(self, x: Array, mean: Array, inv_std: Array, y: Array, relu: Relu | None) -> Array:
        scale, bias = inv_std * self.params["weight"][:, None], self.params["bias"][:, None]
        zeros = None if relu is None else _flat(relu.zeros[None])[0]
        for part in _chunks(x):
            found = np.subtract(_flat(x[part]), mean, out=_flat(y[part]))
            found *= scale
            found += bias
            if zeros is not None:
                np.maximum(found, zeros, out=found)
        return y

    # The next methods sum by channel, to (C, 1): first over places, by a product with ones, then
    # over samples.

    def _total(self, x: Array) -> Array:
        total: Array = np.matmul(_flat(x), self._ones_of(_flat(x)[0].T)).sum(axis=0)
        return total[:, None]

    def _squares(self, x: Array, mean: Array) -> Array:
        return self._summed(x, mean, None)

    def _along(self, grad_y: Array, x: Array, mean: Array) -> Array:
        """Return Σ grad_y (x - mean), (C, 1)."""
        return self._summed(x, mean, grad_y)

    def _summed(self, x: Array, mean: Array, other: Array | None) -> Array:
        """Return Σ (x - mean) other, (C, 1), or Σ (x - mean)² where `other` is None."""
        total = np.zeros(x.shape[1], x.dtype)
        for part in _chunks(x):
            flat = _flat(x[part])
            centred = rows(self._scratch, "centred", flat.shape, x.dtype)
            np.subtract(flat, mean, out=centred)
            np.multiply(centred, centred if other is None else _flat(other[part]), out=centred)
            total += np.matmul(centred, self._ones_of(centred[0].T)).sum(axis=0)
        return total[:, None]


def _flat(x: Array) -> Array:
    """Return the view (n, C, H W) of x (n, C, H, W)."""
    return x.reshape(len(x), x.shape[1], -1)


def _chunks(x: Array) -> Iterator[slice]:
    return slices(len(x), max(1, _CHUNK_BYTES // max(1, x[:1].nbytes)))


class LayerNorm:
    """Layer normalisation (Ba, Kiros and Hinton 2016): y = (x - mean) / sqrt(var + epsilon) *
    weight + bias, with mean and (biased) variance over the last `axes` axes of each sample, as
    torch.nn.LayerNorm over a shape of as many axes.

    Weight and bias have the shape of those axes.
    """

    def __init__(
        self,
        *,
        axes: int = 1,  # how many of the last axes are normalised together
        epsilon: float = 1e-5,  # added to the variance, so that nothing is divided by 0
    ) -> None:
        if not is_whole(axes) or axes < 1:
            raise ConfigError(f"axes {axes!r}: expected how many of the last axes are normalised")
        self.axes = axes
        self.epsilon = _number("epsilon", epsilon, "above 0", above=0, most=np.inf)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._ones = np.ones(0)  # a product with it sums over places, faster than np.sum does

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
        """Write the normalised rows of `flat` into `normal`; return 1 / deviation (rows, 1)."""
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
        """Write the gradient of x, inv_std (g - mean(g) - normal mean(g normal)) with g = grad_y
        weight, into grad_x."""
        found = grad_x.reshape(normal.shape)
        np.multiply(flat, self.params["weight"].reshape(-1), out=found)
        mean = np.matmul(found, self._ones)[:, None] / self._width
        along = np.einsum("ij,ij->i", found, normal)[:, None] / self._width
        found -= mean
        found -= normal * along
        found *= inv_std
        return grad_x

    def _learn(self, flat: Array, normal: Array) -> None:
        shape = self.params["weight"].shape
        weight = np.einsum("ij,ij->j", flat, normal)
        bias = np.matmul(np.ones(len(flat), flat.dtype), flat)
        accumulate(self, {"weight": weight.reshape(shape), "bias": bias.reshape(shape)})
