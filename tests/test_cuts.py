"""Cuts of the whole run: when one is taken, what it is of, and going back to it."""

from __future__ import annotations

import pytest
from office import MEMBERS, NAMES, Office, failure, records, sent, to_all

from asyncdni.core.events import Action, Commit, Move, Stored, UserStop
from asyncdni.core.ledger import Ledger
from asyncdni.core.members import Phase
from asyncdni.core.position import CHECKPOINT, EVALUATE, FINAL
from asyncdni.messages import (
    Close,
    Connect,
    Failed,
    Leave,
    Rejoin,
    Report,
    Resume,
    Save,
    Saved,
    Welcome,
)

CUT = "checkpoints/000001"
NAN = Failed("NumericalError", "stage b: the loss is nan", "")


def commits(actions: list[Action]) -> list[Commit]:
    return [action for action in actions if isinstance(action, Commit)]


def patient(**roster: object) -> Office:
    """Nobody is called silent; a checkpoint is due every 30 s."""
    values = {"cut_every_s": 30.0, "silence_s": 1e6, "stuck_s": 1e6, **roster}
    return Office(**values).started()


def cut_at(office: Office, position: int, kind: str = CHECKPOINT) -> list[Action]:
    """All drain there, and save a cut that is committed."""
    (tag,) = {
        message.tag
        for _, message in sent(office.drain(kind=kind, position=position), Save)
        if isinstance(message, Save)
    }
    office.saved(tag)
    return office(Stored(tag))


# --- when one is due -----------------------------------------------------------------------------


def test_once_its_time_has_come_the_host_is_told_to_set_a_barrier_for_it_once() -> None:
    office = patient()  # at 100
    assert office.machine.deadline() == 130.0
    assert sent(office.wake()) == [("a", Close(CHECKPOINT))]
    assert office.wake(50.0) == []
    assert sent(office.drain(kind=CHECKPOINT)) == to_all(Save(CUT))  # and no evaluation
    assert sent(office.committed()) == to_all(Resume(0))
    assert office.phase is Phase.TRAINING


def test_the_next_one_is_due_so_long_after_the_last_was_committed() -> None:
    office = patient()
    office.wake()
    office.now = 137.0
    office.drain(kind=CHECKPOINT)
    office.now = 140.0
    (record,) = records(office.committed(), "cut")
    assert (record["number"], record["took_s"]) == (1, 3.0)
    assert office.machine.deadline() == 170.0
    assert sent(office.wake()) == [("a", Close(CHECKPOINT))]


def test_a_barrier_of_the_plan_serves_for_a_cut_that_is_due() -> None:
    office = patient()
    office.now = 131.0  # and nobody has been woken
    office.drain(kind=EVALUATE)
    assert sent(office.score()) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save(CUT))
    assert sent(office.committed()) == to_all(Resume(0))
    assert office.machine.deadline() == 161.0


def test_a_barrier_of_the_plan_before_that_serves_for_nothing_else() -> None:
    office = patient()
    office.now = 129.0
    office.drain(kind=EVALUATE)
    office.score()
    assert sent(office.saved("best")) == to_all(Resume(0))


def test_cuts_that_go_by_epochs_are_taken_where_the_plan_says() -> None:
    office = patient(cut_every_s=None, cut_positions=frozenset({2, 4}))
    assert office.machine.deadline() is not None
    assert (office.machine.deadline() or 0.0) > 1e5  # none goes by time
    assert sent(office.drain(kind=CHECKPOINT, position=2)) == to_all(Save(CUT))
    assert sent(office.committed()) == to_all(Resume(0))
    office.drain(kind=EVALUATE, position=4)
    assert sent(office.score()) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save("checkpoints/000002"))


def test_without_a_folder_none_is_ordered() -> None:
    office = patient(folder="")
    assert (office.machine.deadline() or 0.0) > 1e5
    office.now = 200.0
    office.drain(kind=EVALUATE)
    assert sent(office.score()) == to_all(Resume(0))


def test_the_end_is_always_a_cut_and_so_is_a_stop() -> None:
    for stop in (False, True):
        office = patient(cut_every_s=None, has_tests=False)
        if stop:
            office(UserStop())
        assert sent(office.drain(kind=FINAL)) == to_all(Save("final"))
        assert sent(office.saved("final")) == to_all(Save(CUT))
        assert sent(office.committed()) == to_all(Leave())


# --- what it is of -------------------------------------------------------------------------------


