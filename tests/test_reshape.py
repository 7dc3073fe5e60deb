"""Flatten and reshape: the same numbers, and shapes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.reshape import Reshape
from asyncdni.nn.streams import layer_streams


@each(
    "spec, shape, expected",
    [
        ("flatten", (2, 3, 4), (24,)),
        ("flatten", (5,), (5,)),
        ("flatten", (), (1,)),
        ({"reshape": [1, 28, 28]}, (784,), (1, 28, 28)),
        ({"reshape": [-1, 4]}, (2, 3, 4), (6, 4)),
        ({"reshape": {"shape": [24]}}, (2, 3, 4), (24,)),
    ],
)
def test_the_numbers_keep_their_order_there_and_back(
    spec: Any, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    layer = make_layer(spec, where="test")
    assert layer.build(shape, np.dtype("float64"), layer_streams(0, "a")) == expected
    x = np.arange(3 * int(np.prod(shape))).reshape(3, *shape)
    slot: dict[str, Any] = {}
    y = layer.forward(x, slot)
    assert y.shape == (3, *expected)
    np.testing.assert_array_equal(y.ravel(), x.ravel())
    np.testing.assert_array_equal(layer.evaluate(x), y)
    np.testing.assert_array_equal(layer.backward(y, slot, learn=True, send=True), x)


@each("shape", [[], [0, 3], [-1, -1], [-2], [2.0], [True], "28x28", 7])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of positive whole numbers"):
        make_layer({"reshape": shape}, where="stages[0], layer 0")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 28, 28], r"to \(1, 28, 28\) takes inputs of 784 numbers, not 783 of shape \(783,\)"),
        ([5, -1], r"takes inputs of a multiple of 5 numbers, not 783 of shape \(783,\)"),
    ],
)
def test_inputs_of_another_size_are_refused(shape: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reshape(shape).output_shape((783,))
