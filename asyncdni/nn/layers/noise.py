"""Layers that draw random numbers in training: dropout, and sampling from a Gaussian.

The numbers are drawn from a stream of the layer's own for each batch id, which the caller puts into
slot["batch"] before the forward. A batch sees the same numbers under every split and schedule, and
when it is forwarded again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Rng, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.layers.activations import Elementwise

__all__ = ["Dropout", "Gaussian"]

#: Probabilities are rounded to multiples of 1 / _PARTS. So 16 random bits an element are enough;
#: they are drawn four times as fast as a floating number.
_PARTS = 1 << 16


class Dropout(Elementwise):
    """Inverted dropout (Srivastava et al. 2014): y = x mask / (1 - p), of any shape, in training;
    y = x in evaluation.
    """

    def __init__(
        self,
        p: float = 0.5,  # the probability that an element is dropped, to a multiple of 2^-16
    ) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise ConfigError(f"p {p!r}: expected a number of at least 0 and below 1")
        self.p = float(p)
        self._kept = max(1, round((1 - self.p) * _PARTS))  # out of `_PARTS`

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self._streams = streams
        return super().build(shape, dtype, streams)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Return x with elements dropped. Raises `DataError` where slot["batch"] is missing."""
        forwarded(slot)
        batch = slot.get("batch")
        if not isinstance(batch, int):
            raise DataError(
                f'dropout found {batch!r} in slot["batch"]: expected the id of the batch, a whole '
                "number, put there before its forward, as the mask depends on it"
            )
        bits = _bits(self._streams(f"mask.{batch}"), x.shape)
        slot["mask"] = mask = rows(slot, "mask_rows", x.shape, np.dtype(bool))
        np.less(bits, self._kept, out=mask)
        return self._apply(x, mask, rows(slot, "y", x.shape, x.dtype))

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        return self._apply(grad_y, slot["mask"], gradient(slot, grad_y.shape, grad_y.dtype))

    def evaluate(self, x: Array) -> Array:
        return x

    def _apply(self, x: Array, mask: Array, out: Array) -> Array:
        np.multiply(x, mask, out=out)
        out *= _PARTS / self._kept
        return out


def _bits(rng: Rng, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return what `rng.integers(0, _PARTS, shape, np.uint16)` does, in half the time: the words of
    64 bits that all streams are made of."""
    count = math.prod(shape)
    words = rng.bit_generator.random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:count].reshape(shape)


class Gaussian:
    """Gaussian sampling by reparametrisation, with its Kullback-Leibler term (Kingma and Welling
    2014): x (B, 2 Z), means m and then logarithms of variances s^2, to samples z (B, Z).

    In training z = m + s e with e drawn from N(0, 1), so that gradients pass through m and s.
    Evaluation returns the means.

    The layer has a loss of its own, `weight` * KL(N(m, s^2) || N(0, 1)), in training and in the
    test. It keeps the codes z near the prior, from which new ones can then be drawn. The forward
    leaves its value, summed over samples, in slot["loss"] (float) for the stage to add to its
    score, and the backward adds its gradient. A caller sets slot["own_loss"] to False for a second
    backward of the same batch, which must not add that gradient again.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,  # of the KL term in the loss; 1 gives the evidence lower bound
    ) -> None:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < np.inf:
            raise ConfigError(f"weight {weight!r}: expected a number of at least 0")
        self.weight = float(weight)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 1 or shape[0] < 2 or shape[0] % 2:
            raise ConfigError(
                f"a gaussian layer takes inputs of shape (2 Z,), Z means and Z logarithms of "
                f"variances, not {shape}"
            )
        return (shape[0] // 2,)

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self._streams = streams
        return self.output_shape(shape)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Draw codes (B, Z) for x (B, 2 Z). Raises `DataError` where the slot has no batch id."""
        if "batch" not in slot:
            raise DataError(
                "a gaussian layer needs the batch's id, to draw the same noise for it everywhere: "
                'set slot["batch"] before the forward'
            )
        forwarded(slot)
        shape = len(x), x.shape[1] // 2
        mean, log_variance = x[:, : shape[1]], x[:, shape[1] :]
        slot["mean"] = mean
        deviation = rows(slot, "deviation_rows", shape, x.dtype)
        np.multiply(log_variance, 0.5, out=deviation)
        np.exp(deviation, out=deviation)
        slot["deviation"] = deviation
        # Drawn in float64 for every dtype of x, so that all see the same numbers.
        noise = self._streams(f"noise.{slot['batch']}").standard_normal(shape)
        slot["pushed"] = pushed = rows(slot, "pushed_rows", shape, x.dtype)
        np.multiply(deviation, noise, out=pushed, casting="same_kind")
        slot["loss"] = self.weight * _divergence(mean, log_variance, deviation)
        return np.add(mean, pushed, out=rows(slot, "y", shape, x.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """Return the gradient of x, if `send`: dz/dm = 1 and dz/d(log s^2) = s e / 2. The KL term's
        gradients are m and (s^2 - 1) / 2."""
        self.fresh = self.fresh and not learn
        if not send:
            return None
        codes = grad_y.shape[1]
        grad_x = gradient(slot, (len(grad_y), 2 * codes), grad_y.dtype)
        to_mean, to_log = grad_x[:, :codes], grad_x[:, codes:]
        to_mean[...] = grad_y
        np.multiply(grad_y, slot["pushed"], out=to_log)
        if slot.get("own_loss", True) and self.weight:
            to_mean += self.weight * slot["mean"]
            to_log += self.weight * (np.square(slot["deviation"]) - 1)
        to_log *= 0.5
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return np.ascontiguousarray(x[:, : x.shape[1] // 2])

    def own_loss(self, x: Array) -> float:
        """Return the layer's own part of the test loss for x (B, 2 Z): `weight` * KL, summed."""
        mean, log_variance = np.split(x, 2, axis=1)
        return self.weight * _divergence(mean, log_variance, np.exp(0.5 * log_variance))


def _divergence(mean: Array, log_variance: Array, deviation: Array) -> float:
    """Return KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2, summed over everything."""
    terms = np.square(mean) + np.square(deviation) - 1 - log_variance
    return 0.5 * float(terms.sum(dtype=np.float64))
