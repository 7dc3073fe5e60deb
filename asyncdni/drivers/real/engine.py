"""The loop of a worker process: the only place in it where real time passes.

It carries out what `core.Worker` asks for in one round: computes ops with a backend, sends and
receives, saves. Ops run on this thread. The sockets are looked at after an op and before the
schedule chooses the next one, so that it knows of all that has come; but not in the middle of a
batch's own update, which nothing that arrives could change. Rolling snapshots are written there as
well: see `snapshots`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from asyncdni.core.counts import Counts
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
from asyncdni.delays import Slow
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.real.machine import written
from asyncdni.drivers.real.meter import Meter, Trace
from asyncdni.errors import AsyncDNIError, CheckpointError
from asyncdni.messages import (
    COORDINATOR,
    Accused,
    Activation,
    Drained,
    Gradient,
    Lost,
    Message,
    Rejoin,
    Report,
)
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.base import Stage
from asyncdni.stages.executor import Executor, Source
from asyncdni.store.checkpoint import write_state
from asyncdni.store.claims import Claim
from asyncdni.store.weights import write_weights
from asyncdni.wire.beat import PARENT_VARIABLE, exit_process

__all__ = ["SNAPSHOTS", "Engine", "Forsaken", "Signals", "Snapshots", "Told", "Transport"]

# --- snapshots -----------------------------------------------------------------------------------
#
# Rolling snapshots: each worker keeps a recent state of its stage on disk, for its successor.

#: Folder of the run's that they are in.
SNAPSHOTS = "snapshots"

#: From one to the next at least so many times what the last one took: about 1 % of the time.
_SPARSE = 100.0
_NEVER = float("inf")


class Snapshots:
    """When the next one is due, and the writing of it.

    One that can't be written is told once on standard error, and does not end the run as long as
    the folder of the run is there: what is committed stays, and the next one may succeed.
    """

    def __init__(self, folder: str, every_s: float | None) -> None:
        """`folder` of the run; empty, or `every_s` None: nothing is written."""
        self.count = 0
        self.seconds = 0.0  # spent on all of them
        self.due_s = _NEVER  # on the clock of `time.monotonic`
        self._folder = Path(folder, SNAPSHOTS)
        self._every_s = _NEVER if every_s is None or not folder else every_s
        self._complained = False
        if self.wanted:
            self.due_s = time.monotonic() + self._every_s

    @property
    def wanted(self) -> bool:
        return self._every_s < _NEVER

    def write(self, stage: Stage, counts: Counts, claim: Claim | None = None) -> None:
        """Now, on this thread; the stage has applied all that it has accumulated.

        One of a process that has been replaced, by `claim`, is not written. Raises
        `CheckpointError` where the folder of the run is gone.
        """
        began = time.monotonic()
        try:
            state = stage.snapshot()
            write_state(self._folder, state, counts.state(), durable=False, claim=claim)
            self.count += 1
        except CheckpointError as error:
            if not self._folder.parent.is_dir():
                raise
            if not self._complained:
                print(f"asyncdni: no snapshot was written: {error}", file=sys.stderr, flush=True)
            self._complained = True
        ended = time.monotonic()
        self.seconds += ended - began
        self.due_s = ended + max(self._every_s, _SPARSE * (ended - began))

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        return {"snapshots": self.count, "snapshot_s": self.seconds}


# --- forsaken ------------------------------------------------------------------------------------
#
# How a worker comes to an end that no message has ordered: its coordinator is gone, or somebody
# tells this process alone to stop. It keeps what it has learned, and leaves.

#: How long the worker's own thread may take to come to a safe point, to save and to leave.
_GRACE_S = 2.0
#: Signals that come together are one request, as for the coordinator.
_TOGETHER_S = 0.25


class Told(AsyncDNIError):
    """The coordinator ended this worker, or is gone: there is nobody to tell."""


class Forsaken:
    """What the heart calls, in its thread, once there is nobody left to work for.

    The worker's own thread looks at `reason` between two ops. Where it can't, because one op takes
    too long or another library has it, the process ends without it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, reason: str) -> None:
        self.reason = reason
        last_resort = threading.Timer(_GRACE_S, exit_process, (reason,))
        last_resort.daemon = True
        last_resort.start()

    def check(self) -> None:
        """Raises `Told` once there is nobody left."""
        if self.reason is not None:
            raise Told(f"worker stops: {self.reason}")


