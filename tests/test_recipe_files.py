"""Every recipe in `launch/` builds and trains; that of CIFAR-10 learns from files in its layout."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni import experiment
from asyncdni.core.events import Finish
from asyncdni.data import cifar10, describe
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.plan.build import make_design

LAUNCH = Path(__file__).parent.parent / "launch"
RECIPES = sorted(LAUNCH.glob("*.toml"))

Tables = dict[str, Any]


def tables_of(recipe: Path) -> Tables:
    return experiment.tables(experiment.load(recipe, []))


def run(tables: Tables) -> Result:
    chosen = experiment.parse(tables)
    design = make_design(chosen, describe(chosen.data))
    return simulate(design, seed=0, maths=True, check=False)


# --- every recipe on next to nothing -------------------------------------------------------------


def small(data: Tables, folder: Path) -> Tables:
    """The recipe's kind of data, a few batches of it."""
    size = {"addition": {"examples": 40, "test_examples": 20}, "digit_pairs": {"examples": 10}}
    size |= {
        name: {"length": 3, "sequences": 2, "test_sequences": 1} for name in ("copy", "repeat_copy")
    }
    size |= {"trigonometry": {"points": 50, "test_points": 20}}
    match data["name"]:
        case "mnist" | "digits":
            return images(data, folder / "images.npz")
        case "cifar10":
            write_cifar10(folder, train=4, test=8)
            return data | {"path": str(folder), "batch_size": 8}
        case "text":
            path = folder / "text.txt"
            path.write_text(string.printable[:65] * 8)
            return data | {"path": str(path), "batch_size": 4}
        case name:
            return data | size[name]


def images(data: Tables, path: Path) -> Tables:
    """Noise in the place of digits."""
    shape = (1, 28, 28) if data["planes"] else (784,)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 24), ("test", 8)):
        x = rng.random((count, *shape), np.float32)
        arrays[f"x_{part}"] = x
        arrays[f"y_{part}"] = x if data["targets"] == "inputs" else np.arange(count) % 10
    np.savez(path, **arrays)
    return {"name": "npz", "path": str(path), "batch_size": 8}


@each("recipe", RECIPES)
def test_a_recipe_trains_a_few_batches_and_is_scored(recipe: Path, tmp_path: Path) -> None:
    tables = tables_of(recipe)
    tables["data"] = small(tables["data"], tmp_path)
    tables["run"] |= {"epochs": 1, "evaluate_every": 1.0}
    found = run(tables)
    assert isinstance(found.end, Finish), found.failure
    assert np.isfinite(found.history[-1]["loss"])
    for name, counters in found.counters.items():
        assert counters["updates"] >= 2, name


def test_the_steps_of_addition_differ_in_nothing_but_the_schedule() -> None:
    steps = [tables_of(LAUNCH / f"addition{step}.toml") for step in ("-backprop", "-outputs", "")]
    assert [step["schedule"]["name"] for step in steps] == ["locked", "synthetic", "synthetic"]
    for step in steps:
        step.pop("staleness", None)  # of generators
    labels = [step.pop("schedule").get("generator", {}).get("labels") for step in steps]
    assert labels == [None, False, True]
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("name", ["copy", "repeat-copy"])
def test_a_yardstick_in_time_differs_in_nothing_but_the_future(name: str) -> None:
    ours, theirs = tables_of(LAUNCH / f"{name}.toml"), tables_of(LAUNCH / f"{name}-bptt.toml")
    assert ours["data"].pop("ahead") > 0 and not theirs["data"].pop("ahead")
    assert "future" in ours["stages"][0]["layers"][0]["lstm"]
    del ours["stages"][0]["layers"][0]["lstm"]["future"]
    assert ours == theirs


# --- CIFAR-10 ------------------------------------------------------------------------------------


def write_cifar10(folder: Path, *, train: int, test: int) -> None:
    """The six files, `train` and `test` records each: class k is a brighter k-th row of planes."""
    rng = np.random.default_rng(1)
    for name in (*cifar10.FILES, cifar10.TEST_FILE):
        count = test if name == cifar10.TEST_FILE else train
        labels = np.arange(count) % 10
        pixels = rng.integers(0, 100, (count, *cifar10.IMAGE_SHAPE))
        for pixel, label in zip(pixels, labels, strict=True):
            pixel[:, 3 * label : 3 * label + 3] += 150
        records = np.concatenate((labels[:, None], pixels.reshape(count, -1)), axis=1)
        records.astype(np.uint8).tofile(folder / name)


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_the_network_of_cifar10_learns_from_files_in_the_binary_layout(
    schedule: str, tmp_path: Path
) -> None:
    write_cifar10(tmp_path, train=60, test=100)
    changes = [f'data.path="{tmp_path}"', "data.batch_size=20", "run.epochs=3"]
    changes += ["optimizer.learning_rate=1e-2", "run.evaluate_every=3"]
    recipe = LAUNCH / "cifar-conv.toml"
    tables = experiment.tables(experiment.load(recipe, changes, schedule=schedule))
    for stage in tables["stages"]:
        for layer in stage["layers"]:
            if "conv2d" in layer:
                layer["conv2d"]["channels"] = 6
    found = run(tables)
    assert isinstance(found.end, Finish), found.failure
    assert found.history[-1]["accuracy"] > 0.6
