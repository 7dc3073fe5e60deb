"""One interface for the maths of a stage: arrays in, arrays out. Backends implement `Stage`.

A stage owns its weights, optimizers, generator and the forward state of each batch in flight (its
slot). It knows nothing of other processes. Arrays that it returns belong to the batch's slot: they
stay untouched until `release(batch)`, and after that until `sent` says that the transport has let
go of them.

Values that travel are named: activations come as `{producer: array}`, gradients as
`{consumer: array}` and go as `{producer: {consumer: array}}`, where producers and consumers are
names of declared stages ("data" for the data set), so that a stage which was fused from several
can add up gradients in declared order, under every split to the same bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from asyncdni.nn.base import Array
from asyncdni.schedules.base import Source

__all__ = ["Agreement", "Array", "Context", "Forwarded", "Score", "Stage"]

#: What travels beside the activation, one row a sample: "y", the targets, and see `data.meta`.
Context = Mapping[str, Array]


@dataclass(slots=True)
class Score:
    """Sums over samples (or steps) of one loss, so that scores of several batches add up."""

    stage: str
    samples: int = 0
    loss: float = 0.0  # summed over samples
    correct: int | None = None  # None where the loss has no notion of a right answer
    outputs: int = 1  # answers a sample: `correct` counts out of samples * outputs
    #: Of windows, the steps that count: they take the place of samples. None: samples do.
    steps: int | None = None

    def add(self, other: Score) -> None:
        if other.steps is not None:
            self.steps = (self.steps or 0) + other.steps
        self.samples += other.samples
        self.loss += other.loss
        self.outputs = other.outputs
        if other.correct is not None:
            self.correct = (self.correct or 0) + other.correct

    @property
    def count(self) -> int:
        """What the loss is a sum over: samples, or steps of windows."""
        return self.samples if self.steps is None else self.steps


@dataclass(slots=True)
class Forwarded:
    """What a forward gives: the activation that leaves the stage (if any) and its losses."""

    activation: Array | None
    scores: list[Score] = field(default_factory=list)


@dataclass(slots=True)
class Agreement:
    """How a prediction and the true gradient compare, for one batch."""

    cosine: float  # of both as one vector each; 0 where one is zero
    relative_error: float  # |prediction - gradient| / |gradient|
    loss: float  # squared distance, mean over samples: what a regression minimises


class Stage(Protocol):
    """The maths of one worker. Batches are told apart by id; many can be in flight."""

    def forward(self, batch: int, inputs: Mapping[str, Array], context: Context) -> Forwarded:
        """Training forward (batch statistics). `context` has "y", the targets, and what else
        travels along, one row a sample; nothing where no targets are needed."""

    def predict(self, batch: int) -> None:
        """Ask the generator for the gradient of the activation; keep it in the batch's slot."""

    def backward(
        self,
        batch: int,
        gradients: Mapping[str, Array],
        *,
        source: Source,
        learn: bool,
        send: bool,
    ) -> dict[str, dict[str, Array]]:
        """Push a gradient of the activation (sum of losses, one row a sample) back.

        `learn` accumulates the gradients of the weights; `send` returns the gradients of the
        inputs, `{producer: {consumer: array}}`, leaving out the data.
        """

    def learn(self, batch: int) -> None:
        """Accumulate the gradients of the weights that the batch's last `backward`, of the true
        gradient and without `learn`, left out. Both together give what one would, bit by bit."""

    def update(self) -> dict[str, Array]:
        """One optimizer step on the accumulated gradients divided by the samples in them.

        Not of weights that stages elsewhere use as well: their gradients (N,) are returned by
        declared stage, those of stages that have learned, for `apply`. Each is an array by itself.

        Raises `NumericalError` for gradients that are no numbers, or leaves the step out: see
        `config.Numbers`. So do `forward`, `predict` and the fits."""

    def apply(self, batch: int, gradients: Mapping[str, Array]) -> None:
        """The step that the oldest `update` without one has left out, on its gradients and those
        of stages elsewhere: summed in declared order, so that all make the same step. `batch`: what
        it is made on behalf of. Raises as `update` does."""

    def fit(self, batch: int, gradients: Mapping[str, Array]) -> Agreement | None:
        """Train the generator on the gradient that came back.

        Returns how the batch's prediction compares with it, or None where that was not measured
        this time.
        """

    def fit_input(self, inputs: Mapping[str, Array], context: Context) -> None:
        """Train the input model: from "data" to the activations of the producers."""

    def evaluate(self, inputs: Mapping[str, Array], context: Context) -> Forwarded:
        """Forward with running statistics. Nothing is kept but the state of recurrent layers, from
        one test window to the next, until context["first"] says that a sequence begins."""

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """Give up the batch's slot; it is reused once `sent()` is true."""

    def state(self) -> dict[str, dict[str, Array]]:
        """Weights and running statistics: `{declared stage: {"0.weight": array, …}}`."""

    def load(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        """Take over weights and running statistics, as `state` gives them."""

    def parameters(self) -> int:
        """How many weights, without the generator's."""

    def snapshot(self) -> dict[str, dict[str, Array]]:
        """All that decides how training goes on, copied: `state` and what is beside it (optimizer,
        generator, counters; `{declared stage: {"optimizer.first": array, …}}`).

        Batches in flight are not part of it, and no gradients may have been accumulated."""

    def restore(self, state: Mapping[str, Mapping[str, Array]]) -> list[str]:
        """Take over what `snapshot` gave, here or under another split, to the same bits; forgets
        first. Returns what the user should know: models that begin anew, or are not needed.

        Raises `CheckpointError`, with all as it was but forgotten, for the state of another
        network."""

    def forget(self) -> None:
        """Let go of every batch in flight and of accumulated gradients; `release` of such a batch
        does nothing from here on, and its arrays are not used again. Weights, optimizer and
        generator stay."""

    def skips(self) -> dict[str, int]:
        """Counters of what `[numbers] policy = "skip"` has left out, by name."""
