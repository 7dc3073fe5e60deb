"""When a worker that has died is started again, and when it has died too often.

First the rule by itself, then the coordinator that goes by it.
"""

from __future__ import annotations

import random
from itertools import accumulate, takewhile

import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st
from office import Office, failure, hello, records

from asyncdni.core.events import Woke
from asyncdni.core.liveness import Recovery
from asyncdni.core.members import Phase


def waits(deaths: int) -> list[float]:
    """Seconds from each of so many deaths in a row to the start that follows."""
    recovery, found = Recovery(restarts=100), []
    for _ in range(deaths):
        assert recovery.died("a", 10.0)
        moment = recovery.deadline()
        assert moment is not None
        found.append(moment - 10.0)
        assert recovery.due(moment) == ["a"]
    return found


def test_the_first_start_is_at_once_and_later_ones_wait_twice_as_long_each() -> None:
    assert waits(6) == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6])


@given(st.integers(1, 2000))
def test_no_wait_is_longer_than_a_few_seconds(deaths: int) -> None:
    recovery = Recovery(restarts=10_000)
    for _ in range(deaths):
        recovery.died("a", 0.0)
    assert (recovery.deadline() or 0.0) <= 5.0


def test_it_is_forgiven_so_many_deaths_and_no_more() -> None:
    recovery = Recovery(2)
    assert [recovery.died("a", 0.0) for _ in range(3)] == [True, True, False]
    assert recovery.died("b", 0.0)  # each has a count of its own


def test_without_restarts_no_death_is_forgiven() -> None:
    recovery = Recovery(0)
    assert recovery.is_off
    assert not recovery.died("a", 0.0)
    assert recovery.deadline() is None


def test_who_gets_farther_than_ever_before_starts_anew() -> None:
    recovery = Recovery(1)
    for deadly in (30, 60, 90, 120, 150):
        assert _dies_at(recovery, list(range(10, deadly, 10))) == [True]
        assert recovery.deadline() == 0.0
        assert recovery.attempt("a") == 1


def test_who_learns_what_it_had_learned_before_does_not() -> None:
    recovery = Recovery(3)
    assert _dies_at(recovery, [90]) == [True]
    assert _dies_at(recovery, [20, 60], [30, 89], [90]) == [True, True, False]
    assert recovery.died_at("a") == 90


def test_the_farthest_of_all_deaths_counts_and_not_the_last() -> None:
    recovery = Recovery(2)
    assert _dies_at(recovery, [90], [10], [50]) == [True, True, False]


def test_a_report_more_before_the_same_death_is_no_progress() -> None:
    """It dies at batch 100 each time, and reports at other moments before."""
    recovery = Recovery(4)
    assert _dies_at(recovery, [40, 80], [30, 70, 99], [35, 95], [45, 85]) == [True] * 4
    assert _dies_at(recovery, [50, 98]) == [False]


def test_a_jump_in_the_data_is_nothing_learned() -> None:
    """The others have gone on: its round starts far ahead, with the weights that it had."""
    recovery = Recovery(2)
    for start, forgiven in ((0, True), (5000, True), (9000, False)):
        recovery.begins("a", start)
        recovery.reported("a", 90, start + 90)
        assert recovery.died("a", 0.0) is forgiven


def _dies_at(recovery: Recovery, *lives: list[int]) -> list[bool]:
    """A worker goes back to the start each time, makes such reports, and dies; what is forgiven."""
    found = []
    for reports in lives:
        recovery.begins("a", 0)
        for learned in reports:
            recovery.reported("a", learned, learned)
        found.append(recovery.died("a", 0.0))
    return found


