"""What a simulated run takes for granted: how long ops and messages take. All of it virtual.

The conditions of the experiment ([links], [slow]) come on top: see `delays`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from asyncdni.core.events import Action, Compute, Event, Received, Send
from asyncdni.delays import Slow
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.messages import DATA, Activation, Gradient, Message, Shared, Weights, WithTensors
from asyncdni.plan.build import Design, readout_forms
from asyncdni.plan.conditions import link_encodings
from asyncdni.plan.describe import parameters
from asyncdni.plan.plan import shared_with
from asyncdni.schedules.base import Groups, Op, OpKind

__all__ = [
    "SENDING",
    "Burden",
    "Cores",
    "Costs",
    "EstimatedBytes",
    "Hop",
    "Hosts",
    "Links",
    "MessageBytes",
    "Pace",
    "Span",
    "around",
    "tensor_bytes",
]

#: A Backward that also computes and sends the gradient of the inputs, in `Costs.measured`; `B`
#: there does not.
SENDING = "B_send"
#: Microseconds of what was done a moment ago, and of the same once caches have forgotten it.
Span = tuple[float, float]


@dataclass(frozen=True)
class Costs:
    """Microseconds of each op at one stage, and by how much they vary.

    The defaults are in proportion to a dense layer of 256 on a batch of 256: a backward is two
    matrix products where a forward is one, the generator's share is small.
    """

    read_us: float = 50.0
    forward_us: float = 100.0
    predict_us: float = 30.0
    backward_us: float = 200.0
    relay_us: float = 100.0  # a backward that only passes a gradient on
    learn_us: float = 100.0  # the rest of such a backward
    update_us: float = 50.0
    copy_us: float = 50.0  # of weights that others read, to give away or to take over
    fit_us: float = 50.0
    fit_input_us: float = 100.0
    evaluate_us: float = 100.0
    hold_us: float = 10.0
    save_us: float = 1000.0
    startup_us: float = 100_000.0  # from the start of a process to its Hello
    jitter: float = 0.0  # each takes between 1 - jitter and 1 + jitter times as long
    scale: Mapping[str, float] = field(default_factory=dict)  # by declared stage; default 1
    # By worker and letter of the op (or SENDING), in place of all that: what was measured.
    measured: Mapping[str, Mapping[str, Span]] = field(default_factory=dict)

    def of(self, op: Op) -> float:
        """Microseconds of an op at a stage of scale 1."""
        match op.kind:
            case OpKind.READ:
                return self.read_us
            case OpKind.FORWARD:
                return self.forward_us
            case OpKind.PREDICT:
                return self.predict_us
            case OpKind.BACKWARD:
                return self.backward_us if op.learn else self.relay_us
            case OpKind.LEARN:
                return self.learn_us
            case OpKind.UPDATE | OpKind.APPLY:
                return self.update_us
            case OpKind.COPY | OpKind.ADOPT:
                return self.copy_us
            case OpKind.FIT:
                return self.fit_us
            case OpKind.FIT_INPUT:
                return self.fit_input_us
            case OpKind.EVALUATE:
                return self.evaluate_us
            case OpKind.HOLD:
                return self.hold_us
        raise ValueError(f"{op} takes no time of its own")


@dataclass(frozen=True)
class Hop:
    """CPU time of a message from one worker to another."""

    send: Span = (0.0, 0.0)  # with that of the threads that move it, at both ends
    receive: Span = (0.0, 0.0)


@dataclass(frozen=True)
class Burden:
    """CPU time of a worker's process beside its ops."""

    event: Span = (0.0, 0.0)  # of any: the machine's logic, the loop around it
    message: Hop = Hop()  # without tensors
    tensors: Mapping[tuple[str, str], Hop] = field(default_factory=dict)  # (sender, receiver)


