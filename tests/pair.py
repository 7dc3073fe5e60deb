"""Two or more machines back to back: no network, no clock, no arrays.

What a worker sends is there at once. Time is a column of a timeline: every op takes one, reading
data none. At each end of a column the ops are finished from the last stage to the first, so that
whatever was sent is there before anyone chooses what to do next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Action,
    Commit,
    Compute,
    Computed,
    Event,
    Exited,
    Launch,
    Machine,
    Received,
    Release,
    Save,
    Send,
    Stop,
    Stored,
    Woke,
)
from asyncdni.core.members import Phase, Roster
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    PROTOCOL_VERSION,
    Accused,
    Built,
    Connect,
    Hello,
    Message,
    Rejoin,
    Resume,
    Start,
    Welcome,
)
from asyncdni.schedules.base import Op, OpKind, Schedule
from asyncdni.stages.base import Score

Sent = tuple[str, str, Message]
_DEAD = "!"  # behind the peer of a process that has died
_NEXT = "'"  # in its place behind that of the next one
_SOON_S = 100.0


def chain(
    count: int,
    *,
    barriers: Sequence[int] = (3,),
    test_batches: int = 0,
    feeds: Sequence[str] = (),
) -> list[Position]:
    """Positions of stages in a row; those in `feeds` read data too."""
    names = [f"stage {index}" for index in range(count)]
    return [
        Position(
            name=name,
            inputs=((names[index - 1],) if index else ())
            + ((DATA,) if not index or name in feeds else ()),
            consumers=tuple(names[index + 1 : index + 2]),
            host=names[0],
            feeds=() if index else tuple(feeds),
            barriers=() if index else tuple(barriers),
            test_batches=0 if index else test_batches,
        )
        for index, name in enumerate(names)
    ]


def number(position: Position) -> int:
    """Of a stage in its chain, from 0 for the host."""
    return int(position.name.removeprefix("stage "))


def fed_chain(count: int, **options: Any) -> list[Position]:
    """A chain whose stages predict their inputs from the data."""
    first, *others = chain(count, **options)
    feeds = tuple(position.name for position in others)
    fed = [replace(p, inputs=(*p.inputs, DATA), synthetic_inputs=True) for p in others]
    ahead = [replace(p, consumers_ahead=bool(p.consumers)) for p in (first, *fed)]
    return [replace(ahead[0], train_feeds=feeds), *ahead[1:]]


def roster_of(positions: Sequence[Position], **changes: object) -> Roster:
    """What the coordinator of these workers knows."""
    names = tuple(position.name for position in positions)
    values: dict[str, object] = {
        "workers": names,
        "members": {name: (name,) for name in names},
        "neighbours": {name: tuple(other for other in names if other != name) for name in names},
        "losses": tuple(position.name for position in positions if not position.consumers),
        "experiment": {},
        "meta": {},
        "folder": "runs/1",
        **changes,
    }
    return Roster(**values)  # type: ignore[arg-type]


class Bench:
    """Workers, and on request their coordinator, with everything that they say and do."""

    def __init__(
        self,
        positions: Sequence[Position],
        schedule: Schedule | Callable[[Position], Worker],
        *,
        window: int | str = "auto",
        samples: Callable[[int], int] = lambda batch: 4,
        withheld: Callable[[str, str, Message], bool] = lambda sender, to, message: False,
        coordinator: Coordinator | None = None,
    ) -> None:
        """`schedule`: that of all, or what makes each worker; `withheld` says which messages never
        arrive."""
        make = schedule if callable(schedule) else partial(_worker, schedule, window)
        self._make = {p.name: partial(make, p) for p in positions}
        self.workers = {name: make_one() for name, make_one in self._make.items()}
        self.coordinator = coordinator
        self.now = 0.0
        self.timeline: dict[str, list[str]] = {name: [] for name in self.workers}
        self.sent: list[Sent] = []
        self.released: list[tuple[str, int]] = []
        self.stopped: dict[str, Stop] = {}
        self.said: list[Action] = []  # by the coordinator, beside what it sent
        self.disk: dict[tuple[str, str], dict[str, int]] = {}  # counts, by folder and worker
        self._peers = {name: name for name in self.workers}  # the process that lives
        self._busy: dict[str, Compute] = {}
        self._events: deque[tuple[str, Machine, Event]] = deque()  # on their way, in order
        self._apart: set[str] = set()  # built, and not yet connected: …
        self._early: dict[str, list[Event]] = {}  # … what neighbours have sent meanwhile
        self.handled = 0  # events so far
        self.kills: dict[int, str] = {}  # who dies before which of them
        self._samples = samples
        self._withheld = withheld
        if coordinator is None:
            for worker in self.workers.values():
                worker.joined(Connect(1, {}, dict.fromkeys(self.workers, 1)))

    # --- what tests do ---------------------------------------------------------------------------

    def order(self, message: Message, *names: str) -> None:
        """A word of the coordinator to these workers, or to all."""
        for name in names or self.workers:
            self.handle(name, Received(message))

    def join(self) -> None:
        """Every worker says Hello."""
        for name in self.workers:
            if not self._peers[name].endswith(_DEAD):
                self.handle(COORDINATOR, self._hello(name))

    def kill(self, name: str) -> None:
        """The worker's process dies, and its driver sees that."""
        self._die(name)
        self._carry_on()

    def wake(self) -> None:
        """The coordinator is woken when it wants to be, which must be soon."""
        assert self.coordinator is not None
        deadline = self.coordinator.deadline()
        assert deadline is not None and deadline < self.now + _SOON_S, f"stuck:\n{self.picture()}"
        self.now = max(self.now, deadline)
        self.handle(COORDINATOR, Woke())

    def end(self, columns_max: int = 1000) -> Bench:
        """Until the run has ended."""
        assert self.coordinator is not None
        for _ in range(columns_max):
            if self.coordinator.phase is Phase.ENDED:
                return self
            deadline = self.coordinator.deadline()
            if self._busy and (deadline is None or deadline > self.now):
                self._column()
            else:
                self.wake()
        raise AssertionError(f"no end after {columns_max} columns:\n{self.picture()}")

    def run(self, columns_max: int = 1000) -> Bench:
        """Until nobody computes."""
        for _ in range(columns_max):
            if not self._busy:
                return self
            self._column()
        raise AssertionError(f"still busy after {columns_max} columns:\n{self.picture()}")

    def train(self) -> Bench:
        """Start and run to the first barrier."""
        self.order(Start())
        return self.run()

    def resume(self, barrier: int) -> Bench:
        self.order(Resume(barrier))
        return self.run()

    def messages(self, kind: type[Message], sender: str = "", to: str = "") -> list[Message]:
        """Everything of a kind that was sent, in order."""
        return [
            message
            for origin, receiver, message in self.sent
            if isinstance(message, kind)
            and (not sender or origin == sender)
            and (not to or receiver == to)
        ]

    def ops(self, name: str) -> list[str]:
        """What a worker has done, without the waiting."""
        return [op for op in self.timeline[name] if op != "."]

    def picture(self) -> str:
        """One row a stage, one column a unit of time; `.` is waiting."""
        columns = max(len(row) for row in self.timeline.values())
        rows = []
        for name, row in self.timeline.items():
            cells = row + ["."] * (columns - len(row))
            rows.append(f"{name}  " + " ".join(f"{cell:2}" for cell in cells).rstrip())
        return "\n".join(rows)

    def handle(self, name: str, event: Event) -> None:
        """One event in; carry out what comes out, and what comes of that."""
        self._put(name, event)
        self._carry_on()

    # --- the driver ------------------------------------------------------------------------------

    def _carry_on(self) -> None:
        while self._events:
            name, machine, event = self._events.popleft()
            self.handled += 1
            if self.handled in self.kills:
                self._die(self.kills[self.handled])
            if self._is_void(name, machine, event):
                continue
            if name in self._apart and hasattr(getattr(event, "message", None), "sender"):
                self._early[name].append(event)
                continue
            machine = self._machine(name)
            actions = machine.handle(event, self.now)
            if isinstance(event, Computed) and event.op.kind is OpKind.UPDATE:
                self._keep("snapshots", name)
            machine.check()
            for action in actions:
                self._carry_out(name, action)

    def _machine(self, name: str) -> Machine:
        if name != COORDINATOR:
            return self.workers[name]
        assert self.coordinator is not None
        return self.coordinator

    def _put(self, name: str, event: Event) -> None:
        self._events.append((name, self._machine(name), event))

    def _is_void(self, name: str, machine: Machine, event: Event) -> bool:
        """The process is dead, or the answer is to a `Worker` of an earlier round."""
        if self._peers.get(name, "").endswith(_DEAD):
            return True
        return isinstance(event, Computed | Stored) and machine is not self._machine(name)

    def _die(self, name: str) -> None:
        if not self._peers[name].endswith(_DEAD):
            self._busy.pop(name, None)
            self._peers[name] += _DEAD
            self._put(COORDINATOR, Exited(name, -9, ""))

    def _column(self) -> None:
        """Everyone at work works for one unit of time."""
        for name, row in self.timeline.items():
            compute = self._busy.get(name)
            row.append("." if compute is None else str(compute.op).removesuffix("-1"))
        self.now += 1.0
        done = dict(self._busy)
        for name in reversed(self.workers):
            if name in done and self._busy.get(name) is done[name]:
                del self._busy[name]
                self.handle(name, self._result(name, done[name].op))

    def _carry_out(self, name: str, action: Action) -> None:
        match action:
            case Compute(op=op):
                assert name not in self._busy
                if op.kind is OpKind.READ:
                    self._put(name, self._result(name, op))
                else:
                    self._busy[name] = action
            case Send(to=bytes() as peer, message=message):
                self._obey(peer.decode(), message)
            case Send(to=to, message=message):
                self._send(name, to, message)
            case Release(batch=batch):
                self.released.append((name, batch))
            case Save(tag=tag):
                self._keep(tag, name)
                self._put(name, Stored(tag, {name: "0" * 64}))
            case Stop(rejoin=Rejoin() as order):
                self._busy.pop(name, None)
                self._build(name, order.incarnation, order.restore)
            case Stop():
                self.stopped[name] = action
            case Commit(tag=tag):
                self._put(name, Stored(tag))
            case Launch(stage=stage):
                self.said.append(action)
                self._peers[stage] = self._peers[stage].replace(_DEAD, _NEXT)
                self._put(COORDINATOR, self._hello(stage))
            case _:
                assert name == COORDINATOR, action
                self.said.append(action)

    def _send(self, name: str, to: str, message: Message) -> None:
        assert not isinstance(message, Accused), message
        self.sent.append((name, to, message))
        if self._withheld(name, to, message) or (to == COORDINATOR and self.coordinator is None):
            return
        self._put(to, Received(message, self._peers.get(name, name).encode()))

    def _hello(self, name: str) -> Received:
        hello = Hello(PROTOCOL_VERSION, name, f"inproc://{name}", 1, "here")
        return Received(hello, self._peers[name].encode())

    def _obey(self, peer: str, message: Message) -> None:
        """What a worker's process does before its logic takes over."""
        name = peer.rstrip(_NEXT + _DEAD)
        if self._peers[name] != peer or peer.endswith(_DEAD):
            return  # it is dead
        match message:
            case Welcome(incarnation=incarnation, restore=restore):
                self._build(name, incarnation, restore)
            case Connect():
                self.workers[name].joined(message)
                self._put(name, Woke())
                self._apart.discard(name)
                for event in self._early.pop(name, ()):
                    self._put(name, event)
            case _:
                self._put(name, Received(message))

    def _build(self, name: str, incarnation: int, restore: str) -> None:
        """A worker for a new round, with what it is to count on from."""
        kept = self.workers[name].counts.state()
        state = kept if restore == "keep" else self.disk.get((restore, name), {})
        worker = self.workers[name] = self._make[name]()
        counts = worker.counts
        counts.restore(state)
        self._apart.add(name)
        self._early.setdefault(name, [])
        told = Built(incarnation, 1, counts.position, counts.updates, counts.read)
        self._send(name, COORDINATOR, told)

    def _keep(self, tag: str, name: str) -> None:
        self.disk[tag, name] = self.workers[name].counts.state()

    def _result(self, name: str, op: Op) -> Computed:
        position = self.workers[name].position
        samples, outputs, scores = 0, None, ()
        if op.kind in (OpKind.READ, OpKind.FORWARD, OpKind.EVALUATE):
            samples = self._samples(op.batch)
            outputs = {"h": f"{op} of {name}"}
        elif op.kind is OpKind.BACKWARD and op.send:
            outputs = {producer: {name: f"{op} of {name}"} for producer in position.producers}
        if op.kind is OpKind.EVALUATE and not position.consumers:
            scores = (Score(name, samples, loss=1.0 * samples, correct=samples - 1),)
        return Computed(op, samples, outputs, scores)


def _worker(schedule: Schedule, window: int | str, position: Position) -> Worker:
    return Worker(position, schedule, window=window)
