"""What is known of inputs without a look at their samples, and arrays that hold no numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asyncdni.data.checks import as_numbers, measured, other_kind, other_scale
from asyncdni.data.meta import Inputs
from asyncdni.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (200, 16)).astype(np.uint8)
RAW = PIXELS.astype(np.float32)
UNIT = RAW / 255
NORMAL = RNG.normal(size=(200, 16))


def kind(trained: np.ndarray, given: np.ndarray) -> str | None:
    return other_kind(measured(trained), measured(given))


def scale(trained: np.ndarray, given: np.ndarray) -> str | None:
    return other_scale(measured(trained), measured(given))


def test_what_is_measured_is_what_is_stored() -> None:
    x = np.array([[1, -4], [2, 3], [0, 0.5]])
    assert measured(x) == Inputs("float", -4, 3, least=0.5)
    assert measured(np.array([[7], [9]], np.uint8)) == Inputs("uint8", 7, 9, least=7)
    many = np.ones((10_000, 1))
    many[:99] = 0  # fewer than one in a hundred
    assert measured(many) == Inputs("float", 0, 1, least=1)


def test_pixels_and_floats_from_0_to_1_are_the_same() -> None:
    for trained, given in ((PIXELS, UNIT), (UNIT, PIXELS), (PIXELS, UNIT * 1.02 - 0.01)):
        assert kind(trained, given) is None and scale(trained, given) is None


def test_pixels_and_floats_on_another_scale_are_not() -> None:
    for trained, given, words in (
        (RAW, PIXELS, "uint8, scaled by 1/255, from 0 to 255, but the run was trained on floating"),
        (PIXELS, RAW, "floating numbers from 0 to 255, but the run was trained on uint8, scaled"),
        (NORMAL, PIXELS, "give floating numbers on the scale of training"),
        (PIXELS, NORMAL, "give uint8, or floats from 0 to 1"),
        # Not of images, but 0 and 1 as they are: as uint8 they would be scaled.
        ((UNIT > 0.5) * 1.0, (PIXELS > 127).astype(np.uint8), "scaled by 1/255"),
    ):
        assert words in (kind(trained, given) or "")


def test_floats_on_another_scale_are_doubted() -> None:
    for trained, given in ((RAW, UNIT), (UNIT, RAW), (NORMAL, NORMAL * 100), (NORMAL, RAW)):
        assert kind(trained, given) is None
        assert "but the run was trained on floating numbers from" in (scale(trained, given) or "")


def test_few_small_or_dark_samples_are_no_reason_for_doubt() -> None:
    for trained, given in ((NORMAL, NORMAL[:1]), (RAW, RAW[3:4]), (RAW, RAW * 0), (RAW * 0, RAW)):
        assert scale(trained, given) is None
    heavy = np.exp(2 * RNG.normal(size=(5_000, 1)))
    assert scale(heavy, np.median(heavy, keepdims=True)) is None


class Wanting:
    """A tensor that is not to be had as an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("call detach()\nfirst")


class Sparse:
    def toarray(self) -> np.ndarray:
        return NORMAL


def test_what_holds_no_numbers_is_named_and_described() -> None:
    masked = np.ma.masked_less(NORMAL, -2)
    for given, words in (
        (None, "f: x is None; expected an array of numbers"),
        (
            [[1, 2], [3]],
            "x is a list that can't be read as an array (rows of 2 in sample 0 and of 1",
        ),
        ([[1, 2], 3], "x is a list that can't be read as an array (setting an array element"),
        (
            NORMAL.astype(object),
            "x holds numbers as Python objects (dtype object); expected an arr",
        ),
        ([1.0, None], "x holds Python objects, None in sample 1"),
        (np.array([["a"], [2]], object), "x holds Python objects, str 'a' in sample 0"),
        (masked, f"x has {np.count_nonzero(masked.mask)} masked numbers; expected all of them"),
        (Wanting(), "x is a Wanting that can't be read as an array (call detach() first)"),
        (Sparse(), "x is a Sparse, no array; expected an array of numbers: .toarray() makes one"),
        ({"a": 1}, "x is a dict, no array"),
    ):
        with pytest.raises(DataError) as caught:
            as_numbers("f", "x", given)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_whatever_numpy_reads_is_taken() -> None:
    for given in (NORMAL.tolist(), NORMAL, np.ma.array(NORMAL), memoryview(NORMAL), range(3)):
        assert (as_numbers("f", "x", given) == np.asarray(given)).all()
