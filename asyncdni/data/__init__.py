"""The data sets: one module for each, with `describe(data)` and `load(data, seed)`.

To add a data set, write a module and add a line to `DATA_SETS`. The struct of its options says
whether it has samples, which stand by themselves, or windows of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from asyncdni import config
from asyncdni.data import (
    addition,
    cifar10,
    copying,
    digit_pairs,
    digits,
    mnist,
    npz,
    text,
    torch,
    trigonometry,
)
from asyncdni.data.base import Dataset
from asyncdni.data.derived import Reconstruction, described, described_as_inputs, hold_out
from asyncdni.data.meta import Batches, Inputs, Meta, Tensor, mismatch, other_parts
from asyncdni.data.sequences import Sequences
from asyncdni.errors import ConfigError, DataError

__all__ = [
    "DATA_SETS",
    "Batches",
    "DataSet",
    "Dataset",
    "Inputs",
    "Meta",
    "Sequences",
    "Tensor",
    "checksums",
    "describe",
    "identify",
    "load",
    "mismatch",
    "open_batches",
    "other_parts",
]

_PIXELS = Inputs("uint8", 0, 255)


@dataclass(frozen=True)
class DataSet:
    """The options of one data set, and the functions that describe and load it."""

    options: type[config.Data]  # its table [data]: a `config.Samples` or `config.Windows`
    describe: Callable[[Any], Meta]  # shapes and counts, without loading
    load: Callable[[Any, int], Dataset | Sequences]  # with the run's seed
    #: Kind and range of the inputs of samples, by which `predict` notices those on another scale.
    inputs: Callable[[Any], Inputs] | None = None
    #: Checksums of its arrays or files, by name; None for data that are published, or generated
    #: from its options alone.
    checksums: Callable[[Any], dict[str, str]] | None = None


#: All data sets by their name in [data] of an experiment file; messages list them in this order.
DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet(config.Digits, digits.describe, digits.load, inputs=lambda _: _PIXELS),
    "mnist": DataSet(config.Mnist, mnist.describe, mnist.load, inputs=lambda _: _PIXELS),
    "addition": DataSet(
        config.Addition, addition.describe, addition.load, inputs=lambda _: Inputs("float", 0, 1)
    ),
    "npz": DataSet(config.Npz, npz.describe, npz.load, npz.inputs, npz.checksums),
    "digit_pairs": DataSet(
        config.DigitPairs, digit_pairs.describe, digit_pairs.load, inputs=lambda _: _PIXELS
    ),
    "cifar10": DataSet(
        config.Cifar10, cifar10.describe, cifar10.load, lambda _: _PIXELS, cifar10.checksums
    ),
    "copy": DataSet(config.Copy, copying.describe, copying.load),
    "repeat_copy": DataSet(config.RepeatCopy, copying.describe, copying.load),
    "text": DataSet(config.Text, text.describe, text.load, checksums=text.checksums),
    "torch": DataSet(config.TorchData, torch.describe, torch.load),
    "trigonometry": DataSet(config.Trigonometry, trigonometry.describe, trigonometry.load),
}


def describe(data: config.Data) -> Meta:
    """Return the shapes and counts of a data set, without loading it; only `npz`, `cifar10` and
    `text` look at their files.

    `data.validation` is subtracted from the training samples. Raises `DataError` where a file is
    missing, damaged or of another form, and `ConfigError` for options that don't go together, such
    as a validation part that leaves nothing to train on.
    """
    with _readable(data):
        meta = DATA_SETS[data.tag].describe(data)
    if isinstance(data, config.Windows):
        return meta  # already held out: single windows can't be taken out of a sequence
    meta = described(meta, data.validation)
    return described_as_inputs(meta) if _reconstructs(data) else meta


def identify(data: config.Data) -> Meta:
    """Return what `describe` does, and what identifies these samples among others of the same
    shapes: kind and range of the inputs, and checksums. Errors as for `describe`."""
    measure = DATA_SETS[data.tag].inputs
    return msgspec.structs.replace(
        describe(data), inputs=measure(data) if measure else None, checksums=checksums(data)
    )


def checksums(data: config.Data) -> dict[str, str]:
    """Return checksums of a data set's arrays or files, by name; none for data that are published,
    so known byte by byte, or generated from their options alone. Raises `DataError` for files that
    can't be read."""
    found = DATA_SETS[data.tag].checksums
    return found(data) if found else {}


def open_batches(data: config.Data, seed: int) -> Batches:
    """Open a data set of any kind, checked and ready to be read from.

    `seed` is the run's: generated data depend on it, so that every schedule of one seed trains on
    the same samples. With `data.validation`, the part held out of training is the test part.
    Raises `DataError` for what is missing, damaged or can't be trained on, and `ConfigError` as
    `describe` does.
    """
    if isinstance(data, config.TorchData):
        return torch.open_batches(data)
    if not isinstance(data, config.Windows):
        dataset = load(data, seed)
        return Reconstruction(dataset) if _reconstructs(data) else dataset
    with _readable(data):
        sequences = DATA_SETS[data.tag].load(data, seed)
    assert isinstance(sequences, Sequences), f"{data.tag} loads no sequences"
    sequences.validate()
    return sequences


def load(data: config.Data, seed: int) -> Dataset:
    """Load the arrays of a set of samples; large ones may stay in their files. Arguments and errors
    as for `open_batches`.

    Raises `ConfigError` for sequences, which have no such arrays.
    """
    if isinstance(data, config.Windows):
        raise ConfigError(
            f"data.name: {data.tag!r} is made of windows of sequences; "
            "expected a set of single samples here"
        )
    with _readable(data):
        dataset = DATA_SETS[data.tag].load(data, seed)
    assert isinstance(dataset, Dataset), f"{data.tag} loads no samples"
    dataset.validate()
    return hold_out(dataset, data.validation)


@contextmanager
def _readable(data: config.Data) -> Iterator[None]:
    """Turn an `OSError` about a path, of whatever kind, into a `DataError` of one line."""
    try:
        yield
    except OSError as error:
        where = getattr(data, "path", "") or error.filename or "its folder"
        raise DataError(
            f"data set {data.tag}: can't read {where}: {error.strerror or error}"
        ) from error


def _reconstructs(data: config.Data) -> bool:
    """Return whether the targets are the inputs themselves."""
    return getattr(data, "targets", "labels") == "inputs"
