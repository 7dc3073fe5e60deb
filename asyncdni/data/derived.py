"""Data sets derived from others: with a validation part, and with the inputs as targets.

With `[data] validation = N`, N training samples replace the test set, so that hyper-parameters are
chosen without a look at the test set. They are the last N of a permutation that does not depend on
the run's seed. So every run of a study is judged by the same samples, and a larger N keeps the
samples of a smaller one.

With `[data] targets = "inputs"`, an autoencoder learns to reconstruct its inputs.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from asyncdni.data.base import Dataset
from asyncdni.data.meta import Array, Meta
from asyncdni.data.stored import Stored, flattened
from asyncdni.errors import ConfigError
from asyncdni.nn.streams import stream

__all__ = ["Reconstruction", "described", "described_as_inputs", "hold_out"]

#: Seed of the permutation, for all runs.
_SEED = 0


def described(meta: Meta, count: int) -> Meta:
    """Return `meta` after `count` samples have been held out; 0 changes nothing.

    Raises `ConfigError` if no sample is left to train on.
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
    """Return the data set with `count` training samples as its test samples; 0 changes nothing.

    Both parts keep the stored order. Raises `ConfigError` as `described` does.
    """
    if count == 0:
        return dataset
    samples = described(dataset.meta, count).train_samples + count
    held = np.zeros(samples, bool)
    held[stream(_SEED, "data", "validation").permutation(samples)[-count:]] = True
    return Dataset(
        dataset.source,
        _chosen(dataset.x_train, ~held),
        _chosen(dataset.y_train, ~held),
        _chosen(dataset.x_train, held),
        _chosen(dataset.y_train, held),
        dataset.classes,
    )


def _chosen(array: Array | Stored, rows: Array) -> Array | Stored:
    """Return the rows for which `rows` (N,) is true."""
    return array.choose(np.flatnonzero(rows)) if isinstance(array, Stored) else array[rows]


def described_as_inputs(meta: Meta) -> Meta:
    """Return `meta` with its inputs as targets."""
    outputs = math.prod(meta.input_shape)
    return msgspec.structs.replace(meta, targets="values", outputs=outputs, answers=False)


class Reconstruction(Dataset):
    """`dataset` with its inputs as targets, for autoencoders.

    "y" (B, outputs) of a batch is a flattened view of "h"; of images, values in [0, 1].
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(
            dataset.source,
            dataset.x_train,
            dataset.y_train,
            dataset.x_test,
            dataset.y_test,
            dataset.classes,
        )

    @property
    def meta(self) -> Meta:
        """The shapes and counts of this data set."""
        return described_as_inputs(super().meta)

    def targets(self) -> dict[str, Array | Stored]:
        """Return all inputs, flattened; of uint8 only one test sample, as all are scaled to
        [0, 1]."""
        if self.x_train.dtype == np.uint8:
            return {"x_test": self.read_test(0, 1, np.float32)["y"]}
        found = {"x_train": self.x_train, "x_test": self.x_test}
        return {name: flattened(x) for name, x in found.items()}

    def _named(self, x: Array, y: Array) -> dict[str, Array]:
        return {"h": x, "y": x.reshape(len(x), -1)}
