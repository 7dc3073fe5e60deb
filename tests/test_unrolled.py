"""One time stamp of a window, and the zeros before the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.unrolled import StepOf, Zeros
from asyncdni.nn.streams import layer_streams

F64 = np.dtype("float64")


@each("index, place", [(0, 0), (2, 2), (-1, 2), (-3, 0)])
@each("shape", [(3, 4), (3, 2, 2)])
def test_a_step_gives_its_own_part_and_sends_its_gradient_there_alone(
    index: int, place: int, shape: tuple[int, ...]
) -> None:
    layer = StepOf(index)
    assert layer.build(shape, F64, layer_streams(0, "a")) == shape[1:]
    x = np.arange(5.0 * np.prod(shape)).reshape(5, *shape)
    slot: dict[str, Any] = {}
    y = layer.forward(x, slot)
    np.testing.assert_array_equal(y, x[:, place])
    np.testing.assert_array_equal(layer.evaluate(x), y)
    first = layer.backward(y, slot, learn=True, send=True)
    again = layer.backward(2 * y, slot, learn=False, send=True)
    assert layer.backward(y, slot, learn=True, send=False) is None
    expected = np.zeros_like(x)
    expected[:, place] = y
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, 2 * expected)


def test_zeros_have_a_width_of_their_own_and_send_zeros_back() -> None:
    layer = Zeros(3)
    assert layer.build((7,), F64, layer_streams(0, "a")) == (3,)
    x, slot = np.ones((5, 7)), {}
    for found in (layer.forward(x, slot), layer.evaluate(x)):
        assert found.shape == (5, 3) and found.dtype == F64 and not found.any()
    grad = layer.backward(np.ones((5, 3)), slot, learn=True, send=True)
    assert grad is not None and grad.shape == x.shape and not grad.any()
    assert layer.backward(np.ones((5, 3)), slot, learn=True, send=False) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"step": 1.5}, "index 1.5: expected a whole number"),
        ({"zeros": 0}, "units 0: expected a positive whole number"),
    ],
)
def test_options_that_are_none_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer(spec, where="stages[0], layer 0")


@each(
    "index, shape, message",
    [
        (3, (3, 4), "step 3 of a window of 3 steps: expected -3 to 2"),
        (-4, (3, 4), "step -4 of a window"),
        (0, (4,), r"takes windows of shape \(T, …\), not \(4,\)"),
    ],
)
def test_a_step_that_the_window_has_not_is_refused(
    index: int, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        StepOf(index).output_shape(shape)
