"""`[data] validation = N`: N training samples take the place of the test set.

Hyper-parameters are then chosen without a look at the test set. Which samples are held out depends
on their number alone: they are the last N of a permutation that has nothing to do with the run's
seed, so every run of a study is judged by the same ones, and a larger N only adds to a smaller.
"""

from __future__ import annotations

import msgspec
import numpy as np

from asyncdni.datasets.base import Dataset, Meta
from asyncdni.errors import ConfigError
from asyncdni.nn.streams import stream

__all__ = ["described", "hold_out"]

#: Of the permutation; a seed like any other, and no run's.
_SEED = 0


def described(meta: Meta, count: int) -> Meta:
    """`meta` once `count` samples are held out. Raises `ConfigError` if none is left to train on.

    0 changes nothing.
    """
    if count == 0:
        return meta
    if count >= meta.train_samples:
        raise ConfigError(
            f"data.validation: {count} leaves nothing to train on; expected less than "
            f"{meta.train_samples}, the number of training samples"
        )
    return msgspec.structs.replace(
        meta, train_samples=meta.train_samples - count, test_samples=count
    )


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The same with `count` training samples in place of the test samples; 0 changes nothing.

    Both parts keep the stored order. Raises `ConfigError` as `described` does.
    """
    if count == 0:
        return dataset
    samples = described(dataset.meta, count).train_samples + count
    held = np.zeros(samples, bool)
    held[stream(_SEED, "data", "validation").permutation(samples)[-count:]] = True
    return Dataset(
        dataset.source,
        dataset.x_train[~held],
        dataset.y_train[~held],
        dataset.x_train[held],
        dataset.y_train[held],
        dataset.classes,
    )