@dataclass(frozen=True)
class Hosts:
    """Machines that workers share, each host an equal part of the network's order.

    They take turns as Linux lets them. A worker keeps its core while it has something to do, for at
    most `slice_us` where others wait for that core (its base slice on two cores). One that wakes up
    gets its last core, or one that is idle, or waits for its last one; a core that is idle takes it
    over after `steals_us` (a tick of the scheduler), not at once.

    What a worker does again costs the first value of its `Span`, and a share 1 - exp(-x) of what
    the second is above it: x is t / forgets_us for a time t that others have been on its core
    since, and t / fades_us for a time t that it has not been on a core.
    """

    cores: int  # of each
    count: int = 1
    pins: Mapping[str, int] = field(default_factory=dict)  # worker -> core of its host
    burden: Burden = Burden()
    slice_us: float = 1400.0
    steals_us: float = 4000.0
    forgets_us: float = 200.0
    fades_us: float = 10_000.0


@dataclass(frozen=True)
class Links:
    """Microseconds of each message on its way, one way. Each link keeps the order of sending."""

    latency_us: float = 100.0  # between workers
    control_latency_us: float = 100.0  # to and from the coordinator, on links of their own
    jitter: float = 0.0  # each takes between 1 - jitter and 1 + jitter times as long
    between: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (sender, receiver)


#: Ops of the generator, which stands at a worker's exit, and of the data: no stage's own.
_NOT_OF_LAYERS = frozenset(
    {OpKind.READ, OpKind.PREDICT, OpKind.FIT, OpKind.FIT_INPUT, OpKind.COPY, OpKind.ADOPT}
)


class Pace:
    """How long each op of one worker takes. A worker of several stages takes as long as all."""

    def __init__(
        self,
        costs: Costs,
        name: str,
        members: tuple[str, ...],
        seed: int,
        slow: Slow | None = None,
    ) -> None:
        self._costs = costs
        self._measured = costs.measured.get(name, {})
        self._spans: dict[tuple[object, ...], Span] = {}
        self._random = random.Random(f"{seed}/{name}/pace")
        self._scale = sum(costs.scale.get(member, 1.0) for member in members)
        self._slow = slow

    def op_s(self, op: Op) -> float:
        """Seconds, those included that a slowed worker sleeps after it."""
        took_s = self._seconds(self.span_us(op)[0])
        return took_s if self._slow is None else took_s + self._slow.after(op, took_s)

    def span_us(self, op: Op) -> Span:
        """CPU time, without `Costs.jitter`."""
        like = op.kind, op.learn, op.send, op.source
        found = self._spans.get(like)
        if found is None:
            found = self._spans[like] = self._span_us(op)
        return found

    def _span_us(self, op: Op) -> Span:
        if self._measured:
            letter = op.letter
            key = SENDING if letter == "B" and op.send else letter
            if key in self._measured:
                return self._measured[key]
        scale = 1.0 if op.kind in _NOT_OF_LAYERS else self._scale
        mean = self._costs.of(op) * scale
        return mean, mean

    def sleep_s(self, op: Op, took_s: float) -> float:
        """After an op that has taken so long: what slows a worker is no CPU time."""
        return 0.0 if self._slow is None else self._slow.after(op, took_s)

    def vary(self, seconds: float) -> float:
        """Vary a duration by `Costs.jitter`."""
        return around(seconds, self._costs.jitter, self._random)

    def save_s(self) -> float:
        return self._seconds(self._costs.save_us)

    def startup_s(self) -> float:
        return self._seconds(self._costs.startup_us)

    def _seconds(self, microseconds: float) -> float:
        return around(microseconds, self._costs.jitter, self._random) * 1e-6


def around(mean: float, jitter: float, source: random.Random) -> float:
    """Uniform between (1 - jitter) and (1 + jitter) times the mean."""
    return mean * (1.0 + jitter * (2.0 * source.random() - 1.0)) if jitter else mean


# --- sizes ---------------------------------------------------------------------------------------

_BATCHES_KEPT = 4096  # of a link; no gradient comes back later than that


class MessageBytes(Protocol):
    """How many bytes a message from one worker to another has on the wire, without its header:
    links of limited bandwidth take their time by it."""

    def __call__(self, sender: str, to: str, message: Message) -> int: ...


