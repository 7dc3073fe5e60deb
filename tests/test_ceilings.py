"""What arithmetic allows: by hand, and against what the simulator reaches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networks
import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.report.breakdown import ceiling, locking_period

Seconds = dict[str, dict[str, float]]

CHAIN: Seconds = {
    "a": {"R": 1, "F": 1, "B": 2, "U": 1},
    "b": {"F": 1, "B": 2, "U": 1},
}
CHAIN_PRODUCERS = {"a": [], "b": ["a"]}

#: The same with the backward of b in two halves, as in the picture in `report.breakdown`.
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
    assert locking_period("locked", HALVES, CHAIN_PRODUCERS) == pytest.approx(6)
    assert ceiling("locked", HALVES, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 6)
    assert ceiling("locked", HALVES, CHAIN_PRODUCERS, cores=1) == pytest.approx(1 / 9)


def test_a_very_slow_second_half_of_a_backward_closes_the_longest_circle() -> None:
    """F, b, W and U of b are 1 + 1 + 9 + 1; the way through a is still 6."""
    costs = {**HALVES, "b": {**HALVES["b"], "W": 9.0}}
    assert locking_period("locked", costs, CHAIN_PRODUCERS) == pytest.approx(12)


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
    assert locking_period("locked", FORK, FORK_PRODUCERS) == pytest.approx(23)
    assert ceiling("locked", FORK, FORK_PRODUCERS, cores=4) == pytest.approx(1 / 23)
    assert ceiling("synthetic", FORK, FORK_PRODUCERS, cores=4) == pytest.approx(1 / 13)


def test_a_worker_alone_does_one_op_after_the_other_whatever_the_schedule_and_the_cores() -> None:
    costs = {"all": {"R": 0.5, "F": 1.0, "B": 2.0, "U": 0.5}}
    for schedule in ("locked", "synthetic"):
        assert ceiling(schedule, costs, {}, cores=8) == pytest.approx(1 / 4)


def test_a_very_slow_update_of_a_later_stage_closes_the_longest_circle() -> None:
    """F, B and U of b are 1 + 2 + 9; the way through a is 1 + 1 + 2 + 2 + 1."""
    costs = {**CHAIN, "b": {"F": 1.0, "B": 2.0, "U": 9.0}}
    assert locking_period("locked", costs, CHAIN_PRODUCERS) == pytest.approx(12)


def test_reading_that_takes_longer_than_all_waiting_slows_the_host_down() -> None:
    """The host of the data does R, F, B and U one after the other: 9 + 1 + 2 + 1."""
    costs = {**CHAIN, "a": {**CHAIN["a"], "R": 9.0}}
    assert ceiling("locked", costs, CHAIN_PRODUCERS, cores=2) == pytest.approx(1 / 13)


# --- microbatches, lag and latency ---------------------------------------------------------------

#: Four equal workers in a row; the update of four microbatches takes 1.
EQUAL: Seconds = {name: {"F": 1.0, "B": 2.0, "U": 0.25} for name in "abcd"}
EQUAL_PRODUCERS = {"b": ["a"], "c": ["b"], "d": ["c"]}


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipeline_of_equals_that_flushes_loses_its_filling_and_draining(schedule: str) -> None:
    """(m + n - 1)(F + B) + U a group: GPipe's own count of its bubble."""
    found = ceiling(schedule, EQUAL, EQUAL_PRODUCERS, cores=4, microbatches=4)
    assert found == pytest.approx(4 / (7 * 3 + 1))
    many = {name: {**ops, "U": 1 / 64} for name, ops in EQUAL.items()}
    found = ceiling(schedule, many, EQUAL_PRODUCERS, cores=4, microbatches=64)
    assert found == pytest.approx(64 / (67 * 3 + 1))


def test_one_microbatch_a_group_is_locked() -> None:
    for costs, producers in ((CHAIN, CHAIN_PRODUCERS), (HALVES, CHAIN_PRODUCERS),
                             (FORK, FORK_PRODUCERS)):  # fmt: skip
        for latency_s in (0.0, 5.0):
            one, gpipe, f1b, delayed = (
                ceiling(name, costs, producers, cores=4, latency_s=latency_s, lag=0)
                for name in ("locked", "gpipe", "1f1b", "delayed")
            )
            assert one == gpipe == f1b == delayed


def test_the_slowest_forward_and_the_slowest_backward_both_hold_gpipe_back() -> None:
    """a: F 5, B 1; b: F 1, B 5. Forwards are through at 16, b is through going back at 31, a at 32.
    1F1B goes back meanwhile: 5 + 3 (1 + 5) + 1."""
    costs = {"a": {"F": 5.0, "B": 1.0}, "b": {"F": 1.0, "B": 5.0}}
    assert ceiling("gpipe", costs, CHAIN_PRODUCERS, 2, microbatches=3) == pytest.approx(3 / 32)
    assert ceiling("1f1b", costs, CHAIN_PRODUCERS, 2, microbatches=3) == pytest.approx(3 / 24)


def test_latency_costs_locked_a_round_trip_a_batch_and_gpipe_one_a_group() -> None:
    """Down and back over three links: 6 latencies beside what the batch or group takes."""
    plain = {name: ceiling(name, EQUAL, EQUAL_PRODUCERS, 4) for name in ("locked", "synthetic")}
    plain["gpipe"] = ceiling("gpipe", EQUAL, EQUAL_PRODUCERS, 4, microbatches=4)
    locked = ceiling("locked", EQUAL, EQUAL_PRODUCERS, 4, latency_s=100.0)
    assert 1 / locked == pytest.approx(1 / plain["locked"] + 600)
    gpipe = ceiling("gpipe", EQUAL, EQUAL_PRODUCERS, 4, microbatches=4, latency_s=100.0)
    assert 4 / gpipe == pytest.approx(4 / plain["gpipe"] + 600)
    for name in ("synthetic", "local_loss"):
        found = ceiling(name, EQUAL, EQUAL_PRODUCERS, 4, latency_s=100.0)
        assert found == plain["synthetic"]


