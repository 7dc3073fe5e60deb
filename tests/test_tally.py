"""Distributions that are counted in bins, and what can be read back from their counters."""

from __future__ import annotations

from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.core.counts import EDGE_NAMES, EDGES, Distribution, Tally, read_distribution

ages = st.lists(st.floats(0, 20_000), min_size=1, max_size=200)
counts = st.lists(st.integers(0, 20_000), min_size=1, max_size=200)


def tally_of(values: list[float] | list[int]) -> Tally:
    tally = Tally()
    for value in values:
        tally.add(value)
    return tally


def read(values: list[float] | list[int]) -> Distribution:
    found = read_distribution(tally_of(values).counters("age"), "age")
    assert found is not None
    return found


def exact(values: list[float] | list[int], fraction: float) -> float:
    """The smallest value that no less than this fraction does not exceed."""
    ordered = sorted(values)
    return next(v for n, v in enumerate(ordered, 1) if n >= max(1, fraction * len(ordered)))


def test_values_are_counted_in_bins_whose_upper_edge_is_inside() -> None:
    tally = tally_of([0, 1, 2, 3, 4, 5, 8, 9, 4096, 4097, 100_000])
    assert tally.counters("lag") == {
        **{"lag_mean": tally.sum / 11, "lag_max": 100_000},
        **{"lag_le_0": 1, "lag_le_1": 1, "lag_le_2": 1, "lag_le_4": 2, "lag_le_8": 2},
        **{"lag_le_16": 1, "lag_le_4096": 1, "lag_le_inf": 2},
    }


def test_nothing_counted_is_unknown() -> None:
    counters = Tally().counters("lag")
    assert counters == {"lag_mean": None, "lag_max": None}
    assert read_distribution(counters, "lag") is None
    assert read_distribution({}, "lag") is None


def test_whole_numbers_stay_whole() -> None:
    assert type(tally_of([3, 5]).max) is int


@given(ages)
def test_counters_say_all_that_was_counted(values: list[float]) -> None:
    found = read(values)
    assert found.count == len(values) == sum(found.bins)
    assert found.max == max(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert len(found.bins) == len(EDGES) + 1 == len(EDGE_NAMES)


@given(ages, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_is_wrong_by_less_than_the_width_of_its_bin(
    values: list[float], fraction: float
) -> None:
    found, wanted = read(values), exact(values, fraction)
    number = next(i for i, edge in enumerate([*EDGES, float("inf")]) if wanted <= edge)
    low, high = found.limits(number)
    assert low <= found.quantile(fraction) <= high
    assert low <= wanted <= high


@given(counts, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_of_whole_numbers_is_one(values: list[int], fraction: float) -> None:
    found = read(values).quantile(fraction, whole=True)
    assert found == int(found)
    if max(values) <= 2:  # bins of one number each: nothing to estimate
        assert found == exact(values, fraction)


def test_evenly_spread_values_have_their_quantiles() -> None:
    values = list(range(1, 1001))
    cuts = quantiles(values, n=20)
    assert read(values).quantile(0.5) == pytest.approx(cuts[9], rel=0.05)
    assert read(values).quantile(0.95) == pytest.approx(cuts[18], rel=0.05)


def test_what_came_since_is_told_apart() -> None:
    earlier, all_ = read([0, 1, 6]), read([0, 1, 6, 6, 8])
    later = all_.since(earlier)
    assert later is not None
    assert (later.count, later.mean, later.max) == (2, pytest.approx(7.0), 8)
    assert later.bins[EDGES.index(8)] == 2
    assert all_.since(None) == all_
    assert all_.since(all_) is None
