"""One simulated run: the real Worker and Coordinator, a virtual network, a virtual clock, one seed.

```
 Agenda ──► message arrives ──► Worker | Coordinator ──► actions ──► Agenda
   ▲        op is done                 check()             │
   └──────── deadline has passed ──────────────────────────┘
```
"""

from __future__ import annotations

import gc
import hashlib
import heapq
import random
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asyncdni.core.events import Fail, Finish
from asyncdni.core.ledger import Ledger
from asyncdni.delays import LinkDelay
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.coordinator import CoordinatorProcess, Launcher, Records, find_ledger
from asyncdni.drivers.virtual.costs import Cores, Costs, EstimatedBytes, Hosts, Links, tensor_bytes
from asyncdni.drivers.virtual.disk import Disk
from asyncdni.drivers.virtual.faults import ChanceFaults, Faults, check_faults
from asyncdni.drivers.virtual.injection import FaultInjector
from asyncdni.drivers.virtual.process import Arithmetic, MakeStage, TimedOp, WorkerProcess
from asyncdni.drivers.virtual.wires import FaultyWires, Lose, Wires
from asyncdni.drivers.virtual.world import World
from asyncdni.errors import AsyncDNIError
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, make_roster, make_stage
from asyncdni.plan.conditions import link_delays, neighbours
from asyncdni.plan.plan import Plan
from asyncdni.schedules.base import OpKind

__all__ = [
    "LEGEND",
    "Cast",
    "Result",
    "check_account",
    "seldom_collected",
    "simulate",
    "timeline",
    "training_s",
]

# --- cast ----------------------------------------------------------------------------------------

#: Stands for a run folder where nothing is written.
_NO_FOLDER = "memory (simulated)"


class Cast:
    """All processes of a simulated run: its coordinators, one after the other, and its workers'
    processes. Records and ops go on over processes that replace others."""

    def __init__(
        self, design: Design, world: World, arithmetic: Arithmetic, torn_resumed_s: float
    ) -> None:
        """`torn_resumed_s`: how long a coordinator that has died in a commit stays away."""
        self.ops: dict[str, list[TimedOp]] = {group.name: [] for group in design.plan.groups}
        self.records: Records = []
        self.everyone: list[WorkerProcess] = []  # in the order of their starts
        self.coordinators = 0  # that there have been
        self._design = design
        self._world = world
        self._arithmetic = arithmetic
        self._torn_resumed_s = torn_resumed_s

    def begin(self, ledger: Ledger | None) -> None:
        """A coordinator starts, and it the workers."""
        self.coordinators += 1
        self._own_records = len(self.records)
        home: dict[str, Any] = {"folder": _NO_FOLDER, "term": self.coordinators}
        home["succeeds"] = self.coordinators > 1
        self.coordinator = CoordinatorProcess(
            self._world,
            make_roster(self._design, **home),
            Launcher(self._world, self._arithmetic, self.everyone, self.ops),
            self.records,
            ledger=ledger,
            number=self.coordinators,
            died=partial(self.crash_coordinator, self._torn_resumed_s),
        )
        self._world.agenda.after(0.0, self.coordinator.start)

    def crash_coordinator(self, resumed_after_s: float) -> None:
        """Kill the coordinator; somebody resumes the run after so long."""
        if self.coordinator.busy:
            self.coordinator.kill()
            self._world.agenda.after(resumed_after_s, self._resume)

    def _resume(self) -> None:
        machine = self.coordinator.machine
        ledger = find_ledger(self._design, self._world.disk, machine.ledger.history)
        ledger.updates = machine.updates
        ledger.recorded = [
            {name: value for name, value in values.items() if name != "time_s"}
            for kind, values in self.records
            if kind == "evaluation"
        ]
        self.begin(ledger)

    @property
    def over(self) -> bool:
        """Whether the coordinator is through."""
        return self.coordinator.end is not None

    @property
    def started(self) -> bool:
        """Whether training has begun, or gone on, under this coordinator."""
        return any(kind == "start" for kind, _ in self.records[self._own_records :])

    @property
    def gone(self) -> bool:
        """Whether the coordinator is through and every worker's process has ended."""
        over = self.coordinator.end is not None  # asked after every event: so not by `self.over`
        return over and not any(process.alive for process in self.everyone)

    def newest(self) -> dict[str, WorkerProcess]:
        """The last process of each worker, in the network's order."""
        by_name = {process.name: process for process in self.everyone}
        return {name: by_name[name] for name in self.ops if name in by_name}

    def user_stop(self) -> None:
        self.coordinator.user_stop()