@given(deadly=st.integers(0, 3000), restarts=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_one_that_dies_at_the_same_batch_is_given_up_however_its_reports_fall(
    deadly: int, restarts: int, seed: int
) -> None:
    """Whatever is reported last before each death, it is seldom farther than before and soon never:
    what may come between two reports is known by then."""
    recovery, source, deaths = Recovery(restarts), random.Random(seed), 0
    forgiven = [True]
    while forgiven == [True]:
        most = source.choice([10, 100, 1000])  # between two reports
        steps = accumulate(source.randint(1, most) for _ in range(deadly))
        forgiven = _dies_at(recovery, list(takewhile(lambda batch: batch <= deadly, steps)))
        deaths += 1
    assert recovery.attempt("a") == restarts + 1
    assert deaths <= 12 * (restarts + 1)


def test_each_is_started_once_and_not_before_its_time() -> None:
    recovery = Recovery(5)
    recovery.died("a", 1.0)
    recovery.died("b", 1.0)
    recovery.died("b", 1.0)
    assert recovery.due(0.9) == []
    assert recovery.due(1.0) == ["a"]
    assert recovery.due(1.05) == []
    assert recovery.due(1.1) == ["b"]
    assert recovery.due(9.0) == []
    assert recovery.deadline() is None


def test_who_came_by_itself_is_not_started() -> None:
    recovery = Recovery(5)
    recovery.died("a", 1.0)
    assert recovery.is_known_dead("a")
    recovery.came("a")
    assert not recovery.is_known_dead("a")
    assert recovery.due(9.0) == []


def test_time_away_runs_from_the_first_of_several_deaths() -> None:
    recovery = Recovery(5)
    recovery.died("a", 1.0)
    recovery.died("a", 4.0)
    assert recovery.back("a", 6.5) == 5.5
    assert recovery.back("a", 7.0) == 0.0  # and not once more
    recovery.died("a", 8.0)
    assert recovery.back("a", 9.0) == 1.0


# --- the coordinator goes by it ------------------------------------------------------------------


def test_one_that_dies_again_and_again_is_started_later_each_time_and_then_given_up() -> None:
    office = Office(restarts=3).started()
    office.kill("b")
    office.build("a", "c")
    for attempt, wait_s in enumerate((0.0, 0.1, 0.2)):
        died = office.now
        actions = office.wake()
        assert office.now == pytest.approx(died + wait_s)
        assert records(actions, "launch")[0]["attempt"] == attempt + 1
        office.join("b")
        last = office.kill("b")
    fail = failure(last)
    assert fail.kind == "WorkerLost"
    assert fail.text == "worker b died with signal 9; in 4 tries it has not learned anything"


def test_one_that_gets_farther_in_between_may_die_as_often_as_it_likes() -> None:
    office = Office(restarts=1).started()
    for death in range(5):
        office.mend()
        for updates in range(10, 40 + 30 * death, 10):
            office.learn("b", updates)
    assert office.phase is Phase.TRAINING


@pytest.mark.parametrize("learns_alone", [False, True])
def test_one_that_dies_at_the_same_batch_again_and_again_is_given_up(learns_alone: bool) -> None:
    """Where all go back to a checkpoint, and where it begins from its last snapshot."""
    office = Office(restarts=3, learns_alone=learns_alone).started()
    office.learn("b", 1990)
    for updates in (1995, 1980, 1992):
        office.mend(**({"updates": 1900, "position": 1900} if learns_alone else {}))
        office.learn("b", updates)
    fail = failure(office.kill("b"))
    assert fail.kind == "WorkerLost"
    assert fail.text == (
        "worker b died with signal 9; in 4 tries it has not got farther than about batch 1,995"
    )


def test_what_it_had_learned_before_it_died_does_not_count() -> None:
    office = Office(restarts=1, learns_alone=True).started()
    office.learn("b", 7)
    office.mend(updates=7)
    office.learn("b", 7)
    assert failure(office.kill("b")).kind == "WorkerLost"


def test_no_process_is_started_after_the_end() -> None:
    office = Office(restarts=1, silence_s=0.2).started()
    office.kill("a")
    office.join("a")
    office.kill("a", 1)
    office.kill("b")  # to be started again …
    office.now += 0.5
    actions = office(Woke())  # … when the second death of a is once too often
    assert failure(actions).kind == "WorkerLost"
    assert "b" not in office.launched


def test_two_deaths_whose_grace_ends_together_end_the_run_once() -> None:
    office = Office(restarts=1, silence_s=100.0).started()
    office.kill("a")
    office.build("b", "c")
    office.replace("a")
    office.ready()
    office.kill("a", 1)
    office.kill("b", 1)
    actions = office.wake(1.0)
    assert failure(actions).text.startswith("worker a died with exit code 1")
    assert office.phase is Phase.ENDED


@pytest.mark.parametrize("learns_alone", [False, True])
def test_one_that_does_not_come_in_time_is_started_again_until_that_was_too_often(
    learns_alone: bool,
) -> None:
    """Its process hangs, or nobody has started one."""
    office = Office(
        learns_alone=learns_alone, restarts=2, startup_s=20.0, silence_s=1e6, stuck_s=1e6
    ).started()
    office.kill("b")
    if not learns_alone:
        office.build("a", "c")
    office.wake()
    (record,) = records(office.wake(20.0), "lost")
    assert record["stage"] == "b"
    office.wake()
    assert office.launched == ["b", "b"]
    fail = failure(office.wake(20.0))
    assert fail.kind == "WorkerLost"
    assert fail.text == (
        "worker b has not joined within 20 s (limits.startup_s); in 3 tries it has not "
        "learned anything"
    )
    assert fail.stages == ("b",)  # whose log may say more


@each("state", ["nothing", "gathering", "connecting"])
def test_one_that_hangs_before_the_first_round_is_replaced_like_any_other(state: str) -> None:
    """Before its Hello, before all is built, or before it has connected."""
    office = Office(restarts=2, startup_s=20.0, silence_s=1e6, stuck_s=1e6)
    if state == "nothing":
        for name in ("a", "c"):
            office.hear(name, hello(name))
    else:
        getattr(office, state)()
    if state != "connecting":
        office.build("a", "c")
    for tries in range(3):
        if state == "connecting":
            office.ready("a", "c")
        actions = office.wake(20.0)
        if tries < 2:
            assert [r["stage"] for r in records(actions, "lost")] == ["b"]
            if len(office.launched) == tries:
                office.wake()
            if state != "nothing":
                office.join("b")
            if state == "connecting":
                office.build()
    what = "joined" if state == "nothing" else "become ready"
    fail = failure(actions)
    assert office.launched == ["b", "b"] and fail.stages == ("b",)
    assert fail.text == (
        f"worker b has not {what} within 20 s (limits.startup_s); in 3 tries it has not learned "
        "anything"
    )


def test_before_the_first_round_one_that_is_to_be_started_by_hand_is_not_replaced() -> None:
    office = Office(startup_s=20.0, silence_s=1e6, stuck_s=1e6, launched=False)
    office.hear("a", hello("a"))
    office.hear("b", hello("b"))
    office.build("b")
    fail = failure(office.wake(20.0))
    assert fail.text == "no worker for c has joined within 20 s (limits.startup_s)"
    assert (fail.kind, fail.stages, office.launched) == ("LaunchError", ("c",), [])


def test_one_that_does_not_build_or_connect_in_time_is_replaced_and_no_other() -> None:
    office = Office(startup_s=20.0, silence_s=1e6, stuck_s=1e6).started()
    office.kill("b")
    office.build("a")
    office.replace("b")
    assert [r["stage"] for r in records(office.wake(20.0), "lost")] == ["c"]
    office.replace("c")
    office.ready("a", "c")
    assert [r["stage"] for r in records(office.wake(20.0), "lost")] == ["b"]
