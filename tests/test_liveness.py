"""Silence that counts as death: what was asked for, and more where signs come irregularly."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from asyncdni.core.liveness import Liveness, Sight, Silence, worker_patience_s


def heard(gaps: Sequence[float], silence_s: float = 1.0) -> tuple[Liveness, float]:
    """A worker whose signs came after such gaps, and when the last one was."""
    liveness, now = Liveness(silence_s), 0.0
    liveness.heard("a", now)
    for gap in gaps:
        now += gap
        liveness.heard("a", now)
    return liveness, now


def test_nobody_is_missed_before_the_first_sign() -> None:
    liveness = Liveness(1.0)
    assert liveness.deadline() is None
    assert liveness.silent(100.0) is None


def test_with_regular_signs_silence_is_death_after_the_time_that_was_asked_for() -> None:
    liveness, last = heard([0.2] * 50)
    assert liveness.silent(last + 0.99) is None
    assert liveness.deadline() == last + 1.0
    name, silence_s = liveness.silent(last + 1.0) or ("", 0.0)
    assert (name, silence_s) == ("a", 1.0)


def test_the_limit_is_three_times_the_longest_silence_of_late() -> None:
    liveness, _ = heard([0.2, 0.8, 0.2])
    assert 0.8 * 2.8 < liveness.limit_s("a") <= 0.8 * 3


def test_a_long_silence_is_forgotten_with_time() -> None:
    liveness, _ = heard([0.8] + [0.2] * 200)
    assert liveness.limit_s("a") == 1.0


def test_one_that_is_always_late_is_given_no_more_than_five_times_the_limit() -> None:
    liveness, _ = heard([4.9] * 5)
    assert liveness.limit_s("a") == 5.0


def test_each_worker_has_a_limit_of_its_own() -> None:
    liveness, now = heard([0.9])
    for _ in range(10):
        now += 0.1
        liveness.heard("b", now)
    assert liveness.limit_s("a") > liveness.limit_s("b") == 1.0


def test_of_several_the_one_whose_time_ended_first_is_named() -> None:
    liveness = Liveness(1.0)
    for name, moment in (("a", 0.3), ("b", 0.1), ("c", 0.2)):
        liveness.heard(name, moment)
    assert liveness.deadline() == 1.1
    assert (liveness.silent(9.0) or ("",))[0] == "b"


def test_who_is_forgotten_is_not_missed_and_starts_with_the_limit_that_was_asked_for() -> None:
    liveness, now = heard([4.0])
    liveness.forget("a")
    liveness.forget("a")
    assert "a" not in liveness
    assert liveness.deadline() is None
    liveness.heard("a", now + 50.0)
    assert liveness.limit_s("a") == 1.0


def test_who_is_doubted_is_named_before_its_limit_and_again_and_at_it() -> None:
    liveness, named = Liveness(1.0, doubt=0.5), list[float]()
    liveness.heard("a", 0.0)
    while not named or named[-1] < 1.5:
        now = liveness.deadline() or 0.0
        if liveness.silent(now) is not None:
            named.append(now)
            liveness.doubted("a", now)
    assert named == [0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5]


def test_being_starved_is_a_sign_of_life_but_no_habit() -> None:
    """It does not make the limit any longer."""
    liveness = Liveness(1.0, doubt=0.5)
    liveness.heard("a", 0.0)
    assert not liveness.is_death("a", Sight.STARVED, 3.0)
    assert liveness.limit_s("a") == 1.0
    assert not liveness.is_death("a", Sight.STILL, 3.9)
    assert not liveness.is_death("a", Sight.BUSY, 3.95)
    assert not liveness.is_death("a", Sight.STILL, 4.0)  # it has to be so at two looks in a row
    assert liveness.is_death("a", Sight.STILL, 4.0)


@given(st.lists(st.floats(0.0, 0.333), min_size=1, max_size=30), st.floats(0.1, 10.0))
def test_who_speaks_three_times_as_often_as_asked_is_never_given_more_time(
    gaps: list[float], silence_s: float
) -> None:
    liveness, _ = heard([gap * silence_s for gap in gaps], silence_s)
    assert liveness.limit_s("a") == silence_s


@given(st.lists(st.floats(0.0, 20.0), max_size=30))
def test_the_limit_stays_between_what_was_asked_for_and_five_times_that(gaps: list[float]) -> None:
    liveness, _ = heard(gaps)
    assert 1.0 <= liveness.limit_s("a") <= 5.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 3.0)), min_size=1, max_size=30))
def test_there_is_a_deadline_before_anybody_has_been_silent_for_too_long(
    signs: list[tuple[str, float]],
) -> None:
    liveness, now, last = Liveness(1.0), 0.0, dict[str, float]()
    for name, gap in signs:
        now += gap
        liveness.silent(now)
        liveness.heard(name, now)
        last[name] = now
        deadline = liveness.deadline()
        ends = min(moment + liveness.limit_s(name) for name, moment in last.items())
        assert deadline is not None and deadline <= ends
        assert liveness.silent(ends) is not None or deadline < ends


# --- a worker's silent coordinator ---------------------------------------------------------------


def too_long(silence: Silence, ticks: int, since: float = 0.0) -> list[bool]:
    """The answers of so many wake-ups, half a second apart."""
    return [silence.too_long(since + 0.5 * tick) for tick in range(1, ticks + 1)]


def test_silence_is_too_long_after_its_limit() -> None:
    assert too_long(Silence(3.0, now=0.0), 7) == [False] * 6 + [True]


def test_whatever_is_heard_ends_the_silence() -> None:
    silence = Silence(3.0, now=0.0)
    assert not any(too_long(silence, 5))
    silence.hear(3.0)
    assert too_long(silence, 7, since=3.0) == [False] * 6 + [True]


def test_a_process_that_was_stopped_grants_a_fresh_interval() -> None:
    silence = Silence(3.0, now=0.0)
    assert not silence.too_long(100.0)  # SIGSTOP from 0 to 100
    assert too_long(silence, 7, since=100.0) == [False] * 6 + [True]


def test_a_worker_waits_at_least_three_seconds_for_its_coordinator() -> None:
    assert [worker_patience_s(silence_s) for silence_s in (0.1, 1.0)] == [3.0, 10.0]
