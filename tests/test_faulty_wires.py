"""Links that fail, message by message, and clocks that go wrong."""

from __future__ import annotations

from typing import Any

import pytest
from each import each

from asyncdni.core.events import Event, Woke
from asyncdni.drivers.virtual.clock import Agenda, Alarm, Clock
from asyncdni.drivers.virtual.costs import Links
from asyncdni.drivers.virtual.wires import FaultyWires
from asyncdni.messages import Credit, Message

LATENCY_S = 0.001


class Bench:
    """Numbered messages between processes; `arrived` has (number, moment) of each."""

    def __init__(self, **options: Any) -> None:
        self.agenda = Agenda()
        links = Links(latency_us=1e6 * LATENCY_S, control_latency_us=1e6 * LATENCY_S)
        self.wires = FaultyWires(self.agenda, links, 0, copy=False, **options)
        self.arrived: list[tuple[int, float]] = []

    def send(self, number: int, sender: str = "a", to: str = "b") -> None:
        message = Credit("a", 1, "a", number, number)
        ends = (f"{sender}#1", f"{to}#1")
        self.wires.send(sender, to, message, self._note, control=False, ends=ends)

    def _note(self, message: Message) -> None:
        assert isinstance(message, Credit)
        self.arrived.append((message.taken, self.agenda.now))

    def run(self, until_s: float = 100.0) -> list[int]:
        while self.agenda.next_at is not None and self.agenda.next_at <= until_s:
            self.agenda.step()
        self.agenda.now = max(self.agenda.now, min(until_s, 50.0))
        return [number for number, _ in self.arrived]


def test_without_a_fault_all_arrive_in_order_after_the_latency() -> None:
    bench = Bench()
    for number in range(4):
        bench.send(number)
    assert bench.run() == [0, 1, 2, 3]
    assert {moment for _, moment in bench.arrived} == {LATENCY_S}


@pytest.mark.parametrize("ends", [("a", "b"), ("b", "a")])
def test_a_partition_holds_what_is_sent_either_way_until_it_heals(ends: tuple[str, str]) -> None:
    bench = Bench()
    bench.wires.part({"a#1"}, {"b#1", "c#1"}, 2.0)
    bench.send(0, *ends)
    bench.send(1, *ends)
    bench.send(2, "b", "c")
    assert bench.wires.apart("a#1", "c#1") and not bench.wires.apart("b#1", "c#1")
    assert bench.run() == [2, 0, 1]
    assert bench.arrived[1][1] == pytest.approx(2.0 + LATENCY_S)
    assert not bench.wires.apart("a#1", "c#1")


def test_another_process_of_the_same_name_is_on_nobodys_side() -> None:
    bench = Bench()
    bench.wires.part({"a#1"}, {"b#1"}, 2.0)
    bench.send(0)
    message = Credit("a", 2, "a", 1, 1)
    bench.wires.send("a", "b", message, bench._note, control=False, ends=("a#2", "b#1"))
    assert bench.run() == [1, 0]


def test_a_break_loses_the_oldest_on_the_way_and_nothing_of_other_links() -> None:
    bench = Bench()
    for number in range(5):
        bench.send(number)
    bench.send(9, "b", "a")
    lost = bench.wires.cut("a#1", "b#1")
    assert 1 <= lost <= 5
    assert sorted(bench.run()) == [*range(lost, 5), 9]


def test_of_what_a_break_spares_the_first_may_be_sent_twice() -> None:
    for _ in range(20):
        bench = Bench()
        for number in range(3):
            bench.send(number)
        lost = bench.wires.cut("a#1", "b#1", duplicate=True)
        kept = list(range(lost, 3))
        assert bench.run() == kept[:1] + kept


def test_a_process_that_dies_takes_the_last_of_its_words_with_it() -> None:
    seen = set()
    for seed in range(20):
        bench = Bench()
        bench.wires._noise.seed(seed)
        for number in range(3):
            bench.send(number)
        bench.send(7, "b", "a")
        bench.wires.died("a#1")
        arrived = [number for number in bench.run() if number != 7]
        assert arrived == list(range(len(arrived)))
        seen.add(len(arrived))
    assert seen == {0, 1, 2, 3}


def test_nothing_is_on_its_way_once_it_has_arrived() -> None:
    bench = Bench()
    bench.send(0)
    assert bench.wires.carries("a#1", "b#1")
    bench.run(until_s=1.0)
    assert not bench.wires.carries("a#1", "b#1")
    assert bench.wires.cut("a#1", "b#1") == 0


def test_delay_and_jitter_come_on_top_and_keep_the_order() -> None:
    bench = Bench(delay_s=0.5, jitter_s=0.2)
    for number in range(50):
        bench.send(number)
    assert bench.run() == list(range(50))
    moments = [moment for _, moment in bench.arrived]
    assert moments[0] >= LATENCY_S + 0.5 and moments[-1] <= LATENCY_S + 0.7
    assert len(set(moments)) > 3


# --- clocks --------------------------------------------------------------------------------------


class Sleeper:
    """A machine that wants to be woken at a reading of its clock."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline

    def handle(self, event: Event, now: float) -> list[Any]:
        self._deadline = None
        return []

    def deadline(self) -> float | None:
        return self._deadline

    def check(self) -> None:
        pass


@each("clock", [Clock(), Clock(1e6), Clock(-3.0, 0.1), Clock(0.5, -0.1)])
def test_an_alarm_rings_once_its_own_clock_shows_the_deadline(clock: Clock) -> None:
    agenda, woken = Agenda(), list[float]()
    machine = Sleeper(clock.reading(2.0))

    def wake() -> None:
        woken.append(agenda.now)
        machine.handle(Woke(), clock.reading(agenda.now))

    Alarm(agenda, machine, wake, clock).reset()
    while agenda.next_at is not None and agenda.next_at < 10.0:
        agenda.step()
    assert woken == [pytest.approx(2.0, abs=1e-5)]
    assert clock.reading(woken[0]) >= clock.reading(2.0) - 1e-9


def test_a_clock_without_an_error_shows_the_very_time() -> None:
    assert Clock().reading(0.1 + 0.2) == 0.1 + 0.2 == Clock().moment(0.1 + 0.2)
