"""Who takes part in a simulated run: coordinators, one after the other, and worker processes."""

from __future__ import annotations

from functools import partial

from asyncdni.build import Design, make_roster
from asyncdni.core.ledger import Ledger
from asyncdni.simulator.coordinator import CoordinatorProcess, Records
from asyncdni.simulator.launcher import Launcher
from asyncdni.simulator.resumption import find_ledger
from asyncdni.simulator.round import TimedOp
from asyncdni.simulator.worker import Arithmetic, WorkerProcess
from asyncdni.simulator.world import World

__all__ = ["Cast"]

#: Stands for a run folder where nothing is written.
_NO_FOLDER = "memory (simulated)"


class Cast:
    """All processes of a run; records and ops go on over those that replace others."""

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
        self.coordinator = CoordinatorProcess(
            self._world,
            make_roster(self._design, folder=_NO_FOLDER, term=self.coordinators),
            Launcher(self._world, self._arithmetic, self.everyone, self.ops),
            self.records,
            ledger=ledger,
            number=self.coordinators,
            died=partial(self.crash_coordinator, self._torn_resumed_s),
        )
        self._world.agenda.after(0.0, self.coordinator.start)

    def crash_coordinator(self, resumed_after_s: float) -> None:
        """And somebody resumes the run."""
        if self.coordinator.busy:
            self.coordinator.kill()
            self._world.agenda.after(resumed_after_s, self._resume)

    def _resume(self) -> None:
        machine = self.coordinator.machine
        ledger = find_ledger(self._design, self._world.disk, machine.ledger.history)
        ledger.updates = machine.updates
        self.begin(ledger)

    @property
    def over(self) -> bool:
        """The coordinator is through."""
        return self.coordinator.end is not None

    @property
    def started(self) -> bool:
        """Training has begun, or gone on, under this coordinator."""
        return any(kind == "start" for kind, _ in self.records[self._own_records :])

    @property
    def gone(self) -> bool:
        """And so is everybody else."""
        over = self.coordinator.end is not None  # asked after every event: so not by `self.over`
        return over and not any(process.alive for process in self.everyone)

    def newest(self) -> dict[str, WorkerProcess]:
        """The last process of each worker, in the network's order."""
        by_name = {process.name: process for process in self.everyone}
        return {name: by_name[name] for name in self.ops if name in by_name}

    def user_stop(self) -> None:
        self.coordinator.user_stop()
