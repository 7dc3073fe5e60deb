"""Binary addition, the toy problem of Trask, "Deep Learning without Backpropagation" (2017).

Two integers below 2**(bits - 1), each written most significant bit first on `bits` bits, side by
side; the target is their sum on `bits` bits. The task needs its carries, so a linear network fails.

Training and test examples are drawn with replacement from streams of the run's seed, one each: the
number of one does not change the other, and with few bits some test examples are in both.
"""

from __future__ import annotations

import numpy as np

from asyncdni import config
from asyncdni.data.base import Dataset
from asyncdni.data.meta import Array, Meta
from asyncdni.nn.streams import stream

__all__ = ["describe", "load"]


def describe(data: config.Addition) -> Meta:
    """Shapes: (2 * bits,) in, `bits` values out."""
    return Meta(
        input_shape=(2 * data.bits,),
        targets="values",
        outputs=data.bits,
        train_samples=data.examples,
        test_samples=data.test_examples,
    )


def load(data: config.Addition, seed: int) -> Dataset:
    """The examples that `seed` stands for: x (N, 2 * bits), y (N, bits), float32, 0 or 1."""
    x_train, y_train = _examples(data.bits, data.examples, stream(seed, "data", "train"))
    x_test, y_test = _examples(data.bits, data.test_examples, stream(seed, "data", "test"))
    return Dataset("addition", x_train, y_train, x_test, y_test, classes=None)


def _examples(bits: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    summands = rng.integers(0, 2 ** (bits - 1), size=(count, 2), dtype=np.int64)
    x = np.concatenate([_written(summands[:, 0], bits), _written(summands[:, 1], bits)], axis=1)
    return x, _written(summands.sum(axis=1), bits)


def _written(numbers: Array, bits: int) -> Array:
    """(N,) integers as (N, bits) float32, most significant bit first."""
    places = np.arange(bits - 1, -1, -1)
    return ((numbers[:, None] >> places) & 1).astype(np.float32)
