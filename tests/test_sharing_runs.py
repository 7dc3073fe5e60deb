"""Shared weights in whole runs: the bits of one process, alike copies, and deaths of sharers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from each import each
from networks import WIDTH, Tables, design
from random_runs import DrawnRun, assert_survived, draw_faulty_run
from tied import GRAPHS, assert_alike, tied_chain, tied_fork, unrolled

from asyncdni.core.events import Finish
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.virtual.costs import Costs, EstimatedBytes, Links, tensor_bytes
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import ConfigError
from asyncdni.messages import Message, Shared
from asyncdni.plan.build import Design

SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}
SYNCHRONOUS: list[dict[str, Any]] = [
    {"name": "locked"},
    {"name": "locked", "split_backward": False},
    {"name": "gpipe", "microbatches": 2},
    {"name": "1f1b", "microbatches": 3},
]
ASYNCHRONOUS: list[dict[str, Any]] = [
    {"name": "delayed"},
    {"name": "delayed", "weights": "current", "look_ahead": 1.0},
    {"name": "local_loss"},
    {"name": "synthetic"},
    {"name": "synthetic", "target": "bootstrap", "fit_every": 2},
    {"name": "synthetic", "synthetic_inputs": True},
]
DECAYING = {"name": "adam", "decay": {"name": "cosine"}, "clip_norm": 0.5}


def bits(result: Result) -> dict[tuple[str, str], bytes]:
    assert isinstance(result.end, Finish), result.end
    weights = result.weights.items()
    return {(stage, name): a.tobytes() for stage, own in weights for name, a in own.items()}


def small(stages: Tables, schedule: Any, **options: Any) -> Design:
    run = {"epochs": 3, **options.pop("run", {})}
    data = {"batch_size": 6}
    return design(stages, schedule, data=data, optimizer=DECAYING, run=run, **options)


@each("schedule", SYNCHRONOUS)
@each(
    "graph, splits",
    [
        (tied_chain, [None, [2, 1, 2], [1, 2, 2]]),
        (tied_fork, [None]),
        (unrolled, [[3, 2, 1]]),
    ],
)
def test_synchronous_runs_have_the_bits_of_one_process(
    graph: Callable[[], Tables], splits: list[Any], schedule: Any
) -> None:
    """Copies in five workers, three, or one; sums are made in the same order everywhere."""
    stages = graph()
    alone = simulate(small(stages, schedule, run={"split": [len(stages)]}), seed=1, maths=True)
    assert_alike(stages, alone.weights)
    for split in splits:
        made = small(stages, schedule, run={"split": split})
        result = simulate(made, seed=2, maths=True, codec=True, **SHAKEN)
        assert bits(result) == bits(alone)


@each("schedule", ASYNCHRONOUS)
@each("graph", GRAPHS)
def test_copies_stay_alike_where_nobody_waits(graph: Callable[[], Tables], schedule: Any) -> None:
    stages = graph()
    split = [3, 2, 1] if graph is unrolled else None
    slow = {stages[2]["name"]: {"factor": 3.0}}
    result = simulate(
        small(stages, schedule, run={"split": split}, slow=slow), seed=3, maths=True, **SHAKEN
    )
    assert isinstance(result.end, Finish), result.end
    assert_alike(stages, result.weights)


def applied_before(result: Result, worker: str) -> list[int]:
    """For each forward, in order: how many shared updates had been made."""
    letters = [letter for letter, *_ in result.ops[worker]]
    places = [place for place, letter in enumerate(letters) if letter == "F"]
    return [letters[:place].count("A") for place in places]


def test_a_locked_stage_forwards_nothing_before_the_last_update() -> None:
    result = simulate(small(tied_chain(), {"name": "locked"}), seed=4, maths=False, **SHAKEN)
    assert applied_before(result, "s1") == list(range(12))
    assert applied_before(result, "s3") == list(range(12))


@pytest.mark.parametrize("lag", [0, 2])
def test_a_decoupled_stage_is_ahead_of_its_sharers_by_the_bound_at_most(lag: int) -> None:
    """The last sharer is so slow that the first one gets as far as it may."""
    options: dict[str, Any] = {"staleness": {"lag": lag}, "slow": {"s3": {"factor": 30.0}}}
    made = small(tied_chain(), {"name": "synthetic"}, **options)
    result = simulate(made, seed=5, maths=False)
    behind = [batch - count for batch, count in enumerate(applied_before(result, "s1"))]
    assert max(behind) == lag


def test_without_a_bound_of_its_own_a_decoupled_stage_does_not_wait_for_each_update() -> None:
    made = small(tied_chain(), {"name": "synthetic"}, links={"latency": "5ms"})
    counts = applied_before(simulate(made, seed=6, maths=False), "s1")
    assert any(count < batch for batch, count in enumerate(counts))


def test_every_sharer_hears_of_every_batch_from_every_other() -> None:
    heard: dict[tuple[str, str], list[int]] = {}

    def watch(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Shared):
            heard.setdefault((sender, to), []).append(message.batch)
            assert list(message.tensors) == [sender]
        return False

    simulate(small(tied_chain(), {"name": "delayed"}), seed=7, maths=False, lose=watch)
    names = ("s1", "s2", "s3")
    pairs = {(one, other) for one in names for other in names if one != other}
    assert heard == {pair: list(range(12)) for pair in pairs}


def test_as_many_bytes_travel_as_links_are_slow_for_and_as_limits_allow() -> None:
    """Of three stages of 6 x 6 weights, for each of 6 microbatches; an epoch's last one has 5."""
    options: dict[str, Any] = {"name": "1f1b", "microbatches": 6}
    stages = tied_chain()
    for stage in stages[1:4]:
        stage["layers"] = [{"dense": {"width": WIDTH, "bias": False}}]
    made = small(stages, options)
    estimated, sent = EstimatedBytes(made), set[int]()

    def watch(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, Shared):
            sent.add(tensor_bytes(sender, to, message))
            assert estimated(sender, to, message) == tensor_bytes(sender, to, message)
        return False

    simulate(made, seed=7, maths=True, lose=watch)
    one = WIDTH * WIDTH * 4
    most = 6 * one
    assert sent == {most, 5 * one}
    groups = made.plan.groups
    inspection = Inspection(made, groups[1], {group.name: 0 for group in groups})
    assert inspection.message_bytes(1) == most
    with pytest.raises(ConfigError, match=rf"the Shared of {most} bytes is over .*\.microbatches"):
        small(stages, options, limits={"message_bytes": most + 511})