class Signals:
    """What a worker does about SIGINT, SIGTERM and SIGHUP while its coordinator lives.

    Schedulers, service managers and terminals signal all processes of a job at once. Stopping is
    the coordinator's part: workers that left by themselves would take along what is to be saved.
    So the first signal is not this worker's end. The second one is, as soon as an update is whole;
    the third at once.
    """

    def __init__(self, stage: str, forsaken: Forsaken) -> None:
        self.ended_by: int | None = None  # the signal that was one too many
        self._stage = stage
        self._forsaken = forsaken
        self._heard_s: float | None = None  # the last request

    @contextmanager
    def heard(self) -> Iterator[None]:
        """In the main thread; elsewhere signals are the caller's business."""
        previous: dict[int, Any] = {}
        with contextlib.suppress(ValueError):
            for number in map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        before = self._heard_s
        if before is not None and now - before < _TOGETHER_S:
            return
        self._heard_s = now
        if before is None:
            self._say()
        elif self._forsaken.reason is None:
            self.ended_by = number
            self._forsaken(f"it got signal {number} more than once")
        else:
            os._exit(128 + number)

    def _say(self) -> None:
        """To whoever has started this worker by hand; others can read the coordinator."""
        if os.environ.get(PARENT_VARIABLE):
            return
        text = (
            f"asyncdni: worker {self._stage} goes on until its coordinator stops: stop that one, "
            "or signal this worker again to end it alone\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))


_REPORT_EVERY_S = 0.5
#: Saves under a tag that begins like this are of the whole state.
_CUTS = "checkpoints/"


class Transport(Protocol):
    """What the engine needs of the wire; see `wire`."""

    def send(self, to: str, message: Message) -> Callable[[], bool] | None: ...

    def wait(self, timeout_s: float | None) -> None: ...

    def receive(self, timeout_s: float | None) -> list[Message]: ...

    def lose(self, worker: str) -> None: ...

    def take_accused(self) -> list[tuple[str, str]]: ...

    def counters(self) -> dict[str, int]: ...


class Engine:
    """Drives one worker through one round."""

    def __init__(
        self,
        worker: Worker,
        stage: Stage,
        transport: Transport,
        *,
        exits: Mapping[str, str],
        source: Source | None = None,
        folder: str = "",
        claim: Claim | None = None,
        trace: Trace | None = None,
        slow: Slow | None = None,
        meter: Meter | None = None,
        snapshots: Snapshots | None = None,
        forsaken: Forsaken | None = None,
        inspection: Inspection | None = None,
        shares: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`exits` and `shares`: see `Executor`; `claim`: of this process to the run's `folder`."""
        self.stopped: Stop | None = None
        self.left: list[Message] = []  # what came behind the word that ended the round
        self._worker = worker
        self._stage = stage
        self._transport = transport
        self._source = source
        self._folder = folder
        self._claim = claim
        self._trace = trace
        self._slow = slow
        self._owed_s = 0.0  # sleep that `slow` asks for; below zero after one that was too long
        self._meter = meter or Meter()
        self._snapshots = snapshots
        self._forsaken = forsaken
        self._inspection = inspection
        self._executor = Executor(stage, exits, source, self._meter.agreement, shares)
        self._pending: Compute | None = None
        self._unsent: dict[int, list[Callable[[], bool]]] = {}  # by batch
        self._read: set[int] = set()  # training batches read and not released yet
        self._stored: list[Stored] = []
        self._report_at = time.monotonic() + _REPORT_EVERY_S

    def run(self, early: Iterable[Message] = ()) -> Stop:
        """Until the coordinator says Leave, Abort or Rejoin, or is gone.

        `early` is what has arrived before. Raises what an op or the saving has failed at.
        """
        try:
            self._handle(Woke())  # it greets its neighbours
            self._take(early)
            while self.stopped is None:
                self._turn()
        finally:
            self._meter.pause()
            self._let_go()
        return self.stopped

    def report(self) -> None:
        """Tell the coordinator all counters as of now."""
        self._report_at = time.monotonic() + _REPORT_EVERY_S
        counters = {
            **self._worker.counters(),
            **self._meter.counters(),
            **self._transport.counters(),
            **self._stage.skips(),
            **(self._snapshots.counters() if self._snapshots is not None else {}),
        }
        self._transport.send(COORDINATOR, Report(counters, *self._executor.take_loss()))

    def _turn(self) -> None:
        if self._forsaken is not None and self._forsaken.reason is not None:
            self._leave(self._forsaken.reason)
        elif self._pending is not None:
            self._step(self._pending)
        while self._stored:
            self._handle(self._stored.pop())
        if self._pending is None and self.stopped is None:
            self._wait()
            self._take(self._look())
            deadline = self._worker.deadline()
            if deadline is not None and time.monotonic() >= deadline:
                self._handle(Woke())

    def _step(self, compute: Compute) -> None:
        self._pending = None
        event = self._compute(compute)
        arrived = [] if _in_one_go(compute.op) else self._look()
        if any(type(message) is Rejoin for message in arrived):
            self._handle(event)  # first, so that what has been learned is counted
            self._take(arrived)
        else:
            self._take(arrived)
            self._handle(event)
        if compute.op.kind is OpKind.UPDATE:
            self._snapshot_if_due()

    def _snapshot_if_due(self) -> None:
        snapshots = self._snapshots
        if snapshots is None or self._worker.unapplied or time.monotonic() < snapshots.due_s:
            return
        if self._worker.phase is Phase.TRAINING:
            snapshots.write(self._stage, self._worker.counts, self._claim)

    def _leave(self, reason: str) -> None:
        """Nobody is left to work for: keep what there is, once it is whole."""
        if self._pending is not None and self._worker.unapplied:
            self._step(self._pending)  # in the middle of an update
            return
        if self._snapshots is not None and self._snapshots.wanted and not self._worker.unapplied:
            self._snapshots.write(self._stage, self._worker.counts, self._claim)
        self.stopped = Stop(failed=reason)

    def _let_go(self) -> None:
        """Of buffers of the data that no later round will release."""
        if self._source is not None:
            for batch in self._read:
                self._source.release(batch, self._sent(batch))
            self._read.clear()

    def _wait(self) -> None:
        began = time.perf_counter()
        self._transport.wait(_REPORT_EVERY_S)
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
        for worker, text in self._transport.take_accused():
            accused = self._inspection.accuse(worker, text) if self._inspection else None
            if accused is not None:
                self._accuse(accused)
        return messages

    def _take(self, messages: Iterable[Message]) -> None:
        """Hand the worker what has arrived."""
        for message in messages:
            if self.stopped is not None:
                self.left.append(message)
            elif not self._unfit(message):
                self._handle(Received(message))
                if type(message) is Lost:
                    self._transport.lose(message.worker)
        if time.monotonic() >= self._report_at:
            self.report()

    def _unfit(self, message: Message) -> bool:
        """Whether a neighbour's tensors can't be used; it is accused then."""
        if self._inspection is None:
            return False
        accused = self._inspection.accusation(message)
        return accused is not None and self._accuse(accused)

    def _accuse(self, accused: Accused) -> bool:
        """From now on this neighbour is as good as dead."""
        self._transport.send(COORDINATOR, accused)
        self._handle(Received(Lost(accused.worker)))
        self._transport.lose(accused.worker)
        return True

    def _handle(self, event: Event) -> None:
        for action in self._worker.handle(event, time.monotonic()):
            self._carry_out(action)
        if self._worker.phase is Phase.TRAINING:
            self._meter.resume()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Compute():
                self._pending = action
            case Send(to=to, message=message):
                assert isinstance(to, str)
                self._send(to, message)
            case Release(batch=batch):
                self._release(batch)
            case Save(tag=tag):
                files = written(lambda: self._save(tag))
                self._stored.append(Stored(tag, files))
            case Stop():
                self.stopped = action
            case _:
                raise TypeError(f"an engine can't carry out {action!r}")

    def _save(self, tag: str) -> dict[str, str]:
        """Weights, or for a cut all state; the digests of the files by declared stage."""
        folder = Path(self._folder, tag)
        if tag.startswith(_CUTS):
            counts = self._worker.counts.state()
            state = self._stage.snapshot()
            return write_state(folder, state, counts, durable=True, claim=self._claim)
        shared = self._claim is not None and self._claim.sees_coordinator
        return write_weights(folder, self._stage.state(), self._claim, shared=shared)

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        if isinstance(message, Drained):
            self._meter.pause()
            self.report()  # the coordinator adds up at each barrier
        began = time.perf_counter()
        sent = self._transport.send(to, message)
        ended = time.perf_counter()
        self._meter.moved(ended - began)
        if self._trace is not None:
            self._trace.sent(to, message, began, ended)
        if sent is not None and isinstance(message, Activation | Gradient):
            self._note_unsent(message, sent)

    def _note_unsent(self, message: Activation | Gradient, sent: Callable[[], bool]) -> None:
        # Tensors are reused once their batch is released; those of test batches are not.
        if not (isinstance(message, Activation) and message.evaluate):
            self._unsent.setdefault(message.batch, []).append(sent)

    def _release(self, batch: int) -> None:
        self._read.discard(batch)
        self._executor.release(batch, self._sent(batch))

    def _sent(self, batch: int) -> Callable[[], bool]:
        """Whether all that the batch's arrays are in has left by now."""
        waiting = self._unsent.pop(batch, [])
        return lambda: all([one() for one in waiting])

    # --- computing -------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> Computed:
        op = compute.op
        if op.kind is OpKind.READ and not op.evaluate:
            self._read.add(op.batch)
        if self._worker.phase is not Phase.TRAINING:
            return self._executor.compute(compute)
        began, cpu_began = time.perf_counter(), time.thread_time()
        event = self._executor.compute(compute)
        ended = time.perf_counter()
        self._meter.op(op, ended - began, time.thread_time() - cpu_began)
        if op.kind is OpKind.FORWARD and not op.replay:
            self._meter.forwarded(event.samples, ended)
        if self._trace is not None:
            self._trace.add(op, began, ended)
        if self._slow is not None:
            self._sleep_after(op, ended - began, self._slow)
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


def _in_one_go(op: Op) -> bool:
    """What follows is settled: the batch's own update."""
    return op.kind is OpKind.PREDICT or (op.kind is OpKind.BACKWARD and op.learn and not op.last)
