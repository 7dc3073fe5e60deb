"""What is trained on: one module a data set, each with `describe(data)` and `load(data, seed)`.

A new one gets a struct in `config` (its name and options), a module here, and a line below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncdni import config
from asyncdni.datasets import addition, digits, mnist, npz
from asyncdni.datasets.base import Dataset, Meta
from asyncdni.datasets.validation import described, hold_out

__all__ = ["Dataset", "Meta", "describe", "load"]

_DESCRIBE: dict[type, Callable[[Any], Meta]] = {
    config.Digits: digits.describe,
    config.Mnist: mnist.describe,
    config.Addition: addition.describe,
    config.Npz: npz.describe,
}

_LOAD: dict[type, Callable[[Any, int], Dataset]] = {
    config.Digits: digits.load,
    config.Mnist: mnist.load,
    config.Addition: addition.load,
    config.Npz: npz.load,
}


def describe(data: config.Data) -> Meta:
    """Shapes and counts of a data set without loading it; only `npz` touches its file.

    `data.validation` is taken off the training samples. Raises `DataError` where that file is
    missing, damaged or of another form, and `ConfigError` where nothing is left to train on.
    """
    return described(_DESCRIBE[type(data)](data), data.validation)


def load(data: config.Data, seed: int) -> Dataset:
    """The data set in memory, checked.

    `seed` is the run's: generated data depend on it, so that every schedule of one seed trains on
    the same samples. With `data.validation`, samples held out of training are the test part.
    Raises `DataError` for what is missing, damaged or can't be trained on, and `ConfigError` as
    `describe` does.
    """
    dataset = _LOAD[type(data)](data, seed)
    dataset.validate()
    return hold_out(dataset, data.validation)
