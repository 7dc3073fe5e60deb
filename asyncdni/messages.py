"""The wire protocol on one page: every message, one frozen type each. See docs/protocol.md.

```
 worker            coordinator                     producer              consumer
   │ Hello ────────────► │                            │ Activation ───────► │  (train, evaluate)
   │ ◄────────── Welcome │                            │ Barrier ──────────► │
   │ Built ────────────► │ ◄─┐                        │ ◄────────── Credit  │
   │ ◄────────── Connect │   │ a round                │ ◄──────── Gradient  │
   │ Unheard … ────────► │   │                        │ ◄──────── Skipped ► │
   │ Ready ────────────► │   │                        │ ◄─────── Greeting ► │  (before training)
   │ ◄──────────── Start │   │
   │ Report … ─────────► │   │
   │ Drained ──────────► │   │                      sharer                sharer
   │ ◄───────── Evaluate │   │  once all have drained │ ◄───────── Shared ► │
   │ Evaluated ────────► │   │
   │ ◄───────────── Save │   │  if there is something to keep
   │ Saved ────────────► │   │
   │ ◄─── Resume | Leave │   │
   │ ◄───── Lost, Rejoin │ ──┘  some worker has died
```

Control (left) and data (right) ride on separate sockets. A message is one MessagePack header
(`[tag, field, …]`) and, for the three that carry tensors, one raw frame a tensor. Tensors are
opaque here.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "PROTOCOL_VERSION",
    "Abort",
    "Accused",
    "Activation",
    "Barrier",
    "Beat",
    "Built",
    "Close",
    "Connect",
    "Credit",
    "Drained",
    "Evaluate",
    "Evaluated",
    "Failed",
    "Gradient",
    "Greeting",
    "Guarded",
    "Hello",
    "Leave",
    "Lost",
    "Message",
    "Ready",
    "Refused",
    "Rejoin",
    "Report",
    "Resume",
    "Save",
    "Saved",
    "Shared",
    "Skipped",
    "Start",
    "Unheard",
    "Welcome",
]

#: Raised with every change that an older peer would not understand.
PROTOCOL_VERSION = 5

#: Addresses of messages and names of the graph that no stage may have.
COORDINATOR = "coordinator"
#: The node that hands out batches; it lives in the worker of the first stage that reads it.
DATA = "data"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the tag is the class name."""


# --- worker to coordinator -----------------------------------------------------------------------


class Hello(Message, frozen=True, tag=True):
    """First word of a worker: which stage it wants and where it listens for data."""

    protocol: int
    stage: str  # name or index, as given on the command line
    address: str  # ZeroMQ endpoint of its data socket
    pid: int
    host: str


class Built(Message, frozen=True, tag=True):
    """Stage built and its state restored: ready to be connected."""

    incarnation: int
    parameters: int
    position: int  # training batches that have passed here, skipped ones included
    updates: int  # that the state has seen
    read: int  # training batches read by the host of the data; 0 elsewhere
    notes: list[str] = []  # what could not be restored, for the user


class Ready(Message, frozen=True, tag=True):
    """All neighbours have been greeted, and their greetings have come."""

    incarnation: int


class Unheard(Message, frozen=True, tag=True):
    """The greetings of these neighbours have not come for some time; each time that changes."""

    incarnation: int
    workers: list[str]


class Drained(Message, frozen=True, tag=True):
    """Everything up to the barrier is applied; nothing is in flight here."""

    incarnation: int
    barrier: int
    kind: str  # of the barrier
    position: int  # training batches that have passed here, skipped ones included


class Accused(Message, frozen=True, tag=True):
    """A neighbour has broken the protocol; what it sent has been dropped."""

    worker: str
    incarnation: int  # of the neighbour
    text: str


class Evaluated(Message, frozen=True, tag=True):
    """Sums over the test set of one loss: see `stages.base.Score`."""

    barrier: int
    stage: str
    samples: int
    loss: float
    correct: int | None
    outputs: int
    steps: int | None = None  # of windows, those that count: the loss is summed over them


class Saved(Message, frozen=True, tag=True):
    """The weights, or all state, of this worker's stages are on disk."""

    tag: str
    files: dict[str, str]  # declared stage -> sha256 of its file


class Report(Message, frozen=True, tag=True):
    """Counters and times since the start, sent a few times a second: see `report.records`."""

    counters: dict[str, float | int | None]
    loss_sum: float = 0.0  # of training batches since the last report
    loss_samples: int = 0


class Guarded(Message, frozen=True, tag=True):
    """The guard of this worker's generator has changed its mind."""

    waiting: bool  # for true gradients, from now on
    cosine: float  # mean agreement of the generator with them, over the guard's window


