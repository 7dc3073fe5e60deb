"""Deaths of workers as the coordinator sees them: how they are found out, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from each import each
from office import NAMES, Office, built, end, failure, hello, records, sent, to_all

from asyncdni.core.events import Action, Exited, Fail, Looked, Received, Rejected, UserStop, Woke
from asyncdni.core.ledger import Ledger
from asyncdni.core.liveness import Sight
from asyncdni.core.members import Phase
from asyncdni.core.position import EVALUATE, FINAL
from asyncdni.messages import (
    Abort,
    Accused,
    Beat,
    Close,
    Connect,
    Drained,
    Evaluated,
    Failed,
    Guarded,
    Introduce,
    Lost,
    Message,
    Ready,
    Rejoin,
    Report,
    Save,
    Saved,
    Start,
    Welcome,
)

Way = Callable[[Office], list[Action]]


def by_signal(office: Office) -> list[Action]:
    return office.kill("b", -9)


def by_exit_code(office: Office) -> list[Action]:
    assert office.kill("b", 1) == []  # last words may still come
    return office.wake()


def by_silence(office: Office) -> list[Action]:
    office.now += 0.9
    for name in ("a", "c"):
        office.hear(name, Beat())
    return [*office(Woke()), *office.wake(0.1)]


def by_accusation(office: Office) -> list[Action]:
    return office.hear("a", Accused("b", office.told["b"].incarnation, "b sent nonsense"))


def by_mismatch(office: Office) -> list[Action]:
    return office.hear("b", Start())


def by_memory(office: Office) -> list[Action]:
    return office.hear("b", Failed("MemoryError", "out of memory", "Traceback"))


def by_nonsense(office: Office) -> list[Action]:
    return office(Rejected(b"b", "a Ready without a field"))


WAYS = {
    "signal": (by_signal, "WorkerLost"),
    "exit code": (by_exit_code, "WorkerLost"),
    "silence": (by_silence, "WorkerLost"),
    "accusation": (by_accusation, "RemoteProtocolError"),
    "mismatch": (by_mismatch, "RemoteProtocolError"),
    "nonsense": (by_nonsense, "RemoteProtocolError"),
    "memory": (by_memory, "MemoryError"),
}
STATES = ("started", "evaluating", "saving")

each_way = each("way, kind", WAYS.values())
each_state = each("state", STATES)


def at(state: str, **roster: Any) -> Office:
    office = getattr(Office(**roster), state)()
    assert isinstance(office, Office)
    return office


# --- whatever the death, whenever it comes -------------------------------------------------------


@each_state
@each_way
def test_without_recovery_it_ends_the_run(way: Way, kind: str, state: str) -> None:
    office = at(state, restarts=0)
    actions = way(office)
    assert failure(actions).kind == kind
    assert set(NAMES) - {"b"} <= {name for name, _ in sent(actions, Abort)}
    assert office.launched == []


@each_state
@each_way
def test_without_a_folder_there_is_nothing_to_recover_from(way: Way, kind: str, state: str) -> None:
    if state != "saving":  # there is none to save to
        assert failure(way(at(state, folder=""))).kind == kind


@each_state
@each_way
def test_where_gradients_are_waited_for_all_go_back(way: Way, kind: str, state: str) -> None:
    office = at(state)
    actions = way(office)
    number = office.told["a"].incarnation
    assert number > 1
    assert sent(actions) == [(name, Rejoin(number, "initial")) for name in ("a", "c")]
    assert records(actions, "lost")[0]["stage"] == "b"
    assert office.phase is Phase.GATHERING
    assert office.build("a", "c") == []
    actions = office.replace("b")
    ((_, welcome),) = sent(actions, Welcome)
    assert isinstance(welcome, Welcome)
    assert welcome.restore == "initial"
    assert {name for name, _ in sent(actions, Connect)} == set(NAMES)
    actions = office.ready()
    assert sent(actions) == to_all(Start())
    assert records(actions, "back")[0]["lost_updates"] == 0
    assert office.launched == ["b"]


@each_state
@each_way
def test_where_all_learn_by_themselves_the_others_go_on(way: Way, kind: str, state: str) -> None:
    office = at(state, learns_alone=True)
    actions = way(office)
    assert sent(actions) == [(name, Lost("b")) for name in ("a", "c")]
    assert office.phase is Phase.MENDING
    actions = office.replace("b")
    ((_, welcome),) = sent(actions, Welcome)
    assert isinstance(welcome, Welcome)
    assert welcome.restore == "snapshots"
    number = office.told["a"].incarnation
    assert number > welcome.incarnation > 1
    assert sent(actions, Rejoin) == to_all(Rejoin(number, "keep"))
    assert {name for name, _ in sent(office.build(), Connect)} == set(NAMES)
    assert sent(office.ready()) == to_all(Start())
    assert office.phase is Phase.TRAINING


@each_way
@each("learns_alone", [False, True])
def test_after_a_stop_it_is_replaced_as_ever_and_all_is_saved_then(
    way: Way, kind: str, learns_alone: bool
) -> None:
    office = at("started", learns_alone=learns_alone)
    office(UserStop())
    assert end(way(office)) is None
    office.build("a", "c") if not learns_alone else None
    office.replace("b")
    office.build() if learns_alone else None
    assert sent(office.ready()) == [("a", Start()), ("a", Close(FINAL)), *to_all(Start())[1:]]
    assert sent(office.drain(kind=FINAL)) == to_all(Save("final"))


@each_way
def test_after_a_stop_it_ends_the_run_where_nobody_else_would_start_it(way: Way, kind: str) -> None:
    office = at("started", launched=False, resume="asyncdni train --resume runs/1")
    office(UserStop())
    fail = failure(way(office))
    assert fail.kind == "Interrupted"
    assert fail.text.startswith("interrupted; ")
    assert fail.text.endswith("no checkpoint yet: `asyncdni train --resume runs/1` begins anew")


def test_a_worker_that_was_told_to_stop_by_others_is_replaced() -> None:
    office = at("started")
    assert end(office.hear("b", Failed("Interrupted", "worker b was interrupted", ""))) is None
    office.build("a", "c")
    office.replace("b")
    assert sent(office.ready()) == to_all(Start())


# --- how they are found out ----------------------------------------------------------------------


def test_silence_names_the_worker_and_any_word_breaks_it() -> None:
    office = Office(restarts=0, silence_s=3.0).started()
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
    assert {("a", Abort(fail.text)), ("c", Abort(fail.text))} <= set(sent(actions))


def test_words_already_waiting_are_heard_before_anyone_is_called_silent() -> None:
    """A coordinator that was itself stopped for a while finds them all at once."""
    office = Office().started()
    office.now += 50.0
    assert [office.hear(name, Beat()) for name in NAMES] == [[], [], []]
    assert office(Woke()) == []


def test_all_who_are_silent_are_found_at_one_waking() -> None:
    office = Office().started()
    office.now += 5.0
    office.hear("a", Beat())
    assert office(Woke()) == []  # it may have been asleep itself
    actions = office.wake()
    assert sorted(record["stage"] for record in records(actions, "lost")) == ["b", "c"]
    assert sorted(office.launched) == ["b", "c"]


def silent(office: Office, seconds: float) -> list[Action]:
    """b says nothing for so long; the others beat, and the coordinator wakes when it wants to."""
    ends, lost = office.now + seconds, list[Action]()
    while not lost and office.now < ends:
        office.now = min(ends, max(office.machine.deadline() or ends, office.now))
        for name in ("a", "c"):
            office.hear(name, Beat())
            office.hear(name, Report({}))
        lost = [one for one in office(Woke()) if isinstance(one, Fail)]
    return lost


def test_a_silent_worker_that_is_starved_is_not_dead_however_long_it_lasts() -> None:
    office = Office(restarts=0).started()
    office.sights["b"] = Sight.STARVED
    assert silent(office, 50.0) == []
    office.sights["b"] = Sight.STILL  # and then it is stopped
    died = office.now
    assert "no sign of life for 1.0 s" in failure(silent(office, 5.0)).text
    assert office.now < died + 1.5


def test_one_that_is_starved_for_as_long_as_one_may_be_stuck_is_replaced() -> None:
    office = Office(restarts=0, stuck_s=30.0).started()
    office.sights["b"] = Sight.STARVED
    assert "has not moved for 30.0 s" in failure(silent(office, 100.0)).text


@each("sight", [Sight.BUSY, Sight.UNSEEN])
def test_one_that_computes_or_is_out_of_sight_is_given_five_times_as_long(sight: Sight) -> None:
    office = Office(restarts=0).started()
    office.sights["b"] = sight
    assert silent(office, 4.9) == []
    office.hear("b", Beat())
    assert "no sign of life for 5.0 s" in failure(silent(office, 5.1)).text


def test_nobody_is_looked_at_who_has_spoken_or_is_gone() -> None:
    office = Office().started()
    assert office(Looked("b", Sight.STILL)) == []
    office.kill("b")
    office.wake()
    assert office(Looked("b", Sight.STILL)) == []
    assert office(Looked("x", Sight.STILL)) == []


def test_a_worker_that_beats_but_computes_nothing_for_too_long_is_stuck() -> None:
    office = Office(restarts=0, stuck_s=5.0).started()
    for second in range(5):
        office.now += 1.0
        office.all_say(Beat())
        for name in ("a", "c"):
            office.hear(name, Report({"updates": second}))
        actions = office(Woke())
    assert failure(actions).text == "worker b (process 5 on h) has not moved for 5.0 s"


def test_before_all_have_started_nobody_is_held_to_be_stuck() -> None:
    """Building may take its time: it has a limit of its own."""
    office = Office(stuck_s=5.0).gathering()
    for _ in range(10):
        office.now += 1.0
        office.all_say(Beat())
        assert not records(office(Woke()), "lost")


def test_nor_while_a_round_is_being_made() -> None:
    office = Office(stuck_s=5.0).started()
    office.kill("b")
    office.wake()
    for _ in range(10):
        office.now += 0.9
        office.hear("a", Beat())
        office.hear("c", Beat())
        assert not records(office(Woke()), "lost")


def test_a_worker_that_is_killed_is_told_with_its_last_lines() -> None:
    office = Office(restarts=0).started()
    fail = failure(office(Exited("b", -9, "segfault | core dumped")))
    assert fail.kind == "WorkerLost"
    assert fail.text == "worker b died with signal 9; its last lines: segfault | core dumped"


def test_last_words_within_the_grace_win_over_the_exit() -> None:
    office = Office().started()
    office(Exited("b", 1, ""))
    office.now += 10.0  # late, but the words were waiting
    fail = failure(office.hear("b", Failed("DataError", "row 3 is short", "")))
    assert (fail.kind, fail.text) == ("DataError", "row 3 is short")


def test_a_worker_that_has_exited_is_not_called_silent() -> None:
    office = Office(silence_s=3.0).started()
    office.now += 2.9
    office.hear("a", Beat())
    office.hear("c", Beat())
    office(Exited("b", 1, ""))
    office.now += 0.2
    assert office(Woke()) == []


def test_the_exit_of_one_that_is_known_to_be_dead_is_no_second_death() -> None:
    office = Office(restarts=1).started()
    by_accusation(office)
    assert office.kill("b") == office.kill("b", 1) == []
    office.build("a", "c")
    office.replace("b")
    office.ready()
    assert office.phase is Phase.TRAINING


@each("kind", ["ConfigError", "DataError", "CheckpointError", "AsyncDNIError"])
def test_what_would_happen_again_ends_the_run(kind: str) -> None:
    office = Office().started()
    fail = failure(office.hear("b", Failed(kind, "row 3", "Traceback")))
    assert (fail.kind, fail.text, fail.trace) == (kind, "row 3", "Traceback")


def test_the_first_error_aborts_all_and_nothing_comes_after_it() -> None:
    office = Office().started()
    actions = office.hear("b", Failed("DataError", "row 3", "Traceback"))
    assert end(actions) == Fail("DataError", "row 3", "Traceback")
    assert sent(actions) == to_all(Abort("row 3"))
    later = [Exited("b", 1, ""), UserStop(), Woke(), Received(Failed("X", "late", ""), b"a")]
    assert [office(event) for event in later] == [[]] * 4


@each(
    "state, name, message",
    [
        ("gathering", "a", Ready(1)),
        ("started", "a", hello("a")),
        ("started", "a", Ready(1)),
        ("started", "a", Drained(1, 1, FINAL, 0)),
        ("started", "c", Evaluated(0, "c", 1, 1.0, 1, 1)),
        ("started", "a", Saved("best", {})),
        ("started", "a", Start()),
        ("evaluating", "a", Drained(1, 0, FINAL, 2)),
        ("evaluating", "c", Evaluated(1, "c", 1, 1.0, 1, 1)),
        ("evaluating", "c", Evaluated(0, "b", 1, 1.0, 1, 1)),
        ("evaluating", "a", Evaluated(0, "c", 1, 1.0, 1, 1)),
        ("saving", "a", Saved("final", {})),
    ],
)
def test_a_word_that_does_not_fit_is_the_death_of_its_sender(
    state: str, name: str, message: Message
) -> None:
    office = at(state)
    phase = office.phase
    (record,) = records(office.hear(name, message), "lost")
    assert record["stage"] == name
    assert f"worker {name} sent a {type(message).__name__} that does not fit" in record["text"]
    assert phase.value in record["text"]


HUGE = 2**62
ABSURD: list[tuple[str, str, Message, str]] = [
    *(
        ("gathering", "a", built(**{field: value}), f"its {field} are {value}")
        for field in ("parameters", "position", "updates", "read")
        for value in (-1, HUGE)
    ),
    *(
        ("started", "a", Report({field: value}), f"its {field} are {value}")
        for field in ("samples", "updates", "batches", "missed", "ops")
        for value in (-1, 0.5, float("nan"), HUGE)
    ),
    ("started", "a", Report({"batches": 40, "missed": 2000}), "its batches and missed are 2040"),
    ("started", "a", Report({}, float("nan"), 1), "its loss_sum is nan"),
    ("started", "a", Report({}, 0.0, -1), "its loss_samples are -1"),
    ("started", "a", Guarded(True, float("inf")), "its cosine is inf"),
    ("started", "a", Drained(1, 0, "soon", 2), "its kind is 'soon'"),
    ("started", "a", Drained(1, 0, EVALUATE, HUGE), f"its position are {HUGE}"),
    ("started", "a", Accused("c", 1, "x"), "c sends nothing to it"),
    ("evaluating", "c", Evaluated(0, "c", 11, 1.0, 1, 1), "its samples are 11, not 10"),
    ("evaluating", "c", Evaluated(0, "c", 10, float("nan"), 1, 1), "its loss is nan"),
    (
        *("evaluating", "c", Evaluated(0, "c", 10, 1.0, 1, 1, None, {"f1": 1.0})),
        "its metrics are not those of the run",
    ),
    ("evaluating", "c", Evaluated(0, "c", 10, 1.0, 11, 1), "its correct are 11"),
    ("evaluating", "c", Evaluated(0, "c", 10, 1.0, 1, -1), "its outputs are -1"),
    ("evaluating", "c", Evaluated(0, "c", 10, 1.0, 1, 1, -5), "its samples or steps are -5"),
    ("saving", "a", Saved("best", {"b": "0" * 64}), "1 stages that other workers have"),
    ("saving", "a", Saved("best", {"a": "../../x"}), "the digest of a is not a SHA-256"),
]


@each("state, name, message, why", ABSURD)
def test_a_number_that_can_not_be_is_the_death_of_its_sender_and_goes_nowhere(
    state: str, name: str, message: Message, why: str
) -> None:
    office = at(state, batches=40, meta={"test_samples": 10})
    actions = office.hear(name, message)
    (record,) = records(actions, "lost")
    assert record["stage"] == name and why in record["text"]
    assert not records(actions, "report") and not records(actions, "evaluation")
    assert office.machine.phase is not Phase.ENDED


def test_a_second_word_that_all_is_built_does_not_fit() -> None:
    office = Office().started()
    assert records(office.build("a"), "lost")[0]["stage"] == "a"


@each("worker, incarnation", [("b", 2), ("b", 0), ("x", 1), ("data", 1)])
def test_an_accusation_of_nobody_who_is_here_is_ignored(worker: str, incarnation: int) -> None:
    """Its process has been replaced since, or there never was one."""
    assert Office().started().hear("a", Accused(worker, incarnation, "x")) == []


def test_an_accusation_is_recorded_with_who_has_made_it() -> None:
    (record,) = records(by_accusation(Office().started()), "accused")
    assert (record["stage"], record["by"], record["text"]) == ("b", "a", "b sent nonsense")


# --- deaths before the start ---------------------------------------------------------------------


def test_of_two_exits_before_the_start_the_first_is_told() -> None:
    """What keeps a worker from starting would do so again."""
    office = Office()
    office(Exited("c", 3, ""))
    office(Exited("a", 1, ""))
    actions = office.wake(1.0)
    assert failure(actions).text == "worker c died with exit code 3"


def test_a_worker_that_is_killed_before_the_start_is_started_again() -> None:
    office = Office().gathering()
    office.kill("b")
    actions = office.replace("b")
    assert isinstance(office.told["b"], Welcome)
    assert office.told["b"].restore == "initial"
    assert sent(actions, Rejoin) == []
    assert {name for name, _ in sent(office.build("a", "c"), Connect)} == set(NAMES)
    assert sent(office.ready()) == to_all(Start())


@each_state
def test_nonsense_of_a_stranger_is_noted_and_no_more(state: str) -> None:
    office = at(state)
    actions = office(Rejected(b"\0abcd", "not a message"))
    assert [one["text"] for one in records(actions, "rejected")] == ["not a message"]
    assert len(actions) == 1


# --- a coordinator that has not run itself -------------------------------------------------------


def test_after_a_long_pause_of_its_own_nobody_is_held_to_have_been_silent() -> None:
    office = Office().started()
    office.now += 10.0
    office.machine.paused(10.0, office.now)
    deadline = office.machine.deadline()
    assert deadline is not None and deadline == office.now + 0.5
    assert office.wake(0.4) == []
    for name in ("a", "b", "c"):
        office.hear(name, Beat())
    assert office.wake(0.2) == [] and office.launched == []


def test_a_short_pause_puts_nothing_off() -> None:
    office = Office().started()
    due = office.machine.deadline()
    office.machine.paused(0.5, office.now)
    assert office.machine.deadline() == due


# --- a coordinator that takes the place of one that has died -------------------------------------


def successor(**roster: Any) -> Office:
    """It goes on from the first cut; a and b have waited for it, c has not."""
    ledger = Ledger(start=2, planned=1, barrier=1, cut=1, restore="checkpoints/000001")
    office = Office(ledger, takes_back=True, barriers=(2, 4), **roster)
    assert sent(office.hear("a", Report({"batches": 3}))) == [("a", Introduce())]
    for name, incarnation in (("a", 7), ("b", 5), ("c", 0)):
        office.hear(name, hello(name, incarnation=incarnation))
        assert office.hear(name, hello(name, incarnation=incarnation)) == []
    return office


def test_workers_that_learn_by_themselves_keep_what_they_have() -> None:
    office = successor(learns_alone=True)
    told = {name: (one.incarnation, one.restore) for name, one in office.told.items()}
    assert told == {"a": (8, "keep"), "b": (8, "keep"), "c": (8, "snapshots")}
    office.build("a", "b", position=3)
    (_, connect), *_ = sent(office.build("c", position=2), Connect)
    assert isinstance(connect, Connect) and (connect.start, connect.planned) == (3, 1)


def test_all_others_go_back_to_the_cut_in_a_round_of_its_own_number() -> None:
    office = successor()
    told = {(one.incarnation, one.restore) for one in office.told.values()}
    assert told == {(8, "checkpoints/000001")}
    (_, connect), *_ = sent(office.build(position=2), Connect)
    assert isinstance(connect, Connect) and (connect.start, connect.planned) == (2, 1)


def test_who_has_been_replaced_is_not_asked_again() -> None:
    """Nor let in, if it says Hello again."""
    office = successor(learns_alone=True)
    office.kill("b")
    office._peers["b"] = "b"
    for message in (Beat(), hello("b", incarnation=5)):
        assert [type(word) for _, word in sent(office.hear("b", message))] == [Abort]
