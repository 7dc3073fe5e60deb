"""Data sets of PyTorch: what a function of the user's returns, or what was given as an object.

Samples are (input, target) pairs. Inputs are numbers of one shape, as tensors or arrays, and are
taken as they are. Targets are whole numbers (a class a sample, or a class a step where they have
the shape (T,)), or floating numbers (values).

A map-style data set is read sample by sample, when a batch is needed, in an order that the run's
seed gives; so transforms that draw random numbers draw new ones in each epoch, and the same ones in
each run. An iterable data set is read once, into memory. Of a loader its data set is used: batches
are the experiment's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from asyncdni import config
from asyncdni.data.base import Dataset, buffer_for
from asyncdni.data.meta import Array, Meta
from asyncdni.errors import ConfigError, DataError
from asyncdni.imports import import_named, is_allowed
from asyncdni.nn.streams import stream

__all__ = ["TorchBatches", "describe", "load", "open_batches"]

#: Whole numbers up to this are the same in float32, as which inputs travel.
_WHOLE_MAX = 2**24


class _Samples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def describe(data: config.TorchData) -> Meta:
    """The shapes of the first sample, and counts; of the other samples only targets are looked at,
    and only where `classes` is not given. Raises `DataError`."""
    return _opened(data).meta


def load(data: config.TorchData, seed: int) -> Dataset:
    """Raises `DataError`: such data are read sample by sample, and never as whole arrays."""
    raise DataError("a data set of PyTorch is read sample by sample; it has no arrays to load")


def open_batches(data: config.TorchData) -> TorchBatches:
    """The batches. Raises `DataError`, and `ConfigError` where nothing may be imported."""
    return _opened(data)


def _opened(data: config.TorchData) -> TorchBatches:
    if data.validation:
        raise ConfigError(
            "data.validation: a data set of PyTorch has no part to hold out; return the part to "
            "choose options by in place of the test set"
        )
    return _cached(data.build, json.dumps(data.arguments, sort_keys=True), data.classes)


@lru_cache(2)
def _cached(build: str, arguments: str, classes: int) -> TorchBatches:
    made: Any = import_named(build, "data set", allow_import=is_allowed())
    if callable(made):
        try:
            made = made(**json.loads(arguments))
        except Exception as error:  # the user's code may fail in any way
            raise DataError(
                f"data.build: {build} failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(
            f"data.build: {build} gives a {type(made).__name__}, expected two data sets: "
            "(training set, test set)"
        )
    train, test = (
        _samples(one, f"{build}, {part} set")
        for one, part in zip(made, ("training", "test"), strict=True)
    )
    return TorchBatches(build, train, test, classes)


def _samples(given: Any, place: str) -> _Samples:
    """A map-style data set of what was given. Raises `DataError`."""
    inner = getattr(given, "dataset", None)
    if inner is not None and hasattr(given, "batch_size"):  # a loader
        given = inner
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        found: _Samples = given
    elif isinstance(given, Iterable):
        found = list(given)
    else:
        raise DataError(
            f"{place} is a {type(given).__name__}, expected a data set: something with a length "
            "and items, or iterable"
        )
    if not len(found):
        raise DataError(f"{place} is empty")
    return found


class TorchBatches:
    """Two data sets as numbered batches: see `data.meta.Batches`."""

    def __init__(self, source: str, train: _Samples, test: _Samples, classes: int = 0) -> None:
        """`classes`: how many there are; 0: one more than the largest target. Raises `DataError`
        for samples that are not (input, target) pairs of numbers."""
        self._source = source
        self._train = train
        self._test = test
        x, y = self._item(train, 0, "training")
        self._shape, self._target_shape = x.shape, y.shape
        self._values = y.dtype.kind == "f"
        self._order: tuple[tuple[int, int], Array] | None = None
        self.meta = self._described(classes)

    def _described(self, classes: int) -> Meta:
        steps = 0
        if self._values:
            outputs = int(np.prod(self._target_shape)) if self._target_shape else 1
        else:
            outputs = classes or self._count_classes()
            if len(self._target_shape) > 1:
                raise DataError(
                    f"{self._source}: targets have shape {self._target_shape}, expected one class "
                    "a sample, or (T,) with one a step"
                )
            steps = self._target_shape[0] if self._target_shape else 0
        return Meta(
            input_shape=tuple(self._shape),
            targets="values" if self._values else "classes",
            outputs=outputs,
            train_samples=len(self._train),
            test_samples=len(self._test),
            steps=steps,
            answers=not self._values,
        )

    def _count_classes(self) -> int:
        largest = 0
        for samples, part in ((self._train, "training"), (self._test, "test")):
            known = getattr(samples, "targets", None)
            if known is not None and len(known) == len(samples):
                largest = max(largest, int(np.max(np.asarray(known))))
            else:
                for index in range(len(samples)):
                    largest = max(largest, int(np.max(self._item(samples, index, part)[1])))
        return largest + 1

    def batches_per_epoch(self, batch_size: int) -> int:
        return -(-len(self._train) // batch_size)

    def test_batches(self, batch_size: int) -> int:
        return -(-len(self._test) // batch_size)

    def read(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> dict[str, Array]:
        rows = self._ordered(seed, epoch)[_span(index, batch_size, len(self._train))]
        _seed_transforms(seed, epoch, index)
        return self._batch(self._train, rows, "training", dtype, out)

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        rows = np.arange(len(self._test))[_span(index, batch_size, len(self._test))]
        return self._batch(self._test, rows, "test", dtype, None)

    def targets(self) -> Mapping[str, Array]:
        """The target of the first sample; the others are checked as they are read."""
        y = self._item(self._train, 0, "training")[1]
        return {"y_train": self._as_targets([y], np.float32)}

    def validate(self) -> None:
        """Do nothing: samples are checked as they are read."""

    def _batch(
        self, samples: _Samples, rows: Array, part: str, dtype: DTypeLike, out: Array | None
    ) -> dict[str, Array]:
        x = buffer_for(out, (len(rows), *self._shape), dtype)
        targets = []
        for place, row in enumerate(rows.tolist()):
            one, y = self._item(samples, row, part)
            if one.shape != self._shape or y.shape != self._target_shape:
                raise DataError(
                    f"{self._source}: {part} sample {row} has shapes {one.shape} and {y.shape}, "
                    f"expected {self._shape} and {self._target_shape}, as the first training sample"
                )
            x[place] = one
            targets.append(y)
        return {"h": x, "y": self._as_targets(targets, dtype)}

    def _as_targets(self, targets: Sequence[Array], dtype: DTypeLike) -> Array:
        stacked = np.stack(targets)
        if not self._values:
            return stacked.astype(np.int64)
        return stacked.reshape(len(stacked), -1).astype(dtype)

    def _item(self, samples: _Samples, index: int, part: str) -> tuple[Array, Array]:
        place = f"{self._source}: {part} sample {index}"
        try:
            item = samples[index]
        except Exception as error:  # the user's code may fail in any way
            raise DataError(f"{place}: {type(error).__name__}: {error}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{place} is a {type(item).__name__}, expected (input, target)")
        x, y = (
            _numbers(one, f"{place}, {what}")
            for one, what in zip(item, ("input", "target"), strict=True)
        )
        if x.dtype.kind in "iu" and x.size and int(np.abs(x.astype(np.int64)).max()) > _WHOLE_MAX:
            raise DataError(f"{place} has whole numbers above {_WHOLE_MAX}, which can't be sent")
        return x, y

    def _ordered(self, seed: int, epoch: int) -> Array:
        if self._order is None or self._order[0] != (seed, epoch):
            order = stream(seed, "data", "shuffle", epoch).permutation(len(self._train))
            self._order = (seed, epoch), order
        return self._order[1]


def _numbers(value: Any, place: str) -> Array:
    """What a sample has, as an array of numbers. Raises `DataError`."""
    try:
        found = np.asarray(value)
    except Exception as error:
        raise DataError(f"{place} is no array: {type(error).__name__}: {error}") from error
    if found.dtype.kind not in "biuf":
        raise DataError(
            f"{place} is a {type(value).__name__}, expected numbers; a transform such as "
            "torchvision's ToTensor makes them of a picture"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise DataError(f"{place} holds NaN or infinity")
    return found


def _span(index: int, batch_size: int, samples: int) -> slice:
    start = index * batch_size
    if not 0 <= start < samples:
        raise IndexError(f"batch {index} of {batch_size} samples is not among {samples} samples")
    return slice(start, min(start + batch_size, samples))


def _seed_transforms(seed: int, epoch: int, index: int) -> None:
    """Seed PyTorch's default generator, from which transforms draw."""
    import torch

    number = int(stream(seed, "data", "transforms", epoch, index).integers(2**62))
    torch.default_generator.manual_seed(number)
