"""A worker process in virtual time: joins, computes, sends, beats, leaves, as the real one does.

It has one thread, like the real one: while an op takes its time, messages are received, but nothing
else is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeGuard

from asyncdni.backends.base import Array, Stage
from asyncdni.build import make_worker
from asyncdni.conditions import slow_of
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
from asyncdni.core.worker import Phase
from asyncdni.errors import AsyncDNIError
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Abort,
    Activation,
    Beat,
    Connect,
    Drained,
    Failed,
    Gradient,
    Hello,
    Message,
    Ready,
    Refused,
    Report,
    Welcome,
)
from asyncdni.plan import Group
from asyncdni.simulator.conditions import Pace
from asyncdni.simulator.wires import Parcel
from asyncdni.simulator.world import Alarm, World
from asyncdni.weights import save_stages

__all__ = ["Executor", "TimedOp", "WorkerProcess"]

#: (letter, batch, start, end): seconds of virtual time.
TimedOp = tuple[str, int, float, float]

_BEATS_PER_SILENCE = 3
#: How long a worker waits for a coordinator that does not answer: the default of its command line.
_JOIN_TIMEOUT_S = 30.0


class Executor(Protocol):
    """`backends.executor.Executor`, or one without arithmetic."""

    def compute(self, compute: Compute) -> Computed: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...


class WorkerProcess:
    """Drives one `Worker`. `exited(code)` is called once, when the process has ended."""

    def __init__(
        self,
        world: World,
        group: Group,
        executor: Executor,
        exited: Callable[[int], None],
        *,
        stage: Stage | None = None,
        folder: Path | None = None,
        process: int = 1,
    ) -> None:
        """`stage`: whose weights are saved, if there are any; `process`: which one of this name."""
        design = world.design
        limits = design.experiment.limits
        names = tuple(node.name for node in group.members)
        self.name = group.name
        self.peer = f"{group.name}#{process}".encode()
        self.alive = True
        self.ops: list[TimedOp] = []  # of training
        self.stage = stage
        self.worker = make_worker(design, group)
        self._world = world
        self._index = group.index
        self._executor = executor
        self._exited = exited
        self._folder = folder
        slow = slow_of(design.experiment, design.plan, group.name, world.seed)
        self._pace = Pace(world.costs, group.name, names, world.seed, slow)
        self._beat_s = limits.silence_s / _BEATS_PER_SILENCE
        self._incarnation = 0
        self._welcome = False
        self._connected = False
        self._early: list[Message] = []
        self._unsent: dict[int, list[Parcel]] = {}  # by batch
        self._alarm = Alarm(world.agenda, self.worker, partial(self._handle, Woke()))

    def start(self) -> None:
        """The process begins."""
        self._later(self._pace.startup_s(), self._hello)

    def receive(self, message: Message) -> None:
        """A message has arrived."""
        if not self.alive:
            return
        if self._connected:
            self._handle(Received(message))
        else:
            self._join(message)

    # --- joining and leaving ---------------------------------------------------------------------

    def _hello(self) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            stage=self.name,
            address=f"virtual://{self.name}",
            pid=self._index,
            host="simulator",
        )
        self._tell(hello)
        self._beat()
        self._later(_JOIN_TIMEOUT_S, self._give_up)

    def _join(self, message: Message) -> None:
        match message:
            case Welcome(incarnation=incarnation):
                self._incarnation = incarnation
                self._welcome = True
            case Connect(incarnations=incarnations):
                self._connected = True
                self.worker.joined(self._incarnation, incarnations)
                self._tell(Ready(0))
                early, self._early = self._early, []
                for one in early:
                    self.receive(one)
            case Refused() | Abort():
                self._exit(1)
            case _:
                self._early.append(message)

    def _give_up(self) -> None:
        """No coordinator has answered; its loop may have been over already."""
        if not self._welcome:
            self._exit(1)

    def _beat(self) -> None:
        self._tell(Beat())
        self._world.agenda.after(self._beat_s, partial(self._if_alive, self._beat), idle=True)

    def _exit(self, code: int) -> None:
        self.alive = False
        self._exited(code)

    def _fail(self, error: AsyncDNIError) -> None:
        self._tell(Failed(type(error).__name__, str(error), ""))
        self._exit(1)

    # --- events and actions ----------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if not self.alive:
            return
        try:
            actions = self._world.handle(self.name, self.worker, event)
        except AsyncDNIError as error:
            self._fail(error)
            return
        for action in actions:
            self._carry_out(action)
        self._alarm.reset()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Compute(op=op):
                training = self.worker.phase is Phase.TRAINING
                began = self._world.agenda.now
                self._later(self._pace.op_s(op), partial(self._computed, action, began, training))
            case Send(to=to, message=message):
                assert isinstance(to, str)
                self._send(to, message)
            case Release(batch=batch):
                waiting = self._unsent.pop(batch, [])
                self._executor.release(batch, lambda: all(parcel.gone for parcel in waiting))
            case Save(tag=tag):
                self._later(self._pace.save_s(), partial(self._save, tag))
            case Stop(failed=failed):
                self._exit(1 if failed else 0)
            case _:
                raise TypeError(f"a worker's driver can't carry out {action!r}")

    def _computed(self, compute: Compute, began: float, training: bool) -> None:
        op = compute.op
        try:
            event = self._executor.compute(compute)
        except AsyncDNIError as error:
            self._fail(error)
            return
        if training:
            self.ops.append((op.letter, op.batch, began, self._world.agenda.now))
        self._handle(event)

    def _save(self, tag: str) -> None:
        files = dict[str, str]()
        if self._folder is not None and self.stage is not None:
            files = save_stages(self._folder / tag, self.state())
        self._handle(Stored(tag, files))

    def state(self) -> dict[str, dict[str, Array]]:
        """Weights by declared stage; none without arithmetic."""
        return self.stage.state() if self.stage is not None else {}

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        if to == COORDINATOR:
            if isinstance(message, Drained):
                self._tell(Report(self.worker.counters()))  # the coordinator adds up at barriers
            self._tell(message)
            return
        parcel = self._world.to_worker(self.name, to, message)
        if parcel is not None and _reuses_buffers(message):
            self._unsent.setdefault(message.batch, []).append(parcel)

    def _tell(self, message: Message) -> None:
        self._world.to_coordinator(self.name, self.peer, message)

    # --- time ------------------------------------------------------------------------------------

    def _later(self, delay_s: float, what: Callable[[], None]) -> None:
        self._world.agenda.after(delay_s, partial(self._if_alive, what))

    def _if_alive(self, what: Callable[[], None]) -> None:
        if self.alive:
            what()


def _reuses_buffers(message: Message) -> TypeGuard[Activation | Gradient]:
    """Its tensors are used again once its batch is released; those of test batches are not."""
    if isinstance(message, Activation):
        return not message.evaluate
    return isinstance(message, Gradient)
