"""Which core a worker gets, that all of its threads stay there, and who takes long turns."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import networks
import pytest
from each import each
from processes import ENDLESS, TINY, Site, await_training, make_site

from asyncdni import config, experiment
from asyncdni.drivers.real.machine import choose_core, usable_cores, usable_gpus, wants_long_turns
from asyncdni.errors import ConfigError

LOCKED = {"name": "locked"}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "zero"}}

several_cores = pytest.mark.skipif(
    len(usable_cores()) < 2 or not Path("/proc/self/task").is_dir(),
    reason="needs two cores, and a system that says which ones a thread may use",
)


def chosen(schedule: dict[str, Any] = LOCKED, **run: Any) -> config.Experiment:
    return networks.design(networks.chain(3), schedule, run=run).experiment


def cores(given: config.Experiment, workers: int, usable: Sequence[int]) -> list[int | None]:
    """Of each worker."""
    return [choose_core(given, index, workers, usable) for index in range(workers)]


# --- the choice ----------------------------------------------------------------------------------


def test_neighbours_of_a_locked_chain_get_different_cores_in_turn() -> None:
    assert cores(chosen(), 5, [2, 3]) == [2, 3, 2, 3, 2]
    assert cores(chosen(), 3, [0, 4, 6, 7]) == [0, 4, 6]


def test_decoupled_workers_are_left_to_the_system() -> None:
    assert cores(chosen(SYNTHETIC), 3, [0, 1]) == [None, None, None]


def test_none_leaves_locked_workers_to_the_system_too() -> None:
    assert cores(chosen(pin="none"), 3, [0, 1]) == [None, None, None]


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC])
def test_a_list_says_the_core_of_each_worker_under_any_schedule(schedule: dict[str, Any]) -> None:
    assert cores(chosen(schedule, pin=[1, 1, 0]), 3, [0, 1]) == [1, 1, 0]


def test_a_worker_alone_may_use_all_cores() -> None:
    assert cores(chosen(), 1, [0, 1]) == [None]


def test_workers_with_several_blas_threads_may_use_all_cores() -> None:
    assert cores(chosen(threads=2), 3, [0, 1]) == [None, None, None]


def test_a_list_counts_for_a_worker_alone_and_for_several_blas_threads() -> None:
    alone = chosen(pin=[1], split=[3], threads=2)
    assert cores(alone, 1, [0, 1]) == [1]


def test_where_the_system_names_no_cores_none_is_chosen() -> None:
    assert cores(chosen(), 3, []) == [None, None, None]


def test_a_core_that_the_process_may_not_use_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_core(chosen(pin=[0, 7, 1]), 1, 3, [0, 1])
    assert str(caught.value) == "run.pin: worker 1 may not run on core 7, only on 0, 1"


@each(
    "schedule, pin, cores, wanted",
    [
        (SYNTHETIC, "auto", [0], True),
        ({"name": "local_loss"}, "auto", [3], True),
        (SYNTHETIC, "auto", [0, 1], False),  # at most two of three share a core
        (SYNTHETIC, "auto", [], False),  # the system names none
        (SYNTHETIC, "none", [0], False),
        (SYNTHETIC, [0, 0, 0], [0], False),
        (LOCKED, "auto", [0], False),
        ({"name": "delayed"}, "auto", [0], False),  # gradients are waited for
    ],
)
def test_decoupled_workers_that_crowd_the_cores_take_long_turns(
    schedule: dict[str, Any], pin: Any, cores: list[int], wanted: bool
) -> None:
    plan = networks.design(networks.chain(3), schedule, run={"pin": pin}).plan
    assert wants_long_turns(plan.groups, pin, cores) is wanted


# --- the option ----------------------------------------------------------------------------------


@each("pin, split", [([0], None), ([0, 1, 0], [1, 2]), ([], [3])])
def test_a_list_of_another_length_than_that_of_workers_is_refused(
    pin: list[int], split: list[int] | None
) -> None:
    workers = len(split or networks.chain(3))
    with pytest.raises(ConfigError) as caught:
        chosen(pin=pin, split=split)
    assert str(caught.value) == (
        f"run.pin: {pin} names {len(pin)} cores, expected {workers}, one for each worker"
    )


@each("pin, place", [([0, -1, 0], "run.pin[1]"), ([0, "1", 0], "run.pin[1]"), ("all", "run.pin")])
def test_what_is_no_list_of_cores_is_refused_by_place(pin: Any, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(pin=pin)
    assert str(caught.value).startswith(f"{place}: expected ")


@each("pin", ["auto", "none", [0, 1, 0]])
def test_the_option_reaches_the_workers_as_it_was_given(pin: Any) -> None:
    """They get the experiment as tables."""
    given = chosen(pin=pin)
    assert given.run.pin == pin
    assert experiment.parse(experiment.tables(given)) == given


# --- real threads --------------------------------------------------------------------------------

_PIN = """\
import ctypes, os, platform, struct, threading
from pathlib import Path
from asyncdni.drivers.real.machine import pin_process, take_long_turns, usable_cores

