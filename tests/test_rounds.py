"""Rounds: what each starts from, deaths while one is being made, of several, and once too often."""

from __future__ import annotations

import pytest
from each import each
from office import NAMES, Office, built, failure, hello, records, sent, to_all

from asyncdni.core.events import Action, UserStop
from asyncdni.core.ledger import Ledger
from asyncdni.core.members import Phase
from asyncdni.core.position import EVALUATE, FINAL
from asyncdni.messages import (
    Abort,
    Close,
    Connect,
    Drained,
    Evaluated,
    Failed,
    Lost,
    Ready,
    Rejoin,
    Report,
    Save,
    Saved,
    Start,
    Welcome,
)


def connects(actions: list[Action]) -> list[Connect]:
    return [message for _, message in sent(actions, Connect) if isinstance(message, Connect)]


def restored(office: Office, name: str) -> str:
    return office.told[name].restore


# --- where a round starts ------------------------------------------------------------------------


def test_a_round_starts_where_the_farthest_is() -> None:
    """The host may have read what has not been passed on; nobody gets a batch twice."""
    office = Office(learns_alone=True).started()
    office.kill("b")
    office.replace("b", position=3)
    office.hear("a", built(office.told["a"].incarnation, position=6, read=8))
    office.build("b", position=3)
    found = connects(office.build("c", position=5))
    assert [connect.start for connect in found] == [8, 8, 8]


def test_a_round_that_goes_back_starts_where_the_cut_is() -> None:
    ledger = Ledger(start=12, barrier=3, planned=2, cut=1, restore="checkpoints/000001")
    office = Office(ledger).gathering()
    assert {restored(office, name) for name in NAMES} == {"checkpoints/000001"}
    (record,) = records(office.build(position=12, read=12), "round")
    assert (record["start"], record["restore"]) == (12, "checkpoints/000001")


def test_the_first_round_of_a_run_from_the_seed_is_no_news() -> None:
    office = Office().gathering()
    actions = office.build()
    assert {connect.start for connect in connects(actions)} == {0}
    assert not records(actions, "round")


def test_each_is_told_the_incarnations_of_its_neighbours() -> None:
    office = Office().started()
    office.kill("b")
    office.build("a", "c")
    office.wake()
    office.join("b")
    office.kill("b")
    office.wake(0.2)
    office.join("b")
    found = dict(sent(office.build("b"), Connect))
    number = {name: office.told[name].incarnation for name in NAMES}
    assert number["b"] != number["a"] == number["c"] != 1
    for name in NAMES:
        connect = found[name]
        assert isinstance(connect, Connect)
        assert connect.incarnation == number[name]
        assert connect.incarnations == {other: number[other] for other in connect.addresses}


def test_each_is_told_where_the_new_process_of_its_neighbour_listens() -> None:
    office = Office().started()
    office.kill("b")
    office.build("a", "c")
    office.wake()
    office.join("b", address="tcp://elsewhere", host="another")
    found = dict(sent(office.build("b"), Connect))
    assert all(
        message.addresses["b"] == "tcp://elsewhere"
        for name, message in found.items()
        if name != "b" and isinstance(message, Connect)
    )


def test_barriers_go_on_being_numbered_and_those_that_were_lifted_are_not_set_again() -> None:
    office = Office(learns_alone=True, has_tests=False).started()
    office.drain()
    assert office.machine.barrier == 1
    office.kill("b")
    office.replace("b")
    for connect in connects(office.build(position=3)):
        assert (connect.barrier, connect.planned) == (1, 1)


def test_after_going_back_barriers_since_the_cut_are_set_again_under_new_numbers() -> None:
    office = Office(has_tests=False).started()
    office.drain()
    office.kill("b")
    office.build("a", "c")
    for connect in connects(office.replace("b")):
        assert (connect.barrier, connect.planned, connect.start) == (1, 0, 0)


@each("learns_alone", [False, True])
def test_a_barrier_at_which_somebody_died_is_set_again_under_the_same_number(
    learns_alone: bool,
) -> None:
    office = Office(learns_alone=learns_alone).evaluating().mend(position=2)
    assert office.machine.barrier == 0
    office.drain()
    assert office.phase is Phase.EVALUATING
    assert sent(office.score())


@each("learns_alone", [False, True])
def test_an_evaluation_counts_once_also_where_somebody_died_before_its_barrier_was_lifted(
    learns_alone: bool,
) -> None:
    office = Office(learns_alone=learns_alone).started()
    for correct in (6, 7):
        office.drain()
        assert sent(office.score(correct=correct), Save) == to_all(Save("best"))
        if correct == 6:
            office.mend(position=2)
    ledger = office.machine.ledger
    assert [entry["accuracy"] for entry in ledger.history] == [0.7]
    assert ledger.best == {"accuracy": 0.7, "loss": 0.1}


