"""Faults that happen at a moment: drawn one after the other, or as a script says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Protocol

from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.coordinator import CoordinatorProcess
from asyncdni.drivers.virtual.faults import Faults, Mishap
from asyncdni.drivers.virtual.process import WorkerProcess
from asyncdni.drivers.virtual.wires import FaultyWires
from asyncdni.messages import COORDINATOR

__all__ = ["Mischief", "Scene"]

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


class Scene(Protocol):
    """Who is there to suffer."""

    @property
    def coordinator(self) -> CoordinatorProcess: ...

    @property
    def over(self) -> bool: ...

    @property
    def started(self) -> bool: ...

    def newest(self) -> dict[str, WorkerProcess]: ...

    def crash_coordinator(self, resumed_after_s: float) -> None: ...


class Mischief:
    """Does what `faults` say to the processes of a run. `counts`: what has been done.

    No connection breaks before training has begun: a Hello that is lost ends the run, after the
    time that its worker waits for an answer, and has cost nothing."""

    def __init__(
        self,
        faults: Faults,
        seed: int,
        agenda: Agenda,
        wires: FaultyWires,
        links: list[tuple[str, str]],
        scene: Scene,
    ) -> None:
        """`links`: between workers, both ways."""
        self.counts: Counter[str] = Counter()
        self._faults = faults
        self._random = random.Random(f"{seed}/mischief")
        self._agenda = agenda
        self._wires = wires
        self._links = links
        self._scene = scene
        self._rates = {kind: getattr(faults, name) for kind, name in _RATES.items()}
        self._left = faults.most

    def start(self) -> None:
        """Once the run has begun."""
        for mishap in self._faults.mishaps:
            self._agenda.at(mishap.at_s, partial(self._do, mishap))
        self._await_next()

    def _await_next(self) -> None:
        total = sum(self._rates.values())
        if total and self._left and not self._scene.over:
            self._left -= 1
            self._agenda.after(self._random.expovariate(total), self._strike)

    def _strike(self) -> None:
        self._do(self._drawn())
        self._await_next()

    # --- drawing ---------------------------------------------------------------------------------

    def _drawn(self) -> Mishap:
        """A fault for now."""
        draw, faults, now = self._random, self._faults, self._agenda.now
        (kind,) = draw.choices(list(self._rates), list(self._rates.values()))
        names = sorted(self._scene.newest())
        everyone = [*names, COORDINATOR]
        match kind:
            case "coordinator crash":
                return Mishap("crash", now, (COORDINATOR,), (), self._about(faults.resume_s))
            case "pause":
                return Mishap(kind, now, (draw.choice(everyone),), (), self._about(faults.pause_s))
            case "starve":
                return Mishap(kind, now, (draw.choice(everyone),), (), self._about(faults.starve_s))
            case "slow":
                factor, for_s = faults.slow_factor, self._about(faults.slow_s)
                return Mishap(kind, now, (draw.choice(names),), (), for_s, factor)
            case "partition":
                draw.shuffle(everyone)
                cut = draw.randint(1, len(everyone) - 1)
                one, other = tuple(everyone[:cut]), tuple(everyone[cut:])
                return Mishap(kind, now, one, other, self._about(faults.partition_s))
            case "break":
                sender, to = self._link()
                return Mishap(kind, now, (sender,), (to,))
        return Mishap(kind, now, (draw.choice(names),))

    def _link(self) -> tuple[str, str]:
        """One with something on its way, if there is any."""
        control = [(name, COORDINATOR) for name in self._scene.newest()]
        links = [*self._links, *control, *((to, name) for name, to in control)]
        used = [(a, b) for a, b in links if self._wires.carries(self._key(a), self._key(b))]
        return self._random.choice(used or links)

    def _about(self, seconds: float) -> float:
        return self._random.uniform(0.0, 2.0 * seconds)

    # --- doing -----------------------------------------------------------------------------------

    def _do(self, mishap: Mishap) -> None:
        if self._scene.over:
            return
        do: dict[str, Callable[[Mishap], bool]] = {
            "crash": self._crash,
            "pause": self._pause,
            "starve": self._pause,
            "slow": self._slow,
            "partition": self._partition,
            "break": self._break,
        }
        if do[mishap.kind](mishap):
            whose = "coordinator " if mishap.who == (COORDINATOR,) else ""
            self.counts[whose + mishap.kind] += 1

    def _crash(self, mishap: Mishap) -> bool:
        (name,) = mishap.who
        if name == COORDINATOR:
            if not self._scene.coordinator.busy:
                return False
            self._wires.died(self._scene.coordinator.key)
            self._scene.crash_coordinator(mishap.for_s)
            return True
        process = self._scene.newest().get(name)
        if process is None or not process.alive:
            return False
        self._wires.died(process.key)
        process.exit(_KILLED)
        return True

    def _pause(self, mishap: Mishap) -> bool:
        (name,) = mishap.who
        if name == COORDINATOR:
            self._scene.coordinator.pause(mishap.for_s)  # nobody has a look at it
            return True
        process = self._scene.newest().get(name)
        if process is None or not process.alive:
            return False
        process.pause(mishap.for_s, starved=mishap.kind == "starve")
        return True

    def _slow(self, mishap: Mishap) -> bool:
        process = self._scene.newest().get(mishap.who[0])
        if process is None or not process.alive:
            return False
        process.slowness *= mishap.factor
        self._agenda.after(mishap.for_s, partial(self._fast_again, process, mishap.factor))
        return True

    def _fast_again(self, process: WorkerProcess, factor: float) -> None:
        process.slowness /= factor

    def _partition(self, mishap: Mishap) -> bool:
        """Of the processes that are there; new ones start beside it."""
        one, other = (
            {self._key(name) for name in side} - {""} for side in (mishap.who, mishap.others)
        )
        self._wires.part(one, other, mishap.for_s)
        if self._scene.started and self._random.random() < self._faults.resets:
            self._agenda.after(mishap.for_s, partial(self._reset, sorted(one), sorted(other)))
        return bool(one and other)

    def _reset(self, one: list[str], other: list[str]) -> None:
        for sender in one:
            for to in other:
                self._cut(sender, to)
                self._cut(to, sender)

    def _break(self, mishap: Mishap) -> bool:
        if not self._scene.started:
            return False
        return self._cut(self._key(mishap.who[0]), self._key(mishap.others[0])) > 0

    def _cut(self, sender: str, to: str) -> int:
        duplicate = self._random.random() < self._faults.duplicates
        control = COORDINATOR in (sender.partition("#")[0], to.partition("#")[0])
        return self._wires.cut(sender, to, duplicate=duplicate and not control)

    def _key(self, name: str) -> str:
        if name == COORDINATOR:
            return self._scene.coordinator.key
        process = self._scene.newest().get(name)
        return process.key if process is not None else ""
