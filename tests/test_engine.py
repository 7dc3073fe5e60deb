"""The loop of a worker through one round: its end, its snapshots, and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from life import Rooms, drive

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Compute,
    Computed,
    Origin,
    Received,
    Restore,
    Save,
    Stop,
    Woke,
)
from asyncdni.core.worker import Phase
from asyncdni.drivers.real.engine import Engine, Snapshots
from asyncdni.messages import (
    Accused,
    Activation,
    Connect,
    Credit,
    Leave,
    Lost,
    Message,
    Rejoin,
    Report,
    Saved,
)
from asyncdni.messages import Save as SaveOrder
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.base import Forwarded, Stage
from asyncdni.store.checkpoint import read_state

CREDIT = Credit("b", 1, "a", 0, 1)
REJOIN = Rejoin(2, "keep")


class Wire:
    """Each look brings the next list of messages."""

    def __init__(self, *arrivals: list[Message]) -> None:
        self.arrivals = list(arrivals)
        self.sent: list[tuple[str, Message]] = []
        self.lost: list[str] = []
        self.accused: list[tuple[str, str]] = []

    def send(self, to: str, message: Message) -> Callable[[], bool] | None:
        self.sent.append((to, message))
        return None

    def wait(self, timeout_s: float | None) -> None:
        pass

    def receive(self, timeout_s: float | None) -> list[Message]:
        return self.arrivals.pop(0) if self.arrivals else []

    def lose(self, worker: str) -> None:
        self.lost.append(worker)

    def take_accused(self) -> list[tuple[str, str]]:
        accused, self.accused = self.accused, []
        return accused

    def counters(self) -> dict[str, int]:
        return {}


class Machine:
    """A worker that asks for these ops, one after the other, and notes what it is told."""

    schedule = None

    def __init__(self, *ops: Op) -> None:
        self.flights: dict[int, Any] = {}
        self.phase = Phase.TRAINING
        self.counts = Counts()
        self.unapplied = 0
        self.heard: list[object] = []
        self._ops = list(ops)
        self._busy = False

    def joined(self, connect: Connect, *, senders_known: bool) -> None:
        """The round begins."""

    def deadline(self) -> float | None:
        return None

    def handle(self, event: object, now: float) -> list[Action]:
        if self.phase is Phase.LEFT:
            return []
        actions: list[Action] = []
        match event:
            case Received(message=Rejoin() as message):
                self.phase = Phase.LEFT
                self.heard.append(message)
                return [Stop(rejoin=message)]
            case Received(message=Leave()):
                self.phase = Phase.LEFT
                return [Stop()]
            case Received(message=SaveOrder(tag=tag)):
                return [Save(tag, whole=tag.startswith("checkpoints/"))]
            case Received(message=message):
                self.heard.append(message)
            case Woke():
                pass
            case Computed(op=op):
                self.heard.append(op)
                self.counts.updates += op.kind is OpKind.UPDATE
            case stored:
                self.heard.append(stored)
        self._busy = self._busy and not isinstance(event, Computed)
        if self._ops and not self._busy:
            self._busy = True
            actions.append(Compute(self._ops.pop(0), {"data": {"h": np.zeros((2, 1))}}))
        return actions

    def counters(self) -> dict[str, int]:
        return {"updates": self.counts.updates}


class Maths:
    """A stage that counts its updates, and holds one number."""

    def __init__(self) -> None:
        self.updates = 0

    def forward(self, batch: int, inputs: object, context: object) -> Forwarded:
        return Forwarded(None)

    def update(self) -> None:
        self.updates += 1

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        assert sent()

    def snapshot(self, *, copied: bool = True) -> dict[str, dict[str, Any]]:
        return {"a": {"0.weight": np.array([self.updates], np.float32)}}

    def readout(self) -> dict[str, int]:
        return {}

    def skips(self) -> dict[str, int]:
        return {}


class Source:
    """Counts the buffers that are out."""

    def __init__(self) -> None:
        self.out: set[int] = set()

    def read(self, op: Op) -> dict[str, Any]:
        self.out.add(op.batch)
        return {"h": np.zeros((2, 1))}

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        assert sent()
        self.out.remove(batch)


def engine(machine: Machine, wire: Wire, *early: Message, **options: Any) -> Engine:
    """One that has driven this machine to the end of its process."""
    options.setdefault("stage", Maths())
    return drive(machine, wire, early, now=time.monotonic(), **options)


UPDATE = Op(OpKind.UPDATE, 0, last=True)


# --- ends ----------------------------------------------------------------------------------------


def test_what_came_behind_the_end_of_the_round_is_left_for_the_next() -> None:
    wire = Wire([CREDIT, REJOIN, Rejoin(3, "initial"), CREDIT])
    driven = engine(Machine(), wire, restorations=2)
    rooms = cast(Rooms, driven._session)
    assert rooms.restored == [Restore(Origin.KEPT), Restore(Origin.BEGINNING, discard=True)]
    assert driven._process._early == [CREDIT]


def test_an_op_that_was_done_is_counted_before_the_round_ends() -> None:
    machine = Machine(UPDATE)
    engine(machine, Wire([REJOIN]), CREDIT)
    assert machine.heard == [CREDIT, UPDATE, REJOIN]
    assert machine.counts.updates == 1


def test_all_else_is_heard_before_the_op_that_was_done_while_it_came() -> None:
    machine = Machine(UPDATE)
    engine(machine, Wire([Lost("b")], [Leave()]), CREDIT)
    assert machine.heard == [CREDIT, Lost("b"), UPDATE]


def test_a_neighbour_that_is_lost_is_cut_off_by_the_transport() -> None:
    wire = Wire([Lost("b")], [Leave()])
    engine(Machine(), wire)
    assert wire.lost == ["b"]


def test_buffers_of_data_that_nobody_will_release_are_given_back() -> None:
    source = Source()
    machine = Machine(*(Op(OpKind.READ, batch) for batch in range(3)))
    engine(machine, Wire([], [], [], [REJOIN]), CREDIT, source=source)
    assert machine.heard.count(REJOIN) == 1
    assert source.out == set()


# --- state on disk -------------------------------------------------------------------------------


def test_snapshots_are_written_behind_updates_and_count_what_was_done(tmp_path: Path) -> None:
    machine = Machine(Op(OpKind.FORWARD, 0), UPDATE)
    snapshots = Snapshots(str(tmp_path))
    wire = Wire([], [], [], [Leave()])
    engine(machine, wire, CREDIT, snapshots=snapshots, snapshot_every_s=0.0, learns_alone=True)
    assert snapshots.count == 1
    state, counts = read_state(tmp_path / "snapshots", ["a"], None)
    assert state["a"]["0.weight"].tolist() == [1.0]
    assert counts["updates"] == 1


def test_no_snapshot_is_written_with_gradients_that_are_not_applied(tmp_path: Path) -> None:
    machine = Machine(UPDATE)
    machine.unapplied = 1
    snapshots = Snapshots(str(tmp_path))
    engine(
        machine,
        Wire([], [], [Leave()]),
        CREDIT,
        snapshots=snapshots,
        snapshot_every_s=0.0,
        learns_alone=True,
    )
    assert snapshots.count == 0


def test_a_snapshot_that_can_not_be_written_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "snapshots").write_text("a file in its place")
    snapshots = Snapshots(str(tmp_path))
    machine, wire = Machine(UPDATE), Wire([], [], [Leave()])
    engine(machine, wire, CREDIT, snapshots=snapshots, snapshot_every_s=0.0, learns_alone=True)
    assert caplog.text.count("no snapshot was written: can't write") == 1
    assert snapshots.count == 0


def test_a_run_folder_that_is_gone_is_told_apart(tmp_path: Path) -> None:
    taken = Snapshots(str(tmp_path / "gone")).write(cast(Stage, Maths()), Counts())
    assert taken.folder_gone and "can't write" in str(taken.error)


def test_a_cut_holds_all_state_and_its_digests_are_answered(tmp_path: Path) -> None:
    machine = Machine()
    machine.counts.updates = 7
    tag = "checkpoints/000003"
    engine(machine, Wire([SaveOrder(tag)], [Leave()]), folder=str(tmp_path))
    (stored,) = machine.heard
    state, counts = read_state(tmp_path / tag, ["a"], stored.files)  # type: ignore[attr-defined]
    assert set(state["a"]) == {"0.weight"}
    assert counts["updates"] == 7
    assert Saved(tag, stored.files)  # type: ignore[attr-defined]


# --- nobody left to work for ---------------------------------------------------------------------


def test_a_worker_without_a_coordinator_saves_and_leaves(tmp_path: Path) -> None:
    snapshots = Snapshots(str(tmp_path))
    options: dict[str, Any] = {
        "snapshots": snapshots,
        "snapshot_every_s": 1000.0,
        "learns_alone": True,
    }
    driven = engine(Machine(), Wire(), gone="nothing heard", **options)
    assert driven.end is not None and driven.end.failed == "worker stops: nothing heard"
    assert snapshots.count == 1


def test_in_the_middle_of_an_update_it_comes_to_its_end_first(tmp_path: Path) -> None:
    machine = Machine(UPDATE)
    machine.unapplied = 1
    snapshots = Snapshots(str(tmp_path))

    class Applies(Maths):
        def update(self) -> None:
            super().update()
            machine.unapplied = 0

    maths = Applies()
    options: dict[str, Any] = {
        "snapshots": snapshots,
        "snapshot_every_s": 1000.0,
        "learns_alone": True,
    }
    engine(machine, Wire(), CREDIT, stage=maths, gone="nothing heard", **options)
    assert maths.updates == 1
    state, _ = read_state(tmp_path / "snapshots", ["a"], None)
    assert state["a"]["0.weight"].tolist() == [1.0]


# --- tensors that can't be used ------------------------------------------------------------------


class Strict:
    """Finds fault with every activation."""

    def accuse(self, worker: str, text: str) -> Accused:
        return Accused(worker, 1, text)

    def accusation(self, message: Message) -> Accused | None:
        return Accused("b", 1, "wrong shape") if isinstance(message, Activation) else None


def test_a_neighbour_whose_tensors_do_not_fit_is_accused_and_not_waited_for() -> None:
    machine = Machine()
    wire = Wire([Activation("b", 1, 0, 2, {})], [CREDIT, Leave()])
    engine(machine, wire, inspection=Strict())
    assert machine.heard == [Lost("b"), CREDIT]
    accused = [one for to, one in wire.sent if not isinstance(one, Report)]
    assert accused == [Accused("b", 1, "wrong shape")]
    assert wire.lost == ["b"]


def test_a_neighbour_that_the_transport_has_cut_off_is_accused_and_not_waited_for() -> None:
    machine, wire = Machine(), Wire([CREDIT], [Leave()])
    wire.accused = [("b", "cut off: nonsense")]
    engine(machine, wire, inspection=Strict())
    assert machine.heard == [Lost("b"), CREDIT]
    assert [one for _, one in wire.sent] == [Accused("b", 1, "cut off: nonsense")]
    assert wire.lost == ["b"]
