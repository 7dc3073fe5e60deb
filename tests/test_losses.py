"""Losses: values, gradients against finite differences, and what targets are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from each import each
from gradcheck import assert_gradient

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.losses import LOSSES, make_loss
from asyncdni.nn.streams import stream

SAMPLES, OUTPUTS = 6, 4
every_loss = each("name", LOSSES)


def logits(samples: int = SAMPLES, dtype: str = "float64", key: int = 0) -> np.ndarray:
    rng = stream(0, "logits", "test", samples, key)
    return (3 * rng.normal(size=(samples, OUTPUTS))).astype(dtype)


def targets(name: str, samples: int = SAMPLES, key: int = 0) -> np.ndarray:
    rng = stream(0, "targets", "test", samples, key)
    if name == "cross_entropy":
        return rng.integers(0, OUTPUTS, samples)
    if name == "sigmoid_cross_entropy":
        return rng.uniform(size=(samples, OUTPUTS))
    return rng.normal(size=(samples, OUTPUTS))


@every_loss
def test_the_gradient_matches_finite_differences(name: str) -> None:
    loss, x, y, slot = make_loss(name), logits(), targets(name), {}
    loss.forward(x, y, slot)
    assert_gradient(loss.backward(slot), lambda: loss.forward(x, y, {})[0], x)


@every_loss
def test_the_error_is_the_gradient(name: str) -> None:
    loss, x, y, slot = make_loss(name), logits(), targets(name), {}
    loss.forward(x, y, slot)
    out = np.full_like(x, np.nan)
    assert loss.error(x, y, out) is out
    np.testing.assert_array_equal(out, loss.backward(slot))


@every_loss
def test_inputs_are_left_alone(name: str) -> None:
    loss, x, y = make_loss(name), logits(), targets(name)
    x.flags.writeable = y.flags.writeable = False
    loss.forward(x, y, {})
    loss.error(x, y, np.empty_like(x))
    np.testing.assert_array_equal(x, logits())
    np.testing.assert_array_equal(y, targets(name))


@every_loss
def test_losses_of_two_halves_add_up(name: str) -> None:
    loss, x, y = make_loss(name), logits(), targets(name)
    whole, parts = loss.forward(x, y, {}), [loss.forward(x[s], y[s], {}) for s in _HALVES]
    assert whole[0] == pytest.approx(sum(part[0] for part in parts))
    if whole[1] is not None:
        assert whole[1] == sum(part[1] or 0 for part in parts)


_HALVES = slice(0, 2), slice(2, SAMPLES)


@every_loss
def test_a_slot_takes_a_smaller_batch_after_a_larger_one(name: str) -> None:
    loss, slot, other = make_loss(name), {}, {}
    loss.forward(logits(), targets(name), slot)
    held = loss.backward(slot)
    small = logits(3), targets(name, 3)
    loss.forward(*small, slot)
    loss.forward(*small, other)
    assert loss.backward(slot).flags.c_contiguous
    assert np.shares_memory(loss.backward(slot), held)
    np.testing.assert_array_equal(loss.backward(slot), loss.backward(other))


@every_loss
def test_two_batches_in_flight_do_not_touch_each_other(name: str) -> None:
    loss, slots = make_loss(name), ({}, {})
    for key, slot in enumerate(slots):
        loss.forward(logits(key=key), targets(name, key=key), slot)
    for key, slot in enumerate(slots):
        expected = np.empty((SAMPLES, OUTPUTS))
        loss.error(logits(key=key), targets(name, key=key), expected)
        np.testing.assert_array_equal(loss.backward(slot), expected)


@every_loss
def test_float32_stays_float32(name: str) -> None:
    loss, slot, y = make_loss(name), {}, targets(name)
    if name != "cross_entropy":
        y = y.astype("float32")
    value, _ = loss.forward(logits(dtype="float32"), y, slot)
    assert loss.backward(slot).dtype == np.float32
    assert type(value) is float
    assert value == pytest.approx(loss.forward(logits(), targets(name), {})[0], rel=1e-5)


@each("name", ["cross_entropy", "sigmoid_cross_entropy"])
@each("dtype", ["float32", "float64"])
def test_huge_logits_do_not_overflow(name: str, dtype: str) -> None:
    x = np.array([[1e4, -1e4, 0.0, 1e4]], dtype)
    y = np.array([1]) if name == "cross_entropy" else np.array([[0.0, 1.0, 0.5, 1.0]])
    loss, slot = make_loss(name), {}
    value, _ = loss.forward(x, y, slot)
    assert value == pytest.approx(2e4 + math.log(2), rel=1e-6)  # of both, as it happens
    assert np.isfinite(loss.backward(slot)).all()


def test_cross_entropy_of_equal_logits_is_the_log_of_their_number() -> None:
    value, correct = make_loss("cross_entropy").forward(np.zeros((3, 4)), np.array([0, 1, 2]), {})
    assert value == pytest.approx(3 * math.log(4))
    assert correct == 1  # the first of equals is the answer


@each("dtype", ["uint8", "int32", "int64"])
def test_class_ids_may_be_of_any_integer_type(dtype: str) -> None:
    loss, y = make_loss("cross_entropy"), targets("cross_entropy")
    loss.check((OUTPUTS,), y.astype(dtype))
    assert loss.forward(logits(), y.astype(dtype), {}) == loss.forward(logits(), y, {})


def test_sigmoid_cross_entropy_counts_answers_output_by_output() -> None:
    x = np.array([[1.0, -1.0, 0.0], [2.0, 2.0, -2.0]])
    y = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert make_loss("sigmoid_cross_entropy").forward(x, y, {})[1] == 4


def test_mean_squared_error_is_averaged_over_outputs_and_has_no_right_answers() -> None:
    x, y = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 4.0]])
    assert make_loss("mse").forward(x, y, {}) == (pytest.approx((1 + 4 + 16) / 2), None)


@every_loss
def test_good_targets_pass_the_check_with_and_without_the_batch_axis(name: str) -> None:
    loss = make_loss(name)
    loss.check((OUTPUTS,), targets(name))
    loss.check((SAMPLES, OUTPUTS), targets(name))


def with_value(name: str, value: float) -> np.ndarray:
    y = targets(name)
    y[(1,) * y.ndim] = value
    return y


@each(
    "name, y, message",
    [
        ("cross_entropy", with_value("cross_entropy", 4), "class id 4 for 4 outputs.*0 to 3"),
        ("cross_entropy", with_value("cross_entropy", -1), "class id -1 for 4 outputs"),
        ("cross_entropy", np.zeros((SAMPLES, OUTPUTS), int), r"shape \(6, 4\).*one class id"),
        ("cross_entropy", np.zeros(SAMPLES - 1, int), r"shape \(5,\)"),
        ("cross_entropy", np.zeros(SAMPLES), "float64 targets.*integer class ids"),
        ("sigmoid_cross_entropy", np.full((SAMPLES, OUTPUTS), 1.5), "target of 1.5.*0 to 1"),
        ("sigmoid_cross_entropy", np.full((SAMPLES, OUTPUTS), -0.5), "target of -0.5"),
        ("sigmoid_cross_entropy", np.zeros(SAMPLES), r"shape \(6,\)"),
        ("sigmoid_cross_entropy", with_value("mse", np.nan), r"target of nan \(sample 1, output 1"),
        ("mse", with_value("mse", np.inf), "target of inf"),
        ("mse", np.zeros((SAMPLES, OUTPUTS + 1)), r"shape \(6, 5\) for outputs"),
        ("mse", np.full((SAMPLES, OUTPUTS), "a"), "expected numbers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name: str, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_loss(name).check((SAMPLES, OUTPUTS), y)


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'hinge'.*cross_entropy, sigmoid_cross_entropy, mse"):
        make_loss("hinge")
