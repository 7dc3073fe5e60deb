"""What the coordinator has to know again after a death, its own included: see `core.coordinator`.

A ledger goes into the manifest of every cut as plain values, and comes back from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncdni.core.scores import Scores

__all__ = ["Ledger"]


@dataclass(slots=True)
class Ledger:
    """How far a run has come."""

    start: int = 0  # the next training batch to be read, as of the last cut
    barrier: int = 0  # number of the next barrier
    planned: int = 0  # barriers of the plan that have been lifted
    train_s: float = 0.0  # up to the last barrier
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an evaluation
    best: dict[str, float | None] | None = None  # accuracy and loss
    samples: dict[str, int] = field(default_factory=dict)  # forwarded, by worker
    cut: int = 0  # number of the last one; 0: none yet
    # of barriers that have been lifted: position, and before it `planned` and the evaluations
    lifted: list[list[int]] = field(default_factory=list)
    restore: str = "initial"  # what a round that goes back starts from: see `messages.Rejoin`

    def state(self) -> dict[str, Any]:
        """For the manifest of the cut that this is."""
        return {
            "start": self.start,
            "barrier": self.barrier,
            "planned": self.planned,
            "train_s": self.train_s,
            "history": [dict(entry) for entry in self.history],
            "best": None if self.best is None else dict(self.best),
            "samples": dict(self.samples),
            "cut": self.cut,
            "lifted": [list(one) for one in self.lifted],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], restore: str) -> Ledger:
        """From a manifest; `restore` names the folder of its cut, or "snapshots"."""
        known = {name: state[name] for name in cls().state()}
        return cls(**known, restore=restore)

    def evaluated(self, scores: Scores, entry: dict[str, Any]) -> bool:
        """Take note of an evaluation; True where it is the best so far."""
        self.history.append(entry)
        best = self.best
        if best is not None and not scores.beats(best["accuracy"], best["loss"]):
            return False
        self.best = {"accuracy": scores.accuracy, "loss": scores.loss}
        return True

    def lift(self, position: int, planned: int, evaluations: int) -> None:
        """A barrier is behind: so many of the plan are by now, so many evaluations were before."""
        self.lifted.append([position, self.planned, evaluations])
        self.planned = planned

    def behind(self, start: int) -> None:
        """Nobody who is left is farther than `start`: later barriers will be had again."""
        while self.lifted and self.lifted[-1][0] > start:
            _, self.planned, evaluations = self.lifted.pop()
            del self.history[evaluations:]

    def back_to(self, cut: Ledger) -> None:
        """What has been since is to be done again. Time that was spent stays spent, and barriers
        go on being numbered."""
        self.start, self.planned = cut.start, cut.planned
        self.history = [dict(entry) for entry in cut.history]
        self.best = None if cut.best is None else dict(cut.best)
        self.samples = dict(cut.samples)
        self.lifted = [list(one) for one in cut.lifted]