# --- account -------------------------------------------------------------------------------------


def check_account(plan: Plan, workers: Iterable[WorkerProcess]) -> None:
    """Assert that at the end of a run every batch and every sample was learned or missed, once.

    The last process of each worker is checked, by its counts and by the ids that the simulator has
    noted of each forward behind its state. Raises `AssertionError`."""
    host = plan.groups[plan.host].name
    for process in workers:
        counts, ids, name = process.worker.counts, process.ids, process.key
        said = f"{counts.batches} learned, {counts.missed} missed of {plan.batches}"
        assert counts.position == plan.batches, f"{name}: {said}"
        if process.name == host:
            assert counts.read == plan.batches, f"{name}: {counts.read} read of {plan.batches}"
        if ids is None:
            continue
        assert len(ids) == counts.batches, f"{name}: {len(ids)} ids, but {said}"
        assert not ids or 0 <= min(ids) <= max(ids) < plan.batches, f"{name}: {min(ids)}"
        samples = sum(map(plan.rows.of, ids))
        assert samples == counts.samples, f"{name}: {samples} samples, but it says {counts.samples}"


# --- result --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a simulated run has shown. Times are virtual seconds; what is by worker goes by its
    name, in the network's order."""

    seed: int
    end: Finish | Fail | None  # None: stopped at the moment that was asked for
    digest: str  # sha256 over every event and the final weights: equal means the same run
    events: int  # that the machines have handled
    virtual_s: float  # from the first process to the last one's end
    train_s: float  # drains included; evaluation and saving not
    samples: int  # forwarded by the worker that has forwarded least
    ops: dict[str, list[TimedOp]]  # of training, in order: (letter, batch, start, end)
    busy: dict[str, float]  # share of the training time spent in ops
    counters: dict[str, dict[str, float | int | None]]  # see `core.worker.Worker.counters`
    records: Records  # of the coordinators, in order: (kind, values)
    history: list[dict[str, Any]]  # each that counts: samples, train_s, accuracy, loss
    weights: dict[str, dict[str, Array]]  # by declared stage; empty without the maths
    cpu_s: dict[str, float]  # by worker, of all it did; empty where none shares a core
    fault_counts: dict[str, int]  # faults that have happened, by kind

    @property
    def failure(self) -> Fail | None:
        return self.end if isinstance(self.end, Fail) else None

    @property
    def samples_per_s(self) -> float:
        """The speed in virtual time; 0 where nothing was trained."""
        return self.samples / self.train_s if self.train_s > 0 else 0.0


def training_s(records: Records, now: float) -> float:
    """Add up the seconds from each start or resume to its drain, or to `now` if none has come."""
    total, since = 0.0, None
    for kind, values in records:
        if kind in ("start", "resume"):
            since = values["time_s"]
        elif kind == "drained" and since is not None:
            total += values["time_s"] - since
            since = None
    return total if since is None else total + now - since


# --- collection ----------------------------------------------------------------------------------

_OBJECTS = 100_000  # more than before, until the youngest are searched


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within this context Python looks less often for cyclic garbage: a simulation makes hundreds
    of thousands of small objects a second that live for long, and hardly any cycle."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


EVENTS_MAX = 100_000_000


