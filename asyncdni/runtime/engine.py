"""The loop of a worker process: the only place in it where real time passes.

It carries out what `core.Worker` asks for: computes ops with a backend, sends and receives, saves.
Ops run on this thread. The sockets are looked at after an op and before the schedule chooses the
next one, so that it knows of all that has come; but not in the middle of a batch's own update,
which nothing that arrives could change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from asyncdni.backends.base import Stage
from asyncdni.backends.executor import Executor, Source
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
)
from asyncdni.core.worker import Phase, Worker
from asyncdni.delays import Slow
from asyncdni.messages import COORDINATOR, Activation, Drained, Gradient, Message, Report
from asyncdni.runtime.meter import Meter
from asyncdni.runtime.trace import Trace
from asyncdni.schedules.base import Op, OpKind
from asyncdni.weights import save_stages

__all__ = ["Engine", "Transport"]

_REPORT_EVERY_S = 0.5


class Transport(Protocol):
    """What the engine needs of the wire; see `transports.zeromq`."""

    def send(self, to: str, message: Message) -> Callable[[], bool] | None: ...

    def wait(self, timeout_s: float | None) -> None: ...

    def receive(self, timeout_s: float | None) -> list[Message]: ...

    def counters(self) -> dict[str, int]: ...


class Engine:
    """Drives one worker until the coordinator lets it go."""

    def __init__(
        self,
        worker: Worker,
        stage: Stage,
        transport: Transport,
        *,
        exits: Mapping[str, str],
        source: Source | None = None,
        folder: str = "",
        trace: Trace | None = None,
        slow: Slow | None = None,
    ) -> None:
        """`exits` maps each producing worker to the declared stage whose activation it sends."""
        self.stopped: Stop | None = None
        self._worker = worker
        self._stage = stage
        self._transport = transport
        self._folder = folder
        self._trace = trace
        self._slow = slow
        self._owed_s = 0.0  # sleep that `slow` asks for; below zero after one that was too long
        self._meter = Meter(bootstrapped=getattr(worker.schedule, "hears_synthetic", False))
        self._executor = Executor(stage, exits, source, self._meter.agreement)
        self._pending: Compute | None = None
        self._unsent: dict[int, list[Callable[[], bool]]] = {}  # by batch
        self._stored: list[Stored] = []
        self._report_at = time.monotonic() + _REPORT_EVERY_S

    def run(self, early: Iterable[Message] = ()) -> Stop:
        """Until the coordinator says Leave or Abort; `early` is what has arrived before."""
        for message in early:
            self._handle(Received(message))
        while self.stopped is None:
            if self._pending is not None:
                compute, self._pending = self._pending, None
                event = self._compute(compute)
                if not _in_one_go(compute.op):
                    self._look()
                self._handle(event)
            while self._stored:
                self._handle(self._stored.pop())
            if self._pending is None and self.stopped is None:
                self._wait()
                self._look()
        if self._trace is not None:
            self._trace.write()
        return self.stopped

    def _wait(self) -> None:
        began = time.perf_counter()
        self._transport.wait(_REPORT_EVERY_S)
        ended = time.perf_counter()
        self._meter.waited(ended - began)
        if self._trace is not None:
            self._trace.waited(began, ended)

    def _look(self) -> None:
        """Hand the worker what has arrived; it does not wait."""
        began = time.perf_counter()
        messages = self._transport.receive(0.0)
        ended = time.perf_counter()
        self._meter.moved(ended - began)
        if self._trace is not None:
            for message in messages:
                self._trace.received(message, ended)
        for message in messages:
            self._handle(Received(message))
        if time.monotonic() >= self._report_at:
            self._report()

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
                files = save_stages(Path(self._folder, tag), self._stage.state())
                self._stored.append(Stored(tag, files))
            case Stop():
                self.stopped = action
            case _:
                raise TypeError(f"an engine can't carry out {action!r}")

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        if isinstance(message, Drained):
            self._meter.pause()
            self._report()  # the coordinator adds up at each barrier
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
        waiting = self._unsent.pop(batch, [])

        def sent() -> bool:
            return all([one() for one in waiting])

        self._executor.release(batch, sent)

    def _report(self) -> None:
        self._report_at = time.monotonic() + _REPORT_EVERY_S
        counters = {
            **self._worker.counters(),
            **self._meter.counters(),
            **self._transport.counters(),
        }
        self._transport.send(COORDINATOR, Report(counters, *self._executor.take_loss()))

    # --- computing -------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> Computed:
        op = compute.op
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
