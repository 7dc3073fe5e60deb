"""Flow by credit on one link: the arithmetic, the window's growth, and that nothing gets stuck."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import each

from asyncdni.core.links import Incoming, Outgoing, initial_window

WINDOWS = st.one_of(st.just("auto"), st.integers(1, 40))


def test_a_producer_may_send_its_window_and_then_waits() -> None:
    link = Outgoing(2, 64)
    for _ in range(2):
        assert link.may_send()
        link.sent += 1
    assert not link.may_send() and not link.waited
    link.idle()
    assert link.waited


def test_a_producer_with_credit_left_waits_for_something_else() -> None:
    link = Outgoing(2, 64)
    link.idle()
    assert not link.waited


def test_counts_are_cumulative_so_an_older_grant_takes_nothing_back() -> None:
    link = Outgoing(4, 64)
    link.sent = 4
    link.granted(taken=3, allowed=7)
    link.granted(taken=2, allowed=6)
    assert (link.taken, link.allowed) == (3, 7)
    link.check()


@each(
    ("window", "grants"),
    [
        (1, [2, 3, 4, 5, 6, 7, 8, 9]),
        (2, [3, 4, 5, 6, 7, 8, 9, 10]),
        (4, [6, 8, 10, 12]),  # two at a time
        (16, [20, 24]),  # four at a time
    ],
)
def test_grants_are_held_back_where_the_window_allows_it(window: int, grants: list[int]) -> None:
    link = Incoming(window, 256)
    given = []
    for batch in range(8):
        link.arrived(False, float(batch))
        if link.take(float(batch)):
            given.append(link.allowed)
        link.check()
    assert given == grants


@each("window", [*range(1, 70), 100, 256])
def test_a_consumer_that_has_taken_all_has_granted_more(window: int) -> None:
    """However grants are held back, the producer is never left without credit."""
    link = Incoming(window, 256)
    for batch in range(3 * window):
        assert link.received < link.allowed
        link.arrived(False, float(batch))
        link.take(float(batch))


def test_a_window_given_as_a_number_stays() -> None:
    link = Incoming(3, 256)
    for batch in range(50):
        link.arrived(True, batch * 10.0)
        link.take(batch * 10.0)
    assert link.window == 3


@each(("window_max", "expected"), [(1, 1), (3, 3), (256, 4)])
def test_both_ends_start_from_the_same_window(window_max: int, expected: int) -> None:
    assert initial_window("auto", window_max) == expected
    assert Incoming("auto", window_max).allowed == expected
    assert initial_window(9, window_max) == 9


def test_grants_are_forgotten_once_used() -> None:
    """A link lives as long as a run: what it keeps must not grow with it."""
    link = Incoming("auto", 256)
    for batch in range(10_000):
        link.arrived(False, float(batch))
        link.take(float(batch))
    assert len(link._grants) <= link.window


def test_the_gap_of_a_barrier_is_no_measure_of_the_rate() -> None:
    link = Incoming("auto", 256)
    for now in (0.0, 1.0, 2.0, 3.0):
        link.arrived(False, now)
        link.take(now)
    link.pause()
    for now in (1000.0, 1001.0):
        link.arrived(False, now)
        link.take(now)  # the second of them grants
    for waited in (False, False, True):
        link.arrived(waited, 1011.0)
    assert link.window == 10 + 2 + 3  # round trip 10, one a second, three held back


@dataclass
class Line:
    """A producer that is never short of batches, a line of some delay, a consumer of some pace."""

    delay_s: float  # one way
    pace_s: float  # between forwards, if there is always a batch
    window: int | str
    window_max: int
    now: float = 0.0
    idle_s: float = 0.0  # the consumer's waiting
    consumer: Incoming = field(init=False)
    producer: Outgoing = field(init=False)

    def __post_init__(self) -> None:
        self.consumer = Incoming(self.window, self.window_max)
        self.producer = Outgoing(self.window, self.window_max)
        self._free_at: float | None = 0.0
        self._events: list[tuple[float, int, str, tuple[int, ...]]] = []
        self._order = count()

    def run(self, batches: int) -> None:
        """Until so many batches have been taken."""
        while self.consumer.taken < batches:
            self._produce()
            self._consume()
            time, _, kind, values = heapq.heappop(self._events)
            if kind == "batch" and self._free_at is not None and time > self._free_at:
                self.idle_s += time - max(self.now, self._free_at)
            self.now = max(self.now, time)
            if kind == "batch":
                self.consumer.arrived(bool(values[0]), self.now)
            elif kind == "credit":
                self.producer.granted(*values)
            self.producer.check()
            self.consumer.check()

    def _produce(self) -> None:
        while self.producer.may_send():
            self.producer.sent += 1
            self._after(self.delay_s, "batch", int(self.producer.waited))
            self.producer.waited = False
        self.producer.idle()

    def _consume(self) -> None:
        assert self._free_at is not None
        if self.now < self._free_at or self.consumer.taken == self.consumer.received:
            return
        if self.consumer.take(self.now):
            self._after(self.delay_s, "credit", self.consumer.taken, self.consumer.allowed)
        self._free_at = self.now + self.pace_s
        self._after(self.pace_s, "free")

    def _after(self, delay_s: float, kind: str, *values: int) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), kind, values))


@each("round_trips", [0.1, 1, 3.5, 10, 40])
def test_the_window_grows_to_what_the_line_holds_and_stays(round_trips: float) -> None:
    """Round trip x rate + 2, and what is held back; then the consumer never waits again."""
    line = Line(round_trips / 2, 1.0, "auto", 256)
    line.run(1000)
    needed = math.ceil(round_trips) + 2
    assert round_trips <= line.consumer.window <= needed + 2 + needed // 8 + 1
    settled, line.idle_s = line.consumer.window, 0.0
    line.run(2000)
    assert line.consumer.window == settled
    assert line.idle_s == pytest.approx(0.0, abs=1e-9)


def test_a_short_line_keeps_its_small_window() -> None:
    line = Line(0.001, 1.0, "auto", 256)
    line.run(500)
    assert line.consumer.window == 4


@given(delay_s=st.floats(0.0, 50.0), pace_s=st.floats(0.001, 10.0), window_max=st.integers(1, 64))
def test_the_window_never_exceeds_its_maximum(
    delay_s: float, pace_s: float, window_max: int
) -> None:
    line = Line(delay_s, pace_s, "auto", window_max)
    line.run(200)
    assert 1 <= line.consumer.window <= window_max
    assert line.producer.sent - line.consumer.taken <= window_max


@given(window=WINDOWS, data=st.data())
def test_any_interleaving_keeps_its_counts_and_never_gets_stuck(
    window: int | str, data: st.DataObject
) -> None:
    producer, consumer = Outgoing(window, 64), Incoming(window, 64)
    batches: deque[bool] = deque()
    grants: list[tuple[int, int]] = []  # arrive in any order, lost or twice

    def step(what: int, now: float) -> None:
        if what == 0 and producer.may_send():
            producer.sent += 1
            batches.append(producer.waited)
            producer.waited = False
        elif what == 0:
            producer.idle()
        elif what == 1 and batches:
            consumer.arrived(batches.popleft(), now)
        elif what == 2 and consumer.taken < consumer.received:
            if consumer.take(now):
                grants.append((consumer.taken, consumer.allowed))
        elif what == 3 and grants:
            producer.granted(*data.draw(st.sampled_from(grants)))
        producer.check()
        consumer.check()
        assert producer.taken <= consumer.taken <= consumer.received <= producer.sent
        assert producer.sent <= producer.allowed <= consumer.allowed

    steps = data.draw(st.lists(st.integers(0, 3), max_size=120))
    for now, what in enumerate(steps):
        step(what, float(now))
    while batches:
        step(1, float(len(steps)))
    while consumer.taken < consumer.received:
        step(2, float(len(steps)))
    for grant in grants[-1:]:
        producer.granted(*grant)
    assert producer.may_send()
