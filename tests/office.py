"""One coordinator, driven by hand, of workers a, b and c."""

from __future__ import annotations

from typing import Any

from pair import chain, roster_of

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Action,
    Commit,
    Event,
    Exited,
    Fail,
    Finish,
    Launch,
    Look,
    Looked,
    Received,
    Record,
    Send,
    Stored,
    Woke,
)
from asyncdni.core.ledger import Ledger, is_cut
from asyncdni.core.liveness import Sight
from asyncdni.core.members import Phase
from asyncdni.core.position import EVALUATE
from asyncdni.messages import (
    PROTOCOL_VERSION,
    Abort,
    Built,
    Drained,
    Evaluated,
    Hello,
    Message,
    Ready,
    Rejoin,
    Report,
    Save,
    Saved,
    Welcome,
)

NAMES = ("a", "b", "c")
MEMBERS = {"a": ("a",), "b": ("b", "b2"), "c": ("c",)}
CHAIN = chain(3, barriers=(2, 4))
_NEXT = "'"  # one more behind the peer of each later process of a worker


def hello(stage: str, **changes: Any) -> Hello:
    values = {"protocol": PROTOCOL_VERSION, "address": f"tcp://{stage}", "pid": 5, "host": "h"}
    return Hello(stage=stage, **{**values, **changes})


def built(incarnation: int = 1, **changes: Any) -> Built:
    values = {"parameters": 5, "position": 0, "updates": 0, "read": 0}
    return Built(incarnation, **{**values, **changes})


