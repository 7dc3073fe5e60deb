"""Statistics of comparisons on known numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import pytest
from recorded import recorded, result

from asyncdni.report.statistics import (
    Comparison,
    Estimate,
    Result,
    difference,
    estimate,
    rate,
    ratio,
    student_t,
)

# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile"),
    [
        (1, 0.95, 12.706204736),
        (2, 0.95, 4.302652730),
        (3, 0.95, 3.182446305),
        (4, 0.95, 2.776445105),
        (9, 0.95, 2.262157163),
        (30, 0.95, 2.042272456),
        (1000, 0.95, 1.962339081),
        (1, 0.5, 1.0),
        (2, 0.99, 9.924843201),
        (5, 0.99, 4.032142984),
    ],
)
def test_quantiles_of_student_t_are_those_of_the_tables(
    degrees: int, confidence: float, quantile: float
) -> None:
    assert student_t(degrees, confidence) == pytest.approx(quantile, rel=1e-8)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_a_quantile_that_does_not_exist_is_refused(degrees: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="degrees"):
        student_t(degrees, confidence)


def test_an_interval_is_the_mean_and_t_standard_errors_to_each_side() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    half = 4.302652730 / math.sqrt(3)
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - half)
    assert found.high == pytest.approx(2 + half)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert estimate([5.0]) == Estimate(5.0, None, None, 1)
    assert estimate([]) is None
    assert ratio([]) is None
    assert difference([(3.0, 1.0)]) == Estimate(2.0, None, None, 1)


def test_a_ratio_is_a_geometric_mean_and_its_inverse_the_other_way_round() -> None:
    pairs = [(2.0, 1.0), (8.0, 1.0)]
    found, inverse = ratio(pairs), ratio([(b, a) for a, b in pairs])
    assert found is not None and found.low and found.high
    assert inverse is not None and inverse.low and inverse.high
    assert found.mean == pytest.approx(4.0)
    # Logarithms log 2 and log 8: mean log 4, standard error log 2.
    assert found.high == pytest.approx(4 * 2**12.706204736)
    assert inverse.low == pytest.approx(1 / found.high)


def test_the_interval_of_a_speed_never_reaches_below_zero() -> None:
    found = rate([1030.0, 36_400.0])
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx(math.sqrt(1030 * 36_400))
    assert 0 < found.low < 1030 and found.high > 36_400
    assert rate([7500.0, 7500.0]) == Estimate(7500.0, 7500.0, 7500.0, 2)
    assert rate([0.0, 2.0]) == estimate([0.0, 2.0]), "0 has no logarithm"
    assert rate([]) is None


def test_pairs_that_move_together_give_a_narrow_interval() -> None:
    apart = difference([(10.0, 9.0), (20.0, 19.0), (30.0, 29.0)])
    assert apart == Estimate(1.0, 1.0, 1.0, 3)
    assert apart.excludes(0.0)
    assert not apart.excludes(1.0)


def test_without_an_interval_nothing_is_excluded() -> None:
    assert not Estimate(5.0, None, None, 1).excludes(0.0)


# --- recorded runs -------------------------------------------------------------------------------


def test_schedules_are_compared_seed_by_seed() -> None:
    found = recorded().ratio("synthetic", "locked")
    assert found is not None and found.low and found.high
    logs = [math.log(66732 / 34972), math.log(66762 / 38883), math.log(65792 / 37722)]
    mean, half = statistics.mean(logs), 4.302652730 * statistics.stdev(logs) / math.sqrt(3)
    expected = [math.exp(mean), math.exp(mean - half), math.exp(mean + half)]
    assert [found.mean, found.low, found.high] == pytest.approx(expected)


def test_a_seed_that_only_one_has_run_is_left_out_of_pairs() -> None:
    partial = Comparison(("a", "b"), (result("a", 0, 10, 0.5), result("b", 0, 5, 0.5)))
    more = Comparison(("a", "b"), (*partial.results, result("a", 1, 99, 0.5)))
    assert more.ratio("a", "b") == partial.ratio("a", "b")
    mean = more.estimate("a", "samples_per_s")
    assert mean is not None and (mean.mean, mean.n) == (54.5, 2)


def test_a_run_that_trained_nothing_counts_nowhere() -> None:
    empty = Comparison(("a", "b"), (result("a", 0, None, None), result("b", 0, 5, 0.5)))
    assert empty.estimate("a", "samples_per_s") is None
    assert empty.ratio("a", "b") is None
    assert empty.ranking() == ["b"]


def test_the_leader_of_the_ranking_has_no_ratio_below_one() -> None:
    """By arithmetic means a would lead, by 55 to 50; seed by seed b is the faster one."""
    results = [result("a", s, v, 0.5) for s, v in enumerate((10, 100))]
    results += [result("b", s, v, 0.5) for s, v in enumerate((50, 50))]
    made = Comparison(("a", "b"), tuple(results))
    assert made.ranking() == ["b", "a"]
    found = made.ratio("b", "a")
    assert found is not None and found.mean > 1


def test_a_measure_may_be_any_number_of_a_summary() -> None:
    def error(summary: Mapping[str, Any]) -> float | None:
        return 1 - summary["test_accuracy"]

    found = recorded().estimate("locked", error)
    assert found is not None
    assert found.mean == pytest.approx(1 - (0.9635 + 0.9605 + 0.9615) / 3)
    assert recorded().ranking(error) == ["synthetic", "locked", "single"]


def test_a_summary_may_lack_what_is_measured() -> None:
    """Those of other programs do."""
    theirs = Comparison(("torch",), (Result("torch", 0, {"samples_per_s": 9.0}),))
    assert theirs.estimate("torch", "samples_per_s") == Estimate(9.0, None, None, 1)
    assert theirs.estimate("torch", "cpu_s") is None
