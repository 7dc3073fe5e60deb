"""The coordinator's logic: event in, actions out, every invariant checked after each."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from office import NAMES, Office, end, failure, hello, records, sent, to_all
from pair import Bench, chain, roster_of

from asyncdni.core.coordinator import Coordinator, Phase
from asyncdni.core.events import (
    Computed,
    Event,
    Exited,
    Fail,
    Finish,
    Received,
    Record,
    UserStop,
    Woke,
)
from asyncdni.messages import (
    Abort,
    Beat,
    Connect,
    Drained,
    Evaluate,
    Evaluated,
    Failed,
    Interrupt,
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
from asyncdni.schedules import Op, OpKind, Synthetic

# --- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(NAMES)), ids="".join)
def test_workers_may_join_and_get_ready_in_any_order(order: tuple[str, ...]) -> None:
    office = Office(experiment={"seed": 1}, folder="runs/7", trace=True)
    for name in order:
        actions = office.hear(name, hello(name))
        ((to, welcome),) = sent(actions, Welcome)
        assert (to, welcome) == (name, Welcome(name, 1, {"seed": 1}, {}, "runs/7", True))
    connects = dict(sent(actions, Connect))
    assert connects["a"] == Connect({"b": "tcp://b"}, {"b": 1})
    assert connects["b"] == Connect({"a": "tcp://a", "c": "tcp://c"}, {"a": 1, "c": 1})
    for name in (order[2], order[0]):
        actions = office.hear(name, Ready(5))
        assert not sent(actions)
        assert records(actions, "ready")[0]["parameters"] == 5
    assert sorted(sent(office.hear(order[1], Ready(1)), Start)) == to_all(Start())


@pytest.mark.parametrize("message", [Beat(), Drained(0, 1), Failed("DataError", "x", ""), Ready(1)])
def test_strangers_are_ignored(message: Message) -> None:
    office = Office().started()
    assert office.hear("x", message) == []


# --- what goes wrong -----------------------------------------------------------------------------


def test_silence_names_the_worker_and_any_word_breaks_it() -> None:
    office = Office().started()
    office.now += 2.9
    for name in ("a", "c"):
        office.hear(name, Beat())
    assert office(Woke()) == []
    assert office.machine.deadline() == 103.0
    office.now = 103.0
    actions = office(Woke())
    fail = failure(actions)
    assert fail.kind == "WorkerLost"
    assert fail.text == "worker b (process 5 on h) has shown no sign of life for 3.0 s"
    assert sent(actions) == to_all(Abort(fail.text))


def test_words_already_waiting_are_heard_before_anyone_is_called_silent() -> None:
    """A coordinator that was itself stopped for a while finds them all at once."""
    office = Office().started()
    office.now += 50.0
    assert [office.hear(name, Beat()) for name in NAMES] == [[], [], []]
    assert office(Woke()) == []


def test_a_worker_that_exits_ends_the_run_with_its_last_lines() -> None:
    office = Office().started()
    assert office(Exited("b", -9, "segfault | core dumped")) == []
    office.now = office.machine.deadline() or 0.0
    fail = failure(office(Woke()))
    assert fail.kind == "WorkerLost"
    assert fail.text == ("worker b died with signal 9; its last lines: segfault | core dumped")


def test_last_words_within_the_grace_win_over_the_exit() -> None:
    office = Office().started()
    office(Exited("b", 1, ""))
    office.now += 10.0  # late, but the words were waiting
    fail = failure(office.hear("b", Failed("NumericalError", "loss is nan", "")))
    assert (fail.kind, fail.text) == ("NumericalError", "loss is nan")


def test_a_worker_that_has_exited_is_not_called_silent() -> None:
    office = Office().started()
    office.now += 2.9
    office.hear("a", Beat())
    office.hear("c", Beat())
    office(Exited("b", 1, ""))
    office.now += 0.2
    assert office(Woke()) == []


def test_of_two_exits_the_first_is_told() -> None:
    office = Office()
    office(Exited("c", 3, ""))
    office(Exited("a", 1, ""))
    office.now += 1.0
    assert failure(office(Woke())).text == "worker c died with exit code 3"


def test_the_first_error_aborts_all_and_nothing_comes_after_it() -> None:
    office = Office().started()
    actions = office.hear("b", Failed("DataError", "row 3", "Traceback"))
    assert end(actions) == Fail("DataError", "row 3", "Traceback", cause=actions[0].cause)
    assert sent(actions) == to_all(Abort("row 3"))
    later = [Exited("b", 1, ""), UserStop(), Woke(), Received(Failed("X", "late", ""), b"a")]
    assert [office(event) for event in later] == [[]] * 4


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        ("started", "a", hello("a")),
        ("started", "a", Ready(1)),
        ("started", "a", Drained(1, 0)),
        ("started", "c", Evaluated(0, "c", 1, 1.0, 1, 1)),
        ("started", "a", Saved("best", {})),
        ("started", "a", Start()),
        ("evaluating", "a", Drained(0, 2)),
        ("evaluating", "c", Evaluated(1, "c", 1, 1.0, 1, 1)),
        ("evaluating", "c", Evaluated(0, "b", 1, 1.0, 1, 1)),
        ("evaluating", "a", Evaluated(0, "c", 1, 1.0, 1, 1)),
        ("saving", "a", Saved("final", {})),
    ],
)
def test_a_word_that_does_not_fit_ends_the_run_and_names_its_sender(
    state: str, name: str, message: Message
) -> None:
    office = getattr(Office(), state)()
    phase = office.machine.phase
    fail = failure(office.hear(name, message))
    assert fail.kind == "RemoteProtocolError"
    assert f"worker {name} sent a {type(message).__name__} that does not fit" in fail.text
    assert phase.value in fail.text


def test_ready_before_everyone_is_known_does_not_fit() -> None:
    office = Office()
    office.hear("a", hello("a"))
    assert failure(office.hear("a", Ready(1))).kind == "RemoteProtocolError"


# --- barriers ------------------------------------------------------------------------------------


def test_all_drained_then_evaluate_save_the_best_and_resume() -> None:
    office = Office().started()
    assert office.hear("a", Drained(0, 2)) == office.hear("c", Drained(0, 2)) == []
    assert sent(office.hear("b", Drained(0, 2))) == to_all(Evaluate(0))
    actions = office.score(correct=7, loss=20.0)
    (record,) = records(actions, "evaluation")
    assert (record["accuracy"], record["loss"]) == (0.7, 2.0)
    assert sent(actions) == to_all(Save("best"))
    assert office.hear("a", Saved("best", {})) == office.hear("c", Saved("best", {})) == []
    assert sent(office.hear("b", Saved("best", {}))) == to_all(Resume(0))
    assert office.machine.barrier == 1


def test_the_last_barrier_saves_final_too_and_all_leave() -> None:
    office = Office(barriers=1).evaluating()
    assert sent(office.score()) == to_all(Save("best"))
    assert sent(office.saved("best")) == to_all(Save("final"))
    actions = office.saved("final")
    assert sent(actions) == to_all(Leave())
    assert isinstance(end(actions), Finish)


def test_without_a_folder_nothing_is_saved() -> None:
    office = Office(barriers=1, folder="").evaluating()
    actions = office.score()
    assert sent(actions) == to_all(Leave())
    assert isinstance(end(actions), Finish)


def test_without_test_data_nothing_is_evaluated() -> None:
    office = Office(has_tests=False).started()
    assert sent(office.all_say(Drained(0, 2))) == to_all(Resume(0))
    assert sent(office.all_say(Drained(1, 4))) == to_all(Save("final"))


def test_training_time_counts_the_drain_and_nothing_else() -> None:
    office = Office().started()  # at 100
    office.now = 107.0
    office.hear("a", Drained(0, 2))
    office.hear("b", Drained(0, 2))
    office.now = 110.0
    office.hear("c", Drained(0, 2))
    assert office.machine.train_s == 10.0
    office.now = 200.0
    assert records(office.score(), "evaluation")[0]["train_s"] == 10.0
    office.now = 300.0
    office.saved("best")
    office.now = 305.0
    office.all_say(Drained(1, 4))
    assert office.machine.train_s == 15.0


# --- the user's stop -----------------------------------------------------------------------------


def test_a_stop_before_the_start_ends_the_run_at_once() -> None:
    office = Office()
    office.hear("a", hello("a"))
    actions = office(UserStop())
    assert sent(actions) == [("a", Abort("interrupted; nothing more was saved"))]
    assert failure(actions).kind == "Interrupted"


def test_a_stop_while_training_drains_skips_the_evaluation_and_saves() -> None:
    """Samples are counted where the loss is, in worker c."""
    office = Office().started()
    for name, samples in (("a", 13_000), ("b", 12_500), ("c", 12_000)):
        office.hear(name, Report({"samples": samples}))
    assert sent(office(UserStop())) == [("a", Interrupt())]
    assert sent(office.all_say(Drained(0, 1))) == to_all(Save("final"))
    actions = office.saved("final")
    assert sent(actions) == to_all(Leave())
    assert end(actions) == Fail(
        "Interrupted",
        "interrupted after 12,000 samples; weights are in runs/1",
        cause=actions[0].cause,
    )


def test_a_stop_while_evaluating_leaves_the_test_set_where_it_is() -> None:
    office = Office().evaluating()
    assert sent(office(UserStop())) == to_all(Save("final"))
    assert office.score() == []  # was on its way
    assert sent(office.saved("final")) == to_all(Leave())


def test_a_stop_while_the_best_is_being_saved_saves_the_final_weights_next() -> None:
    office = Office().saving()
    assert office(UserStop()) == []
    assert sent(office.saved("best")) == to_all(Save("final"))
    assert failure(office.saved("final")).kind == "Interrupted"


def test_a_second_stop_ends_the_run_at_once() -> None:
    office = Office().started()
    office(UserStop())
    actions = office(UserStop())
    assert sent(actions, Abort) == to_all(Abort("interrupted; nothing more was saved"))
    assert failure(actions).kind == "Interrupted"


def test_a_drain_that_takes_too_long_after_a_stop_is_given_up() -> None:
    office = Office(silence_s=100.0).started()
    office(UserStop())
    office.now = office.machine.deadline() or 0.0
    fail = failure(office(Woke()))
    assert fail.kind == "Interrupted"
    assert "could not be saved" in fail.text


# --- all of it -----------------------------------------------------------------------------------


def test_reports_become_records_and_a_bad_one_does_no_harm() -> None:
    office = Office().started()
    counters: dict[str, float | int | None] = {"samples": float("nan"), "queue": 3}
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
    assert all(worker.batches == 4 for worker in bench.workers.values())


MESSAGES = st.sampled_from(
    [
        *(hello(name) for name in (*NAMES, "0", "d")),
        *(Ready(1), Beat(), Drained(0, 1), Drained(1, 2), Saved("best", {}), Saved("final", {})),
        *(Evaluated(0, "c", 1, 1.0, 1, 1), Failed("DataError", "x", ""), Report({}), Leave()),
    ]
)
EVENTS = st.one_of(
    st.builds(Received, MESSAGES, st.sampled_from([b"a", b"b", b"c", b"x"])),
    st.builds(Exited, st.sampled_from(NAMES), st.integers(-9, 3), st.just("")),
    st.just(UserStop()),
    st.just(Woke()),
)


@given(st.booleans(), st.lists(st.tuples(EVENTS, st.floats(0.0, 2.0)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_sequence_of_events_raises_and_after_the_end_there_is_silence(
    started: bool, events: list[tuple[Event, float]]
) -> None:
    """`Office` checks the invariants, and that a deadline lies ahead after each waking."""
    office = Office().started() if started else Office()
    ended = 0
    for event, after_s in events:
        office.now += after_s
        actions = office(event)
        assert not (ended and actions)
        ended += end(actions) is not None
    assert ended == (office.machine.phase is Phase.ENDED)


def test_workers_that_have_forwarded_different_numbers_of_batches_end_the_run() -> None:
    office = Office().started()
    office.hear("a", Drained(0, 2))
    office.hear("b", Drained(0, 1))
    found = failure(office.hear("c", Drained(0, 2)))
    assert found.kind == "RemoteProtocolError"
    assert found.text.endswith("different numbers of batches: a 2, b 1, c 2")
