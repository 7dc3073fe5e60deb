"""The loss of a declared stage: of one output a sample, or of one a step of windows."""

from __future__ import annotations

from collections.abc import Iterable

from asyncdni.backends.base import Context, Score
from asyncdni.errors import DataError
from asyncdni.network import Node
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.losses import make_loss
from asyncdni.nn.window_loss import WindowLoss

__all__ = ["Scoring", "with_own_losses"]


class Scoring:
    """Scores outputs (B, K) or, of windows, (B, T, K) by the loss that `node` names."""

    def __init__(self, node: Node) -> None:
        """Raises `ConfigError` for a loss that is not known."""
        assert node.loss is not None
        self._name = node.name
        self._answers = node.answers
        self._loss = make_loss(node.loss)
        # The same loss, where there are targets for each step.
        self._windows = WindowLoss(self._loss) if len(node.output_shape) > 1 else None

    def forward(self, x: Array, context: Context, slot: Slot) -> Score:
        """Raises `DataError` where no targets came along."""
        targets = context.get("y")
        if targets is None:
            raise DataError(f"stage {self._name} has a loss but its input carries no targets")
        outputs = 1 if targets.ndim < x.ndim else targets.shape[-1]
        if self._windows is None:
            loss, correct = self._loss.forward(x, targets, slot)
            return self._score(len(x), loss, correct, outputs)
        loss, correct, steps = self._windows.forward(x, targets, context.get("mask"), slot)
        return self._score(len(x), loss, correct, outputs, steps)

    def _score(
        self, count: int, loss: float, correct: int | None, outputs: int, steps: int | None = None
    ) -> Score:
        right = correct if self._answers else None
        return Score(self._name, count, float(loss), right, outputs, steps)

    def backward(self, slot: Slot) -> Array:
        """The gradient of the slot's last outputs, belonging to the slot."""
        return (self._windows or self._loss).backward(slot)


def with_own_losses(
    score: Score | None, layers: Iterable[Slot], name: str, samples: int
) -> Score | None:
    """`score` and the losses that layers have of their own, such as the divergence of a `gaussian`;
    `name` is the stage's, `samples` the batch's size."""
    terms = [own["loss"] for own in layers if "loss" in own]
    if terms:
        score = score or Score(name, samples)
        score.loss += sum(terms)
    return score
