"""What makes arrays a data set: forms that fit each other, finite numbers, labels in range.

Forms (shapes and dtypes) are checked apart from contents, because a file's headers are enough for
them. Every refusal names the file, the array and, where there is one, the first bad sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from asyncdni.errors import DataError

__all__ = ["Form", "check_contents", "check_forms"]

#: Samples looked at together: bounds the memory of a check, whatever the size of the data set.
_CHUNK = 4096

#: Runs are in float32 unless said otherwise: what is larger becomes infinity in the first batch.
_LARGEST = np.finfo(np.float32).max


class Form(Protocol):
    """Shape and dtype: of an array, or of the header of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


def check_forms(source: str, forms: Mapping[str, Form], *, values: bool) -> None:
    """Raises `DataError` unless x_train, y_train, x_test, y_test fit each other.

    x is (N, …), uint8 or floating; y is (N,) whole numbers, or (N, K) floating for `values`.
    """
    for name in ("x_train", "x_test"):
        _check_x(source, name, forms[name])
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


def check_contents(source: str, arrays: Mapping[str, NDArray[Any]], classes: int | None) -> None:
    """Raises `DataError` for NaN, infinity, or a label outside of 0 … classes - 1.

    Expects forms that `check_forms` has passed; `classes` is None for values.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            _check_finite(source, name, array)
        elif name.startswith("y") and classes is not None:
            _check_labels(source, name, array, classes)


def _refuse(source: str, name: str, given: str, expected: str) -> NoReturn:
    raise DataError(f"{source}: {name} {given}; expected {expected}")


def _check_x(source: str, name: str, x: Form) -> None:
    if x.dtype != np.uint8 and not _is_float(x):
        _refuse(
            source,
            name,
            f"is of dtype {x.dtype}",
            "uint8 (scaled by 1/255), float16, float32 or float64",
        )
    if len(x.shape) < 2:
        _refuse(source, name, f"has shape {x.shape}", "(samples, features, …)")
    if 0 in x.shape:
        _refuse(source, name, f"is empty: shape {x.shape}", "at least one sample and feature")


def _check_y(source: str, name: str, y: Form, values: bool) -> None:
    wanted = "(samples, values) of a float dtype" if values else "(samples,) of an integer dtype"
    right = _is_float(y) and len(y.shape) == 2 if values else _is_whole(y) and len(y.shape) == 1
    if not right:
        _refuse(source, name, f"has shape {y.shape} and dtype {y.dtype}", wanted)
    if 0 in y.shape:
        _refuse(source, name, f"is empty: shape {y.shape}", "at least one sample")


def _check_pair(source: str, name: str, train: Form, test: Form) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{source}: samples of {name}_train have shape {train.shape[1:]} and those of "
            f"{name}_test {test.shape[1:]}; expected the same"
        )
    # One in 0 … 255 to be scaled and one already scaled would be trained on in silence.
    if train.dtype.kind != test.dtype.kind and name == "x":
        raise DataError(
            f"{source}: x_train is of dtype {train.dtype} and x_test {test.dtype}; expected both "
            "uint8 or both floating"
        )


def _is_float(form: Form) -> bool:
    return form.dtype.kind == "f" and form.dtype.itemsize <= 8


def _is_whole(form: Form) -> bool:
    return form.dtype.kind in "iu"


def _check_finite(source: str, name: str, array: NDArray[Any]) -> None:
    for start in range(0, len(array), _CHUNK):
        rows = array[start : start + _CHUNK].reshape(min(_CHUNK, len(array) - start), -1)
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
