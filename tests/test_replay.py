"""Inputs to learn from once more: which comes next, how often, and what they count for."""

from __future__ import annotations

from typing import Any

import networks
from each import each
from hypothesis import given
from hypothesis import strategies as st
from pair import Bench, chain, number

from asyncdni.core.events import Finish
from asyncdni.core.inputs import Arrival, Replay
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import Activation, Gradient
from asyncdni.schedules.local_loss import LocalLoss


def used(replay: Replay, times: int) -> list[int]:
    found = []
    for _ in range(times):
        if replay.preferred:
            found.append(replay.preferred[0])
            replay.use(replay.preferred[0])
            replay.check()
    return found


def keep(replay: Replay, *batches: int) -> None:
    for batch in batches:
        replay.keep(batch, Arrival(4))
        replay.check()


def test_the_least_used_comes_first_and_among_them_the_freshest() -> None:
    replay = Replay(3, uses_max=3)
    keep(replay, 0, 1, 2)
    assert used(replay, 4) == [2, 1, 0, 2]
    keep(replay, 3)
    assert used(replay, 9) == [3, 3, 1, 0]


def test_the_oldest_input_makes_room_for_a_new_one() -> None:
    replay = Replay(2, uses_max=2)
    keep(replay, 0, 1, 2)
    assert used(replay, 9) == [2, 1]


def test_the_first_use_counts() -> None:
    replay = Replay(1, uses_max=2)
    keep(replay, 7)
    assert used(replay, 5) == [7]


def test_a_buffer_of_no_size_keeps_nothing() -> None:
    replay = Replay(0, uses_max=4)
    keep(replay, 0, 1)
    assert used(replay, 3) == []


def test_after_a_barrier_nothing_old_is_used() -> None:
    replay = Replay(4, uses_max=4)
    keep(replay, 0, 1)
    replay.clear()
    assert used(replay, 3) == []


@given(
    size=st.integers(1, 4),
    uses_max=st.integers(2, 5),
    steps=st.lists(st.booleans(), max_size=60),
)
def test_no_input_is_used_too_often_and_no_more_are_kept_than_asked(
    size: int, uses_max: int, steps: list[bool]
) -> None:
    """Against the rule itself, on a list of all inputs with their uses."""
    replay = Replay(size, uses_max)
    uses: dict[int, int] = {}
    for is_new in steps:
        if is_new:
            batch = len(uses)
            keep(replay, batch)
            uses[batch] = 1
            continue
        latest = {b: n for b, n in uses.items() if n < uses_max}
        kept = set(replay._kept)
        assert len(kept) <= size and kept <= set(latest)
        found = used(replay, 1)
        assert len(found) == bool(kept)
        for batch in found:
            assert uses[batch] == min(uses[b] for b in kept)
            assert batch == max(b for b in kept if uses[b] == uses[batch])
            uses[batch] += 1
    assert all(n <= uses_max for n in uses.values())


def test_a_replay_sends_nothing_on_and_counts_for_nothing_but_itself() -> None:
    """Stage 0 sends one batch, stage 1 learns from it three times."""

    def make(position: Position) -> Worker:
        return Worker(position, LocalLoss(), replay=Replay(2, 3) if number(position) == 1 else None)

    bench = Bench(chain(3, barriers=(2,)), make).train()
    sent = [m.batch for m in bench.messages(Activation, "stage 1") if isinstance(m, Activation)]
    assert sent == [0, 1]
    middle = bench.workers["stage 1"]
    counters = middle.counters()
    forwards = [op for op in bench.ops("stage 1") if op[0] == "F"]
    assert (counters["batches"], counters["samples"]) == (2, 8)
    assert counters["replays"] == len(forwards) - 2 > 0
    assert counters["updates"] == len(forwards)
    assert not bench.messages(Gradient)


RUNS: dict[str, Any] = {
    "slow source": {"costs": Costs(read_us=3000.0, jitter=0.5), "links": Links(jitter=1.0)},
    "slow links": {"costs": Costs(jitter=0.5), "links": Links(latency_us=3000.0, jitter=0.9)},
}


@each("conditions", RUNS.values())
@each("stages", [networks.chain(4), networks.fork(), networks.diamond()])
def test_waiting_stages_replay_within_bounds_and_new_inputs_stay_in_order(
    stages: networks.Tables, conditions: dict[str, Any]
) -> None:
    schedule = {"name": "local_loss", "replay": 3, "uses_max": 4}
    design = networks.design(stages, schedule, run={"epochs": 4, "evaluate_every": 2.0})
    result = simulate(design, seed=0, maths=True, **conditions)
    assert isinstance(result.end, Finish)
    for group in design.plan.groups:
        counters = result.counters[group.name]
        forwards = [batch for letter, batch, *_ in result.ops[group.name] if letter == "F"]
        first = list(dict.fromkeys(forwards))
        assert first == list(range(design.plan.batches))
        assert max(forwards.count(batch) for batch in first) <= 4
        assert counters["replays"] == len(forwards) - len(first)
        assert counters["batches"] == design.plan.batches
        assert counters["updates"] == len(forwards)
        if group.index == design.plan.host:
            assert counters["replays"] == 0  # it has new data at any time
        else:
            assert (counters["replays"] or 0) > 10


def test_nothing_goes_up_under_local_loss() -> None:
    found = []

    def watch(sender: str, to: str, message: object) -> bool:
        found.extend([message] if isinstance(message, Gradient) else [])
        return False

    design = networks.design(networks.fork(), {"name": "local_loss", "replay": 2})
    result = simulate(design, seed=0, maths=False, lose=watch)
    assert isinstance(result.end, Finish) and not found
