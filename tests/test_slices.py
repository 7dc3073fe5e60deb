"""What workers show of their newest ops, and how little that is; what watchers ask of them."""

from __future__ import annotations

from typing import Any

from each import each
from hand import MIDDLE
from life import WELCOME, Life
from office import Office, hello, records, sent

from asyncdni.core.counts import Counts
from asyncdni.core.events import Adapt, Steered
from asyncdni.core.slices import OPS_MAX, SLICE_S, SLOWED, Slices, fault
from asyncdni.core.worker import Worker
from asyncdni.messages import Report, Steer, Welcome
from asyncdni.schedules.synthetic import Synthetic
from asyncdni.wire.codec import encode, size

ZERO_S = 1_900_000_000.0  # what a clock of the day shows some years from now


def test_a_slice_has_the_first_ops_of_its_half_second() -> None:
    slices = Slices(2, ZERO_S)
    for number in range(20):  # ten seconds' worth, an op of a millisecond each half second, …
        slices.add("F", number, number * SLICE_S + 0.25, number * SLICE_S + 0.251)
        if number == 18:
            slices.take(number * SLICE_S + 0.3)
    for start_s in (9.76, 9.77, 9.78):  # … and three more in the last one
        slices.add(SLOWED, 19, start_s, 9.8)
    before, last = slices.take(10.2)
    first = round(ZERO_S / SLICE_S)
    forward = [ord("F"), 19, 250_000, 1000]
    assert before == [first + 18, 500_000, ord("F"), 18, 250_000, 1000]
    assert last == [first + 19, 270_000, *forward, ord("~"), 19, 260_000, 40_000]
    assert slices.take(10.4) == []  # the present one is not over


def test_what_began_before_somebody_watched_is_left_out_and_waiting_is_not() -> None:
    slices = Slices(OPS_MAX, 0.0)
    slices.add("F", 1, 0.3, 0.4)
    assert slices.take(0.45) == []
    slices.add("B", 1, 0.6, 4.2)  # lasts over seven slices
    found = slices.take(4.3)
    assert found == [[6, 500_000], [7, 500_000]]  # older ones had no reader


def test_a_worker_sends_no_more_bytes_a_second_than_is_said() -> None:
    slices, batch = Slices(10**9, ZERO_S), 2**32 - 1
    sent_bytes = 0
    for number in range(100_000):  # ten seconds of ops without a gap, 10,000 a second
        slices.add("F", batch, number * 1e-4, (number + 1) * 1e-4)
        if number % 5000 == 3000:
            report = Report({}, slices=slices.take(number * 1e-4))
            assert fault(report.slices) is None
            sent_bytes += size(encode(report)) - size(encode(Report({})))
    assert 30_000 < sent_bytes <= 8_000 * 10


@each(
    "slices, why",
    [
        ([[1, 500_000]] * 3, "at most 2"),
        ([[1]], "1 numbers"),
        ([[1, 500_000, 70, 1, 0]], "5 numbers"),
        ([[1, 500_000, *[70, 1, 0, 0] * (OPS_MAX + 1)]], "numbers"),
        ([[1, 500_001]], "out of range"),
        ([[2**60, 500_000]], "out of range"),
        ([[1, 500_000, 70, -2, 0, 0]], "out of range"),
        ([[1, 500_000, 0x202E, 1, 0, 0]], "no letter"),
    ],
)
def test_slices_that_can_t_be_are_refused(slices: list[list[int]], why: str) -> None:
    office = trained()
    assert why in str(fault(slices))
    (death,) = records(office.hear("b", Report({}, slices=slices)), "lost")
    assert why in death["text"]


# --- what watchers ask ---------------------------------------------------------------------------


def trained(**roster: Any) -> Office:
    """All of them train."""
    office = Office(**roster)
    for name in ("a", "b", "c"):
        office.hear(name, hello(name))
    office.build()
    office.ready()
    return office


def test_workers_are_asked_and_so_are_those_that_take_their_places() -> None:
    office = trained(learns_alone=True, folder="/runs/one")
    slow = Steer(show=9, factor=5.0, latency_s={"a": 0.1}, added_s=0.02)
    actions = office(Steered({"b": slow, "c": slow, "nobody": slow}))
    assert sent(actions, Steer) == [("b", slow), ("c", slow)]
    texts = [(one["stage"], one["text"]) for one in records(actions, "note")]
    assert texts == [
        (name, text)
        for name in ("b", "c")
        for text in (
            "ops take 5 times as long from now on",
            "ops take 20 ms longer from now on",
            "messages to a take 100 ms longer from now on",
        )
    ]
    office.kill("b")
    office.wake()
    actions = office.join("b")
    assert [type(message) for name, message in sent(actions) if name == "b"] == [Welcome, Steer]
    actions = office(Steered({"b": Steer(show=9)}))
    assert [one["text"] for one in records(actions, "note")] == [
        "ops are no longer slowed down",
        "ops no longer take some time more",
        "messages to a are no longer held up",
    ]
    assert records(office(Steered({"b": Steer()})), "note") == []  # nothing but what is shown


def make(counts: Counts) -> Worker:
    return Worker(MIDDLE, Synthetic(), counts=counts)


def test_a_worker_does_what_is_asked_at_once_whatever_it_is_about() -> None:
    life = Life(make)
    life.process.start(0.0)
    life(WELCOME)
    asked = Steer(show=9, factor=2.0)
    assert life(asked) == [Adapt(asked)]
    life = Life(make).joined()
    assert life(Steer()) == [Adapt(Steer())]


def test_a_report_hands_its_slices_to_whoever_watches() -> None:
    office = trained()
    (found,) = records(office.hear("b", Report({}, slices=[[7, 500_000]])), "slices")
    assert (found["stage"], found["slices"]) == ("b", [[7, 500_000]])
    assert records(office.hear("b", Report({})), "slices") == []
