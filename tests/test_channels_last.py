"""Planes that would clash in the cache are moved apart, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from each import each

from asyncdni.nn.base import Slot
from asyncdni.nn.layers.convolution import Conv2d
from asyncdni.nn.layers.correlation import apart
from asyncdni.nn.layers.pooling import MaxPool
from asyncdni.nn.streams import layer_streams, stream


def numbers(*shape: int) -> np.ndarray:
    return stream(0, "numbers", "test", *shape).normal(size=shape).astype(np.float32)


def test_planes_a_power_of_two_apart_are_moved_and_hold_the_same() -> None:
    x, scratch = numbers(3, 16, 16, 16), Slot()
    found = apart(x, scratch)
    np.testing.assert_array_equal(found, x)
    assert not np.shares_memory(found, x)
    assert found.strides[1] == x.strides[1] + 64 and found.strides[2:] == x.strides[2:]
    fewer = apart(x[:2], scratch)
    np.testing.assert_array_equal(fewer, x[:2])
    assert np.shares_memory(fewer, found)


@each("shape", [(2, 16, 14, 14), (2, 3, 16, 16), (2, 256, 1, 1)])
def test_other_planes_are_left_where_they_are(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    assert apart(x, {}) is x


def test_a_view_whose_planes_have_gaps_is_left_as_it_is() -> None:
    x = numbers(2, 16, 16, 32)[..., ::2]
    assert apart(x, {}) is x


@pytest.mark.parametrize(
    "make", [lambda: Conv2d(9, kernel=3, padding="same"), lambda: MaxPool(3, stride=2, padding=1)]
)
def test_layers_give_the_same_whether_planes_are_moved_or_not(
    make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some samples at a time, of which the last are fewer."""
    found = []
    for moved in (True, False):
        if not moved:
            for name in ("correlation", "pooling"):
                monkeypatch.setattr(f"asyncdni.nn.layers.{name}.apart", lambda x, scratch: x)
        layer = make()  # type: ignore[operator]
        layer.build((9, 16, 16), np.dtype(np.float32), layer_streams(0, "layer"))
        slot: Slot = {}
        y = layer.forward(numbers(5, 9, 16, 16), slot)
        grad_x = layer.backward(numbers(*y.shape), slot, learn=True, send=True)
        found.append([y, grad_x, *layer.grads.values()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
