"""Runs in which anything may go wrong, over all schedules, each invariant checked after
each event: each comes to its end with all samples accounted for, and a seed replays its run."""

from __future__ import annotations

import functools
import random
import shlex
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from each import case, each
from random_runs import SCHEDULES, DrawnRun, assert_survived, draw_faulty_run, eventful_runs

from asyncdni.__main__ import main
from asyncdni.core.events import Fail
from asyncdni.drivers.virtual.coordinator import Launcher
from asyncdni.drivers.virtual.faults import Faults, parse_faults
from asyncdni.drivers.virtual.simulation import Result

#: Runs of each schedule in which something went wrong.
FEW, MANY = 4, 20


@functools.cache
def eventful(name: str) -> list[tuple[DrawnRun, Result]]:
    return list(eventful_runs(FEW, name))


@each("name", SCHEDULES)
def test_a_run_survives_whatever_goes_wrong_and_its_seed_replays_it(name: str) -> None:
    for run, result in eventful(name):
        with case(seed=run.seed):
            assert_survived(run, result)
            assert run.simulate().digest == result.digest


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEDULES)
def test_so_do_many(name: str) -> None:
    first = eventful(name)[-1][0].seed + 1
    for run, result in eventful_runs(MANY - FEW, name, first):
        with case(seed=run.seed):
            assert_survived(run, result)


def test_most_kinds_of_faults_are_among_them() -> None:
    happened = {
        kind for name in SCHEDULES for _, result in eventful(name) for kind in result.fault_counts
    }
    common = {"crash", "pause", "slow", "partition", "break", "slow save", "torn save"}
    assert common <= happened
    assert {kind.split()[0] for kind in happened} > {"coordinator"}


@each("name", SCHEDULES)
def test_workers_may_outlive_several_coordinators(name: str) -> None:
    """Whatever they are doing at that moment."""
    faults = Faults(coordinator_crashes=3.0, resume_s=0.5, most=4)
    patient = (run for seed in count() if (run := draw_faulty_run(seed, (name,))).waits)
    found = ((run, replace(run, faults=faults).simulate()) for run in patient)
    run, result = next(one for one in found if taken_back(one[1]))
    with case(seed=run.seed):
        assert_survived(run, result)


def taken_back(result: Result) -> bool:
    return any(kind == "joined" and "again" in values for kind, values in result.records)


@each("name", SCHEDULES)
def test_a_stop_comes_to_an_end_whatever_goes_wrong_meanwhile(name: str) -> None:
    """In order, all being saved; or with what keeps it from that."""
    orderly = 0
    for seed in range(3):
        run = draw_faulty_run(seed, (name,))
        moment = random.Random(seed).uniform(0.3, 1.0) * run.simulate().virtual_s
        result = run.simulate(stop_at_s=moment)
        if isinstance(result.end, Fail) and result.end.orderly:
            orderly += 1
            assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]
            assert (
                len({(c["batches"] or 0) + (c["missed"] or 0) for c in result.counters.values()})
                == 1
            )
    assert orderly


def test_checkpoints_by_the_clock_do_not_hide_that_nothing_moves() -> None:
    run = draw_faulty_run(1001887, ("gpipe",))
    result = run.simulate()
    assert_survived(run, result)
    assert any(kind == "stuck" for kind, _ in result.records)


@each("seed", [1000726, 1000741])
def test_a_barrier_that_all_are_thrown_back_behind_is_had_again_and_counts_once(seed: int) -> None:
    run = draw_faulty_run(seed, ("synthetic",))
    assert_survived(run, run.simulate())


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.long)])
@each("name", SCHEDULES)
def test_the_same_with_arithmetic_and_the_codec_of_the_wire(name: str, count: int) -> None:
    for run, _ in eventful(name)[:count]:
        with case(seed=run.seed):
            result = run.simulate(maths=True)
            assert_survived(run, result)
            assert run.simulate(maths=True, codec=True).digest == result.digest


def test_faults_are_replayed_from_their_text() -> None:
    for run in (run for name in SCHEDULES for run, _ in eventful(name)):
        assert parse_faults(str(run.faults)) == run.faults


def test_a_failure_prints_the_command_that_replays_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many runs the first one that fails; here, as nobody starts a dead worker again."""
    monkeypatch.setattr(Launcher, "restart", lambda *_: None)
    seeds = (seed for seed in range(100) if draw_faulty_run(seed).faults.crashes > 1)
    words = draw_faulty_run(next(seeds)).words(tmp_path / "drawn.toml")
    assert main([*words[1:], "--runs", "20"]) == 1
    first = capsys.readouterr().err
    command = first.partition("replay: ")[2]
    assert "--faults" in command and "--runs" not in command
    assert main(shlex.split(command)[1:]) == 1
    assert capsys.readouterr().err == first