class Office:
    """A coordinator of workers a, b and c; c has the loss. Time stands still unless it is set."""

    def __init__(self, ledger: Ledger | None = None, **roster: Any) -> None:
        values: dict[str, Any] = {
            "workers": NAMES,
            "members": MEMBERS,
            "neighbours": {"a": ("b",), "b": ("a", "c"), "c": ("b",)},
            "losses": ("c",),
        }
        self.machine = Coordinator(roster_of(CHAIN, **{**values, **roster}), ledger)
        self.now = 100.0
        self.told: dict[str, Welcome | Rejoin] = {}  # how each was let in last
        self.launched: list[str] = []
        self.sights: dict[str, Sight] = {}  # what their processes look like; STILL unless set
        self._peers = {name: name for name in NAMES}

    def __call__(self, event: Event) -> list[Action]:
        """What comes of it; looks at processes are answered at once."""
        actions: list[Action] = []
        events = [event]
        while events:
            found = self.machine.handle(events[0], self.now)
            self.machine.check()
            looks = [action.stage for action in found if isinstance(action, Look)]
            events[:1] = [Looked(stage, self.sights.get(stage, Sight.STILL)) for stage in looks]
            actions += [action for action in found if not isinstance(action, Look)]
        for name, message in sent(actions):
            if isinstance(message, Welcome | Rejoin):
                self.told[name] = message
        self.launched += [action.stage for action in actions if isinstance(action, Launch)]
        deadline = self.machine.deadline()
        if self.machine.phase is Phase.ENDED:
            assert deadline is None
        elif isinstance(event, Woke):
            assert deadline is None or deadline > self.now
        return actions

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    # --- what workers do -------------------------------------------------------------------------

    def hear(self, name: str, message: Message) -> list[Action]:
        return self(Received(message, self._peers.get(name, name).encode()))

    def all_say(self, message: Message) -> list[Action]:
        return [action for name in NAMES for action in self.hear(name, message)]

    def build(self, *names: str, **changes: Any) -> list[Action]:
        """These (or all) have built what they were told to."""
        return [
            action
            for name in names or NAMES
            for action in self.hear(name, built(self.told[name].incarnation, **changes))
        ]

    def ready(self, *names: str) -> list[Action]:
        """These (or all) have connected."""
        return [
            action
            for name in names or NAMES
            for action in self.hear(name, Ready(self.told[name].incarnation))
        ]

    def drain(self, *names: str, kind: str = EVALUATE, position: int = 2) -> list[Action]:
        """These (or all) have drained at the current barrier."""
        barrier = self.machine.barrier
        return [
            action
            for name in names or NAMES
            for action in self.hear(
                name, Drained(self.told[name].incarnation, barrier, kind, position)
            )
        ]

    def score(
        self, *, correct: int | None = 5, loss: float = 1.0, copy: int | None = None
    ) -> list[Action]:
        scores = Evaluated(self.machine.barrier, "c", 10, loss, correct, 1, copy=copy)
        return self.hear("c", scores)

    def saved(self, tag: str) -> list[Action]:
        """All have saved that; of weights, the manifest is written as well."""
        actions = [
            action
            for name in NAMES
            for action in self.hear(name, Saved(tag, dict.fromkeys(MEMBERS[name], name * 64)))
        ]
        commits = [action.tag for action in actions if isinstance(action, Commit)]
        return self(Stored(tag)) if commits == [tag] and not is_cut(tag) else actions

    def committed(self, number: int = 1) -> list[Action]:
        """All have saved that cut, and its manifest is written."""
        tag = f"checkpoints/{number:06d}"
        assert [action.tag for action in self.saved(tag) if isinstance(action, Commit)] == [tag]
        return self(Stored(tag))

    # --- deaths ----------------------------------------------------------------------------------

    def wake(self, after_s: float | None = None) -> list[Action]:
        """Let that time pass, or all until something is due."""
        deadline = self.machine.deadline()
        self.now = self.now + after_s if after_s is not None else max(self.now, deadline or 0.0)
        return self(Woke())

    def kill(self, name: str, code: int = -9) -> list[Action]:
        return self(Exited(name, code, ""))

    def join(self, name: str, **changes: Any) -> list[Action]:
        """A new process for that worker says Hello."""
        self._peers[name] += _NEXT
        return self.hear(name, hello(name, **changes))

    def replace(self, name: str, **changes: Any) -> list[Action]:
        """A dead worker is launched again, and builds."""
        joined = len(self._peers[name]) - len(name)
        if self.launched.count(name) == joined:
            self.wake()
        assert self.launched.count(name) == joined + 1
        return [*self.join(name), *self.build(name, **changes)]

    def mend(self, name: str = "b", **changes: int) -> Office:
        """That worker dies and is replaced, and all train again."""
        self.kill(name)
        if not self.machine.roster.learns_alone:
            self.build(*(other for other in NAMES if other != name))
        self.replace(name, **changes)
        if self.machine.roster.learns_alone:
            self.build(**changes)
        self.ready()
        assert self.phase is Phase.TRAINING
        return self

    def learn(self, name: str, updates: int) -> None:
        """Its reports say that it has made so many updates."""
        self.hear(name, Report({"updates": updates, "batches": updates, "missed": 0}))

    # --- states ----------------------------------------------------------------------------------

    def gathering(self) -> Office:
        """All have said Hello."""
        for name in NAMES:
            self.hear(name, hello(name))
        assert self.phase is Phase.GATHERING
        return self

    def connecting(self) -> Office:
        self.gathering().build()
        assert self.phase is Phase.CONNECTING
        return self

    def started(self) -> Office:
        self.connecting().ready()
        assert self.phase is Phase.TRAINING
        return self

    def evaluating(self) -> Office:
        self.started().drain()
        assert self.phase is Phase.EVALUATING
        return self

    def saving(self) -> Office:
        assert sent(self.evaluating().score(), Save)
        assert self.phase is Phase.SAVING
        return self


def sent(actions: list[Action], kind: type[Message] = Message) -> list[tuple[str, Message]]:
    """(worker, message) of a kind, worker by worker; to each in the order of sending."""
    found = [
        (a.to.decode().rstrip(_NEXT), a.message)
        for a in actions
        if isinstance(a, Send) and isinstance(a.to, bytes) and isinstance(a.message, kind)
    ]
    return sorted(found, key=lambda pair: pair[0])


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
