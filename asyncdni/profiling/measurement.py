"""Measure how long each op of each declared stage takes, and how many bytes each message has.

The schedules take turns of a few batches in one process with one BLAS thread, so that a machine
that gets slower or faster meanwhile affects all of them alike.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.core.events import Action, Compute, Event, Received, Release, Send
from asyncdni.core.worker import Phase, Worker
from asyncdni.delays import LinkDelay
from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.errors import ConfigError, LaunchError
from asyncdni.messages import (
    COORDINATOR,
    Activation,
    Connect,
    Credit,
    Gradient,
    Message,
    Resume,
    Start,
)
from asyncdni.plan.build import (
    Design,
    find_exits,
    lent_readout,
    make_design,
    make_source,
    make_stage,
    make_worker,
)
from asyncdni.plan.plan import Group
from asyncdni.schedules.base import Op
from asyncdni.stages.executor import Executor
from asyncdni.wire import codec
from asyncdni.wire.address import private_folder
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport

__all__ = [
    "SENDING",
    "WARM_UP",
    "Edge",
    "Hop",
    "Measurement",
    "Observer",
    "OpTime",
    "Rehearsal",
    "Wire",
    "check_priced",
    "last_level_bytes",
    "make_cache_flush",
    "measure",
    "measure_both",
    "measure_wire",
    "schedules_of",
]

# --- rehearsal -----------------------------------------------------------------------------------


class Observer(Protocol):
    """An object whose methods are called for each op and each message between workers."""

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        """Note that a worker has done an op; `cpu_s` is the CPU time of this thread inside it."""

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        """Note that a worker has sent a message; `frames` are the bytes of its header and of each
        tensor."""

    def handled(self, cpu_s: float) -> None:
        """Note that a worker's logic has handled the first event of a turn in `cpu_s` of this
        thread's CPU time."""


@dataclass
class _Actor:
    """One worker with its executor, and the messages and op to handle next."""

    worker: Worker
    executor: Executor
    parameters: int
    inbox: list[Message] = field(default_factory=list)
    pending: Compute | None = None
    turn_begins: bool = False


class Rehearsal:
    """Trains a design on `segments` times `batches` batches, without tests and without saving.

    All workers run in this process by turns, with the real logic and the real maths but no waiting.
    A turn ends when its worker has nothing more to do. With a window of one batch between any two
    workers this is the order of training: a stage does all ops of a batch (F P B U, and those on
    gradients that have come back for older batches), then the next stage does. Messages are
    encoded, copied and decoded as on the wire, but handed to the receiver directly.
    """

    def __init__(
        self,
        design: Design,
        observer: Observer,
        *,
        segments: int,
        batches: int,
        before_turn: Callable[[], None] | None = None,
    ) -> None:
        """Build the stages and load the data. Raises what these raise.

        `before_turn` is called before each turn of a worker that has something to do.
        """
        ends = tuple(batches * (number + 1) for number in range(segments))
        plan = replace(design.plan, batches=ends[-1], barriers=ends, test_batches=0)
        limits = msgspec.structs.replace(design.experiment.limits, window=1, window_max=1)
        chosen = msgspec.structs.replace(design.experiment, limits=limits)
        self._design = replace(design, experiment=chosen, plan=plan)
        self._observer = observer
        self._before_turn = before_turn
        self._actors = {group.name: self._actor(group) for group in plan.groups}
        self._barrier = -1

    @property
    def parameters(self) -> dict[str, int]:
        """Return how many parameters each worker trains, without those of its generator."""
        return {name: actor.parameters for name, actor in self._actors.items()}

    def advance(self) -> None:
        """Train on the batches of the next segment, until all workers have drained."""
        order = Start() if self._barrier < 0 else Resume(self._barrier)
        self._barrier += 1
        for actor in self._actors.values():
            actor.inbox.append(order)
        while any(actor.inbox for actor in self._actors.values()):
            for name, actor in self._actors.items():
                self._take_turn(name, actor)
        drained = all(actor.worker.phase is Phase.DRAINED for actor in self._actors.values())
        assert drained, "a worker waits for a message that nobody sends"

    def _actor(self, group: Group) -> _Actor:
        design = self._design
        worker = make_worker(design, group)
        worker.joined(Connect(1, {}, {other.name: 1 for other in design.plan.groups}))
        stage = make_stage(design, group)
        source = make_source(design, group)
        executor = Executor(stage, find_exits(design), source, readout=lent_readout(design, group))
        return _Actor(worker, executor, stage.parameters())

    def _take_turn(self, name: str, actor: _Actor) -> None:
        """Give a worker its turn: it handles messages and does ops as long as it has any."""
        actor.turn_begins = bool(actor.inbox) or actor.pending is not None
        if self._before_turn is not None and actor.turn_begins:
            self._before_turn()
        while actor.inbox or actor.pending is not None:
            inbox, actor.inbox = actor.inbox, []
            for message in inbox:
                self._handle(name, actor, Received(message))
            compute, actor.pending = actor.pending, None
            if compute is not None:
                began = time.thread_time()
                event = actor.executor.compute(compute)
                self._observer.op(name, compute.op, time.thread_time() - began)
                self._handle(name, actor, event)

    def _handle(self, name: str, actor: _Actor, event: Event) -> None:
        now, began = time.monotonic(), time.thread_time()
        actions = actor.worker.handle(event, now)
        took_s = time.thread_time() - began
        if actor.turn_begins:
            self._observer.handled(took_s)
            actor.turn_begins = False
        for action in actions:
            self._carry_out(name, actor, action)

    def _carry_out(self, name: str, actor: _Actor, action: Action) -> None:
        match action:
            case Compute():
                actor.pending = action
            case Send(to=to, message=message):
                if to != COORDINATOR:
                    assert isinstance(to, str)
                    self._send(name, to, message)
            case Release(batch=batch):
                actor.executor.release(batch, _sent)
            case _:
                raise TypeError(f"a rehearsal can't carry out {action!r}")

    def _send(self, sender: str, to: str, message: Message) -> None:
        frames = [bytes(frame) for frame in codec.encode(message)]
        self._observer.message(sender, to, message, [len(frame) for frame in frames])
        limits = self._design.experiment.limits
        self._actors[to].inbox.append(codec.decode(frames, limits))


