"""Checks that arrays are a data set: their forms fit, numbers are finite, labels are in range.

Forms (shapes and dtypes) are checked apart from contents, because a file's headers are enough for
them. Every error names the file, the array, what it holds and, where there is one, the first bad
sample.

The kind and range of inputs are checked where a trained network is used (`measured`, `other_kind`,
`other_scale`). The same samples may come as uint8, which is scaled by 1/255, or as floats from 0 to
255, from 0 to 1 or standardised, which are taken as they are. Shapes don't tell these apart, and
weights trained on one of them are useless for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from numbers import Number
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from asyncdni.data.meta import Array, Inputs
from asyncdni.data.stored import Stored, chunks
from asyncdni.errors import DataError

__all__ = [
    "Form",
    "as_numbers",
    "check_contents",
    "check_forms",
    "check_inputs",
    "measured",
    "other_kind",
    "other_scale",
    "read_labels",
]

#: Runs use float32 by default, in which a larger number would become infinite.
_LARGEST = np.finfo(np.float32).max

_NUMBERS = "an array of numbers"
_RENUMBER = "numpy.unique(y, return_inverse=True)[1] numbers any labels so"
_X = "uint8 (scaled by 1/255), float16, float32 or float64"
_AS_THEY_ARE = ": x.astype('float32') takes the numbers as they are"


class Form(Protocol):
    """The shape and dtype of an array, or of the header of one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


def as_numbers(source: str, name: str, given: object) -> NDArray[Any]:
    """Return a caller's array, list, table or tensor as a NumPy array.

    Raises `DataError` for anything that does not hold numbers, and for rows of different lengths.
    """
    if given is None:
        _refuse(source, name, "is None", _NUMBERS)
    if isinstance(given, np.ma.MaskedArray) and given.mask.any():
        _refuse(
            source,
            name,
            f"has {np.count_nonzero(given.mask)} masked numbers",
            "all of them: fill or drop those samples",
        )
    try:
        array = np.asarray(given)
    # Tensors on another device or with gradients, and other objects that are no arrays, raise
    # exceptions of their own.
    except Exception as error:
        said = _uneven(given) or " ".join(str(error).split()) or type(error).__name__
        held = f"is a {type(given).__name__} that can't be read as an array ({said})"
        _refuse(source, name, held, f"{_NUMBERS}, all rows of the same length")
    if array.dtype.kind == "O":
        _refuse_objects(source, name, given, array)
    return array


def check_inputs(source: str, name: str, x: Form) -> None:
    """Raise `DataError` unless x is (N, …) uint8 or floating."""
    if x.dtype != np.uint8 and not _is_float(x):
        cure = _AS_THEY_ARE if x.dtype.kind in "iubf" else ""
        _refuse(source, name, f"is of dtype {x.dtype}", f"{_X}{cure}")
    if len(x.shape) < 2:
        _refuse(source, name, f"has shape {x.shape}", "(samples, features, …)")
    if 0 in x.shape:
        _refuse(source, name, f"is empty: shape {x.shape}", "at least one sample and feature")


def check_forms(source: str, forms: Mapping[str, Form], *, values: bool) -> None:
    """Raise `DataError` unless x_train, y_train, x_test, y_test fit each other.

    x is (N, …), uint8 or floating; y is (N,) or (N, 1) or, for `values`, (N, K): numbers.
    """
    for name in ("x_train", "x_test"):
        check_inputs(source, name, forms[name])
    for name in ("y_train", "y_test"):
        _check_y(source, name, forms[name], values)
    for part in ("train", "test"):
        x, y = forms[f"x_{part}"], forms[f"y_{part}"]
        if x.shape[0] != y.shape[0]:
            raise DataError(
                f"{source}: x_{part} has {x.shape[0]} samples and y_{part} {y.shape[0]}; "
                "expected as many of each"
            )
    for name in ("x", "y"):
        _check_pair(source, name, forms[f"{name}_train"], forms[f"{name}_test"])


def check_contents(source: str, arrays: Mapping[str, Array | Stored], classes: int | None) -> None:
    """Raise `DataError` for NaN, infinity, or a label outside of 0 … classes - 1.

    Expects forms that `check_forms` has passed, labels read by `read_labels`, and values (N, K);
    `classes` is None for values.
    """
    for name, array in arrays.items():
        if name.startswith("y"):
            _check_read(source, name, array, values=classes is None)
        if array.dtype.kind == "f":
            _check_finite(source, name, array)
        elif name.startswith("y") and classes is not None:
            _check_labels(source, name, array[:], classes)