def simulate(
    design: Design,
    *,
    seed: int,
    costs: Costs | None = None,
    links: Links | None = None,
    hosts: Hosts | None = None,
    maths: bool,
    check: bool = True,
    codec: bool = False,
    stop_at_s: float | None = None,
    until_s: float | None = None,
    folder: Path | None = None,
    lose: Lose | None = None,
    stages: MakeStage = make_stage,
    ledger: Ledger | None = None,
    faults: Faults | None = None,
    away: Collection[str] = (),
) -> Result:
    """Run `design` from the first Hello to the last Leave, in virtual time.

    Args:
        seed: of all that varies in time; weights and the order of data go by `run.seed`.
        costs, links: how long ops and messages take by themselves; [slow] and [links] of the
            experiment come on top. Without `maths`, sizes of messages are estimated by shapes.
        hosts: machines whose cores the workers share; None: each has its own, used by ops alone.
        maths: train for real, with real test scores; without it, only order and time are real.
        check, codec: assert every invariant of a machine after each of its events; encode and
            decode every message as for the wire.
        stop_at_s, until_s: when the user asks to stop; when to stop looking, whatever there is.
        folder: where weights, cuts and snapshots are written (with `maths`); None: in memory.
        lose: says of each message whether the network loses it.
        stages: builds each worker's stage (with `maths`).
        ledger: from where an earlier run in `folder` goes on; None: from its beginning.
        faults: what goes wrong. A coordinator that dies is followed by one that resumes the run.
        away: workers without access to the run's folder, which send their states to the
            coordinator and get them from there; only in memory, without `folder`.

    Returns what happened, failed or not: see `Result.failure`. Raises `AsyncDNIError` where the
    machines break an invariant or hang, or samples are not accounted for: who waits for what.
    """
    assert not (away and folder), "files of workers without access to the folder are not written"
    chosen = faults or Faults()
    world = World(
        design,
        seed,
        costs or Costs(),
        agenda := Agenda(),
        _make_wires(design, agenda, links or Links(), seed, maths, codec, lose, chosen),
        Disk(design, folder if maths else None),
        check,
    )
    world.away = frozenset(away)
    arithmetic = Arithmetic(stages if maths else None, folder if maths else None)
    simulation = _Simulation(design, world, arithmetic, chosen, hosts)
    simulation.begin(ledger)
    if stop_at_s is not None:
        agenda.at(stop_at_s, simulation.cast.user_stop)
    with seldom_collected(), np.errstate(all="ignore"):
        simulation.run(until_s)
    return simulation.result()


