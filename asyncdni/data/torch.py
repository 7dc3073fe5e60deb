"""Data sets of PyTorch: what a function of the user's returns, or what was given as an object.

Samples are (input, target) pairs. Inputs are numbers of one shape, as tensors or arrays, and are
taken as they are; or they are tables or tuples of such, whose numbers are put behind one another
(`data.meta.Field`). Targets are whole numbers (a class a sample, or a class a step where they have
the shape (T,)), or floating numbers (values). A step whose target is -100 (`ignore_index` of
PyTorch's cross-entropy) does not count. Samples of (T, …) and (T,) may have any lengths T: all are
padded at their ends to the longest one of both sets, with zeros and targets of -100.

A map-style data set is read sample by sample, when a batch is needed, in an order that the run's
seed gives; so transforms that draw random numbers draw new ones in each epoch, and the same ones in
each run. A `TensorDataset`, also a `Subset` of one, is read a batch at a time. An iterable data set
is read once, into memory. Of a loader its data set is used, and a `collate_fn` of the user's, which
is called on the samples of each of the experiment's batches.

Where batches are made by a `collate_fn`, or `data.max_length` is given, each batch may have a
length of its own (`Meta.varying`): the first axis of all tensors of a sample, and of targets that
are one a step. The most is `data.max_length`, or the steps of the longest sample, collated alone.

An object of the user's own that has a length and items is a map-style data set too; PyTorch is then
not needed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from asyncdni import config
from asyncdni.data.base import Dataset, buffer_for, span_of
from asyncdni.data.meta import Array, Field, Meta, Tensor
from asyncdni.errors import ConfigError, DataError
from asyncdni.imports import import_named, is_allowed
from asyncdni.nn.streams import stream

__all__ = [
    "TorchBatches",
    "data_set_of",
    "describe",
    "first_form",
    "load",
    "open_batches",
    "opened",
]

#: Whole numbers up to this are the same in float32, as which inputs travel.
_WHOLE_MAX = 2**24
#: The target of a step that does not count.
_IGNORED = -100
#: The names of an input's tensors, and the kinds of their numbers.
_Form = tuple[tuple[str, ...], list[str]]


class _Samples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def describe(data: config.TorchData) -> Meta:
    """The shapes of the first sample, and counts; of other samples that are read one by one only
    targets are looked at, and only where `classes` is not given or each step has a target. Raises
    `DataError`."""
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
    arguments = json.dumps(data.arguments, sort_keys=True)
    return _cached(data.build, arguments, data.classes, data.max_length)


@lru_cache(2)
def _cached(build: str, arguments: str, classes: int, max_length: int) -> TorchBatches:
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
    train, test = made
    return opened(build, train, test, classes, max_length)


def opened(
    source: str, train: Any, test: Any, classes: int = 0, max_length: int = 0
) -> TorchBatches:
    """The batches of two data sets or loaders: see `config.TorchData`. Raises `DataError`."""
    sets = data_set_of(train), data_set_of(test)
    if max_length or any(isinstance(one, Collated) for one in sets):
        return CollatedBatches(source, *sets, classes, max_length)
    return TorchBatches(source, *sets, classes)


def data_set_of(given: Any) -> Any:
    """The data set of a loader, with the `collate_fn` of the user's where there is one; a data set
    as it is. Raises `DataError`."""
    inner = getattr(given, "dataset", None)
    if inner is None or not hasattr(given, "batch_size"):
        return given
    collate = getattr(given, "collate_fn", None)
    module = getattr(collate, "__module__", None) or ""
    if collate is None or module.startswith("torch.utils.data"):
        return inner
    if _is_stream(inner):
        raise DataError(
            f"the loader of an iterable {type(inner).__name__} has a collate_fn of its own, which "
            "is called for map-style data sets alone: do its work in the data set"
        )
    return Collated(inner, collate)


@dataclass(frozen=True)
class Collated:
    """A map-style data set, and the function that makes a batch (inputs, targets) of samples."""

    samples: Any
    collate: Callable[[list[Any]], Any]


def first_form(made: tuple[Any, Any]) -> tuple[tuple[int, ...], tuple[Field, ...]]:
    """The shape of the first input of the first of two data sets, without the axis of samples, and
    its fields, if it has several tensors. Raises `DataError`."""
    given = data_set_of(made[0])
    is_made = isinstance(given, Collated)
    part = _ByBatch(given, "data", "training") if is_made else _part(given, "data", "training")
    found = part.first()[0]
    return found.shape, found.fields


# --- samples -------------------------------------------------------------------------------------


class _Input(NamedTuple):
    """The input of a sample: one array, or several with their names ("" in a tuple)."""

    arrays: tuple[Array, ...]
    names: tuple[str, ...] = ()  # empty: it is the one array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers that are sent."""
        return (sum(one.size for one in self.arrays),) if self.names else self.arrays[0].shape

    @property
    def fields(self) -> tuple[Field, ...]:
        """What the input is made of; empty for one array."""
        return tuple(
            Field(name, _KINDS[one.dtype.kind], one.shape)
            for name, one in zip(self.names, self.arrays, strict=False)
        )

    def write(self, out: Array) -> None:
        """Write the numbers into `out`, of `shape`."""
        if self.names:
            out[...] = np.concatenate([one.reshape(-1).astype(out.dtype) for one in self.arrays])
        else:
            out[...] = self.arrays[0]


