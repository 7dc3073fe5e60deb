"""Runs that have ended before their time, and go on: after Ctrl-C, kill -9, damaged files.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Command, Finished, Site, make_site, records, until, until_recorded, weights
from test_recovery import BATCHES, STAGES, THREE, UNPAUSED, until_learning

import asyncdni
from asyncdni import logs
from asyncdni.errors import ConfigError
from asyncdni.store.resume import changed_experiment


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("three.toml", THREE)
        yield made


def start(site: Site, *args: str) -> Command:
    return site.start("train", "three.toml", "--out", "run", *args)


def resume(site: Site, *args: str) -> Finished:
    return site.run("train", "--resume", "run", *args)


def summary_of(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.folder / "run" / "summary.json").read_text())
    return found


def history_of(site: Site) -> list[tuple[Any, ...]]:
    return [(one["samples"], one["accuracy"], one["loss"]) for one in summary_of(site)["history"]]


def killed(site: Site, command: Command) -> None:
    """End the coordinator by SIGKILL, and wait until its workers have noticed."""
    command.kill()
    assert command.finished().code == -signal.SIGKILL
    until(lambda: not site.processes(), "the end of all workers")
    clear(site)


def clear(site: Site) -> None:
    """Nothing can tidy up after SIGKILL: the folder of the sockets stays."""
    for folder in site.temporary.iterdir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def resumed(site: Site) -> dict[str, Any]:
    """The record of the last time that the run was taken up again."""
    return records(site.folder / "run", "resumed")[-1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights and history of a run that ends by itself."""
    with make_site(tmp_path_factory.mktemp("undisturbed")) as site:
        site.write("three.toml", THREE)
        assert start(site, *UNPAUSED).finished().code == 0
        return {"weights": weights(site.folder / "run"), "history": history_of(site)}


# --- it goes on where it was ---------------------------------------------------------------------


