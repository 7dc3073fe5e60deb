"""Which weights a batch goes through: stashed, current, moved ahead; rates by staleness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asyncdni import experiment
from asyncdni.data.meta import Meta
from asyncdni.nn.base import Array
from asyncdni.plan.build import make_design, make_stage
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage

META = Meta((4,), "classes", 2, 64, 8)
SAMPLES = 5


def middle(layers: list[Any] | None = None, **options: Any) -> NumpyStage:
    """The second of three stages: 3 in, 3 out, float64, plain gradient descent with rate 1."""
    tables: dict[str, Any] = {
        "data": {"name": "npz", "path": "nowhere.npz", "batch_size": 8},
        "stages": [
            {"name": "low", "layers": [{"dense": 3}]},
            {"name": "mid", "layers": layers or [{"dense": 3}, "tanh", {"dense": 3}]},
            {"name": "top", "layers": [{"dense": 2}], "loss": "cross_entropy"},
        ],
        "schedule": {"name": "delayed", **options},
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "run": {"dtype": "float64"},
    }
    design = make_design(experiment.parse(tables), META)
    return make_stage(design, design.plan.groups[1])


def inputs(batch: int) -> Array:
    return np.random.default_rng(batch).normal(size=(SAMPLES, 3))


def grad_of(batch: int) -> Array:
    return np.random.default_rng(100 + batch).normal(size=(SAMPLES, 3))


def forward(stage: NumpyStage, batch: int) -> Array:
    y = stage.forward(batch, {"low": inputs(batch)}, {}).activation
    assert y is not None
    return y.copy()


def backward(stage: NumpyStage, batch: int, *, learn: bool = True) -> Array:
    given = {"top": grad_of(batch)}
    sent = stage.backward(batch, given, source=Source.TRUE, learn=learn, send=True)
    return sent["low"]["mid"].copy()


def weights(stage: NumpyStage) -> dict[str, Array]:
    return {name: array.copy() for name, array in stage.state()["mid"].items()}


def through(state: dict[str, Array], x: Array) -> Array:
    """What the stage computes with these weights."""
    hidden = np.tanh(x @ state["0.weight"].T + state["0.bias"])
    return hidden @ state["2.weight"].T + state["2.bias"]


def slope(state: dict[str, Array], batch: int, name: str, step: float = 1e-6) -> Array:
    """The derivative of sum(grad * y) by one array, by central differences."""
    found = np.zeros_like(state[name])
    for at in np.ndindex(found.shape):
        values = []
        for sign in (1, -1):
            moved = {key: array.copy() for key, array in state.items()}
            moved[name][at] += sign * step
            values.append(float(np.sum(grad_of(batch) * through(moved, inputs(batch)))))
        found[at] = (values[0] - values[1]) / (2 * step)
    return found


def change(stage: NumpyStage, batch: int, *, halves: bool) -> dict[str, Array]:
    """What an update on the batch moves the weights by."""
    before = weights(stage)
    backward(stage, batch, learn=not halves)
    if halves:
        stage.learn(batch)
    stage.update()
    stage.release(batch, lambda: True)
    return {name: before[name] - array for name, array in weights(stage).items()}


@pytest.mark.parametrize("halves", [False, True])
def test_a_stashed_backward_is_the_derivative_at_the_weights_of_the_forward(halves: bool) -> None:
    """Three batches forwarded at two versions, each pushed back after further updates."""
    stage = middle(split_backward=halves)
    seen = {}
    for batch in (0, 1):
        seen[batch] = weights(stage)
        forward(stage, batch)
    change(stage, 0, halves=halves)
    seen[2] = weights(stage)
    forward(stage, 2)
    for batch in (1, 2):
        moved = change(stage, batch, halves=halves)
        for name, array in moved.items():
            expected = slope(seen[batch], batch, name) / SAMPLES
            np.testing.assert_allclose(array, expected, atol=1e-8)


def test_the_gradient_that_is_sent_goes_through_the_weights_of_the_forward() -> None:
    stage = middle([{"dense": 3}])
    forward(stage, 0)
    forward(stage, 1)
    old = weights(stage)["0.weight"]
    change(stage, 0, halves=False)
    assert not np.allclose(old, weights(stage)["0.weight"])
    np.testing.assert_array_equal(backward(stage, 1), grad_of(1) @ old)


def test_with_current_weights_it_goes_through_todays() -> None:
    stage = middle([{"dense": 3}], weights="current")
    forward(stage, 0)
    forward(stage, 1)
    change(stage, 0, halves=False)
    today = weights(stage)["0.weight"]
    np.testing.assert_array_equal(backward(stage, 1), grad_of(1) @ today)


def test_after_a_backward_through_old_weights_forwards_go_through_todays() -> None:
    stage = middle()
    forward(stage, 0)
    forward(stage, 1)
    change(stage, 0, halves=False)
    backward(stage, 1)
    np.testing.assert_allclose(forward(stage, 2), through(weights(stage), inputs(2)))


def test_no_copy_is_kept_of_weights_that_no_batch_in_flight_was_forwarded_with() -> None:
    """One batch at a time: each is released before the update it led to is over."""
    stage = middle()
    (block,) = stage._blocks.values()
    versions = block.versions
    assert versions is not None
    for batch in range(4):
        forward(stage, batch)
        forward(stage, batch + 10)
        held = [versions._current]
        change(stage, batch, halves=False)
        assert held[0].vector is not None and held[0].users == 1  # the other one is in flight
        stage.release(batch + 10, lambda: True)
        assert held[0].users == 0
    assert versions._current.vector is None


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_looking_ahead_forwards_have_the_weights_of_error_feedback(factor: float) -> None:
    """With u, the step of the optimizer, the forwards' weights are x - u - factor * (u - the step
    before): they are moved on from those of the updates by `factor` times the last change."""
    stage = middle(look_ahead=factor)
    ahead, step = weights(stage), {name: np.zeros_like(one) for name, one in weights(stage).items()}
    np.testing.assert_allclose(forward(stage, 0), through(ahead, inputs(0)))
    forward(stage, 1)
    for batch in range(3):
        before, last = weights(stage), step
        change(stage, batch, halves=False)
        now = weights(stage)
        step = {name: before[name] - now[name] for name in now}
        ahead = {
            name: ahead[name] - step[name] - factor * (step[name] - last[name]) for name in now
        }
        np.testing.assert_allclose(forward(stage, batch + 2), through(ahead, inputs(batch + 2)))


def test_looking_ahead_moves_forwards_alone() -> None:
    """Weights that are saved, or tested with, are those of the updates."""
    stage = middle(look_ahead=3.0)
    forward(stage, 0)
    change(stage, 0, halves=False)
    found = stage.evaluate({"low": inputs(5)}, {}).activation
    assert found is not None
    np.testing.assert_allclose(found, through(weights(stage), inputs(5)))


def test_rates_are_divided_by_the_staleness_less_and_less_so() -> None:
    """8 updates an epoch, annealed over 2: update k of staleness s has rate s ** -(1 - k / 16)."""
    plain, annealed = middle([{"dense": 3}]), middle([{"dense": 3}], anneal_epochs=2.0)
    for stage in (plain, annealed):
        for batch in range(4):
            forward(stage, batch)
    for k in range(20):
        moved = [change(stage, k, halves=False)["0.bias"] for stage in (plain, annealed)]
        for stage in (plain, annealed):
            forward(stage, k + 4)
        staleness = max(1, min(k, 3))
        factor = staleness ** -max(0.0, 1 - k / 16)
        np.testing.assert_allclose(moved[1], factor * moved[0], rtol=1e-9)
