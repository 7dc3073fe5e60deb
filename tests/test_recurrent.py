"""Recurrent layers: gradients over windows, the state between them, and the rules of slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradcheck import assert_gradient
from windows import INPUTS, STREAMS, UNITS, Run, built, numbers

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.layers.recurrent import Lstm, Recurrent, Rnn
from asyncdni.nn.streams import layer_streams

STEPS = 3
LENGTH = 3 * STEPS
Kind = Callable[..., Recurrent]
each_kind = pytest.mark.parametrize("kind", [Rnn, Lstm])


def layer_of(kind: Kind, dtype: str = "float64", **options: Any) -> Recurrent:
    return built(kind(UNITS, **options), STEPS, dtype)


def run_of(layer: Recurrent, dtype: str = "float64") -> Run:
    x, grad_y = (numbers(STREAMS, LENGTH, n, key=n, dtype=dtype) for n in (INPUTS, UNITS))
    return Run(layer, x, grad_y, STEPS)


# --- gradients -----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_one_window_match_finite_differences(
    kind: Kind, last_only: bool, bias: bool
) -> None:
    layer = layer_of(kind, last_only=last_only, bias=bias)
    x = numbers(STREAMS, STEPS, INPUTS).copy()
    grad_y = numbers(STREAMS, *layer.output_shape((STEPS, INPUTS)), key=7)
    slot: dict[str, Any] = {}
    layer.forward(x, slot)
    grad_x = layer.backward(grad_y, slot, learn=True, send=True)

    def value() -> float:
        return float(np.vdot(layer.evaluate(x), grad_y))

    assert_gradient(grad_x, value, x)
    for name, param in layer.params.items():
        assert_gradient(layer.grads[name], value, param)


@each_kind
def test_without_a_future_gradients_end_at_the_window(kind: Kind) -> None:
    """A window whose state came from before has the gradient of its own outputs alone."""
    layer = layer_of(kind)
    run = run_of(layer)
    run.forward(0)
    start = layer.buffers["carried.state"].copy()
    run.forward(1)
    x, grad_y = (a[:, STEPS : 2 * STEPS].copy() for a in (run.x, run.grad_y))

    def value() -> float:
        return float(np.vdot(layer.continued(x, start)[0], grad_y))

    assert_gradient(run.backward(1), value, x)
    for name, param in layer.params.items():
        assert_gradient(layer.grads[name], value, param)


@each_kind
def test_windows_carry_the_state_as_one_long_window_would(kind: Kind) -> None:
    run = run_of(layer_of(kind))
    run.all()
    np.testing.assert_allclose(
        np.concatenate(run.outputs, axis=1), run.layer.evaluate(run.x), rtol=1e-13
    )


@each_kind
def test_a_window_may_be_shorter_than_the_others(kind: Kind) -> None:
    layer = layer_of(kind)
    run = Run(layer, *(numbers(STREAMS, 8, n, key=n) for n in (INPUTS, UNITS)), STEPS)
    assert run.all().shape == run.x.shape
    np.testing.assert_allclose(np.concatenate(run.outputs, axis=1), layer.evaluate(run.x))


@each_kind
def test_the_last_output_alone_is_that_of_the_last_step(kind: Kind) -> None:
    x = numbers(STREAMS, STEPS, INPUTS)
    every = layer_of(kind).forward(x, {})
    last = layer_of(kind, last_only=True).forward(x, {})
    np.testing.assert_array_equal(last, every[:, -1])


# --- the state -----------------------------------------------------------------------------------


@each_kind
def test_a_stream_that_begins_a_sequence_starts_from_zero_and_others_go_on(kind: Kind) -> None:
    run = run_of(layer_of(kind))
    run.forward(0)
    kept = run.layer.buffers["carried.state"].copy()
    kept[1] = 0
    run.forward(1, {"first": np.array([False, True, False])})
    x = run.x[:, STEPS : 2 * STEPS]
    np.testing.assert_array_equal(run.outputs[1], run.layer.continued(x, kept)[0])


@each_kind
def test_without_context_windows_follow_each_other(kind: Kind) -> None:
    layer, run = layer_of(kind), run_of(layer_of(kind))
    for k in range(3):
        run.forward(k)
        y = layer.forward(run.x[:, k * STEPS : (k + 1) * STEPS], {})
        np.testing.assert_array_equal(y, run.outputs[k])


@each_kind
def test_evaluation_leaves_the_state_of_training_alone(kind: Kind) -> None:
    layer = layer_of(kind)
    run = run_of(layer)
    run.forward(0)
    before = {name: array.copy() for name, array in layer.buffers.items()}
    layer.evaluate(numbers(STREAMS + 2, LENGTH, INPUTS))
    for name, array in before.items():
        np.testing.assert_array_equal(layer.buffers[name], array)


@each_kind
def test_another_number_of_streams_is_taken_where_all_sequences_begin(kind: Kind) -> None:
    layer = layer_of(kind)
    layer.forward(numbers(STREAMS, STEPS, INPUTS), {})
    fewer = numbers(STREAMS - 1, STEPS, INPUTS)
    with pytest.raises(DataError, match="carries the state of 3 streams and was given 2"):
        layer.forward(fewer, {})
    y = layer.forward(fewer, {"context": {"first": np.ones(STREAMS - 1, bool)}})
    np.testing.assert_array_equal(y, layer.evaluate(fewer))


@each_kind
def test_a_stream_that_overflowed_comes_back_with_the_next_window(kind: Kind) -> None:
    layer = layer_of(kind)
    x = numbers(STREAMS, STEPS, INPUTS).copy()
    x[1, 2, 0] = np.nan
    assert np.isnan(layer.forward(x, {})).any()
    y = layer.forward(numbers(STREAMS, STEPS, INPUTS), {})
    assert np.isfinite(y).all()


@each_kind
def test_windows_out_of_order_are_refused(kind: Kind) -> None:
    layer = layer_of(kind)
    x = numbers(STREAMS, STEPS, INPUTS)
    layer.forward(x, {"batch": 4})
    with pytest.raises(DataError, match="given batch 4 after batch 4: windows come once"):
        layer.forward(x, {"batch": 4})
    layer.forward(x, {"batch": 7})


@each_kind
def test_flags_of_another_shape_are_refused(kind: Kind) -> None:
    context = {"first": np.ones((STREAMS, 1), bool)}
    with pytest.raises(DataError, match=r"'first' has shape \(3, 1\), expected \(3,\)"):
        layer_of(kind).forward(numbers(STREAMS, STEPS, INPUTS), {"context": context})


# --- slots ---------------------------------------------------------------------------------------


@each_kind
def test_windows_in_flight_do_not_touch_each_other(kind: Kind) -> None:
    in_turn, ahead = run_of(layer_of(kind)), run_of(layer_of(kind))
    expected = in_turn.all()
    for k in range(3):
        ahead.forward(k)
    found = np.concatenate([ahead.backward(k) for k in range(3)], axis=1)
    np.testing.assert_array_equal(found, expected)
    for name, grad in in_turn.layer.grads.items():
        np.testing.assert_array_equal(ahead.layer.grads[name], grad)


@each_kind
def test_a_second_backward_adds_the_same_and_leaves_the_first_gradient_alone(kind: Kind) -> None:
    run = run_of(layer_of(kind))
    run.forward(0)
    first = run.backward(0)
    kept = first.copy()
    once = {name: grad.copy() for name, grad in run.layer.grads.items()}
    second = run.backward(0)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, kept)
    assert not np.shares_memory(first, second)
    for name, grad in run.layer.grads.items():
        np.testing.assert_allclose(grad, 2 * once[name], rtol=1e-14)


@each_kind
def test_without_learn_gradients_stay_and_without_send_nothing_is_returned(kind: Kind) -> None:
    run = run_of(layer_of(kind))
    run.forward(0)
    run.backward(0, learn=False)
    assert run.layer.fresh
    grad_y = np.ascontiguousarray(run.grad_y[:, :STEPS])
    assert run.layer.backward(grad_y, run.slots[0], learn=False, send=False) is None
    assert run.layer.backward(grad_y, run.slots[0], learn=True, send=False) is None
    assert not run.layer.fresh


@each_kind
def test_a_slot_is_used_again_without_allocating(kind: Kind) -> None:
    layer = layer_of(kind)
    slot: dict[str, Any] = {}
    memory = []
    for key in range(2):
        y = layer.forward(numbers(STREAMS, STEPS, INPUTS, key=key), slot)
        memory.append((y, layer.backward(np.ones_like(y), slot, learn=True, send=True)))
    for first, second in zip(*memory, strict=True):
        assert first is not None and second is not None
        assert np.shares_memory(first, second)


@each_kind
def test_float32_stays_float32(kind: Kind) -> None:
    run = run_of(layer_of(kind, "float32"), "float32")
    exact = run_of(layer_of(kind))
    found, expected = run.all(), exact.all()
    arrays = [found, *run.outputs, *run.layer.grads.values(), run.layer.buffers["carried.state"]]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    assert found.flags.c_contiguous and run.outputs[0].flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# --- options -------------------------------------------------------------------------------------


@each_kind
def test_weights_start_as_the_streams_and_init_say(kind: Kind) -> None:
    layer = kind(UNITS)
    assert layer.build((STEPS, INPUTS), np.dtype("float64"), layer_streams(3, "a")) == (
        STEPS,
        UNITS,
    )
    again = kind(UNITS)
    again.build((STEPS, INPUTS), np.dtype("float64"), layer_streams(3, "a"))
    for name in ("weight_ih", "weight_hh"):
        np.testing.assert_array_equal(layer.params[name], again.params[name])
        assert 0 < np.abs(layer.params[name]).max() <= 1 / np.sqrt(UNITS)
    zero = kind(UNITS, init="zeros")
    zero.build((STEPS, INPUTS), np.dtype("float64"), layer_streams(3, "a"))
    assert not zero.params["weight_hh"].any()


@each_kind
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units 0: expected a positive whole number"),
        ({"units": 3, "bias": 1}, "bias 1: expected true or false"),
        ({"units": 3, "init": "big"}, "unknown init 'big'"),
        ({"units": 3, "future": {"lambda": 2}}, "lambda 2: expected a number from 0 to 1"),
        ({"units": 3, "future": {"lamda": 1}}, "no option 'lamda': its options are labels, lambda"),
        ({"units": 3, "future": {"labels": -1}}, "labels -1: expected a whole number"),
        ({"units": 3, "future": {"optimizer": "sgd"}}, "optimizer 'sgd': expected adam or nlms"),
        ({"units": 3, "future": {"cell": 0}}, "cell 0: expected true or false"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    kind: Kind, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**options)


@each_kind
def test_inputs_that_are_no_windows_are_refused(kind: Kind) -> None:
    with pytest.raises(ConfigError, match=r"windows of shape \(T, D\), steps and inputs, not"):
        kind(3).output_shape((4,))
