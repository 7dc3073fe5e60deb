"""Shares, overhead and ceiling of one run, from numbers that can be added up by hand."""

from __future__ import annotations

from typing import Any

import pytest
from each import each
from recorded import two_workers, worker

from asyncdni.report.breakdown import SHARES, ceiling_samples_per_s, overhead_cpu, shares

CHAIN = {"a": (), "b": ("a",)}


def test_shares_are_of_the_training_time_of_the_run_and_sum_to_one() -> None:
    """a: 3 s layers, 1 s generator, 1 s transport, 1.5 s waiting and 2.5 s other of its 9 s, and
    1 s for b; b: 4 s layers, none of the generator, 1 s transport, 1.5 + 1 s waiting."""
    found = shares(two_workers())
    assert found == pytest.approx(
        {"layers": 0.35, "generator": 0.05, "transport": 0.1, "waiting": 0.25, "other": 0.25}
    )
    assert found is not None
    assert sum(found.values()) == pytest.approx(1.0)
    assert tuple(found) == SHARES


def test_times_that_overlap_still_make_shares() -> None:
    """A clock read a little late must not give a share below 0 or a sum over 1."""
    late = worker("a", {"F": (100, 9.0, 9.0)}, wall_s=10.5)
    found = shares(two_workers(stages=[late]))
    assert found is not None
    assert found["other"] == 0
    assert sum(found.values()) == pytest.approx(1.0)


def test_overhead_is_the_cpu_time_of_all_workers_outside_ops() -> None:
    assert overhead_cpu(two_workers()) == pytest.approx((12.0 - 7.5) / 12.0)


def test_several_blas_threads_hide_their_overhead_and_have_no_ceiling() -> None:
    assert overhead_cpu(two_workers(threads=2)) is None
    assert ceiling_samples_per_s(two_workers(threads=2), CHAIN, 2) is None


@each(
    "schedule, cores, seconds",
    [
        ("synthetic", 2, 4.0),  # b, the slower of the two, needs 4 s for its 100 batches
        ("synthetic", 1, 7.5),  # all work, one op after the other
        ("locked", 2, 5.5),  # F of a, F and B of b, B of a: 1 + 1 + 2 + 1.5 s
    ],
)
def test_the_ceiling_is_set_by_the_cpu_times_of_the_runs_own_ops(
    schedule: str, cores: int, seconds: float
) -> None:
    found = ceiling_samples_per_s(two_workers(schedule), CHAIN, cores)
    assert found == pytest.approx(25_000 / seconds)


def test_updates_of_groups_that_were_cut_short_do_not_lower_the_ceiling() -> None:
    """b updates 25 times, on 4 microbatches each; five more times on fewer, and it is as fast."""
    ops = {"F": (100, 1.0, 1.0), "B": (100, 2.0, 2.0)}
    found = []
    for updates in (25, 30):
        b = worker("b", {**ops, "U": (updates, 0.1 * updates, 0.1 * updates)})
        summary = two_workers("gpipe", stages=[worker("a", ops), b])
        found.append(ceiling_samples_per_s(summary, CHAIN, 2, microbatches=4))
    assert found[0] == found[1]
    # a group: F of a, 4 x (F + B) of b, B of a, and the update of b is off a's circle: 0.15 s
    assert found[0] == pytest.approx(4 * 250 / max(0.15, 4 * 0.03 + 0.1))


def test_latency_and_lag_are_part_of_the_ceiling() -> None:
    plain, slow, ahead = (
        ceiling_samples_per_s(two_workers("delayed"), CHAIN, 2, latency_s=latency_s, lag=lag)
        for latency_s, lag in ((0.0, None), (1.0, None), (1.0, 3))
    )
    assert plain == pytest.approx(25_000 / 4.0)
    assert slow == pytest.approx(250 * 2 / 2.055)
    assert ahead == pytest.approx(250 * 4 / 2.055)


@each(
    "changes",
    [
        {"schedule": "unheard-of"},
        {"stages": [worker("a", {"F": (100, 1.0, 1.0)})]},
        {"stages": [worker("a", {"F": (0, 0.0, 0.0)}), worker("b", {"F": (0, 0.0, 0.0)})]},
        {"stages": [worker("a", {}), worker("b", {"F": (100, 1.0, 1.0)})]},
        {"stages": [worker("a", {"F": (1, 1.0, 1.0)}, batches=None)] * 2},
        {"stages": []},
    ],
)
def test_there_is_no_ceiling_where_none_can_be_known(changes: dict[str, Any]) -> None:
    assert ceiling_samples_per_s(two_workers(**changes), CHAIN, 2) is None


def test_a_summary_of_another_program_has_no_breakdown() -> None:
    theirs = {"samples_per_s": 90_000.0, "train_s": 1.0, "cpu_s": 2.0, "workers": 1, "threads": 1}
    assert shares(theirs) is None
    assert overhead_cpu(theirs) is None
    assert ceiling_samples_per_s(theirs, {}, 2) is None
