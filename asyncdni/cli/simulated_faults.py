"""What has gone wrong in simulated runs, and what it has cost, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from asyncdni.cli.mishaps import undone
from asyncdni.errors import CheckpointError
from asyncdni.metrics.mishaps import Mishaps
from asyncdni.simulator import Result

__all__ = ["Totals", "happened", "is_due_to_disk", "totals_table"]


def is_due_to_disk(result: Result) -> bool:
    """The run has failed because the disk was full: no run can do without its checkpoints."""
    failure = result.failure
    full = "failed save" in result.mishaps
    return full and failure is not None and failure.kind == CheckpointError.__name__


def happened(result: Result) -> Iterator[str]:
    """A line a fault, a death, a return, a standstill."""
    if not result.mishaps:
        yield f"faults: none, for the run was over after {result.virtual_s:.3f} s"
        return
    yield f"faults: {_listed(result.mishaps)}"
    for kind, values in result.records:
        moment = f"  {values.get('time_s', 0.0):.3f} s: "
        match kind:
            case "lost" | "accused" | "stuck":
                yield moment + values["text"]
            case "round":
                yield f"{moment}round {values['incarnation']} from {values['restore']}"
            case "back":
                away = f"{values['stage']} is back after {values['down_s']:.3f} s"
                yield f"{moment}{away}; {undone(values['lost_updates'], values)}"
    if result.failure is not None:
        yield f"  it has ended: {result.failure.text}"


class Totals:
    """Sums over runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended_by_disk = 0
        self.mishaps: Counter[str] = Counter()
        self.rounds = 0
        self.cost = Mishaps()
        self.events = 0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.ended_by_disk += result.failure is not None
        self.mishaps.update(result.mishaps)
        self.events += result.events
        for kind, values in result.records:
            self.rounds += kind == "round"
            self.cost.note(kind, values)


def totals_table(totals: Mapping[str, Totals]) -> list[str]:
    """A line a schedule, and below it what has gone wrong."""
    lines = []
    for name, one in totals.items():
        cost = one.cost.summary()
        lines.append(
            f"{name}: {one.runs} runs, {one.events:,} events, every sample accounted for; "
            f"{one.rounds} rounds after deaths, {cost['down_s']:.1f} s without a worker (virtual), "
            f"{cost['lost_updates']:,} updates lost or to be done again"
        )
        if one.mishaps:
            lines.append(f"  faults: {_listed(one.mishaps)}")
        if one.ended_by_disk:
            lines.append(f"  {one.ended_by_disk} ended by a full disk, as they must")
    return lines


def _listed(mishaps: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(mishaps.items()))
