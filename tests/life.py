"""The life of one worker process, driven by hand: events in, actions out, checked after each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Event,
    Join,
    Joined,
    Prepare,
    Prepared,
    Received,
    Restore,
    Restored,
    SayHello,
)
from asyncdni.core.process import Process, State
from asyncdni.core.worker import Worker
from asyncdni.delays import Slow
from asyncdni.drivers.real.engine import Engine, Snapshots, Tools, Transport
from asyncdni.drivers.real.meter import Meter
from asyncdni.drivers.real.process import Watchdog
from asyncdni.messages import Connect, Message, Welcome
from asyncdni.stages.executor import Executor

WELCOME = Welcome("a", 1, {}, {}, "folder", "initial", term=7, cut="checkpoints/000002")


def connect(incarnation: int = 1) -> Connect:
    return Connect(incarnation, {"b": "ipc://b"}, {"b": 1})


class Life:
    """A process whose worker in each round is `make(counts)`."""

    def __init__(self, make: Any, *, check: bool = True, now: float = 0.0, **options: Any) -> None:
        self.now = now
        self.process = Process("a", make, now, **options)
        self.last: list[Action] = []  # what it has asked for last
        self._check = check

    def __call__(self, event: Event | Message) -> list[Action]:
        if isinstance(event, Message):
            event = Received(event)
        self.last = self.process.handle(event, self.now)
        if self._check:
            self.process.check()
        return self.last

    def built(self, **prepared: Any) -> Life:
        """Let in, and its stage is built."""
        self.process.start(self.now)
        for event in (Received(WELCOME), Prepared(**prepared), Restored(5, {})):
            self(event)
        assert self.process.state is State.BUILT
        return self

    def joined(self, **prepared: Any) -> Life:
        """In its first round."""
        self.built(**prepared)
        self(connect())
        self(Joined())
        assert self.process.state is State.ROUND
        return self


class Rooms:
    """Stands for a session. After so many restorations the coordinator is gone."""

    def __init__(self, watchdog: Watchdog, restorations: int) -> None:
        self.restored: list[Restore] = []
        self._watchdog = watchdog
        self._restorations = restorations

    def say_hello(self, action: SayHello) -> None:
        raise AssertionError

    def prepare(self, action: Prepare) -> Prepared:
        raise AssertionError(action)

    def join(self, action: Join) -> tuple[Joined, Tools]:
        raise AssertionError(action)

    def restore(self, action: Restore) -> Restored:
        self.restored.append(action)
        if len(self.restored) == self._restorations:
            self._watchdog.reason = "there is another round"
        return Restored(5, None)


def drive(
    machine: Any,
    wire: Transport,
    early: Sequence[Message] = (),
    *,
    stage: Any,
    source: Any = None,
    folder: str = "",
    gone: str | None = None,
    inspection: Any = None,
    slow: Slow | None = None,
    snapshots: Snapshots | None = None,
    restorations: int = 1,
    now: float = 0.0,
    **prepared: Any,
) -> Engine:
    """An engine that has driven a process with this machine through a round.

    `gone`: its coordinator is, from the beginning."""

    def make(counts: Counts) -> Worker:
        if hasattr(machine, "counts"):
            counts.updates = machine.counts.updates
        machine.counts = counts
        return cast(Worker, machine)

    life = Life(make, check=False, now=now).built(**prepared)
    life(connect())
    watchdog = Watchdog()
    watchdog.reason = gone
    engine = Engine(life.process, wire, Rooms(watchdog, restorations), watchdog)
    meter = Meter()
    executor = Executor(stage, {}, source, meter.agreement)
    tools = Tools(stage, executor, snapshots or Snapshots(folder), meter, folder=folder)
    tools.inspection, tools.slow = inspection, slow
    engine.equip(tools)
    engine._handle(Joined())
    engine._take(early)
    engine.drive()
    return engine