_KINDS: dict[str, Literal["float", "int", "bool"]] = {
    **{"b": "bool", "i": "int", "u": "int", "f": "float"}
}


class _Part(Protocol):
    """The training set, or the test set."""

    def __len__(self) -> int: ...

    def first(self) -> tuple[_Input, Array]:
        """The input and the target of the first sample."""

    def targets(self) -> _Targets:
        """What is known of all targets."""


class _Rows(_Part, Protocol):
    """One that is read sample by sample."""

    def read(self, rows: Array, x: Array, steps: int) -> Array:
        """Read the inputs of these samples into `x`, and return their targets. Samples with fewer
        `steps` are padded where each step has a target. Raises `DataError`."""


class _Targets(NamedTuple):
    largest: int
    longest: int = 0  # most steps of a sample; 0: there is one target a sample
    mask: bool = False  # not all steps of all samples count
    shortest: int = 0  # least steps of a sample


def _both(one: _Targets, other: _Targets) -> _Targets:
    mask = one.mask or other.mask or one.longest != other.longest
    longest, shortest = max(one.longest, other.longest), min(one.shortest, other.shortest)
    return _Targets(max(one.largest, other.largest), longest, mask, shortest)


def _part(given: Any, source: str, part: str) -> _Rows:
    """What was given as the data set of that part. Raises `DataError`."""
    place = f"{source}, {part} set"
    arrays = _whole_arrays(given, place)
    if arrays is not None:
        found: _Rows = _Whole(*arrays, place)
    else:
        found = _OneByOne(_samples(given, place), f"{source}: {part} sample")
    if not len(found):
        raise DataError(f"{place} is empty")
    return found


def _samples(given: Any, place: str) -> _Samples:
    """A map-style data set of what was given. Raises `DataError`."""
    if not _is_stream(given) and hasattr(given, "__len__"):
        found: _Samples = given
        return found
    if not isinstance(given, Iterable):
        raise DataError(
            f"{place} is a {type(given).__name__}, expected a data set: something with a length "
            "and items, or iterable"
        )
    try:
        return list(given)
    except Exception as error:  # the user's code may fail in any way
        raise DataError(f"{place} can't be read: {type(error).__name__}: {error}") from error


def _is_stream(given: Any) -> bool:
    """Whether its items can't be had by their numbers. PyTorch's iterable data sets inherit a
    `__getitem__` that does nothing."""
    torch = sys.modules.get("torch")
    streams = torch is not None and isinstance(given, torch.utils.data.IterableDataset)
    return streams or not hasattr(given, "__getitem__")


