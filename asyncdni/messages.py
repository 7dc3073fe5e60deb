"""All messages of the wire protocol, as frozen types. See docs/protocol.md.

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
   │ ◄─────────── Scored │   │  if that was behind the stream
   │ ◄───────────── Save │   │  if there is something to keep
   │ Saved ────────────► │   │                  owner                 reader
   │ ◄─── Resume | Leave │   │                    │ Weights ──────────► │
   │ ◄───── Lost, Rejoin │ ──┘  some worker has died
   │ ◄──────────── Steer │      at any time, from the page of the run
```

Control messages (left) and data messages (right) use separate sockets. A message is one MessagePack
header (`[tag, field, …]`) and, for the four kinds with tensors, one raw frame for each tensor.
Tensors are opaque here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

__all__ = [
    "PART_BYTES",
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
    "Dismiss",
    "Drained",
    "Ended",
    "Engage",
    "Enrol",
    "Enrolled",
    "Evaluate",
    "Evaluated",
    "Failed",
    "Fetch",
    "Gradient",
    "Greeting",
    "Guarded",
    "Hello",
    "Introduce",
    "Leave",
    "Lost",
    "Message",
    "Missing",
    "Note",
    "Part",
    "Ready",
    "Refused",
    "Rejoin",
    "Report",
    "Resume",
    "Save",
    "Saved",
    "Scored",
    "Shared",
    "Skipped",
    "Start",
    "Steer",
    "Taken",
    "Unheard",
    "Weights",
    "Welcome",
    "WithTensors",
]

#: The protocol's version. It rises with every change that an older peer would not understand.
PROTOCOL_VERSION = 9

#: The most bytes of a file that one message carries.
PART_BYTES = 256 * 1024
#: Names in addresses and in the graph that no stage may have.
COORDINATOR = "coordinator"
#: The node that hands out batches; the worker of the first stage that reads data hosts it.
DATA = "data"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the tag is the class name."""


# --- worker to coordinator -----------------------------------------------------------------------


class Hello(Message, frozen=True, tag=True):
    """A worker's first message: which stage it wants and where it listens for data."""

    protocol: int
    stage: str  # name or index, as given on the command line
    address: str  # ZeroMQ endpoint of its data socket
    pid: int
    host: str
    versions: dict[str, str] = {}  # "Python", "asyncdni", "torch"; empty: it does not say
    # of the last round, where an earlier coordinator has let this worker in; 0: it has no state
    incarnation: int = 0


class Built(Message, frozen=True, tag=True):
    """The stage is built and its state restored: the worker is ready to be connected."""

    incarnation: int
    parameters: int
    position: int  # training batches that have passed here, skipped ones included
    updates: int  # updates made so far in this state
    read: int  # training batches read by the host of the data; 0 elsewhere
    notes: list[str] = []  # what could not be restored, for the user
    sources: dict[str, str] = {}  # module of the user's code -> sha256 of its source


class Ready(Message, frozen=True, tag=True):
    """The worker has greeted all neighbours and received all their greetings."""

    incarnation: int


class Unheard(Message, frozen=True, tag=True):
    """The worker has waited for greetings of these neighbours for some time; sent when they
    change."""

    incarnation: int
    workers: list[str]


class Drained(Message, frozen=True, tag=True):
    """The worker has applied everything up to the barrier and has nothing in flight."""

    incarnation: int
    barrier: int
    kind: str  # of the barrier
    position: int  # training batches that have passed here, skipped ones included


class Accused(Message, frozen=True, tag=True):
    """A neighbour has broken the protocol; its message has been dropped."""

    worker: str
    incarnation: int  # of the neighbour
    text: str


class Evaluated(Message, frozen=True, tag=True):
    """The sums over the test set for one loss: see `stages.base.Score`."""

    barrier: int
    stage: str
    samples: int
    loss: float
    correct: int | None
    outputs: int
    steps: int | None = None  # for windows: the steps that count, over which the loss is summed
    metrics: dict[str, float | None] = {}  # further ones, by name; None: not a finite number
    # Of an evaluation behind the stream: which copy of the weights (the number of the batch before
    # which it was made), training samples learned by then, and how long ago that was.
    copy: int | None = None  # None: at the barrier
    learned: int = 0
    age_s: float = 0.0


class Saved(Message, frozen=True, tag=True):
    """The weights, or all state, of this worker's stages are on disk."""

    tag: str
    files: dict[str, str]  # declared stage -> sha256 of its file


class Report(Message, frozen=True, tag=True):
    """The worker's counters and times since the start, sent twice a second: see
    `report.records`."""

    counters: dict[str, float | int | None]
    loss_sum: float = 0.0  # over training batches since the last report
    loss_samples: int = 0
    slices: list[list[int]] = []  # its newest ops, if `Steer.show` asks for them: see `core.slices`


