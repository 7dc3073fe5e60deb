"""gpipe and 1f1b: gradient accumulation to the last bit, in an order that any timing keeps."""

from __future__ import annotations

from typing import Any

import networks
import pytest
from accumulation import accumulated, bits
from each import each
from random_runs import skip_connections

from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.plan.build import Design
from asyncdni.plan.plan import Group

NAMES = ["gpipe", "1f1b"]
SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(latency_us=300.0, jitter=1.0)}
NETWORKS: dict[str, tuple[networks.Tables, list[int] | None]] = {
    "chain": (networks.chain(4), None),
    "fused": (networks.chain(5), [1, 3, 1]),
    "fork": (networks.fork(), None),
    "sum": (networks.fork("sum"), [1, 4]),
    "two losses": (networks.diamond(), None),
    "skip connections": (skip_connections(), None),
    "several readers": (networks.several_readers(), None),
}
each_network = each("stages, split", list(NETWORKS.values()))


def make(
    stages: networks.Tables,
    name: str,
    microbatches: int,
    *,
    split: list[int] | None = None,
    examples: int = 23,
    **more: Any,
) -> Design:
    """23 samples in batches of 6: the last has 5."""
    return networks.design(
        stages,
        {"name": name, "microbatches": microbatches, **more},
        data={"batch_size": 6, "examples": examples},
        run={"epochs": 2, "split": split},
    )


def ops_of(result: Result, worker: str) -> list[tuple[str, int]]:
    return [(letter, batch) for letter, batch, *_ in result.ops[worker] if letter not in "RE"]


# --- the results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 3), marks=pytest.mark.long)])
@each_network
@each("name", NAMES)
@each("microbatches", [2, 3])
def test_a_pipeline_is_gradient_accumulation(
    stages: networks.Tables, split: list[int] | None, name: str, microbatches: int, seeds: range
) -> None:
    """Microbatches of 3 and 3 2, of 2 2 2 and 2 2 1, whatever the timing."""
    design = make(stages, name, microbatches, split=split)
    expected = accumulated(design)
    for seed in seeds:
        result = simulate(design, seed=seed, maths=True, **SHAKEN)
        assert isinstance(result.end, Finish)
        assert bits(result.weights) == expected


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_sees_microbatches_in_order(name: str) -> None:
    design = make(networks.chain(3, norm=True), name, 3, examples=22)
    expected = accumulated(design)
    assert "1.running_mean" in expected["s0"]
    assert bits(simulate(design, seed=1, maths=True, **SHAKEN).weights) == expected


