"""When a worker that has died is started again, and when it has died too often.

First the rule by itself, then the coordinator that goes by it.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from office import Office, failure, records

from asyncdni.core.coordinator import Phase
from asyncdni.core.events import Woke
from asyncdni.core.recovery import Recovery


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


def test_who_has_learned_starts_anew() -> None:
    recovery = Recovery(1)
    for _ in range(5):
        assert recovery.died("a", 3.0)
        assert recovery.deadline() == 3.0
        recovery.learned("a")
    assert recovery.attempt("a") == 0


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


def test_one_that_has_learned_in_between_may_die_as_often_as_it_likes() -> None:
    office = Office(restarts=1).started()
    for _ in range(5):
        office.mend()
        office.learn("b", 1)


def test_what_it_had_learned_before_it_died_does_not_count() -> None:
    office = Office(restarts=1, goes_on=True).started()
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


@pytest.mark.parametrize("goes_on", [False, True])
def test_one_that_does_not_come_in_time_is_started_again_until_that_was_too_often(
    goes_on: bool,
) -> None:
    """Its process hangs, or nobody has started one."""
    office = Office(
        goes_on=goes_on, restarts=2, startup_s=20.0, silence_s=1e6, stuck_s=1e6
    ).started()
    office.kill("b")
    if not goes_on:
        office.build("a", "c")
    office.wake()
    (record,) = records(office.wake(20.0), "lost")
    assert record["stage"] == "b"
    office.wake()
    assert office.launched == ["b", "b"]
    fail = failure(office.wake(20.0))
    assert fail.kind == "WorkerLost"
    assert fail.text == (
        "worker b has not become ready within 20 s (limits.startup_s); in 3 tries it has not "
        "learned anything"
    )


def test_one_that_does_not_build_or_connect_in_time_is_replaced_and_no_other() -> None:
    office = Office(startup_s=20.0, silence_s=1e6, stuck_s=1e6).started()
    office.kill("b")
    office.build("a")
    office.replace("b")
    assert [r["stage"] for r in records(office.wake(20.0), "lost")] == ["c"]
    office.replace("c")
    office.ready("a", "c")
    assert [r["stage"] for r in records(office.wake(20.0), "lost")] == ["b"]