class Failed(Message, frozen=True, tag=True):
    """The worker stops because of an error."""

    kind: str  # class name out of `errors`, or the exception's own
    text: str
    trace: str  # empty for errors meant for the user


class Beat(Message, frozen=True, tag=True):
    """Sign of life, both ways; any other message is one too."""


# --- coordinator to worker -----------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=True):
    """You are in: everything the worker needs to build its part."""

    stage: str
    incarnation: int
    experiment: dict[str, Any]
    meta: dict[str, Any]  # shapes of the data: see `data.base.Meta`
    folder: str  # of the run, where weights are written; empty: nowhere
    restore: str  # the state to start from: see `Rejoin`
    trace: bool = False  # write every op with its times to that folder
    term: int = 0  # of the coordinator that has the run, larger than of those before: see `claims`
    cut: str = ""  # the newest checkpoint; a stage without a whole snapshot begins from there


class Refused(Message, frozen=True, tag=True):
    """You are not: the reason, for the user."""

    kind: str
    text: str


class Connect(Message, frozen=True, tag=True):
    """All are built: where each neighbour listens, and where in the data the round starts."""

    incarnation: int  # of the receiver
    addresses: dict[str, str]  # worker -> endpoint
    incarnations: dict[str, int]
    start: int = 0  # the next training batch to be read
    barrier: int = 0  # number of the next barrier
    planned: int = 0  # how many barriers of the plan have been lifted


class Start(Message, frozen=True, tag=True):
    """All are ready: go."""


class Lost(Message, frozen=True, tag=True):
    """A neighbour is dead, and will be replaced: go on without it until then."""

    worker: str


class Rejoin(Message, frozen=True, tag=True):
    """Drop what is in flight and join the next round, from the state that `restore` names.

    "keep": as it is; "initial": as from the seed; "snapshots": the worker's own last one;
    "checkpoints/NUMBER": that cut. The last two are folders in the folder of the run.
    """

    incarnation: int
    restore: str


class Evaluate(Message, frozen=True, tag=True):
    """All have drained: run the test set through."""

    barrier: int


class Save(Message, frozen=True, tag=True):
    """Write weights as `tag` ("best", "final"), or the whole state as "checkpoints/NUMBER"."""

    tag: str


class Resume(Message, frozen=True, tag=True):
    """The barrier is lifted."""

    barrier: int


class Leave(Message, frozen=True, tag=True):
    """All is done: exit 0."""


class Close(Message, frozen=True, tag=True):
    """To the worker that reads the data: set a barrier of this kind as soon as may be."""

    kind: str  # "checkpoint" or "final"


class Abort(Message, frozen=True, tag=True):
    """Something failed elsewhere: exit now."""

    text: str


# --- between workers -----------------------------------------------------------------------------


class Greeting(Message, frozen=True, tag=True):
    """First on every link of a round: whoever gets it has been reached. Again until `Start`."""

    sender: str  # a worker's name
    incarnation: int
    to: str  # the worker that it is meant for, as another may listen at that address


class Activation(Message, frozen=True, tag=True):
    """One batch on its way down. Tensors: "h", and what travels along: see `data.meta`."""

    sender: str  # producing node: a worker's name, or "data"
    incarnation: int
    batch: int
    samples: int
    tensors: dict[str, Any]
    evaluate: bool = False
    last: bool = False  # of the test set
    waited: bool = False  # its sender was out of credit before


class Gradient(Message, frozen=True, tag=True):
    """The gradient of one batch on its way up, one tensor for each consuming declared stage."""

    sender: str
    incarnation: int
    batch: int
    tensors: dict[str, Any]


class Barrier(Message, frozen=True, tag=True):
    """Travels behind the last activation: drain, then wait for the coordinator."""

    sender: str
    incarnation: int
    barrier: int
    kind: str  # "evaluate", "checkpoint", "final"


class Credit(Message, frozen=True, tag=True):
    """Cumulative counts of activations on one link: duplicates and losses do no harm."""

    sender: str
    incarnation: int
    node: str  # of the link's producing end: a worker's name, or "data"
    taken: int
    allowed: int


class Skipped(Message, frozen=True, tag=True):
    """From a consumer: no gradient of this batch will come. From a producer: no activation will."""

    sender: str
    incarnation: int
    batch: int


class Shared(Message, frozen=True, tag=True):
    """To a worker that has stages of the same weights: the gradients of one update, summed over its
    samples, one vector for each declared stage that has learned from them."""

    sender: str
    incarnation: int
    batch: int  # that the update is made on behalf of
    tensors: dict[str, Any]