def tensor_bytes(sender: str, to: str, message: Message) -> int:
    """Return the bytes of the tensors that `message` carries."""
    if isinstance(message, WithTensors):
        return sum(tensor.nbytes for tensor in message.tensors.values())
    return 0


class EstimatedBytes:
    """The same for runs without arithmetic, whose tensors are tokens: by the shapes of the network.

    A gradient has as many samples as the activation of its batch that went the other way.
    """

    def __init__(self, design: Design) -> None:
        network = design.network
        itemsize = np.dtype(design.experiment.run.dtype).itemsize
        data_bytes = math.prod(network.data_shape) * itemsize
        self._encodings = link_encodings(design.experiment, design.plan)
        #: Of an activation, by producing node: the shape of a sample, and its bytes as it is.
        self._shapes = {DATA: tuple(network.data_shape)}
        for group in design.plan.groups:
            if group.exit is not None:
                self._shapes[group.name] = network.node(group.exit).output_shape
        self._sample_bytes = {
            name: math.prod(shape) * itemsize for name, shape in self._shapes.items()
        }
        targets = 8 if network.targets == "classes" else network.outputs * itemsize
        # Of a sample, by tensor.
        self._context_bytes = {"y": targets * max(1, network.steps), "x": data_bytes}
        for name, tensor in design.meta.context.items():
            size = 1 if tensor.dtype == "bool" else itemsize
            self._context_bytes[name] = math.prod(tensor.shape) * size
        #: Of a microbatch's gradient of weights that several workers have, by declared stage.
        self._weights_bytes = {
            name: parameters(network.node(name), allow_import=design.allow_import) * itemsize
            for group in design.plan.groups
            for names in shared_with(design.plan.groups, group).values()
            for name in names
        }
        self._groups = Groups(design.plan.per_update, design.plan.batches_per_epoch)
        self._readout_bytes = sum(
            math.prod(shape) * kind.itemsize for shape, kind in readout_forms(design).values()
        )
        # By (producing worker, consumer), the samples of batches whose gradient has not come yet.
        self._samples: dict[tuple[str, str], dict[int, int]] = {}

    def __call__(self, sender: str, to: str, message: Message) -> int:
        match message:
            case Activation(sender=node, samples=samples, tensors=tensors):
                if not message.evaluate:
                    self._note((sender, to), message.batch, samples)
                context = sum(self._context_bytes.get(name, 0) for name in tensors)
                exact = node == DATA or message.evaluate
                return samples * context + self._bytes(sender, to, node, samples, exact)
            case Gradient(batch=batch, tensors=tensors):
                samples = self._samples.get((to, sender), {}).pop(batch, 0)
                return self._bytes(sender, to, to, samples) * len(tensors)
            case Shared(batch=batch, tensors=tensors):
                vectors = self._groups.length(batch)
                return vectors * sum(self._weights_bytes[name] for name in tensors)
            case Weights():
                return self._readout_bytes
        return 0

    def _bytes(self, sender: str, to: str, node: str, samples: int, exact: bool = False) -> int:
        """Return the bytes of an activation of `node`, or of its gradient."""
        encoding = None if exact else self._encodings.get((sender, to))
        if encoding is None:
            return samples * self._sample_bytes[node]
        return encoding.frame_bytes((samples, *self._shapes[node]))

    def _note(self, link: tuple[str, str], batch: int, samples: int) -> None:
        kept = self._samples.setdefault(link, {})
        kept[batch] = samples
        if len(kept) > _BATCHES_KEPT:  # some schedules send no gradients back
            del kept[next(iter(kept))]


# --- cores ---------------------------------------------------------------------------------------

#: Less than this is none: what is left of floating point.
_NOTHING_S = 1e-12
#: What a worker does beside its ops.
_EVENT, _SEND, _RECEIVE = "event", "send", "receive"


class _Core:
    __slots__ = ("busy_s", "free", "waiting")

    def __init__(self) -> None:
        self.free = True
        self.busy_s = 0.0  # in all
        self.waiting: deque[_Thread] = deque()


