"""One round of a worker process in virtual time: it drives one `Worker`, as an engine does.

The process has one thread: while an op takes its time, messages are received, but nothing else is
computed; and an order to join another round is followed after the op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeGuard

from asyncdni.core.events import (
    Action,
    Compute,
    Computed,
    Event,
    Received,
    Release,
    Save,
    Send,
    Stop,
    Stored,
    Woke,
)
from asyncdni.core.worker import Phase, Worker
from asyncdni.errors import AsyncDNIError
from asyncdni.messages import COORDINATOR, Activation, Drained, Gradient, Message, Rejoin, Report
from asyncdni.schedules.base import OpKind
from asyncdni.simulator.clock import Alarm
from asyncdni.simulator.conditions import Pace
from asyncdni.simulator.process import Process
from asyncdni.simulator.wires import Parcel

__all__ = ["Executor", "Keeper", "Round", "TimedOp"]

#: (letter, batch, start, end): seconds of virtual time.
TimedOp = tuple[str, int, float, float]

_REPORT_EVERY_S = 0.5


class Executor(Protocol):
    """`backends.executor.Executor`, or one without arithmetic."""

    def compute(self, compute: Compute) -> Computed: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...


class Keeper(Protocol):
    """What a process does about its state on disk; see `simulator.keeping`."""

    @property
    def snapshot_is_due(self) -> bool: ...

    def learned(self, batch: int) -> None: ...

    def snapshot(self) -> None: ...

    def save(self, tag: str, done: Callable[[dict[str, str]], None]) -> None: ...


class Round:
    """`stopped` is called with the `Stop` that ends it and what came behind; `failed` with what an
    op has failed at."""

    def __init__(
        self,
        process: Process,
        worker: Worker,
        executor: Executor,
        keeper: Keeper,
        pace: Pace,
        ops: list[TimedOp],
        *,
        stopped: Callable[[Stop, list[Message]], None],
        failed: Callable[[AsyncDNIError], None],
    ) -> None:
        self.worker = worker
        self.over = False
        self.after_op: Callable[[], None] | None = None  # to be done once all is applied
        self._ops = ops
        self._process = process
        self._world = process.world
        self._executor = executor
        self._keeper = keeper
        self._pace = pace
        self._stopped = stopped
        self._failed = failed
        self._busy = False
        self._held: list[Message] = []  # behind an order that waits for the end of an op
        self._report_due = False
        self._delay_s = 0.0  # before the next op
        self._read: set[int] = set()  # training batches read and not released yet
        self._unsent: dict[int, list[Parcel]] = {}  # by batch
        wake = partial(self._handle, Woke())
        self._alarm = Alarm(self._world.agenda, worker, wake, process.clock)
        process.later(_REPORT_EVERY_S, self._time_to_report, idle=True)

    @property
    def busy(self) -> bool:
        """An op is under way."""
        return self._busy

    def begin(self) -> None:
        """It greets its neighbours."""
        self._handle(Woke())

    def take(self, message: Message) -> None:
        """A message has arrived."""
        if self._held or (self._busy and type(message) is Rejoin):
            self._held.append(message)
        else:
            self._handle(Received(message))

    def let_go(self) -> None:
        """Of buffers of the data that no later round will release."""
        self.over = True
        for batch in sorted(self._read):
            self._executor.release(batch, self._sent(batch))
        self._read.clear()

    def report(self) -> None:
        """Tell the coordinator all counters as of now."""
        self._process.tell(Report(self.worker.counters()))

    # --- events and actions ----------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self.over:
            return
        process = self._process
        try:
            actions = self._world.handle(process.name, self.worker, event, process.clock)
        except AsyncDNIError as error:
            self._failed(error)
            return
        for action in actions:
            if self.over:  # its process has died of the one before
                return
            self._carry_out(action)
        self._alarm.reset()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Compute():
                self._compute(action)
            case Send(to=to, message=message):
                assert isinstance(to, str)
                self._send(to, message)
            case Release(batch=batch):
                self._read.discard(batch)
                self._executor.release(batch, self._sent(batch))
            case Save(tag=tag):
                self._keeper.save(tag, partial(self._saved, tag))
            case Stop():
                self._stop(action)
            case _:
                raise TypeError(f"a worker's driver can't carry out {action!r}")

    def _saved(self, tag: str, files: dict[str, str]) -> None:
        self._handle(Stored(tag, files))

    def _stop(self, stop: Stop) -> None:
        self.let_go()
        held, self._held = self._held, []
        self._stopped(stop, held)

    # --- ops -------------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> None:
        self._busy = True
        training = self.worker.phase is Phase.TRAINING
        began = self._world.agenda.now
        what = partial(self._has_taken, compute, began, training)
        delay_s, self._delay_s = self._delay_s, 0.0
        name, op = self._process.name, compute.op
        if delay_s:
            start = partial(self._world.compute, name, self._pace, op, what)
            self._process.later(delay_s, start)
        else:
            self._world.compute(name, self._pace, op, what)

    def _has_taken(self, compute: Compute, began: float, training: bool) -> None:
        """The op is over, but for what makes this process slower than it should be."""
        process = self._process
        if process.slowness > 1.0:
            extra_s = (process.slowness - 1.0) * (self._world.agenda.now - began)
            process.later(extra_s, partial(self._computed, compute, began, training))
        elif process.is_awake:
            self._computed(compute, began, training)
        else:
            process.now(partial(self._computed, compute, began, training))

    def _computed(self, compute: Compute, began: float, training: bool) -> None:
        if self.over:
            return
        self._busy = False
        op = compute.op
        if op.kind is OpKind.READ and not op.evaluate:
            self._read.add(op.batch)
        try:
            event = self._executor.compute(compute)
        except AsyncDNIError as error:
            self._failed(error)
            return
        if training:
            self._ops.append((op.letter, op.batch, began, self._world.agenda.now))
            if op.kind is OpKind.FORWARD and not op.replay:
                self._keeper.learned(op.batch)
        self._after(event)

    def _after(self, event: Computed) -> None:
        keeper = self._keeper
        snapshot = event.op.kind is OpKind.UPDATE and keeper.snapshot_is_due
        if snapshot:
            self._delay_s = self._pace.save_s()
        self._handle(event)
        if snapshot and not self.over and self.worker.phase is Phase.TRAINING:
            keeper.snapshot()
        self._delay_s = 0.0
        if self.after_op is not None and not self.over and not self.worker.unapplied:
            self.after_op()
        if self._report_due and not self.over:
            self._report_due = False
            self.report()
        held, self._held = self._held, []
        for index, message in enumerate(held):
            if self._process.alive and not self.over:
                self._held = held[index + 1 :]
                self._handle(Received(message))

    def _time_to_report(self) -> None:
        if self.over:
            return
        if self._busy:
            self._report_due = True
        else:
            self.report()
        self._process.later(_REPORT_EVERY_S, self._time_to_report, idle=True)

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        process = self._process
        if to == COORDINATOR:
            if isinstance(message, Drained):
                self.report()  # the coordinator adds up at barriers
            process.tell(message)
            return
        parcel = self._world.to_worker(process, process.addresses[to], message)
        if parcel is not None and _reuses_buffers(message):
            self._unsent.setdefault(message.batch, []).append(parcel)

    def _sent(self, batch: int) -> Callable[[], bool]:
        waiting = self._unsent.pop(batch, [])
        return lambda: all(parcel.gone for parcel in waiting)


def _reuses_buffers(message: Message) -> TypeGuard[Activation | Gradient]:
    """Its tensors are used again once its batch is released; those of test batches are not."""
    if isinstance(message, Activation):
        return not message.evaluate
    return isinstance(message, Gradient)
