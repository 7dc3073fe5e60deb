"""The benchmarks of recipes: they run on tiny settings, and their tables say what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarking import BENCHMARKS, module, run

from asyncdni import experiment

LAUNCH = BENCHMARKS.parent / "launch"


@pytest.fixture
def addition() -> Any:
    return module("recipes/addition.py")


@pytest.fixture
def recipes() -> Any:
    return module("recipes/run.py")


def runs_with(script: Any, tmp_path: Path, found: dict[str, dict[str, Any]]) -> Any:
    runs = script.Runs(tmp_path / "found.json")
    runs.found = {key: {"key": key, **values} for key, values in found.items()}
    return runs


# --- addition ------------------------------------------------------------------------------------


@pytest.mark.long
def test_addition_runs_each_step_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    results, picture = tmp_path / "found.json", tmp_path / "found.png"
    tiny = ["--seeds", 1, "--settings", "post", "--set", "run.epochs=4", "run.evaluate_every=2"]
    shown = run("recipes/addition.py", "--results", results, *tiny, "--plot", picture).stdout
    kept = json.loads(results.read_text())["runs"]
    assert [one["key"] for one in kept] == [
        "post/backprop/0",
        "post/DNI, outputs/0",
        "post/DNI, outputs and labels/0",
    ]
    assert [point[0] for point in kept[0]["points"]] == [2.0, 4.0]
    assert f"| 4 | {kept[0]['points'][1][1]:.3f} |" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = run("recipes/addition.py", "--results", results, *tiny, code=1).stderr
    assert "--resume" in refused and refused.count("\n") == 1


def test_an_error_per_bit_is_that_of_the_weights_at_the_evaluation() -> None:
    """Without training all bits are equally wrong, and the same before and after."""
    bits = module("recipes/bits.py")
    changes = ["run.epochs=2", "run.evaluate_every=1", "optimizer.learning_rate=1e-12"]
    still = bits.train(experiment.load(LAUNCH / "addition-post.toml", changes, schedule="locked"))
    assert still[0].error == pytest.approx(still[1].error, abs=1e-6)
    assert 0.3 < still[0].error < 0.7 and 0.3 < still[0].test_error < 0.7
    changes[2] = "run.seed=0"
    moved = bits.train(experiment.load(LAUNCH / "addition-post.toml", changes, schedule="locked"))
    assert moved[1].error < moved[0].error < still[0].error


def test_addition_is_reached_only_where_backprop_and_labels_learn_and_the_other_lags(
    addition: Any, tmp_path: Path
) -> None:
    def runs(**ends: float) -> Any:
        by_step = zip(
            (addition.BACKPROP, addition.OUTPUTS, addition.LABELS), ends.values(), strict=True
        )
        found = {
            f"better/{step}/0": {"points": [[1, *4 * [0.5]], [2, *4 * [0.4]], [3, *4 * [end]]]}
            for step, end in by_step
        }
        return runs_with(addition, tmp_path, found)

    assert addition.claims(runs(backprop=0.01, outputs=0.3, labels=0.02)).endswith("reached.")
    assert addition.claims(runs(backprop=0.01, outputs=0.3, labels=0.03)).endswith("missed.")
    assert addition.claims(runs(backprop=0.01, outputs=0.01, labels=0.02)).endswith("missed.")


# --- convolution and text ------------------------------------------------------------------------


@pytest.mark.long
def test_recipes_run_on_a_choice_of_data(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    tiny = ["--data", "digits", "--validation", 9700, "--epochs", 1, "--seeds", 1, "--jobs", 1]
    shown = run("recipes/run.py", "--results", results, *tiny, "--only", "3 layers: cDNI").stdout
    (kept,) = json.loads(results.read_text())["runs"]
    assert kept["key"] == "3 layers: cDNI/0"
    assert f"| 3 layers | cDNI | {kept['error']:.2f} |" in shown


def test_truncated_backpropagation_is_the_recipe_without_futures(recipes: Any) -> None:
    ours, theirs = (
        next(one for one in recipes.SETTINGS if one.name == f"shakespeare: {row}").tables([])
        for row in (recipes.TIME, recipes.BPTT)
    )
    assert ours["schedule"] == theirs["schedule"] and ours["schedule"]["name"] == "locked"
    for stage in ours["stages"][:2]:
        assert stage["layers"][0]["lstm"].pop("future")
    assert ours == theirs


def test_what_was_reached_is_told_by_the_means_over_seeds(recipes: Any, tmp_path: Path) -> None:
    errors = {"backprop": (1.0, 1.1), "cDNI": (1.1, 1.25)}
    found = {
        f"3 layers: {row}/{seed}": {"error": error}
        for row, both in errors.items()
        for seed, error in enumerate(both)
    }
    told = recipes.conv_claim(runs_with(recipes, tmp_path, found))
    assert told.startswith("* 3 layers: 1.18 ") and told.endswith("reached.")
    found["3 layers: cDNI/1"]["error"] = 1.6
    assert recipes.conv_claim(runs_with(recipes, tmp_path, found)).endswith("missed.")
    bits = {recipes.BPTT: (1.5, 1.6), recipes.TIME: (1.49, 1.58)}
    found = {
        f"shakespeare: {row}/{seed}": {"loss": nats}
        for row, both in bits.items()
        for seed, nats in enumerate(both)
    }
    told = recipes.text_claim(runs_with(recipes, tmp_path, found))
    assert "-0.0216" in told and told.endswith("reached; the interval includes 0.")