def test_locked_goes_on_to_the_same_weights_after_its_coordinator_was_killed(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut", 2)
    killed(site, command)
    finished = resume(site, *UNPAUSED)
    assert (finished.code, finished.err) == (0, "")
    assert resumed(site)["restore"].startswith("checkpoints/")
    assert weights(site.folder / "run") == undisturbed["weights"]
    assert history_of(site) == undisturbed["history"]
    summary = summary_of(site)
    assert {stage["batches"] for stage in summary["stages"]} == {BATCHES}
    assert (summary["resumes"], summary["restarts"]) == (1, 0)


@pytest.mark.long
def test_locked_goes_on_to_the_same_weights_after_everything_was_killed_twice(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site)
    for cuts in (1, 4):
        until_recorded(site.folder / "run", "cut", cuts)
        for pid in site.processes():
            os.kill(pid, signal.SIGKILL)
        command.finished()
        clear(site)
        command = site.start("train", "--resume", "run")
    assert command.finished().code == 0
    assert weights(site.folder / "run") == undisturbed["weights"]
    assert history_of(site) == undisturbed["history"]
    assert summary_of(site)["resumes"] == 2


@pytest.mark.long
def test_locked_goes_on_to_the_same_weights_after_ctrl_c_under_another_split(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    command.interrupt()
    command.finished().refused("interrupted after")
    finished = resume(site, "--set", "run.split=[2, 1]", *UNPAUSED)
    assert (finished.code, finished.err) == (0, "")
    assert len({one["pid"] for one in records(site.folder / "run", "joined")}) == 3 + 2
    assert weights(site.folder / "run") == undisturbed["weights"]


@pytest.mark.long
def test_before_the_first_checkpoint_it_begins_anew(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site, "--set", "checkpoint.every=never")
    until_learning(site, "two", 3)
    killed(site, command)
    finished = resume(site, *UNPAUSED)
    assert (finished.code, finished.err) == (0, "")
    assert (resumed(site)["restore"], resumed(site)["start"]) == ("initial", 0)
    assert weights(site.folder / "run") == undisturbed["weights"]


@pytest.mark.long
def test_stages_that_learn_by_themselves_go_on_from_their_snapshots(site: Site) -> None:
    command = start(site, "--schedule", "synthetic", "--set", "checkpoint.every=never")
    until_learning(site, "three", 60)
    killed(site, command)
    finished = resume(site, *UNPAUSED)
    assert (finished.code, finished.err) == (0, "")
    assert resumed(site)["restore"] == "snapshots"
    assert resumed(site)["start"] > 0
    for stage in summary_of(site)["stages"]:
        assert stage["batches"] + stage["missed"] == BATCHES
        assert stage["batches"] > resumed(site)["start"] - 60
    counts = [one["samples"] for one in summary_of(site)["history"]]
    assert counts == sorted(counts) and len(counts) >= 6


@pytest.mark.long
def test_a_checkpoint_newer_than_a_snapshot_is_gone_on_from(site: Site) -> None:
    command = start(site, "--schedule", "synthetic")
    until_recorded(site.folder / "run", "cut", 2)
    killed(site, command)
    for path in (site.folder / "run" / "snapshots").glob("two.*"):
        path.write_bytes(b"torn")
    finished = resume(site)
    assert finished.code == 0
    assert resumed(site)["restore"].startswith("checkpoints/")
    for stage in summary_of(site)["stages"]:
        assert stage["batches"] + stage["missed"] == BATCHES


def test_workers_notice_that_their_coordinator_is_dead_save_and_leave(site: Site) -> None:
    command = start(site, "--schedule", "synthetic", "--set", "checkpoint.snapshot_every=1min")
    until_learning(site, "three", 20)
    assert not (site.folder / "run" / "snapshots").exists()
    killed(site, command)
    for stage in STAGES:
        assert (site.folder / "run" / "snapshots" / f"{stage}.0.safetensors").is_file()
        log = (site.folder / "run" / "logs" / f"{stage}.log").read_text()
        stops = f"worker stops: its parent process {command.pid} is gone"
        assert logs.parsed(log.splitlines()[-1]) == (logging.ERROR, stops)


# --- longer, complete, in use --------------------------------------------------------------------

SHORT = ("--set", "run.epochs=2", *UNPAUSED, "--quiet")


@pytest.mark.long
def test_a_complete_run_says_so_and_more_epochs_make_it_longer(site: Site) -> None:
    assert start(site, *SHORT).finished().code == 0
    before = weights(site.folder / "run")
    finished = resume(site)
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.startswith("the run in run is complete, after 2 epochs; --set run.epochs=3")
    assert weights(site.folder / "run") == before
    finished = resume(site, "--set", "run.epochs=4")
    assert (finished.code, finished.err) == (0, "")
    assert weights(site.folder / "run") != before
    assert [stage["batches"] for stage in summary_of(site)["stages"]] == [20, 20, 20]
    assert [one["samples"] for one in summary_of(site)["history"]] == [180, 360]
    straight = site.call(
        "train", "three.toml", "--out", "straight", *SHORT[2:], "--set", "run.epochs=4"
    )
    assert straight.code == 0
    assert weights(site.folder / "run") == weights(site.folder / "straight")


@pytest.mark.long
def test_another_learning_rate_counts_from_where_the_run_is_taken_up(site: Site) -> None:
    """As if the rate had fallen there by itself, to the last bit: the optimizers' state is kept."""
    rates = ("--set", "optimizer.learning_rate=0.01", "--set", "stages.two.optimizer={beta1=0.8}")
    fall = ("--set", "optimizer.decay={name='step', epochs=[2], factor=0.1}")
    assert start(site, *SHORT, *rates).finished().code == 0
    finished = resume(site, "--set", "run.epochs=4", "--set", "optimizer.learning_rate=0.001")
    assert (finished.code, finished.err) == (0, "")
    assert "optimizer.learning_rate is 0.001 from here on; before, it was 0.01" in finished.out
    changes = summary_of(site)["changes"]
    assert [(one["place"], one["old"], one["new"]) for one in changes] == [
        ("optimizer.learning_rate", 0.01, 0.001),
        ("run.epochs", 2, 4),
    ]
    assert {one["batches"] for one in changes} == {10}
    kept = asyncdni.load(site.folder / "run" / "experiment.toml")
    assert getattr(kept.optimizer, "learning_rate", None) == 0.001
    straight = ("--out", "straight", *SHORT[2:], *rates, *fall, "--set", "run.epochs=4")
    assert site.call("train", "three.toml", *straight).code == 0
    assert weights(site.folder / "run") == weights(site.folder / "straight")
    before = weights(site.folder / "run")
    finished = resume(site, "--set", "stages.two.optimizer.learning_rate=0.5")
    assert (finished.code, finished.err) == (0, "")
    assert "complete" in finished.out and "with whatever else is changed" in finished.out
    assert weights(site.folder / "run") == before


@pytest.mark.long
def test_a_run_that_died_behind_its_last_barrier_comes_to_its_end(site: Site) -> None:
    assert start(site, *SHORT).finished().code == 0
    before, history = weights(site.folder / "run"), history_of(site)
    (site.folder / "run" / "summary.json").unlink()
    finished = resume(site)
    assert (finished.code, finished.err) == (0, "")
    assert weights(site.folder / "run") == before
    assert history_of(site)[-1] == history[-1]


@pytest.mark.long
def test_fewer_epochs_than_it_has_had_are_refused(site: Site) -> None:
    assert start(site, *SHORT).finished().code == 0
    resume(site, "--set", "run.epochs=1").refused("run.epochs = 1", "2 already")


def test_a_folder_in_use_by_a_live_run_is_refused(site: Site) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    finished = resume(site)
    finished.refused("run is in use by process", str(command.pid))
    assert not records(site.folder / "run", "resumed")
    command.interrupt()
    command.finished().refused("interrupted after")


@pytest.mark.long
def test_the_lock_of_a_killed_run_is_none(site: Site) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    killed(site, command)
    assert (site.folder / "run" / "lock").exists()
    assert resume(site, *UNPAUSED).code == 0
    assert not (site.folder / "run" / "lock").exists()


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints that was stopped by Ctrl-C."""
    folder = tmp_path_factory.mktemp("interrupted")
    with make_site(folder) as site:
        site.write("three.toml", THREE)
        command = start(site)
        until_recorded(folder / "run", "cut", 2)
        command.interrupt()
        assert command.finished().code == 130
    return folder / "run"


@pytest.fixture
def copy(site: Site, interrupted: Path) -> Path:
    for path in interrupted.rglob("*"):
        if path.is_file():
            target = site.folder / "run" / path.relative_to(interrupted)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return site.folder / "run"


CHANGES: dict[str, tuple[list[str], list[str]]] = {
    "seed": (["run.seed=6"], ["run.seed is 5 there and 6 here"]),
    "data": (["data.bits=5"], ["data.bits is 4 there and 5 here"]),
    "batch size": (["data.batch_size=10"], ["data.batch_size is 20 there and 10 here"]),
    "network": (
        ["stages.two.layers=[{dense=9}]"],
        ["stages.two.layers", '{"dense": 10}', '{"dense": 9}'],
    ),
    "optimizer": (["optimizer.name=sgd"], ["stage one", "adam there", "sgd without momentum here"]),
    "optimizer of a stage": (
        ["stages.two.optimizer={name='sgd', momentum=0.5}"],
        ["stage two", "adam there", "sgd with momentum here"],
    ),
    "precision": (["run.dtype=float64"], ["run.dtype", '"float32"', '"float64"']),
    "microbatches": (
        ["schedule.name=gpipe", "schedule.microbatches=2"],
        ["schedule.microbatches", "1 in the checkpoint", "2 in the experiment"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_that_makes_another_run_is_refused_naming_it(
    site: Site, copy: Path, case: str
) -> None:
    changes, words = CHANGES[case]
    before = (copy / "experiment.toml").read_text()
    flags = [word for change in changes for word in ("--set", change)]
    site.call("train", "--resume", "run", *flags).refused("--resume", *words)
    assert (copy / "experiment.toml").read_text() == before


def test_an_experiment_file_of_another_network_is_refused_naming_the_difference(
    site: Site, copy: Path
) -> None:
    text = (copy / "experiment.toml").read_text()
    assert "dense = 10" in text
    (copy / "experiment.toml").write_text(text.replace("dense = 10", "dense = 11"))
    refused = site.call("train", "--resume", "run")
    refused.refused("--resume", "network.two.layers[0].dense: 10 in the checkpoint, 11")


@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(site: Site, copy: Path) -> None:
    newest, older = sorted((copy / "checkpoints").iterdir(), reverse=True)[:2]
    path = newest / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    finished = resume(site, *UNPAUSED)
    assert finished.code == 0
    (passed,) = records(copy, "passed_over")
    assert str(Path("checkpoints") / newest.name / "two.safetensors") in passed["text"]
    assert f"passed over: {passed['text']}" in finished.out
    assert resumed(site)["restore"] == f"checkpoints/{older.name}"


@pytest.mark.parametrize("damage", ["edited", "cut off", "not JSON"])
def test_checkpoints_of_which_none_is_whole_are_named(site: Site, copy: Path, damage: str) -> None:
    for folder in (copy / "checkpoints").iterdir():
        path = folder / "manifest.json"
        text = path.read_text()
        changed = {
            "edited": text.replace('"barrier"', '"bariere"', 1),
            "cut off": text[: len(text) // 2],
            "not JSON": "manifest",
        }[damage]
        path.write_text(changed)
    line = site.call("train", "--resume", "run").refused(
        "no whole checkpoint is left", "manifest.json"
    )
    assert line.count("manifest.json") == 2
    assert not (copy / "summary.json").exists()


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no run": (["--resume", "nowhere"], ["--resume nowhere", "experiment.toml"]),
    "nothing": ([], ["FILE.toml", "--resume DIR"]),
    "both": (["three.toml", "--resume", "run"], ["FILE.toml", "--resume DIR", "not both"]),
    "out": (["--resume", "run", "--out", "other"], ["--resume run", "--out"]),
    "schedule": (["--resume", "run", "--schedule", "gpipe"], ["--resume run", "--schedule"]),
    "seed": (["--resume", "run", "--seed", "3"], ["--resume run", "--seed"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_do_not_go_together_are_refused(site: Site, case: str) -> None:
    args, words = REFUSED[case]
    assert site.call("train", *args).refused(*words)
    assert sorted(path.name for path in site.folder.iterdir()) == ["three.toml"]


@pytest.mark.long
def test_the_python_interface_takes_a_run_up_too(copy: Path) -> None:
    result = asyncdni.train(resume=copy, set=["slow={}", "run.epochs=61"])
    assert result.folder == copy
    assert {stage["batches"] for stage in result.summary["stages"]} == {BATCHES + 5}
    again = asyncdni.train(resume=copy)  # complete: only read
    assert again.summary == json.loads((copy / "summary.json").read_text())
    with pytest.raises(ConfigError, match="expected an experiment, or resume=DIR"):
        asyncdni.train()
    with pytest.raises(ConfigError, match="source can't be given"):
        asyncdni.train(copy / "experiment.toml", resume=copy)
    with pytest.raises(ConfigError, match="out can't be given"):
        asyncdni.train(resume=copy, out=copy)


def test_models_of_another_make_are_refused_and_their_rates_may_change(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(THREE.replace('"locked"', '"synthetic"'))
    path.write_text(asyncdni.experiment.dumps(asyncdni.load(path)))
    for changes, words in (
        (["schedule.generator={kind='linear'}"], "the generator of stage one is"),
        (["stages.two.schedule={generator={kind='error', cells=2}}"], "the generator of stage two"),
        (["schedule.input_model.hidden=[3]"], "the input_model of stage one is"),
    ):
        with pytest.raises(ConfigError, match=words):
            changed_experiment(tmp_path, changes)
    for harmless in (
        "schedule.generator.rate=0.1",
        "schedule.fit_every=4",
        "schedule.name=locked",
        "schedule.generator={kind='zero'}",
        "optimizer.decay={name='cosine'}",
    ):
        changed_experiment(tmp_path, [harmless])
