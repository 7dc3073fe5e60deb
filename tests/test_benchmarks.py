"""Benchmarks run: each on a tiny setting, and what they count and choose is right."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncdni import experiment
from asyncdni.training import train

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

#: 512 samples to train on and 9,488 to be scored on; the last batch of an epoch is smaller.
TINY = """
[data]
name = "digits"
batch_size = 96
validation = 9488

[[stages]]
name = "hidden"
layers = [{ dense = 16 }, "batch_norm", "relu"]

[[stages]]
name = "classifier"
layers = [{ dense = 10 }]
loss = "cross_entropy"

[schedule]
name = "synthetic"
fit_every = 4

[optimizer]
name = "adam"
learning_rate = 3e-3
decay = { name = "cosine", warmup_epochs = 0.5 }

[run]
epochs = 2
seed = 3
"""

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch, the peer, is not installed"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def run(script: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def module(script: str) -> ModuleType:
    name = script.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / script)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # where dataclasses look for their module
    spec.loader.exec_module(found)
    return found


# --- peers ---------------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("mode", ["eager", "onednn"])
def test_the_peer_does_the_very_same_training(file: Path, mode: str) -> None:
    """Same weights to begin with, batches and steps: scores agree after every half epoch."""
    if mode == "onednn" and not importlib.import_module("torch").backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    settings = ["run.evaluate_every=0.5", "run.split=[2]"]
    ours = train(file, schedule="locked", set=settings).summary
    told = run("peers/torch_mlp.py", file, "--set", settings[0], "--mode", mode).stdout
    theirs = json.loads(told)
    assert len(theirs["history"]) == len(ours["history"]) == 4
    for a, b in zip(ours["history"], theirs["history"], strict=True):
        assert b["samples"] == a["samples"]
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=2e-3)
    assert theirs["data"] == json.loads(json.dumps(ours["data"]))
    assert theirs["seed"] == ours["seed"] == 3


@needs_torch
def test_the_peers_summary_has_the_form_of_ours(file: Path) -> None:
    ours = train(file, schedule="locked", set=["run.epochs=1"]).summary
    told = run("peers/torch_mlp.py", file, "--set", "run.epochs=1", "--threads", "2").stdout
    theirs = json.loads(told)
    given_by_ours = {"version", "schedule", "seed", "batch_size", "epochs", "threads", "data"}
    given_by_ours |= {"workers", "train_samples", "wall_s", "startup_s", "train_s", "stages"}
    given_by_ours |= {"samples_per_s", "cpu_s", "test_accuracy", "test_loss", "history"}
    assert given_by_ours <= ours.keys() and given_by_ours <= theirs.keys()
    assert (theirs["workers"], theirs["threads"], theirs["train_samples"]) == (1, 2, 512)
    assert theirs["samples_per_s"] == pytest.approx(512 / theirs["train_s"])
    assert theirs["history"][-1]["train_s"] == theirs["train_s"]


@needs_torch
def test_a_peers_run_is_kept_and_not_made_again(file: Path, tmp_path: Path) -> None:
    arguments = (file, "--set", "run.epochs=1", "--out", tmp_path / "kept")
    first = run("peers/torch_mlp.py", *arguments).stdout
    assert run("peers/torch_mlp.py", *arguments).stdout == first
    assert (tmp_path / "kept" / "summary.json").read_text() == first


@needs_torch
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer.name=sgd", "expected optimizer adam"),
        ("optimizer.clip_norm=1.0", "without clip_norm"),
        ("data.path=x", "data: key 'path' belongs to data set"),
    ],
)
def test_the_peer_refuses_what_it_would_do_otherwise(file: Path, setting: str, words: str) -> None:
    text = file.read_text().replace("learning_rate = 3e-3", "").replace(", warmup_epochs = 0.5", "")
    file.write_text(text)
    refused = run("peers/torch_mlp.py", file, "--set", setting, code=1).stderr
    assert words in refused and refused.count("\n") == 1


@needs_torch
def test_peers_prints_a_row_for_each_mode_and_number_of_threads(file: Path, tmp_path: Path) -> None:
    arguments = ["--file", file, "--epochs", 1, "--seeds", 1, "--modes", "eager"]
    shown = run("peers/run.py", *arguments, "--out", tmp_path / "out").stdout
    assert [line.split(" | ")[:2] for line in shown.splitlines() if line.startswith("| eager")] == [
        ["| eager", "1"],
        ["| eager", "2"],
    ]
    kept = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert [one["summary"]["threads"] for one in kept["runs"]["tiny"]] == [1, 2]


# --- speedup -------------------------------------------------------------------------------------


def speedup(file: Path, out: Path, *arguments: object, code: int = 0) -> Any:
    settings = ["--evaluate-every", 128, "--target-accuracy", 0.3, "--torch-threads"]
    return run("speedup/run.py", "--file", file, "--out", out, *arguments, *settings, code=code)


def test_speedup_measures_every_row_and_goes_on_where_it_stopped(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = speedup(file, out, "--seeds", 2, "--zero-control")
    found = json.loads((out / "results.json").read_text())
    names = ["locked", "synthetic", "synthetic-zero", "single", "single-1"]
    assert [row["name"] for row in found["rows"]] == names
    assert [(one["name"], one["seed"]) for one in found["runs"]][4:6] == [
        ("single-1", 3),
        ("synthetic", 4),
    ], "the order should rotate from seed to seed"
    pairs = [(one["above"], one["below"]) for one in found["ratios"]["samples/s"]]
    assert ("locked", "single-1") in pairs and ("synthetic", "locked") in pairs
    assert all(one["ratio"]["n"] == 2 for one in found["ratios"]["samples/s"])
    assert "| time to 30 % | times | pairs |" in first.stdout

    shutil.rmtree(out / "single-seed4")
    (out / "synthetic-seed3" / "summary.json").unlink()
    again = speedup(file, out, "--seeds", 2, "--zero-control")
    assert again.stderr.split("\n")[:-1] == ["synthetic, seed 3", "single, seed 4"]

    other = speedup(file, out, "--seeds", 1, "--zero-control", code=1)
    assert "holds runs of another command" in other.stderr


@needs_torch
def test_speedup_gives_each_schedule_its_options_and_the_peer_those_of_locked(
    file: Path, tmp_path: Path
) -> None:
    chosen = {
        "locked": ["optimizer.learning_rate=2e-3"],
        "synthetic": ["optimizer.learning_rate=4e-3", "schedule.fit_every=2"],
    }
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    script = module("speedup/run.py")
    arguments = ["--file", str(file), "--out", str(tmp_path / "out"), "--seeds", "1"]
    arguments += ["--options", str(tmp_path / "chosen.json"), "--torch-threads", "2"]
    sys_argv, sys.argv = sys.argv, ["run.py", *arguments]
    try:
        runs = script.plan(script.parsed())
    finally:
        sys.argv = sys_argv
    rates = {one.name: one.experiment.optimizer.learning_rate for one in runs[:4]}
    assert rates == {"locked": 2e-3, "synthetic": 4e-3, "single": 2e-3, "single-1": 2e-3}
    assert runs[1].experiment.schedule.fit_every == 2
    name, _, command = runs[4]
    assert name == "torch-2" and "optimizer.learning_rate=2e-3" in command
    assert f"run.evaluate_every={6000 / 512!r}" in command


# --- accuracy ------------------------------------------------------------------------------------


def test_accuracy_tries_both_grids_on_held_out_samples_alone(file: Path, tmp_path: Path) -> None:
    arguments = ["--file", file, "--out", tmp_path, "--seeds", 2, "--epochs", 1]
    arguments += ["--validation", 9600, "--locked", "optimizer.learning_rate=1e-3,1e-2"]
    arguments += ["--synthetic", "schedule.fit_every=2,4"]
    shown = run("accuracy/run.py", *arguments).stdout
    assert shown.count("| chosen |") == 2 and "### synthetic: 2 settings, 2 seeds" in shown
    rows = json.loads((tmp_path / "tuning.json").read_text())["rows"]
    runs = [one for found in rows.values() for row in found for one in row["runs"]]
    assert [one["seed"] for one in runs] == 4 * [100, 101]
    assert {one["data"]["test_samples"] for one in runs} == {9600}
    assert {one["train_samples"] for one in runs} == {400}
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    for name, settings in chosen.items():
        assert experiment.load(file, settings, schedule=name)
    assert run("accuracy/run.py", *arguments).stdout == shown, "finished runs were made again"


def test_accuracy_refuses_unequal_tuning(file: Path, tmp_path: Path) -> None:
    arguments = ["--file", file, "--out", tmp_path, "--locked", "optimizer.learning_rate=1e-3"]
    refused = run("accuracy/run.py", *arguments, code=1).stderr
    assert "1 of locked, 12 of synthetic" in refused


def test_the_built_in_grids_are_as_large_as_each_other_and_fit_the_recipes() -> None:
    script = module("accuracy/run.py")
    settings = {name: script.grid(axes) for name, axes in script.GRIDS.items()}
    assert {len(found) for found in settings.values()} == {12}
    for name, found in settings.items():
        for recipe in script.FILES.values():
            for setting in found:
                assert experiment.load(recipe, setting, schedule=name)


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        # (accuracies of two seeds, samples/s): the best, where nothing is close
        ([((0.90, 0.92), 100), ((0.95, 0.97), 50)], 1),
        # within a standard error (0.01) of the best, and faster
        ([((0.945, 0.965), 100), ((0.95, 0.97), 50)], 0),
        # within a standard error and faster by less than machines vary
        ([((0.945, 0.965), 104), ((0.95, 0.97), 100)], 1),
        # one seed says nothing of chance: the best
        ([((0.955,), 100), ((0.96,), 50)], 1),
    ],
)
def test_the_choice_follows_the_rule(rows: list[Any], chosen: int) -> None:
    script = module("accuracy/run.py")
    tried = [
        script.Row(
            (str(index),),
            tuple({"test_accuracy": one, "samples_per_s": speed} for one in accuracies),
        )
        for index, (accuracies, speed) in enumerate(rows)
    ]
    assert script.choose(tried).setting == (str(chosen),)


# --- layers --------------------------------------------------------------------------------------


def test_layers_times_every_operation(tmp_path: Path) -> None:
    out = tmp_path / "layers.json"
    arguments = ["--widths", 8, "--batch-size", 4, "--rounds", 1, "--out", out]
    shown = run("layers/run.py", *arguments).stdout
    times = json.loads(out.read_text())["width 8"]
    assert len(times) == 16 and all(f"| {name} |" in shown for name in times)
    assert all(one > 0 for sides in times.values() for rounds in sides.values() for one in rounds)
    floors = [name for name, sides in times.items() if "floor" in sides]
    assert len(floors) == 6 and all(name.startswith("dense") for name in floors)