class _OneByOne:
    """Samples of a map-style data set."""

    def __init__(self, samples: _Samples, place: str) -> None:
        self._samples = samples
        self._place = place
        self._form: _Form | None = None  # of the first input

    def __len__(self) -> int:
        return len(self._samples)

    def first(self) -> tuple[_Input, Array]:
        return self._item(0)

    def read(self, rows: Array, x: Array, steps: int) -> Array:
        targets: list[Array] = []
        for place, row in enumerate(rows.tolist()):
            one, y = self._item(row)
            if y.ndim == 1 and y.dtype.kind in "iu":
                one, y = _padded(one, y, steps)
            if one.shape != x.shape[1:] or (targets and y.shape != targets[0].shape):
                expected = x.shape[1:], targets[0].shape if targets else y.shape
                raise DataError(
                    _other_shapes(f"{self._place} {row}", (one.shape, y.shape), expected)
                )
            one.write(x[place])
            targets.append(y)
        return np.stack(targets)

    def targets(self) -> _Targets:
        known = getattr(self._samples, "targets", None)
        if known is not None and len(known) == len(self._samples) and not self._item(0)[1].ndim:
            return _Targets(int(np.max(np.asarray(known))))
        each = (_targets(self._item(index)[1]) for index in range(len(self._samples)))
        return reduce(_both, each)

    def _item(self, index: int) -> tuple[_Input, Array]:
        place = f"{self._place} {index}"
        try:
            item = self._samples[index]
        except Exception as error:  # the user's code may fail in any way
            raise DataError(f"{place}: {type(error).__name__}: {error}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"{place} is a {type(item).__name__}, expected (input, target): of a table, take "
                'the target out, as ({"input_ids": item["input_ids"]}, item["labels"])'
            )
        found, y = _inputs(item[0], f"{place}, input"), _numbers(item[1], f"{place}, target")
        self._form = _checked_form(found, self._form, place)
        return found, y


def _checked_form(x: _Input, first: _Form | None, place: str) -> _Form:
    """The names and kinds of the tensors of the first input. Raises `DataError` where those of x
    differ."""
    form = x.names, [str(one.dtype.kind) for one in x.arrays]
    if first is not None and x.names and form != first:
        raise DataError(
            f"{place}: its input is {_listed(*form)}, that of the first sample {_listed(*first)}"
        )
    return first or form


class _Whole:
    """Samples that are rows of two arrays."""

    def __init__(self, x: Any, y: Any, place: str) -> None:
        self._x = _input(x, f"{place}, inputs")
        self._y = _numbers(y, f"{place}, targets")

    def __len__(self) -> int:
        return len(self._x)

    def first(self) -> tuple[_Input, Array]:
        return _Input((self._x[0],)), self._y[0]

    def read(self, rows: Array, x: Array, steps: int) -> Array:
        x[...] = self._x[rows]
        targets: Array = self._y[rows]
        return targets

    def targets(self) -> _Targets:
        found = _targets(self._y)
        return found._replace(longest=self._y.shape[1] if self._y.ndim == 2 else 0)