def _sent() -> bool:
    """Tell whether a sent array's memory is free: always, as messages here are copies."""
    return True


# --- caches --------------------------------------------------------------------------------------

#: Size of the last-level cache if the system does not tell it.
_USUAL_BYTES = 32 * 2**20
_BYTES_MAX = 256 * 2**20
_LINE_BYTES = 64
#: How much memory to read to empty the caches, in times of their size. Once is too little, since
#: caches don't strictly evict the oldest line.
_MORE = 1.5


def make_cache_flush() -> Callable[[], None]:
    """Make a function that empties this core's caches, by reading more memory than they hold. It
    takes some milliseconds.

    An op after it costs what it costs a worker whose core others have used in between.
    """
    memory = np.ones(round(_MORE * last_level_bytes()), np.uint8)
    lines = memory[::_LINE_BYTES]

    def flush() -> None:
        lines.sum()

    return flush


def last_level_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the largest cache, at most 256 MiB; 32 MiB if the system does not
    tell."""
    sizes = [_bytes(path) for path in folder.glob("index*/size")]
    largest = max(sizes, default=0)
    return min(largest, _BYTES_MAX) if largest else _USUAL_BYTES


def _bytes(path: Path) -> int:
    """Return the bytes that a file such as "32768K" states; 0 if it states no size."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    number, unit = text[:-1], text[-1:]
    factor = {"K": 2**10, "M": 2**20}.get(unit, 0)
    return int(number) * factor if number.isdecimal() else 0


# --- measuring -----------------------------------------------------------------------------------

#: How many batches of one schedule follow each other: a multiple of the interval, in batches, of
#: any op under `Options.rehearsed`.
_SEGMENT = 8
#: Batches at the start that are not counted, as they touch memory for the first time.
WARM_UP = 2 * _SEGMENT


@dataclass(frozen=True)
class OpTime:
    """CPU seconds of one op on one batch."""

    count: int
    median_s: float
    low_s: float  # a quarter took less
    high_s: float  # a quarter took more


@dataclass(frozen=True)
class Edge:
    """One kind of message from a stage (or the data) to another stage."""

    sender: str
    to: str
    kind: str  # "activation" or "gradient"
    header_bytes: int
    tensor_bytes: int


