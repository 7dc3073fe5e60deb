"""What happens to a machine (events) and what it asks of its driver (actions).

A machine (`Process` and its `Worker`, `Coordinator`) is pure: `handle(event, now)` returns actions,
`deadline()` says when to call again at the latest, `check()` asserts every invariant. Its driver
(real or virtual) has four duties:

1. Call `handle` for each message that arrives and for each answer to an action, with the time.
2. Carry out the actions in the order given; sends must reach each peer in that order.
3. Answer `Prepare` with `Prepared`, `Restore` with `Restored`, `Join` with `Joined`, `Compute` with
   `Computed`, `Snapshot` with `SnapshotTaken`, `Save` and `Commit` with `Stored`, `Look` with
   `Looked`, and `Consult` with `Consulted`, once each. Where one of a worker process fails, `Broke`
   is the answer.
   Likewise `SendPart` with `PartSent`, and `KeepPart` with `PartKept`.
4. When `deadline()` has passed, call `handle(Woke(), now)`, after whatever has arrived by then.

Events and actions are values: nobody changes one. They are not frozen, because that would make
them four times as slow to create, and a run creates tens of thousands a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from asyncdni.core.liveness import Sight
from asyncdni.errors import CheckpointError
from asyncdni.messages import Accused, Connect, Message, Part, Rejoin, Steer, Welcome
from asyncdni.schedules.base import Op

__all__ = [
    "Action",
    "Adapt",
    "Broke",
    "Commit",
    "Compute",
    "Computed",
    "Consult",
    "Consulted",
    "CoordinatorGone",
    "Discard",
    "DiscardSnapshots",
    "Event",
    "Exit",
    "Exited",
    "Fail",
    "Finish",
    "Join",
    "Joined",
    "KeepPart",
    "Launch",
    "Look",
    "Looked",
    "Lose",
    "Machine",
    "Move",
    "Origin",
    "ParentGone",
    "PartKept",
    "PartSent",
    "Prepare",
    "Prepared",
    "Received",
    "Record",
    "Redeliver",
    "Rejected",
    "Release",
    "Report",
    "Restore",
    "Restored",
    "Save",
    "Say",
    "SayHello",
    "Send",
    "SendPart",
    "Snapshot",
    "SnapshotTaken",
    "Steered",
    "Stop",
    "Stored",
    "Unusable",
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
    """Weights or state are on disk (worker); a cut has been committed (coordinator).

    `paths`: the files that the coordinator has to be sent, in the folder of the run; none where a
    worker writes to the coordinator's own folder."""

    tag: str
    files: dict[str, str] = field(default_factory=dict)
    paths: Sequence[str] = ()


@dataclass(slots=True)
class Consulted(Event):
    """The user's callbacks have seen an evaluation (coordinator)."""

    ends: bool  # whether the run is to end here, as if it had been planned so


@dataclass(slots=True)
class Move(Event):
    """A worker is to go on elsewhere, where its launcher starts it next (coordinator); `text` says
    why."""

    stage: str
    text: str


@dataclass(slots=True)
class Prepared(Event):
    """The worker's part of the experiment is known, and signs of life are sent (process)."""

    roll_back: bool = False  # numbers that go wrong lead to another round: see [numbers]
    learns_alone: bool = False  # see `core.members.Roster`
    snapshot_every_s: float | None = None  # as the user has set it; None: never
    stages: Sequence[str] = ()  # the declared stages of this worker, for what the user is told
    sources: Mapping[str, str] = field(default_factory=dict)  # see `messages.Built`
    away: bool = False  # the folder of the run is not there: see `core.transfer`


@dataclass(slots=True)
class Restored(Event):
    """The stage is in the state that was asked for (process).

    `place` and `unusable` are about `Origin.FARTHEST` alone."""

    parameters: int = 0
    counts: Mapping[str, int] | None = None  # what has been done by then; None: as before
    notes: Sequence[str] = ()  # what the stage has to tell the user of that state
    place: str = ""  # where the state was, in the folder of the run; "": at the beginning
    unusable: Sequence[str] = ()  # why states that might have come farther could not be used


@dataclass(slots=True)
class Joined(Event):
    """The stages are claimed, and the neighbours' addresses connected to (process)."""

    accused: Sequence[Accused] = ()  # neighbours that say they listen where nobody can
    senders_known: bool = True  # see `Worker.joined`


@dataclass(slots=True)
class SnapshotTaken(Event):
    """A rolling snapshot has been written, or could not be (process). `paths`: see `Stored`."""

    took_s: float
    error: CheckpointError | None = None  # why there is none
    folder_gone: bool = False  # the reason is that the folder of the run is not there any more
    paths: Sequence[str] = ()


@dataclass(slots=True)
class PartSent(Event):
    """A part of a file has been sent, up to byte `end` of `size`; None: there is no such file."""

    to: str | bytes
    incarnation: int
    path: str
    end: int = 0
    size: int | None = None
    took_s: float = 0.0


@dataclass(slots=True)
class PartKept(Event):
    """A part of a file has been written; if it was the last one, the file is in its place.

    `fault`: what is wrong with the file, `error`: why it can't be written; then it is not there."""

    part: Part
    sender: str
    fault: str = ""
    error: CheckpointError | None = None
    folder_gone: bool = False  # see `SnapshotTaken`