# --- words of a round that is over ---------------------------------------------------------------


def test_words_of_an_older_incarnation_are_ignored() -> None:
    office = Office().started()
    office.kill("b")
    for word in (built(), Ready(1), Drained(1, 0, EVALUATE, 2)):
        assert office.hear("a", word) == []
    assert office.phase is Phase.GATHERING
    office.build("a", "c")
    office.replace("b")
    assert office.hear("a", Ready(1)) == []
    assert office.phase is Phase.CONNECTING
    office.ready()
    assert office.hear("a", Drained(1, 0, EVALUATE, 2)) == []
    assert office.drain("b", "c") == []  # the older word was not a's


@each("learns_alone", [False, True])
def test_what_was_on_its_way_from_a_barrier_means_nothing_while_a_round_is_made(
    learns_alone: bool,
) -> None:
    office = Office(learns_alone=learns_alone).saving()
    office.kill("b")
    for word in (Saved("best", {}), Evaluated(0, "c", 1, 1.0, 1, 1), Drained(1, 0, EVALUATE, 2)):
        assert office.hear("c", word) == []


def test_words_of_a_process_that_has_been_replaced_are_ignored() -> None:
    office = Office().started().mend()
    number = office.told["b"].incarnation
    office._peers["b"] = "b"  # the first one, not quite dead
    for word in (Ready(number), Failed("DataError", "x", ""), hello("a"), Report({})):
        assert not [to for to, _ in sent(office.hear("b", word)) if to != "b"]
    assert office.phase is Phase.TRAINING


# --- deaths while a round is being made ----------------------------------------------------------


@each("learns_alone", [False, True])
@each("second", ["a", "b"])
def test_a_death_while_others_build_waits_for_that_one_too(learns_alone: bool, second: str) -> None:
    """Of a neighbour, or of the replacement itself."""
    office = Office(learns_alone=learns_alone).started()
    office.kill("b")
    office.wake()
    office.join("b")
    office.kill(second)
    assert office.phase is (Phase.MENDING if learns_alone else Phase.GATHERING)
    office.wake()
    assert office.launched == ["b", second]
    office.join(second)
    assert restored(office, second) == ("snapshots" if learns_alone else "initial")
    if learns_alone:
        office.build("b", *{second} - {"b"})
        assert {restored(office, name) for name in NAMES} == {"keep"}
    assert connects(office.build())
    assert sent(office.ready()) == to_all(Start())


@each("learns_alone", [False, True])
@each("second", ["a", "b"])
def test_a_death_while_all_connect_makes_a_new_round_of_the_same_kind(
    learns_alone: bool, second: str
) -> None:
    office = Office(learns_alone=learns_alone).started()
    office.kill("b")
    if learns_alone:
        office.replace("b")
        office.build()
    else:
        office.build("a", "c")
        office.replace("b")
    assert office.phase is Phase.CONNECTING
    office.ready("c")
    actions = office.kill(second)
    assert office.phase is Phase.GATHERING
    restore = "keep" if learns_alone else "initial"
    others = set(NAMES) - {second}
    assert {name for name, _ in sent(actions, Rejoin)} == others
    assert {restored(office, name) for name in others} == {restore}
    office.build(*others)
    assert connects(office.replace(second))
    assert restored(office, second) == ("snapshots" if learns_alone else "initial")
    assert sent(office.ready()) == to_all(Start())


def test_a_death_while_the_first_round_is_connected_makes_another_from_the_seed() -> None:
    office = Office().connecting()
    office.kill("b")
    assert {restored(office, name) for name in NAMES} == {"initial"}
    office.build("a", "c")
    assert connects(office.replace("b"))
    assert sent(office.ready()) == to_all(Start())


def test_who_waits_to_begin_does_not_hear_of_a_neighbour_that_is_lost() -> None:
    """It would take that for news of the round that it is about to join."""
    office = Office(learns_alone=True).started()
    office.kill("b")
    office.wake()
    office.join("b")
    assert sent(office.kill("a")) == [("c", Lost("a"))]


def test_two_that_die_at_once_are_both_replaced_before_all_go_on() -> None:
    office = Office(learns_alone=True).started()
    office.kill("a")
    assert sent(office.kill("b")) == [("c", Lost("b"))]
    office.replace("a", position=3)
    assert office.phase is Phase.MENDING
    assert sent(office.replace("b", position=2), Rejoin) == to_all(
        Rejoin(office.told["c"].incarnation, "keep")
    )


# --- a stop meanwhile, and what it has cost -------------------------------------------------------


@each("learns_alone", [False, True])
def test_a_stop_while_a_worker_is_replaced_waits_for_it_to_save_all(learns_alone: bool) -> None:
    office = Office(learns_alone=learns_alone).started()
    office.kill("b")
    assert sent(office(UserStop())) == []
    others = ("a", "c")
    if not learns_alone:
        office.build(*others)
    office.replace("b")
    if learns_alone:
        office.build()
    assert ("a", Close(FINAL)) in sent(office.ready())


