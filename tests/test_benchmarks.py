"""Benchmarks run: each on a tiny setting, and what they count and choose is right."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarking import module, run
from each import each

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import train
from asyncdni.nn.streams import stream
from asyncdni.plan.build import make_design, make_stage
from asyncdni.report.statistics import crossing
from asyncdni.schedules import Source

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


# --- peers ---------------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
@needs_torch
def test_a_peers_run_is_kept_and_not_made_again(file: Path, tmp_path: Path) -> None:
    arguments = (file, "--set", "run.epochs=1", "--out", tmp_path / "kept")
    first = run("peers/torch_mlp.py", *arguments).stdout
    assert run("peers/torch_mlp.py", *arguments).stdout == first
    assert (tmp_path / "kept" / "summary.json").read_text() == first


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_speedup_measures_every_row_and_goes_on_where_it_stopped(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = ["--seeds", 2, "--schedules", "locked", "synthetic"]
    first = speedup(file, out, *rows)
    found = json.loads((out / "results.json").read_text())
    names = ["locked", "synthetic", "single", "single-1"]
    assert [row["name"] for row in found["rows"]] == names
    assert [(one["name"], one["seed"]) for one in found["runs"]][3:5] == [
        ("single-1", 3),
        ("synthetic", 4),
    ], "the order should rotate from seed to seed"
    pairs = [(one["above"], one["below"]) for one in found["ratios"]["samples/s"]]
    assert ("locked", "single-1") in pairs and ("synthetic", "locked") in pairs
    assert all(one["ratio"]["n"] == 2 for one in found["ratios"]["samples/s"])
    assert "| to 30 %, times sooner than | locked | single | single-1 |" in first.stdout

    shutil.rmtree(out / "single-seed4")
    (out / "synthetic-seed3" / "summary.json").unlink()
    part = speedup(file, out, *rows, "--only", "sing*")
    assert part.stderr == "single, seed 4\n"
    assert json.loads((out / "results.json").read_text())["complete"] is False
    again = speedup(file, out, *rows)
    assert again.stderr == "synthetic, seed 3\n"

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
    ours = {one.name: one.experiment for one in runs[:-1]}
    rates = {name: one.optimizer.learning_rate for name, one in ours.items()}
    like_locked = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "single", "single-1")
    assert rates == {**dict.fromkeys(like_locked, 2e-3), "synthetic": 4e-3}
    assert ours["synthetic"].schedule.fit_every == 2
    name, _, command = runs[-1]
    assert name == "torch-2" and "optimizer.learning_rate=2e-3" in command
    assert f"run.evaluate_every={6000 / 512!r}" in command


def test_the_speedups_best_rule_is_one_whose_every_run_reaches_the_target() -> None:
    script = module("speedup/run.py")
    row = {"targets": [{"time_s": 1.0}]}
    rows = [{"name": "delayed", **row}, {"name": "synthetic", "targets": [{"time_s": None}]}]
    times = [
        {"above": "locked", "below": name, "ratio": ratio}
        for name, ratio in (("delayed", 1.8), ("synthetic", 9.0))
    ]
    ratios = {"samples/s": [], "time to 97.5 %": times}
    found = "".join(script.claims({"rows": rows, "ratios": ratios, "targets": [0.975]}))
    assert "| time to 97.5 %, locked / delayed | 1.7 | 1.80 | met |" in found
    assert "| samples/s, delayed / locked | 1.85 | - | not measured |" in found


# --- latency -------------------------------------------------------------------------------------


SHOWN = ("locked", "synthetic")


def latency(file: Path, results: Path, *arguments: object, code: int = 0) -> Any:
    settings = ["--latencies", "0ms", "2ms", "--time-at", "2ms", "--target-accuracy", 0.3]
    settings += ["--evaluate-every", 128, "--set", "run.epochs=6", "--seeds", 1, "--rate", 100]
    settings += ["--seconds", 0.1, "--only", ": locked", ": synthetic", "--results", results]
    return run("latency/run.py", "--file", file, *settings, *arguments, code=code)


@pytest.mark.long
def test_latency_measures_speed_and_time_and_goes_on_where_it_stopped(
    file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "runs.json"
    latency(file, results)
    found = json.loads(results.read_text())
    runs = {one["key"]: one for one in found["runs"]}
    names = [f"{kind}: {row}" for kind in ("speed, 0ms", "speed, 2ms") for row in SHOWN]
    assert [*runs] == [f"{name}/0" for name in [*names, *(f"time, 2ms: {row}" for row in SHOWN)]]
    assert runs["speed, 0ms: synthetic/0"]["train_samples"] == 10 * 96, "0.1 s at 100 batches/s"
    timed = runs["time, 2ms: locked/0"]["history"]
    assert timed[-2] == crossing(timed, 0.3) and len(timed) < 24, "not stopped at the target"

    assert "--resume goes on" in latency(file, results, code=1).stderr
    del found["runs"][3]
    results.write_text(json.dumps(found))
    again = latency(file, results, "--resume")
    assert again.stderr.startswith("1 of 1: speed, 2ms: synthetic/0 ")


def test_a_latency_run_is_as_long_as_its_links_allow(file: Path) -> None:
    """A round trip of 200 ms, 100 batches a second at most, 2 seconds."""
    script = module("latency/run.py")
    words = ["--file", str(file), "--latencies", "100ms", "--rate", "100", "--seconds", "2"]
    jobs = {one.name: one.experiment for one in script.plan(script.parsed([*words, "--time-at"]))}
    data = {name.rpartition(": ")[2]: (one.data, one.run) for name, one in jobs.items()}
    length = {
        name: (one.epochs, (10000 - data.validation) / 96) for name, (data, one) in data.items()
    }
    assert jobs["speed, 100ms: delayed, full"].staleness.lag == 21
    assert length["locked"] == length["1f1b"] == (1, 10)
    assert length["delayed"] == (1, 18), "two batches in flight"
    assert length["single"] == length["synthetic"] == (2, 104), "whole epochs of whole batches"
    assert all(one.evaluate_every == one.epochs for _, one in data.values())


def test_the_latency_targets_are_judged_by_pairs_of_one_seed(tmp_path: Path) -> None:
    script, tables = module("latency/run.py"), module("latency/latency_tables.py")
    runs = script.Runs(tmp_path / "none.json")
    for seed, factor in ((0, 14.0), (1, 18.0)):
        for row, speed in (("locked", 10.0 * (seed + 1)), ("synthetic", factor * 10 * (seed + 1))):
            key = f"speed, 10ms: {row}/{seed}"
            runs.found[key] = {"key": key, "samples_per_s": speed}
    claim = tables.claim(runs, 0.97)
    assert "| 15 | 15.87 (" in claim, "the geometric mean of 14 and 18"
    assert (claim.count("| met |"), claim.count("| not measured |")) == (1, 2)


# --- straggler -----------------------------------------------------------------------------------


@pytest.mark.long
def test_straggler_slows_one_stage_and_measures_all(file: Path, tmp_path: Path) -> None:
    arguments = ["--file", file, "--stage", "hidden", "--only", "locked", "--batches", 40]
    results = tmp_path / "runs.json"
    run("straggler/run.py", *arguments, "--seeds", 1, "--results", results)
    runs = {one["key"]: one for one in json.loads(results.read_text())["runs"]}
    assert [*runs] == ["locked: normal/0", "locked: random/0", "locked: factor/0"]
    slept = [one["stages"]["hidden"]["slowed_s"] for one in runs.values()]
    assert slept[0] == 0 and min(slept[1:]) > 0
    assert not any(one["stages"]["classifier"]["slowed_s"] for one in runs.values())
    assert {one["stages"]["hidden"]["updates"] for one in runs.values()} == {40}


def test_a_straggler_loses_twice_the_time_of_a_batch_at_its_normal_pace(
    file: Path, tmp_path: Path
) -> None:
    script = module("straggler/run.py")
    words = ["--file", str(file), "--stage", "hidden", "--only", "local_loss, skip, replay"]
    job = script.plan(script.parsed([*words, "--seeds", "1"]))[1]
    runs = script.Runs(tmp_path / "none.json")
    key = job.key.replace("random", "normal")
    stage = {"wall_s": 1.0, "batches": 60, "replays": 40, "updates": 100}
    runs.found[key] = {"key": key, "stages": {"hidden": stage}}
    slow = script.slowed(job, runs, "hidden").slow["hidden"]
    assert (slow.pause, slow.chance) == ("200.000ms", 0.1), "20 ms a forward on average"

    slower = {"hidden": {**stage, "wall_s": 4.0, "updates": 200}}
    runs.found[job.key] = {"key": job.key, "stages": slower}
    row = job.name.removesuffix(": random")
    assert script.kept(runs, row, row, "random", "hidden").mean == pytest.approx(0.5)


# --- clusters ------------------------------------------------------------------------------------


@pytest.mark.long
def test_compressed_links_are_scored_in_the_simulator(file: Path, tmp_path: Path) -> None:
    arguments = ["--file", file, "--only", "accuracy", "--rows", "unlimited", "int8"]
    results = tmp_path / "runs.json"
    shown = run("clusters/compress.py", *arguments, "--seeds", 1, "--results", results).stdout
    runs = {one["key"]: one for one in json.loads(results.read_text())["runs"]}
    assert [*runs] == ["accuracy, unlimited/0", "accuracy, int8/0"]
    assert all(0.3 < one["test_accuracy"] < 1 for one in runs.values())
    assert "| at least 0.8 | - | not measured |" in shown


def test_compressed_links_are_held_against_their_targets(tmp_path: Path) -> None:
    script = module("clusters/compress.py")
    runs = script.Runs(tmp_path / "none.json")
    stages = {"a": {"samples": 10, "bytes_by_link": {"b": 50}}}
    for seed in (0, 1):
        for row, rate, accuracy in (("unlimited", 1000, 0.98), ("int8", 810 + seed, 0.9785)):
            timed = {"samples_per_s": rate, "stages": stages}
            parts = {"speed": timed, "predicted": timed, "accuracy": {"test_accuracy": accuracy}}
            for part, one in parts.items():
                key = f"{part}, {row}/{seed}"
                runs.found[key] = {"key": key, **one}
    assert script.claim(runs).count("| met |") == 2
    assert "| `int8` | 5 " in script.rows_table(runs)
    runs.found["speed, int8/1"]["samples_per_s"] = 700
    assert script.claim(runs).count("| missed |") == 1


def test_compressed_links_of_an_earlier_version_can_be_measured_again(tmp_path: Path) -> None:
    script = module("clusters/compress.py")
    runs = script.Runs(tmp_path / "none.json")
    jobs = [SimpleNamespace(key=f"predicted, int8/{seed}", digest=f"new {seed}") for seed in (0, 1)]
    runs.found[jobs[0].key] = {"key": jobs[0].key, "digest": "old"}
    with pytest.raises(AsyncDNIError, match=r"of another experiment: .*--again"):
        script.missing_of(jobs, runs, again=False)
    assert script.missing_of(jobs, runs, again=True) == jobs
    runs.found[jobs[0].key]["digest"] = "new 0"
    assert script.missing_of(jobs, runs, again=False) == jobs[1:]


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
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


@each(
    "rows, chosen",
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


@pytest.mark.long
def test_layers_times_every_operation(tmp_path: Path) -> None:
    out = tmp_path / "layers.json"
    arguments = ["--widths", 8, "--batch-size", 4, "--rounds", 1, "--out", out]
    shown = run("layers/run.py", *arguments).stdout
    times = json.loads(out.read_text())["width 8"]
    assert len(times) == 16 and all(f"| {name} |" in shown for name in times)
    assert all(one > 0 for sides in times.values() for rounds in sides.values() for one in rounds)
    floors = [name for name, sides in times.items() if "floor" in sides]
    assert len(floors) == 6 and all(name.startswith("dense") for name in floors)


# --- clusters ------------------------------------------------------------------------------------


@pytest.mark.long
def test_agents_start_and_leave_nothing() -> None:
    found = json.loads(run("clusters/machines.py", "start", "--smoke").stdout)
    assert found["workers"] == 4 and found["left"] == []


def test_machines_are_held_against_their_targets() -> None:
    script = module("clusters/machines.py")
    down_s = {kind: {"median": 1.5, "most": 9.0} for kind in script.KINDS}
    kills = {"kills": 50, "down_s": down_s, "accuracy": 0.965, "in_peace": 0.967}
    nodes = {"synthetic": {"share": 0.91}, "locked": {"share": 0.2}}
    ray = {"kills": 8, "down_s": {"median": 4.0, "most": 6.0}}
    parts = {"kills": kills, "nodes": nodes, "start": {}, "slow": {}, "ray": ray}
    found = script.table_of(parts)
    assert found.count("| met |") == 5 and found.count("not measured") == 2
    assert (
        "the stage until it is back | at most 1 | 1.50 in the median, 9.00 at worst | missed |"
        in found
    )


# --- images --------------------------------------------------------------------------------------


def test_kept_runs_of_images_are_those_of_the_plan() -> None:
    bench = module("images/run.py")
    runs = bench.Runs(bench.RESULTS)
    jobs = [job for rule in bench.RULES for job in bench.tuning(rule).values()]
    jobs += bench.tried_briefly(runs).values()
    jobs += [job for part in bench.PARTS for job in bench.planned(part, runs)]
    held = {job.key for job in jobs if runs.holds(job)}  # raises for another digest
    assert held == set(runs.found)


def learned_by_stages(bench: Any, rule: str, stages: int) -> list[tuple[int, set[str]]]:
    """For each stage but the last, one after the other: the rows of its feature maps, and which of
    its arrays one batch has moved without a gradient from behind."""
    parsed = experiment.parse(bench.job(rule, stages, 2, 0.1, 0, "digits").tables)
    design = make_design(parsed, describe(parsed.data), allow_import=("models", "blocks"))
    known = {"data": stream(0, "digits", "test").random((4, 1, 28, 28), np.float32)}
    found = []
    for group in design.plan.groups[:-1]:
        stage, name = make_stage(design, group), group.name
        before = stage.snapshot()[name]
        known = {name: stage.forward(0, known, {"y": np.arange(4)}).activation}
        stage.predict(0)
        stage.backward(0, {}, source=Source.SYNTHETIC, learn=True, send=False)
        stage.update()
        moved = {n for n, one in stage.snapshot()[name].items() if (one != before[n]).any()}
        found.append((known[name].shape[2], moved))
    return found


@needs_torch
@pytest.mark.parametrize(
    ("stages", "rows"),
    [(4, [28, 14, 7]), pytest.param(8, [28, 28, 14, 14, 7, 7, 4], marks=pytest.mark.long)],
)
def test_each_stage_of_images_learns_through_its_block(stages: int, rows: list[int]) -> None:
    bench = module("images/run.py")
    for rule in (bench.BARE, bench.PLACED) if stages == 4 else (bench.NARROW, *bench.DESIGNS):
        found = learned_by_stages(bench, rule, stages)
        assert [size for size, _ in found] == rows
        for _, moved in found:
            assert any("conv" in name and "generator" not in name for name in moved), rule
            blocks = any(name.startswith("generator.blocks.") for name in moved)
            assert blocks == (rule != bench.BARE), rule


@pytest.mark.long
@needs_torch
def test_images_are_learned_under_every_schedule() -> None:
    bench = module("images/run.py")
    for rule in (bench.BACKPROP, bench.BARE, bench.PLACED, bench.LOCAL):
        run = bench.measure(bench.job(rule, 4, 60, 0.05, 0, "digits"))
        assert run["error"] < 60 and run["cpu_s"] > 0, run  # chance: 90


# --- transformers, speedrun ----------------------------------------------------------------------


def test_kept_runs_of_the_transformers_are_those_of_the_plan() -> None:
    bench = module("transformers/run.py")
    runs = bench.Runs(bench.RESULTS)
    jobs = [job for name in bench.RULES for job in bench.tuning(name).values()]
    jobs += [job for part in bench.PARTS for job in bench.planned(part, runs)]
    held = {job.key for job in jobs if runs.holds(job)}  # raises for another digest
    assert held == set(runs.found)
    tables = bench.job("readout, links of 100 ms", 4, 30, 1e-3, 0).tables
    assert tables["links"] == {"latency": "100ms"}


@each("far, lags", [("loss", [7, 7, 7, 0]), ("pipeline", [3, 2, 1, 0])])
def test_lags_are_those_that_were_set(far: str, lags: list[int]) -> None:
    sweep = module("images/run.py").sweep
    data, optimizer = {"name": "digits", "batch_size": 10}, {"name": "adam"}
    tables = sweep.layered(4, {"name": "delayed"}, data, optimizer, epochs=1, lag=7, far="every")
    tables["run"] |= {"max_steps": 60}
    found = sweep.measure(sweep.Job("lags", 0, tables, 7, far))
    assert [*found["lags"].values()] == lags


def test_rates_are_tried_until_the_best_lies_between_two_worse_ones(tmp_path: Path) -> None:
    bench = module("transformers/run.py")
    runs, jobs = bench.Runs(tmp_path / "runs.json"), bench.tuning("readout")
    losses = {1e-3: 2.6, 2e-3: 2.5, 4e-3: 2.4, 8e-3: 2.3, 1.6e-2: None}  # the last one failed
    rates = {job.key: rate for rate, job in jobs.items()}

    def carry_out(wanted: list[Any]) -> None:
        assert bench.best(jobs, runs) is None
        runs.found |= {job.key: {"loss": losses[rates[job.key]]} for job in wanted}

    bench.try_rates([jobs], carry_out, runs)
    assert bench.best(jobs, runs) == 8e-3
    assert {rates[key] for key in runs.found} == {2e-3, 4e-3, 8e-3, 1.6e-2}


def test_seconds_to_a_loss_lie_between_two_evaluations() -> None:
    bench = module("transformers/seconds.py")
    curve = [[100, 10.0, bench.LOSS + 0.3], [200, 20.0, bench.LOSS - 0.1], [300, 31.0, 0.0]]
    assert bench.reached({"curve": curve}) == pytest.approx((17.5, 175.0))
    assert bench.reached({"curve": curve[:1]}) is None
    assert bench.reached({"curve": [[100, 10.0, bench.LOSS]]}) == (10.0, 100.0)


def log_of(entry: str, losses: list[float], seconds: list[float]) -> dict[int, dict[str, Any]]:
    rules = module("speedrun/rules.py")
    sound = {"fixed": rules.fixed_digest(), "text": rules.TEXT, "workers": 8, "entry": {}}
    return {
        seed: {"key": f"{entry}/{seed}", "loss": loss, "train_s": train_s, **sound}
        for seed, (loss, train_s) in enumerate(zip(losses, seconds, strict=True))
    }


FAST, SLOW = [40.0, 44.0, 39.0, 41.0], [61.0, 63.0, 60.0, 62.0]


@each(
    "losses, seconds, changed, told",
    [
        ([2.21, 2.22, 2.20, 2.21], FAST, {}, []),
        ([2.29, 2.36, 2.12, 2.27], FAST, {}, ["nats is not shown to be below 2.3 "]),
        ([2.21, 2.22, 2.20, 2.21], SLOW, {}, ["times the time of other is not shown to be less"]),
        ([2.21, 2.22, 2.20, 2.21], FAST, {"workers": 4}, ["seed 0 of new: 4 processes"]),
        ([2.21, 2.22, 2.20, 2.21], FAST, {"fixed": "0"}, ["run with another speedrun.toml"]),
        ([2.21, 2.22, 2.20, 2.21], FAST, {"entry": {"model": {}}}, ["its entry sets model"]),
        ([2.21, 2.22, 2.21], FAST[:3], {}, ["expected 0, 1, … without", "other has seeds"]),
    ],
)
def test_a_record_of_the_speedrun_must_be_shown(
    losses: list[float], seconds: list[float], changed: dict[str, Any], told: list[str]
) -> None:
    check = module("speedrun/check.py")
    entry, other = log_of("new", losses, seconds), log_of("other", [2.2] * 4, SLOW)
    entry[0] |= changed
    found = list(check.faults(check.Log("new", entry, other, "other")))
    assert len(found) == len(told)
    assert all(words in one for words, one in zip(told, found, strict=True)), found


def test_all_kept_logs_of_the_speedrun_are_records_and_in_the_table() -> None:
    check = module("speedrun/check.py")
    assert check.records() in check.README.read_text()
    rules = module("speedrun/rules.py")
    for path in (check.HERE / "entries").glob("*.toml"):
        assert experiment.parse(rules.tables_of(rules.read(path))).links.latency == "10ms"
