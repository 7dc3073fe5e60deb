"""Workers that die, with real processes and kill -9: what is lost, and what is not.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Command, Site, make_site, records, until, until_recorded, weights

#: Three workers, 60 epochs of 5 batches, the last one smaller. The pauses only give a test the time
#: to do its work: a number of the run they are not.
THREE = """\
[data]
name = "addition"
bits = 4
examples = 90
test_examples = 20
batch_size = 20

[[stages]]
name = "one"
layers = [{ dense = 12 }, "batch_norm", "relu"]

[[stages]]
name = "two"
layers = [{ dense = 10 }, "tanh"]

[[stages]]
name = "three"
layers = [{ dense = 4 }]
loss = "sigmoid_cross_entropy"

[schedule]
name = "locked"

[checkpoint]
every = 5.0
snapshot_every = "50ms"

[run]
epochs = 60
seed = 5
evaluate_every = 10.0

[slow.one]
pause = "4ms"
chance = 1.0
"""
#: Leaves the pauses out of a run that nobody disturbs any more.
UNPAUSED = ("--set", "slow={}")
STAGES = ("one", "two", "three")
BATCHES = 60 * 5


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("three.toml", THREE)
        yield made


def start(site: Site, *args: str) -> Command:
    return site.start("train", "three.toml", "--out", "run", *args)


def pids(site: Site) -> dict[str, int]:
    """The process of each worker that has joined last."""
    return {one["stage"]: one["pid"] for one in records(site.folder / "run", "joined")}


def until_learning(site: Site, stage: str, updates: int) -> None:
    """Until that worker has reported so many updates."""

    def found() -> bool:
        reports = records(site.folder / "run", "report")
        return any(r["stage"] == stage and r["values"]["updates"] >= updates for r in reports)

    until(found, f"{updates} updates of {stage}")


def kill(site: Site, stage: str, number: int = signal.SIGKILL) -> int:
    pid = pids(site)[stage]
    os.kill(pid, number)
    return pid


def finished(site: Site, command: Command) -> dict[str, Any]:
    """The summary of a run that has come to its end."""
    done = command.finished()
    assert (done.code, done.err) == (0, "")
    summary: dict[str, Any] = json.loads((site.folder / "run" / "summary.json").read_text())
    return summary


# --- all go back: nothing is lost but time -------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights and history of a run in which nobody dies."""
    with make_site(tmp_path_factory.mktemp("undisturbed")) as site:
        site.write("three.toml", THREE)
        summary = finished(site, start(site, *UNPAUSED))
        history = [(one["samples"], one["accuracy"], one["loss"]) for one in summary["history"]]
        return {"weights": weights(site.folder / "run"), "history": history}


