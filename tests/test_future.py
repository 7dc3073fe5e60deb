"""The generator at a window's end: its targets, and what the layer uses of it."""

from __future__ import annotations

import numpy as np
import pytest
from futures import STEPS, WINDOWS, Kind, each_kind, gradient_of_window, predicted, run_of, states
from gradcheck import numeric_gradient
from windows import STREAMS, UNITS, Run, built, numbers, whole

from asyncdni.nn.layers.recurrent import Lstm

# --- targets -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("cell", [True, False])
def test_the_bootstrapped_target_is_the_gradient_at_the_next_start(
    kind: Kind, scale: float, cell: bool
) -> None:
    """Of the next window's loss and of its own predicted future, whatever the layer trusts."""
    run = run_of(kind, untaught=True, scale=scale, cell=cell)
    run.all()
    ends = states(run)
    assert len(run.fits) == WINDOWS - 1
    for k, (inputs, target) in enumerate(run.fits):
        np.testing.assert_allclose(inputs[:, :-1], ends[k], rtol=1e-12)
        future = predicted(run, ends[k + 1]) * (k + 1 < WINDOWS - 1)
        expected = gradient_of_window(run, k + 1, ends[k], future)
        np.testing.assert_allclose(target, expected, rtol=0, atol=1e-8)


@each_kind
def test_at_lambda_1_the_target_is_the_true_gradient_of_the_rest_of_the_sequence(
    kind: Kind,
) -> None:
    run = run_of(kind, **{"lambda": 1.0})
    run.all()
    ends = states(run)
    assert len(run.fits) == WINDOWS
    assert not run.fits[0][1].any()
    for k in range(WINDOWS - 1):
        at = ends[k].copy()
        rest = slice((k + 1) * STEPS, None)

        def value(at: np.ndarray = at, rest: slice = rest) -> float:
            return float(np.vdot(run.layer.continued(run.x[:, rest], at)[0], run.grad_y[:, rest]))

        inputs, target = run.fits[WINDOWS - 1 - k]
        np.testing.assert_allclose(inputs[:, :-1], ends[k], rtol=1e-12)
        np.testing.assert_allclose(target, numeric_gradient(value, at), rtol=0, atol=1e-8)


@each_kind
def test_between_the_target_is_the_lambda_return(kind: Kind) -> None:
    run = run_of(kind, untaught=True, **{"lambda": 0.7})
    run.all()
    ends = states(run)
    after = np.zeros_like(ends[-1])
    future = after
    for k in range(WINDOWS - 1, 0, -1):
        after = gradient_of_window(run, k, ends[k - 1], 0.3 * future + 0.7 * after)
        future = predicted(run, ends[k - 1])
        np.testing.assert_allclose(run.fits[WINDOWS - k][1], after, rtol=0, atol=1e-8)


@each_kind
def test_a_sweep_in_pieces_is_bootstrapped_where_a_piece_ends(kind: Kind) -> None:
    """Three windows a piece; the newest of one is the oldest of the next."""
    run = run_of(kind, untaught=True, windows=3, **{"lambda": 1.0})
    run.all()
    ends = states(run)
    at_1 = gradient_of_window(run, 2, ends[1], predicted(run, ends[2]))
    at_0 = gradient_of_window(run, 1, ends[0], at_1)
    at_2 = gradient_of_window(run, 3, ends[2], np.zeros_like(ends[2]))
    found = [target for _, target in run.fits]
    assert len(found) == 4
    for target, expected in zip(found, (at_1, at_0, np.zeros_like(at_0), at_2), strict=True):
        np.testing.assert_allclose(target, expected, rtol=0, atol=1e-8)


@each_kind
@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_a_stream_whose_sequence_ends_has_no_future(kind: Kind, lambda_: float) -> None:
    """Stream 1 ends with window 1 and begins anew with window 2, while the others go on."""
    one = np.array([False, True, False])
    context = {1: {"last": one}, 2: {"first": one}}
    run = run_of(kind, untaught=True, **{"lambda": lambda_})
    found = run.all(context)
    targets = [target for _, target in run.fits]
    order = [0, 1, 2] if lambda_ == 0 else [3, 2, 1, 0]
    target = targets[order.index(1)]
    assert not target[1].any() and target[0].all() and target[2].all()

    alone = run_of(kind, untaught=True, **{"lambda": lambda_})
    alone.x, alone.grad_y = run.x[1:2, : 2 * STEPS], run.grad_y[1:2, : 2 * STEPS]
    for k in range(2):
        alone.forward(k)
        grad_x = alone.backward(k)
        cut = slice(k * STEPS, (k + 1) * STEPS)
        np.testing.assert_allclose(found[1:2, cut], grad_x, rtol=1e-12)


# --- what the layer uses of it -------------------------------------------------------------------


@each_kind
def test_with_the_true_future_windows_have_the_gradients_of_the_whole_sequence(kind: Kind) -> None:
    """λ = 1 targets, used as predictions, make truncated backpropagation exact."""
    teacher = run_of(kind, untaught=True, **{"lambda": 1.0})
    teacher.all()
    truth = [target for _, target in reversed(teacher.fits)]
    run = run_of(kind, untaught=True)
    made = run.layer.future
    assert made is not None
    made.predict = lambda slot: truth[slot["window"]]  # type: ignore[method-assign]
    found = run.all()
    reference = whole(kind(UNITS), run.x, run.grad_y)
    expected = reference.layer.backward(run.grad_y, reference.slots[0], learn=False, send=True)
    assert expected is not None
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    for name, grad in reference.layer.grads.items():
        np.testing.assert_allclose(run.layer.grads[name], grad, rtol=1e-12, atol=1e-13)


def test_scale_and_cell_say_what_the_update_takes_of_a_prediction() -> None:
    """The gradient of the inputs is affine in what is taken: half of it moves it half as far."""
    none, full, half = (run_of(Lstm, untaught=True, scale=scale).all() for scale in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(half, (none + full) / 2, rtol=1e-12)
    without = run_of(Lstm, untaught=True, cell=False)
    used = without.layer.future
    assert used is not None
    taken = used.trusted(numbers(STREAMS, 2 * UNITS))
    np.testing.assert_array_equal(taken[:, :UNITS], numbers(STREAMS, 2 * UNITS)[:, :UNITS])
    assert not taken[:, UNITS:].any()
    assert not np.allclose(without.all(), full)


@each_kind
def test_a_zero_generator_is_truncated_backpropagation(kind: Kind) -> None:
    run = run_of(kind, untaught=True)
    run.layer.buffers["future.weight"][...] = 0
    plain = Run(built(kind(UNITS), STEPS), run.x, run.grad_y, STEPS)
    np.testing.assert_array_equal(run.all(), plain.all())


@each_kind
def test_corrections_that_come_late_do_not_add_the_future_again(kind: Kind) -> None:
    run = run_of(kind)
    run.forward(0)
    run.backward(0)
    run.slots[0]["own_loss"] = False
    plain = Run(built(kind(UNITS), STEPS), run.x, run.grad_y, STEPS)
    plain.forward(0)
    np.testing.assert_array_equal(run.backward(0), plain.backward(0))
