"""The life of a worker process: joining rounds, what waits, what is saved, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hand import MIDDLE, activation
from life import WELCOME, Life, connect
from msgspec import structs

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Broke,
    Compute,
    Computed,
    CoordinatorGone,
    Exit,
    Join,
    Joined,
    Lose,
    Origin,
    ParentGone,
    PartSent,
    Prepare,
    Prepared,
    Redeliver,
    Release,
    Report,
    Restore,
    Restored,
    Say,
    SayHello,
    Send,
    SendPart,
    Snapshot,
    SnapshotTaken,
    Unusable,
    Woke,
)
from asyncdni.core.process import Buffers, Process, State, is_settled
from asyncdni.core.worker import Phase, Worker
from asyncdni.errors import CheckpointError, LaunchError, NumericalError
from asyncdni.messages import (
    COORDINATOR,
    Abort,
    Accused,
    Activation,
    Barrier,
    Built,
    Connect,
    Credit,
    Drained,
    Failed,
    Gradient,
    Introduce,
    Leave,
    Lost,
    Message,
    Refused,
    Rejoin,
    Start,
    Taken,
    Welcome,
)
from asyncdni.schedules.base import Op, OpKind
from asyncdni.schedules.synthetic import Synthetic

CREDIT = Credit("c", 1, "m", 0, 4)


class Worked(Life):
    """The process of stage m, between p and c."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda counts: Worker(MIDDLE, Synthetic(), counts=counts), **options)

    def joined(self, **prepared: Any) -> Worked:
        self.built(**prepared)
        self(Connect(1, {}, {"p": 1, "c": 1}))
        self(Joined())
        return self

    def trained(self, **prepared: Any) -> Worked:
        """Its round has started."""
        self.joined(**prepared)
        self(Start())
        self(Credit("c", 1, "m", 0, 100))
        return self

    @property
    def op(self) -> Op:
        """What it has asked to compute last."""
        (compute,) = [action for action in self.last if isinstance(action, Compute)]
        return compute.op

    def finish(self) -> list[Action]:
        return self(Computed(self.op, 4, {"h": "h"}))

    def forward(self, batch: int) -> None:
        """Its op is under way."""
        self(activation(batch))
        assert str(self.op) == f"F{batch}"

    def update(self, batch: int) -> None:
        """All is done up to the update, which is under way."""
        self.forward(batch)
        while str(self.op) != f"U{batch}":
            self.finish()


def kinds(actions: Sequence[Action]) -> list[type[Action]]:
    return [type(action) for action in actions]


def words(actions: Sequence[Action]) -> list[Message]:
    """To the coordinator."""
    return [a.message for a in actions if isinstance(a, Send) and a.to == COORDINATOR]


# --- joining -------------------------------------------------------------------------------------


def test_it_says_hello_is_let_in_builds_connects_and_greets() -> None:
    life = Worked()
    assert life.process.start(0.0) == [SayHello()]
    assert life(WELCOME) == [Prepare(WELCOME)]
    assert life(Prepared()) == [Restore(Origin.BEGINNING, discard=True)]
    counts = {"batches": 3, "missed": 1, "updates": 2, "read": 4}
    assert life(Restored(5, counts, ["a note"])) == [
        Send(COORDINATOR, Built(1, 5, position=4, updates=2, read=4, notes=["a note"]))
    ]
    there = Connect(1, {}, {"p": 1, "c": 1}, start=4)
    assert life(there) == [Join(there, (7, 1))]
    greeted = [action.to for action in life(Joined()) if isinstance(action, Send)]
    assert sorted(greeted) == ["c", "p"]
    assert life.process.state is State.ROUND and not life.process.training
    life(Start())
    assert life.process.training