class Guarded(Message, frozen=True, tag=True):
    """The guard of this worker's generator has changed its decision."""

    waiting: bool  # whether the stage waits for true gradients from now on
    cosine: float  # mean agreement of the generator with them, over the guard's window


class Failed(Message, frozen=True, tag=True):
    """The worker stops because of an error."""

    kind: str  # a class name in `errors`, or the exception's own
    text: str
    trace: str  # empty for errors meant for the user
    batch: int = -1  # the training batch whose numbers went wrong; -1: not known, or other errors


class Fetch(Message, frozen=True, tag=True):
    """The worker has no access to the folder of the run and asks for a file of it."""

    incarnation: int
    path: str  # in the folder of the run


class Part(Message, frozen=True, tag=True):
    """Bytes of a file of the run's folder, in both directions: what a worker without access to that
    folder has written, or has asked for. From an agent: what is new in a worker's log."""

    incarnation: int  # of the worker; 0: an agent sends it
    path: str  # in the folder of the run
    offset: int  # of the first of these bytes in the file
    size: int  # of the whole file, in bytes; of a log so far
    data: bytes  # 1 to PART_BYTES
    sha256: str = ""  # of the whole file, in its last part


class Taken(Message, frozen=True, tag=True):
    """The bytes of a file up to `offset` are written; if these are all, it is in its place."""

    incarnation: int
    path: str
    offset: int


class Beat(Message, frozen=True, tag=True):
    """A sign of life, in both directions; any other message is one too."""


# --- coordinator to worker -----------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=True):
    """The worker is admitted; this is all it needs to build its part."""

    stage: str
    incarnation: int
    experiment: dict[str, Any]
    meta: dict[str, Any]  # shapes of the data: see `data.meta.Meta`
    folder: str  # the run's folder, where weights are written; empty: nowhere
    restore: str  # the state to start from: see `Rejoin`
    trace: bool = False  # whether to write every op with its times to that folder
    term: int = 0  # the coordinator's term, larger than any earlier one's: see `claims`
    cut: str = ""  # the newest checkpoint; a stage without a whole snapshot begins from it


class Introduce(Message, frozen=True, tag=True):
    """To a worker, or an agent, of an earlier coordinator: this one has taken that one's place and
    does not know the sender yet, which is to send its first message again."""


class Refused(Message, frozen=True, tag=True):
    """The worker is not admitted; the text gives the reason for the user."""

    kind: str
    text: str


class Connect(Message, frozen=True, tag=True):
    """All workers are built: where each neighbour listens, and where in the data the round
    starts."""

    incarnation: int  # of the receiver
    addresses: dict[str, str]  # worker -> endpoint
    incarnations: dict[str, int]
    start: int = 0  # the next training batch to be read
    barrier: int = 0  # number of the next barrier
    planned: int = 0  # how many barriers of the plan have been passed


class Start(Message, frozen=True, tag=True):
    """All workers are ready: begin to train."""


class Lost(Message, frozen=True, tag=True):
    """A neighbour is dead and will be replaced: go on without it until then."""

    worker: str


class Missing(Message, frozen=True, tag=True):
    """The file that the worker has asked for is not there."""

    incarnation: int
    path: str


class Note(Message, frozen=True, tag=True):
    """Something that whoever reads this worker's log should know: over one of its links nothing
    comes."""

    text: str


class Steer(Message, frozen=True, tag=True):
    """What those who watch the run ask of this worker from now on, in place of what they have asked
    before. A worker that has not been sent one shows nothing and is as fast as it can be."""

    show: int = 0  # the most ops of a slice to send with reports: see `core.slices`; 0: none
    factor: float = 1.0  # every op takes so many times as long, beside what [slow] says
    latency_s: dict[str, float] = {}  # by neighbour: messages to it take so much longer
    added_s: float = 0.0  # and every op so many seconds more


class Rejoin(Message, frozen=True, tag=True):
    """Drop what is in flight and join the next round, with the state that `restore` names.

    "keep": the present state; "initial": that of the seed; "snapshots": the worker's own last
    snapshot; "checkpoints/NUMBER": that cut. The last two are folders in the folder of the run.
    """

    incarnation: int
    restore: str


class Evaluate(Message, frozen=True, tag=True):
    """All workers have drained: evaluate the test set."""

    barrier: int


class Scored(Message, frozen=True, tag=True):
    """All scores of an evaluation behind the stream are in: drop that copy of the weights, or hold
    it to be saved."""

    copy: int
    best: bool  # hold it, in the place of an older one


