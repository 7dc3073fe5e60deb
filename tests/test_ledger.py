"""How far a run has come: into a manifest and back, and back to the last cut."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from each import each

from asyncdni.core.ledger import Ledger, Scores
from asyncdni.messages import Evaluated


def scores(correct: int | None, loss: float = 1.0) -> Scores:
    found = Scores()
    found.add(Evaluated(0, "c", 10, loss * 10, correct, 1))
    return found


def ledger() -> Ledger:
    entry = {"samples": 40, "train_s": 1.5, "accuracy": 0.5, "loss": 1.0}
    return Ledger(
        start=12,
        barrier=3,
        planned=2,
        train_s=1.5,
        history=[entry],
        best={"accuracy": 0.5, "loss": 1.0},
        samples={"a": 48, "b": 40},
        cut=4,
    )


def test_what_goes_into_a_manifest_comes_back_from_it() -> None:
    """By way of JSON, as a manifest is."""
    state = json.loads(json.dumps(ledger().state()))
    again = Ledger.restored(state, "checkpoints/000004")
    assert again.state() == ledger().state()
    assert again.restore == "checkpoints/000004"


def test_a_run_that_has_not_been_evaluated_comes_back_too() -> None:
    state = json.loads(json.dumps(Ledger().state()))
    assert Ledger.restored(state, "snapshots") == Ledger(restore="snapshots")


def test_what_else_stands_in_a_manifest_is_left_there() -> None:
    state = {**ledger().state(), "of a later version": 1}
    assert Ledger.restored(state, "x").state() == ledger().state()


@each("name", sorted(Ledger().state()))
def test_a_manifest_without_some_value_is_none(name: str) -> None:
    state = ledger().state()
    del state[name]
    with pytest.raises(KeyError, match=name):
        Ledger.restored(state, "x")


def test_a_state_is_a_copy() -> None:
    one = ledger()
    state = one.state()
    one.history.append({})
    one.samples["a"] = 0
    assert one.best is not None
    one.best["loss"] = 0.0
    assert state == ledger().state()


def test_going_back_forgets_results_and_keeps_time_and_numbers() -> None:
    """Barriers and cuts go on being numbered, and time that was spent stays spent."""
    cut, now = ledger(), ledger()
    now.barrier, now.planned, now.train_s, now.cut, now.start = 9, 7, 8.0, 5, 30
    now.samples["a"] = 200
    now.evaluated(scores(9), {"accuracy": 0.9})
    now.back_to(cut)
    assert (now.start, now.planned, now.samples) == (cut.start, cut.planned, cut.samples)
    assert (now.history, now.best) == (cut.history, cut.best)
    assert (now.barrier, now.train_s, now.cut) == (9, 8.0, 5)


def test_what_happens_after_going_back_does_not_change_the_cut() -> None:
    cut, now = ledger(), ledger()
    now.back_to(cut)
    now.evaluated(scores(9), {"accuracy": 0.9})
    now.history[0]["accuracy"] = 0.0
    now.samples["a"] = 0
    assert cut == ledger()


@each(
    "first, second, better",
    [
        ((5, 1.0), (6, 9.0), True),
        ((5, 1.0), (5, 0.1), False),
        ((None, 2.0), (None, 1.0), True),
        ((None, 1.0), (None, 2.0), False),
    ],
)
def test_each_evaluation_is_noted_and_the_best_is_known(
    first: Any, second: Any, better: bool
) -> None:
    one = Ledger()
    assert one.evaluated(scores(*first), {"number": 1})
    before = deepcopy(one.best)
    assert one.evaluated(scores(*second), {"number": 2}) is better
    assert (one.best != before) is better
    assert [entry["number"] for entry in one.history] == [1, 2]


def test_the_best_is_known_after_coming_back_from_a_manifest() -> None:
    again = Ledger.restored(json.loads(json.dumps(ledger().state())), "x")
    assert not again.evaluated(scores(5), {})
    assert again.evaluated(scores(6), {})


@each("start, planned, left", [(30, 2, 2), (29, 1, 1), (9, 0, 0)])
def test_barriers_that_all_are_behind_again_are_taken_back_with_their_evaluations(
    start: int, planned: int, left: int
) -> None:
    one = Ledger()
    for position in (10, 30):
        one.evaluated(scores(1), {"batches": position})
        one.lift(position, one.planned + 1)
    one = Ledger.restored(json.loads(json.dumps(one.state())), "x")
    one.behind(start)
    assert (one.planned, len(one.history), len(one.lifted)) == (planned, left, left)


@each(
    "span, planned, left",
    [
        ((12, 15), 1, [10]),
        ((10, 10), 1, [10]),
        ((19, 20), 1, [10]),  # nobody has been beyond 20
        ((19, 22), 1, [10]),  # that was not evaluated, or not for all
        ((25, 30), 3, [10, 30]),
        ((19, 31), 3, [10, 30]),
        ((40, 40), 3, [10, 30]),
    ],
)
def test_a_run_that_goes_on_from_snapshots_is_past_barriers_that_have_been_evaluated(
    span: tuple[int, int], planned: int, left: list[int]
) -> None:
    """Of those at 10, 20, 30 and 40 the second has not been, and the last one is had again."""
    history = [{"batches": batches} for batches in (10, 30, 40)]
    one = Ledger(history=history)
    one.resumed(span, [10, 20, 30, 40], "snapshots")
    assert (one.start, one.planned, one.restore) == (span[1], planned, "snapshots")
    assert [entry["batches"] for entry in one.history] == left


def test_workers_that_have_what_they_learned_are_past_all_that_was_evaluated_until_then() -> None:
    """The cut knows of one evaluation, the records of two; the workers are between 25 and 31."""
    one = Ledger(history=entries(10), recorded=entries(10, 20))
    one.kept((25, 31), [10, 20, 30, 40])
    assert (one.start, one.planned, one.restore) == (31, 2, "initial")
    assert one.history == entries(10, 20)


def entries(*batches: int) -> list[dict[str, Any]]:
    return [{"batches": b, "accuracy": b / 1e6, "loss": 1.0} for b in batches]


def test_a_history_of_very_many_evaluations_is_thinned_between_its_ends() -> None:
    known = Ledger(history=entries(*range(1, 10_001)))
    known.lift(10_000, 1)
    assert len(known.history) == 10_000
    for position in range(10_001, 40_001):
        known.history += entries(position)
        known.lift(position, position)
    found = [entry["batches"] for entry in known.history]
    assert found[0] == 1 and found[-1] == 40_000
    assert found == sorted(found) and 5_000 <= len(found) <= 10_000
    assert len(known.lifted) == 10_000 and known.lifted[-1][0] == 40_000


def test_evaluations_since_the_cut_are_taken_over_each_once() -> None:
    """Also where its own are thinned out, and some were had again."""
    known = Ledger(history=entries(2, 6), best={"accuracy": 1.0, "loss": 1.0})
    known.go_on(entries(2, 4, 6, 8, 10, 8, 10, 12))
    assert [entry["batches"] for entry in known.history] == [2, 6, 8, 10, 12]
    assert known.best == {"accuracy": 1.0, "loss": 1.0}
    known = Ledger(best={"accuracy": 0.0, "loss": 1.0})
    known.go_on(entries(2, 4))
    assert known.best == {"accuracy": 4 / 1e6, "loss": 1.0}
