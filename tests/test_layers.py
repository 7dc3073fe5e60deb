"""Layers: gradients against finite differences, and the rules of slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from gradcheck import assert_gradient
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.errors import DataError
from asyncdni.nn.base import Layer
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.streams import layer_streams, stream

INPUTS = 5
SPECS: dict[str, str | dict[str, Any]] = {
    "dense": {"dense": 4},
    "dense_without_bias": {"dense": {"width": 4, "bias": False}},
    "batch_norm": "batch_norm",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
every_layer = pytest.mark.parametrize("name", SPECS)


def built(name: str, dtype: str = "float64") -> Layer:
    """A layer with parameters that are all different from each other and from 0 and 1."""
    layer = make_layer(SPECS[name], where="test")
    layer.build((INPUTS,), np.dtype(dtype), layer_streams(0, name))
    rng = stream(0, name, "parameters")
    for value in layer.params.values():
        value[...] = rng.normal(size=value.shape)
    return layer


def numbers(samples: int, width: int = INPUTS, *, key: int = 0, dtype: str = "float64") -> Any:
    """Numbers that nobody may write to, as those that come from another worker."""
    array = stream(1, "numbers", "test", samples, width, key).normal(size=(samples, width))
    array = array.astype(dtype)
    array.flags.writeable = False
    return array


def grad_for(y: np.ndarray, key: int = 7) -> np.ndarray:
    return numbers(*y.shape, key=key, dtype=str(y.dtype))


def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


def reference(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Output, gradient of x and of the parameters, from a layer and slot never used before."""
    layer, slot = built(name, str(x.dtype)), {}
    y = layer.forward(x, slot)
    grad_x = layer.backward(grad_for(y), slot, learn=True, send=True)
    assert grad_x is not None
    return y, grad_x, layer.grads


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@every_layer
def test_gradients_of_inputs_and_parameters_match_finite_differences(name: str) -> None:
    layer, slot = built(name), {}
    x = numbers(6).copy()
    y = layer.forward(x, slot)
    grad_y = grad_for(y)

    def value() -> float:
        return float(np.vdot(layer.forward(x, {}), grad_y))

    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    assert_gradient(grad_x, value, x)
    for key, param in layer.params.items():
        assert_gradient(layer.grads[key], value, param)


@every_layer
def test_without_learn_the_gradients_of_parameters_stay_as_they_are(name: str) -> None:
    layer, slot = built(name), {}
    y = layer.forward(numbers(6), slot)
    before = copied(layer.grads)
    grad_x = layer.backward(grad_for(y), slot, learn=False, send=True)
    np.testing.assert_array_equal(grad_x, reference(name, numbers(6))[1])
    assert_same(layer.grads, before)
    assert layer.fresh


@every_layer
def test_without_send_nothing_is_returned_and_the_same_is_learned(name: str) -> None:
    layer, slot = built(name), {}
    y = layer.forward(numbers(6), slot)
    assert layer.backward(grad_for(y), slot, learn=True, send=False) is None
    assert_same(layer.grads, reference(name, numbers(6))[2])
    assert not layer.fresh


@every_layer
def test_with_neither_nothing_happens(name: str) -> None:
    layer, slot = built(name), {}
    y = layer.forward(numbers(6), slot)
    before = copied(layer.grads)
    assert layer.backward(grad_for(y), slot, learn=False, send=False) is None
    assert_same(layer.grads, before)
    assert layer.fresh


@every_layer
def test_fresh_gradients_are_overwritten_and_later_ones_added(name: str) -> None:
    layer, slot = built(name), {}
    y = layer.forward(numbers(6), slot)
    for grad in layer.grads.values():
        grad[...] = np.nan
    layer.backward(grad_for(y), slot, learn=True, send=False)
    once = copied(layer.grads)
    layer.backward(grad_for(y), slot, learn=True, send=False)
    for key, grad in layer.grads.items():
        np.testing.assert_allclose(grad, 2 * once[key], rtol=1e-14)


@every_layer
def test_a_second_backward_leaves_the_first_gradient_alone(name: str) -> None:
    layer, slot = built(name), {}
    y = layer.forward(numbers(6), slot)
    first = layer.backward(grad_for(y), slot, learn=True, send=True)
    assert first is not None
    kept = first.copy()
    second = layer.backward(grad_for(y, key=8), slot, learn=True, send=True)
    assert second is not None
    np.testing.assert_array_equal(first, kept)
    again, fresh_slot = built(name), {}
    again.forward(numbers(6), fresh_slot)
    expected = again.backward(grad_for(y, key=8), fresh_slot, learn=True, send=True)
    np.testing.assert_array_equal(second, expected)


@every_layer
def test_two_batches_in_flight_do_not_touch_each_other(name: str) -> None:
    layer, slots = built(name), ({}, {})
    inputs = numbers(6, key=0), numbers(6, key=1)
    outputs = [layer.forward(x, slot) for x, slot in zip(inputs, slots, strict=True)]
    for index in (1, 0):
        layer.fresh = True
        y, grad_x, grads = reference(name, inputs[index])
        np.testing.assert_array_equal(outputs[index], y)
        found = layer.backward(grad_for(y), slots[index], learn=True, send=True)
        np.testing.assert_array_equal(found, grad_x)
        assert_same(layer.grads, grads)