class Save(Message, frozen=True, tag=True):
    """Write weights as `tag` ("best", "final"), or the whole state as "checkpoints/NUMBER"."""

    tag: str
    copy: int | None = None  # the weights of this copy; None: the present ones


class Resume(Message, frozen=True, tag=True):
    """The barrier is lifted: go on training."""

    barrier: int


class Leave(Message, frozen=True, tag=True):
    """All is done: exit with code 0."""


class Close(Message, frozen=True, tag=True):
    """To the worker that reads the data: set a barrier of this kind as soon as possible."""

    kind: str  # "checkpoint" or "final"


class Abort(Message, frozen=True, tag=True):
    """Something failed elsewhere: exit now."""

    text: str


# --- between workers -----------------------------------------------------------------------------


class Greeting(Message, frozen=True, tag=True):
    """The first message on every link in a round, repeated until `Start`: it shows that the link
    works."""

    sender: str  # a worker's name
    incarnation: int
    to: str  # the intended receiver; another worker may listen at that address


class Activation(Message, frozen=True, tag=True):
    """The activation of one batch. Tensors: "h", and those that travel along: see `data.meta`."""

    sender: str  # producing node: a worker's name, or "data"
    incarnation: int
    batch: int
    samples: int
    tensors: dict[str, Any]
    evaluate: bool = False
    last: bool = False  # the last batch of the test set
    waited: bool = False  # whether its sender had to wait for credit


class Gradient(Message, frozen=True, tag=True):
    """The gradient of one batch, with one tensor for each consuming declared stage."""

    sender: str
    incarnation: int
    batch: int
    tensors: dict[str, Any]


class Barrier(Message, frozen=True, tag=True):
    """Follows the last activation: drain, then wait for the coordinator."""

    sender: str
    incarnation: int
    barrier: int
    kind: str  # "evaluate", "checkpoint", "final"


class Credit(Message, frozen=True, tag=True):
    """Cumulative counts of activations on one link, so duplicates and lost messages do no harm."""

    sender: str
    incarnation: int
    node: str  # of the link's producing end: a worker's name, or "data"
    taken: int
    allowed: int
    evaluate: bool = False  # of test batches, where these have a credit of their own


class Skipped(Message, frozen=True, tag=True):
    """From a consumer: it sends no gradient of this batch. From a producer: it sends no
    activation."""

    sender: str
    incarnation: int
    batch: int


class Shared(Message, frozen=True, tag=True):
    """To a worker with stages of the same weights: the gradients of one update.

    There is one tensor (M, N) for each declared stage that has learned from them: for each of M
    microbatches, the gradient of the N weights, summed over its samples.
    """

    sender: str
    incarnation: int
    batch: int  # the batch that the update belongs to
    tensors: dict[str, Any]


class Weights(Message, frozen=True, tag=True):
    """To a worker whose generator reads out through weights of the sender: a copy of them, named as
    in the sender's stage. One that is no newer than the receiver's is dropped."""

    sender: str
    incarnation: int
    version: int  # how many updates the sender had made
    tensors: dict[str, Any]


# --- between the agents of a run's machines and its coordinator -----------------------------------


class Enrol(Message, frozen=True, tag=True):
    """An agent's first message: its place among all, and the machine that it starts workers on."""

    protocol: int
    rank: int
    ranks: int
    digest: str  # of the experiment that was asked for there; empty: none was
    pid: int
    host: str
    cores: int  # that it may use
    memory_bytes: int  # of the machine; 0: the system does not tell
    running: list[str] = []  # workers that an earlier coordinator has had started there, and live
    gpus: int = 0  # that it may use


class Enrolled(Message, frozen=True, tag=True):
    """The answer to an agent that may take part: what all workers on its machine need."""

    workers: list[str]  # those that it will be asked to start
    coordinator: str  # the address that they connect to
    folder: str  # the folder of the run
    threads: int  # of each worker's BLAS
    silence_s: float  # how often to beat: see `beat.Heart`
    coordinator_s: float = 0.0  # how long to wait for a coordinator that has died
    term: int = 0  # the coordinator's, as in `Welcome`; 0: it does not take logs
    libraries: list[str] = []  # that its workers need: see `launch.forkserver.LIBRARIES`


class Engage(Message, frozen=True, tag=True):
    """To an agent: start this worker, or end what is left of its process and start it again."""

    worker: str


class Ended(Message, frozen=True, tag=True):
    """From an agent: the process of a worker has ended."""

    worker: str
    code: int  # below 0: the signal that has killed it
    last_lines: str  # of its output


class Dismiss(Message, frozen=True, tag=True):
    """To an agent: the run is over. Leave with this exit code; `text` is the reason if it has
    failed."""

    code: int
    text: str


#: The kinds of messages that carry tensors.
WithTensors: TypeAlias = Activation | Gradient | Shared | Weights
