"""Binary addition, the toy problem of Trask, "Deep Learning without Backpropagation" (2017).

An input is two integers below 2**(bits - 1), side by side, each with `bits` bits, most significant
first; the target is their sum in `bits` bits. Sums have carries, so a linear network fails.

Training and test examples are drawn with replacement from two random streams of the run's seed. So
the number of training examples does not change the test examples, nor the other way round, and with
few bits some examples are in both.
"""

from __future__ import annotations

import numpy as np

from asyncdni import config
from asyncdni.data.base import Dataset
from asyncdni.data.meta import Array, Meta
from asyncdni.nn.streams import stream

__all__ = ["describe", "load"]


def describe(data: config.Addition) -> Meta:
    """Return the shapes: inputs (2 * bits,), targets of `bits` values."""
    return Meta(
        input_shape=(2 * data.bits,),
        targets="values",
        outputs=data.bits,
        train_samples=data.examples,
        test_samples=data.test_examples,
    )


def load(data: config.Addition, seed: int) -> Dataset:
    """Return the examples drawn with `seed`: x (N, 2 * bits), y (N, bits), float32, 0 or 1."""
    x_train, y_train = _examples(data.bits, data.examples, stream(seed, "data", "train"))
    x_test, y_test = _examples(data.bits, data.test_examples, stream(seed, "data", "test"))
    return Dataset("addition", x_train, y_train, x_test, y_test, classes=None)


def _examples(bits: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    summands = rng.integers(0, 2 ** (bits - 1), size=(count, 2), dtype=np.int64)
    x = np.concatenate([_written(summands[:, 0], bits), _written(summands[:, 1], bits)], axis=1)
    return x, _written(summands.sum(axis=1), bits)


def _written(numbers: Array, bits: int) -> Array:
    """Return integers (N,) as (N, bits) float32, most significant bit first."""
    places = np.arange(bits - 1, -1, -1)
    return ((numbers[:, None] >> places) & 1).astype(np.float32)
