"""A recurrent layer that first sends, and then learns from the same gradient, goes back once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from windows import INPUTS, STREAMS, UNITS, built, numbers

from asyncdni.nn.layers.recurrent import Lstm, Recurrent, Rnn

STEPS = 3
FUTURE = {"lambda": 0.0, "scale": 0.5}
each_kind = pytest.mark.parametrize("kind", [Rnn, Lstm])


def layer_of(kind: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Recurrent, list]:
    """And a list that grows by one for each way back through a window."""
    layer = built(kind(UNITS, **options), STEPS)
    ways: list[int] = []
    back = layer._back

    def counted(*arguments: Any) -> np.ndarray:
        ways.append(1)
        return back(*arguments)

    monkeypatch.setattr(layer, "_back", counted)
    return layer, ways


def forwarded(layer: Recurrent, batch: int) -> tuple[dict[str, Any], np.ndarray]:
    slot: dict[str, Any] = {"batch": batch}
    layer.forward(numbers(STREAMS, STEPS, INPUTS, key=batch), slot)
    return slot, numbers(STREAMS, STEPS, UNITS, key=batch)


@each_kind
@pytest.mark.parametrize("options", [{}, {"future": FUTURE}])
def test_both_halves_give_what_the_whole_gives_and_go_back_as_often(
    kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, once = layer_of(kind, monkeypatch, **options)
    halved, ways = layer_of(kind, monkeypatch, **options)
    for batch in range(3):
        slot, grad_y = forwarded(whole, batch)
        expected = whole.backward(grad_y, slot, learn=True, send=True)
        slot, grad_y = forwarded(halved, batch)
        sent = halved.backward(grad_y, slot, learn=False, send=True)
        assert halved.backward(grad_y, slot, learn=True, send=False) is None
        np.testing.assert_array_equal(sent, expected)
        whole.fresh = halved.fresh = True
    assert len(ways) == len(once)
    for name, grad in whole.grads.items():
        np.testing.assert_array_equal(halved.grads[name], grad)
    for name, buffer in whole.buffers.items():
        np.testing.assert_array_equal(halved.buffers[name], buffer)


@each_kind
def test_another_windows_backward_in_between_is_not_mistaken_for_it(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, ways = layer_of(kind, monkeypatch)
    (first, grad), (second, other) = forwarded(layer, 0), forwarded(layer, 1)
    layer.backward(grad, first, learn=True, send=False)
    expected = {name: value.copy() for name, value in layer.grads.items()}
    layer.fresh = True
    layer.backward(grad, first, learn=False, send=True)
    layer.backward(other, second, learn=False, send=True)
    layer.backward(grad, first, learn=True, send=False)
    assert len(ways) == 4
    for name, value in expected.items():
        np.testing.assert_array_equal(layer.grads[name], value)


@each_kind
def test_another_gradient_of_the_same_window_goes_back_anew(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, ways = layer_of(kind, monkeypatch)
    slot, grad_y = forwarded(layer, 0)
    layer.backward(grad_y, slot, learn=False, send=True)
    layer.backward(2 * grad_y, slot, learn=True, send=False)
    doubled = layer.grads["weight_hh"].copy()
    layer.fresh = True
    layer.backward(grad_y, slot, learn=True, send=False)
    assert len(ways) == 3
    np.testing.assert_allclose(doubled, 2 * layer.grads["weight_hh"])
