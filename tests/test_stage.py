"""The NumPy stage on its own: what an update is divided by, and when a slot is used again."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from test_fit_every import Fixed

from asyncdni import experiment
from asyncdni.data.meta import Meta
from asyncdni.errors import NumericalError, RemoteProtocolError
from asyncdni.plan import build as models
from asyncdni.plan.build import make_design, make_stage
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage

WIDTH = 3
TABLES: dict[str, Any] = {
    "data": {"name": "npz", "path": "nowhere.npz", "batch_size": 8},
    "stages": [
        {"name": "low", "layers": [{"dense": WIDTH}]},
        {"name": "top", "layers": [{"dense": 2}], "loss": "cross_entropy"},
    ],
    "schedule": {"name": "synthetic", "generator": {"kind": "zero"}, "correct": True},
    "optimizer": {"name": "sgd", "learning_rate": 1.0},
    "run": {"dtype": "float64"},
}
META = Meta((4,), "classes", 2, 64, 8)


def low(schedule: dict[str, Any] | None = None, **optimizer: Any) -> NumpyStage:
    tables = {
        **TABLES,
        "schedule": schedule or TABLES["schedule"],
        "optimizer": {**TABLES["optimizer"], **optimizer},
    }
    design = make_design(experiment.parse(tables), META)
    return make_stage(design, design.plan.groups[0])


def inputs(samples: int, seed: int = 0) -> dict[str, Any]:
    return {"data": np.random.default_rng(seed).normal(size=(samples, 4))}


def start(stage: NumpyStage, batch: int, samples: int) -> None:
    """Forward and predict (zero)."""
    stage.forward(batch, inputs(samples, batch), {"y": np.zeros(samples, np.int64)})
    stage.predict(batch)


def learn(stage: NumpyStage, batch: int) -> None:
    stage.backward(batch, {}, source=Source.SYNTHETIC, learn=True, send=False)
    stage.update()


def correct(stage: NumpyStage, batch: int, samples: int) -> None:
    gradients = {"top": np.ones((samples, WIDTH))}
    stage.backward(batch, gradients, source=Source.DIFFERENCE, learn=True, send=False)


def bias(stage: NumpyStage) -> np.ndarray:
    """Its gradient of one sample is the gradient of the output: here 1."""
    return np.array(stage.state()["low"]["0.bias"])


@pytest.mark.parametrize("following", [8, 2])
def test_a_late_correction_moves_weights_alike_before_a_whole_and_a_short_batch(
    following: int,
) -> None:
    stage = low()
    start(stage, 0, 8)
    learn(stage, 0)
    correct(stage, 0, 8)
    start(stage, 1, following)
    before = bias(stage)
    learn(stage, 1)
    assert np.allclose(bias(stage) - before, -1.0)


@pytest.mark.parametrize("samples", [8, 2])
def test_corrections_that_no_batch_takes_along_are_each_a_mean_over_their_batch(
    samples: int,
) -> None:
    stage = low()
    for batch in range(3):
        start(stage, batch, samples)
        learn(stage, batch)
    before = bias(stage)
    for batch in range(3):
        correct(stage, batch, samples)
    stage.update()
    assert np.allclose(bias(stage) - before, -3.0)


def test_a_mix_learns_its_share_of_a_true_gradient_late_as_a_mean_over_its_batch() -> None:
    """The generator predicts zero, so all that moves is a quarter of a gradient of ones."""
    stage = low({"name": "synthetic", "generator": {"kind": "zero"}, "mix": 0.25})
    start(stage, 0, 8)
    before = bias(stage)
    learn(stage, 0)
    assert np.array_equal(bias(stage), before)
    ones = {"top": np.ones((8, WIDTH))}
    stage.backward(0, ones, source=Source.SHARE, learn=True, send=False)
    start(stage, 1, 2)
    learn(stage, 1)
    assert np.allclose(bias(stage) - before, -0.25)


def test_a_mix_leaves_the_rest_to_the_synthetic_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "make_generator", lambda kind, **options: Fixed())
    moved = []
    for mix in (0.0, 0.25):
        stage = low({"name": "synthetic", "mix": mix})
        before = bias(stage)
        start(stage, 0, 8)
        learn(stage, 0)
        moved.append(bias(stage) - before)
    assert np.allclose(moved[1], 0.75 * moved[0]) and np.abs(moved[0]).max() > 0.1


def test_what_is_sent_up_of_a_mix_is_the_whole_true_gradient() -> None:
    """Only what this stage learns is shared out."""
    design = make_design(
        experiment.parse(
            {
                **TABLES,
                "stages": [{"name": "first", "layers": [{"dense": 4}]}, *TABLES["stages"]],
                "schedule": {"name": "synthetic", "mix": 0.25},
            }
        ),
        META,
    )
    stage = make_stage(design, design.plan.groups[1])
    stage.forward(0, {"first": inputs(8)["data"]}, {"y": np.zeros(8, np.int64)})
    ones = np.ones((8, WIDTH))
    sent = stage.backward(0, {"top": ones}, source=Source.TRUE, learn=False, send=True)
    assert np.allclose(sent["first"]["low"], ones @ stage.state()["low"]["0.weight"])


def test_a_slot_is_not_used_again_before_its_arrays_have_left() -> None:
    stage = low()
    first = stage.forward(0, inputs(8), {}).activation
    assert first is not None
    kept = first.copy()
    has_left = False
    stage.release(0, lambda: has_left)
    second = stage.forward(1, inputs(8, 1), {}).activation
    assert second is not None and not np.shares_memory(first, second)
    assert np.array_equal(first, kept)
    has_left = True
    third = stage.forward(2, inputs(8, 2), {}).activation
    assert third is not None and np.shares_memory(first, third)


def test_memory_of_many_batches_in_flight_is_given_back_once_they_are_through() -> None:
    """Fifty at once, then one at a time: the activations of most are gone."""
    stage = low()
    kept = []
    for batch in range(50):
        activation = stage.forward(batch, inputs(8), {"y": np.zeros(8, np.int64)}).activation
        assert activation is not None
        kept.append(weakref.ref(activation))
        del activation
    assert all(one() is not None for one in kept)
    for batch in range(50):
        stage.release(batch, lambda: True)
    assert sum(one() is not None for one in kept) <= 16


def test_a_gradient_of_another_shape_is_the_sender_s_fault() -> None:
    stage = low()
    start(stage, 0, 8)
    wrong = {"top": np.ones((8, WIDTH + 1))}
    with pytest.raises(RemoteProtocolError, match=r"low got a gradient .* from top, expected"):
        stage.backward(0, wrong, source=Source.TRUE, learn=True, send=False)


def test_an_activation_of_another_shape_is_the_sender_s_fault() -> None:
    with pytest.raises(RemoteProtocolError, match=r"low got float32 \(8, 4\) from data"):
        low().forward(0, {"data": np.ones((8, 4), np.float32)}, {})


def test_clipping_a_gradient_that_is_not_finite_names_stage_and_update() -> None:
    stage = low(clip_norm=1.0)
    start(stage, 0, 8)
    nan = {"top": np.full((8, WIDTH), np.nan)}
    stage.backward(0, nan, source=Source.TRUE, learn=True, send=False)
    with pytest.raises(NumericalError, match="stage low, update 0"):
        stage.update()