def test_no_answer_names_the_address_and_the_cure() -> None:
    life = Worked(coordinator="ipc://x", timeout_s=30.0)
    life.process.start(0.0)
    assert life.process.deadline() == 2.0
    life.now = 2.0
    assert life(Woke()) == [SayHello()]  # the coordinator may have died with the first one
    assert life(Woke()) == []
    life.now = 5.0
    (said,) = life(Woke())
    assert isinstance(said, Say)
    assert said.text.startswith("no coordinator has answered at ipc://x for 5 s")
    life.now = 30.0
    (end,) = life(Woke())
    assert isinstance(end, Exit) and isinstance(end.error, LaunchError)
    assert str(end.error).startswith("no coordinator answered at ipc://x within 30 s")
    assert "--timeout" in str(end.error)


def test_a_coordinator_that_is_known_to_live_is_waited_for_however_long_it_takes() -> None:
    life = Worked(timeout_s=30.0, launched=True)
    life.process.start(0.0)
    life.now = 1e6
    assert life(Woke()) == [SayHello()]
    assert life(Woke()) == []
    (end,) = life(ParentGone())
    assert end == Exit("the process that started this worker is gone")


def test_once_let_in_a_process_leaves_by_the_coordinators_silence_and_not_its_parents_end() -> None:
    assert Worked(launched=True).trained()(ParentGone()) == []


def test_a_refusal_is_an_error_of_its_class() -> None:
    (end,) = Worked()(Refused("LaunchError", "stage a is taken"))
    assert isinstance(end, Exit) and isinstance(end.error, LaunchError)
    assert str(end.error) == "stage a is taken"


def test_without_a_folder_nothing_is_claimed() -> None:
    life = Worked()
    life(Welcome("a", 1, {}, {}, "", "initial"))
    life(Prepared())
    life(Restored())
    assert life(connect()) == [Join(connect(), None)]


def test_addresses_of_another_round_are_ignored() -> None:
    life = Worked().built()
    assert life(connect(2)) == []
    life(Rejoin(2, "keep"))
    assert life(connect(2)) == []  # and those that come before it is built
    life(Restored(5))
    assert life(connect(1)) == []
    assert life(connect(2)) == [Join(connect(2), (7, 2))]


# --- what a round begins from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restore", "wanted"),
    [
        ("keep", Restore(Origin.KEPT)),
        ("initial", Restore(Origin.BEGINNING, discard=True)),
        ("checkpoints/000001", Restore(Origin.CUT, "checkpoints/000001", discard=True)),
        ("snapshots", Restore(Origin.FARTHEST, "checkpoints/000002")),
    ],
)
def test_an_order_names_the_state_to_begin_from(restore: str, wanted: Restore) -> None:
    """In place of a snapshot a cut up to the one that the Welcome names will do. When all go back,
    snapshots of what came after must not be gone on from."""
    assert Worked().built()(Rejoin(2, restore)) == [wanted]


def test_a_new_process_has_nothing_to_keep() -> None:
    life = Worked()
    life(Welcome("a", 1, {}, {}, "folder", "keep"))
    assert life(Prepared()) == [Restore(Origin.BEGINNING)]


def test_counts_go_on_from_the_state_that_was_found_or_stay_with_it() -> None:
    life = Worked().built()
    life(Rejoin(2, "snapshots"))
    life(Restored(5, {"batches": 9, "missed": 2}))
    assert life.process.counts.position == 11
    life(Rejoin(3, "keep"))
    life(Restored(5, None))
    assert life.process.counts.position == 11
    life(Rejoin(4, "initial"))
    life(Restored(5, {}))
    assert life.process.counts.position == 0


# --- orders, the newest of which counts ----------------------------------------------------------


def test_an_order_that_comes_while_it_builds_is_followed_without_a_word_about_the_older() -> None:
    life = Worked().built()
    life(Rejoin(2, "keep"))
    assert life(Rejoin(4, "initial")) == []
    assert life(Rejoin(3, "keep")) == []
    assert life(Restored(5)) == [Restore(Origin.BEGINNING, discard=True)]
    (built,) = words(life(Restored(5, {})))
    assert isinstance(built, Built) and built.incarnation == 4


