"""Runs over every schedule, network and condition, each invariant checked after each event: none
hangs, all is accounted for, and a seed replays its run. A failure names its seed."""

from __future__ import annotations

import functools
import random

import pytest
from each import case, each
from random_runs import SCHEDULES, DrawnRun, assert_complete, draw_run

from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.simulation import Result

#: Synthetic has the most options: more seeds.
MANY = [(name, range(12, 132 if name == "synthetic" else 42)) for name in SCHEDULES]


@functools.cache
def simulated(name: str, seed: int) -> tuple[DrawnRun, Result]:
    run = draw_run(seed, (name,))
    return run, run.simulate()


@each("name", SCHEDULES)
@each("seed", range(12))
def test_a_run_of_any_schedule_finishes_with_all_accounted_for(name: str, seed: int) -> None:
    assert_complete(*simulated(name, seed))


@pytest.mark.long
@pytest.mark.parametrize(("name", "seeds"), MANY)
def test_so_do_many(name: str, seeds: range) -> None:
    for seed in seeds:
        with case(seed=seed):
            run = draw_run(seed, (name,))
            result = run.simulate()
            assert_complete(run, result)
            assert run.simulate().digest == result.digest


@each("name", SCHEDULES)
@each("seed", range(6))
def test_a_seed_replays_its_run(name: str, seed: int) -> None:
    assert draw_run(seed, (name,)).simulate().digest == simulated(name, seed)[1].digest


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 8), marks=pytest.mark.long)])
@each("name", SCHEDULES)
def test_the_same_with_arithmetic_and_the_codec_of_the_wire(name: str, seeds: range) -> None:
    for seed in seeds:
        with case(seed=seed):
            run = draw_run(seed, (name,))
            result = run.simulate(maths=True)
            assert_complete(run, result)
            assert run.simulate(maths=True, codec=True).digest == result.digest


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 18), marks=pytest.mark.long)])
@each("name", SCHEDULES)
def test_a_run_that_the_user_stops_drains_saves_and_leaves(name: str, seeds: range) -> None:
    """Also in the middle of a group of microbatches, and before the first batch."""
    stopped = 0
    for seed in seeds:
        with case(seed=seed):
            run, whole = simulated(name, seed)
            moment = random.Random(seed).uniform(0.95 * _start_s(whole), whole.virtual_s)
            stopped += _assert_stopped(run.simulate(stop_at_s=moment), whole)
    assert stopped > len(seeds) // 2


def _assert_stopped(result: Result, whole: Result) -> bool:
    """Whether it was stopped while it trained."""
    if isinstance(result.end, Finish):
        assert result.digest == whole.digest  # it was over before
        return False
    assert isinstance(result.end, Fail) and result.end.kind == "Interrupted", result.end
    if "nothing had been learned yet" in result.end.text:
        assert "saved" not in [kind for kind, _ in result.records]
        return False
    assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]
    assert all(own["in_flight"] == own["queue"] == 0 for own in result.counters.values())
    passed = {(own["batches"] or 0) + (own["missed"] or 0) for own in result.counters.values()}
    assert len(passed) == 1
    return True


def _start_s(result: Result) -> float:
    return float(next(v["time_s"] for kind, v in result.records if kind == "start"))
