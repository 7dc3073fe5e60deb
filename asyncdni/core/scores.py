"""The test set's result at one barrier: sums of each loss, and what a user compares runs by."""

from __future__ import annotations

from collections.abc import Iterable

from asyncdni.messages import Evaluated

__all__ = ["Scores"]


class Scores:
    """Scores of every loss of the network. The accuracy is the last declared one's that has any."""

    def __init__(self) -> None:
        self.stages: dict[str, Evaluated] = {}

    def add(self, message: Evaluated) -> None:
        self.stages[message.stage] = message

    def ordered(self, stages: Iterable[str]) -> Scores:
        """The same in declared order, so that results do not depend on who was first."""
        scores = Scores()
        scores.stages = {stage: self.stages[stage] for stage in stages}
        return scores

    @property
    def loss(self) -> float:
        """Mean over samples (of windows: steps), summed over the network's losses."""
        return sum(score.loss / max(1, _count(score)) for score in self.stages.values())

    @property
    def accuracy(self) -> float | None:
        """Right answers out of all, or None where no loss has right answers."""
        accuracy = None
        for score in self.stages.values():
            count = _count(score)
            if score.correct is not None and count:
                accuracy = score.correct / (count * score.outputs)
        return accuracy

    def beats(self, accuracy: float | None, loss: float | None) -> bool:
        """Better accuracy; without one, smaller loss."""
        if self.accuracy is None or accuracy is None:
            return loss is None or self.loss < loss
        return self.accuracy > accuracy


def _count(score: Evaluated) -> int:
    """What the loss is a sum over."""
    return score.samples if score.steps is None else score.steps
