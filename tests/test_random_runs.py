"""Hundreds of runs over every schedule, network and condition, each invariant checked after each
event: none hangs, all is accounted for, and a seed replays its run. A failure names its seed."""

from __future__ import annotations

import random

import pytest
from random_runs import assert_complete, run_seed

from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.simulation import Result

NAMES = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic")


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_schedule_finishes_with_all_accounted_for(name: str, seed: int) -> None:
    design, result = run_seed(seed, (name,))
    assert_complete(design, result)


@pytest.mark.parametrize("seed", range(1000, 1250))
def test_a_run_of_synthetic_finishes_whatever_its_options(seed: int) -> None:
    """It has the most options: more seeds."""
    design, result = run_seed(seed, ("synthetic",))
    assert_complete(design, result)


@pytest.mark.parametrize("seed", range(40))
def test_a_seed_replays_its_run(seed: int) -> None:
    assert run_seed(seed, NAMES)[1].digest == run_seed(seed, NAMES)[1].digest


@pytest.mark.parametrize("seed", range(30))
def test_the_same_with_arithmetic_and_the_codec_of_the_wire(seed: int) -> None:
    design, result = run_seed(seed, NAMES, maths=True)
    assert_complete(design, result)
    assert run_seed(seed, NAMES, maths=True, codec=True)[1].digest == result.digest


@pytest.mark.parametrize("seed", range(120))
def test_a_run_that_the_user_stops_drains_saves_and_leaves(seed: int) -> None:
    """Also in the middle of a group of microbatches."""
    _, whole = run_seed(seed, NAMES)
    start_s = _start_s(whole)
    moment = random.Random(seed).uniform(start_s, whole.virtual_s)
    _, result = run_seed(seed, NAMES, stop_at_s=moment)
    if isinstance(result.end, Finish):
        assert result.digest == whole.digest  # it was over before
        return
    assert isinstance(result.end, Fail) and result.end.kind == "Interrupted", result.end
    assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]
    assert all(own["in_flight"] == own["queue"] == 0 for own in result.counters.values())
    passed = {(own["batches"] or 0) + (own["missed"] or 0) for own in result.counters.values()}
    assert len(passed) == 1


def _start_s(result: Result) -> float:
    return float(next(v["time_s"] for kind, v in result.records if kind == "start"))