@each("name", NAMES)
@each("examples", [19, 20, 21, 24, 25])
def test_the_last_group_of_an_epoch_may_have_fewer_microbatches(name: str, examples: int) -> None:
    """One sample, two, three, all six of them, and one again in a group of its own."""
    design = make(networks.chain(3), name, 3, examples=examples)
    result = simulate(design, seed=2, maths=True, **SHAKEN)
    assert bits(result.weights) == accumulated(design)
    updates = {own["updates"] for own in result.counters.values()}
    assert updates == {2 * -(-examples // 6)}


@pytest.mark.parametrize("name", NAMES)
def test_whole_backwards_give_the_same_as_halves(name: str) -> None:
    halves, whole = (
        make(networks.diamond(), name, 2, split_backward=split_backward)
        for split_backward in (True, False)
    )
    results = [simulate(design, seed=0, maths=True, **SHAKEN) for design in (halves, whole)]
    assert bits(results[0].weights) == bits(results[1].weights) == accumulated(halves)
    assert "W" in {letter for letter, _ in ops_of(results[0], "long")}
    assert {letter for letter, _ in ops_of(results[1], "long")} == {"F", "B", "U"}


@pytest.mark.parametrize("name", NAMES)
def test_one_microbatch_is_locked(name: str) -> None:
    pipeline = simulate(make(networks.fork(), name, 1), seed=0, maths=True, **SHAKEN)
    locked = networks.design(
        networks.fork(),
        {"name": "locked"},
        data={"batch_size": 6, "examples": 23},
        run={"epochs": 2},
    )
    expected = simulate(locked, seed=5, maths=True, **SHAKEN)
    assert bits(pipeline.weights) == bits(expected.weights)


@pytest.mark.parametrize("name", NAMES)
def test_a_stop_in_the_middle_of_a_group_lets_it_come_to_its_end(name: str) -> None:
    design = make(networks.chain(3), name, 6)
    whole = simulate(design, seed=0, maths=False, **SHAKEN)
    (start_s,) = (values["time_s"] for kind, values in whole.records if kind == "start")
    places = set()
    for step in range(12):
        stop_at_s = start_s + (whole.virtual_s - start_s) * (0.5 + step) / 12
        result = simulate(design, seed=step, maths=True, stop_at_s=stop_at_s, **SHAKEN)
        if isinstance(result.end, Finish):
            continue
        assert isinstance(result.end, Fail) and result.end.kind == "Interrupted"
        (done,) = {own["batches"] for own in result.counters.values()}
        assert bits(result.weights) == accumulated(design, stop=int(done or 0))
        places.add(int(done or 0))
    ends = {0, 6, 12, 18, 23}  # of the groups of an epoch
    assert len(places) >= 4 and places <= ends | {23 + end for end in ends}


# --- the order -----------------------------------------------------------------------------------


def backwards(ops: list[tuple[str, int]]) -> list[int]:
    return [batch for letter, batch in ops if letter in "bB"]


def group_of(design: Design, batch: int) -> tuple[int, int]:
    epoch, position = divmod(batch, design.plan.batches_per_epoch)
    return epoch, position // design.plan.per_update


def assert_flushed(design: Design, ops: list[tuple[str, int]]) -> None:
    """Forwards and backwards in order of the ids; one update a group, before the next begins."""
    batches = list(range(design.plan.batches))
    assert [batch for letter, batch in ops if letter == "F"] == batches
    assert backwards(ops) == batches
    learned = [batch for letter, batch in ops if letter in "BW"]
    assert learned == batches
    done: list[tuple[str, int]] = []
    for letter, batch in ops:
        own = [b for b in batches if group_of(design, b) == group_of(design, batch)]
        if letter == "F" and own[0] > 0:
            assert ("U", own[0] - 1) in done  # of the group before
        if letter == "U":
            assert batch == own[-1]
            assert {b for kind, b in done if kind in "BW"} == set(range(batch + 1))
        done.append((letter, batch))
    epochs = design.experiment.run.epochs
    updates = sum(letter == "U" for letter, _ in ops)
    assert updates == epochs * design.plan.updates_per_epoch


def most_in_flight(ops: list[tuple[str, int]]) -> int:
    """Forwarded and not yet pushed back, at most."""
    count = most = 0
    for letter, _ in ops:
        count += (letter == "F") - (letter in "bB")
        most = max(most, count)
    return most


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 3), marks=pytest.mark.long)])
@each_network
@each("name", NAMES)
@each("split_backward", [True, False])
def test_the_order_of_a_flush_holds_under_any_timing(
    stages: networks.Tables, split: list[int] | None, name: str, split_backward: bool, seeds: range
) -> None:
    design = make(stages, name, 6, split=split, split_backward=split_backward)
    for seed in seeds:
        costs = Costs(jitter=0.9, scale={"s1": 3.0, "b": 5.0, "top": 0.3})
        links = Links(latency_us=[1.0, 100.0, 2000.0][seed], jitter=1.0)
        result = simulate(design, seed=seed, maths=False, costs=costs, links=links)
        assert isinstance(result.end, Finish)
        for group in design.plan.groups:
            ops = ops_of(result, group.name)
            assert_flushed(design, ops)
            if name == "gpipe":
                assert_forwards_come_first(design, ops)
            else:
                assert most_in_flight(ops) <= group.depth + 1


def assert_forwards_come_first(design: Design, ops: list[tuple[str, int]]) -> None:
    """No backward of a group before its last forward."""
    forwarded: set[int] = set()
    for letter, batch in ops:
        if letter == "F":
            forwarded.add(batch)
        elif letter in "bB":
            own = {
                b
                for b in range(design.plan.batches)
                if group_of(design, b) == group_of(design, batch)
            }
            assert own <= forwarded


def test_1f1b_has_fewer_in_flight_than_gpipe_for_the_same_results() -> None:
    most: dict[str, dict[str, int]] = {}
    for name in NAMES:
        design = make(networks.chain(3), name, 6)
        result = simulate(design, seed=0, maths=False, links=Links(latency_us=1.0))
        most[name] = {g.name: most_in_flight(ops_of(result, g.name)) for g in design.plan.groups}
    assert most["gpipe"] == {"s0": 6, "s1": 6, "top": 6}
    assert most["1f1b"] == {"s0": 3, "s1": 2, "top": 1}


def test_warm_up_is_the_longest_way_to_a_loss() -> None:
    """From the root of the skip connections it is three stages, though one is a step away."""
    design = make(skip_connections(), "1f1b", 6)
    depths = {group.name: group.depth for group in design.plan.groups}
    assert depths == {"s0": 3, "s1": 2, "s2": 1, "top": 0}
    result = simulate(design, seed=0, maths=False, links=Links(latency_us=1.0))

    def first_backward(group: Group) -> int:
        letters = [letter for letter, _ in ops_of(result, group.name)]
        return letters.index("b" if "b" in letters else "B")

    assert [first_backward(group) for group in design.plan.groups] == [4, 3, 2, 1]