def test_nothing_is_committed_before_all_have_saved_and_nobody_goes_on_before_that() -> None:
    office = patient()
    office.drain(kind=CHECKPOINT)
    for name in ("a", "c"):
        assert office.hear(name, Saved(CUT, {name: name * 64})) == []
    actions = office.hear("b", Saved(CUT, {"b": "b" * 64, "b2": "B" * 64}))
    (commit,) = commits(actions)
    assert commit.tag == CUT
    assert commit.files == {"a": "a" * 64, "b": "b" * 64, "b2": "B" * 64, "c": "c" * 64}
    assert set(commit.files) == {stage for stages in MEMBERS.values() for stage in stages}
    assert sent(actions) == []
    assert sent(office(Stored(CUT))) == to_all(Resume(0))


def test_a_cut_is_of_what_comes_after_its_barrier() -> None:
    office = patient()
    office.now = 131.0
    office.hear("c", Report({"samples": 8, "batches": 2, "missed": 0}))
    office.drain(kind=EVALUATE, position=2)
    office.score(correct=7, loss=20.0)
    office.saved("best")
    (commit,) = commits(office.saved(CUT))
    state = Ledger.restored(commit.state, CUT)
    assert (state.start, state.barrier, state.planned, state.cut) == (2, 1, 1, 1)
    assert state.train_s == 31.0
    assert state.best == {"accuracy": 0.7, "loss": 2.0}
    assert [entry["accuracy"] for entry in state.history] == [0.7]
    assert state.samples == {"c": 8}


def planned(office: Office, kind: str, position: int = 2) -> int:
    """How many barriers of the plan the cut at this barrier has behind it."""
    actions = office.drain(kind=kind, position=position)
    while not (found := commits(actions)):
        saves = [message for _, message in sent(actions, Save) if isinstance(message, Save)]
        actions = office.saved(saves[0].tag) if saves else office.score()
    return int(found[0].state["planned"])


def test_only_barriers_of_the_plan_count_as_such() -> None:
    assert planned(patient(), CHECKPOINT) == 0
    assert planned(patient(cut_positions=frozenset({2})), CHECKPOINT) == 1
    assert planned(patient(cut_positions=frozenset({2})), EVALUATE) == 1
    assert planned(patient(), FINAL) == 1


def test_a_barrier_that_a_stop_has_cut_short_is_still_to_come() -> None:
    for kind in (FINAL, EVALUATE):  # the stop's own, or one that was being drained for
        office = patient()
        office(UserStop())
        assert planned(office, kind) == 0


def test_an_evaluation_that_was_done_before_the_stop_is_not_done_again() -> None:
    office = patient()
    office.drain()
    office.score()
    office(UserStop())
    office.saved("best")
    office.saved("final")
    (commit,) = commits(office.saved(CUT))
    assert (commit.state["planned"], len(commit.state["history"])) == (1, 1)


def test_the_last_cut_of_a_run_is_of_what_a_longer_one_goes_on_from() -> None:
    office = patient()
    office.drain(kind=FINAL)
    office.score(correct=7)
    office.saved("best")
    office.saved("final")
    (commit,) = commits(office.saved(CUT))
    assert (commit.state["planned"], len(commit.state["history"])) == (1, 1)
    assert commit.state["best"] == {"accuracy": 0.7, "loss": 0.1}


def test_cuts_are_numbered_on_in_a_run_that_is_resumed() -> None:
    ledger = Ledger(start=4, barrier=3, planned=1, cut=6, restore="checkpoints/000006")
    office = Office(ledger).gathering()
    office.build(position=4)
    office.ready()
    assert sent(office.drain(kind=CHECKPOINT, position=5)) == to_all(Save("checkpoints/000007"))


# --- going back ----------------------------------------------------------------------------------


def test_after_a_cut_all_go_back_there_and_no_further() -> None:
    office = patient(has_tests=False)
    cut_at(office, 3)
    office.drain(position=4)  # a barrier of the plan
    assert office.machine.barrier == 2
    actions = office.kill("b")
    assert {message.restore for _, message in sent(actions, Rejoin)} == {CUT}  # type: ignore[attr-defined]
    office.build("a", "c", position=3)
    actions = office.replace("b", position=3)
    assert office.told["b"].restore == CUT
    for _, connect in sent(actions, Connect):
        assert isinstance(connect, Connect)
        assert (connect.start, connect.barrier, connect.planned) == (3, 2, 0)


def test_results_since_the_cut_are_forgotten() -> None:
    office = patient()
    cut_at(office, 1)
    office.drain(position=2)
    office.score(correct=9)
    office.saved("best")
    office.kill("b")
    office.build("a", "c", position=1)
    office.replace("b", position=1)
    office.ready()
    assert office.machine.ledger.history == []
    office.drain(position=2)
    assert sent(office.score(correct=9)) == to_all(Save("best"))  # it is the best once more


