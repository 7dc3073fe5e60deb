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

from asyncdni.backends.base import Score
from asyncdni.core.coordinator import Coordinator
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
from asyncdni.core.position import Position
from asyncdni.core.roster import Roster
from asyncdni.core.worker import Worker
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    PROTOCOL_VERSION,
    Connect,
    Hello,
    Message,
    Ready,
    Resume,
    Start,
    Welcome,
)
from asyncdni.schedules import Op, OpKind, Schedule

Sent = tuple[str, str, Message]


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
            index=index,
            count=count,
            inputs=((names[index - 1],) if index else ())
            + ((DATA,) if not index or name in feeds else ()),
            consumers=tuple(names[index + 1 : index + 2]),
            has_loss=index == count - 1,
            host=names[0],
            feeds=() if index else tuple(feeds),
            barriers=() if index else tuple(barriers),
            test_batches=0 if index else test_batches,
        )
        for index, name in enumerate(names)
    ]


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
        "losses": tuple(position.name for position in positions if position.has_loss),
        "barriers": len(positions[0].barriers),
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
        self.workers = {p.name: make(p) for p in positions}
        self.coordinator = coordinator
        self.now = 0.0
        self.timeline: dict[str, list[str]] = {name: [] for name in self.workers}
        self.sent: list[Sent] = []
        self.released: list[tuple[str, int]] = []
        self.stopped: dict[str, Stop] = {}
        self.said: list[Action] = []  # by the coordinator, beside what it sent
        self._busy: dict[str, Compute] = {}
        self._events: deque[tuple[str, Event]] = deque()  # on their way, in order
        self._samples = samples
        self._withheld = withheld

    # --- what tests do ---------------------------------------------------------------------------

    def order(self, message: Message, *names: str) -> None:
        """A word of the coordinator to these workers, or to all."""
        for name in names or self.workers:
            self.handle(name, Received(message))

    def join(self) -> None:
        """Every worker says Hello."""
        for name in self.workers:
            hello = Hello(PROTOCOL_VERSION, name, f"inproc://{name}", 1, "here")
            self.handle(COORDINATOR, Received(hello, name.encode()))

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
        self._events.append((name, event))
        while self._events:
            name, event = self._events.popleft()
            machine = self.coordinator if name == COORDINATOR else self.workers[name]
            assert machine is not None
            actions = machine.handle(event, self.now)
            machine.check()
            for action in actions:
                assert action.cause is event, action
                self._carry_out(name, action)

    # --- the driver ------------------------------------------------------------------------------

    def _column(self) -> None:
        """Everyone at work works for one unit of time."""
        for name, row in self.timeline.items():
            compute = self._busy.get(name)
            row.append("." if compute is None else str(compute.op).removesuffix("-1"))
        self.now += 1.0
        done = dict(self._busy)
        for name in reversed(self.workers):
            if name in done:
                del self._busy[name]
                self.handle(name, self._result(name, done[name].op))

    def _carry_out(self, name: str, action: Action) -> None:
        match action:
            case Compute(op=op):
                assert name not in self._busy
                if op.kind is OpKind.READ:
                    self._events.append((name, self._result(name, op)))
                else:
                    self._busy[name] = action
            case Send(to=bytes() as peer, message=message):
                self._obey(peer.decode(), message)
            case Send(to=to, message=message):
                self._send(name, to, message)
            case Release(batch=batch):
                self.released.append((name, batch))
            case Save(tag=tag):
                self._events.append((name, Stored(tag, {name: "0" * 64})))
            case Stop():
                self.stopped[name] = action
            case _:
                assert name == COORDINATOR, action
                self.said.append(action)

    def _send(self, name: str, to: str, message: Message) -> None:
        self.sent.append((name, to, message))
        if self._withheld(name, to, message) or (to == COORDINATOR and self.coordinator is None):
            return
        self._events.append((to, Received(message, name.encode())))

    def _obey(self, name: str, message: Message) -> None:
        """What a worker's process does before its logic takes over."""
        match message:
            case Welcome():
                pass
            case Connect(incarnations=incarnations):
                self.workers[name].joined(1, incarnations)
                self._send(name, COORDINATOR, Ready(parameters=1))
            case _:
                self._events.append((name, Received(message)))

    def _result(self, name: str, op: Op) -> Computed:
        position = self.workers[name].position
        samples, outputs, scores = 0, None, ()
        if op.kind in (OpKind.READ, OpKind.FORWARD, OpKind.EVALUATE):
            samples = self._samples(op.batch)
            outputs = {"h": f"{op} of {name}"}
        elif op.kind is OpKind.BACKWARD and op.send:
            outputs = {producer: {name: f"{op} of {name}"} for producer in position.producers}
        if op.kind is OpKind.EVALUATE and position.has_loss:
            scores = (Score(name, samples, loss=1.0 * samples, correct=samples - 1),)
        return Computed(op, samples, outputs, scores)


def _worker(schedule: Schedule, window: int | str, position: Position) -> Worker:
    return Worker(position, schedule, window=window)