def read_labels(source: str, name: str, y: Array | Stored) -> NDArray[Any]:
    """Return class ids (N,) of an integer type, out of (N,) or (N, 1) numbers of any. Those of an
    array that stays in its file are of the smallest type that holds them.

    Raises `DataError` for the first label that is not a whole number from 0."""
    if isinstance(y, Stored):
        return _stored_labels(source, name, y)
    labels = y.reshape(len(y))
    if labels.dtype.kind == "f":
        numbers = labels.astype(np.float64)
        # NaN counts as bad as well; beyond 2**53 floats don't tell whole numbers apart.
        bad = ~((np.floor(numbers) == numbers) & (np.abs(numbers) < 2**53))
        _refuse_label(source, name, labels, bad)
        labels = numbers.astype(np.int64)
    elif labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    _refuse_label(source, name, labels, labels < 0)
    return labels


def _stored_labels(source: str, name: str, y: Stored) -> NDArray[Any]:
    try:
        largest = max(int(read_labels(source, name, part).max()) for _, part in chunks(y))
    except DataError:
        # The message has the range of all labels and the number of the bad one among them.
        return read_labels(source, name, y[:])
    labels = np.empty(len(y), np.min_scalar_type(largest))
    for start, part in chunks(y):
        labels[start : start + len(part)] = read_labels(source, name, part)
    return labels


def _refuse(source: str, name: str, given: str, expected: str) -> NoReturn:
    raise DataError(f"{source}: {name} {given}; expected {expected}")


def _held(form: Form) -> str:
    return f"has shape {form.shape} and dtype {form.dtype}"


def _refuse_objects(source: str, name: str, given: object, array: NDArray[Any]) -> NoReturn:
    if not array.shape:
        sparse = ": .toarray() makes one of it" if hasattr(given, "toarray") else ""
        _refuse(source, name, f"is a {type(given).__name__}, no array", f"{_NUMBERS}{sparse}")
    cure = f"{_NUMBERS}, such as {name}.astype(float) makes of them"
    for place, one in enumerate(array.flat):
        if not isinstance(one, Number):
            sample = place // max(1, array.size // len(array))
            shown = f"{type(one).__name__} {one!r}" if one is not None else "None"
            given_as = f"holds Python objects, {shown[:60]} in sample {sample}"
            _refuse(source, name, given_as, _NUMBERS)
    _refuse(source, name, "holds numbers as Python objects (dtype object)", cure)


def _uneven(given: object) -> str:
    """Return words for the first row whose length differs from that of row 0; empty where none
    does."""
    rows = given if isinstance(given, list | tuple) else ()
    lengths = [len(row) for row in rows if isinstance(row, Sized)]
    for sample, length in enumerate(lengths):
        if length != lengths[0]:
            return f"rows of {lengths[0]} in sample 0 and of {length} in sample {sample}"
    return ""


def _check_y(source: str, name: str, y: Form, values: bool) -> None:
    if not (_is_whole(y) or _is_float(y)):
        numbered = f"; {_RENUMBER}" if y.dtype.kind in "UST" else ""
        wanted = "numbers" if values else "whole numbers from 0, the classes"
        _refuse(source, name, _held(y), f"{wanted}{numbered}")
    if 0 in y.shape:
        _refuse(source, name, f"is empty: shape {y.shape}", "at least one sample")
    column = len(y.shape) == 1 or (len(y.shape) == 2 and (values or y.shape[1] == 1))
    if column:
        return
    if values:
        _refuse(source, name, _held(y), "(samples,) or (samples, values)")
    cure = "y.argmax(axis=1) makes them of one-hot rows" if len(y.shape) == 2 else "flatten them"
    _refuse(source, name, _held(y), f"(samples,) class ids, one a sample; {cure}")


def _check_read(source: str, name: str, y: Form, *, values: bool) -> None:
    if values and len(y.shape) != 2:
        _refuse(source, name, _held(y), "values (samples, values)")
    if not values and (y.dtype.kind not in "iu" or len(y.shape) != 1):
        _refuse(source, name, _held(y), "class ids (samples,) of an integer dtype")


