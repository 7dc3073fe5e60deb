"""Measures how long each op of each declared stage takes, and how many bytes each message has.

The schedules take turns of a few batches in one process with one BLAS thread, so that a machine
that gets slower or faster meanwhile affects all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.errors import ConfigError
from asyncdni.messages import Activation, Gradient, Message
from asyncdni.plan.build import Design, make_design
from asyncdni.profiling.rehearsal import Rehearsal
from asyncdni.schedules.base import Op

__all__ = [
    "SENDING",
    "WARM_UP",
    "Edge",
    "Measurement",
    "OpTime",
    "check_priced",
    "last_level_bytes",
    "make_forget",
    "measure",
    "schedules_of",
]

# --- caches --------------------------------------------------------------------------------------

#: Size of the last-level cache where the system does not tell it.
_USUAL_BYTES = 32 * 2**20
_BYTES_MAX = 256 * 2**20
_LINE_BYTES = 64
#: Caches don't strictly evict the oldest line, so more memory than they hold must be read: so many
#: times their size.
_MORE = 1.5


def make_forget() -> Callable[[], None]:
    """A function that empties this core's caches of what was used before, by reading more memory
    than they hold. It takes some milliseconds.

    An op after it costs what it costs a worker whose core others have used in between."""
    memory = np.ones(round(_MORE * last_level_bytes()), np.uint8)
    lines = memory[::_LINE_BYTES]

    def forget() -> None:
        lines.sum()

    return forget


def last_level_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache, at most 256 MiB; 32 MiB where the system does not tell."""
    sizes = [_bytes(path) for path in folder.glob("index*/size")]
    largest = max(sizes, default=0)
    return min(largest, _BYTES_MAX) if largest else _USUAL_BYTES


def _bytes(path: Path) -> int:
    """The bytes that a file such as "32768K" states; 0 where it states no size."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    number, unit = text[:-1], text[-1:]
    factor = {"K": 2**10, "M": 2**20}.get(unit, 0)
    return int(number) * factor if number.isdecimal() else 0


# --- measuring -----------------------------------------------------------------------------------

#: How many batches of one schedule follow each other: a multiple of the interval, in batches, at
#: which `Options.rehearsed` has an op done.
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
    """What was measured, with every declared stage in a worker of its own."""

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
    their place, on microbatches where they cut batches up. Raises `ConfigError` for options that
    are not priced (see `check_priced`), `DataError` where the data can't be loaded, and what
    training raises."""
    check_priced(design)
    forget = make_forget() if cold else None
    segments = (WARM_UP + batches + _SEGMENT - 1) // _SEGMENT
    notes = _Notes(WARM_UP, WARM_UP + batches)
    with threadpool_limits(1):
        rehearsals = [
            Rehearsal(
                *(_apart(design, options), notes),
                segments=segments,
                batches=_SEGMENT,
                before_turn=forget,
            )
            for options in _rehearsed(design)
        ]
        for _ in range(segments):
            for rehearsal in rehearsals:
                rehearsal.advance()
    return Measurement(
        batches=batches,
        parameters=rehearsals[0].parameters,
        times=notes.times(),
        edges=tuple(notes.edges()),
        event=_op_time(notes.events),
    )


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
    """The schedules to measure, by name: `locked`, and the experiment's own where it is another."""
    own = design.experiment.schedule
    return {"locked": config.Locked(split_backward=own.split_backward), own.tag: own}


def _rehearsed(design: Design) -> list[config.Schedule]:
    """The schedules to rehearse: those of `schedules_of` that do not do the same ops as
    `locked`."""
    return [one for one in schedules_of(design).values() if one.locks or one.decoupled]


def _apart(design: Design, options: config.Schedule) -> Design:
    """The design with every stage in a worker of its own, under the schedule `options`."""
    chosen = design.experiment
    changed = msgspec.structs.replace(
        chosen,
        data=msgspec.structs.replace(chosen.data, batch_size=design.plan.batch_size),
        run=msgspec.structs.replace(chosen.run, split=None),
        schedule=options.rehearsed(),
        # Tables about links and workers are left out, as the workers are others.
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