# --- faults --------------------------------------------------------------------------------------


def restored(result: Result) -> list[str]:
    """Where rounds have started from."""
    return [values["restore"] for kind, values in result.records if kind == "round"]


@pytest.mark.parametrize("loses", ["a sharer", "a gradient"])
def test_a_locked_run_ends_with_the_same_bits_whatever_it_has_lost(loses: str) -> None:
    """A process, or a message of one that lives: whoever waits for it would wait for ever."""
    lost: list[Shared] = []

    def lose(sender: str, to: str, message: object) -> bool:
        found = isinstance(message, Shared) and (sender, to, message.batch) == ("s1", "s3", 9)
        if found and not lost and loses == "a gradient":
            lost.append(message)
            return True
        return False

    tables: dict[str, Any] = {"checkpoint": {"every": 1.0}, "limits": {"stuck_s": 5.0}}
    made = small(tied_chain(), {"name": "locked"}, run={"epochs": 8}, **tables)
    undisturbed = simulate(made, seed=8, maths=True)
    faults = Faults(script=("crash s2 at 120ms",) if loses == "a sharer" else ())
    result = simulate(made, seed=8, maths=True, faults=faults, lose=lose)
    assert len(restored(result)) == 1
    assert bits(result) == bits(undisturbed)


@pytest.mark.parametrize("name", ["synthetic", "local_loss"])
def test_nobody_goes_on_without_a_sharer(name: str) -> None:
    """All go back to a cut, also where the others could learn alone, and whoever has died."""
    stages = tied_chain()
    tables: dict[str, Any] = {"checkpoint": {"every": 2.0, "snapshot_every": "1ms"}}
    made = small(stages, {"name": name}, run={"epochs": 16, "evaluate_every": 16}, **tables)
    faults = Faults(script=("crash s2 at 120ms", "crash coordinator at 340ms for 4s"))
    result = simulate(made, seed=9, maths=True, faults=faults)
    assert isinstance(result.end, Finish), result.end
    assert len(restored(result)) == 2
    assert all(one.startswith("checkpoints/") for one in restored(result))
    assert_alike(stages, result.weights)


def draw_tied_run(seed: int) -> DrawnRun:
    """The faults of a drawn run, in a network of shared weights under some schedule."""
    source = random.Random(f"{seed}/tied")
    drawn = draw_faulty_run(seed)
    while True:
        stages = source.choice(GRAPHS)()
        if source.random() < 0.2:
            source.choice(stages)["schedule"] = {"name": "locked"}
        schedule = source.choice(SYNCHRONOUS + ASYNCHRONOUS)
        tables: dict[str, Any] = {
            "limits": {"window": source.choice(["auto", 1, 3]), "stuck_s": 5.0},
            "checkpoint": {"every": source.choice([0.5, 3.0, "20ms", "never"])},
            "recovery": {"restarts": 1000},
            "staleness": source.choice([{}, {}, {"lag": 0}, {"lag": 5}]),
            "links": {"latency": source.choice(["0ms", "3ms"])},
            "run": {"epochs": source.choice([2, 8]), "seed": seed, "evaluate_every": 0.7},
        }
        try:
            return dataclasses.replace(drawn, design=small(stages, schedule, **tables))
        except ConfigError:
            continue


@pytest.mark.long
@each("seed", range(8))
def test_runs_with_faults_account_for_every_sample(seed: int) -> None:
    """Every invariant is asserted after each event; each run is what its seed says."""
    run = draw_tied_run(seed)
    assert_survived(run, run.simulate(codec=True))