end = threading.Event()
before = threading.Thread(target=end.wait)
before.start()
pin_process(usable_cores()[-1])
take_long_turns()
after = threading.Thread(target=end.wait)
after.start()
threads = [int(task.name) for task in Path("/proc/self/task").glob("*")]
attr = ctypes.create_string_buffer(48)  # what sched_getattr(2) tells of the calling thread
ctypes.CDLL(None).syscall({"x86_64": 315, "aarch64": 275}[platform.machine()], 0, attr, 48, 0)
print(struct.unpack_from("=IIQiIQ", attr)[5])
print(*((os.sched_getaffinity(one), os.sched_getscheduler(one)) for one in threads), sep=";")
end.set()
"""


@several_cores
def test_a_process_changes_threads_from_before_and_after() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PIN], capture_output=True, text=True, timeout=60, check=True
    )
    turn_ns, places = done.stdout.strip().splitlines()
    threads = places.split(";")
    assert set(threads) == {str(({usable_cores()[-1]}, os.SCHED_BATCH))}
    assert len(threads) >= 3
    if tuple(map(int, platform.release().split(".")[:2])) >= (6, 12):
        assert int(turn_ns) == 20_000_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY)
        yield made


def _threads(pid: int) -> list[set[int]]:
    """The cores that each thread of a process may run on."""
    tasks = Path(f"/proc/{pid}/task").glob("*")
    return [os.sched_getaffinity(int(task.name)) for task in tasks]


@several_cores
@pytest.mark.parametrize(
    "pin", ["auto", *(pytest.param(pin, marks=pytest.mark.long) for pin in ("turned", "none"))]
)
def test_all_threads_of_locked_workers_run_where_the_option_says(site: Site, pin: str) -> None:
    """The one that computes, ZeroMQ's and the one that beats; three at least."""
    usable = usable_cores()
    low, high = usable[:2]
    option, hidden, top = {
        "auto": ('"auto"', {low}, {high}),
        "turned": (f"[{high}, {low}]", {high}, {low}),
        "none": ('"none"', set(usable), set(usable)),
    }[pin]
    args = ["--out", "run", "--schedule", "locked", "--set", f"run.pin={option}"]
    command = site.start("train", "tiny.toml", *args, *ENDLESS)
    pids = await_training(site.folder / "run")
    for stage, expected in (("hidden", hidden), ("top", top)):
        threads = _threads(pids[stage])
        assert len(threads) >= 3
        assert all(allowed == expected for allowed in threads), (stage, threads)
    command.interrupt()
    assert command.finished().code == 130


@several_cores
@pytest.mark.long
def test_three_decoupled_workers_on_one_core_take_long_turns(site: Site) -> None:
    """Each thread of each: the one that computes, ZeroMQ's and the one that beats."""
    middle = '[[stages]]\nname = "middle"\nlayers = [{ dense = 8 }]\n\n[[stages]]\nname = "top"'
    site.write("three.toml", TINY.replace('[[stages]]\nname = "top"', middle))
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})  # processes started from now on inherit it
    try:
        command = site.start("train", "three.toml", "--out", "run", *ENDLESS)
        pids = await_training(site.folder / "run", workers=3)
    finally:
        os.sched_setaffinity(0, usable)
    for pid in pids.values():
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").glob("*")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
    command.interrupt()
    assert command.finished().code == 130


@several_cores
def test_a_core_that_is_not_there_ends_the_run_in_one_line(site: Site) -> None:
    """Found by the worker, on whose machine it would be."""
    missing = max(usable_cores()) + 1000
    args = ["--out", "run", "--set", f"run.pin=[{usable_cores()[0]}, {missing}]"]
    finished = site.run("train", "tiny.toml", *args)
    finished.refused(f"run.pin: worker 1 may not run on core {missing}, only on ")


@each(
    "visible, usable",
    [(None, 3), ("", 0), ("0,2", 2), ("1,-1,2", 1), ("0,1,2,3", 3), ("GPU-8f0", 1)],
)
def test_gpus_are_those_that_cuda_lets_a_process_see(
    visible: str | None, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [Path(f"/dev/nvidia{number}") for number in range(3)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == usable