def _check_pair(source: str, name: str, train: Form, test: Form) -> None:
    shapes = [form.shape[1:] for form in (train, test)]
    if name == "y":  # (N,) and (N, 1) are the same
        shapes = [shape or (1,) for shape in shapes]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{source}: samples of {name}_train have shape {train.shape[1:]} and those of "
            f"{name}_test {test.shape[1:]}; expected the same"
        )
    # Otherwise one part in 0 … 255 and one that is already scaled would be accepted in silence.
    if train.dtype.kind != test.dtype.kind and name == "x":
        raise DataError(
            f"{source}: x_train is of dtype {train.dtype} and x_test {test.dtype}; expected both "
            "uint8 or both floating"
        )


def _is_float(form: Form) -> bool:
    return form.dtype.kind == "f" and form.dtype.itemsize <= 8


def _is_whole(form: Form) -> bool:
    return form.dtype.kind in "iub"


def _check_finite(source: str, name: str, array: Array | Stored) -> None:
    for start, part in chunks(array):
        rows = part.reshape(len(part), -1)
        bad = ~(np.abs(rows) <= _LARGEST)  # also true of NaN
        if bad.any():
            row, column = divmod(int(bad.argmax()), rows.shape[1])
            _refuse(
                source,
                name,
                f"has {rows[row, column]} in sample {start + row}",
                "finite numbers within float32's range: drop or repair such samples",
            )


def _check_labels(source: str, name: str, labels: NDArray[Any], classes: int) -> None:
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(bad.argmax())
        _refuse(source, name, f"has label {labels[first]} in sample {first}", f"0 to {classes - 1}")


def _refuse_label(source: str, name: str, labels: NDArray[Any], bad: NDArray[Any]) -> None:
    if not bad.any():
        return
    first = int(bad.argmax())
    low, high = np.nanmin(labels), np.nanmax(labels)
    _refuse(
        source,
        name,
        f"({labels.dtype}, {low} to {high}) has label {labels[first]} in sample {first}",
        f"whole numbers from 0, the classes; {_RENUMBER}",
    )


# --- kind and range of inputs --------------------------------------------------------------------

#: Inputs are on another scale if they are larger than all of training by more than this factor, or
#: smaller by more than it than nearly all of training.
_FACTOR = 3.0
#: By how much interpolated images may lie outside of 0 … 1.
_MARGIN = 0.1


def measured(x: Array | Stored) -> Inputs:
    """Return the kind and range of samples x (N, …), uint8 or floating, as they are stored."""
    low, high, sizes = np.inf, -np.inf, []
    for _, part in chunks(x):
        rows = part.reshape(len(part), -1)
        lows, highs = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        low, high = min(low, lows.min()), max(high, highs.max())
        sizes.append(np.maximum(np.abs(lows), np.abs(highs)))
    least = np.quantile(np.concatenate(sizes), 0.01, method="lower")
    kind: Literal["uint8", "float"] = "uint8" if x.dtype == np.uint8 else "float"
    return Inputs(kind, float(low), float(high), float(least))


def other_kind(trained: Inputs, given: Inputs) -> str | None:
    """Return words for why a network can't be used on `given`: one of both kinds of inputs is
    uint8, which is scaled to 0 … 1, and the other is floating on another scale. None where it can
    be used."""
    if trained.kind == given.kind:
        return None
    floating = trained if trained.kind == "float" else given
    if floating.low >= -_MARGIN and floating.high <= 1 + _MARGIN and _fits(trained, given):
        return None
    cure = {
        "uint8": "give uint8, or floats from 0 to 1",
        "float": "give floating numbers on the scale of training, x.astype('float32')",
    }
    return f"{_shown(given)}, but the run was trained on {_shown(trained)}: {cure[trained.kind]}"


def other_scale(trained: Inputs, given: Inputs) -> str | None:
    """Return words for inputs that are much larger or smaller than those of training; None where
    they are not."""
    if _fits(trained, given):
        return None
    return (
        f"{_shown(given)}, but the run was trained on {_shown(trained)}: what comes out means "
        "little unless inputs are scaled as in training"
    )


def _fits(trained: Inputs, given: Inputs) -> bool:
    size = _scaled(given, max(abs(given.low), abs(given.high)))
    most = _scaled(trained, max(abs(trained.low), abs(trained.high)))
    # The scale of samples that are all zero is not known.
    if not size or not most:
        return True
    return _scaled(trained, trained.least) / _FACTOR <= size <= _FACTOR * most


def _scaled(inputs: Inputs, number: float) -> float:
    return number / 255 if inputs.kind == "uint8" else number


def _shown(inputs: Inputs) -> str:
    kind = "uint8, scaled by 1/255," if inputs.kind == "uint8" else "floating numbers"
    return f"{kind} from {inputs.low:g} to {inputs.high:g}"