@dataclass(slots=True)
class Unusable(Event):
    """A neighbour has sent tensors that nobody can compute with (process)."""

    accused: Accused


@dataclass(slots=True)
class Broke(Event):
    """An action, or handling an event, has raised this error (process)."""

    error: BaseException
    trace: str = ""  # the traceback, where it is nothing that the user can put right
    log: str = ""  # where this process prints it: "HOST:PATH", or words; empty: not known


@dataclass(slots=True)
class CoordinatorGone(Event):
    """There is nobody left to work for, or somebody ends this process alone (process)."""

    reason: str


@dataclass(slots=True)
class ParentGone(Event):
    """The process that started this one has ended (process)."""


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
class Steered(Event):
    """Those who watch the run ask this of workers, by name (coordinator)."""

    steers: Mapping[str, Steer]


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
class Discard(Action):
    """A copy of the weights, see `core.behind`, is no longer needed."""

    copy: int


@dataclass(slots=True)
class Save(Action):
    """Write all state as `tag` (`whole`: a cut, from which a run can go on), or the weights alone;
    then answer `Stored`."""

    tag: str
    whole: bool
    copy: int | None = None  # the weights of this copy; None: the present ones


@dataclass(slots=True)
class SendPart(Action):
    """Send the bytes of a file (its path is that in the folder of the run) from `offset` on, at
    most `PART_BYTES`, as a `Part`; then answer `PartSent`. The file is opened at offset 0, and read
    on from there whatever takes its place meanwhile."""

    to: str | bytes
    incarnation: int
    path: str
    offset: int


@dataclass(slots=True)
class KeepPart(Action):
    """Write these bytes of a file, which takes its place once it is whole; then answer
    `PartKept`."""

    part: Part
    sender: str


@dataclass(slots=True)
class DiscardSnapshots(Action):
    """Remove all rolling snapshots: all stages go back behind them (coordinator)."""


@dataclass(slots=True)
class Stop(Action):
    """The worker is done: leave (`failed` empty), or exit because of what it says, or join the next
    round with a new `Worker`."""

    failed: str = ""
    rejoin: Rejoin | None = None


@dataclass(slots=True)
class SayHello(Action):
    """Send the coordinator a `Hello` of this process; for `incarnation` see there (process)."""

    incarnation: int = 0


@dataclass(slots=True)
class Prepare(Action):
    """Read the experiment of the `Welcome`, begin to send signs of life, then answer `Prepared`
    (process)."""

    welcome: Welcome


class Origin(Enum):
    """Where the state comes from that a stage begins a round with."""

    KEPT = "kept"  # as it is, without what is in flight
    BEGINNING = "beginning"  # as at the beginning of the run
    CUT = "cut"  # from `Restore.place`; without it the process can't go on
    FARTHEST = "farthest"  # of its own snapshot and the cuts up to `Restore.place`; or BEGINNING


@dataclass(slots=True)
class Restore(Action):
    """Bring the stage into this state, then answer `Restored`. It takes the place of any op or save
    under way, which is answered no more (process)."""

    origin: Origin
    place: str = ""  # of a cut, in the folder of the run
    discard: bool = False  # first remove all rolling snapshots: all stages go back behind them


@dataclass(slots=True)
class Join(Action):
    """Claim the stages with `claim`, (term, incarnation), where the run has a folder; connect to
    the neighbours; then answer `Joined` (process)."""

    connect: Connect
    claim: tuple[int, int] | None = None


@dataclass(slots=True)
class Redeliver(Action):
    """Treat these messages as if they arrived now: they came before the round (process)."""

    messages: Sequence[Message]


@dataclass(slots=True)
class Report(Action):
    """Tell the coordinator these counters, and those of the driver's own (process)."""

    counters: dict[str, float | int | None]


@dataclass(slots=True)
class Snapshot(Action):
    """Write the whole state for a successor of this process, then answer `SnapshotTaken`. The
    `last` one comes right before `Exit` (process)."""

    last: bool = False


@dataclass(slots=True)
class Say(Action):
    """Tell whoever reads what this process prints (process)."""

    text: str


@dataclass(slots=True)
class Adapt(Action):
    """Show ops with reports, and be slow, as this says from now on (process)."""

    steer: Steer


@dataclass(slots=True)
class Lose(Action):
    """Cut the connections to a neighbour that is dead (process)."""

    worker: str


@dataclass(slots=True)
class Exit(Action):
    """End the process (process).

    `failed`: why, for the user; empty where the run is over. `error`: what it has failed at, with
    the traceback `trace`; None where the coordinator has ended it, or is gone."""

    failed: str = ""
    error: BaseException | None = None
    trace: str = ""


@dataclass(slots=True)
class Record(Action):
    """Something worth writing down and showing (coordinator): see `report.records`."""

    kind: str
    values: dict[str, Any]


@dataclass(slots=True)
class Consult(Action):
    """An evaluation has just been recorded: let the user's callbacks say whether the run goes on,
    then answer `Consulted` (coordinator)."""


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
    `loss`. `whole` tells a cut, from which a run can go on, from weights."""

    tag: str  # "checkpoints/NUMBER", "best" or "final"
    files: dict[str, str]  # declared stage -> sha256
    state: dict[str, Any]
    whole: bool


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