@pytest.mark.parametrize("moment", ["saving", "saved"])
def test_a_cut_that_is_not_committed_is_none(moment: str) -> None:
    """A worker dies before its part is saved, or before the manifest is written."""
    office = patient()
    cut_at(office, 1)
    office.drain(kind=CHECKPOINT, position=3)
    if moment == "saved":
        assert commits(office.saved("checkpoints/000002"))
    office.kill("b")
    assert {office.told[name].restore for name in ("a", "c")} == {CUT}
    office.build("a", "c", position=1)
    office.replace("b", position=1)
    office.ready()
    again = sent(office.drain(kind=CHECKPOINT, position=3))
    assert again == to_all(Save("checkpoints/000003"))  # never one number for two states


def test_a_manifest_that_is_written_late_counts_from_then_on() -> None:
    office = patient()
    office.drain(kind=CHECKPOINT, position=3)
    office.saved(CUT)
    office.kill("b")
    office.now += 2.0
    (record,) = records(office(Stored(CUT)), "cut")
    assert record["took_s"] == 2.0
    assert office.told["a"].restore == "initial"
    office.build("a", "c")
    office.replace("b")
    office.ready()
    office.kill("c")
    assert office.told["a"].restore == CUT


def test_a_manifest_that_is_written_while_something_else_is_saved_ends_only_its_own_wait() -> None:
    office = patient()
    office.drain(kind=CHECKPOINT, position=3)
    office.saved(CUT)
    office.mend()
    office.drain(position=3)
    assert sent(office.score()) == to_all(Save("best"))
    assert not sent(office(Stored(CUT)))
    assert sent(office.saved("best")) == to_all(Resume(0))


def test_word_of_another_manifest_is_no_word_of_this_one() -> None:
    office = patient()
    office.drain(kind=CHECKPOINT)
    office.saved(CUT)
    assert office(Stored("checkpoints/000009")) == []
    assert office.phase is Phase.SAVING


def test_a_barrier_that_was_ordered_before_a_death_is_ordered_again() -> None:
    office = patient(learns_alone=True)
    assert sent(office.wake()) == [("a", Close(CHECKPOINT))]
    office.kill("b")
    office.replace("b")
    office.build()
    office.ready()
    assert sent(office.wake()) == [("a", Close(CHECKPOINT))]


# --- numbers that have gone wrong ----------------------------------------------------------------


def test_a_number_that_has_gone_wrong_ends_the_run_unless_it_is_to_roll_back() -> None:
    assert failure(patient().hear("b", NAN)).kind == "NumericalError"


def rolled_back(office: Office, position: int) -> list[Action]:
    """A number goes wrong; all build again from what they are told."""
    actions = office.hear("b", NAN)
    office.build(position=position)
    office.ready()
    return actions


def test_all_go_back_to_the_last_cut_and_on_with_later_batches() -> None:
    office = patient(rolls_back=True)
    cut_at(office, 3)
    for name, batches in (("a", 9), ("b", 7), ("c", 6)):
        office.hear(name, Report({"batches": batches, "missed": 1}))
    actions = office.hear("b", NAN)
    assert sent(actions) == to_all(Rejoin(office.told["a"].incarnation, CUT))
    (record,) = records(actions, "numbers")
    assert (record["stage"], record["text"]) == ("b", NAN.text)
    found = [message for _, message in sent(office.build(position=3), Connect)]
    assert {connect.start for connect in found if isinstance(connect, Connect)} == {11}


def test_barriers_before_those_batches_are_not_set_again() -> None:
    office = patient(rolls_back=True, has_tests=False)
    cut_at(office, 1)
    office.drain(position=2)
    office.hear("b", NAN)
    for _, connect in sent(office.build(position=1), Connect):
        assert isinstance(connect, Connect)
        assert (connect.barrier, connect.planned) == (2, 1)


def test_that_others_find_the_same_while_all_go_back_is_no_news() -> None:
    office = patient(rolls_back=True)
    office.hear("b", NAN)
    assert office.hear("c", NAN) == []


def test_a_death_on_the_way_back_does_not_lead_to_the_same_batches() -> None:
    office = patient(rolls_back=True)
    office.hear("a", Report({"batches": 9, "missed": 0}))
    office.hear("b", NAN)
    office.kill("c")
    office.build("a", "b")
    found = [message for _, message in sent(office.replace("c"), Connect)]
    assert {connect.start for connect in found if isinstance(connect, Connect)} == {10}