def assert_undisturbed(site: Site, summary: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    history = [(one["samples"], one["accuracy"], one["loss"]) for one in summary["history"]]
    assert history == undisturbed["history"]
    assert weights(site.folder / "run") == undisturbed["weights"]
    assert {stage["batches"] for stage in summary["stages"]} == {BATCHES}
    assert {stage["missed"] for stage in summary["stages"]} == {0}
    told = [one["lost_updates"] for one in records(site.folder / "run", "round")]
    assert summary["lost_updates"] == sum(sum(one.values()) for one in told)


def test_locked_ends_with_the_weights_of_the_undisturbed_run(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    kill(site, "one")
    summary = finished(site, command)
    assert summary["restarts"] == 1
    (lost,) = records(site.folder / "run", "lost")
    assert (lost["stage"], lost["text"]) == ("one", "worker one died with signal 9")
    (opened,) = records(site.folder / "run", "round")
    assert opened["restore"].startswith("checkpoints/") and opened["start"] > 0
    assert_undisturbed(site, summary, undisturbed)


@pytest.mark.long
def test_before_the_first_checkpoint_all_begin_anew(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site, "--set", "checkpoint.every=never")
    until_learning(site, "two", 3)
    kill(site, "two")
    summary = finished(site, command)
    assert [one["restore"] for one in records(site.folder / "run", "round")] == ["initial"]
    assert_undisturbed(site, summary, undisturbed)


@pytest.mark.long
def test_a_worker_may_be_killed_while_it_joins_and_again_and_again(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    command = start(site)
    folder = site.folder / "run"
    until_recorded(folder, "joined", 3)
    kill(site, "three")  # with or without having been started
    until_recorded(folder, "joined", 4)
    kill(site, "three")
    until_recorded(folder, "cut")
    for stage in STAGES:  # two of them while others are still away
        kill(site, stage)
    until_recorded(folder, "back", len(records(folder, "back")) + 1)
    summary = finished(site, command)
    assert summary["restarts"] >= 4
    assert_undisturbed(site, summary, undisturbed)


@pytest.mark.long
def test_a_worker_that_hangs_is_replaced(site: Site, undisturbed: dict[str, Any]) -> None:
    command = start(site, "--set", "limits.silence_s=0.5")
    until_recorded(site.folder / "run", "cut")
    pid = kill(site, "two", signal.SIGSTOP)
    summary = finished(site, command)
    (lost,) = records(site.folder / "run", "lost")
    assert f"worker two (process {pid} on " in lost["text"]
    assert "no sign of life" in lost["text"]
    assert_undisturbed(site, summary, undisturbed)


# --- the others go on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "victim"),
    [
        ("synthetic", "two"),
        pytest.param("synthetic", "three", marks=pytest.mark.long),
        pytest.param("local_loss", "one", marks=pytest.mark.long),
    ],
)
def test_the_others_go_on_and_each_batch_counts_once(
    site: Site, schedule: str, victim: str
) -> None:
    command = start(site, "--schedule", schedule)
    until_learning(site, victim, 20)
    kill(site, victim)
    summary = finished(site, command)
    folder = site.folder / "run"
    assert [one["restore"] for one in records(folder, "round")] == ["keep"]
    (back,) = records(folder, "back")
    assert back["stage"] == victim
    assert summary["lost_updates"] == back["lost_updates"]
    for stage in summary["stages"]:
        assert stage["batches"] + stage["missed"] == BATCHES
        assert stage["updates"] >= stage["batches"]
    dead = next(stage for stage in summary["stages"] if stage["name"] == victim)
    assert dead["batches"] > 0
    assert dead["snapshots"] > 0


@pytest.mark.long
def test_a_stage_upstream_of_the_dead_learns_while_it_is_away(site: Site) -> None:
    """The replacement of the last stage hangs in its start-up until the first one has got on."""
    flag = site.folder / "go"
    code = (
        "import os, pathlib, sys, time\n"
        "if 'worker' in sys.orig_argv and 'three' in sys.orig_argv:\n"
        f"    log = pathlib.Path({str(site.folder / 'run/logs/three.log')!r})\n"
        "    print('up', flush=True)\n"
        f"    while log.read_text().count('up') > 1 and not os.path.exists({str(flag)!r}):\n"
        "        time.sleep(0.01)\n"
    )
    site.write("patch/sitecustomize.py", code)
    command = site.start(
        *("train", "three.toml", "--out", "run", "--schedule", "synthetic"),
        *("--set", "run.epochs=200", "--set", "run.evaluate_every=200"),
        *("--set", "checkpoint.every=never"),  # at a barrier all wait for all
        PYTHONPATH=str(site.folder / "patch"),
        ASYNCDNI_FORK="0",  # each process of a worker runs the patch
    )
    until_learning(site, "one", 20)
    kill(site, "three")
    (lost,) = until_recorded(site.folder / "run", "lost")

    def done() -> int:
        reports = records(site.folder / "run", "report")
        since = [r for r in reports if r["stage"] == "one" and r["time_s"] > lost["time_s"]]
        return since[-1]["values"]["updates"] - since[0]["values"]["updates"] if since else 0

    until(lambda: done() > 100, "100 updates without the last stage")
    flag.touch()
    summary = finished(site, command)
    one, _, three = summary["stages"]
    assert one["missed"] == 0
    assert three["missed"] > 100
    assert three["batches"] + three["missed"] == 200 * 5


# --- limits --------------------------------------------------------------------------------------


def test_without_restarts_the_first_death_ends_the_run(site: Site) -> None:
    command = start(site, "--set", "recovery.restarts=0")
    until_learning(site, "two", 3)
    kill(site, "two")
    command.finished().refused("worker two died with signal 9")


def test_a_worker_that_dies_again_and_again_ends_the_run_after_the_limit(site: Site) -> None:
    """Its replacements die as soon as they have built their stage."""
    code = (
        "import os, pathlib, signal, sys\n"
        "if 'worker' in sys.orig_argv and 'two' in sys.orig_argv:\n"
        f"    log = pathlib.Path({str(site.folder / 'run/logs/two.log')!r})\n"
        "    print('up', flush=True)\n"
        "    if log.read_text().count('up') > 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    site.write("patch/sitecustomize.py", code)
    command = site.start(
        *("train", "three.toml", "--out", "run", "--set", "recovery.restarts=3"),
        PYTHONPATH=str(site.folder / "patch"),
        ASYNCDNI_FORK="0",  # each process of a worker runs the patch
    )
    until_learning(site, "two", 3)
    kill(site, "two")
    line = command.finished().refused("worker two died with signal 9")
    assert "in 4 tries it has not got farther than about batch" in line
    assert len(records(site.folder / "run", "launch")) == 3


def test_a_worker_over_its_memory_limit_is_named_with_the_limit(site: Site) -> None:
    line = start(site, "--set", f"limits.memory_bytes={2**28}").finished()
    line.refused("limits.memory_bytes", str(2**28))