class _Simulation:
    def __init__(
        self,
        design: Design,
        world: World,
        arithmetic: Arithmetic,
        faults: Faults,
        hosts: Hosts | None,
    ) -> None:
        limits = design.experiment.limits
        # Beyond every deadline of the machines: what has not moved by then never will.
        self._patience_s = limits.startup_s + limits.stuck_s + 2 * limits.silence_s
        self._design = design
        self._world = world
        self.cast = Cast(design, world, arithmetic, faults.resume_s)
        self._injector: FaultInjector | None = None
        if hosts is not None:
            names = [group.name for group in design.plan.groups]
            world.cores = Cores(world.agenda, hosts, names)
        if isinstance(world.wires, FaultyWires):
            check_faults(faults, list(self.cast.ops))
            world.chance_faults = _chance_faults(faults, world.seed)
            self._injector = FaultInjector(
                faults, world.seed, world.agenda, world.wires, _links(design), self.cast
            )

    def begin(self, ledger: Ledger | None) -> None:
        self.cast.begin(ledger)
        if self._injector is not None:
            self._injector.start()

    def run(self, until_s: float | None) -> None:
        """Run until the coordinator is through and every process has ended, or until `until_s`."""
        agenda = self._world.agenda
        try:
            while not self.cast.gone:
                moment = agenda.next_at
                if until_s is not None and (moment is None or moment > until_s):
                    agenda.now = max(agenda.now, until_s)
                    return
                if moment is None or (not agenda.working and self._hangs(moment)):
                    raise self._error("the run hangs: nothing but heartbeats is left to happen")
                if agenda.entries >= EVENTS_MAX:
                    raise self._error(f"the run has not ended after {EVENTS_MAX:,} entries")
                agenda.step()
            self._check_account()
        except AssertionError as error:
            raise self._error(f"an invariant is broken: {error}") from error

    def _check_account(self) -> None:
        if isinstance(self.cast.coordinator.end, Finish):
            check_account(self._design.plan, self.cast.newest().values())

    def _hangs(self, moment: float) -> bool:
        """Nothing but beats has happened for too long, nor will."""
        return moment - self._world.agenda.progress_at > self._patience_s

    def _error(self, what: str) -> AsyncDNIError:
        world, machine = self._world, self.cast.coordinator.machine
        lines = [f"seed {world.seed}, at {world.agenda.now:.6f} s: {what}"]
        lines.append(f"coordinator: {machine.phase.value}, barrier {machine.barrier}")
        lines += [_state(process) for process in self.cast.newest().values()]
        return AsyncDNIError("\n  ".join(lines))

    def result(self) -> Result:
        cast, world = self.cast, self._world
        workers = list(cast.newest().values())
        train_s = training_s(cast.records, cast.coordinator.clock.reading(world.agenda.now))
        weights = {
            stage: {name: array.copy() for name, array in arrays.items()}
            for process in workers
            for stage, arrays in process.weights().items()
        }
        cores = world.cores
        return Result(
            seed=world.seed,
            end=cast.coordinator.end,
            digest=_digest(world.log.digest(), weights),
            events=world.log.events,
            virtual_s=world.agenda.now,
            train_s=train_s,
            samples=min(process.worker.counts.samples for process in workers),
            ops=cast.ops,
            busy={name: _busy(ops, train_s) for name, ops in cast.ops.items()},
            counters={process.name: process.worker.counters() for process in workers},
            records=cast.records,
            history=list(cast.coordinator.machine.ledger.history),
            weights=weights,
            cpu_s={} if cores is None else {one.name: cores.busy_s(one.name) for one in workers},
            fault_counts=self._fault_counts(),
        )

    def _fault_counts(self) -> dict[str, int]:
        if self._injector is None:
            return {}
        return dict(sorted((self._injector.counts + self._world.chance_faults.counts).items()))


def _make_wires(
    design: Design,
    agenda: Agenda,
    links: Links,
    seed: int,
    maths: bool,
    codec: bool,
    lose: Lose | None,
    faults: Faults,
) -> Wires:
    options: dict[str, Any] = {
        "copy": maths,
        "codec": design.experiment.limits if codec else None,
        "lose": lose,
        "delays": _delays(design, seed),
        "size": tensor_bytes if maths else EstimatedBytes(design),
    }
    if not faults.any:
        return Wires(agenda, links, seed, **options)
    slow = {"delay_s": faults.delay_s, "jitter_s": faults.jitter_s}
    return FaultyWires(agenda, links, seed, **slow, **options)


def _chance_faults(faults: Faults, seed: int) -> ChanceFaults:
    return ChanceFaults(
        slow=faults.slow_saves,
        slow_s=faults.slow_save_s,
        fail=faults.failed_saves,
        torn=faults.torn_saves,
        skew_s=faults.skew_s,
        drift=faults.drift,
        most=faults.most,
        source=random.Random(f"{seed}/mischance"),
    )


def _links(design: Design) -> list[tuple[str, str]]:
    """Between workers, both ways."""
    groups = design.plan.groups
    return [(one.name, to) for one in groups for to in neighbours(design.plan, one)]


def _delays(design: Design, seed: int) -> dict[tuple[str, str], LinkDelay]:
    """Return the delays of all links between workers that the experiment makes slow."""
    return {
        (group.name, receiver): delay
        for group in design.plan.groups
        for receiver, delay in link_delays(design.experiment, design.plan, group.name, seed).items()
    }


def _busy(ops: list[TimedOp], train_s: float) -> float:
    return sum(end - start for _, _, start, end in ops) / train_s if train_s > 0 else 0.0