@each("learns_alone", [False, True])
def test_but_not_where_it_is_to_be_started_by_hand(learns_alone: bool) -> None:
    office = Office(learns_alone=learns_alone, launched=False).started()
    office.kill("b")
    actions = office(UserStop())
    assert failure(actions).kind == "Interrupted"
    assert {name for name, _ in sent(actions, Abort)} == {"a", "c"}


def test_updates_since_the_snapshot_are_reported_lost_and_how_long_it_took() -> None:
    office = Office(learns_alone=True).started()
    office.learn("b", 50)
    office.kill("b")
    office.replace("b", updates=42)
    office.now += 0.7
    office.build(updates=42)
    (record,) = records(office.ready(), "back")
    assert record["stage"] == "b"
    assert record["lost_updates"] == 8
    assert record["down_s"] == pytest.approx(0.7)


def test_where_all_go_back_the_updates_that_are_to_be_done_again_are_told_of_all() -> None:
    office = Office().started()
    for name, updates in (("a", 60), ("b", 50)):
        office.learn(name, updates)
    office.kill("b")
    office.build("a", "c", updates=42)
    (opened,) = records(office.replace("b", updates=42), "round")
    assert (opened["lost_updates"], opened["again"]) == ({"a": 18, "b": 8}, True)
    (record,) = records(office.ready(), "back")
    assert (record["stage"], record["lost_updates"], record["again"]) == ("b", 8, True)


def test_updates_that_were_gone_back_behind_count_once_however_often_a_worker_dies() -> None:
    office = Office().started()
    office.learn("a", 60)
    office.learn("b", 50)
    office.kill("b")
    office.build("a", "c")
    told = records(office.replace("b"), "round")
    office.kill("b")  # before all are ready
    office.build("a", "c")
    told += records(office.replace("b"), "round")
    assert [one["lost_updates"] for one in told] == [{"a": 60, "b": 50}, {}]
    (record,) = records(office.ready(), "back")
    assert record["lost_updates"] == 50
    office.learn("b", 7)
    office.kill("a")
    office.build("b", "c")
    (opened,) = records(office.replace("a"), "round")
    assert opened["lost_updates"] == {"b": 7}
    (record,) = records(office.ready(), "back")
    assert (record["stage"], record["lost_updates"]) == ("a", 0)


def test_behind_numbers_that_went_wrong_what_is_gone_back_behind_is_lost() -> None:
    office = Office(rolls_back=True).started()
    office.learn("b", 50)
    office.hear("b", Failed("NumericalError", "the loss is nan", ""))
    (opened,) = records(office.build(), "round")
    assert (opened["start"], opened["lost_updates"], opened["again"]) == (51, {"b": 50}, False)


def test_a_batch_whose_numbers_went_wrong_is_not_met_again_by_who_has_not_come_to_it() -> None:
    office = Office(rolls_back=True).started()
    office.learn("b", 50)
    office.hear("b", Failed("NumericalError", "not all is finite", "", 53))
    (opened,) = records(office.build(), "round")
    assert opened["start"] == 54


@each("restore, again", [("checkpoints/000001", True), ("snapshots", False)])
def test_a_run_that_is_taken_up_again_tells_what_an_earlier_one_had_done_since(
    restore: str, again: bool
) -> None:
    ledger = Ledger(start=40, cut=1, restore=restore, updates={"a": 40, "b": 55})
    office = Office(ledger).gathering()
    (opened,) = records(office.build(position=40, updates=40, read=40), "round")
    assert (opened["lost_updates"], opened["again"]) == ({"b": 15}, again)
    assert office.machine.updates == {"a": 40, "b": 40, "c": 40}


def test_a_run_that_was_killed_before_its_first_checkpoint_tells_that_all_is_done_again() -> None:
    office = Office(Ledger(updates={"a": 40})).gathering()
    (opened,) = records(office.build(), "round")
    assert (opened["start"], opened["lost_updates"], opened["again"]) == (0, {"a": 40}, True)


def test_the_time_that_a_death_costs_is_training_time() -> None:
    office = Office(silence_s=100.0).started()  # at 100
    office.now = 110.0
    office.mend()
    office.now = 115.0
    office.drain()
    assert office.machine.train_s == 15.0


def test_a_worker_that_came_by_itself_is_not_launched() -> None:
    """Started by hand, perhaps on another host."""
    office = Office().started()
    office.kill("b")
    office.build("a", "c")
    assert sent(office.join("b"), Welcome)
    assert connects(office.build("b"))
    office.ready()
    office.wake(0.1)
    assert office.launched == []