@every_layer
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=2, max_size=5))
def test_a_slot_takes_batches_of_any_size_one_after_another(name: str, sizes: list[int]) -> None:
    layer, slot = built(name), {}
    for size in sizes:
        layer.fresh = True
        y, grad_x, grads = reference(name, numbers(size))
        found = layer.forward(numbers(size), slot)
        np.testing.assert_array_equal(found, y)
        found_grad = layer.backward(grad_for(y), slot, learn=True, send=True)
        np.testing.assert_array_equal(found_grad, grad_x)
        assert found.flags.c_contiguous and found_grad.flags.c_contiguous
        assert_same(layer.grads, grads)


@every_layer
def test_a_slot_allocates_once_for_the_largest_batch(name: str) -> None:
    layer, slot = built(name), {}
    for size in (6, 4, 6):
        y = layer.forward(numbers(size), slot)
        grad_x = layer.backward(grad_for(y), slot, learn=False, send=True)
        if size == 6 and "memory" not in locals():
            memory = y, grad_x
        assert np.shares_memory(y, memory[0])
        assert np.shares_memory(grad_x, memory[1])


@every_layer
def test_float32_stays_float32(name: str) -> None:
    y, grad_x, grads = reference(name, numbers(6, dtype="float32"))
    layer = built(name, "float32")
    arrays = [y, grad_x, layer.evaluate(numbers(6, dtype="float32"))]
    arrays += [*grads.values(), *layer.buffers.values()]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    exact = reference(name, numbers(6, dtype="float32").astype("float64"))
    np.testing.assert_allclose(y, exact[0], rtol=1e-4, atol=1e-5)


@each("name", [name for name in SPECS if name != "batch_norm"])
def test_evaluate_is_the_training_forward_where_no_statistics_are_kept(name: str) -> None:
    layer = built(name)
    np.testing.assert_array_equal(layer.evaluate(numbers(6)), layer.forward(numbers(6), {}))


@every_layer
def test_a_number_that_is_not_one_is_not_hidden(name: str) -> None:
    x = numbers(6).copy()
    x[2, 3] = np.nan
    assert np.isnan(built(name).forward(x, {})).any()


@every_layer
def test_parameters_may_be_replaced_by_views_of_a_vector(name: str) -> None:
    layer = built(name)
    layer.params = {key: value * 0 for key, value in layer.params.items()}
    layer.grads = {key: value.copy() for key, value in layer.grads.items()}
    slot: dict[str, Any] = {}
    y = layer.forward(numbers(6), slot)
    assert not layer.params or not y.any()
    grads = copied(layer.grads)
    layer.backward(grad_for(y) + 1, slot, learn=True, send=False)
    assert all((layer.grads[key] != grads[key]).any() for key in grads)


# --- batch norm ------------------------------------------------------------------------------


def test_batch_norm_gives_each_column_the_mean_and_deviation_of_bias_and_weight() -> None:
    layer = built("batch_norm")
    y = layer.forward(1e3 + 20 * numbers(200), {})
    np.testing.assert_allclose(y.mean(axis=0), layer.params["bias"], atol=1e-10)
    np.testing.assert_allclose(y.std(axis=0), np.abs(layer.params["weight"]), rtol=1e-6)


def test_batch_norm_moves_its_running_statistics_by_momentum() -> None:
    layer = BatchNorm(momentum=0.25)
    layer.build((INPUTS,), np.dtype("float64"), layer_streams(0, "bn"))
    x = 3 + 2 * numbers(7)
    layer.forward(x, {})
    np.testing.assert_allclose(layer.buffers["running_mean"], 0.25 * x.mean(axis=0))
    unbiased = x.var(axis=0, ddof=1)
    np.testing.assert_allclose(layer.buffers["running_var"], 0.75 + 0.25 * unbiased)


def test_batch_norm_evaluates_by_running_statistics_and_keeps_them() -> None:
    layer = built("batch_norm")
    layer.buffers["running_mean"][...] = 2.0
    layer.buffers["running_var"][...] = 4.0
    before = copied(layer.buffers)
    expected = (numbers(1) - 2) / np.sqrt(4 + 1e-5) * layer.params["weight"] + layer.params["bias"]
    np.testing.assert_allclose(layer.evaluate(numbers(1)), expected)
    assert_same(layer.buffers, before)


def test_batch_norm_of_a_constant_column_is_finite_both_ways() -> None:
    layer, slot = built("batch_norm", "float32"), {}
    x = np.full((8, INPUTS), 0.1, "float32")
    y = layer.forward(x, slot)
    np.testing.assert_allclose(y, np.tile(layer.params["bias"], (8, 1)), atol=1e-4)
    grad_x = layer.backward(grad_for(y), slot, learn=True, send=True)
    assert np.isfinite(grad_x).all()


def test_batch_norm_refuses_to_train_on_one_sample() -> None:
    layer = built("batch_norm")
    before = copied(layer.buffers)
    with pytest.raises(DataError, match="training batch of 1 sample"):
        layer.forward(numbers(1), {})
    assert_same(layer.buffers, before)