def _digest(events: str, weights: dict[str, dict[str, Array]]) -> str:
    whole = hashlib.sha256(events.encode())
    for arrays in weights.values():
        for array in arrays.values():
            whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _state(process: WorkerProcess) -> str:
    """One line: where a worker stands, what it holds, and the story of its oldest batch."""
    worker = process.worker
    alive = worker.phase.value if process.alive else f"{worker.phase.value}, exited"
    counters = ", ".join(f"{name} {value}" for name, value in worker.counters().items() if value)
    closed = ", closed" if worker.view.closed else ""
    batch = next(iter([*worker.view.flights, *worker.view.ready]), worker.counts.batches - 1)
    return (
        f"worker {process.name}: {alive}{closed}; {counters or 'nothing done'}; "
        f"in flight {list(worker.view.flights)}, ready {list(worker.view.ready)}; "
        f"batch {batch}: {worker.story(batch) or 'nothing'}"
    )


# --- timeline ------------------------------------------------------------------------------------

LEGEND = (
    "F forward  P predict  B backward  U update  T fit  b passes the gradient on  W learns\n"
    "C corrects  - goes on  . waits; columns keep the order of ops, not their duration"
)
_NAME_MAX = 20
#: The data are read ahead, beside what a timeline is about.
_HIDDEN = OpKind.READ.value
_GOES_ON, _WAITS = "-", "."
#: Sums of the same durations, taken in different orders, differ by rounding.
_SAME_S = 1e-9


def timeline(
    ops: Mapping[str, Sequence[TimedOp]], *, batches: int = 3, width: int = 100
) -> list[str]:
    """A timeline as lines of at most `width` characters, until batch `batches` - 1 has updated
    every worker. What does not fit beside each other goes below, after an empty line.

    ```
    stage1  F0 .  .  B0 U0 F1
    stage2  .  F0 B0 U0 .  .
    ```

    A worker has a row, a step a column, and what overlaps in time shares a column. Columns keep
    order, not duration: an op stands to the right of every op, anywhere, that had ended when it
    began. `-` is an op that goes on, `.` is waiting.
    """
    end = _end_of(ops, batches)
    chosen = sorted(
        (op[2], op[3], name, op[0] + str(op[1]))
        for name, own in ops.items()
        for op in own
        if op[0] != _HIDDEN and op[2] < end
    )
    if not chosen:
        return []
    columns = _columns(chosen)
    cell = max(len(label) for _, _, _, label in chosen) + 1
    rows = {name: [_WAITS] * (columns[-1] + 1) for name in ops}
    starts = [start for start, _, _, _ in chosen]
    for column, (_, finish, name, label) in zip(columns, chosen, strict=True):
        last = columns[bisect_left(starts, finish - _SAME_S) - 1]
        rows[name][column : last + 1] = [label] + [_GOES_ON] * (last - column)
    return _wrapped(rows, cell, width)


def _end_of(ops: Mapping[str, Sequence[TimedOp]], batches: int) -> float:
    update = OpKind.UPDATE.value
    ends = [
        end
        for own in ops.values()
        for letter, b, _, end in own
        if (letter, b) == (update, batches - 1)
    ]
    return max(ends, default=float("inf"))


def _columns(chosen: Sequence[tuple[float, float, str, str]]) -> list[int]:
    """The column of each op; `chosen` by start."""
    columns: list[int] = []
    frontier = 0
    running: list[tuple[float, int]] = []  # (end, column)
    for start, end, _, _ in chosen:
        while running and running[0][0] <= start + _SAME_S:
            frontier = max(frontier, heapq.heappop(running)[1] + 1)
        columns.append(frontier)
        heapq.heappush(running, (end, frontier))
    return columns


def _wrapped(rows: Mapping[str, Sequence[str]], cell: int, width: int) -> list[str]:
    name_width = min(_NAME_MAX, max(map(len, rows)))
    a_line = max(1, (width - name_width - 2) // cell)
    count = len(next(iter(rows.values())))
    lines: list[str] = []
    for first in range(0, count, a_line):
        lines += [""] if lines else []
        for name, cells in rows.items():
            text = "".join(one.ljust(cell) for one in cells[first : first + a_line])
            lines.append(f"{name[:name_width]:{name_width}}  {text}".rstrip())
    return lines
