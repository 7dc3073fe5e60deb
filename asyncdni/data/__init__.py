"""What is trained on: one module a data set, each with `describe(data)` and `load(data, seed)`.

A new one gets a struct in `config` (its name and options), a module here, and a line below: among
the samples, which stand by themselves, or among the windows of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from asyncdni import config as options
from asyncdni.data import (
    addition,
    cifar10,
    copying,
    digit_pairs,
    digits,
    mnist,
    npz,
    text,
    trigonometry,
)
from asyncdni.data.base import Dataset
from asyncdni.data.derived import Reconstruction, described, described_as_inputs, hold_out
from asyncdni.data.meta import Batches, Inputs, Meta, Tensor, misfit, other_parts
from asyncdni.data.sequences import Sequences
from asyncdni.errors import ConfigError, DataError

__all__ = [
    "Batches",
    "Dataset",
    "Inputs",
    "Meta",
    "Sequences",
    "Tensor",
    "checksums",
    "describe",
    "identify",
    "load",
    "misfit",
    "open_batches",
    "other_parts",
]

_DESCRIBE: dict[type, Callable[[Any], Meta]] = {
    options.Digits: digits.describe,
    options.Mnist: mnist.describe,
    options.Addition: addition.describe,
    options.Npz: npz.describe,
    options.DigitPairs: digit_pairs.describe,
    options.Cifar10: cifar10.describe,
    options.Copy: copying.describe,
    options.RepeatCopy: copying.describe,
    options.Text: text.describe,
    options.Trigonometry: trigonometry.describe,
}

_CHECKSUMS: dict[type, Callable[[Any], dict[str, str]]] = {
    options.Npz: npz.checksums,
    options.Cifar10: cifar10.checksums,
    options.Text: text.checksums,
}

_PIXELS = Inputs("uint8", 0, 255)

#: Of samples that stand by themselves: others are never asked about but step by step.
_INPUTS: dict[type, Callable[[Any], Inputs]] = {
    options.Digits: lambda _: _PIXELS,
    options.Mnist: lambda _: _PIXELS,
    options.Addition: lambda _: Inputs("float", 0, 1),
    options.Npz: npz.inputs,
    options.DigitPairs: lambda _: _PIXELS,
    options.Cifar10: lambda _: _PIXELS,
}

_SAMPLES: dict[type, Callable[[Any, int], Dataset]] = {
    options.Digits: digits.load,
    options.Mnist: mnist.load,
    options.Addition: addition.load,
    options.Npz: npz.load,
    options.DigitPairs: digit_pairs.load,
    options.Cifar10: cifar10.load,
}

_WINDOWS: dict[type, Callable[[Any, int], Sequences]] = {
    options.Copy: copying.load,
    options.RepeatCopy: copying.load,
    options.Text: text.load,
    options.Trigonometry: trigonometry.load,
}


def describe(data: options.Data) -> Meta:
    """Shapes and counts of a data set without loading it; only `npz`, `cifar10` and `text` look at
    their files.

    `data.validation` is taken off the training samples. Raises `DataError` where such a file is
    missing, damaged or of another form, and `ConfigError` for options that don't go together, as
    where nothing is left to train on.
    """
    with _readable(data):
        meta = _DESCRIBE[type(data)](data)
    if type(data) in _WINDOWS:
        return meta  # held out by now: single windows can't be taken out of a sequence
    meta = described(meta, data.validation)
    return described_as_inputs(meta) if _to_itself(data) else meta


def identify(data: options.Data) -> Meta:
    """`describe`, with what tells these samples from others of the same shapes: the kind and range
    of inputs, and checksums. Errors as for `describe`."""
    measure = _INPUTS.get(type(data))
    return msgspec.structs.replace(
        describe(data), inputs=measure(data) if measure else None, checksums=checksums(data)
    )


def checksums(data: options.Data) -> dict[str, str]:
    """Of arrays or files, by name; none of sets that are published, and known byte by byte, or made
    by their options alone. Raises `DataError` for files that can't be read."""
    found = _CHECKSUMS.get(type(data))
    return found(data) if found else {}


def open_batches(data: options.Data, seed: int) -> Batches:
    """Any data set, checked and ready to be read from.

    `seed` is the run's: generated data depend on it, so that every schedule of one seed trains on
    the same samples. With `data.validation`, what is held out of training is the test part.
    Raises `DataError` for what is missing, damaged or can't be trained on, and `ConfigError` as
    `describe` does.
    """
    if type(data) not in _WINDOWS:
        dataset = load(data, seed)
        return Reconstruction(dataset) if _to_itself(data) else dataset
    with _readable(data):
        sequences = _WINDOWS[type(data)](data, seed)
    sequences.validate()
    return sequences


def load(data: options.Data, seed: int) -> Dataset:
    """The arrays of a set of samples in memory; arguments and errors as for `open_batches`.

    Raises `ConfigError` for sequences, which have none.
    """
    if type(data) in _WINDOWS:
        raise ConfigError(
            f"data.name: {data.__struct_config__.tag!r} is made of windows of sequences; "
            "expected a set of single samples here"
        )
    with _readable(data):
        dataset = _SAMPLES[type(data)](data, seed)
    dataset.validate()
    return hold_out(dataset, data.validation)


@contextmanager
def _readable(data: options.Data) -> Iterator[None]:
    """What the system says of a path that nobody could have foreseen, in one line."""
    try:
        yield
    except OSError as error:
        where = getattr(data, "path", "") or error.filename or "its folder"
        raise DataError(
            f"data set {data.__struct_config__.tag}: can't read {where}: {error.strerror or error}"
        ) from error


def _to_itself(data: options.Data) -> bool:
    return getattr(data, "targets", "labels") == "inputs"