def test_an_order_older_than_the_round_is_none() -> None:
    life = Worked().built()
    life(Rejoin(3, "keep"))
    life(Restored(5))
    assert life(Rejoin(2, "initial")) == [] and life(Rejoin(3, "initial")) == []
    assert life.process.state is State.BUILT


def test_an_order_that_comes_with_the_addresses_is_followed() -> None:
    life = Worked().built()
    life(connect(1))
    assert life(Rejoin(2, "keep")) == [Restore(Origin.KEPT)]
    assert life(Joined()) == []  # of the round that is over


def test_an_order_ends_a_round() -> None:
    life = Worked().trained()
    assert life(Rejoin(2, "keep")) == [Restore(Origin.KEPT)]
    assert life.process.state is State.BUILDING


def test_mail_that_comes_between_rounds_is_kept_for_the_next_and_old_orders_are_not() -> None:
    life = Worked().built()
    assert life(CREDIT) == [] and life(Lost("c")) == [] and life(Start()) == []
    life(Connect(1, {}, {"p": 1, "c": 1}))
    assert life(Joined())[-1] == Redeliver([CREDIT])
    life(Rejoin(2, "keep"))
    life(Restored(5))
    life(Connect(2, {}, {"p": 1, "c": 1}))
    assert Redeliver not in kinds(life(Joined()))


def test_another_coordinator_is_told_who_this_is_and_joined_behind_the_op_under_way() -> None:
    """Its rounds are numbered from anywhere; what one of an earlier term has sent is void."""
    assert Worked().built()(Introduce()) == [SayHello(1)]
    life = Worked().trained()
    life(Rejoin(4, "keep"))
    assert life(Introduce()) == [SayHello(4)]
    life(Restored(5))
    life(Connect(4, {}, {"p": 4, "c": 4}))
    life(Joined())
    life(Start())
    life(Credit("c", 4, "m", 0, 100))
    life(activation(0, incarnation=4))
    compute = life.last
    assert life(Introduce()) == [SayHello(4)] and life(WELCOME) == []
    again = structs.replace(WELCOME, term=8, incarnation=2, restore="keep")
    assert life(again) == []
    life.last = compute
    assert life.finish()[-1] == Restore(Origin.KEPT)
    (built,) = words(life(Restored(5)))
    assert isinstance(built, Built) and built.incarnation == 2 and built.position == 1
    assert life(Connect(2, {}, {"p": 2, "c": 2}))[-1] == Join(life.process._connect, (8, 2))
    assert life(again) == []


def test_who_has_built_nothing_yet_has_nothing_for_another_coordinator() -> None:
    life = Worked()
    life.process.start(0.0)
    life(WELCOME)
    assert life(Introduce()) == [SayHello(0)]


# --- an op under way -----------------------------------------------------------------------------


def test_an_order_to_go_back_waits_until_the_op_under_way_has_been_counted() -> None:
    life = Worked().trained()
    life.forward(0)
    compute = life.last
    assert life(Rejoin(2, "initial")) == []
    assert life.process.counts.batches == 0
    life.last = compute
    actions = life.finish()
    assert life.process.counts.batches == 1
    assert actions[-1] == Restore(Origin.BEGINNING, discard=True)
    assert [action.batch for action in actions if isinstance(action, Release)] == [0]


def _finish_update(life: Worked) -> list[OpKind]:
    """Does one op after the other until an order is followed; returns which."""
    done = []
    while isinstance(life.last[-1], Compute):
        done.append(life.op.kind)
        life.finish()
    return done


