"""One simulated run: the real Worker and Coordinator, a virtual network, a virtual clock, one seed.

```
 Agenda ──► message arrives ──► Worker | Coordinator ──► actions ──► Agenda
   ▲        op is done                 check()             │
   └──────── deadline has passed ──────────────────────────┘
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from asyncdni.backends.base import Array, Stage
from asyncdni.backends.executor import Executor
from asyncdni.build import Design, find_exits, make_roster, make_source, make_stage
from asyncdni.conditions import link_delays
from asyncdni.delays import LinkDelay
from asyncdni.errors import AsyncDNIError
from asyncdni.plan import Group
from asyncdni.simulator.agenda import Agenda
from asyncdni.simulator.conditions import Costs, Links
from asyncdni.simulator.coordinator import CoordinatorProcess
from asyncdni.simulator.null import NullExecutor
from asyncdni.simulator.result import Result, training_s
from asyncdni.simulator.sizes import EstimatedBytes, tensor_bytes
from asyncdni.simulator.wires import Lose, Wires
from asyncdni.simulator.worker import WorkerProcess
from asyncdni.simulator.world import World

__all__ = ["MakeStage", "simulate"]

#: Builds the stage of one worker.
MakeStage = Callable[[Design, Group], Stage]

EVENTS_MAX = 100_000_000
#: Stands for a run folder where nothing is written.
_NO_FOLDER = "memory (simulated)"


def simulate(
    design: Design,
    *,
    seed: int,
    costs: Costs | None = None,
    links: Links | None = None,
    maths: bool,
    check: bool = True,
    codec: bool = False,
    stop_at_s: float | None = None,
    until_s: float | None = None,
    folder: Path | None = None,
    lose: Lose | None = None,
    stages: MakeStage = make_stage,
) -> Result:
    """Run `design` from the first Hello to the last Leave, in virtual time.

    Args:
        seed: of all that varies in time; weights and the order of data go by `run.seed`.
        costs, links: how long ops and messages take by themselves; [slow] and [links] of the
            experiment come on top. Without `maths`, sizes of messages are estimated by shapes.
        maths: train for real, with real test scores; without it, only order and time are real.
        check: assert every invariant of a machine after each of its events.
        codec: encode and decode every message as for the wire.
        stop_at_s: the moment at which the user asks to stop.
        until_s: the moment at which to stop looking; the run is left as it is then.
        folder: where saves are written (with `maths`); None: they are recorded only.
        lose: says of each message whether the network loses it.
        stages: builds each worker's stage (with `maths`).

    Returns what happened, a failed run included: see `Result.failure`. Raises `AsyncDNIError` where
    the machines break an invariant or hang; the message says who waits for what, and the seed.
    """
    simulation = _Simulation(
        design,
        seed=seed,
        costs=costs or Costs(),
        links=links or Links(),
        check=check,
        codec=codec,
        copy=maths,
        lose=lose,
    )
    simulation.populate(stages if maths else None, folder)
    if stop_at_s is not None:
        simulation.agenda.at(stop_at_s, simulation.coordinator.user_stop)
    simulation.run(until_s)
    return simulation.result()


class _Simulation:
    def __init__(
        self,
        design: Design,
        *,
        seed: int,
        costs: Costs,
        links: Links,
        check: bool,
        codec: bool,
        copy: bool,
        lose: Lose | None,
    ) -> None:
        limits = design.experiment.limits
        self.agenda = Agenda()
        wires = Wires(
            self.agenda,
            links,
            seed,
            copy=copy,
            codec=limits if codec else None,
            lose=lose,
            delays=_delays(design, seed),
            size=tensor_bytes if copy else EstimatedBytes(design),
        )
        self._seed = seed
        self._design = design
        self._world = World(design, seed, costs, self.agenda, wires, check)
        self._workers: list[WorkerProcess] = []
        # Beyond every deadline of the machines: what has not moved by then never will.
        self._patience_s = limits.startup_s + 2 * limits.silence_s
        self.coordinator = CoordinatorProcess(self._world, make_roster(design, folder=_NO_FOLDER))
        self._world.hear = self.coordinator.receive

    def populate(self, stages: MakeStage | None, folder: Path | None) -> None:
        """Create the processes and let them start. No `stages`: no arithmetic."""
        design = self._design
        for group in design.plan.groups:
            stage: Stage | None = None
            executor: Executor | NullExecutor = NullExecutor(design, group)
            if stages is not None:
                stage = stages(design, group)
                executor = Executor(stage, find_exits(design), make_source(design, group))
            exited = partial(self.coordinator.exited, group.name)
            process = WorkerProcess(
                self._world, group, executor, exited, stage=stage, folder=folder
            )
            self._workers.append(process)
            self._world.processes[process.name] = process
            self._world.by_peer[process.peer] = process
        self.agenda.at(0.0, self.coordinator.start)
        for process in self._workers:
            process.start()

    def run(self, until_s: float | None) -> None:
        """Until the coordinator is through and every process has ended, or until then."""
        agenda = self.agenda
        try:
            while not self._over():
                moment = agenda.next_at
                if until_s is not None and (moment is None or moment > until_s):
                    agenda.now = max(agenda.now, until_s)
                    return
                if self._hangs(moment):
                    raise self._error("the run hangs: nothing but beats is left to happen")
                if agenda.entries >= EVENTS_MAX:
                    raise self._error(f"the run has not ended after {EVENTS_MAX:,} entries")
                agenda.step()
        except AssertionError as error:
            raise self._error(f"an invariant is broken: {error}") from error

    def _over(self) -> bool:
        return self.coordinator.end is not None and not any(one.alive for one in self._workers)

    def _hangs(self, moment: float | None) -> bool:
        if moment is None:
            return True
        return self.agenda.only_idle and moment - self.agenda.progress_at > self._patience_s

    def _error(self, what: str) -> AsyncDNIError:
        lines = [f"seed {self._seed}, at {self.agenda.now:.6f} s: {what}"]
        machine = self.coordinator.machine
        lines.append(f"coordinator: {machine.phase.value}, barrier {machine.barrier}")
        lines += [_state(process) for process in self._workers]
        return AsyncDNIError("\n  ".join(lines))

    def result(self) -> Result:
        workers = self._workers
        train_s = training_s(self.coordinator.records, self.agenda.now)
        weights = {
            stage: {name: array.copy() for name, array in arrays.items()}
            for process in workers
            for stage, arrays in process.state().items()
        }
        return Result(
            seed=self._seed,
            end=self.coordinator.end,
            digest=_digest(self._world.log.digest(), weights),
            events=self._world.log.events,
            virtual_s=self.agenda.now,
            train_s=train_s,
            samples=min(process.worker.samples for process in workers),
            ops={process.name: process.ops for process in workers},
            busy={process.name: _busy(process, train_s) for process in workers},
            counters={process.name: _counters(process) for process in workers},
            records=self.coordinator.records,
            weights=weights,
        )


def _delays(design: Design, seed: int) -> dict[tuple[str, str], LinkDelay]:
    """Of all links between workers that the experiment makes slow."""
    return {
        (group.name, receiver): delay
        for group in design.plan.groups
        for receiver, delay in link_delays(design.experiment, design.plan, group.name, seed).items()
    }


def _busy(process: WorkerProcess, train_s: float) -> float:
    return sum(end - start for _, _, start, end in process.ops) / train_s if train_s > 0 else 0.0


def _counters(process: WorkerProcess) -> dict[str, float | int | None]:
    return {**process.worker.counters(), "late": process.worker.late}


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
    batch = next(iter([*worker.flights, *worker.ready]), worker.batches - 1)
    return (
        f"worker {process.name}: {alive}{closed}; {counters or 'nothing done'}; "
        f"in flight {list(worker.flights)}, ready {list(worker.ready)}; "
        f"batch {batch}: {worker.story(batch) or 'nothing'}"
    )
