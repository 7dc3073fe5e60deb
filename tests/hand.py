"""One worker, driven by hand: events in, actions out, every invariant checked after each."""

from __future__ import annotations

from typing import Any

from asyncdni.core.events import Action, Compute, Computed, Event, Received, Send
from asyncdni.core.position import EVALUATE, Position
from asyncdni.core.worker import Phase, Worker
from asyncdni.messages import Activation, Barrier, Connect, Message, Start
from asyncdni.schedules.base import Op, OpKind, Schedule
from asyncdni.schedules.synthetic import Synthetic

MIDDLE = Position("m", inputs=("p",), consumers=("c",), host="p")
LAST = Position("z", inputs=("p",), host="p")
FORK = Position("f", inputs=("p", "q"), consumers=("c", "d"), host="p")


def connect(position: Position, **changes: Any) -> Connect:
    """Into the first round as incarnation 7; all neighbours are incarnation 1."""
    homes = {position.home(node) for node in position.inputs} - {position.name}
    others = homes | {*position.consumers, *position.feeds, *position.train_feeds}
    values = {"incarnation": 7, "addresses": {}, "incarnations": dict.fromkeys(sorted(others), 1)}
    return Connect(**{**values, **changes})


class Hand:
    """Drives one worker by hand and finishes its ops on request."""

    def __init__(
        self, position: Position, schedule: Schedule | None = None, **options: Any
    ) -> None:
        self.worker = Worker(position, schedule or Synthetic(), **options)
        self.worker.joined(connect(position))
        self.now = 0.0
        self.op: Op | None = None
        self.inputs: dict[str, Any] = {}

    def __call__(self, event: Event | Message) -> list[Action]:
        if isinstance(event, Message):
            event = Received(event)
        self.now += 1.0
        actions = self.worker.handle(event, self.now)
        self.worker.check()
        for action in actions:
            if isinstance(action, Compute):
                assert self.op is None, "one op at a time"
                self.op, self.inputs = action.op, action.inputs
        return actions

    def finish(self, outputs: Any = None, *, samples: int = 4, scores: Any = ()) -> list[Action]:
        """The op under way is done."""
        assert self.op is not None
        op, self.op = self.op, None
        return self(Computed(op, samples, outputs, scores))

    def finish_until(self, last: str) -> list[Action]:
        """Finish ops up to and with this one."""
        while str(self.op) != last:
            self.finish({"h": "h"} if self.op and self.op.kind is OpKind.FORWARD else None)
        return self.finish()


def activation(batch: int, sender: str = "p", **fields: Any) -> Activation:
    values = {"incarnation": 1, "batch": batch, "samples": 4, "tensors": {"h": f"h{batch}"}}
    return Activation(sender=sender, **{**values, **fields})


def sends(
    actions: list[Action], kind: type[Message] = Message
) -> list[tuple[str | bytes, Message]]:
    return [
        (a.to, a.message) for a in actions if isinstance(a, Send) and isinstance(a.message, kind)
    ]


def trained(position: Position = MIDDLE, batches: int = 1, **options: Any) -> Hand:
    """A worker that has started and updated on that many batches."""
    hand = Hand(position, **options)
    hand(Start())
    for batch in range(batches):
        for node in position.inputs:
            hand(activation(batch, node))
        hand.finish_until(f"U{batch}")
    return hand


def drained(position: Position = LAST) -> Hand:
    """A worker that has passed barrier 0, which is not the last."""
    hand = Hand(position)
    hand(Start())
    for node in position.inputs:
        hand(Barrier(node, 1, 0, EVALUATE))
    assert hand.worker.phase is Phase.DRAINED
    return hand
