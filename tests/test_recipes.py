"""The recipes in `launch/`, each on a small setting, locked and decoupled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni import experiment
from asyncdni.data import describe, open_batches
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.plan.build import Design, make_design, make_whole_stage

LAUNCH = Path(__file__).parent.parent / "launch"
SCHEDULES = [pytest.param("locked", marks=pytest.mark.long), "synthetic"]

TEXT = "to be, or not to be: that is the question: " * 60


def recipe(name: str, *changes: str, schedule: str | None = None) -> Design:
    chosen = experiment.load(LAUNCH / f"{name}.toml", list(changes), schedule=schedule)
    return make_design(chosen, describe(chosen.data))


def last(design: Design) -> Any:
    return simulate(design, seed=0, maths=True, check=False).history[-1]


def untrained(name: str, *changes: str) -> Any:
    return last(recipe(name, *changes, "run.epochs=0", schedule="locked"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_digits_0_and_1_are_told_apart(schedule: str) -> None:
    found = last(recipe("decoupled-rnn", "run.epochs=5", schedule=schedule))
    assert found["accuracy"] >= 0.95  # 19 of 20


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_recurrence_unrolled_over_workers_tells_digits_apart(schedule: str) -> None:
    """Both time stamps, each in a worker, end with the same weights."""
    design = recipe("unrolled-rnn", "run.epochs=3", schedule=schedule)
    assert [len(group.members) for group in design.plan.groups] == [3, 2, 1]
    result = simulate(design, seed=0, maths=True)
    assert result.history[-1]["accuracy"] >= 0.95
    first, second = (result.weights[name]["0.weight"] for name in ("stamp1", "stamp2"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.long
def test_a_small_convolutional_network_learns_digits() -> None:
    small = ["data.name=digits", "data.validation=8000", "data.batch_size=100", "run.epochs=1"]
    design = recipe("mnist-conv", *small, schedule="synthetic")
    assert design.network.node("conv2").output_shape == (16, 7, 7)
    assert last(design)["accuracy"] > 0.7


@pytest.mark.long
def test_an_autoencoder_makes_digits_again() -> None:
    small = ["data.validation=9000", "run.epochs=16", "run.evaluate_every=16"]
    small += ["optimizer.learning_rate=2e-3"]
    before = untrained("vae", *small)["loss"]
    assert before > 400
    # Every image's best without a code, its pixels' means over the data, costs some 206 nats.
    small += ["schedule.generator.kind='error'", "schedule.generator.rate=0.3"]
    assert last(recipe("vae", *small, schedule="synthetic"))["loss"] < 200


def test_the_divergence_of_the_codes_is_a_loss_of_its_own_stage() -> None:
    design = recipe("vae")
    whole = make_whole_stage(design)
    context = open_batches(design.experiment.data, 0).read(0, 0, 100, 0, "float32")
    scores = whole.forward(0, {"data": context.pop("h")}, context).scores
    assert [score.stage for score in scores] == ["code", "decoder"]
    assert scores[0].loss > 0
    evaluated = whole.evaluate({"data": context["y"]}, context).scores
    assert [score.stage for score in evaluated] == ["code", "decoder"]
    assert evaluated[0].loss > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_next_point_of_a_circle_is_told(schedule: str) -> None:
    small = ["run.epochs=10", "run.evaluate_every=10"]
    before = untrained("trigonometry", *small)["loss"]
    assert last(recipe("trigonometry", *small, schedule=schedule))["loss"] < before / 10


@pytest.mark.long
def test_bits_are_recalled_across_windows() -> None:
    """One bit, shown in one window and asked for in the next."""
    small = ["data.length=1", "data.grow=0", "data.sequences=60", "run.epochs=8"]
    found = last(recipe("copy", *small, "run.evaluate_every=8"))
    assert found["accuracy"] > 0.9


@pytest.mark.long
def test_the_next_character_of_a_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    classes = len(set(TEXT))
    tables = experiment.tables(experiment.load(LAUNCH / "shakespeare.toml", []))
    tables["data"] |= {"path": str(path), "batch_size": 8}
    tables["stages"][2]["layers"] = [{"dense": classes}]
    tables["run"] |= {"epochs": 8, "evaluate_every": 8}
    tables["optimizer"]["learning_rate"] = 5e-3
    tables["schedule"] = {"name": "synthetic"}
    chosen = experiment.parse(tables)
    found = last(make_design(chosen, describe(chosen.data)))
    assert found["loss"] < np.log(classes) / 2
