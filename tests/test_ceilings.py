"""What arithmetic allows: by hand, and against what the simulator reaches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.metrics.ceilings import ceiling, locked_period
from asyncdni.simulator import Costs, Links, Result, simulate

Seconds = dict[str, dict[str, float]]

CHAIN: Seconds = {
    "a": {"R": 1, "F": 1, "B": 2, "U": 1},
    "b": {"F": 1, "B": 2, "U": 1},
}
CHAIN_PRODUCERS = {"a": [], "b": ["a"]}

#: The same with the backward of b in two halves, as in the picture in `metrics.ceilings`.
HALVES: Seconds = {
    "a": {"R": 1, "F": 1, "B": 2, "U": 1},
    "b": {"F": 1, "b": 1, "W": 1, "U": 1},
}

#: root to left and right, both to top.
FORK: Seconds = {
    "root": {"F": 1, "B": 1, "U": 1},
    "left": {"F": 10, "B": 2, "U": 1},
    "right": {"F": 3, "B": 8, "U": 1},
    "top": {"F": 1, "B": 1, "U": 1},
}
FORK_PRODUCERS = {"left": ["root"], "right": ["root"], "top": ["left", "right"]}


def test_the_period_of_a_locked_chain_is_the_way_down_and_back_and_the_update_of_its_first() -> (
    None
):
    assert ceiling("locked", CHAIN, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 7)


def test_learning_that_the_producer_does_not_wait_for_is_off_the_locked_circle() -> None:
    """F, F, b, B and U are 1 + 1 + 1 + 2 + 1; all that b does is 4, all that both do 9."""
    assert locked_period(HALVES, CHAIN_PRODUCERS) == pytest.approx(6)
    assert ceiling("locked", HALVES, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 6)
    assert ceiling("locked", HALVES, CHAIN_PRODUCERS, cores=1) == pytest.approx(1 / 9)


def test_a_very_slow_second_half_of_a_backward_closes_the_longest_circle() -> None:
    """F, b, W and U of b are 1 + 1 + 9 + 1; the way through a is still 6."""
    costs = {**HALVES, "b": {**HALVES["b"], "W": 9.0}}
    assert locked_period(costs, CHAIN_PRODUCERS) == pytest.approx(12)


def test_a_decoupled_chain_is_as_fast_as_its_slowest_worker() -> None:
    assert ceiling("synthetic", CHAIN, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 5)


def test_more_cores_than_workers_help_nobody() -> None:
    for schedule in ("locked", "synthetic"):
        two = ceiling(schedule, CHAIN, CHAIN_PRODUCERS, cores=2)
        assert ceiling(schedule, CHAIN, CHAIN_PRODUCERS, cores=64) == two


def test_one_core_does_all_the_work_of_all_workers() -> None:
    for schedule in ("locked", "synthetic"):
        assert ceiling(schedule, CHAIN, CHAIN_PRODUCERS, cores=1) == pytest.approx(1 / 9)


def test_few_cores_hold_back_a_decoupled_chain_of_equals() -> None:
    costs = {name: {"F": 1.0, "B": 2.0} for name in "abcd"}
    producers = {"b": ["a"], "c": ["b"], "d": ["c"]}
    assert ceiling("synthetic", costs, producers, cores=2) == pytest.approx(2 / 12)
    assert ceiling("synthetic", costs, producers, cores=3) == pytest.approx(3 / 12)
    assert ceiling("synthetic", costs, producers, cores=9) == pytest.approx(1 / 3)


def test_down_through_one_branch_and_back_through_the_other() -> None:
    """root 1, left 10, top 1 + 1, right 8, root 1 + 1."""
    assert locked_period(FORK, FORK_PRODUCERS) == pytest.approx(23)
    assert ceiling("locked", FORK, FORK_PRODUCERS, cores=4) == pytest.approx(1 / 23)
    assert ceiling("synthetic", FORK, FORK_PRODUCERS, cores=4) == pytest.approx(1 / 13)


def test_a_worker_alone_does_one_op_after_the_other_whatever_the_schedule_and_the_cores() -> None:
    costs = {"all": {"R": 0.5, "F": 1.0, "B": 2.0, "U": 0.5}}
    for schedule in ("locked", "synthetic"):
        assert ceiling(schedule, costs, {}, cores=8) == pytest.approx(1 / 4)


def test_a_very_slow_update_of_a_later_stage_closes_the_longest_circle() -> None:
    """F, B and U of b are 1 + 2 + 9; the way through a is 1 + 1 + 2 + 2 + 1."""
    costs = {**CHAIN, "b": {"F": 1.0, "B": 2.0, "U": 9.0}}
    assert locked_period(costs, CHAIN_PRODUCERS) == pytest.approx(12)


def test_reading_that_takes_longer_than_all_waiting_slows_the_host_down() -> None:
    """The host of the data does R, F, B and U one after the other: 9 + 1 + 2 + 1."""
    costs = {**CHAIN, "a": {**CHAIN["a"], "R": 9.0}}
    assert ceiling("locked", costs, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 13)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'gpipe', expected locked, synthetic"):
        ceiling("gpipe", CHAIN, CHAIN_PRODUCERS, cores=2)


@pytest.mark.parametrize(
    ("costs", "producers", "cores", "text"),
    [
        (CHAIN, {"a": ["b"]}, 2, "a takes activations of b, which is no worker before"),
        (CHAIN, {"b": ["data"]}, 2, "b takes activations of data"),
        (CHAIN, CHAIN_PRODUCERS, 0, "0 cores, expected at least 1"),
        ({"a": {"F": -1.0}}, {}, 1, "F of a takes -1.0 s"),
        ({"a": {"F": float("nan")}}, {}, 1, "F of a takes nan s"),
        ({"a": {"F": 0.0}}, {}, 1, "no op takes any time"),
        ({}, {}, 1, "no op takes any time"),
    ],
)
def test_what_makes_no_sense_is_refused(
    costs: Seconds, producers: dict[str, list[str]], cores: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        ceiling("locked", costs, producers, cores)


# --- against the simulator -----------------------------------------------------------------------

BATCHES = 40
BATCH_SIZE = 5
FREE = Links(latency_us=0.0, control_latency_us=0.0)

schedules = st.one_of(
    st.fixed_dictionaries({"name": st.just("locked"), "split_backward": st.booleans()}),
    st.fixed_dictionaries(
        {
            "name": st.just("synthetic"),
            "generator": st.just({"kind": "linear"}),
            "target": st.sampled_from(["true", "bootstrap"]),
            "fit_every": st.sampled_from([1, 2, 4]),
            "correct": st.booleans(),
        }
    ),
)
micros = st.integers(1, 400).map(float)
costs = st.builds(
    Costs,
    read_us=micros,
    forward_us=micros,
    predict_us=micros,
    backward_us=micros,
    relay_us=micros,
    learn_us=micros,
    update_us=micros,
    fit_us=micros,
    scale=st.dictionaries(
        st.sampled_from(["root", "a", "b", "c", "s0", "s1", "s2", "long", "aside", "top", "left"]),
        st.sampled_from([0.1, 0.5, 3.0, 10.0]),
    ),
)
chains_and_forks = st.sampled_from(
    [*(networks.chain(length) for length in (1, 2, 3, 5)), networks.fork(), networks.diamond()]
)


def reached(
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs
) -> tuple[float, float, float]:
    """Batches a second in virtual time, the ceiling of the ops that were done on as many cores as
    there are workers, and the seconds that a batch with all of its ops takes in one process."""
    design = networks.design(
        stages,
        schedule,
        data={"examples": BATCHES * BATCH_SIZE, "test_examples": BATCH_SIZE},
        run={"epochs": 1},
        limits={"window": BATCHES},  # credit is a matter of messages
    )
    result = simulate(design, seed=0, costs=pace, links=FREE, maths=False, check=False)
    producers = {
        group.name: [one for one in group.producers if one != "data"]
        for group in design.plan.groups
    }
    limit = ceiling(schedule["name"], per_batch(result), producers, len(producers))
    first = sum(end - start for ops in result.ops.values() for _, n, start, end in ops if n == 0)
    return result.samples_per_s / BATCH_SIZE, limit, first


def per_batch(result: Result) -> Seconds:
    found: Seconds = {}
    for name, ops in result.ops.items():
        sums: dict[str, float] = defaultdict(float)
        for letter, _, start, end in ops:
            sums[letter] += end - start
        found[name] = {letter: seconds / BATCHES for letter, seconds in sums.items()}
    return found


@settings(max_examples=40, deadline=None)
@given(st.one_of(chains_and_forks, st.just(networks.several_readers())), schedules, costs)
def test_no_simulated_run_is_above_its_ceiling(
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs
) -> None:
    rate, limit, _ = reached(stages, schedule, pace)
    assert rate <= limit * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(chains_and_forks, schedules, costs)
def test_a_simulated_run_with_free_messages_comes_close_to_its_ceiling(
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs
) -> None:
    """It is late by filling and draining the pipe alone: the time of two batches in one process."""
    rate, limit, alone = reached(stages, schedule, pace)
    assert BATCHES / rate <= BATCHES / limit + 2 * alone