@dataclass(frozen=True)
class Measurement:
    """The measured times and sizes, with every declared stage in a worker of its own."""

    batches: int  # counted batches of each schedule, without warm-up
    parameters: dict[str, int]  # by stage, without the generator's
    times: dict[str, dict[str, OpTime]]  # by stage and letter (or SENDING), of all schedules
    edges: tuple[Edge, ...]
    event: OpTime  # CPU seconds of a worker's logic, for the first event of its turn


def measure(design: Design, batches: int, *, cold: bool = False) -> Measurement:
    """Train on `batches` batches, after some to warm up, under each schedule in `schedules_of`.

    With `cold`, the processor's caches are emptied before each turn of a worker, as if other
    workers had used its core. Otherwise the caches stay warm.

    Schedules that wait for true gradients do the same ops as `locked`, so `locked` is rehearsed in
    their place, on microbatches if they cut batches up. Raises `ConfigError` for options that are
    not priced (see `check_priced`), `DataError` if the data can't be loaded, and what training
    raises.
    """
    with threadpool_limits(1):
        return _Rehearsals(design, (batches,)).counted(batches, cold=cold)


def measure_both(
    design: Design, batches: int, cold_batches: int, limit_s: float = math.inf
) -> tuple[Measurement, Measurement]:
    """Measure with warm caches, then with cold ones, as `measure` does, but warm up once.

    Each of the two ends after `limit_s` seconds even if fewer batches have been counted, but not
    before some have.
    """
    with threadpool_limits(1):
        rehearsals = _Rehearsals(design, (batches, cold_batches))
        warm = rehearsals.counted(batches, limit_s=limit_s)
        return warm, rehearsals.counted(cold_batches, cold=True, limit_s=limit_s)


