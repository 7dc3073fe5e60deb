"""Workers and their coordinator back to back: whoever dies, whenever, the run comes to its end.

The first tests kill somebody before every few events of a run in turn, each from another one on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import Bench, chain, fed_chain, roster_of
from pictures import depth

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import Finish, Record
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.messages import DATA, Activation, Drained, Gradient, Lost, Skipped
from asyncdni.schedules.base import Groups, Schedule
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

WAITING: dict[str, Schedule | Callable[[Position], Worker]] = {
    "locked": Locked(),
    "gpipe": Gpipe(Groups(2, 5)),
    "1f1b": lambda position: Worker(position, OneF1B(Groups(2, 5), warmup=depth(position))),
    "delayed": Delayed(),
    "synthetic": Synthetic(mix=0.5),
}
ALONE: dict[str, Schedule] = {
    "synthetic": Synthetic(),
    "bootstrap": Synthetic(bootstrap=True, correct=True),
    "local_loss": LocalLoss(),
}
NAMES = ("stage 0", "stage 1", "stage 2")
BATCHES = 5


def grid(batches: int = BATCHES) -> list[Position]:
    """Two stages beside each other, joined by the third one, which reads data too."""
    host, middle, _ = chain(3, barriers=(2, batches), test_batches=1)
    inputs = ("stage 0", "stage 1", DATA)
    last = Position("stage 2", inputs, host="stage 0")
    host = replace(host, consumers=("stage 1", "stage 2"), feeds=("stage 2",))
    return [host, middle, replace(last, reads_data=True)]


def plain() -> list[Position]:
    return chain(3, barriers=(2, BATCHES), test_batches=1)


def bench_of(schedule: Any, *, positions: Sequence[Position] | None = None, **roster: Any) -> Bench:
    """With a cut after two batches; nobody is called silent."""
    chosen = positions or plain()
    patient = {"silence_s": 1e6, "stuck_s": 1e6, "startup_s": 1e6}
    values = {"cut_positions": frozenset({2}), **patient, **roster}
    return Bench(chosen, schedule, coordinator=Coordinator(roster_of(chosen, **values)))


def events(schedule: Any, **options: Any) -> int:
    """How many there are in a run without a death."""
    bench = bench_of(schedule, **options)
    bench.join()
    return bench.end().handled


def moments(victim: str, schedule: Any, **options: Any) -> range:
    """Events before which somebody may die; which of them it is depends on who dies."""
    return range(1 + 3 * NAMES.index(victim), events(schedule, **options), 11)


def killed(schedule: Any, kills: dict[int, str], **options: Any) -> Bench:
    bench = bench_of(schedule, **options)
    bench.kills = kills
    bench.join()
    return bench.end()


def check_end(bench: Bench, *, learns_alone: bool) -> None:
    """It has finished, and each batch counts once in every worker."""
    assert [type(a) for a in bench.said if isinstance(a, Finish)] == [Finish], bench.said[-1]
    assert {stop.failed for stop in bench.stopped.values()} == {""}
    for worker in bench.workers.values():
        counts = worker.counts
        assert counts.position == BATCHES
        assert learns_alone or counts.missed == 0
    host = bench.workers["stage 0"].counts
    assert host.read == host.position
    machine = bench.coordinator
    assert machine is not None
    if machine.roster.has_tests:  # one a barrier; from the end of a run its last one is had again
        rounds = [one for one in records(bench, "round") if one["restore"] != "keep"]
        ends = [one for one in rounds if one["start"] == BATCHES]
        assert 2 <= len(machine.ledger.history) <= 2 + len(ends)


def records(bench: Bench, kind: str) -> list[dict[str, Any]]:
    return [a.values for a in bench.said if isinstance(a, Record) and a.kind == kind]


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("schedule", WAITING.values(), ids=WAITING)
def test_where_gradients_are_waited_for_all_is_done_again_from_the_last_cut(
    schedule: Any, victim: str
) -> None:
    for moment in moments(victim, schedule):
        bench = killed(schedule, {moment: victim})
        check_end(bench, learns_alone=False)
        assert len(records(bench, "evaluation")) >= 2
        assert len(records(bench, "back")) == len(records(bench, "lost")) <= 1


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("schedule", ALONE.values(), ids=ALONE)
def test_where_all_learn_by_themselves_the_others_keep_what_they_have(
    schedule: Any, victim: str
) -> None:
    for moment in moments(victim, schedule, learns_alone=True):
        bench = killed(schedule, {moment: victim}, learns_alone=True)
        check_end(bench, learns_alone=True)
        assert len(records(bench, "back")) == len(records(bench, "lost")) <= 1


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("positions", [grid(), fed_chain(3, barriers=(2, BATCHES))])
def test_joins_and_predicted_inputs_come_through_as_well(
    positions: list[Position], victim: str
) -> None:
    options = {"learns_alone": True, "positions": positions, "has_tests": positions == grid()}
    for moment in moments(victim, Synthetic(), **options):
        check_end(killed(Synthetic(), {moment: victim}, **options), learns_alone=True)


@given(
    schedule=st.sampled_from([*WAITING.values(), *ALONE.values()]),
    kills=st.dictionaries(st.integers(1, 400), st.sampled_from(NAMES), max_size=6),
    mixed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_several_deaths_at_any_moments_are_all_mended(
    schedule: Any, kills: dict[int, str], mixed: bool
) -> None:
    learns_alone = schedule in list(ALONE.values())
    positions = grid() if mixed and learns_alone else plain()
    options = {"learns_alone": learns_alone, "positions": positions, "restarts": 10}
    bench = killed(schedule, kills, **options)
    check_end(bench, learns_alone=learns_alone)


# --- while one is away ---------------------------------------------------------------------------


def without(victim: str, schedule: Schedule, batches: int = 40) -> Bench:
    """Somebody dies after some batches, and is not replaced before all others are at a barrier."""
    positions = chain(3, barriers=(batches, batches + 1))
    bench = bench_of(schedule, positions=positions, learns_alone=True, has_tests=False)
    bench.join()
    while bench.workers["stage 2"].counts.updates < 5:
        bench._column()
    bench.kill(victim)
    return bench.run(columns_max=2000)


@pytest.mark.parametrize("schedule", ALONE.values(), ids=ALONE)
def test_stages_before_the_dead_one_lose_no_update(schedule: Schedule) -> None:
    for victim, others in (("stage 1", ["stage 0"]), ("stage 2", ["stage 0", "stage 1"])):
        bench = without(victim, schedule)
        for name in others:
            assert bench.workers[name].counts.batches == 40
            learned = [op for op in bench.ops(name) if op[0] == "U" and op != "U"]
            assert learned == [f"U{batch}" for batch in range(40)]


def test_what_is_kept_does_not_grow_while_one_is_away() -> None:
    bench = without("stage 2", Synthetic(), batches=300)
    for name in ("stage 0", "stage 1"):
        worker = bench.workers[name]
        assert len(worker.view.flights) <= 4
        assert len(worker.parts.flights._skipped) <= 4
    in_flight = {batch for name, batch in bench.released if name == "stage 1"}
    assert len(in_flight) >= 296


def test_nothing_is_sent_to_the_dead() -> None:
    bench = without("stage 1", Synthetic())
    said = max(n for n, (_, to, message) in enumerate(bench.sent) if isinstance(message, Drained))
    words = [bench.messages(kind, "stage 0", "stage 1") for kind in (Activation, Skipped)]
    died = bench.workers["stage 1"].counts.updates
    assert said and sum(map(len, words)) <= died + 6


def test_after_its_return_gradients_flow_again() -> None:
    bench = without("stage 1", Synthetic(), batches=10)
    before = len(bench.messages(Gradient, "stage 1", "stage 0"))
    bench.end()
    assert len(bench.messages(Gradient, "stage 1", "stage 0")) == before + 1  # of batch 10
    assert not [m for m in bench.messages(Lost) if m]


def test_a_worker_that_dies_each_time_before_it_learns_ends_the_run() -> None:
    total = events(Locked())
    bench = bench_of(Locked(), restarts=2)
    bench.kills = dict.fromkeys(range(1, 10 * total), "stage 1")
    bench.join()
    bench.end()
    fails = [a for a in bench.said if not isinstance(a, Record) and hasattr(a, "text")]
    assert "in 3 tries it has not learned anything" in fails[-1].text
