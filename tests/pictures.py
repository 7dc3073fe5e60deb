"""The timelines that schedule files show, and the workers that must do what they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pair import Bench, chain, fed_chain, number

from asyncdni.core.flights import Guard, Lag
from asyncdni.core.inputs import Replay
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.schedules import delayed, gpipe, local_loss, locked, one_f_one_b, synthetic
from asyncdni.schedules.base import Asked, Groups, Schedule
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

MODULES = (locked, gpipe, one_f_one_b, delayed, local_loss, synthetic)


def pictures(text: str | None) -> list[str]:
    """The fenced timelines of a text, in order."""
    blocks = re.findall(r"^```\n(stage 0 .*?)\n```$", text or "", re.MULTILINE | re.DOTALL)
    return [str(block) for block in blocks]


def depth(position: Position) -> int:
    """Stages down to the loss at the end of a chain of three."""
    return 2 - number(position)


def bounded(position: Position, bound: int | None = None, *, drop: bool = False) -> Lag:
    """The same bound to every consumer; by default that of a pipeline."""
    own = depth(position) if bound is None else bound
    return Lag(dict.fromkeys(position.consumers, own), drop=drop)


def waiting_guard() -> Guard:
    """One that has fallen back and never comes back."""
    guard = Guard(10_000, below=-1.0, above=1.0)
    guard.waiting = True
    return guard


@dataclass(frozen=True)
class Case:
    """What a picture is of: batches up to the barrier, and each stage's worker."""

    batches: int
    make: Callable[[Position], Worker]
    positions: Callable[..., Sequence[Position]] = chain

    def bench(self) -> Bench:
        """Three stages, run to the barrier."""
        return Bench(self.positions(3, barriers=(self.batches,)), self.make).train()


def _plain(schedule: Schedule, batches: int, **options: Any) -> Case:
    return Case(batches, lambda position: Worker(position, schedule, **options))


def _guarded(position: Position) -> Worker:
    guard = None if number(position) else waiting_guard()
    return Worker(position, Synthetic(), guard=guard)


def _replaying(position: Position) -> Worker:
    return Worker(position, LocalLoss(), replay=Replay(4, 4) if number(position) else None)


def _drawn(position: Position) -> Worker:
    """Stage 0 does not learn from batch 1, stage 2 not from batch 2."""
    left_out = {0: 1, 2: 2}.get(number(position))
    return Worker(position, Synthetic(draws=lambda batch: batch != left_out))


def _one_f_one_b(position: Position) -> Worker:
    return Worker(position, OneF1B(Groups(4, 8), warmup=depth(position)))


def _delayed(position: Position) -> Worker:
    return Worker(position, Delayed(), lag=bounded(position))


def _accumulating(position: Position) -> Worker:
    return Worker(position, Delayed(Groups(2, 6)), lag=bounded(position))


#: In the order of the files and of the pictures in each.
CASES = {
    "locked": _plain(Locked(), 2),
    "gpipe": _plain(Gpipe(Groups(3, 6)), 6),
    "1f1b": Case(8, _one_f_one_b),
    "delayed": Case(5, _delayed),
    "delayed, accumulate": Case(6, _accumulating),
    "local_loss": _plain(LocalLoss(), 3),
    "local_loss, replay": Case(3, _replaying),
    "synthetic, true": _plain(Synthetic(), 3),
    "synthetic, bootstrap": _plain(Synthetic(bootstrap=True), 3),
    "synthetic, correct": _plain(Synthetic(correct=True), 3),
    "synthetic, fit_every": _plain(Synthetic(asked=Asked(every=2)), 3),
    "synthetic, mix": _plain(Synthetic(mix=0.5), 3),
    "synthetic, update_probability": Case(4, _drawn),
    "synthetic, synthetic_inputs": Case(3, lambda p: Worker(p, Synthetic()), fed_chain),
    "synthetic, guard": Case(2, _guarded),
}
SHOWN = [picture for module in MODULES for picture in pictures(module.__doc__)]
