"""The coordinator's logic: event in, actions out, every invariant checked after each."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st
from office import NAMES, Office, built, end, failure, hello, records, sent, to_all
from pair import Bench, chain, roster_of

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Commit,
    Computed,
    Consult,
    Consulted,
    Event,
    Exited,
    Fail,
    Finish,
    Received,
    Record,
    Rejected,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.members import Phase
from asyncdni.core.position import CHECKPOINT, EVALUATE, FINAL
from asyncdni.messages import (
    Abort,
    Accused,
    Beat,
    Close,
    Connect,
    Drained,
    Evaluate,
    Evaluated,
    Failed,
    Leave,
    Message,
    Ready,
    Report,
    Resume,
    Save,
    Saved,
    Start,
    Welcome,
)
from asyncdni.schedules.base import Op, OpKind
from asyncdni.schedules.synthetic import Synthetic

# --- the start -----------------------------------------------------------------------------------


@each("order", permutations(NAMES))
def test_workers_may_join_build_and_get_ready_in_any_order(order: tuple[str, ...]) -> None:
    office = Office(experiment={"seed": 1}, folder="runs/7", trace=True)
    for name in order:
        ((to, welcome),) = sent(office.hear(name, hello(name)), Welcome)
        assert to == name
        assert welcome == Welcome(name, 1, {"seed": 1}, {}, "runs/7", "initial", True)
    assert office.build(order[1], order[2]) == []
    connects = dict(sent(office.build(order[0]), Connect))
    assert connects["a"] == Connect(1, {"b": "tcp://b"}, {"b": 1})
    assert connects["b"] == Connect(1, {"a": "tcp://a", "c": "tcp://c"}, {"a": 1, "c": 1})
    for name in (order[2], order[0]):
        actions = office.ready(name)
        assert not sent(actions)
        assert records(actions, "ready")[0]["parameters"] == 5
    assert sent(office.ready(order[1]), Start) == to_all(Start())


def test_nobody_is_connected_before_all_are_here_and_built() -> None:
    office = Office()
    for name in ("a", "b"):
        office.hear(name, hello(name))
        assert office.build(name) == []
    assert sent(office.hear("c", hello("c")), Connect) == []
    assert {name for name, _ in sent(office.build("c"), Connect)} == set(NAMES)


def test_what_could_not_be_restored_is_told_to_the_user() -> None:
    office = Office().gathering()
    (record,) = records(office.build("b", notes=["its snapshot is torn"]), "note")
    assert (record["stage"], record["text"]) == ("b", "its snapshot is torn")


@each(
    "message",
    [Beat(), Drained(1, 0, EVALUATE, 1), Failed("DataError", "x", ""), Ready(1), built()],
)
def test_a_stranger_is_not_heard_and_told_to_go(message: Message) -> None:
    """It may be one that was held to be dead, and comes back."""
    office = Office().started()
    assert sent(office.hear("x", message)) == [("x", Abort("another process has taken its place"))]
    assert office.phase is Phase.TRAINING


# --- barriers ------------------------------------------------------------------------------------


def test_all_drained_then_evaluate_save_the_best_and_resume() -> None:
    office = Office().started()
    assert office.drain("a", "c") == []
    assert sent(office.drain("b")) == to_all(Evaluate(0))
    actions = office.score(correct=7, loss=20.0)
    (record,) = records(actions, "evaluation")
    assert (record["accuracy"], record["loss"]) == (0.7, 2.0)
    assert sent(actions) == to_all(Save("best"))
    assert office.hear("a", Saved("best", {})) == office.hear("c", Saved("best", {})) == []
    (commit,) = office.hear("b", Saved("best", {}))
    assert isinstance(commit, Commit) and commit.tag == "best"
    assert sent(office(Stored("best"))) == to_all(Resume(0))
    assert office.machine.barrier == 1


def test_the_training_loss_of_an_evaluation_is_the_mean_since_the_one_before() -> None:
    office = Office(folder="").started()
    found = []
    for position, losses in enumerate([[(6.0, 3), (2.0, 1)], [(5.0, 10)], []], 1):
        for total, samples in losses:
            office.hear("c", Report({}, total, samples))
        office.drain(position=position)
        (record,) = records(office.score(), "evaluation")
        found.append(record["train_loss"])
    assert found == [2.0, 0.5, None]


def test_the_last_barrier_saves_final_and_all_state_too_and_all_leave() -> None:
    office = Office().started()
    office.drain(kind=FINAL)
    assert sent(office.score()) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save("final"))
    assert sent(office.saved("final")) == to_all(Save("checkpoints/000001"))
    actions = office.committed()
    assert sent(actions) == to_all(Leave())
    assert isinstance(end(actions), Finish)


def test_without_a_folder_nothing_is_saved() -> None:
    office = Office(folder="").started()
    office.drain(kind=FINAL)
    actions = office.score()
    assert sent(actions) == to_all(Leave())
    assert isinstance(end(actions), Finish)


def test_without_test_data_nothing_is_evaluated() -> None:
    office = Office(has_tests=False).started()
    assert sent(office.drain()) == to_all(Resume(0))
    assert sent(office.drain(kind=FINAL, position=4)) == to_all(Save("final"))


def test_training_time_counts_the_drain_and_nothing_else() -> None:
    office = Office(silence_s=1000.0).started()  # at 100
    office.now = 107.0
    office.drain("a", "b")
    office.now = 110.0
    office.drain("c")
    assert office.machine.train_s == 10.0
    office.now = 200.0
    assert records(office.score(), "evaluation")[0]["train_s"] == 10.0
    office.now = 300.0
    office.saved("best")
    office.now = 305.0
    office.drain(position=4)
    assert office.machine.train_s == 15.0


def test_workers_that_have_forwarded_different_numbers_of_batches_end_the_run() -> None:
    office = Office(restarts=0).started()
    office.drain("a")
    office.drain("b", position=1)
    found = failure(office.drain("c"))
    assert found.kind == "RemoteProtocolError"
    assert found.text.endswith("different numbers of batches: a 2, b 1, c 2")


# --- callbacks -----------------------------------------------------------------------------------


def test_callbacks_are_asked_at_each_evaluation_before_the_run_goes_on() -> None:
    office = Office(folder="", consults=True).evaluating()
    actions = office.score()
    assert [type(action) for action in actions] == [Record, Consult]
    assert sent(office(Consulted(ends=False))) == to_all(Resume(0))


def test_a_run_that_a_callback_ends_saves_all_and_ends_as_planned() -> None:
    office = Office(consults=True).evaluating()
    office.score()
    assert sent(office(Consulted(ends=True))) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save("final"))
    assert sent(office.saved("final")) == to_all(Save("checkpoints/000001"))
    actions = office.committed()
    assert sent(actions) == to_all(Leave())
    assert end(actions) == Finish()


def test_a_callback_may_end_a_run_that_evaluates_behind_the_stream_too() -> None:
    office = Office(folder="", consults=True).started()
    actions = office.score(copy=4)
    assert [type(action) for action in actions][-1] == Consult
    assert sent(office(Consulted(ends=True))) == [("a", Close(FINAL))]
    office.drain(kind=FINAL)
    assert end(office.score()) == Finish()


def test_nobody_is_asked_at_the_last_evaluation() -> None:
    office = Office(folder="", consults=True).started()
    office.drain(kind=FINAL)
    assert end(office.score()) == Finish()


def test_a_users_stop_counts_more_than_what_callbacks_say() -> None:
    office = Office(consults=True).evaluating()
    office.score()
    assert sent(office(UserStop())) == to_all(Save("best"))
    assert office(Consulted(ends=False)) == []
    office.saved("best")
    office.saved("final")
    assert failure(office.committed()).kind == "Interrupted"


# --- the user's stop -----------------------------------------------------------------------------

RESUME = "asyncdni train --resume runs/1"


@each("state", ["gathering", "connecting"])
def test_a_stop_before_the_start_ends_the_run_at_once(state: str) -> None:
    office = getattr(Office(resume=RESUME), state)()
    actions = office(UserStop())
    assert sent(actions) == to_all(Abort("interrupted; nothing had been learned yet"))
    assert failure(actions).kind == "Interrupted"


def test_a_stop_while_training_drains_skips_the_evaluation_and_saves() -> None:
    """Samples are counted where the loss is, in worker c."""
    office = Office(resume=RESUME).started()
    for name, samples in (("a", 13_000), ("b", 12_500), ("c", 12_000)):
        office.hear(name, Report({"samples": samples}))
    assert sent(office(UserStop())) == [("a", Close(FINAL))]
    assert sent(office.drain(kind=FINAL, position=1)) == to_all(Save("final"))
    assert sent(office.saved("final")) == to_all(Save("checkpoints/000001"))
    actions = office.committed()
    assert sent(actions) == to_all(Leave())
    assert end(actions) == Fail(
        "Interrupted",
        f"interrupted after 12,000 samples; all is kept in runs/1: `{RESUME}` goes on",
        orderly=True,
    )


def test_a_stop_without_a_folder_drains_and_saves_nothing() -> None:
    office = Office(folder="").started()
    office(UserStop())
    actions = office.drain(kind=FINAL)
    assert sent(actions) == to_all(Leave())
    nothing = "nothing is kept, as there is no run folder"
    assert failure(actions).text == f"interrupted after 0 samples; {nothing}"


def test_a_stop_while_evaluating_leaves_the_test_set_where_it_is() -> None:
    office = Office().evaluating()
    assert sent(office(UserStop())) == to_all(Save("final"))
    assert office.score() == []  # was on its way
    office.saved("final")
    assert sent(office.committed()) == to_all(Leave())


def test_a_stop_while_the_best_is_being_saved_saves_the_final_weights_and_all_state_next() -> None:
    office = Office().saving()
    assert sent(office(UserStop())) == []
    assert sent(office.saved("best")) == to_all(Save("final"))
    assert sent(office.saved("final")) == to_all(Save("checkpoints/000001"))
    assert failure(office.committed()).kind == "Interrupted"


def test_a_stop_while_a_cut_is_being_saved_takes_no_second_one() -> None:
    office = Office(cut_positions=frozenset({2}), has_tests=False).started()
    assert sent(office.drain(kind=CHECKPOINT)) == to_all(Save("checkpoints/000001"))
    office(UserStop())
    assert sent(office.committed()) == to_all(Save("final"))
    assert failure(office.saved("final")).kind == "Interrupted"


@each("state", ["started", "evaluating", "saving"])
def test_a_second_stop_ends_the_run_at_once(state: str) -> None:
    office = getattr(Office(resume=RESUME), state)()
    office(UserStop())
    assert office(UserStop()) == []  # the same one, told twice
    office.now += 0.3
    fail = failure(office(UserStop()))
    assert fail.kind == "Interrupted"
    none = f"runs/1 has no checkpoint yet: `{RESUME}` begins anew"
    assert fail.text == f"interrupted; saving was cut short; {none}"


def test_what_a_stop_that_was_cut_short_can_go_on_from_is_named() -> None:
    for learns_alone, kept in ((False, ""), (True, ", and maybe newer snapshots")):
        office = Office(
            cut_positions=frozenset({2}), resume=RESUME, learns_alone=learns_alone
        ).started()
        office.drain(kind=CHECKPOINT)
        office.committed()
        office(UserStop())
        office.now += 0.3
        text = failure(office(UserStop())).text
        assert f"runs/1 has checkpoints/000001{kept}: `{RESUME}` goes on from there" in text


def test_a_stop_may_take_as_long_as_the_drain_and_the_saving_move() -> None:
    office = Office(silence_s=1000.0, stuck_s=10.0).started()
    office(UserStop())
    for ops in range(1, 9):  # a slow worker, op by op
        office.now += 9.0
        for name in NAMES:
            office.hear(name, Report({"ops": ops, "in_flight": ops}))
        assert end(office(Woke())) is None
    office.drain(kind=FINAL)
    for name in NAMES:  # and slow disks
        office.now += 9.0
        office.hear(name, Saved("final", {}))
        assert end(office(Woke())) is None
    office(Stored("final"))
    assert sent(office.committed()) == to_all(Leave())


def test_what_does_not_move_any_more_ends_a_stop() -> None:
    office = Office(silence_s=1000.0, stuck_s=10.0, learns_alone=True).started()
    office.all_say(Report({"ops": 1}))
    office(UserStop())
    office.now += 5.0
    office.all_say(Report({"ops": 1}))
    office.now += 5.0
    fail = failure(office(Woke()))
    assert fail.kind == "Interrupted" and "nothing has moved for 10 s" in fail.text
    office = Office(silence_s=1000.0, stuck_s=10.0).started()
    office(UserStop())
    office.drain(kind=FINAL)
    office.now += 10.0  # and who is still saving by then
    fail = failure(office(Woke()))
    assert fail.kind == "Interrupted" and "has not moved for 10.0 s" in fail.text


def test_how_far_a_stop_has_come_is_told_now_and_then() -> None:
    office = Office().started()
    office.hear("b", Report({"in_flight": 7}))
    told = records(office(UserStop()), "stopping")
    for _ in range(5):  # twice a second, as workers report
        office.now += 0.5
        told += records(office.hear("b", Report({"in_flight": 4})), "stopping")
    told += records(office.drain(kind=FINAL), "stopping")
    found = [(one["phase"], one["batches"]) for one in told]
    assert found == [("training", 7), ("training", 4), ("saving", 4)]


def test_no_checkpoint_is_ordered_behind_a_stop() -> None:
    office = Office(cut_every_s=1.0, silence_s=1000.0).started()
    office(UserStop())
    office.now += 5.0
    assert sent(office(Woke())) == []


# --- all of it -----------------------------------------------------------------------------------


def test_reports_become_records_and_what_they_leave_out_does_no_harm() -> None:
    office = Office().started()
    counters: dict[str, float | int | None] = {"samples": None, "queue": 3}
    (record,) = records(office.hear("b", Report(counters, 2.0, 4)), "report")
    assert record["stage"] == "b"
    assert record["values"]["queue"] == 3
    assert (record["values"]["loss_sum"], record["values"]["loss_samples"]) == (2.0, 4)


def test_events_that_are_no_business_of_a_coordinator_are_a_bug_of_the_driver() -> None:
    with pytest.raises(TypeError):
        Office()(Computed(Op(OpKind.FORWARD, 0)))


def test_a_coordinator_and_its_workers_go_through_a_whole_run() -> None:
    positions = chain(3, barriers=(2, 4), test_batches=2)
    machine = Coordinator(roster_of(positions))
    bench = Bench(positions, Synthetic(correct=True), coordinator=machine)
    bench.join()
    bench.run()
    assert [type(a) for a in bench.said if not isinstance(a, Record)] == [Finish]
    kinds = [a.kind for a in bench.said if isinstance(a, Record)]
    assert kinds.count("evaluation") == kinds.count("drained") == 2
    assert [a.values["tag"] for a in bench.said if isinstance(a, Record) and a.kind == "saved"] == [
        "best",
        "final",
    ]
    assert {name: stop.failed for name, stop in bench.stopped.items()} == dict.fromkeys(
        bench.workers, ""
    )
    assert all(worker.counts.batches == 4 for worker in bench.workers.values())


MESSAGES = st.sampled_from(
    [
        *(hello(name) for name in (*NAMES, "0", "d")),
        *(built(number) for number in range(1, 5)),
        *(Ready(number) for number in range(1, 5)),
        *(Drained(number, 0, kind, 2) for number in (1, 2) for kind in (EVALUATE, FINAL)),
        *(Saved(tag, {}) for tag in ("best", "final", "checkpoints/000001")),
        *(Report({"updates": number, "batches": 3, "missed": 1}) for number in (0, 5)),
        *(Accused(name, number, "x") for name in ("b", "d") for number in (1, 2)),
        *(Failed(kind, "x", "") for kind in ("DataError", "MemoryError", "NumericalError")),
        *(Evaluated(0, "c", 1, 1.0, 1, 1), Drained(1, 1, CHECKPOINT, 4), Beat(), Leave()),
    ]
)
EVENTS = st.one_of(
    st.builds(Received, MESSAGES, st.sampled_from([b"a", b"b", b"c", b"x"])),
    st.builds(Exited, st.sampled_from(NAMES), st.integers(-9, 3), st.just("")),
    st.builds(Stored, st.just("checkpoints/000001")),
    st.just(UserStop()),
    *[st.just(Woke())] * 3,
)
ROSTERS = st.fixed_dictionaries(
    {
        "learns_alone": st.booleans(),
        "rolls_back": st.booleans(),
        "restarts": st.integers(0, 2),
        "cut_every_s": st.sampled_from([None, 1.0]),
        "folder": st.sampled_from(["", "runs/1"]),
    }
)


@given(st.booleans(), ROSTERS, st.lists(st.tuples(EVENTS, st.floats(0.0, 2.0)), max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_sequence_of_events_raises_and_after_the_end_there_is_silence(
    started: bool, roster: dict[str, Any], events: list[tuple[Event, float]]
) -> None:
    """`Office` checks the invariants, and that a deadline lies ahead after each waking."""
    office = Office(**roster)
    if started:
        office.started()
    ended = 0
    for event, after_s in events:
        office.now += after_s
        actions = office(event)
        assert not (ended and actions)
        ended += end(actions) is not None
    assert ended == (office.phase is Phase.ENDED)


# --- what strangers repeat -----------------------------------------------------------------------


def test_what_strangers_repeat_is_recorded_a_few_times_and_then_counted() -> None:
    office = Office()
    office.started()
    for event, kind in (
        (Received(hello("nosuch"), b"stranger"), "refused"),
        (Rejected(b"stranger", "no message"), "rejected"),
    ):
        texts = []
        for _ in range(300):
            texts += [one["text"] for one in records(office(event), kind)]
        assert len(texts) == 32 + 3  # and the 64th, the 128th, the 256th
        assert len(set(texts[:32])) == 1
        assert texts[-1].startswith(texts[0])
        assert "256 times so far" in texts[-1]
