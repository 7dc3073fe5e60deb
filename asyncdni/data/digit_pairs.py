"""Two kinds of digits to tell apart, by default 0 and 1: few images, one output.

This is the task of Seo's decoupled recurrent network (2018): 100 training and 20 test images; the
target is 0 for the first kind and 1 for the second. Images are drawn without replacement by the
run's seed, test images from the test set. For recurrent layers each image is repeated at every time
step.
"""

from __future__ import annotations

import numpy as np

from asyncdni.config import DigitPairs, Digits, Mnist
from asyncdni.data import digits, mnist
from asyncdni.data.base import Dataset
from asyncdni.data.meta import Array, Meta
from asyncdni.errors import ConfigError
from asyncdni.nn.streams import stream

__all__ = ["describe", "load"]


def describe(data: DigitPairs) -> Meta:
    """Return the shapes: inputs (784,) or (steps, 784), one value as target; reads no file.

    Raises `ConfigError` for twice the same digit."""
    if data.first == data.second:
        raise ConfigError(
            f"data.second: {data.second} is data.first too; expected two digits to tell apart"
        )
    return Meta(
        input_shape=(data.steps, 784) if data.steps > 1 else (784,),
        targets="values",
        outputs=1,
        train_samples=data.examples,
        test_samples=data.test_examples,
    )


def load(data: DigitPairs, seed: int) -> Dataset:
    """Return x (N, 784) or (N, steps, 784) uint8, y (N, 1) of 0 and 1, as `seed` draws them.

    Raises `ConfigError` for more examples than there are, and `DataError` as `mnist.load` does."""
    describe(data)
    if data.source == "mnist":
        whole = mnist.load(Mnist(path=data.path), seed)
    else:
        whole = digits.load(Digits(), seed)
    x_train, y_train = _drawn(data, whole.x_train[:], whole.y_train[:], "examples", seed)
    x_test, y_test = _drawn(data, whole.x_test[:], whole.y_test[:], "test_examples", seed)
    return Dataset("digit_pairs", x_train, y_train, x_test, y_test, classes=None)


def _drawn(data: DigitPairs, x: Array, y: Array, option: str, seed: int) -> tuple[Array, Array]:
    count: int = getattr(data, option)
    rows = np.flatnonzero((y == data.first) | (y == data.second))
    if count > len(rows):
        raise ConfigError(
            f"data.{option}: {count} are more than the {len(rows)} images of {data.first} and "
            f"{data.second} in {data.source}; expected at most as many"
        )
    rows = stream(seed, "data", f"digit pairs {option}").permutation(rows)[:count]
    images = x[rows]
    if data.steps > 1:
        images = np.repeat(images[:, None], data.steps, axis=1)
    return images, (y[rows] == data.second).astype(np.float32)[:, None]
