"""All show signs of life and nothing moves: a lost message, mended by a new round."""

from __future__ import annotations

import pytest
from office import NAMES, Office, failure, records, sent, to_all

from asyncdni.core.events import Action
from asyncdni.core.liveness import Standstill
from asyncdni.core.members import Phase
from asyncdni.messages import Rejoin, Report, Start

# --- the rule ------------------------------------------------------------------------------------


def test_before_anything_has_moved_nothing_is_missed() -> None:
    assert Standstill(5.0).deadline() is None


def test_a_new_count_of_any_worker_is_a_move_and_the_same_one_again_is_none() -> None:
    still = Standstill(5.0)
    still.done("a", 1, 10.0)
    assert still.deadline() == 15.0
    still.done("a", 1, 12.0)
    assert still.deadline() == 15.0
    still.done("b", 1, 13.0)
    assert still.deadline() == 18.0
    still.moved(14.0)
    assert still.deadline() == 19.0


def test_barriers_are_no_progress_and_no_standing_still() -> None:
    still = Standstill(5.0)
    still.done("a", 1, 10.0)
    for moment in (12.0, 15.0):  # 2 s of nothing before each, and a second at each
        still.pause(moment)
        still.moved(moment + 0.5)
        still.go_on(moment + 1.0)
    assert still.deadline() == 10.0 + 5.0 + 2.0
    still.pause(17.0)
    still.done("a", 2, 17.5)
    still.go_on(18.0)
    assert still.deadline() == 23.0


def test_standstills_without_progress_between_them_are_in_a_row() -> None:
    still = Standstill(5.0)
    counts = []
    for positions in ({"a": 3, "b": 5}, {"a": 3, "b": 9}, {"a": 4, "b": 9}, {"a": 4, "b": 9}):
        still.noticed(positions, 0.0)
        counts.append(still.in_a_row)
    assert counts == [1, 2, 1, 2]


def test_what_is_done_about_one_is_a_move_itself() -> None:
    still = Standstill(5.0)
    still.noticed({}, 20.0)
    assert still.deadline() == 25.0


# --- in a run ------------------------------------------------------------------------------------


def alive(office: Office, seconds: int, ops: int, position: int = 3) -> list[Action]:
    """All report each second, always the same count of ops."""
    actions: list[Action] = []
    for _ in range(seconds):
        office.now += 1.0
        counters: dict[str, float | int | None] = {"ops": ops, "batches": position, "missed": 0}
        for name in NAMES:
            office.hear(name, Report(counters))
        actions += office.wake(0.0)
    return actions


@pytest.mark.parametrize(("learns_alone", "restore"), [(False, "initial"), (True, "keep")])
def test_all_join_anew_as_after_a_death_but_nobody_has_died(
    learns_alone: bool, restore: str
) -> None:
    office = Office(learns_alone=learns_alone, stuck_s=5.0).started()
    actions = alive(office, 6, ops=7)
    (record,) = records(actions, "stuck")
    assert record["text"] == "nothing has moved for 5 s (limits.stuck_s) while training"
    assert sent(actions) == to_all(Rejoin(office.told["a"].incarnation, restore))
    assert office.launched == []
    office.build()
    assert sent(office.ready()) == to_all(Start())


def test_as_long_as_one_worker_does_something_nothing_is_done() -> None:
    office = Office(stuck_s=5.0).started()
    for ops in range(10):
        assert not records(alive(office, 2, ops=ops), "stuck")
    assert office.phase is Phase.TRAINING


def test_at_the_same_batch_again_and_again_it_ends_the_run() -> None:
    office = Office(stuck_s=5.0, restarts=2).started()
    for number in range(2):
        assert records(alive(office, 6, ops=number), "stuck")
        office.build()
        office.ready()
    fail = failure(alive(office, 6, ops=3))
    assert fail.kind == "LimitExceeded"
    assert fail.text.startswith(
        "nothing has moved for 5 s (limits.stuck_s) while training, 3 times"
    )


def test_standstills_at_batches_that_had_been_passed_before_are_in_a_row() -> None:
    """All go back to the last cut, so that one comes before another and yet gets no farther."""
    office, stuck = Office(stuck_s=5.0, restarts=3).started(), 0
    for batch in (30, 20, 30, 20):
        for name in NAMES:
            office.hear(name, Report({"updates": batch, "batches": batch, "missed": 0}))
        actions = alive(office, 6, ops=batch)
        if office.phase is Phase.ENDED:
            break
        stuck += len(records(actions, "stuck"))
        office.build()
        office.ready()
    assert stuck == 3 and failure(actions).text.endswith("4 times at the same batch")


def test_without_recovery_the_first_ends_the_run() -> None:
    office = Office(stuck_s=5.0, folder="").started()
    fail = failure(alive(office, 6, ops=1))
    assert fail.kind == "LimitExceeded"
    assert fail.text == "nothing has moved for 5 s (limits.stuck_s) while training"


def test_the_steps_of_a_barrier_are_moves_too() -> None:
    """An evaluation may take longer than that: its ops count. So do words of saving."""
    office = Office(stuck_s=5.0).evaluating()
    alive(office, 4, ops=0)
    office.score()
    assert office.phase is Phase.SAVING
    assert not records(alive(office, 4, ops=0), "stuck")
    assert records(alive(office, 2, ops=0), "stuck")