def test_a_death_after_that_goes_back_to_the_cut_itself() -> None:
    office = patient(rolls_back=True)
    cut_at(office, 3)
    office.hear("a", Report({"batches": 9, "missed": 0}))
    rolled_back(office, 3)
    office.kill("b")
    office.build("a", "c", position=3)
    found = [message for _, message in sent(office.replace("b", position=3), Connect)]
    assert {connect.start for connect in found if isinstance(connect, Connect)} == {3}


def test_the_same_again_and_again_ends_the_run_but_a_new_cut_is_a_new_start() -> None:
    office = patient(rolls_back=True)
    for _ in range(5):
        rolled_back(office, 0)
    cut_at(office, 3)
    for _ in range(5):
        rolled_back(office, 3)
    fail = failure(office.hear("b", NAN))
    assert fail.kind == "NumericalError"
    assert fail.text == f"{NAN.text}; the same after 5 returns to the last checkpoint"


def test_nobody_has_died_of_a_number() -> None:
    office = patient(rolls_back=True)
    rolled_back(office, 0)
    assert office.launched == []
    assert set(office.told) == set(NAMES)


# --- in place of a snapshot ----------------------------------------------------------------------


def test_a_stage_that_comes_back_by_itself_is_told_the_newest_cut() -> None:
    office = patient(learns_alone=True, term=7)
    assert [office.told[name].cut for name in NAMES] == [""] * 3
    office.wake()
    cut_at(office, 2)
    office.kill("b")
    office.wake()
    office.join("b")
    welcome = office.told["b"]
    assert isinstance(welcome, Welcome)
    assert (welcome.restore, welcome.cut, welcome.term) == ("snapshots", CUT, 7)


def test_so_is_one_of_a_run_that_is_taken_up_again_from_its_snapshots() -> None:
    office = Office(Ledger(cut=4, restore="snapshots"), learns_alone=True)
    office.join("a")
    assert isinstance(office.told["a"], Welcome) and office.told["a"].cut == "checkpoints/000004"


# --- workers that go on elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_goes_on_elsewhere_from_a_cut_taken_at_once(alone: bool) -> None:
    """It leaves and is launched again; nobody trains meanwhile, and nobody has lost an update."""
    office = patient(learns_alone=alone)
    assert records(office(Move("b", "why")), "note")[0]["text"] == "why"
    assert sent(office.wake()) == [("a", Close(CHECKPOINT))]
    actions = cut_at(office, 7)
    assert sent(actions, Leave) == [("b", Leave())]
    assert sent(actions, Resume) == [] and office.launched == ["b"]
    (moved,) = records(actions, "moved")
    assert moved["stage"] == "b"
    assert office.phase is Phase.GATHERING
    restore = "keep" if alone else CUT
    assert {name: office.told[name].restore for name in "ac"} == dict.fromkeys("ac", restore)
    office.join("b")
    assert office.told["b"].restore == ("snapshots" if alone else CUT)
    assert isinstance(welcome := office.told["b"], Welcome) and welcome.cut == CUT
    connects = sent(office.build(position=7, updates=7), Connect)
    assert {message.start for _, message in connects if isinstance(message, Connect)} == {7}
    back = records(office.ready(), "back")
    assert [(one["stage"], one["lost_updates"]) for one in back] == [("b", 0)]
    assert office.phase is Phase.TRAINING and records([*actions], "launch") == []


def test_a_barrier_that_is_under_way_serves_for_a_move() -> None:
    office = patient()
    office.drain(kind=EVALUATE)
    office(Move("b", "why"))
    assert sent(office.score()) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save(CUT))
    assert sent(office.committed(), Leave) == [("b", Leave())]
    office = patient()
    office.drain(kind=EVALUATE)
    office.score()
    office(Move("b", "why"))  # while weights are being saved
    assert sent(office.saved("best")) == to_all(Save(CUT))
    assert sent(office.committed(), Leave) == [("b", Leave())]


def test_a_worker_that_dies_before_the_barrier_is_not_moved_once_more() -> None:
    office = patient()
    office(Move("b", "why"))
    office.mend("b")
    assert sent(office.wake(0.0)) == []


def test_a_run_that_is_stopped_or_has_no_folder_moves_nobody() -> None:
    office = patient()
    office(Move("b", "why"))
    office.drain(kind=CHECKPOINT)
    office(UserStop())
    office.saved(CUT)
    office(Stored(CUT))
    assert sent(office.saved("final"), Leave) == to_all(Leave())
    office = patient(folder="")
    office(Move("b", "why"))
    assert sent(office.wake(0.0)) == []
