"""How long a slowed worker sleeps after its ops."""

from __future__ import annotations

import pytest

from asyncdni.delays import Slow
from asyncdni.schedules.base import Op, OpKind

FORWARD = Op(OpKind.FORWARD, 0)
UPDATE = Op(OpKind.UPDATE, 0)


def test_an_op_takes_factor_times_as_long_with_the_sleep_after_it() -> None:
    slow = Slow(0, "a", factor=3.0)
    for op in (Op(OpKind.READ, 0), FORWARD, Op(OpKind.BACKWARD, 0), UPDATE):
        assert 0.25 + slow.after(op, 0.25) == pytest.approx(3.0 * 0.25)


def test_an_op_is_slower_still_while_that_is_asked_for() -> None:
    slow = Slow(0, "a", factor=3.0)
    slow.times = 2.0
    assert 0.25 + slow.after(FORWARD, 0.25) == pytest.approx(6.0 * 0.25)
    slow.times, slow.added_s = 1.0, 0.5
    assert 0.25 + slow.after(FORWARD, 0.25) == pytest.approx(3.0 * 0.25 + 0.5)
    slow.added_s = 0.0
    assert 0.25 + slow.after(FORWARD, 0.25) == pytest.approx(3.0 * 0.25)


def test_nothing_is_slower_by_default() -> None:
    assert Slow(0, "a").after(FORWARD, 0.25) == 0.0


def test_evaluations_are_not_slowed() -> None:
    slow = Slow(0, "a", factor=3.0, pause_s=1.0, chance=1.0)
    assert slow.after(Op(OpKind.EVALUATE, 0), 1.0) == 0.0
    assert slow.after(Op(OpKind.READ, 0, evaluate=True), 1.0) == 0.0


def test_only_forwards_are_followed_by_pauses() -> None:
    slow = Slow(0, "a", factor=2.0, pause_s=5.0, chance=1.0)
    assert slow.after(FORWARD, 1.0) == 6.0
    assert slow.after(UPDATE, 1.0) == 1.0


def pauses(slow: Slow, count: int, between: int = 0) -> list[bool]:
    found = []
    for _ in range(count):
        found.append(slow.after(FORWARD, 0.0) > 0.0)
        for _ in range(between):
            slow.after(UPDATE, 0.0)
    return found


def test_pauses_come_with_the_chance_that_was_given() -> None:
    found = pauses(Slow(0, "a", pause_s=0.1, chance=0.1), 10_000)
    assert 880 < sum(found) < 1120  # four standard deviations


def test_pauses_depend_on_seed_worker_and_count_of_forwards_alone() -> None:
    def drawn(seed: int, worker: str, between: int = 0) -> list[bool]:
        return pauses(Slow(seed, worker, pause_s=0.1, chance=0.5), 64, between)

    assert drawn(0, "a") == drawn(0, "a", between=3)
    assert drawn(0, "a") != drawn(1, "a")
    assert drawn(0, "a") != drawn(0, "b")
