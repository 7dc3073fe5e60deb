"""The bound on lag, on one worker's flights: link by link, and what keeps a batch waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.core.flights import Flights, Lag


def forwarded(batches: int, consumers: tuple[str, ...] = ("c", "d")) -> Flights:
    flights = Flights(consumers)
    for batch in range(batches):
        flights.forwarded(batch, 4, now=float(batch))
    return flights


def test_a_batch_is_overdue_when_the_next_forward_would_be_beyond_the_bound() -> None:
    lag, flights = Lag({"c": 2}), forwarded(3)
    assert lag.overdue(2, flights) is None
    assert lag.overdue(3, flights) == 0


def test_each_link_has_a_bound_of_its_own() -> None:
    flights = forwarded(4)
    assert Lag({"c": 3, "d": 9}).overdue(4, flights) == 0
    flights.gradient(0, "c", {})
    assert Lag({"c": 3, "d": 9}).overdue(4, flights) is None  # c owes 1, d owes 0
    assert Lag({"c": 9, "d": 3}).overdue(4, flights) == 0


def test_what_has_arrived_is_not_owed_even_before_it_is_used() -> None:
    lag, flights = Lag({"c": 1, "d": 1}), forwarded(2)
    for consumer in "cd":
        flights.gradient(0, consumer, {})
    assert lag.overdue(2, flights) is None
    assert flights.arrived[0] == 0


def test_a_batch_that_was_given_up_is_not_owed() -> None:
    lag, flights = Lag({"c": 1, "d": 1}), forwarded(2)
    flights.release(0)
    assert lag.overdue(2, flights) is None


def test_without_bounds_nothing_is_overdue() -> None:
    assert Lag().overdue(10**9, forwarded(1)) is None


def test_a_batch_that_does_not_come_makes_no_lag() -> None:
    """Nothing has been forwarded beyond what was owed."""
    lag, flights = Lag({"c": 1, "d": 1}), forwarded(2)
    for batch in (2, 3, 4):
        flights.missed(batch)
    lag.check(flights)
    assert lag.overdue(5, flights) == 0


def test_the_check_names_the_batch_and_the_bound() -> None:
    with pytest.raises(AssertionError, match=r"batch 3 is too far ahead of batch 0: {'c': 2}"):
        Lag({"c": 2}).check(forwarded(4))


@given(
    bounds=st.fixed_dictionaries({"c": st.integers(0, 5), "d": st.integers(0, 5)}),
    answers=st.lists(st.sampled_from("cd"), max_size=60),
)
def test_whoever_forwards_what_is_not_overdue_never_breaks_the_bound(
    bounds: dict[str, int], answers: list[str]
) -> None:
    """Consumers answer in order of the batches, each at its own pace. `max` is the greatest lag."""
    lag, flights = Lag(bounds), Flights(("c", "d"))
    batch, due, greatest = 0, {"c": 0, "d": 0}, 0
    for consumer in answers:
        while lag.overdue(batch, flights) is None:
            flights.forwarded(batch, 1, now=0.0)
            lag.forwarded(batch, flights)
            lag.check(flights)
            greatest = max(greatest, *(batch - due[name] for name in due))
            batch += 1
        if due[consumer] < batch:
            flights.gradient(due[consumer], consumer, {})
            due[consumer] += 1
        for arrived in list(flights.arrived):
            flights.release(arrived)
    assert max(lag.greatest.values()) == greatest <= max(bounds.values())
    assert all(batch - due[name] <= bound + 1 for name, bound in bounds.items())
