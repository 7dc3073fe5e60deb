"""Gradients of shared weights: which batch may be applied, and which forward has to wait."""

from __future__ import annotations

import pytest
from each import each

from asyncdni.core.flights import Shares


def test_a_batch_is_complete_once_its_own_and_all_others_are_here() -> None:
    shares = Shares(("b", "c"), bound=4, ahead=4)
    assert shares.came("b", 0, "b0")
    assert shares.complete is None
    shares.handed_over(0)
    assert shares.complete is None
    assert shares.came("c", 0, "c0")
    assert shares.complete == 0
    assert shares.take(0) == {"b": "b0", "c": "c0"}
    assert shares.complete is None and not shares.pending
    shares.check(0)


def test_batches_are_applied_in_their_order() -> None:
    shares = Shares(("b",), bound=4, ahead=4)
    shares.handed_over(0)
    shares.handed_over(1)
    assert shares.came("b", 1, "b1")  # that of 0 has been lost
    assert shares.complete is None
    assert not shares.came("b", 0, "b0")  # and can't come any more


@each("bound", [0, 1, 3])
def test_a_forward_waits_at_the_bound_on_the_oldest_update(bound: int) -> None:
    shares = Shares(("b",), bound=bound, ahead=bound)
    assert not shares.hold(5)
    shares.handed_over(5)
    assert [shares.hold(5 + ahead) for ahead in range(5)] == [ahead > bound for ahead in range(5)]
    with pytest.raises(AssertionError, match="too far ahead of 5"):
        shares.check(6 + bound)


def test_a_sharer_can_not_be_further_ahead_than_its_bound_lets_it_be() -> None:
    shares = Shares(("b",), bound=0, ahead=2)
    assert all(shares.came("b", batch, {}) for batch in (0, 1, 2))
    assert not shares.came("b", 3, {})
    shares.handed_over(0)
    assert shares.came("b", 3, {})
    shares.check(0)


@each("sharer, batch", [("c", 1), ("b", 0), ("b", -1)])
def test_strangers_and_repeated_batches_do_not_fit(sharer: str, batch: int) -> None:
    shares = Shares(("b",), bound=2, ahead=2)
    assert shares.came("b", 0, {})
    assert not shares.came(sharer, batch, {})
