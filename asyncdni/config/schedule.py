"""[schedule] and [staleness]: which rule unlocks the network, and how late gradients may be."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from asyncdni.config.base import Count, Fraction, NonNegative, Positive, Table, Whole

__all__ = [
    "ConvolutionalGenerator",
    "Delayed",
    "ErrorGenerator",
    "Generator",
    "Gpipe",
    "Guard",
    "InputModel",
    "LinearGenerator",
    "LocalHead",
    "LocalLoss",
    "Locked",
    "LowRankGenerator",
    "MlpGenerator",
    "OnFull",
    "OneF1B",
    "Schedule",
    "Staleness",
    "Synthetic",
    "ZeroGenerator",
]


class ErrorGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="error"):
    """e = softmax(hC + c) - onehot(y) of a local classifier, sent through a learned map: g = eU."""

    head_learning_rate: Positive = 1e-2  # Adam, own cross-entropy, every batch
    rate: Annotated[float, Meta(gt=0, lt=2)] = 0.03  # normalised LMS step of U; unstable from 2
    cells: Count = (
        4  # of feature maps: the classifier sees the means of cells x cells cells a plane
    )


class ZeroGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="zero"):
    """Always predicts zero: the control that shows what a generator is worth."""


class LinearGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="linear"):
    """g = hA + onehot(y)B + c, zero-initialised."""

    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True  # divide targets by their running RMS


class LowRankGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="low_rank"):
    """The same through `rank` linear units: a fraction of the arithmetic."""

    rank: Count = 32
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True


class MlpGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="mlp"):
    """Hidden layers with batch norm and relu, last layer zero-initialised (the DNI paper's)."""

    hidden: tuple[Count, ...] = (256,)
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True


class ConvolutionalGenerator(
    Table, frozen=True, kw_only=True, tag_field="kind", tag="convolutional"
):
    """Of feature maps: convolutions of the activation with labels as channels (the DNI paper's)."""

    hidden: tuple[Count, ...] = (64, 64)  # channels of each hidden layer
    kernel: Count = 5
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True


Generator = (
    ErrorGenerator
    | ZeroGenerator
    | LinearGenerator
    | LowRankGenerator
    | MlpGenerator
    | ConvolutionalGenerator
)


class LocalHead(Table, frozen=True, kw_only=True):
    """A local classifier on a stage's activation, trained by its own loss."""

    hidden: tuple[Count, ...] = ()  # relu units of each hidden layer; none: a linear head
    learning_rate: Positive = 1e-2  # Adam


class InputModel(Table, frozen=True, kw_only=True):
    """Predicts a stage's input from the network's, trained on the activation when it comes."""

    hidden: tuple[Count, ...] = (256,)
    labels: bool = False
    learning_rate: Positive = 3e-3  # Adam


class Guard(Table, frozen=True, kw_only=True):
    """Wait for true gradients while a generator's disagree with them."""

    window: Count = 32  # fits over which the cosine between both is averaged
    below: Annotated[float, Meta(ge=-1, le=1)] = 0.0  # falls back to waiting there …
    above: Annotated[float, Meta(ge=-1, le=1)] = 0.1  # … and comes back there


#: What a producer does while a consumer grants it no credit.
OnFull = Literal["wait", "skip"]


# Each schedule says whether it is `repeatable`: the same seed gives the same weights to the last
# bit, however long ops and messages take.


class Locked(Table, frozen=True, kw_only=True, tag_field="name", tag="locked"):
    """Forward, update and backward locking: no other batch in flight."""

    repeatable: ClassVar[bool] = True
    split_backward: bool = True  # send the gradient that others wait for before learning from it


class Gpipe(Table, frozen=True, kw_only=True, tag_field="name", tag="gpipe"):
    """Synchronous pipeline: all forwards of a batch's microbatches, then all backwards, flush."""

    repeatable: ClassVar[bool] = True
    microbatches: Count = 4  # of a batch; data.batch_size must be a multiple
    split_backward: bool = True


class OneF1B(Table, frozen=True, kw_only=True, tag_field="name", tag="1f1b"):
    """Synchronous pipeline: one forward, one backward, so that fewer microbatches are in flight."""

    repeatable: ClassVar[bool] = True
    microbatches: Count = 4
    split_backward: bool = True


class Delayed(Table, frozen=True, kw_only=True, tag_field="name", tag="delayed"):
    """Asynchronous pipeline without a flush: true gradients, late."""

    repeatable: ClassVar[bool] = False  # what an update sees goes by when messages arrive
    weights: Literal["stash", "current"] = "stash"  # that a backward goes through
    look_ahead: NonNegative = 0.0  # forward with the weights moved on by so many last updates
    anneal_epochs: NonNegative = 0.0  # divide learning rates by the staleness, less and less so
    split_backward: bool = True


class LocalLoss(Table, frozen=True, kw_only=True, tag_field="name", tag="local_loss"):
    """Greedy: every stage learns from a local head alone; nothing comes back."""

    repeatable: ClassVar[bool] = True  # while no worker dies; not with replay, nor skipping
    head: LocalHead = LocalHead()
    replay: Whole = 0  # inputs kept to learn from while no new one is here
    uses_max: Annotated[int, Meta(ge=2)] = 4  # how often a stage may learn from one input
    on_full: OnFull = "wait"


class Synthetic(Table, frozen=True, kw_only=True, tag_field="name", tag="synthetic"):
    """Update at once from the generator's gradient; train it on what comes back."""

    repeatable: ClassVar[bool] = False  # what an update sees goes by when messages arrive
    target: Literal["true", "bootstrap", "half"] = "true"  # half: of the batches each
    generator: Generator = ErrorGenerator()
    fit_every: Count = 1  # only batches with id % fit_every == 0 send gradients up …
    fit_first: Whole = 0  # … and the first so many, while generators are new
    correct: bool = False  # apply true minus synthetic when the true gradient arrives
    mix: Fraction = 0.0  # share of the true gradient in an update, the rest is synthetic
    # a stage learns from a batch with this probability, and only passes it on otherwise
    update_probability: Annotated[float, Meta(gt=0, le=1)] = 1.0
    synthetic_inputs: bool = False  # never wait for an activation either: predict it
    input_model: InputModel = InputModel()
    guard: Guard | None = None
    on_full: OnFull = "wait"


Schedule = Locked | Gpipe | OneF1B | Delayed | LocalLoss | Synthetic

# --- [staleness] ---------------------------------------------------------------------------------


class Staleness(Table, frozen=True, kw_only=True):
    """The contract on lag: how many batches a stage may be ahead of the gradients it awaits."""

    lag: Whole | None = None  # batches; None: what the schedule needs
    links: dict[str, Whole] = {}  # { "hidden1->hidden2" = 8 }
    # wait for the gradient, or give it up (synthetic only); None: as the schedule does
    at_bound: Literal["wait", "drop"] | None = None
