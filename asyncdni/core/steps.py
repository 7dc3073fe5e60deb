"""The steps of one barrier, as far as they have been done."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncdni.core.ledger import Ledger
from asyncdni.core.scores import Scores

__all__ = ["CUTS", "Steps", "is_cut"]

#: Tags of cuts begin with their folder.
CUTS = "checkpoints/"


@dataclass(slots=True)
class Steps:
    """What has come back for the current barrier."""

    kind: str = ""
    position: int = 0
    drained: dict[str, int] = field(default_factory=dict)  # position, by worker
    scores: Scores = field(default_factory=Scores)
    saves: list[str] = field(default_factory=list)  # tags still to be saved
    saved: dict[str, dict[str, str]] = field(default_factory=dict)  # by worker, of the first tag
    since: float = 0.0  # when the first of them was ordered
    # before the evaluation: entries of the history, and the best one
    before: tuple[int, dict[str, float | None] | None] | None = None

    def take_back(self, ledger: Ledger) -> None:
        """The evaluation, from there: it will be had again."""
        if self.before is not None:
            count, ledger.best = self.before
            del ledger.history[count:]


def is_cut(tag: str) -> bool:
    """What is saved under it is a state to go on from."""
    return tag.startswith(CUTS)
