"""Injects faults into a simulated run: random ones, and those of a script, each at its moment."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Protocol

from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.coordinator import CoordinatorProcess
from asyncdni.drivers.virtual.faults import Fault, Faults
from asyncdni.drivers.virtual.process import WorkerProcess
from asyncdni.drivers.virtual.wires import FaultyWires
from asyncdni.messages import COORDINATOR

__all__ = ["FaultInjector", "Processes"]

_KILLED = -9
_RATES = {
    "crash": "crashes",
    "coordinator crash": "coordinator_crashes",
    "pause": "pauses",
    "starve": "starvations",
    "slow": "slowdowns",
    "partition": "partitions",
    "break": "breaks",
}


class Processes(Protocol):
    """The processes of the run, as the injector sees them."""

    @property
    def coordinator(self) -> CoordinatorProcess: ...

    @property
    def over(self) -> bool: ...

    @property
    def started(self) -> bool: ...

    def newest(self) -> dict[str, WorkerProcess]: ...

    def crash_coordinator(self, resumed_after_s: float) -> None: ...


class FaultInjector:
    """Injects `faults` into the processes of a run, and keeps `counts` of them by kind.

    No connection breaks before training has begun: a lost Hello ends the run, once its worker has
    waited for an answer in vain, and has cost nothing.
    """

    def __init__(
        self,
        faults: Faults,
        seed: int,
        agenda: Agenda,
        wires: FaultyWires,
        links: list[tuple[str, str]],
        processes: Processes,
    ) -> None:
        """`links` are (sender, receiver) for every two neighbours, both ways."""
        self.counts: Counter[str] = Counter()
        self._faults = faults
        self._random = random.Random(f"{seed}/mischief")  # of old: another name, other faults
        self._agenda = agenda
        self._wires = wires
        self._links = links
        self._processes = processes
        self._rates = {kind: getattr(faults, name) for kind, name in _RATES.items()}
        self._left = faults.most

    def start(self) -> None:
        """Plan the first faults, at the beginning of the run."""
        for fault in self._faults.scripted:
            self._agenda.at(fault.at_s, partial(self._do, fault))
        self._await_next()

    def _await_next(self) -> None:
        total = sum(self._rates.values())
        if total and self._left and not self._processes.over:
            self._left -= 1
            self._agenda.after(self._random.expovariate(total), self._strike)

    def _strike(self) -> None:
        self._do(self._drawn())
        self._await_next()

    def _drawn(self) -> Fault:
        """Draw a fault that happens now."""
        draw, faults, now = self._random, self._faults, self._agenda.now
        (kind,) = draw.choices(list(self._rates), list(self._rates.values()))
        names = sorted(self._processes.newest())
        everyone = [*names, COORDINATOR]
        match kind:
            case "coordinator crash":
                return Fault("crash", now, (COORDINATOR,), (), self._about(faults.resume_s))
            case "pause":
                return Fault(kind, now, (draw.choice(everyone),), (), self._about(faults.pause_s))
            case "starve":
                return Fault(kind, now, (draw.choice(everyone),), (), self._about(faults.starve_s))
            case "slow":
                factor, for_s = faults.slow_factor, self._about(faults.slow_s)
                return Fault(kind, now, (draw.choice(names),), (), for_s, factor)
            case "partition":
                draw.shuffle(everyone)
                cut = draw.randint(1, len(everyone) - 1)
                one, other = tuple(everyone[:cut]), tuple(everyone[cut:])
                return Fault(kind, now, one, other, self._about(faults.partition_s))
            case "break":
                sender, to = self._link()
                return Fault(kind, now, (sender,), (to,))
        return Fault(kind, now, (draw.choice(names),))

    def _link(self) -> tuple[str, str]:
        """Draw a link, if possible one with messages on their way."""
        control = [(name, COORDINATOR) for name in self._processes.newest()]
        links = [*self._links, *control, *((to, name) for name, to in control)]
        used = [(a, b) for a, b in links if self._wires.carries(self._key(a), self._key(b))]
        return self._random.choice(used or links)

    def _about(self, seconds: float) -> float:
        return self._random.uniform(0.0, 2.0 * seconds)

    def _do(self, fault: Fault) -> None:
        if self._processes.over:
            return
        do: dict[str, Callable[[Fault], bool]] = {
            "crash": self._crash,
            "pause": self._pause,
            "starve": self._pause,
            "slow": self._slow,
            "partition": self._partition,
            "break": self._break,
        }
        if do[fault.kind](fault):
            whose = "coordinator " if fault.who == (COORDINATOR,) else ""
            self.counts[whose + fault.kind] += 1

    def _crash(self, fault: Fault) -> bool:
        (name,) = fault.who
        if name == COORDINATOR:
            if not self._processes.coordinator.busy:
                return False
            self._wires.died(self._processes.coordinator.key)
            self._processes.crash_coordinator(fault.for_s)
            return True
        process = self._processes.newest().get(name)
        if process is None or not process.alive:
            return False
        self._wires.died(process.key)
        process.exit(_KILLED)
        return True

    def _pause(self, fault: Fault) -> bool:
        (name,) = fault.who
        if name == COORDINATOR:
            self._processes.coordinator.pause(fault.for_s)  # no launcher inspects it
            return True
        process = self._processes.newest().get(name)
        if process is None or not process.alive:
            return False
        process.pause(fault.for_s, starved=fault.kind == "starve")
        return True

    def _slow(self, fault: Fault) -> bool:
        process = self._processes.newest().get(fault.who[0])
        if process is None or not process.alive:
            return False
        process.slowness *= fault.factor
        self._agenda.after(fault.for_s, partial(self._fast_again, process, fault.factor))
        return True

    def _fast_again(self, process: WorkerProcess, factor: float) -> None:
        process.slowness /= factor

    def _partition(self, fault: Fault) -> bool:
        """Part the present processes; those that start later are on neither side."""
        one, other = (
            {self._key(name) for name in side} - {""} for side in (fault.who, fault.others)
        )
        self._wires.part(one, other, fault.for_s)
        if self._processes.started and self._random.random() < self._faults.resets:
            self._agenda.after(fault.for_s, partial(self._reset, sorted(one), sorted(other)))
        return bool(one and other)

    def _reset(self, one: list[str], other: list[str]) -> None:
        for sender in one:
            for to in other:
                self._cut(sender, to)
                self._cut(to, sender)

    def _break(self, fault: Fault) -> bool:
        if not self._processes.started:
            return False
        return self._cut(self._key(fault.who[0]), self._key(fault.others[0])) > 0

    def _cut(self, sender: str, to: str) -> int:
        duplicate = self._random.random() < self._faults.duplicates
        control = COORDINATOR in (sender.partition("#")[0], to.partition("#")[0])
        return self._wires.cut(sender, to, duplicate=duplicate and not control)

    def _key(self, name: str) -> str:
        if name == COORDINATOR:
            return self._processes.coordinator.key
        process = self._processes.newest().get(name)
        return process.key if process is not None else ""