def test_one_f_one_b_waits_for_gradients_before_it_sends_more() -> None:
    """c has two under way: its third leaves a round trip after the first, and comes back one later.
    b, with three, gets its second gradient then, so that the fourth leaves a one later still: down
    3, up 3, and twice 2 in between."""
    found = ceiling("1f1b", EQUAL, EQUAL_PRODUCERS, 4, microbatches=4, latency_s=1e6)
    assert 4 / found == pytest.approx(10e6, rel=1e-4)


def test_a_lag_of_as_many_batches_as_there_are_workers_below_keeps_all_busy() -> None:
    """Without latency; with it, so many more batches share each round trip."""
    assert ceiling("delayed", EQUAL, EQUAL_PRODUCERS, 4) == pytest.approx(1 / 3.25)
    found = ceiling("delayed", EQUAL, EQUAL_PRODUCERS, 4, latency_s=1e6)
    assert 1 / found == pytest.approx(6e6 / 4, rel=1e-4)
    found = ceiling("delayed", EQUAL, EQUAL_PRODUCERS, 4, lag=99, latency_s=1e6)
    assert 1 / found == pytest.approx(6e6 / 100, rel=1e-3)


@each(
    "changes, text",
    [
        ({"microbatches": 0}, "0 microbatches, expected at least 1"),
        ({"latency_s": -1.0}, "latency -1.0 s, lag None, expected 0 or more"),
        ({"latency_s": float("inf")}, "latency inf s"),
        ({"lag": -1}, "lag -1, expected 0 or more"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ceiling("gpipe", CHAIN, CHAIN_PRODUCERS, cores=2, **changes)


# --- what is refused -----------------------------------------------------------------------------


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'zb-h1', expected locked, gpipe, 1f1b, delayed"):
        ceiling("zb-h1", CHAIN, CHAIN_PRODUCERS, cores=2)


@each(
    "costs, producers, cores, text",
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

GROUPED = ("gpipe", "1f1b")

schedules = st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["locked", "delayed"]), "split_backward": st.booleans()}
    ),
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(GROUPED),
            "microbatches": st.sampled_from([1, 2, 5]),
            "split_backward": st.booleans(),
        }
    ),
    st.just({"name": "local_loss"}),
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
latencies = st.sampled_from([0.0, 0.0, 50.0, 1000.0])
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
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs, latency_us: float
) -> tuple[float, float, float]:
    """(Micro)batches a second in virtual time, the ceiling of the ops that were done on as many
    cores as there are workers, and the seconds that a batch takes alone, there and back."""
    design = networks.design(
        stages,
        schedule,
        data={"batch_size": 10, "examples": 10 * BATCHES, "test_examples": 10},
        run={"epochs": 1},
        limits={"window": 10 * BATCHES},  # credit is a matter of messages
    )
    links = Links(latency_us=latency_us, control_latency_us=0.0)
    result = simulate(design, seed=0, costs=pace, links=links, maths=False, check=False)
    producers = {
        group.name: [one for one in group.producers if one != "data"]
        for group in design.plan.groups
    }
    units = design.plan.batches
    limit = ceiling(
        schedule["name"],
        per_batch(result, units),
        producers,
        len(producers),
        microbatches=design.plan.per_update,
        latency_s=latency_us * 1e-6,
    )
    members = design.plan.per_update
    first = sum(e - s for ops in result.ops.values() for _, n, s, e in ops if n < members)
    alone = first + 2 * len(producers) * latency_us * 1e-6
    return result.samples_per_s / 10 * members, limit, alone


def per_batch(result: Result, batches: int) -> Seconds:
    found: Seconds = {}
    for name, ops in result.ops.items():
        sums: dict[str, float] = defaultdict(float)
        for letter, _, start, end in ops:
            sums[letter] += end - start
        found[name] = {letter: seconds / batches for letter, seconds in sums.items()}
    return found


each_network = st.one_of(chains_and_forks, st.just(networks.several_readers()))


@settings(max_examples=80, deadline=None)
@given(each_network, schedules, costs, latencies)
def test_no_simulated_run_is_above_its_ceiling(
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs, latency_us: float
) -> None:
    rate, limit, _ = reached(stages, schedule, pace, latency_us)
    assert rate <= limit * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(chains_and_forks, schedules.filter(lambda one: one["name"] not in GROUPED), costs)
def test_a_simulated_run_with_free_messages_comes_close_to_its_ceiling(
    stages: networks.Tables, schedule: dict[str, Any], pace: Costs
) -> None:
    """It is late by filling and draining the pipe alone: the time of two batches in one process."""
    rate, limit, alone = reached(stages, schedule, pace, 0.0)
    assert BATCHES / rate <= BATCHES / limit + 2 * alone


@each("latency_us", [0.0, 300.0, 20_000.0])
@each(
    "name, split_backward, least",
    [("gpipe", True, 0.95), ("gpipe", False, 0.95), ("1f1b", False, 0.95), ("1f1b", True, 0.85)],
)
def test_a_pipeline_of_equals_comes_close_to_its_ceiling_at_any_latency(
    name: str, split_backward: bool, least: float, latency_us: float
) -> None:
    schedule = {"name": name, "microbatches": 5, "split_backward": split_backward}
    pace = Costs(read_us=1.0, update_us=20.0)
    rate, limit, _ = reached(networks.chain(4), schedule, pace, latency_us)
    assert least * limit <= rate <= limit * (1 + 1e-9)