def _whole_arrays(given: Any, place: str) -> tuple[Any, Any] | None:
    """The inputs and targets of a `TensorDataset`, or of a `Subset` of one; None of any other."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if type(given) is torch.utils.data.TensorDataset:
        if len(given.tensors) != 2:
            raise DataError(
                f"{place} has {len(given.tensors)} tensors, expected inputs and targets"
            )
        x, y = given.tensors
        return x, y
    if type(given) is torch.utils.data.Subset:
        inner = _whole_arrays(given.dataset, place)
        rows = torch.as_tensor(given.indices, dtype=torch.int64)
        return None if inner is None else (inner[0][rows], inner[1][rows])
    return None


def _targets(y: Array) -> _Targets:
    """What is known of the targets of one sample, () or (T,); of several, but for their length."""
    steps = len(y) if y.ndim else 0
    return _Targets(int(y.max(initial=0)), steps, bool((y == _IGNORED).any()), steps)


def _padded(x: _Input, y: Array, steps: int) -> tuple[_Input, Array]:
    """A sample (T, …) and (T,) with zeros and ignored steps at its end, `steps` in all, as all of
    its tensors of T steps; as it is where it has as many, or more, or another form."""
    missing = steps - len(y)
    if missing <= 0 or not any(_is_long(one, y) for one in x.arrays):
        return x, y
    longer = tuple(
        np.concatenate([one, np.zeros((missing, *one.shape[1:]), one.dtype)])
        if _is_long(one, y)
        else one
        for one in x.arrays
    )
    ignored = np.full(missing, _IGNORED)
    return x._replace(arrays=longer), np.concatenate([y.astype(np.int64), ignored])


def _is_long(x: Array, y: Array) -> bool:
    """Whether x has a step for each target."""
    return bool(x.ndim) and len(x) == len(y)


def _listed(names: Sequence[str], kinds: Sequence[str]) -> str:
    """Write the tensors of an input: `input_ids (int), mask (bool)`, or `one tensor`."""
    pairs = zip(names, kinds, strict=True)
    return ", ".join(f"{name or 'a tensor'} ({_KINDS[kind]})" for name, kind in pairs) or (
        "one tensor"
    )


def _other_shapes(place: str, found: object, expected: object) -> str:
    return (
        f"{place} has the shapes {found} of input and target, expected {expected}: only sequences "
        "with a class for each step may differ in length; pad or crop the samples in the data set"
    )


# --- batches -------------------------------------------------------------------------------------


class TorchBatches:
    """Two data sets as numbered batches: see `data.meta.Batches`."""

    def __init__(self, source: str, train: Any, test: Any, classes: int = 0) -> None:
        """`classes`: how many there are; 0: one more than the largest target. Raises `DataError`
        for samples that are not (input, target) pairs of numbers."""
        self._source = source
        self._train = self._part(train, "training")
        self._test = self._part(test, "test")
        x, y = self._train.first()
        self._shape, self._target_shape = x.shape, y.shape
        self._fields = x.fields
        self._values = y.dtype.kind == "f"
        self._order: tuple[tuple[int, int], Array] | None = None
        self.meta = self._described(classes)
        self._check_test()

    def _part(self, given: Any, part: str) -> _Part:
        return _part(given, self._source, part)

    def _check_test(self) -> None:
        x, y = self._test.first()
        if self._target_shape and y.ndim == 1:
            x, y = _padded(x, y, self._target_shape[0])
        if (x.shape, x.fields, y.shape) != (self._shape, self._fields, self._target_shape):
            expected = self._shape, self._target_shape
            place = f"{self._source}: test sample 0"
            raise DataError(_other_shapes(place, (x.shape, y.shape), expected))
        if (y.dtype.kind == "f") != self._values:
            raise DataError(
                f"{self._source}: the targets of the test set are {y.dtype}, those of the training "
                f"set {'floating' if self._values else 'whole'} numbers"
            )

    def _described(self, classes: int) -> Meta:
        self._check_targets()
        if self._values or (classes and not self._target_shape):
            return self._meta_of(classes)
        found = _both(self._train.targets(), self._test.targets())
        if self._target_shape:
            self._lengthen(found.longest)
        return self._meta_of(classes or found.largest + 1, masked=found.mask)

    def _check_targets(self) -> None:
        if not self._values and len(self._target_shape) > 1:
            raise DataError(
                f"{self._source}: targets have shape {self._target_shape}, expected one class "
                "a sample, or (T,) with one a step"
            )

    def _meta_of(self, classes: int, *, masked: bool = False, varying: bool = False) -> Meta:
        steps = self._target_shape[0] if self._target_shape and not self._values else 0
        return Meta(
            input_shape=tuple(self._shape),
            targets="values" if self._values else "classes",
            outputs=math.prod(self._target_shape) if self._values else classes,
            train_samples=len(self._train),
            test_samples=len(self._test),
            steps=steps,
            context={"mask": Tensor((steps,), "bool")} if steps and masked else {},
            fields=self._fields,
            answers=not self._values,
            varying=varying,
        )

    def _lengthen(self, steps: int) -> None:
        """Take over the length to which all samples are padded."""
        x, _ = _padded(*self._train.first(), steps)
        self._shape, self._fields, self._target_shape = x.shape, x.fields, (steps,)

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
        rows = self._ordered(seed, epoch)[span_of(index, batch_size, len(self._train))]
        _seed_transforms(seed, epoch, index)
        return self._batch(self._train, rows, "training", dtype, out)

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        rows = np.arange(len(self._test))[span_of(index, batch_size, len(self._test))]
        return self._batch(self._test, rows, "test", dtype, None)

    def targets(self) -> Mapping[str, Array]:
        """The target of the first sample; the others are checked as they are read."""
        y = self._train.first()[1]
        return {"y_train": self._as_targets(y[np.newaxis], np.arange(1), "training", np.float32)}

    def validate(self) -> None:
        """Do nothing: samples are checked as they are read."""

    def _batch(
        self, samples: Any, rows: Array, part: str, dtype: DTypeLike, out: Array | None
    ) -> dict[str, Array]:
        x = buffer_for(out, (len(rows), *self._shape), dtype)
        y = samples.read(rows, x, self.meta.steps)
        if y.shape[1:] != self._target_shape:
            raise DataError(
                f"{self._source}: {part} sample {rows[0]} has a target of shape {y.shape[1:]}, "
                f"expected {self._target_shape}, as the first training sample"
            )
        mask = {"mask": y != _IGNORED} if "mask" in self.meta.context else {}
        return {"h": x, "y": self._as_targets(y, rows, part, dtype), **mask}

    def _as_targets(self, y: Array, rows: Array, part: str, dtype: DTypeLike) -> Array:
        if self._values:
            return y.reshape(len(y), -1).astype(dtype)
        classes = self.meta.outputs
        if "mask" in self.meta.context:
            y = np.where(y == _IGNORED, 0, y)
        wrong = (y < 0) | (y >= classes)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise DataError(
                f"{self._source}: {part} sample {rows[at[0]]} is of class {y[at]}, expected 0 to "
                f"{classes - 1}, as there are {classes} classes"
            )
        return y.astype(np.int64)

    def _ordered(self, seed: int, epoch: int) -> Array:
        if self._order is None or self._order[0] != (seed, epoch):
            order = stream(seed, "data", "shuffle", epoch).permutation(len(self._train))
            self._order = (seed, epoch), order
        return self._order[1]


# --- batches that a function makes ---------------------------------------------------------------


def padded(samples: list[Any]) -> tuple[Any, Any]:
    """A batch of (input, target) pairs. Tensors of steps have zeros at their ends, and targets
    -100, up to the longest one."""
    xs = [_inputs(x, f"the input of the batch's sample {i}") for i, (x, _) in enumerate(samples)]
    ys = [_numbers(y, f"the target of the batch's sample {i}") for i, (_, y) in enumerate(samples)]
    arrays = [_stacked(some, 0) for some in zip(*(x.arrays for x in xs), strict=True)]
    names, y = xs[0].names, _stacked(ys, _IGNORED)
    if any(names):
        return dict(zip(names, arrays, strict=True)), y
    return tuple(arrays) if names else arrays[0], y


def _stacked(arrays: Sequence[Array], filling: int) -> Array:
    """Arrays (T, …), with any T, or () as one array (B, T, …) or (B,)."""
    first = arrays[0]
    if not first.ndim:
        return np.stack(arrays)
    longest = max(map(len, arrays))
    found = np.full((len(arrays), longest, *first.shape[1:]), filling, first.dtype)
    for row, one in zip(found, arrays, strict=True):
        row[: len(one)] = one
    return found


class _ByBatch:
    """Samples of which a function makes whole batches."""

    def __init__(self, given: Any, source: str, part: str) -> None:
        """`given`: a data set, whose batches are `padded`, or one with a function of its own.
        Raises `DataError`."""
        place = f"{source}, {part} set"
        made = given if isinstance(given, Collated) else Collated(_samples(given, place), padded)
        if not len(made.samples):
            raise DataError(f"{place} is empty")
        self._samples, self._collate = made.samples, made.collate
        self._place = f"{source}: {part} batch"
        self._form: _Form | None = None  # of the first input

    def __len__(self) -> int:
        return len(self._samples)

    def first(self) -> tuple[_Input, Array]:
        """The input and the target of the first sample."""
        x, y = self.batch([0])
        return x._replace(arrays=tuple(one[0] for one in x.arrays)), y[0]

    def batch(self, rows: Sequence[int]) -> tuple[_Input, Array]:
        """The inputs and targets of these samples, all arrays with an axis of samples in front.
        Raises `DataError`."""
        place = f"{self._place} of samples {_few(rows)}"
        try:
            made = self._collate([self._samples[row] for row in rows])
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        except Exception as error:  # the user's code may fail in any way
            raise DataError(f"{place}: {type(error).__name__}: {error}") from error
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise DataError(
                f"{place}: collate_fn returns a {type(made).__name__}, expected (inputs, targets): "
                'of a table, take the targets out, as ({"input_ids": batch["input_ids"]}, '
                'batch["labels"])'
            )
        x, y = _inputs(made[0], f"{place}, inputs"), _numbers(made[1], f"{place}, targets")
        shapes = [one.shape for one in (*x.arrays, y)]
        if {shape[:1] for shape in shapes} != {(len(rows),)}:
            raise DataError(
                f"{place}: collate_fn returns the shapes {', '.join(map(str, shapes))}, expected "
                f"{len(rows)} rows of each tensor"
            )
        self._form = _checked_form(x, self._form, place)
        return x, y

    def targets(self) -> _Targets:
        """What is known of targets, and of lengths of inputs, each sample collated alone."""
        return reduce(_both, map(self._of_one, range(len(self))))

    def _of_one(self, row: int) -> _Targets:
        x, y = self.batch([row])
        steps = max((one.shape[1] for one in x.arrays if one.ndim > 1), default=0)
        return _Targets(int(y.max(initial=0)), steps, bool((y == _IGNORED).any()), steps)


def _few(rows: Sequence[int]) -> str:
    listed = ", ".join(str(row) for row in rows[:3])
    return f"{listed}, …" if len(rows) > 3 else listed


class CollatedBatches(TorchBatches):
    """The same, where a function makes each batch of its samples: the loader's `collate_fn`, or one
    that pads to the longest. With `Meta.varying`, a batch is as long as that function makes it."""

    def __init__(
        self, source: str, train: Any, test: Any, classes: int = 0, max_length: int = 0
    ) -> None:
        """Args:
        train, test: data sets; those that are not `Collated` are padded.
        classes: as for `TorchBatches`.
        max_length: the most steps of a batch; 0: those of the longest sample, and batches differ
            in length where samples do.
        """
        self._max_length = max_length
        super().__init__(source, train, test, classes)

    def _part(self, given: Any, part: str) -> _ByBatch:
        return _ByBatch(given, self._source, part)

    def _described(self, classes: int) -> Meta:
        self._check_targets()
        length, varying, masked = self._max_length, self._max_length > 0, False
        if not length or not (self._values or classes):
            found = _both(self._train.targets(), self._test.targets())
            classes, masked = classes or found.largest + 1, found.mask
            varying = varying or found.shortest != found.longest
            length = length or found.longest
            if found.longest > length:
                raise DataError(
                    f"{self._source}: the longest sample has {found.longest} steps, more than "
                    f"data.max_length = {length}; raise it, or cut the samples"
                )
        if varying:
            self._vary(length)
        return self._meta_of(classes, masked=masked or varying, varying=varying)

    def _vary(self, length: int) -> None:
        """Take over that all tensors have up to `length` steps. Raises `DataError` for one that has
        none."""
        x, y = self._train.first()
        timed = [*x.arrays, *([y] if y.ndim and not self._values else [])]
        steps = {one.shape[:1] for one in timed}
        if len(steps) > 1 or () in steps:
            raise DataError(
                f"{self._source}: batches differ in length, so each tensor of a sample needs its "
                f"steps as the first axis, and the first sample has the shapes "
                f"{', '.join(str(one.shape) for one in timed)}; repeat for each step what belongs "
                "to the whole sample, or pad all samples to one length"
            )
        arrays = tuple(np.zeros((length, *one.shape[1:]), one.dtype) for one in x.arrays)
        self._fields = x._replace(arrays=arrays).fields
        self._shape = arrays[0].shape
        if x.names:  # the numbers of each step behind one another
            self._shape = length, sum(math.prod(one.shape[1:]) for one in arrays)
        if not self._values:
            self._target_shape = (length,) * y.ndim

    def _check_test(self) -> None:
        """Do nothing: batches of both sets are checked as they are read."""

    def _batch(
        self, samples: Any, rows: Array, part: str, dtype: DTypeLike, out: Array | None
    ) -> dict[str, Array]:
        x, y = samples.batch(rows.tolist())
        steps = x.arrays[0].shape[1:2] if self.meta.varying else ()
        place = f"{self._source}: {part} batch of samples {_few(rows.tolist())}"
        self._check_shapes(x, y, steps, place)
        shape = (len(rows), *steps, *self._shape[len(steps) :])
        h = np.empty(shape, dtype)
        if out is not None:
            h = out.reshape(-1)[: h.size].reshape(shape)
        if x.names:
            axis = 1 + len(steps)
            flat = [one.reshape(*one.shape[:axis], -1).astype(dtype) for one in x.arrays]
            np.concatenate(flat, axis, out=h)
        else:
            h[...] = x.arrays[0]
        mask = {"mask": y != _IGNORED} if "mask" in self.meta.context else {}
        return {"h": h, "y": self._as_targets(y, rows, part, dtype), **mask}

    def _check_shapes(self, x: _Input, y: Array, steps: tuple[int, ...], place: str) -> None:
        """Raise `DataError` for more steps than were found, and for tensors of other shapes."""
        if steps and steps[0] > self._shape[0]:
            bound = f"data.max_length = {self._max_length}"
            if not self._max_length:
                bound = f"the {self._shape[0]} of the longest sample; give data.max_length"
            raise DataError(f"{place} has {steps[0]} steps, more than {bound}, or cut the samples")
        if (y.dtype.kind == "f") != self._values:
            raise DataError(
                f"{place} has {y.dtype} targets, expected {'floating' if self._values else 'whole'}"
                " numbers, as the first training sample"
            )
        forms = [*([one.shape for one in self._fields] or [self._shape]), self._target_shape]
        timed = [steps] * (len(forms) - 1) + [() if self._values else steps]
        expected = [
            (*some, *form[len(some) :]) if form else ()
            for some, form in zip(timed, forms, strict=True)
        ]
        found = [one.shape[1:] for one in (*x.arrays, y)]
        if found != expected:
            raise DataError(
                f"{place} has the shapes {', '.join(map(str, found))} of inputs and targets, "
                f"expected {', '.join(map(str, expected))}; only the first axis, the steps, may "
                "differ from batch to batch, and is the same in all tensors"
            )


# --- numbers -------------------------------------------------------------------------------------


def _inputs(value: Any, place: str) -> _Input:
    """The input of a sample: one array of numbers, or those of a table or tuple. Raises
    `DataError`."""
    if isinstance(value, Mapping):
        arrays = [_input(one, f"{place} {name!r}") for name, one in value.items()]
        return _Input(tuple(arrays), tuple(map(str, value)))
    if isinstance(value, tuple) and any(hasattr(one, "shape") for one in value):
        arrays = [_input(one, f"{place} {index}") for index, one in enumerate(value)]
        return _Input(tuple(arrays), ("",) * len(arrays))
    return _Input((_input(value, place),))


def _input(value: Any, place: str) -> Array:
    found = _numbers(value, place)
    whole = found.dtype.kind in "iu" and found.size
    if whole and max(-int(found.min()), int(found.max())) > _WHOLE_MAX:
        raise DataError(f"{place} has whole numbers above {_WHOLE_MAX}, which can't be sent")
    return found


def _numbers(value: Any, place: str) -> Array:
    """What a sample has, as an array of numbers. Raises `DataError`."""
    if isinstance(value, Mapping | tuple):
        several = list(value.values()) if isinstance(value, Mapping) else value
        if any(hasattr(one, "shape") for one in several):
            raise DataError(f"{place} is a {type(value).__name__} of tensors, expected one tensor")
    try:
        found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
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


def _seed_transforms(seed: int, epoch: int, index: int) -> None:
    """Seed PyTorch's default generator, from which transforms draw. Where the data sets have not
    imported PyTorch, nothing draws from it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    number = int(stream(seed, "data", "transforms", epoch, index).integers(2**62))
    torch.default_generator.manual_seed(number)
