"""How the generator at a window's end is taught, by labels too, and what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from futures import (
    STEPS,
    WINDOWS,
    Kind,
    each_kind,
    gradient_of_window,
    parts,
    predicted,
    run_of,
    states,
)
from windows import INPUTS, STREAMS, UNITS, numbers

from asyncdni.errors import DataError
from asyncdni.nn.layers.future import Auxiliary

# --- teaching ------------------------------------------------------------------------------------


@each_kind
def test_a_batch_teaches_once_however_often_it_is_pushed_back(kind: Kind) -> None:
    run = run_of(kind)
    for k in range(3):
        run.forward(k)
        run.backward(k, learn=False)
        first = run.backward(k)
        np.testing.assert_array_equal(run.backward(k), first)
        assert len(run.fits) == k


@each_kind
@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_windows_in_flight_teach_the_same(kind: Kind, lambda_: float) -> None:
    options = {"lambda": lambda_}
    in_turn, ahead = run_of(kind, **options), run_of(kind, **options)
    expected = in_turn.all()
    for k in range(WINDOWS):
        ahead.forward(k)
    found = np.concatenate([ahead.backward(k) for k in range(WINDOWS)], axis=1)
    np.testing.assert_array_equal(found, expected)
    for name, array in in_turn.layer.buffers.items():
        np.testing.assert_array_equal(ahead.layer.buffers[name], array)


@each_kind
@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_a_window_that_was_left_out_teaches_nothing_across_the_gap(
    kind: Kind, lambda_: float
) -> None:
    run = run_of(kind, **{"lambda": lambda_})
    nothing = {"last": np.zeros(STREAMS, bool)}
    for k, batch in enumerate((0, 2)):
        run.forward(k, nothing, batch)
        run.backward(k)
    assert run.fits == []


@each_kind
@pytest.mark.parametrize(("optimizer", "rate"), [("nlms", 0.5), ("adam", 0.05)])
@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_what_never_changes_is_learnt(
    kind: Kind, optimizer: str, rate: float, lambda_: float
) -> None:
    """One stream of two windows over and over, without updates: the prediction goes to the true
    gradient, which a linear map can give for so few states."""
    run = run_of(kind, optimizer=optimizer, learning_rate=rate, **{"lambda": lambda_})
    run.x, run.grad_y = run.x[:1, : 2 * STEPS], run.grad_y[:1, : 2 * STEPS]
    truth = gradient_of_window(run, 1, states(run)[0][:1], np.zeros((1, parts(run))))
    for turn in range(300):
        for k in range(2):
            last = np.array([k == 1])
            run.forward(k, {"last": last}, 2 * turn + k)
            run.backward(k)
    np.testing.assert_allclose(run.slots[0]["predicted"], truth, rtol=0, atol=0.02)
    assert np.abs(truth).max() > 0.2


@each_kind
def test_a_gradient_that_is_not_finite_teaches_nothing(kind: Kind) -> None:
    run = run_of(kind, optimizer="adam")
    run.grad_y = run.grad_y.copy()
    run.grad_y[0, STEPS] = np.nan
    for k in range(2):
        run.forward(k)
        run.backward(k)
    assert len(run.fits) == 1
    assert np.isnan(run.fits[0][1]).any()
    for name, array in run.layer.buffers.items():
        if name.startswith("future."):
            assert np.isfinite(array).all()


# --- labels --------------------------------------------------------------------------------------


@each_kind
def test_coming_targets_enter_the_prediction(kind: Kind) -> None:
    run = run_of(kind, labels=4)
    coming = numbers(STREAMS, 2, 2, key=9)
    run.forward(0, {"coming": coming})
    seen = run.slots[0]["seen"]
    np.testing.assert_array_equal(seen[:, -5:-1], coming.reshape(STREAMS, 4))
    assert run.layer.buffers["future.weight"].shape == (parts(run), parts(run) + 5)
    run.backward(0)
    expected = seen @ run.layer.buffers["future.weight"].T
    np.testing.assert_allclose(run.slots[0]["predicted"], expected)


@each_kind
def test_coming_targets_that_are_missing_or_of_another_size_are_refused(kind: Kind) -> None:
    run = run_of(kind, labels=4)
    with pytest.raises(DataError, match="sees 4 coming targets, but the data has none"):
        run.forward(0)
    run = run_of(kind, labels=4)
    with pytest.raises(DataError, match=r"'coming' has shape \(3, 5\): expected 3 streams of 4"):
        run.forward(0, {"coming": numbers(STREAMS, 5)})


# --- checkpoints ---------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambda": 0.5, "windows": 3},
        {"optimizer": "adam", "auxiliary": 0.1},
    ],
)
def test_buffers_are_all_that_training_goes_on_with(kind: Kind, options: dict[str, Any]) -> None:
    """In the middle of a sequence, into a new layer: the same numbers to the last bit."""
    run, other = run_of(kind, **options), run_of(kind, **options)
    for k in range(2):
        run.forward(k)
        run.backward(k)
    other.layer.start(STREAMS)
    assert other.layer.buffers.keys() == run.layer.buffers.keys()
    for name, array in run.layer.buffers.items():
        other.layer.buffers[name][...] = array
    for k in range(2, WINDOWS):
        run.forward(k)
        other.forward(k)
        np.testing.assert_array_equal(other.outputs[-1], run.outputs[k])
        np.testing.assert_array_equal(other.backward(k), run.backward(k))
    for name, array in run.layer.buffers.items():
        np.testing.assert_array_equal(other.layer.buffers[name], array)


@each_kind
def test_a_window_of_another_length_is_refused_where_windows_are_kept(kind: Kind) -> None:
    run = run_of(kind, **{"lambda": 1.0})
    slot: dict[str, Any] = {}
    y = run.layer.forward(numbers(STREAMS, STEPS - 1, INPUTS), slot)
    with pytest.raises(DataError, match="was given a window of another length"):
        run.layer.backward(np.ones_like(y), slot, learn=True, send=False)


# --- the auxiliary task --------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(("lambda_", "place", "window"), [(0.0, 0, 0), (1.0, 1, WINDOWS - 2)])
def test_the_auxiliary_task_adds_its_gradient_to_the_targets(
    kind: Kind, lambda_: float, place: int, window: int
) -> None:
    """Of w |A s(k) - ĝ(k+1)|² / 2 by s(k), in the first fit that has a next window."""
    plain = run_of(kind, untaught=True, **{"lambda": lambda_})
    run = run_of(kind, untaught=True, auxiliary=0.5, **{"lambda": lambda_})
    weight = run.layer.buffers["future.auxiliary.weight"]
    weight[...] = 0.3 * numbers(*weight.shape, key=4)
    linear, shift = weight[:, :-1].copy(), weight[:, -1].copy()
    plain.all()
    run.all()
    ends = states(run)
    foretold = predicted(run, ends[window + 1]) * (window + 1 < WINDOWS - 1)
    expected = 0.5 * (ends[window] @ linear.T + shift - foretold) @ linear
    added = run.fits[place][1] - plain.fits[place][1]
    np.testing.assert_allclose(added, expected, rtol=1e-9, atol=1e-12)


def test_the_auxiliary_map_learns_to_foretell_where_sequences_go_on() -> None:
    task = Auxiliary(1.0, 0.02)
    task.build(UNITS, np.dtype("float64"))
    state, foretold = numbers(STREAMS, UNITS), numbers(STREAMS, UNITS, key=1)
    goes_on = np.array([True, False, True])
    for _ in range(400):
        grad = task.gradient(state, foretold, goes_on, 1.0)
        assert not grad[1].any()
    found = state @ task.buffers["weight"][:, :-1].T + task.buffers["weight"][:, -1]
    np.testing.assert_allclose(found[goes_on], foretold[goes_on], atol=0.02)
    assert np.abs(found[1] - foretold[1]).max() > 0.1