def test_an_order_to_go_on_waits_until_the_batchs_update_has_been_made() -> None:
    life = Worked().trained()
    life.forward(0)
    compute = life.last
    assert life(Rejoin(2, "keep")) == []
    life.last = compute
    assert _finish_update(life) == [
        *(OpKind.FORWARD, OpKind.PREDICT, OpKind.BACKWARD, OpKind.UPDATE)
    ]
    assert life.last[-1] == Restore(Origin.KEPT)
    assert (life.process.counts.batches, life.process.counts.updates) == (1, 1)


def test_what_comes_behind_an_order_waits_with_it_and_belongs_to_the_next_round() -> None:
    life = Worked().trained()
    life.forward(0)
    compute = life.last
    for message in (Rejoin(2, "keep"), CREDIT, Rejoin(3, "initial")):
        assert life(message) == []
    life.last = compute
    _finish_update(life)
    assert life(Restored(5)) == [Restore(Origin.BEGINNING, discard=True)]
    life(Restored(5, {}))
    life(Connect(3, {}, {"p": 1, "c": 1}))
    assert life(Joined())[-1] == Redeliver([CREDIT])


def test_all_else_is_heard_while_an_op_is_under_way() -> None:
    life = Worked().trained()
    life.forward(0)
    assert life(Lost("c")) == [Lose("c")]


def test_what_an_op_of_an_older_round_gives_is_void() -> None:
    life = Worked().trained()
    life.forward(0)
    event = Computed(life.op, 4, {"h": "h"})
    life(Broke(NumericalError("nan")))
    assert life(event) == []


def test_behind_an_op_in_the_middle_of_an_update_nobody_need_look() -> None:
    for op, settled in (
        (Op(OpKind.PREDICT, 0), True),
        (Op(OpKind.BACKWARD, 0), True),
        (Op(OpKind.BACKWARD, 0, last=True), False),
        (Op(OpKind.BACKWARD, 0, learn=False), False),
        (Op(OpKind.FORWARD, 0), False),
    ):
        assert is_settled(op) is settled


# --- reports -------------------------------------------------------------------------------------


def reports(actions: Sequence[Action]) -> int:
    return kinds(actions).count(Report)


def test_a_report_is_due_every_half_second() -> None:
    life = Worked().trained()
    for moment in (0.5, 1.0, 1.5):
        assert life.process.deadline() == moment
        assert reports(life(Woke())) == 0
        life.now = moment
        (report,) = life(Woke())
        assert isinstance(report, Report) and report.counters["in_flight"] == 0


def test_a_report_waits_for_the_end_of_an_op() -> None:
    life = Worked().trained()
    life.forward(0)
    compute = life.last
    life.now = 0.75
    assert life(Woke()) == []
    assert life.process.deadline() == 1.25
    life.last = compute
    report = life.finish()[-1]
    assert isinstance(report, Report) and report.counters["batches"] == 1


def test_the_coordinator_hears_all_counters_before_a_barrier() -> None:
    life = Worked().trained()
    actions = life(Barrier("p", 1, 0, "final"))
    (at,) = [n for n, a in enumerate(actions) if isinstance(a, Send) and Drained is type(a.message)]
    assert isinstance(actions[at - 1], Report)
    assert not life.process.training


def test_before_the_start_greetings_are_repeated_and_reports_sent() -> None:
    life = Worked().joined()
    life.now = 0.5
    assert kinds(life(Woke())) == [Report]
    life.now = 1.0
    assert kinds(life(Woke())) == [Send, Send, Report]


# --- snapshots -----------------------------------------------------------------------------------


def test_a_snapshot_is_taken_behind_an_update_and_before_the_next_op() -> None:
    life = Worked().trained(snapshot_every_s=1.0, learns_alone=True)
    life.update(0)
    compute = life.last
    life(activation(1))
    life.last, life.now = compute, 1.0
    actions = kinds(life.finish())
    assert actions[-2:] == [Snapshot, Compute]
    assert life.process.snapshot_due_s == 2.0


