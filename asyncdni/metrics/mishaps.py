"""What a run has survived, in a few numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["Mishaps"]


class Mishaps:
    """Adds up the coordinator's records of deaths and checkpoints.

    `summary` gives:

    restarts: processes started, or asked for, in place of dead ones.
    lost_updates: that workers had made, as of their last reports, after the state that a later
    round began from; those that are done again among them.
    down_s: time without one of the workers, summed over deaths.
    rollbacks: returns to a checkpoint because of numbers that had gone wrong.
    resumes: how often the run was taken up again after its end by `--resume`.
    cuts, checkpoint_s: checkpoints of the whole run, and the time they took.
    """

    def __init__(self) -> None:
        self.lost_updates: Counter[str] = Counter()  # by worker
        self._told_by_round = False
        self._sums: dict[str, float] = {
            "restarts": 0,
            "down_s": 0.0,
            "rollbacks": 0,
            "resumes": 0,
            "cuts": 0,
            "checkpoint_s": 0.0,
        }

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """One record."""
        sums = self._sums
        match kind:
            case "launch":
                sums["restarts"] += 1
            case "round":
                self._told_by_round = "lost_updates" in values
                self.lost_updates.update(values.get("lost_updates", {}))
            case "back":
                if not self._told_by_round:  # a run of before, which told of its dead alone
                    self.lost_updates[values["stage"]] += values["lost_updates"]
                sums["down_s"] += values["down_s"]
            case "numbers":
                sums["rollbacks"] += 1
            case "resumed":
                sums["resumes"] += 1
            case "cut":
                sums["cuts"] += 1
                sums["checkpoint_s"] += values["took_s"]

    def summary(self) -> dict[str, float]:
        return {**self._sums, "lost_updates": self.lost_updates.total()}
