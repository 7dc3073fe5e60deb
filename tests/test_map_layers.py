"""Layers of feature maps and sequences: gradients by finite differences, and the rules of slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from each import each
from gradcheck import assert_gradient

from asyncdni.nn.base import Layer, Slot
from asyncdni.nn.layers import make_layer
from asyncdni.nn.streams import layer_streams, stream

#: By case: the layer, and the shape of its inputs. Odd sizes, windows that are not square, strides
#: that leave a remainder, borders.
CASES: dict[str, tuple[str | dict[str, Any], tuple[int, ...]]] = {
    "conv2d": ({"conv2d": {"channels": 3, "kernel": 3, "padding": "same"}}, (2, 5, 4)),
    "conv2d_even_same": (
        {"conv2d": {"channels": 2, "kernel": [2, 4], "padding": "same"}},
        (1, 3, 5),
    ),
    "conv2d_strided": (
        {"conv2d": {"channels": 2, "kernel": [3, 2], "stride": [2, 3], "padding": [2, 1]}},
        (2, 6, 7),
    ),
    "conv2d_gaps": ({"conv2d": {"channels": 2, "kernel": 1, "stride": 3}}, (3, 5, 4)),
    "conv2d_wide_border": (
        {"conv2d": {"channels": 2, "kernel": 2, "padding": [3, 4], "bias": False}},
        (1, 2, 3),
    ),
    "max_pool": ({"max_pool": {"kernel": 3, "stride": 2, "padding": 1}}, (2, 5, 6)),
    "max_pool_uneven": ({"max_pool": {"kernel": [1, 2], "stride": [2, 1]}}, (2, 4, 5)),
    "average_pool": ({"average_pool": {"kernel": 3, "stride": 2, "padding": 1}}, (2, 5, 6)),
    "average_pool_remainder": ({"average_pool": 2}, (3, 5, 7)),
    "batch_norm": ("batch_norm", (3, 2, 4)),
    "flatten": ("flatten", (2, 3, 2)),
    "reshape": ({"reshape": [3, -1]}, (2, 3, 2)),
    "dropout": ({"dropout": 0.3}, (3, 4)),
    "layer_norm": ("layer_norm", (3, 5)),
    "layer_norm_of_maps": ({"layer_norm": {"axes": 3}}, (2, 3, 2)),
    "embedding": ({"embedding": {"tokens": 7, "width": 3}}, (4,)),
}
VIEWS = {"flatten", "reshape"}
LEARNING = [
    name for name in CASES if name.split("_")[0] in ("conv2d", "batch", "layer", "embedding")
]
every_layer = each("name", CASES)


def built(name: str, dtype: str = "float64") -> Layer:
    """A layer whose parameters are all different from each other and from 0 and 1."""
    spec, shape = CASES[name]
    layer = make_layer(spec, where="test")
    layer.build(shape, np.dtype(dtype), layer_streams(0, name))
    rng = stream(0, name, "parameters")
    for value in layer.params.values():
        value[...] = rng.normal(size=value.shape)
    return layer


def inputs(name: str, samples: int, *, key: int = 0, dtype: str = "float64") -> Any:
    """Numbers, or ids, that nobody may write to."""
    rng = stream(1, "inputs", name, samples, key)
    shape = (samples, *CASES[name][1])
    array = rng.integers(0, 7, shape) if name == "embedding" else rng.normal(size=shape)
    array = array.astype(dtype)
    array.flags.writeable = False
    return array


def grad_for(y: np.ndarray, key: int = 7) -> Any:
    grad = stream(1, "grad", "test", key).normal(size=y.shape).astype(y.dtype)
    grad.flags.writeable = False
    return grad


def slot_of(batch: int) -> Slot:
    return {"batch": batch}


def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def reference(name: str, x: Any, batch: int = 0) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Output, gradient of x and of the parameters, from a layer and slot never used before."""
    layer, slot = built(name, str(x.dtype)), slot_of(batch)
    y = layer.forward(x, slot)
    grad_x = layer.backward(grad_for(y), slot, learn=True, send=True)
    return y, grad_x, layer.grads


@every_layer
def test_gradients_match_finite_differences(name: str) -> None:
    layer, slot = built(name), slot_of(0)
    x = inputs(name, 3).copy()
    y = layer.forward(x, slot)
    grad_y = grad_for(y)

    def value() -> float:
        return float(np.vdot(layer.forward(x, slot_of(0)), grad_y))

    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    if name == "embedding":
        assert grad_x is not None and grad_x.shape == x.shape and not grad_x.any()
    else:
        assert_gradient(grad_x, value, x)
    for key, param in layer.params.items():
        assert_gradient(layer.grads[key], value, param)


@every_layer
def test_the_shape_that_is_promised_is_the_shape_that_comes(name: str) -> None:
    spec, shape = CASES[name]
    promised = make_layer(spec, where="test").output_shape(shape)
    assert built(name).forward(inputs(name, 3), slot_of(0)).shape == (3, *promised)
    assert built(name).evaluate(inputs(name, 2)).shape == (2, *promised)


@every_layer
def test_learn_and_send_are_apart(name: str) -> None:
    """As when the gradient is sent first and learned from later."""
    layer, slot = built(name), slot_of(0)
    x = inputs(name, 3)
    y, grad_x, grads = reference(name, x)
    layer.forward(x, slot)
    before = copied(layer.grads)
    np.testing.assert_array_equal(layer.backward(grad_for(y), slot, learn=False, send=True), grad_x)
    assert_same(layer.grads, before)
    assert layer.fresh
    assert layer.backward(grad_for(y), slot, learn=True, send=False) is None
    assert_same(layer.grads, grads)
    assert not layer.fresh
    assert layer.backward(grad_for(y), slot, learn=False, send=False) is None


