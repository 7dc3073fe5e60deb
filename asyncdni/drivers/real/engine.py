"""The loop of a worker process: the only place in it where real time passes.

```
             receive                     handle                    carry out
 transport ──────────► Received ──┐                   ┌──────────► transport
                                  ├──► core.Process ──┤
 stage, disk, clock ─► Computed ──┘                   └──────────► stage, disk
```

What is to be done `core.process.Process` decides; here it is done, and measured. Ops run on this
thread. The sockets are looked at after an op and before its end is told, so that the schedule knows
of all that has come when it chooses the next one; but not behind an op that is `is_settled`.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncdni import logs
from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Adapt,
    Broke,
    Compute,
    Computed,
    CoordinatorGone,
    Discard,
    Event,
    Exit,
    Join,
    Joined,
    KeepPart,
    Lose,
    ParentGone,
    PartKept,
    PartSent,
    Prepare,
    Prepared,
    Received,
    Redeliver,
    Release,
    Report,
    Restore,
    Restored,
    Save,
    Say,
    SayHello,
    Send,
    SendPart,
    Snapshot,
    SnapshotTaken,
    Stored,
    Unusable,
    Woke,
)
from asyncdni.core.ledger import SNAPSHOTS
from asyncdni.core.process import Process, State, is_settled
from asyncdni.core.slices import EVALUATION, SLOWED, Slices
from asyncdni.delays import Slow
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.real.machine import log_place, written
from asyncdni.drivers.real.meter import Meter, Trace
from asyncdni.encodings import Compressor
from asyncdni.errors import AsyncDNIError, CheckpointError
from asyncdni.messages import COORDINATOR, Message, Steer
from asyncdni.messages import Report as ReportMessage
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.base import Stage
from asyncdni.stages.executor import Executor
from asyncdni.store.checkpoint import newest_slots, write_state
from asyncdni.store.claims import Claim
from asyncdni.store.weights import unfinished, write_weights
from asyncdni.wire.beat import parent_lives

__all__ = ["Engine", "Session", "Snapshots", "Tools", "Transport", "Watch"]

#: How long to wait for something to arrive, in a round and between rounds.
_WAIT_S, _LOOK_EVERY_S = 0.5, 0.25


class Snapshots:
    """Writes rolling snapshots: a recent state of the stage on disk, for a successor."""

    def __init__(self, folder: str) -> None:
        """`folder` of the run."""
        self.count = 0
        self.seconds = 0.0  # spent on all of them
        self._folder = Path(folder, SNAPSHOTS)
        self._stages: list[str] = []  # of the last one

    def write(self, stage: Stage, counts: Counts, claim: Claim | None = None) -> SnapshotTaken:
        """Write a snapshot now, on this thread; the stage has applied all that it has accumulated.

        A snapshot of a process that has been replaced, by `claim`, is not written.
        """
        began = time.monotonic()
        self._stages = []
        taken = SnapshotTaken(0.0)
        try:
            state = stage.snapshot(copied=False)  # written before the next op
            write_state(self._folder, state, counts.state(), durable=False, claim=claim)
            self._stages = list(state)
            self.count += 1
        except CheckpointError as error:
            taken.error, taken.folder_gone = error, not self._folder.parent.is_dir()
        taken.took_s = time.monotonic() - began
        self.seconds += taken.took_s
        return taken

    def newest(self) -> list[str]:
        """The files of the last snapshot, in the folder of the run; none if it was not written."""
        return [f"{SNAPSHOTS}/{path.name}" for path in newest_slots(self._folder, self._stages)]

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        return {"snapshots": self.count, "snapshot_s": self.seconds}


@dataclass
class Tools:
    """What a worker process computes, saves and measures with in one round."""

    stage: Stage
    executor: Executor
    snapshots: Snapshots
    meter: Meter
    folder: str = ""  # of the run
    away: bool = False  # the coordinator has to be sent what is written there
    claim: Claim | None = None  # of this process to that folder
    inspection: Inspection | None = None
    compressor: Compressor | None = None
    trace: Trace | None = None
    slow: Slow | None = None


class Transport(Protocol):
    """What the engine needs of the wire; see `wire`."""

    def send(self, to: str, message: Message) -> Callable[[], bool] | None: ...

    def wait(self, timeout_s: float | None) -> None: ...

    def receive(self, timeout_s: float | None) -> list[Message]: ...

    def lose(self, worker: str) -> None: ...

    def take_accused(self) -> list[tuple[str, str]]: ...

    def counters(self) -> dict[str, int]: ...


class Session(Protocol):
    """What the engine needs of `drivers.real.process.Session`."""

    def say_hello(self, action: SayHello) -> None: ...

    def prepare(self, action: Prepare) -> Prepared: ...

    def restore(self, action: Restore) -> Restored: ...

    def join(self, action: Join) -> tuple[Joined, Tools]: ...

    def slow_down(self, steer: Steer) -> Slow | None: ...

    def send_part(self, action: SendPart) -> PartSent: ...

    def keep_part(self, action: KeepPart) -> PartKept: ...


class Watch(Protocol):
    """`drivers.real.process.Watchdog`."""

    reason: str | None


class Engine:
    """Drives one `Process` from its start to its end."""

    def __init__(
        self, process: Process, transport: Transport, session: Session, watchdog: Watch
    ) -> None:
        self.end: Exit | None = None
        self._process = process
        self._transport = transport
        self._session = session
        self._watchdog = watchdog
        self._tools: Tools | None = None
        self._meter = Meter()
        self._trace: Trace | None = None
        self._slow: Slow | None = None
        self._shown = 0  # the most ops of a slice that are shown
        self._slices: Slices | None = None  # what is shown
        self._owed_s = 0.0  # sleep that `slow` asks for; below zero after one that was too long
        self._inspection: Inspection | None = None
        self._pending: Compute | Restore | None = None
        self._answers: deque[Event] = deque()  # to actions that have been carried out
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Send: self._send,
            Compute: self._begin,
            Release: self._release,
            Discard: self._discard,
            Report: self._report,
            Save: self._save,
            Snapshot: self._snapshot,
            Say: self._say,
            SayHello: session.say_hello,
            Prepare: lambda action: self._answers.append(session.prepare(action)),
            Restore: self._begin,
            Join: self._join,
            Redeliver: lambda action: self._take(action.messages),
            Lose: lambda action: transport.lose(action.worker),
            Adapt: lambda action: self._adapt(action.steer),
            SendPart: lambda action: self._answers.append(session.send_part(action)),
            KeepPart: lambda action: self._answers.append(session.keep_part(action)),
            Exit: self._exit,
        }

    def equip(self, tools: Tools) -> None:
        """Take the tools of a round that begins."""
        self._tools = tools
        self._meter, self._trace, self._slow = tools.meter, tools.trace, tools.slow
        self._inspection = tools.inspection

    def run(self) -> Exit:
        """Drive the process from its Hello until it is to end."""
        self._attempt(lambda: self._carry_out(self._process.start(time.monotonic())))
        return self.drive()

    def drive(self) -> Exit:
        """Drive the process until it is to end."""
        while self.end is None:
            self._attempt(self._turn)
        return self.end

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (Exception, KeyboardInterrupt) as error:
            known = isinstance(error, AsyncDNIError | KeyboardInterrupt | MemoryError)
            trace = "" if known else traceback.format_exc()
            self._pending = None
            self._answers.clear()
            try:
                self._handle(Broke(error, trace, log_place() if trace else ""))
            except AsyncDNIError:  # nobody takes the word: then the first error counts
                self.end = self.end or Exit(str(error), error, trace)
            if self._process.state is State.ENDED and self.end is None:
                self.end = Exit(str(error), error, trace)

    def _turn(self) -> None:
        reason = self._watchdog.reason
        if reason is not None:
            self._handle(CoordinatorGone(reason))
        if self.end is not None:
            return
        if self._pending is not None:
            self._step(self._pending)
        else:
            self._wait()
            self._take(self._look())

    def _step(self, pending: Compute | Restore) -> None:
        """Do what is under way, and look at what has arrived meanwhile, before its end is told."""
        self._pending = None
        if type(pending) is Compute:
            event: Event = self._compute(pending)
            if not is_settled(pending.op):
                self._take(self._look())
        else:
            event = self._session.restore(pending)  # type: ignore[arg-type]
            self._take(self._look())
        self._handle(event)

    def _wait(self) -> None:
        """Wait for something to arrive, or to be due."""
        process = self._process
        if process.state is State.HELLO and parent_lives() is False:
            self._handle(ParentGone())
            if self.end is not None:
                return
        began = time.perf_counter()
        due_s = process.deadline()
        wait_s = _WAIT_S if process.state is State.ROUND else _LOOK_EVERY_S
        if due_s is not None:
            wait_s = min(wait_s, max(0.0, due_s - time.monotonic()))
        self._transport.wait(wait_s)
        ended = time.perf_counter()
        self._meter.waited(ended - began)
        if self._trace is not None:
            self._trace.waited(began, ended)

    def _look(self) -> list[Message]:
        """What has arrived; it does not wait."""
        began = time.perf_counter()
        messages = self._transport.receive(0.0)
        ended = time.perf_counter()
        self._meter.moved(ended - began)
        if self._trace is not None:
            for message in messages:
                self._trace.received(message, ended)
        if self._inspection is not None:
            for worker, text in self._transport.take_accused():
                accused = self._inspection.accuse(worker, text)
                if accused is not None:
                    self._handle(Unusable(accused))
        return messages

    def _take(self, messages: Iterable[Message]) -> None:
        """Hand over what has arrived, and what time it is where that is due."""
        for message in messages:
            inspection = self._inspection
            accused = inspection.accusation(message) if inspection is not None else None
            self._handle(Received(message) if accused is None else Unusable(accused))
        due_s = self._process.deadline()
        if due_s is not None and time.monotonic() >= due_s:
            self._handle(Woke())

    def _handle(self, event: Event) -> None:
        self._carry_out(self._process.handle(event, time.monotonic()))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        if self._process.training:
            self._meter.resume()
        else:
            self._meter.pause()
        do = self._do
        for action in actions:
            do[type(action)](action)
        while self._answers:
            self._handle(self._answers.popleft())

    # --- actions ---------------------------------------------------------------------------------

    def _begin(self, action: Compute | Restore) -> None:
        self._pending = action
        if type(action) is Restore:
            self._inspection = None  # it knows the neighbours of one round

    def _join(self, action: Join) -> None:
        joined, tools = self._session.join(action)
        self.equip(tools)
        self._answers.append(joined)

    def _send(self, send: Send) -> None:
        began = time.perf_counter()
        message = send.message
        if self._tools is not None and self._tools.compressor is not None:
            message = self._tools.compressor.compress(send.to, message)  # type: ignore[arg-type]
        left = self._transport.send(send.to, message)  # type: ignore[arg-type]
        ended = time.perf_counter()
        self._meter.moved(ended - began)
        if self._trace is not None:
            self._trace.sent(send.to, message, began, ended)  # type: ignore[arg-type]
        if left is not None:
            self._process.buffers.sent(send.message, left)

    def _release(self, release: Release) -> None:
        assert self._tools is not None
        free = self._process.buffers.free(release.batch)
        self._tools.executor.release(release.batch, free)

    def _discard(self, discard: Discard) -> None:
        assert self._tools is not None
        self._tools.executor.discard(discard.copy)

    def _report(self, report: Report) -> None:
        tools = self._tools
        assert tools is not None
        counters = {
            **report.counters,
            **tools.meter.counters(),
            **self._transport.counters(),
            **tools.stage.skips(),
            **tools.stage.readout(),
            **tools.snapshots.counters(),
        }
        slices = self._slices.take(time.perf_counter()) if self._slices is not None else []
        loss = tools.executor.take_loss()
        self._transport.send(COORDINATOR, ReportMessage(counters, *loss, slices))

    def _adapt(self, steer: Steer) -> None:
        if steer.show != self._shown:
            self._shown = steer.show
            # Hosts share no other clock than that of the day, which is as exact as they keep it.
            zero_s = time.time() - time.perf_counter()
            self._slices = Slices(steer.show, zero_s) if steer.show else None
        self._slow = self._session.slow_down(steer)

    def _save(self, save: Save) -> None:
        files = written(lambda: self._write(save))
        place = save.tag if save.whole else unfinished(Path(save.tag)).name
        paths = [f"{place}/{stage}.safetensors" for stage in files] if self._is_away else []
        logs.own().debug("saved %s", save.tag)
        self._answers.append(Stored(save.tag, files, paths))

    def _write(self, save: Save) -> dict[str, str]:
        """Write the weights or all state, and return the digests of the files by declared stage."""
        tools = self._tools
        assert tools is not None
        folder, claim = Path(tools.folder, save.tag), tools.claim
        if save.whole:
            counts = self._process.counts.state()
            state = tools.stage.snapshot(copied=False)
            return write_state(folder, state, counts, durable=True, claim=claim)
        return write_weights(folder, tools.stage.state(save.copy), claim)

    def _snapshot(self, snapshot: Snapshot) -> None:
        tools = self._tools
        assert tools is not None
        taken = tools.snapshots.write(tools.stage, self._process.counts, tools.claim)
        taken.paths = tools.snapshots.newest() if self._is_away else []
        self._answers.append(taken)

    @property
    def _is_away(self) -> bool:
        return self._tools is not None and self._tools.away

    def _say(self, say: Say) -> None:
        logs.own().warning(say.text)

    def _exit(self, end: Exit) -> None:
        if self._trace is not None and end.error is None:
            self._trace.write()
        self.end = end

    # --- computing -------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> Computed:
        assert self._tools is not None
        op, executor = compute.op, self._tools.executor
        if not self._process.training:
            return self._evaluate(compute, executor)
        cpu_began = time.thread_time() if self._meter.wants_cpu(op) else None
        began = time.perf_counter()
        event = executor.compute(compute)
        ended = time.perf_counter()
        cpu_s = None if cpu_began is None else time.thread_time() - cpu_began
        self._meter.op(op, ended - began, cpu_s)
        if op.kind is OpKind.FORWARD and not op.replay:
            self._meter.forwarded(event.samples, ended)
        if self._trace is not None:
            self._trace.add(op, began, ended)
        if self._slices is not None:
            self._slices.add(op.letter, op.batch, began, ended)
        if self._slow is not None:
            self._sleep_after(op, ended - began, self._slow)
        return event

    def _evaluate(self, compute: Compute, executor: Executor) -> Computed:
        """Carry out an op of an evaluation, which is not measured."""
        began = time.perf_counter()
        event = executor.compute(compute)
        if self._slices is not None:
            self._slices.add(EVALUATION, compute.op.batch, began, time.perf_counter())
        return event

    def _sleep_after(self, op: Op, wall_s: float, slow: Slow) -> None:
        """Before what the op gave is sent: for the others it has taken so long."""
        # A sleep is always somewhat too long, by as much as a short op takes; so keep accounts.
        self._owed_s += slow.after(op, wall_s)
        if self._owed_s <= 0.0:
            return
        began = time.perf_counter()
        time.sleep(self._owed_s)
        ended = time.perf_counter()
        self._owed_s -= ended - began
        self._meter.slowed(ended - began)
        if self._trace is not None:
            self._trace.slowed(began, ended)
        if self._slices is not None:
            self._slices.add(SLOWED, op.batch, began, ended)