def test_no_snapshot_is_taken_before_it_is_due_nor_behind_another_op() -> None:
    life = Worked().trained(snapshot_every_s=1.0, learns_alone=True)
    life.update(0)
    life.now = 0.9
    assert Snapshot not in kinds(life.finish())
    life.now = 5.0
    life.forward(1)
    while str(life.op) != "U1":
        assert Snapshot not in kinds(life.finish())
    assert Snapshot in kinds(life.finish())


def test_the_next_snapshot_is_a_hundred_times_as_far_off_as_one_takes() -> None:
    life = Worked().trained(snapshot_every_s=1.0, learns_alone=True)
    life.now = 10.0
    life(SnapshotTaken(0.001))
    assert life.process.snapshot_due_s == 11.0
    life(SnapshotTaken(0.5))
    assert life.process.snapshot_due_s == 60.0


def test_no_snapshot_is_due_before_the_last_one_has_been_sent_and_some_time_after_it() -> None:
    life = Worked().trained(snapshot_every_s=1.0, learns_alone=True, away=True)
    path, size = "snapshots/m.0.safetensors", 8
    life.now = 5.0
    life.update(0)
    assert Snapshot in kinds(life.finish())
    assert life(SnapshotTaken(0.001, paths=[path])) == [SendPart(COORDINATOR, 1, path, 0)]
    assert life(PartSent(COORDINATOR, 1, path, size, size, took_s=0.05)) == []
    life.now = 9.0  # another one would be due, but the last has not arrived
    life.update(1)
    assert Snapshot not in kinds(life.finish())
    assert life(Taken(1, path, size)) == []
    assert life.process.snapshot_due_s == 9.0 + 100 * 0.05


def test_a_snapshot_that_fails_is_told_of_once_unless_the_runs_folder_is_gone() -> None:
    life = Worked().trained(snapshot_every_s=1.0, learns_alone=True)
    full = CheckpointError("the disk is full")
    assert life(SnapshotTaken(0.1, full)) == [Say("no snapshot was written: the disk is full")]
    assert life(SnapshotTaken(0.1, full)) == []
    actions = life(SnapshotTaken(0.1, full, folder_gone=True))
    assert kinds(actions) == [Send, Exit] and life.process.state is State.ENDED
    assert life(SnapshotTaken(0.1, full, folder_gone=True)) == [
        Say("no snapshot was written: the disk is full")
    ]


def test_without_an_interval_none_is_ever_due() -> None:
    assert Worked().trained(learns_alone=True).process.snapshot_due_s == float("inf")


def test_where_all_go_back_together_none_is_ever_due() -> None:
    assert Worked().trained(snapshot_every_s=1.0).process.snapshot_due_s == float("inf")


# --- what the user is told of a state ------------------------------------------------------------


def notes(restored: Restored, restore: str = "snapshots") -> list[str]:
    life = Life(lambda counts: None)
    life.process.start(0.0)
    life(Welcome("a", 1, {}, {}, "folder", restore, term=7, cut="checkpoints/000002"))
    life(Prepared(stages=["low", "top"]))
    (send,) = life(restored)
    assert isinstance(send, Send) and isinstance(send.message, Built)
    return list(send.message.notes)


def test_a_state_that_is_not_the_last_snapshot_is_explained() -> None:
    counts, cut = {"batches": 1000, "missed": 9}, "checkpoints/000001"
    assert notes(Restored(5, counts, ["x"], place="snapshots")) == ["x"]
    assert notes(Restored(5, counts, ["x"], place=cut)) == [
        "its state there is newer than its last snapshot; "
        "low, top from checkpoints/000001, batch 1,009",
        "x",
    ]
    (damaged,) = notes(Restored(5, counts, place=cut, unusable=["one", "two"]))
    assert damaged == "one; two; low, top from checkpoints/000001, batch 1,009"
    assert notes(Restored(5, {}, unusable=["none"])) == ["none; low, top begin anew"]