class _Rehearsals:
    """A rehearsal of each schedule in `schedules_of` that has ops of its own, taking turns."""

    def __init__(self, design: Design, parts: Sequence[int]) -> None:
        """Build all stages, and warm up. `parts` are the numbers of batches that `counted` will be
        called with. Raises what `measure` raises."""
        check_priced(design)
        self._done = 0  # batches of each rehearsal
        self._notes = _Notes(0, 0)
        self._flush: Callable[[], None] | None = None
        segments = (WARM_UP + sum(map(_whole, parts))) // _SEGMENT
        self._rehearsals = [
            Rehearsal(
                *(_apart(design, options), self),
                segments=segments,
                batches=_SEGMENT,
                before_turn=self._before_turn,
            )
            for options in _rehearsed(design)
        ]
        for _ in range(WARM_UP // _SEGMENT):
            self._advance()

    def counted(
        self, batches: int, *, cold: bool = False, limit_s: float = math.inf
    ) -> Measurement:
        """Train on so many more batches, or until `limit_s` seconds have passed, and return what
        they took."""
        self._flush = make_cache_flush() if cold else None
        self._notes = _Notes(self._done, self._done + batches)
        first, ends_s = self._done, time.monotonic() + limit_s
        for _ in range(_whole(batches) // _SEGMENT):
            self._advance()
            if time.monotonic() >= ends_s:
                break
        return Measurement(
            batches=min(batches, self._done - first),
            parameters=self._rehearsals[0].parameters,
            times=self._notes.times(),
            edges=tuple(self._notes.edges()),
            event=_op_time(self._notes.events),
        )

    def _advance(self) -> None:
        for rehearsal in self._rehearsals:
            rehearsal.advance()
        self._done += _SEGMENT

    def _before_turn(self) -> None:
        if self._flush is not None:
            self._flush()

    # --- what an `Observer` does

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        self._notes.op(worker, op, cpu_s)

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        self._notes.message(sender, to, message, frames)

    def handled(self, cpu_s: float) -> None:
        self._notes.handled(cpu_s)


def _whole(batches: int) -> int:
    """Return the batches of as many whole segments as hold `batches`."""
    return -(-batches // _SEGMENT) * _SEGMENT


def check_priced(design: Design) -> None:
    """Check that ops can be measured one by one. Raises `ConfigError` for a schedule whose ops
    differ from batch to batch or from stage to stage, so that they can't be added up."""
    schedule = design.experiment.schedule
    named = next((stage.name for stage in design.experiment.stages if stage.schedule), None)
    wrong = "" if named is None else f"stage {named} has a schedule of its own"
    shared = next((node.name for node in design.network.nodes if node.weights), None)
    if shared is not None:
        wrong = f"stage {shared} uses the weights of another one"
    wrong = schedule.unpriced() or wrong
    if wrong:
        raise ConfigError(
            f"{wrong}: which ops a batch takes then varies, and a profile can't tell what it "
            "costs; leave it out, or train with it and see the summary's times"
        )


def schedules_of(design: Design) -> dict[str, config.Schedule]:
    """Return the schedules to measure, by name: `locked`, and the experiment's own if it is
    another."""
    own = design.experiment.schedule
    return {"locked": config.Locked(split_backward=own.split_backward), own.tag: own}


def _rehearsed(design: Design) -> list[config.Schedule]:
    """Return the schedules to rehearse: those of `schedules_of` that do not do the same ops as
    `locked`."""
    return [one for one in schedules_of(design).values() if one.locks or one.decoupled]


def _apart(design: Design, options: config.Schedule) -> Design:
    """Return the design with every stage in a worker of its own, under the schedule `options`."""
    chosen = design.experiment
    changed = msgspec.structs.replace(
        chosen,
        data=msgspec.structs.replace(chosen.data, batch_size=design.plan.batch_size),
        run=msgspec.structs.replace(chosen.run, split=None),
        schedule=options.rehearsed(),
        # Tables about links and workers are left out, as they name other workers.
        staleness=config.Staleness(),
        links=config.Links(),
        slow={},
    )
    return make_design(changed, design.meta, allow_import=design.allow_import)


@dataclass
class _Notes:
    """An `Observer` that notes times and sizes, of the batches from `first` up to `end`."""

    first: int
    end: int
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    sizes: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)
    events: list[float] = field(default_factory=list)

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        if self.first <= op.batch < self.end:
            letter = SENDING if op.letter == "B" and op.send else op.letter
            self.seconds.setdefault(worker, {}).setdefault(letter, []).append(cpu_s)

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        if isinstance(message, Activation | Gradient):
            key = (message.sender, to, type(message).__name__.lower())
            known = self.sizes.get(key, (0, 0))
            # The last batch of an epoch may be smaller.
            self.sizes[key] = max(known[0], frames[0]), max(known[1], sum(frames[1:]))

    def handled(self, cpu_s: float) -> None:
        self.events.append(cpu_s)

    def times(self) -> dict[str, dict[str, OpTime]]:
        return {
            worker: {letter: _op_time(seconds) for letter, seconds in ops.items()}
            for worker, ops in self.seconds.items()
        }

    def edges(self) -> list[Edge]:
        return [Edge(*key, *sizes) for key, sizes in self.sizes.items()]


def _op_time(seconds: Sequence[float]) -> OpTime:
    if len(seconds) < 2:
        return OpTime(len(seconds), *[seconds[0]] * 3)
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return OpTime(len(seconds), middle, low, high)


# --- wire ----------------------------------------------------------------------------------------

#: Sizes of the tensor in a message, in bytes; 0: a message without tensors.
_SIZES = (0, 2**14, 2**16, 2**18, 2**20)
_REPEATS = 30
#: The first messages are not counted, as connections are made and buffers grow.
_FIRST = 5
_PATIENCE_S = 5.0
_NAME = "there"
#: A negligible delay, in seconds.
_HELD_S = 1e-6


@dataclass(frozen=True)
class Hop:
    """The cost of one message from a worker to another, in seconds."""

    send_s: float  # CPU time of the thread that sends it
    move_s: float  # CPU time of the threads that move it, at both ends together
    receive_s: float  # CPU time of the thread that wakes up and receives it
    latency_s: float  # from the call that sends it until the receiver knows that it has arrived


@dataclass(frozen=True)
class Wire:
    """The costs of messages by their size. `warm`: one right after another; `cold`: after the
    caches have been emptied."""

    sizes: tuple[int, ...]  # bytes of the tensor
    warm: tuple[Hop, ...]
    cold: tuple[Hop, ...]
    # CPU time of checking for messages when there are none: (warm, cold)
    look_s: tuple[float, float]

    def warm_hop(self, tensor_bytes: int) -> Hop:
        """Return the hop of a message with warm caches; between measured sizes, and above the
        largest, times follow a straight line."""
        return _between(self.sizes, self.warm, tensor_bytes)

    def cold_hop(self, tensor_bytes: int) -> Hop:
        """Return the hop of a message with cold caches, as `warm_hop` does."""
        return _between(self.sizes, self.cold, tensor_bytes)


def measure_wire(
    sizes: Sequence[int] = _SIZES, repeats: int = _REPEATS, *, held: bool = False
) -> Wire:
    """Measure what messages cost on this machine, CPU time at both ends and latency; takes about
    half a second.

    Two ends of the real transport are in one process, over the same kind of socket that local
    workers use. One message at a time is sent, waited for and received. The CPU time of the process
    includes that of ZeroMQ's threads, which move the bytes.

    With `held`, messages go over a link that `[links]` slows down, with a negligible delay: this
    measures the cost of holding a message back and sending it later. Raises `LaunchError` if no
    socket can be opened or no message arrives.
    """
    flush = make_cache_flush()
    with private_folder() as folder:
        coordinator = CoordinatorTransport(f"ipc://{folder}/wire")
        ends = [WorkerTransport(coordinator.address) for _ in range(2)]
        try:
            if held:
                delay = LinkDelay(latency_s=_HELD_S, seed=0, sender="here", receiver=_NAME)
                ends[0].emulate({_NAME: delay})
            ends[0].connect({_NAME: ends[1].address})
            return _measured(ends[0], ends[1], flush, tuple(sizes), repeats)
        finally:
            for end in ends:
                end.close(0.0)
            coordinator.close(0.0)


def _measured(
    sender: WorkerTransport,
    receiver: WorkerTransport,
    flush: Callable[[], None],
    sizes: tuple[int, ...],
    repeats: int,
) -> Wire:
    hops: list[list[Hop]] = [[], []]
    looks: list[list[float]] = [[], []]
    for size in sizes:
        message = _message(size)
        for found, times, before in zip(hops, looks, (None, flush), strict=True):
            samples = [_one(sender, receiver, message, before) for _ in range(_FIRST + repeats)]
            columns = list(zip(*samples[_FIRST:], strict=True))
            medians = [statistics.median(one) for one in columns]
            found.append(Hop(*medians[:-1]))
            times.append(medians[-1])
    warm, cold = (tuple(found) for found in hops)
    return Wire(sizes, warm, cold, (statistics.median(looks[0]), statistics.median(looks[1])))


def _message(size: int) -> Message:
    if not size:
        return Credit("here", 1, _NAME, 1, 2)
    tensors = {"h": np.zeros(size // 4, np.float32), "y": np.zeros(256, np.int64)}
    return Activation("here", 1, 1, 256, tensors)


def _one(
    sender: WorkerTransport,
    receiver: WorkerTransport,
    message: Message,
    before: Callable[[], None] | None,
) -> tuple[float, float, float, float, float]:
    """Send one message: return the four times of a `Hop`, and the CPU time of a check that finds
    nothing."""
    if before is not None:
        before()
    looked = time.thread_time()
    receiver.receive(0.0)
    process, began = time.process_time(), time.perf_counter()
    sending = time.thread_time()
    sender.send(_NAME, message)
    sent = time.thread_time()
    found: list[Message] = []
    while not found:  # a socket may wake up without a message
        receiver.wait(_PATIENCE_S)
        woken = time.perf_counter()
        found = receiver.receive(0.0)
        if not found and woken - began > _PATIENCE_S:
            raise LaunchError(f"no message has come over a local socket within {_PATIENCE_S:g} s")
    received = time.thread_time()
    moved_s = max(0.0, time.process_time() - process - (received - sending))
    return sent - sending, moved_s, received - sent, woken - began, sending - looked


def _between(sizes: Sequence[int], hops: Sequence[Hop], size: int) -> Hop:
    if size <= sizes[0] or len(sizes) == 1:
        return hops[0]
    upper = min(bisect_right(sizes, size), len(sizes) - 1)
    low, high = hops[upper - 1], hops[upper]
    share = (size - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
    values = zip(astuple(low), astuple(high), strict=True)
    return Hop(*(below + share * (above - below) for below, above in values))
