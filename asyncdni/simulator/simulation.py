"""One simulated run: the real Worker and Coordinator, a virtual network, a virtual clock, one seed.

```
 Agenda ──► message arrives ──► Worker | Coordinator ──► actions ──► Agenda
   ▲        op is done                 check()             │
   └──────── deadline has passed ──────────────────────────┘
```
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np

from asyncdni.backends.base import Array
from asyncdni.build import Design, make_stage
from asyncdni.conditions import link_delays, neighbours
from asyncdni.core.events import Finish
from asyncdni.core.ledger import Ledger
from asyncdni.delays import LinkDelay
from asyncdni.errors import AsyncDNIError
from asyncdni.simulator.account import check_account
from asyncdni.simulator.agenda import Agenda
from asyncdni.simulator.cast import Cast
from asyncdni.simulator.collection import seldom_collected
from asyncdni.simulator.conditions import Costs, Hosts, Links
from asyncdni.simulator.cores import Cores
from asyncdni.simulator.disk import Disk
from asyncdni.simulator.faults import Faults, check_faults
from asyncdni.simulator.faulty import FaultyWires
from asyncdni.simulator.mischance import Mischance
from asyncdni.simulator.mischief import Mischief
from asyncdni.simulator.result import Result, training_s
from asyncdni.simulator.round import TimedOp
from asyncdni.simulator.sizes import EstimatedBytes, tensor_bytes
from asyncdni.simulator.wires import Lose, Wires
from asyncdni.simulator.worker import Arithmetic, MakeStage, WorkerProcess
from asyncdni.simulator.world import World

__all__ = ["simulate"]

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

    Returns what happened, failed or not: see `Result.failure`. Raises `AsyncDNIError` where the
    machines break an invariant or hang, or samples are not accounted for: who waits for what.
    """
    chosen = faults or Faults()
    simulation = _Simulation(
        design,
        World(
            design,
            seed,
            costs or Costs(),
            agenda := Agenda(),
            _make_wires(design, agenda, links or Links(), seed, maths, codec, lose, chosen),
            Disk(design, folder if maths else None),
            check,
        ),
        Arithmetic(stages if maths else None, folder if maths else None),
        chosen,
        hosts,
    )
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
        self._mischief: Mischief | None = None
        if hosts is not None:
            names = [group.name for group in design.plan.groups]
            world.cores = Cores(world.agenda, hosts, names)
        if isinstance(world.wires, FaultyWires):
            check_faults(faults, list(self.cast.ops))
            world.mischance = _mischance(faults, world.seed)
            self._mischief = Mischief(
                faults, world.seed, world.agenda, world.wires, _links(design), self.cast
            )

    def begin(self, ledger: Ledger | None) -> None:
        self.cast.begin(ledger)
        if self._mischief is not None:
            self._mischief.start()

    def run(self, until_s: float | None) -> None:
        """Until the coordinator is through and every process has ended, or until then."""
        agenda = self._world.agenda
        try:
            while not self.cast.gone:
                moment = agenda.next_at
                if until_s is not None and (moment is None or moment > until_s):
                    agenda.now = max(agenda.now, until_s)
                    return
                if moment is None or (agenda.only_idle and self._hangs(moment)):
                    raise self._error("the run hangs: nothing but beats is left to happen")
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
            mishaps=self._mishaps(),
        )

    def _mishaps(self) -> dict[str, int]:
        if self._mischief is None:
            return {}
        return dict(sorted((self._mischief.counts + self._world.mischance.counts).items()))


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


def _mischance(faults: Faults, seed: int) -> Mischance:
    return Mischance(
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
    """Of all links between workers that the experiment makes slow."""
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
    closed = ", closed" if worker.closed else ""
    batch = next(iter([*worker.flights, *worker.ready]), worker.counts.batches - 1)
    return (
        f"worker {process.name}: {alive}{closed}; {counters or 'nothing done'}; "
        f"in flight {list(worker.flights)}, ready {list(worker.ready)}; "
        f"batch {batch}: {worker.story(batch) or 'nothing'}"
    )