#: An op, how long it takes, and what to call at its end.
_Task = tuple[Op, Pace, Callable[[], None]]


class _Thread:
    """One worker's."""

    __slots__ = (
        "busy_s",
        "cold",
        "cold_at",
        "core",
        "cores",
        "doing",
        "left",
        "left_s",
        "owed",
        "placed",
        "task",
        "used_s",
    )

    def __init__(self, cores: Sequence[_Core], core: _Core) -> None:
        self.cores = cores  # it may be placed on
        self.core = core  # the last one
        self.placed = False  # on a core, or waiting for one
        self.task: _Task | None = None  # not begun: how long it takes is seen then
        self.owed: list[tuple[str, Span]] = []  # beside it, not begun
        self.doing: Callable[[], None] | None = None  # at the end of the task under way
        self.left_s = 0.0  # of that, and of what is beside it
        self.used_s = 0.0  # of its slice
        self.busy_s = 0.0  # in all
        self.left = (core, 0.0, 0.0)  # a core, when it had been so busy, at that moment
        self.cold = 0.0  # how much there has been to make caches forget, in all
        self.cold_at: dict[str, float] = {}  # when each thing was done last

    @property
    def has_work(self) -> bool:
        return self.task is not None or bool(self.owed) or self.left_s > 0.0


