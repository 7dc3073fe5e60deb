"""The one sentence that a comparison comes to, whoever wins."""

from __future__ import annotations

from recorded import RECORDED, recorded, result

from asyncdni.report.statistics import Comparison
from asyncdni.report.verdict import (
    accuracy_clause,
    control_clause,
    speed_clause,
    target_clause,
    verdict,
)

# --- speed ---------------------------------------------------------------------------------------


def test_the_verdict_says_what_is_clear_and_what_is_not() -> None:
    assert speed_clause(recorded()) == (
        "fastest: single, 1.90 times as fast as locked (95 % interval 1.23 to 2.94), "
        "not clearly ahead of the rest: 1.06 times as fast as synthetic "
        "(95 % interval 0.67 to 1.69)"
    )


def test_the_verdict_fires_when_synthetic_is_slower() -> None:
    slow = recorded(synthetic=[(17000, 0.96), (19000, 0.96), (18500, 0.96)])
    assert speed_clause(slow).startswith("fastest: single, 1.90 times as fast as locked")
    assert "times as fast as synthetic" in speed_clause(slow)
    no_single = Comparison(("locked", "synthetic"), slow.results)
    assert speed_clause(no_single).startswith("fastest: locked, 2.05 times as fast as synthetic")


def test_the_verdict_fires_when_synthetic_is_fastest() -> None:
    fast = recorded(synthetic=[(170000, 0.96), (171000, 0.96), (172000, 0.96)])
    assert speed_clause(fast).startswith("fastest: synthetic, 2.42 times as fast as single")
    assert "not clearly" not in speed_clause(fast)


def test_equal_speeds_have_no_winner() -> None:
    same: list[tuple[float | None, float | None]] = [(5e4, 0.96), (6e4, 0.96), (4e4, 0.96)]
    equal = recorded(locked=same, synthetic=same, single=same)
    assert speed_clause(equal).startswith("none is clearly the fastest: ")


def test_rows_without_a_seed_in_common_can_not_be_compared() -> None:
    apart = Comparison(("a", "b"), (result("a", 0, 10, 0.5), result("b", 1, 5, 0.5)))
    assert speed_clause(apart) == ""


# --- time to an accuracy -------------------------------------------------------------------------

#: All are there (0.955, then the final accuracy) after three quarters of the time.
ALL, NONE = 0.955, 0.99


def test_the_first_at_a_target_is_named_with_how_much_sooner() -> None:
    assert target_clause(recorded(targets=(ALL,))) == (
        "first at 95.5 %: single, 1.90 times sooner than locked (95 % interval 1.23 to 2.94), "
        "not clearly ahead of the rest: 1.06 times sooner than synthetic "
        "(95 % interval 0.67 to 1.69)"
    )


def test_the_highest_target_that_anyone_reaches_every_time_counts() -> None:
    assert target_clause(recorded(targets=(0.90, ALL, NONE))).startswith("first at 95.5 %: ")


def test_rows_that_did_not_always_reach_it_are_named_and_no_ratio_is_given() -> None:
    some = recorded(targets=(ALL,), locked=[(9e4, 0.96), (9e4, 0.95), (9e4, 0.90)])
    found = target_clause(some)
    assert found.endswith("(locked in 1 of 3)")
    assert "sooner than locked" not in found


def test_a_target_that_only_one_reaches_every_time_has_no_ratio_at_all() -> None:
    low: list[tuple[float | None, float | None]] = [(9e4, 0.95), (9e4, 0.95), (9e4, 0.96)]
    assert target_clause(recorded(targets=(ALL,), locked=low, single=low)) == (
        "only synthetic reached 95.5 % in every run (locked in 1 of 3, single in 1 of 3)"
    )


def test_a_target_that_nobody_reaches_is_said_to_be_missed() -> None:
    assert target_clause(recorded(targets=(NONE,))) == (
        "none reached 99 % in every run (locked in 0 of 3, synthetic in 0 of 3, single in 0 of 3)"
    )
    assert target_clause(recorded()) == ""


# --- accuracy ------------------------------------------------------------------------------------


def test_accuracies_are_mentioned_where_they_differ_beyond_the_interval() -> None:
    assert accuracy_clause(recorded()) == (
        "test accuracies differ: locked is better by 0.28 points than synthetic "
        "(95 % interval 0.21 to 0.36)"
    )
    close = recorded(synthetic=[(66732, 0.9637), (66762, 0.9600), (65792, 0.9614)])
    assert accuracy_clause(close) == ""
    assert accuracy_clause(recorded(seeds=1)) == ""


def test_losses_without_right_answers_have_no_accuracy_verdict() -> None:
    none: list[tuple[float | None, float | None]] = [(50000.0, None), (51000.0, None)]
    assert accuracy_clause(recorded(locked=none, synthetic=none, single=none)) == ""


# --- controls ------------------------------------------------------------------------------------

ZERO = {"synthetic-zero": "synthetic"}


def test_a_control_that_learns_less_shows_what_a_generator_is_worth() -> None:
    worse = recorded(controls=ZERO, **{"synthetic-zero": [(9e4, 0.94), (9e4, 0.938), (9e4, 0.938)]})
    assert control_clause(worse) == (
        "synthetic is more accurate than its control synthetic-zero, by 2.03 points "
        "(95 % interval 1.96 to 2.11)"
    )


def test_a_control_that_learns_as_much_is_held_against_what_it_controls() -> None:
    same = recorded(controls=ZERO, **{"synthetic-zero": RECORDED["synthetic"]})
    assert "synthetic is not clearly more accurate than its control" in control_clause(same)


def test_a_control_wins_nothing() -> None:
    great: list[tuple[float | None, float | None]] = [(9e5, 0.99), (9e5, 0.99), (9e5, 0.99)]
    plain, controlled = (
        recorded(targets=(ALL,), **more)  # type: ignore[arg-type]
        for more in ({}, {"controls": ZERO, "synthetic-zero": great})
    )
    for clause in (speed_clause, target_clause, accuracy_clause):
        assert clause(controlled) == clause(plain)


# --- the sentence --------------------------------------------------------------------------------


def test_the_verdict_is_one_sentence() -> None:
    found = verdict(recorded(targets=(ALL,)))
    assert found.startswith("Fastest: single, ")
    assert "; first at 95.5 %: single, " in found
    assert found.endswith("; test accuracies differ: locked is better by 0.28 points than "
                          "synthetic (95 % interval 0.21 to 0.36).")  # fmt: skip


def test_one_seed_is_told_to_be_too_few() -> None:
    assert verdict(recorded(seeds=1)) == (
        "Fastest: synthetic, 1.04 times as fast as single and 1.91 times as fast as locked; "
        "one seed shows no spread: compare over more (--seeds 5)."
    )


def test_nothing_to_compare_has_no_verdict() -> None:
    empty = Comparison(("a", "b"), (result("a", 0, None, None), result("b", 0, 5, None)))
    assert verdict(empty) == ""
    assert verdict(Comparison(("a",), ())) == ""