@each("name", LEARNING)
def test_fresh_gradients_are_overwritten_and_later_ones_added(name: str) -> None:
    layer, slot = built(name), slot_of(0)
    y = layer.forward(inputs(name, 3), slot)
    for grad in layer.grads.values():
        grad[...] = np.nan
    layer.backward(grad_for(y), slot, learn=True, send=False)
    once = copied(layer.grads)
    layer.backward(grad_for(y), slot, learn=True, send=False)
    for key, grad in layer.grads.items():
        np.testing.assert_allclose(grad, 2 * once[key], rtol=1e-14)
    layer.fresh = True
    layer.backward(grad_for(y), slot, learn=True, send=False)
    assert_same(layer.grads, once)


@every_layer
def test_a_second_backward_leaves_the_first_gradient_alone(name: str) -> None:
    layer, slot = built(name), slot_of(0)
    y = layer.forward(inputs(name, 3), slot)
    first = layer.backward(grad_for(y), slot, learn=True, send=True)
    assert first is not None
    kept = first.copy()
    second = layer.backward(grad_for(y, key=8), slot, learn=True, send=True)
    np.testing.assert_array_equal(first, kept)
    again, other = built(name), slot_of(0)
    again.forward(inputs(name, 3), other)
    expected = again.backward(grad_for(y, key=8), other, learn=True, send=True)
    np.testing.assert_array_equal(second, expected)


@every_layer
def test_batches_in_flight_do_not_touch_each_other(name: str) -> None:
    layer, slots = built(name), [slot_of(batch) for batch in range(3)]
    batches = [inputs(name, samples, key=samples) for samples in (4, 3, 4)]
    outputs = [layer.forward(x, slot) for x, slot in zip(batches, slots, strict=True)]
    kept = [y.copy() for y in outputs]
    layer.evaluate(inputs(name, 5))
    for batch in (1, 2, 0):
        layer.fresh = True
        y, grad_x, grads = reference(name, batches[batch], batch)
        found = layer.backward(grad_for(y), slots[batch], learn=True, send=True)
        np.testing.assert_array_equal(found, grad_x)
        assert_same(layer.grads, grads)
        for output, one in zip(outputs, kept, strict=True):
            np.testing.assert_array_equal(output, one)


@every_layer
def test_a_slot_takes_batches_of_any_size_one_after_another(name: str) -> None:
    layer = built(name)
    slot: Slot = {}
    for batch, samples in enumerate((3, 5, 2, 4, 5)):
        layer.fresh = True
        slot["batch"] = batch
        x = inputs(name, samples)
        y, grad_x, grads = reference(name, x, batch)
        found = layer.forward(x, slot)
        np.testing.assert_array_equal(found, y)
        found_grad = layer.backward(grad_for(y), slot, learn=True, send=True)
        np.testing.assert_array_equal(found_grad, grad_x)
        assert found_grad is not None
        assert found.flags.c_contiguous and found_grad.flags.c_contiguous
        assert_same(layer.grads, grads)


@each("name", [name for name in CASES if name not in VIEWS])
def test_a_slot_allocates_once_for_the_largest_batch(name: str) -> None:
    layer, slot = built(name), slot_of(0)
    memory = []
    for samples in (6, 4, 6):
        y = layer.forward(inputs(name, samples), slot)
        grad_x = layer.backward(grad_for(y), slot, learn=False, send=True)
        memory.append((y, grad_x))
        assert np.shares_memory(y, memory[0][0])
        assert np.shares_memory(grad_x, memory[0][1])


@every_layer
def test_float32_stays_float32_and_is_near_float64(name: str) -> None:
    x = inputs(name, 3, dtype="float32")
    y, grad_x, grads = reference(name, x)
    layer = built(name, "float32")
    arrays = [y, grad_x, layer.evaluate(x), *grads.values(), *layer.buffers.values()]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    exact = reference(name, x.astype("float64"))
    np.testing.assert_allclose(y, exact[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_x, exact[1], rtol=1e-3, atol=1e-4)


@every_layer
def test_the_same_layer_in_two_types_makes_the_same_choices(name: str) -> None:
    """Initial weights and masks are drawn alike."""
    spec, shape = CASES[name]
    layers = []
    for dtype in ("float32", "float64"):
        layer = make_layer(spec, where="test")
        layer.build(shape, np.dtype(dtype), layer_streams(0, name))
        layers.append(layer)
    for key, value in layers[0].params.items():
        np.testing.assert_array_equal(value, layers[1].params[key].astype("float32"))


@each("name", [n for n in CASES if n not in ("batch_norm", "dropout")])
def test_evaluate_is_the_training_forward_where_nothing_is_drawn_or_tracked(name: str) -> None:
    layer = built(name)
    x = inputs(name, 3)
    np.testing.assert_array_equal(layer.evaluate(x), layer.forward(x, slot_of(0)))


@each("name", [name for name in CASES if name not in ("embedding", "dropout")])
def test_a_number_that_is_not_one_is_not_hidden(name: str) -> None:
    x = inputs(name, 3).copy()
    x[1, 0, 0] = np.nan
    assert np.isnan(built(name).forward(x, slot_of(0))).any()


@each("name", LEARNING)
def test_parameters_may_be_replaced_by_views_of_a_vector(name: str) -> None:
    layer, slot = built(name), slot_of(0)
    layer.params = {key: value * 0 for key, value in layer.params.items()}
    layer.grads = {key: np.full_like(value, 5) for key, value in layer.grads.items()}
    y = layer.forward(inputs(name, 3), slot)
    assert not y.any()
    layer.backward(grad_for(y), slot, learn=True, send=False)
    assert all((grad != 5).any() for grad in layer.grads.values())
