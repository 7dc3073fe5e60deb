"""Who starts the worker processes of a simulated run, sees which have ended, and kills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from asyncdni.core.liveness import Sight
from asyncdni.plan import Group
from asyncdni.simulator.process import Office
from asyncdni.simulator.round import TimedOp
from asyncdni.simulator.worker import Arithmetic, WorkerProcess
from asyncdni.simulator.world import World

__all__ = ["Launcher"]

#: How long it takes to see that a process has ended.
_NOTICED_AFTER_S = 0.1
_KILLED = -9

#: Called with the name and the exit code of a worker whose process has ended.
Exited = Callable[[str, int], None]


class Launcher:
    """Lives and dies with a coordinator's process; what it has started lives on."""

    def __init__(
        self,
        world: World,
        arithmetic: Arithmetic,
        everyone: list[WorkerProcess],
        ops: dict[str, list[TimedOp]],
    ) -> None:
        """`everyone`: all processes that there have been, of this launcher and of earlier ones."""
        self.alive = True
        self._world = world
        self._arithmetic = arithmetic
        self._everyone = everyone
        self._ops = ops
        self._groups = {group.name: group for group in world.design.plan.groups}
        self._current: dict[str, WorkerProcess] = {}
        self._numbers = Counter(process.name for process in everyone)

    def start(self, office: Office, exited: Exited) -> None:
        """All workers, for that coordinator."""
        self._office = office
        self._exited = exited
        for group in self._groups.values():
            self._start(group)

    def restart(self, name: str) -> None:
        """A new process; what is left of the old one is killed, unless it is out of reach."""
        self._kill(self._current[name])
        self._start(self._groups[name])

    def look(self, name: str) -> Sight:
        """What a worker's process looks like, unless it is out of reach."""
        process = self._current[name]
        apart = self._world.wires.apart(self._office.key, process.key)
        return Sight.UNSEEN if apart else process.sight

    def stop(self) -> None:
        """Kill whoever is left and in reach."""
        for process in self._everyone:
            if process.office is self._office:
                self._kill(process)

    def _start(self, group: Group) -> None:
        self._numbers[group.name] += 1
        number = self._numbers[group.name]
        ended = partial(self._has_ended, group.name, number)
        process = WorkerProcess(
            self._world,
            group,
            number,
            self._office,
            ended,
            self._arithmetic,
            self._ops[group.name],
        )
        self._current[group.name] = process
        self._everyone.append(process)
        self._world.by_address[process.address] = process
        self._world.by_peer[process.peer] = process
        process.start()

    def _kill(self, process: WorkerProcess) -> None:
        if not self._world.wires.apart(self._office.key, process.key):
            process.exit(_KILLED)

    def _has_ended(self, name: str, number: int, code: int) -> None:
        self._world.agenda.after(_NOTICED_AFTER_S, partial(self._notice, name, number, code))

    def _notice(self, name: str, number: int, code: int) -> None:
        if self.alive and number == self._numbers[name]:  # and has not been replaced since
            self._exited(name, code)
