"""Runs all workers in this process by turns, with the real logic and the real maths but no waiting.

Each worker goes on until it has nothing to do, then it is the next one's turn. With a window of one
batch between any two workers this is the order of training: a stage does all ops of a batch (F P B
U, and those on gradients that have come back for older batches), then the next stage does. Messages
are encoded, copied and decoded as on the wire, but handed to the receiver directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from asyncdni.core.events import Action, Compute, Event, Received, Release, Send
from asyncdni.core.worker import Phase, Worker
from asyncdni.messages import COORDINATOR, Connect, Message, Resume, Start
from asyncdni.plan.build import Design, find_exits, make_source, make_stage, make_worker
from asyncdni.plan.plan import Group
from asyncdni.schedules.base import Op
from asyncdni.stages.executor import Executor
from asyncdni.wire import codec

__all__ = ["Observer", "Rehearsal"]


class Observer(Protocol):
    """Is called for each op and each message between workers."""

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        """A worker has done an op; `cpu_s` is the CPU time of this thread inside it."""

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        """A worker has sent a message; `frames` are the bytes of its header and of each tensor."""

    def handled(self, cpu_s: float) -> None:
        """A worker's logic has handled the first event of a turn in `cpu_s` of this thread's CPU
        time."""


@dataclass
class _Desk:
    """One worker with its executor, and the messages and op that are to be handled next."""

    worker: Worker
    executor: Executor
    parameters: int
    inbox: list[Message] = field(default_factory=list)
    pending: Compute | None = None
    turn_begins: bool = False


class Rehearsal:
    """Trains a design on `segments` times `batches` batches, without tests and without saving."""

    def __init__(
        self,
        design: Design,
        observer: Observer,
        *,
        segments: int,
        batches: int,
        before_turn: Callable[[], None] | None = None,
    ) -> None:
        """Build the stages and load the data. Raises what these raise.

        `before_turn` is called before each turn of a worker that has something to do."""
        ends = tuple(batches * (number + 1) for number in range(segments))
        plan = replace(design.plan, batches=ends[-1], barriers=ends, test_batches=0)
        limits = msgspec.structs.replace(design.experiment.limits, window=1, window_max=1)
        chosen = msgspec.structs.replace(design.experiment, limits=limits)
        self._design = replace(design, experiment=chosen, plan=plan)
        self._observer = observer
        self._before_turn = before_turn
        self._desks = {group.name: self._desk(group) for group in plan.groups}
        self._barrier = -1

    @property
    def parameters(self) -> dict[str, int]:
        """How many parameters each worker trains, without those of its generator."""
        return {name: desk.parameters for name, desk in self._desks.items()}

    def advance(self) -> None:
        """Train on the batches of the next segment, until all workers have drained."""
        order = Start() if self._barrier < 0 else Resume(self._barrier)
        self._barrier += 1
        for desk in self._desks.values():
            desk.inbox.append(order)
        while any(desk.inbox for desk in self._desks.values()):
            for name, desk in self._desks.items():
                self._go_on(name, desk)
        drained = all(desk.worker.phase is Phase.DRAINED for desk in self._desks.values())
        assert drained, "a worker waits for what nobody sends"

    def _desk(self, group: Group) -> _Desk:
        design = self._design
        worker = make_worker(design, group)
        worker.joined(Connect(1, {}, {other.name: 1 for other in design.plan.groups}))
        stage = make_stage(design, group)
        source = make_source(design, group)
        return _Desk(worker, Executor(stage, find_exits(design), source), stage.parameters())

    def _go_on(self, name: str, desk: _Desk) -> None:
        """One turn of a worker: it handles messages and does ops as long as it has any."""
        desk.turn_begins = bool(desk.inbox) or desk.pending is not None
        if self._before_turn is not None and desk.turn_begins:
            self._before_turn()
        while desk.inbox or desk.pending is not None:
            inbox, desk.inbox = desk.inbox, []
            for message in inbox:
                self._handle(name, desk, Received(message))
            compute, desk.pending = desk.pending, None
            if compute is not None:
                began = time.thread_time()
                event = desk.executor.compute(compute)
                self._observer.op(name, compute.op, time.thread_time() - began)
                self._handle(name, desk, event)

    def _handle(self, name: str, desk: _Desk, event: Event) -> None:
        now, began = time.monotonic(), time.thread_time()
        actions = desk.worker.handle(event, now)
        took_s = time.thread_time() - began
        if desk.turn_begins:
            self._observer.handled(took_s)
            desk.turn_begins = False
        for action in actions:
            self._carry_out(name, desk, action)

    def _carry_out(self, name: str, desk: _Desk, action: Action) -> None:
        match action:
            case Compute():
                desk.pending = action
            case Send(to=to, message=message):
                if to != COORDINATOR:
                    assert isinstance(to, str)
                    self._send(name, to, message)
            case Release(batch=batch):
                desk.executor.release(batch, _sent)
            case _:
                raise TypeError(f"a rehearsal can't carry out {action!r}")

    def _send(self, sender: str, to: str, message: Message) -> None:
        frames = [bytes(frame) for frame in codec.encode(message)]
        self._observer.message(sender, to, message, [len(frame) for frame in frames])
        limits = self._design.experiment.limits
        self._desks[to].inbox.append(codec.decode(frames, limits))


def _sent() -> bool:
    """Whether a sent array's memory is free: always, as messages here are copies."""
    return True
