"""What else than a signal takes a worker down: memory, numbers, a coordinator asleep.

A layer of the user's own misbehaves once, in the first process that comes to its batch.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from processes import Site, make_site, records, weights
from test_recovery import BATCHES, THREE, finished

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Action,
    Commit,
    Event,
    Exited,
    Fail,
    Finish,
    Launch,
    Look,
    Looked,
    Record,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.liveness import Sight
from asyncdni.drivers.real import coordinator as coordinate_module
from asyncdni.drivers.real.coordinator import Stops, coordinate
from asyncdni.drivers.real.machine import limit_memory, written
from asyncdni.errors import CheckpointError, ConfigError, Interrupted, LaunchError, WorkerLost
from asyncdni.store.tensors import load_stage
from asyncdni.wire.coordinator import CoordinatorTransport

LAYER = '''\
"""Passes on what comes, but for one batch, once in a run."""

import os
import pathlib

import numpy as np

DONE = pathlib.Path(__file__).with_name("done")


class Bad:
    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.forwards = at, how, 0
        self.params, self.grads, self.buffers, self.fresh = {}, {}, {}, True

    def output_shape(self, shape):
        return shape

    def build(self, shape, dtype, streams):
        return shape

    def forward(self, x, slot):
        self.forwards += 1
        if self.forwards == self.at and not DONE.exists():
            DONE.touch()
            return getattr(self, self.how)(x)
        return x

    def memory(self, x):
        return np.zeros(2**62, np.uint8)

    def nan(self, x):
        return x * np.float32("nan")

    def backward(self, grad_y, slot, *, learn, send):
        return grad_y if send else None

    def evaluate(self, x):
        return x
'''


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("bad.py", LAYER)
        yield made


def run(site: Site, how: str, *args: str, at: int = 60) -> dict[str, Any]:
    """The summary of a run to the end in which `how` happens."""
    layer = f'{{ "bad:Bad" = {{ at = {at}, how = "{how}" }} }}'
    text = THREE.replace('"tanh"]', f'"tanh", {layer}]')
    site.write("three.toml", text.partition("[slow.one]")[0])
    flags = ("--allow-import", "--out", "run", *args)
    return finished(site, site.start("train", "three.toml", *flags))


@pytest.mark.long
def test_a_worker_that_has_no_memory_is_replaced_and_nothing_is_lost(site: Site) -> None:
    summary = run(site, "memory")
    (lost,) = records(site.folder / "run", "lost")
    expected = "worker two failed: worker two is out of memory: Unable to allocate"
    assert lost["text"].startswith(expected)
    assert {stage["batches"] for stage in summary["stages"]} == {BATCHES}
    after = weights(site.folder / "run")
    again = site.run("train", "three.toml", "--allow-import", "--out", "straight")
    assert again.code == 0  # in which nothing happens any more
    assert weights(site.folder / "straight") == after


def test_numbers_that_go_wrong_end_the_run_by_default(site: Site) -> None:
    layer = '{ "bad:Bad" = { at = 60, how = "nan" } }'
    site.write("three.toml", THREE.replace('"tanh"]', f'"tanh", {layer}]'))
    done = site.run("train", "three.toml", "--allow-import", "--out", "run")
    done.refused("stage two", "not all numbers are finite")


@pytest.mark.parametrize("schedule", ["locked", pytest.param("synthetic", marks=pytest.mark.long)])
def test_with_roll_back_all_return_to_the_checkpoint_and_go_on_behind_the_batch(
    site: Site, schedule: str
) -> None:
    summary = run(site, "nan", "--set", "numbers.policy=roll_back", "--schedule", schedule)
    (wrong,) = records(site.folder / "run", "numbers")
    assert "finite" in wrong["text"]
    (opened,) = records(site.folder / "run", "round")
    assert opened["restore"].startswith("checkpoints/")
    assert opened["start"] >= 60
    assert (summary["rollbacks"], summary["restarts"]) == (1, 0)  # all processes have stayed
    for stage in summary["stages"]:
        assert stage["missed"] > 0
        assert stage["batches"] + stage["missed"] == BATCHES
    for stage in ("one", "two", "three"):
        arrays = load_stage(site.folder / "run" / "final", stage)
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_memory_limit_below_what_a_process_has_is_refused(tmp_path: Path) -> None:
    statm = tmp_path / "statm"
    statm.write_text("100000 5000 0 0 0 0 0\n")
    held = 100000 * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(ConfigError, match=f"limits.memory_bytes: {held} is less than the {held}"):
        limit_memory(held, statm)


# --- the coordinator's own loop ------------------------------------------------------------------


class Clock:
    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def monotonic(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


class Office:
    """Ends at the first word that it is woken by, or does what it is asked to first."""

    def __init__(self, *asked: Action) -> None:
        self.asked = list(asked)
        self.events: list[Event] = []
        self.pauses: list[float] = []

    def paused(self, for_s: float, now: float) -> None:
        self.pauses.append(for_s)

    def handle(self, event: Event, now: float) -> list[Action]:
        self.events.append(event)
        if isinstance(event, Woke):
            return [self.asked.pop(0)] if self.asked else [Finish()]
        return []

    def deadline(self) -> None:
        return None


def transport(looks: int) -> CoordinatorTransport:
    """One that has something to tell, late: at its second look and from then on."""
    arrivals = [[], *[[(b"a", "late news")]] * looks]
    return cast(
        CoordinatorTransport,
        SimpleNamespace(receive=lambda timeout_s: arrivals.pop(0), rejected=[], address="ipc://x"),
    )


def drive(office: Office, **options: Any) -> None:
    values = {"commit": lambda cut: None, "command": lambda stage: f"start {stage}", **options}
    values.setdefault("stops", Stops())
    observe = values.pop("observe", lambda kind, values: None)
    coordinate(cast(Coordinator, office), transport(9), observe, **values)


def test_a_coordinator_that_was_asleep_tells_its_machine_for_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(0.0, 100.0, 100.1, 100.2, 100.7)
    monkeypatch.setattr(coordinate_module, "time", clock)
    office = Office()
    drive(office)
    assert office.pauses == [100.0]  # what the machine does about it: see test_deaths


def test_without_a_launcher_the_user_is_told_what_to_type() -> None:
    told: list[tuple[str, Any]] = []
    drive(Office(Launch("b")), observe=lambda kind, values: told.append((kind, values)))
    ((kind, values),) = told
    assert kind == "waiting"
    assert (values["stage"], values["command"]) == ("b", "start b")


def test_a_launcher_is_asked_for_a_new_process() -> None:
    asked: list[str] = []
    launcher = SimpleNamespace(exited=lambda: [], moves=lambda: [], restart=asked.append)
    drive(Office(Launch("b")), launch=lambda address: launcher)
    assert asked == ["b"]


@pytest.mark.parametrize("launched", [False, True])
def test_a_silent_worker_is_looked_at_by_whoever_has_started_it(launched: bool) -> None:
    launcher = SimpleNamespace(exited=lambda: [], moves=lambda: [], look=lambda name: Sight.STARVED)
    office = Office(Look("b"))
    drive(office, launch=(lambda address: launcher) if launched else None)
    assert Looked("b", Sight.STARVED if launched else Sight.UNSEEN) in office.events


@pytest.mark.parametrize("said", ["", "importing numpy", "known"])
def test_the_end_of_a_run_is_told_with_the_last_lines_of_whoever_it_is_about(said: str) -> None:
    launcher = SimpleNamespace(exited=lambda: [], moves=lambda: [], last_lines=lambda name: said)
    fail = Fail("WorkerLost", "b is lost; known", stages=("b",))
    with pytest.raises(WorkerLost) as caught:
        drive(Office(fail), launch=lambda address: launcher)
    more = "; the last lines of b: importing numpy" if said == "importing numpy" else ""
    assert str(caught.value) == f"b is lost; known{more}"


def test_a_run_that_nobody_has_joined_tells_what_to_type() -> None:
    with pytest.raises(LaunchError) as caught:
        drive(Office(Fail("LaunchError", "no worker for b", stages=("b",))))
    assert str(caught.value) == "no worker for b; to be started by: start b"
    with pytest.raises(WorkerLost) as lost:  # which no other process would change
        drive(Office(Fail("WorkerLost", "b is lost", stages=("b",))))
    assert str(lost.value) == "b is lost"


def test_a_process_that_can_not_be_started_has_died_at_once() -> None:
    """So that it is tried again, as often as others are."""

    def restart(name: str) -> None:
        raise LaunchError("can't start worker b: no more processes")

    office = Office(Launch("b"))
    drive(
        office,
        launch=lambda address: SimpleNamespace(
            exited=lambda: [], moves=lambda: [], restart=restart
        ),
    )
    assert Exited("b", 1, "can't start worker b: no more processes") in office.events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_for_a_stop_and_becomes_the_exit_code(number: int) -> None:
    office = Office(Record("x", {}), Fail("Interrupted", "all is kept", orderly=True))
    inherited = signal.signal(number, signal.SIG_DFL)  # whoever started the tests may ignore it
    try:
        with pytest.raises(Interrupted, match="all is kept") as caught:
            drive(office, observe=lambda kind, values: signal.raise_signal(number))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)
    assert UserStop() in office.events
    assert (caught.value.exit_code, caught.value.orderly) == (128 + number, True)


def test_what_an_observer_has_raised_is_raised_behind_the_stop_and_says_what_is_kept() -> None:
    for error in (ValueError("x"), SystemExit(7), KeyboardInterrupt()):
        end = Fail("Interrupted", "all is kept", orderly=True)
        stops, office = Stops(), Office(Record("x", {}), end)

        def observe(kind: str, values: Any, stops: Stops = stops, e: Any = error) -> None:
            stops.failed(e)

        with pytest.raises(type(error)) as caught:
            drive(office, observe=observe, stops=stops)
        assert caught.value is error and error.__notes__ == ["all is kept"]
        assert office.events.count(UserStop()) == 1


def test_a_run_in_a_thread_stops_when_the_program_around_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops = Stops()
    assert not stops.take()
    ended = SimpleNamespace(is_alive=lambda: False)
    monkeypatch.setattr(threading, "main_thread", lambda: ended)
    assert stops.take()
    assert not stops.take()  # once


def test_a_checkpoint_is_committed_and_answered() -> None:
    office, cuts = Office(Commit("checkpoints/000001", {}, {}, whole=True)), []
    drive(office, commit=cuts.append)
    assert [cut.tag for cut in cuts] == ["checkpoints/000001"]
    assert Stored("checkpoints/000001") in office.events


def test_a_checkpoint_that_can_not_be_committed_ends_the_run() -> None:
    def full(cut: Commit) -> None:
        raise CheckpointError("disk full")

    with pytest.raises(CheckpointError, match="disk full"):
        drive(Office(Commit("checkpoints/000001", {}, {}, whole=True)), commit=full)


# --- descriptors that strangers have taken -------------------------------------------------------


def lacking(code: int) -> CheckpointError:
    error = CheckpointError("can't write")
    error.__cause__ = OSError(code, os.strerror(code))
    return error


def test_what_can_t_be_written_for_want_of_descriptors_is_written_once_there_are_some() -> None:
    left = [lacking(errno.EMFILE), lacking(errno.ENFILE)]

    def write() -> str:
        if left:
            raise left.pop()
        return "done"

    assert written(write) == "done"
    for code, patience_s in ((errno.ENOSPC, 60.0), (errno.EMFILE, -1.0)):
        left = [lacking(code), lacking(code)]
        with pytest.raises(CheckpointError):
            written(write, patience_s)
        assert len(left) == 1  # not tried again
