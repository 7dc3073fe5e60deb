"""The interface of a stage's maths, which takes and returns arrays. Backends implement `Stage`.

A stage owns its weights, optimizers and generator, and for each batch in flight a slot with the
state of its forward. It knows nothing of other processes. Arrays that it returns belong to the
batch's slot: they are not written to until `release(batch)`, and after that not until `sent` says
that the transport has let go of them.

Activations come as `{producer: array}`. Gradients come as `{consumer: array}`, and are sent on as
`{producer: {consumer: array}}`. Producers and consumers are names of declared stages ("data" for
the data set), so that a stage fused from several can add gradients in declared order, and the sum
is the same to the last bit under every split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from asyncdni.nn.base import Array
from asyncdni.nn.metrics import Average
from asyncdni.schedules.base import Source

__all__ = ["Agreement", "Array", "Context", "Forwarded", "Score", "Stage"]

#: What travels beside the activation, one row a sample: "y", the targets, and see `data.meta`.
Context = Mapping[str, Array]


@dataclass(slots=True)
class Score:
    """One loss, summed over samples (or steps), so that scores of several batches can be added."""

    stage: str
    samples: int = 0
    loss: float = 0.0  # summed over samples
    correct: int | None = None  # None where the loss has no notion of a right answer
    outputs: int = 1  # answers per sample: `correct` is out of samples * outputs
    #: For windows, the number of steps that count, in place of samples. None: samples count.
    steps: int | None = None
    #: Of the test set: the experiment's further metrics, by name.
    metrics: dict[str, Average] = field(default_factory=dict)

    def add(self, other: Score) -> None:
        if other.steps is not None:
            self.steps = (self.steps or 0) + other.steps
        self.samples += other.samples
        self.loss += other.loss
        self.outputs = other.outputs
        if other.correct is not None:
            self.correct = (self.correct or 0) + other.correct
        for name, average in other.metrics.items():
            if name in self.metrics:
                self.metrics[name].add(average)
            else:
                self.metrics[name] = average

    @property
    def count(self) -> int:
        """What the loss is a sum over: samples, or steps of windows."""
        return self.samples if self.steps is None else self.steps


@dataclass(slots=True)
class Forwarded:
    """What a forward returns: the activation that leaves the stage (if any), and its losses."""

    activation: Array | None
    scores: list[Score] = field(default_factory=list)


@dataclass(slots=True)
class Agreement:
    """How close a predicted gradient is to the true one, for one batch."""

    cosine: float  # of the two as one vector each; 0 where one is zero
    relative_error: float  # |prediction - gradient| / |gradient|
    loss: float  # the squared distance, mean over samples, which a regression minimises


class Stage(Protocol):
    """The maths of one worker. Batches are identified by id; many can be in flight."""

    #: What encodings have left out of the gradients that were sent, for links whose encoding keeps
    #: it: `{consumer: {producer: float32 (batch size and further rows of the encoding, …)}}`.
    #: `encodings.Compressor` writes to them; they are part of `snapshot`.
    remainders: Mapping[str, Mapping[str, Array]]

    def forward(self, batch: int, inputs: Mapping[str, Array], context: Context) -> Forwarded:
        """Go forward in training, with batch statistics. `context` holds "y", the targets, and what
        else travels along, one row a sample; it is empty where no targets are needed."""

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
        """Push gradients of the activation (of the summed loss, one row a sample) back.

        If `learn`, the gradients of the weights are accumulated. If `send`, the gradients of the
        inputs are returned, `{producer: {consumer: array}}`, without those of the data.
        """

    def learn(self, batch: int) -> None:
        """Accumulate the gradients of the weights for a batch whose last `backward`, of the true
        gradient, was without `learn`. Both calls together give what one with `learn` would, to the
        last bit."""

    def update(self) -> dict[str, Array]:
        """Make one optimizer step on the accumulated gradients, divided by the samples in them.

        Weights that stages elsewhere use as well wait for `apply`. Their gradients (M, N), of each
        microbatch, are returned by declared stage, for stages that have learned, each as a new
        array.

        For gradients that are not finite, this raises `NumericalError` or leaves the step out: see
        `config.Numbers`. So do `forward`, `predict` and the fits."""

    def apply(self, batch: int, gradients: Mapping[str, Array]) -> None:
        """Make the step of shared weights for the oldest `update` that still waits for it, on the
        sum of its gradients and of `gradients`, those of stages elsewhere. All sum in the same
        order, so that all make the same step. The learning rate is that of `batch`. Raises as
        `update` does."""

    def adopt(self, version: int, weights: Mapping[str, Array]) -> None:
        """Have the generator read out through these weights of another stage from now on, copied
        after so many of its updates; unless what it has is as new."""

    def fit(self, batch: int, gradients: Mapping[str, Array]) -> Agreement | None:
        """Train the generator on the true gradient that came back.

        Returns how close the batch's prediction was to it, or None where that was not measured this
        time.
        """

    def fit_input(self, inputs: Mapping[str, Array], context: Context) -> None:
        """Train the input models, from "data" to the activations of the producers."""

    def evaluate(
        self, inputs: Mapping[str, Array], context: Context, copy: int | None = None
    ) -> Forwarded:
        """Go forward with running statistics, through the weights of a copy or (None) the present
        ones. Only the state of recurrent layers is kept, from one test window to the next, until
        context["first"] says that a sequence begins."""

    def copy(self, number: int) -> None:
        """Copy weights and running statistics, to be evaluated while training goes on."""

    def discard(self, number: int) -> None:
        """Drop a copy. `forget` drops all."""

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """Give up the batch's slot; it is reused once `sent()` is true."""

    def state(self, copy: int | None = None) -> dict[str, dict[str, Array]]:
        """Weights and running statistics, of a copy or (None) the present ones: `{declared stage:
        {"0.weight": array, …}}`."""

    def load(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        """Copy in weights and running statistics, as `state` gives them."""

    def parameters(self) -> int:
        """The number of weights, without the generator's."""

    def snapshot(self, *, copied: bool = True) -> dict[str, dict[str, Array]]:
        """A copy of all that decides how training goes on: `state`, and optimizer, generator,
        counters and remainders; `{declared stage: {"optimizer.first": array, …}}`. If not `copied`,
        the arrays may be the stage's own, which the next op changes.

        Batches in flight are not part of it, and no gradients may have been accumulated."""

    def restore(self, state: Mapping[str, Mapping[str, Array]]) -> list[str]:
        """Call `forget`, then copy in what `snapshot` gave, here or under another split. Returns
        notes for the user: which models start anew, or are not needed.

        Raises `CheckpointError` for the state of another network, and then has copied nothing."""

    def forget(self) -> None:
        """Drop every batch in flight, the accumulated gradients and all copies. From then on
        `release` does nothing for such a batch, and its arrays are not used again. Weights,
        optimizer and generator stay."""

    def readout(self) -> dict[str, int]:
        """How old the weights are that the generator reads out through, by the counter's name;
        empty for another generator."""

    def skips(self) -> dict[str, int]:
        """How often `[numbers] policy = "skip"` has left something out, by the counter's name."""
