"""What happens to a machine (events) and what it asks of its driver (actions).

A machine (`Worker`, `Coordinator`) is pure: `handle(event, now)` returns actions, `deadline()` says
when to call again at the latest, `check()` asserts every invariant. Its driver (the runtime or the
simulator) has four duties:

1. Call `handle` for each message that arrives and for each answer to an action, with the time.
2. Carry out the actions in the order given; sends must reach each peer in that order.
3. Answer `Compute` with `Computed`, `Save` and `Commit` with `Stored`, and `Look` with `Looked`,
   once each.
4. When `deadline()` has passed, call `handle(Woke(), now)`, after whatever has arrived by then.

Events and actions are values: nobody changes one. They are not frozen, because that would make
them four times as slow to create, and a run creates tens of thousands a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncdni.core.liveness import Sight
from asyncdni.messages import Message, Rejoin
from asyncdni.schedules.base import Op

__all__ = [
    "Action",
    "Commit",
    "Compute",
    "Computed",
    "Event",
    "Exited",
    "Fail",
    "Finish",
    "Launch",
    "Look",
    "Looked",
    "Machine",
    "Received",
    "Record",
    "Rejected",
    "Release",
    "Save",
    "Send",
    "Stop",
    "Stored",
    "UserStop",
    "Woke",
]


@dataclass(slots=True)
class Event:
    """Base of all events."""


@dataclass(slots=True)
class Received(Event):
    """A message arrived; `peer` identifies its control connection (coordinator only)."""

    message: Message
    peer: bytes = b""


@dataclass(slots=True)
class Computed(Event):
    """An op is done. `outputs` are opaque tensors to send on:

    Read, Forward, Evaluate: {"h": …, "y": …}; Backward: {producer: {consumer: gradient}};
    Update: {sharer: {declared stage: gradient of its weights}}."""

    op: Op
    samples: int = 0
    outputs: Any = None
    scores: tuple[Any, ...] = ()  # Evaluate: `stages.base.Score` of each loss here
    cosine: float | None = None  # Fit: of the prediction and the true gradient, where measured


@dataclass(slots=True)
class Stored(Event):
    """Weights or state are on disk (worker); a cut has been committed (coordinator)."""

    tag: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Exited(Event):
    """A worker process ended (coordinator)."""

    stage: str
    code: int
    last_lines: str


@dataclass(slots=True)
class Looked(Event):
    """What a worker's process looks like from outside (coordinator)."""

    stage: str
    sight: Sight


@dataclass(slots=True)
class Rejected(Event):
    """What came from this peer was no message; "" where it got no identity (coordinator)."""

    peer: bytes
    text: str


@dataclass(slots=True)
class UserStop(Event):
    """The user asked to stop (coordinator)."""


@dataclass(slots=True)
class Woke(Event):
    """The deadline has passed."""


@dataclass(slots=True)
class Action:
    """Base of all actions."""


@dataclass(slots=True)
class Send(Action):
    """Send a message: to a worker by name, to "coordinator", or to a control connection."""

    to: str | bytes
    message: Message


@dataclass(slots=True)
class Compute(Action):
    """Carry out an op. `inputs`: Forward, Evaluate {producer: tensors}; Backward, Fit
    {consumer: gradient} of all consumers (empty for a synthetic gradient); Apply {sharer:
    {declared stage: gradient of its weights}}."""

    op: Op
    inputs: dict[str, Any]


@dataclass(slots=True)
class Release(Action):
    """The batch's forward state is no longer needed."""

    batch: int


@dataclass(slots=True)
class Save(Action):
    """Write the weights as `tag`, or all state where it is a cut's, then answer `Stored`."""

    tag: str


@dataclass(slots=True)
class Stop(Action):
    """The worker is done: leave (`failed` empty), or exit because of what it says, or join the next
    round with a new `Worker`."""

    failed: str = ""
    rejoin: Rejoin | None = None


@dataclass(slots=True)
class Record(Action):
    """Something worth writing down and showing (coordinator): see `report.records`."""

    kind: str
    values: dict[str, Any]


@dataclass(slots=True)
class Launch(Action):
    """Start a new process for this stage; whatever is left of an older one is to be killed
    (coordinator)."""

    stage: str


@dataclass(slots=True)
class Look(Action):
    """Have a look at this worker's process, which is silent, then answer `Looked` (coordinator)."""

    stage: str


@dataclass(slots=True)
class Commit(Action):
    """All files of a cut, or of weights, are on disk: write the manifest, then answer `Stored`
    (coordinator).

    `state` is the coordinator's own, see `core.ledger.Ledger`; of weights `batches`, `accuracy` and
    `loss`."""

    tag: str  # "checkpoints/NUMBER", "best" or "final"
    files: dict[str, str]  # declared stage -> sha256
    state: dict[str, Any]


@dataclass(slots=True)
class Finish(Action):
    """The run is over and everyone has left (coordinator)."""


@dataclass(slots=True)
class Fail(Action):
    """The run has failed, or the user has stopped it: class name out of `errors`, and the text for
    the user (coordinator).

    `stages`: workers that it is about, of which the driver may know more: their last lines, or what
    to type to start them."""

    kind: str
    text: str
    trace: str = ""
    stages: tuple[str, ...] = ()
    orderly: bool = False  # all is saved, and everyone has been told to leave


class Machine(Protocol):
    """The contract of both machines with both drivers."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about it; `now` in seconds of the driver's clock."""

    def deadline(self) -> float | None:
        """When to wake the machine even if nothing happens; None: never."""

    def check(self) -> None:
        """Assert every invariant."""
