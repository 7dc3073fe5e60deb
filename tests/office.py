"""One coordinator, driven by hand, of workers a, b and c."""

from __future__ import annotations

from typing import Any

from pair import chain, roster_of

from asyncdni.core.coordinator import Coordinator, Phase
from asyncdni.core.events import (
    Action,
    Event,
    Fail,
    Finish,
    Received,
    Record,
    Send,
    Woke,
)
from asyncdni.messages import (
    PROTOCOL_VERSION,
    Abort,
    Drained,
    Evaluated,
    Hello,
    Message,
    Ready,
    Save,
    Saved,
)

NAMES = ("a", "b", "c")
CHAIN = chain(3, barriers=(2, 4))


def hello(stage: str, **changes: Any) -> Hello:
    values = {"protocol": PROTOCOL_VERSION, "address": f"tcp://{stage}", "pid": 5, "host": "h"}
    return Hello(stage=stage, **{**values, **changes})


class Office:
    """A coordinator of workers a, b and c; c has the loss. Time stands still unless it is set."""

    def __init__(self, **roster: Any) -> None:
        values: dict[str, Any] = {
            "workers": NAMES,
            "members": {"a": ("a",), "b": ("b", "b2"), "c": ("c",)},
            "neighbours": {"a": ("b",), "b": ("a", "c"), "c": ("b",)},
            "losses": ("c",),
            "barriers": 2,
        }
        self.machine = Coordinator(roster_of(CHAIN, **{**values, **roster}))
        self.now = 100.0

    def __call__(self, event: Event) -> list[Action]:
        actions = self.machine.handle(event, self.now)
        self.machine.check()
        assert all(action.cause is event for action in actions)
        deadline = self.machine.deadline()
        if self.machine.phase is Phase.ENDED:
            assert deadline is None
        elif isinstance(event, Woke):
            assert deadline is None or deadline > self.now
        return actions

    def hear(self, name: str, message: Message) -> list[Action]:
        return self(Received(message, name.encode()))

    def all_say(self, message: Message) -> list[Action]:
        return [action for name in NAMES for action in self.hear(name, message)]

    def started(self) -> Office:
        for name in NAMES:
            self.hear(name, hello(name))
        self.all_say(Ready(1))
        assert self.machine.phase is Phase.TRAINING
        return self

    def evaluating(self) -> Office:
        self.started().all_say(Drained(0, 2))
        assert self.machine.phase is Phase.EVALUATING
        return self

    def score(self, *, correct: int | None = 5, loss: float = 1.0) -> list[Action]:
        return self.hear("c", Evaluated(self.machine.barrier, "c", 10, loss, correct, 1))

    def saved(self, tag: str) -> list[Action]:
        return self.all_say(Saved(tag, {}))

    def saving(self) -> Office:
        assert sent(self.evaluating().score(), Save)
        assert self.machine.phase is Phase.SAVING
        return self


def sent(actions: list[Action], kind: type[Message] = Message) -> list[tuple[str, Message]]:
    found = [(a.to, a.message) for a in actions if isinstance(a, Send)]
    return [
        (to.decode(), message)
        for to, message in found
        if isinstance(to, bytes) and isinstance(message, kind)
    ]


def to_all(message: Message) -> list[tuple[str, Message]]:
    return [(name, message) for name in NAMES]


def records(actions: list[Action], kind: str) -> list[dict[str, Any]]:
    return [a.values for a in actions if isinstance(a, Record) and a.kind == kind]


def end(actions: list[Action]) -> Fail | Finish | None:
    ends = [a for a in actions if isinstance(a, Fail | Finish)]
    assert len(ends) <= 1
    return ends[0] if ends else None


def failure(actions: list[Action]) -> Fail:
    fail = end(actions)
    assert isinstance(fail, Fail)
    assert {message for _, message in sent(actions, Abort)} <= {Abort(fail.text)}
    return fail