def test_a_state_that_was_named_needs_no_explanation() -> None:
    assert notes(Restored(5, {"batches": 3}, place="checkpoints/000001"), "initial") == []
    assert notes(Restored(5, {"batches": 3}, ["x"]), "checkpoints/000001") == ["x"]


# --- buffers -------------------------------------------------------------------------------------


def test_arrays_of_a_batch_are_free_once_all_messages_with_them_have_left() -> None:
    buffers, left = Buffers(), {"first": False, "second": False}
    buffers.sent(Activation("m", 1, 3, 4, {}), lambda: left["first"])
    buffers.sent(Gradient("m", 1, 3, {}), lambda: left["second"])
    free = buffers.free(3)
    assert not free()
    left["first"] = True
    assert not free()
    left["second"] = True
    assert free()
    assert buffers.free(3)()  # of another batch with this number


def test_tensors_of_test_batches_and_other_messages_are_not_waited_for() -> None:
    buffers = Buffers()
    buffers.sent(Activation("m", 1, 3, 4, {}, evaluate=True), lambda: False)
    buffers.sent(CREDIT, lambda: False)
    assert buffers.free(3)()


class Reading:
    """A machine that reads two batches and releases one."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.phase = Phase.TRAINING
        self.unapplied = 0
        self._worker = Worker(MIDDLE, Synthetic(), counts=counts)
        self._asked: list[list[Action]] = [
            [],
            [Compute(Op(OpKind.READ, 0), {})],
            [Compute(Op(OpKind.READ, 1), {})],
            [Release(0)],
        ]

    def joined(self, connect: Connect, *, senders_known: bool) -> None:
        pass

    def check(self) -> None:
        pass

    def deadline(self) -> None:
        return None

    def counters(self) -> dict[str, int]:
        return {}

    def handle(self, event: object, now: float) -> list[Action]:
        if self._asked:
            return self._asked.pop(0)
        self.phase = Phase.LEFT
        actions = self._worker.handle(event, now)  # type: ignore[arg-type]
        return actions


def test_batches_that_were_read_and_no_round_will_release_are_released_at_its_end() -> None:
    life = Life(Reading).joined()
    life(CREDIT)
    life(Computed(Op(OpKind.READ, 0)))
    assert life(Computed(Op(OpKind.READ, 1))) == [Release(0)]
    assert life(Rejoin(2, "keep")) == [Release(1), Restore(Origin.KEPT)]


# --- neighbours ----------------------------------------------------------------------------------


def test_a_neighbour_whose_tensors_are_of_no_use_is_accused_and_as_good_as_dead() -> None:
    life = Worked().trained()
    accused = Accused("c", 1, "wrong shape")
    actions = life(Unusable(accused))
    assert actions[0] == Send(COORDINATOR, accused) and actions[-1] == Lose("c")
    life.forward(0)
    assert not [a for a in life.finish() if isinstance(a, Send) and a.to == "c"]


def test_neighbours_that_nobody_can_connect_to_are_accused() -> None:
    life = Worked().built()
    life(Connect(1, {}, {"p": 1, "c": 1}))
    accused = Accused("c", 1, "no address")
    assert life(Joined([accused]))[0] == Send(COORDINATOR, accused)


# --- ends ----------------------------------------------------------------------------------------


def test_the_end_of_the_run_is_the_end_of_the_process() -> None:
    life = Worked().trained()
    assert life(Leave()) == [Exit()]
    assert life.process.state is State.ENDED
    assert life(Rejoin(9, "keep")) == [] and life.process.deadline() is None


def test_a_run_that_is_called_off_in_a_round_says_who_has_stopped_it() -> None:
    text = "worker a was stopped by its coordinator: disk full"
    assert Worked().trained()(Abort("disk full")) == [Exit(text)]


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (Abort("disk full"), "the run was called off: disk full"),
        (Leave(), "the run was called off"),
    ],
)
def test_a_run_that_is_called_off_ends_all_waiting(last: Message, text: str) -> None:
    assert Worked().built()(last) == [Exit(text)]


def test_an_error_is_told_and_ends_the_process() -> None:
    error = CheckpointError("disk full")
    assert Worked().trained()(Broke(error)) == [
        Send(COORDINATOR, Failed("CheckpointError", "disk full", "")),
        Exit("disk full", error),
    ]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (KeyboardInterrupt(), "Interrupted", "worker a was interrupted"),
        (MemoryError(), "MemoryError", "worker a is out of memory: no more could be allocated"),
        (ValueError("x"), "AsyncDNIError", "worker a failed: ValueError: x; its log has the trace"),
    ],
)
def test_every_error_has_its_words(error: BaseException, kind: str, text: str) -> None:
    (failed,) = words(Worked().built()(Broke(error, "the trace")))
    assert isinstance(failed, Failed) and failed.kind == kind and failed.text.startswith(text)
    assert failed.trace == ("the trace" if isinstance(error, ValueError) else "")


def test_numbers_that_go_wrong_are_reported_and_end_the_process() -> None:
    actions = Worked().trained()(Broke(NumericalError("nan")))
    assert kinds(actions) == [Report, Send, Exit]


def test_with_roll_back_it_waits_for_the_order_to_go_back() -> None:
    life = Worked().trained(roll_back=True)
    actions = life(Broke(NumericalError("nan", batch=7)))
    assert kinds(actions) == [Report, Send]
    assert actions[1] == Send(COORDINATOR, Failed("NumericalError", "nan", "", 7))
    assert life.process.state is State.FAILED
    assert life(CREDIT) == [] and life(connect()) == []
    order = Rejoin(2, "checkpoints/000001")
    assert life(order) == [Restore(Origin.CUT, "checkpoints/000001", discard=True)]


def test_an_order_that_has_come_during_the_op_that_went_wrong_is_followed() -> None:
    life = Worked().trained(roll_back=True)
    life.forward(0)
    life(Rejoin(2, "initial"))
    actions = life(Broke(NumericalError("nan")))
    assert actions[-1] == Restore(Origin.BEGINNING, discard=True)


def test_without_a_coordinator_it_saves_and_leaves() -> None:
    life = Worked().trained(snapshot_every_s=1000.0, learns_alone=True)
    assert life(CoordinatorGone("nothing heard")) == [
        Snapshot(last=True),
        Exit("worker stops: nothing heard"),
    ]
    assert Worked().trained()(CoordinatorGone("x")) == [Exit("worker stops: x")]
    assert Worked().built()(CoordinatorGone("x")) == [Exit("worker stops: x")]


def test_without_a_coordinator_it_finishes_the_update_that_it_is_in_the_middle_of() -> None:
    life = Worked().trained(snapshot_every_s=1000.0, learns_alone=True)
    life.update(0)
    compute = life.last
    assert life(CoordinatorGone("nothing heard")) == []
    assert life(CoordinatorGone("nothing heard")) == []  # drivers say it again
    life.last = compute
    assert kinds(life.finish())[-2:] == [Snapshot, Exit]
    assert life.process.counts.updates == 1


def test_a_process_that_has_done_nothing_has_no_worker() -> None:
    process = Process("a", lambda counts: Worker(MIDDLE, Synthetic(), counts=counts), 0.0)
    process.check()
    assert process.worker is None and process.state is State.HELLO


def test_a_traceback_is_said_to_be_where_the_process_prints_it() -> None:
    broke = Broke(ValueError("odd"), "Traceback …", "host7:/runs/a/logs/a.log")
    told = Worked().trained()(broke)[0]
    assert isinstance(told, Send) and isinstance(told.message, Failed)
    assert told.message.text == (
        "worker a failed: ValueError: odd; its log has the traceback: host7:/runs/a/logs/a.log"
    )