class Cores:
    """The cores that the workers of each host share: who computes, who waits for a core, and who
    has cold caches.

    ```
     core 0   a F3 P3 B3 U3 │ c F1 P1 B1 U1 │ a F4 …      a worker keeps its core while it has work,
     core 1   b F2 P2 B2 U2 │ b F3 …                       for one slice where others wait
     waiting  c ───────────►  a ───────────►
    ```

    A worker has one thread, for its ops, its logic and its messages. What is beside the ops
    (`Burden`) adds up until the next op, which begins after it, or is worked off at once where
    there is none: a busy host has less time for ops, and an idle worker's overhead delays nobody.
    """

    def __init__(self, agenda: Agenda, hosts: Hosts, workers: Sequence[str]) -> None:
        """`workers`: all of the run, in the network's order."""
        self._agenda = agenda
        self._burden = hosts.burden
        self._slice_s = hosts.slice_us * 1e-6
        self._steals_s = hosts.steals_us * 1e-6
        self._fades_s = hosts.fades_us * 1e-6
        self._forgets_s = hosts.forgets_us * 1e-6
        of_hosts = [[_Core() for _ in range(hosts.cores)] for _ in range(hosts.count)]
        self._workers: dict[str, _Thread] = {}
        for index, name in enumerate(workers):
            cores, pin = of_hosts[index * hosts.count // len(workers)], hosts.pins.get(name)
            core = cores[index % len(cores) if pin is None else pin]
            self._workers[name] = _Thread(cores if pin is None else [core], core)

    def busy_s(self, worker: str) -> float:
        """CPU seconds that its process has had, of ops and all else."""
        return self._workers[worker].busy_s

    def run(self, worker: str, op: Op, pace: Pace, done: Callable[[], None]) -> None:
        """Do an op once there is a core, and what is owed before it; then `done` is called.

        One that was wanted before and has not begun is forgotten: its process has died."""
        thread = self._workers[worker]
        thread.task = op, pace, done
        self._place(thread)

    def _finish(self, op: Op, pace: Pace, done: Callable[[], None], took_s: float) -> None:
        sleep_s = pace.sleep_s(op, took_s)
        if sleep_s > 0.0:
            self._agenda.after(sleep_s, done)
        else:
            done()

    def handled(self, worker: str, event: Event, actions: Sequence[Action]) -> None:
        """A machine has handled an event: what that costs beside the op that may follow from it.

        `run` is called next where there is one. The coordinator costs nothing."""
        thread = self._workers.get(worker)
        if thread is None:
            return
        owed, computes = thread.owed, False
        owed.append((_EVENT, self._burden.event))
        if isinstance(event, Received):
            hop = self._hop(getattr(event.message, "sender", ""), worker, event.message)
            owed.append((_RECEIVE, hop.receive))
        for action in actions:
            if isinstance(action, Send):
                hop = self._hop(worker, str(action.to), action.message)
                owed.append((_SEND, hop.send))
            elif isinstance(action, Compute):
                computes = True
        if not computes:
            self._place(thread)

    def _hop(self, sender: str, to: str, message: Message) -> Hop:
        burden = self._burden
        if isinstance(message, WithTensors):
            return burden.tensors.get((sender, to), burden.message)
        return burden.message

    def _seconds(self, thread: _Thread, what: str, span: Span) -> float:
        """CPU time of something, the more the longer ago it was done last."""
        warm, cold = span
        since = thread.cold - thread.cold_at.get(what, -math.inf)
        thread.cold_at[what] = thread.cold
        return (cold - (cold - warm) * math.exp(-since)) * 1e-6

    # --- taking turns ----------------------------------------------------------------------------

    def _place(self, thread: _Thread) -> None:
        """Something is to be done: on a core now, or in the queue for one."""
        if thread.placed or not thread.has_work:
            return
        thread.placed = True
        if not thread.core.free:
            thread.core = next((core for core in thread.cores if core.free), thread.core)
        if thread.core.free:
            thread.core.free = False
            self._come(thread)
        else:
            thread.core.waiting.append(thread)

    def _come(self, thread: _Thread) -> None:
        """To a core: others have been on it since this thread was, or it comes from another."""
        core, (last, busy_s, at_s) = thread.core, thread.left
        away_s = self._agenda.now - at_s
        others_s = core.busy_s - busy_s if core is last else away_s
        thread.cold += others_s / self._forgets_s + away_s / self._fades_s
        self._go(thread)

    def _go(self, thread: _Thread) -> None:
        """On a core: begin what comes next, or go on, for as long as the slice lasts."""
        for what, span in thread.owed:
            thread.left_s += self._seconds(thread, what, span)
        thread.owed.clear()
        if thread.task is not None and thread.doing is None:
            (op, pace, done), thread.task = thread.task, None
            took_s = pace.vary(self._seconds(thread, op.letter, pace.span_us(op)))
            thread.left_s += took_s
            thread.doing = partial(self._finish, op, pace, done, took_s)
        piece_s = min(thread.left_s, self._slice_s - thread.used_s)
        self._agenda.after(piece_s, partial(self._pause, thread, piece_s))

    def _pause(self, thread: _Thread, piece_s: float) -> None:
        """What was begun is done, or the slice is over: go on, or leave the core to another."""
        thread.left_s -= piece_s
        thread.used_s += piece_s
        thread.busy_s += piece_s
        if thread.left_s <= _NOTHING_S:
            thread.left_s = 0.0
            doing, thread.doing = thread.doing, None
            if doing is not None:
                doing()
        core, works = thread.core, thread.has_work
        core.busy_s += piece_s
        over = thread.used_s >= self._slice_s - _NOTHING_S
        if works and not (over and core.waiting):
            thread.used_s = 0.0 if over else thread.used_s
            self._go(thread)
            return
        thread.used_s = 0.0
        thread.left = (core, core.busy_s, self._agenda.now)
        thread.placed = works
        if works:
            core.waiting.append(thread)
        if core.waiting:
            self._come(core.waiting.popleft())
        else:
            core.free = True
            if any(other.waiting for other in thread.cores):
                self._agenda.after(self._steals_s, partial(self._steal, core, thread.cores))

    def _steal(self, core: _Core, cores: Sequence[_Core]) -> None:
        """A core that has been idle for a while takes over one that waits for another core."""
        if not core.free:
            return
        for other in sorted(cores, key=lambda one: len(one.waiting), reverse=True):
            for thread in other.waiting:
                if core in thread.cores:
                    other.waiting.remove(thread)
                    thread.core, core.free = core, False
                    self._come(thread)
                    return
