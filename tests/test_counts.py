"""What a worker has done, counted over its rounds: kept, gone back, restored from a snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand import LAST, MIDDLE, Hand, activation, connect, trained

from asyncdni.core.counts import Counts
from asyncdni.core.flights import Lag
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.messages import DATA, Gradient, Rejoin, Start
from asyncdni.schedules.base import OpKind
from asyncdni.schedules.synthetic import Synthetic

HOST = Position("p", inputs=(DATA,), consumers=("m",), host="p", barriers=(5, 9), test_batches=1)


def rejoined(hand: Hand, start: int, **changes: int) -> Hand:
    """The same worker in its second round, from batch `start` on; its stage was kept."""
    hand(Rejoin(8, "keep"))
    position = hand.worker.position
    again = Hand(position)
    again.worker = Worker(position, Synthetic(), counts=hand.worker.counts)
    again.worker.joined(connect(position, incarnation=8, start=start, **changes))
    return again


def test_what_a_worker_has_passed_is_what_it_forwarded_and_what_it_missed() -> None:
    counts = Counts()
    counts.batches, counts.missed = 7, 2
    assert counts.position == 9


def test_batches_before_the_start_of_a_round_that_have_not_been_here_are_missed() -> None:
    counts = Counts()
    counts.batches = 7
    counts.begin(10)
    assert (counts.batches, counts.missed, counts.position, counts.read) == (7, 3, 10, 10)
    counts.begin(10)
    assert counts.missed == 3


def test_no_round_starts_behind_what_has_been_passed() -> None:
    counts = Counts()
    counts.batches = 7
    with pytest.raises(AssertionError):
        counts.begin(6)


def test_what_is_written_with_a_stage_comes_back() -> None:
    counts = Counts()
    counts.batches, counts.missed, counts.samples, counts.updates, counts.read = 7, 2, 28, 6, 11
    counts.skipped, counts.late = 3, 1
    again = Counts()
    again.restore(counts.state())
    assert again.state() == counts.state()
    assert again.position == 9
    assert (again.skipped, again.late) == (0, 0)  # of that process alone


def test_what_is_not_said_counts_from_nothing() -> None:
    counts = Counts()
    counts.batches = 7
    counts.restore({})
    assert counts.state() == Counts().state()


def test_a_worker_that_is_kept_counts_on() -> None:
    hand = trained(batches=3)
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand.finish()
    again = rejoined(hand, start=3)
    again(Start())
    again(activation(3))
    again.finish_until("U3")
    counters = again.worker.counters()
    assert (counters["batches"], counters["missed"], counters["samples"]) == (4, 0, 16)
    assert counters["updates"] == 4
    assert (counters["staleness_mean"], counters["staleness_max"]) == (3.0, 3)


def test_staleness_is_not_counted_over_the_start_of_a_round() -> None:
    again = rejoined(trained(batches=3), start=3)
    again(Start())
    again(activation(3))
    again.finish_until("U3")
    again(Gradient("c", 1, 3, {"c": "g"}))
    again.finish()
    assert again.worker.counters()["staleness_max"] == 1


def test_a_batch_that_others_have_passed_and_this_one_has_not_is_missed() -> None:
    again = rejoined(trained(LAST, batches=2), start=5)
    again(Start())
    again(activation(5))
    again.finish_until("U5")
    counters = again.worker.counters()
    assert (counters["batches"], counters["missed"]) == (3, 3)


def test_a_host_goes_on_reading_where_the_round_starts() -> None:
    hand = Hand(HOST)
    hand(Start())
    hand.finish({"h": "x"})
    hand.finish_until("U0")
    assert str(hand.op) == "R1"
    again = rejoined(hand, start=3)
    again(Start())
    assert again.op is not None
    assert (again.op.kind, again.op.batch) == (OpKind.READ, 3)
    assert again.worker.counts.read == 3  # until that is done
    assert again.worker.counts.missed == 2


def test_the_greatest_lags_are_those_of_all_rounds() -> None:
    counts = Counts()
    first = Worker(MIDDLE, Synthetic(), lag=Lag({"c": 9}), counts=counts)
    first.joined(connect(MIDDLE))
    counts.lags["c"] = 5
    Worker(MIDDLE, Synthetic(), lag=Lag({"c": 9}), counts=counts)
    assert counts.counters()["lag_max"] == counts.counters()["lag_to_c"] == 5


def test_what_consumers_ahead_send_up_is_kept_wherever_the_round_starts() -> None:
    """They predict their own inputs, and may be ahead of the stage that sends them."""
    ahead = replace(MIDDLE, consumers_ahead=True)
    hand = Hand(ahead)
    hand.worker = Worker(ahead, Synthetic(bootstrap=True))
    hand.worker.joined(connect(ahead, start=10_000))
    hand(Start())
    assert hand(Gradient("c", 1, 10_000, {"c": "g"})) == []
    hand(activation(10_000))
    hand.finish_until("U10000")
    assert str(hand.op) == "T10000"
    assert hand.inputs == {"c": "g"}
