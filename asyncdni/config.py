"""The experiment file (TOML) as typed, frozen values: one struct a table, a reason beside a value.

Nothing here reads a file or checks how stages fit together: see `experiment` (file, `--set`,
messages for the user) and `network` (graph, shapes).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "MESSAGE_BYTES_MAX",
    "Adam",
    "Addition",
    "Constant",
    "Cosine",
    "Count",
    "Data",
    "Decay",
    "Digits",
    "ErrorGenerator",
    "Experiment",
    "Fraction",
    "Generator",
    "HeldOut",
    "Limits",
    "LinearGenerator",
    "Locked",
    "LowRankGenerator",
    "MlpGenerator",
    "Mnist",
    "NonNegative",
    "Npz",
    "Optimizer",
    "Positive",
    "Run",
    "Schedule",
    "Sgd",
    "Stage",
    "Step",
    "Synthetic",
    "Table",
    "ZeroGenerator",
]

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0)]

#: The most that `[limits] message_bytes` may be: what a worker's data socket takes at all.
MESSAGE_BYTES_MAX = 2**32 - 1


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: unknown keys are refused."""


# --- [data] --------------------------------------------------------------------------------------

#: How many training samples are held out to choose options by. They are the same ones for every
#: seed, and take the place of the test set: all that is called test_… is then measured on them.
HeldOut = Annotated[int, Meta(ge=0)]


class Digits(Table, frozen=True, kw_only=True, tag_field="name", tag="digits"):
    """10,000 + 2,000 images of MNIST, embedded in the package."""

    batch_size: Count = 256  # the DNI paper's
    validation: HeldOut = 0


class Mnist(Table, frozen=True, kw_only=True, tag_field="name", tag="mnist"):
    """60,000 + 10,000 images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, no other is tried; empty: $ASYNCDNI_DATA, then the cache


class Addition(Table, frozen=True, kw_only=True, tag_field="name", tag="addition"):
    """Binary addition (Trask 2017): two numbers in, their sum out."""

    batch_size: Count = 10
    validation: HeldOut = 0
    bits: Annotated[int, Meta(ge=2, le=62)] = 8  # of the sum; each summand has one bit less
    examples: Count = 100
    test_examples: Count = 100


class Npz(Table, frozen=True, kw_only=True, tag_field="name", tag="npz"):
    """Arrays x_train, y_train, x_test, y_test of one .npz file."""

    path: Annotated[str, Meta(min_length=1)]
    batch_size: Count = 256
    validation: HeldOut = 0


Data = Digits | Mnist | Addition | Npz

# --- [[stages]] ----------------------------------------------------------------------------------


class Stage(Table, frozen=True, kw_only=True):
    """Consecutive layers that are trained by one worker."""

    # "relu" | { dense = 256 } | { batch_norm = { … } }
    layers: Annotated[list[str | dict[str, Any]], Meta(min_length=1)]
    name: str = ""  # default: stage1, stage2, …
    # default: the stage before; "data" is the data set
    inputs: Annotated[list[str], Meta(min_length=1)] | None = None
    join: Literal["concat", "sum"] = "concat"  # of several inputs
    loss: Literal["cross_entropy", "sigmoid_cross_entropy", "mse"] | None = None
    optimizer: dict[str, Any] = {}  # overrides of [optimizer] for this stage


# --- [schedule] ----------------------------------------------------------------------------------


class ErrorGenerator(Table, frozen=True, kw_only=True, tag_field="kind", tag="error"):
    """e = softmax(hC + c) - onehot(y) of a local classifier, sent through a learned map: g = eU."""

    head_learning_rate: Positive = 1e-2  # Adam, own cross-entropy, every batch
    rate: Annotated[float, Meta(gt=0, lt=2)] = 0.03  # normalised LMS step of U; unstable from 2


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


Generator = ErrorGenerator | ZeroGenerator | LinearGenerator | LowRankGenerator | MlpGenerator


class Locked(Table, frozen=True, kw_only=True, tag_field="name", tag="locked"):
    """Forward, update and backward locking: no other batch in flight."""

    split_backward: bool = True  # send the gradient that others wait for before learning from it


class Synthetic(Table, frozen=True, kw_only=True, tag_field="name", tag="synthetic"):
    """Update at once from the generator's gradient; train it on what comes back."""

    target: Literal["true", "bootstrap"] = "true"
    generator: Generator = ErrorGenerator()
    fit_every: Count = 1  # only batches with id % fit_every == 0 send gradients up …
    fit_first: Annotated[int, Meta(ge=0)] = 0  # … and the first so many, while generators are new
    correct: bool = False  # apply true minus synthetic when the true gradient arrives
    max_in_flight: Count = 256  # batches whose gradient is awaited; the oldest is given up beyond


Schedule = Locked | Synthetic

# --- [optimizer] ---------------------------------------------------------------------------------


class Constant(Table, frozen=True, kw_only=True, tag_field="name", tag="constant"):
    """The learning rate as given."""

    warmup_epochs: NonNegative = 0.0  # rises linearly from 0


class Step(Table, frozen=True, kw_only=True, tag_field="name", tag="step"):
    """Multiplied by `factor` after each of `epochs`."""

    epochs: Annotated[list[Positive], Meta(min_length=1)]
    factor: Positive = 0.1
    warmup_epochs: NonNegative = 0.0


class Cosine(Table, frozen=True, kw_only=True, tag_field="name", tag="cosine"):
    """Falls to `final` times the learning rate over the whole run."""

    final: Fraction = 0.0
    warmup_epochs: NonNegative = 0.0


Decay = Constant | Step | Cosine


class Sgd(Table, frozen=True, kw_only=True, tag_field="name", tag="sgd"):
    """Stochastic gradient descent, with momentum and Nesterov's variant on request."""

    learning_rate: Positive = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None  # of each stage's own gradient
    decay: Decay = Constant()


class Adam(Table, frozen=True, kw_only=True, tag_field="name", tag="adam"):
    """Adam; with `weight_decay` AdamW (decoupled)."""

    learning_rate: Positive = 1e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None
    decay: Decay = Constant()


Optimizer = Sgd | Adam

# --- [run], [limits] -----------------------------------------------------------------------------


class Run(Table, frozen=True, kw_only=True):
    """How long, from which seed, over how many workers."""

    epochs: Annotated[int, Meta(ge=0)] = 5  # 0 writes the initial weights
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    split: list[Count] | None = None  # [2, 1, 1]: how many stages each worker gets; None: one
    evaluate_every: Positive = 1.0  # epochs between evaluations; fractions allowed
    threads: Count = 1  # BLAS threads a worker
    # cores: "auto" gives neighbours of a locked chain different ones, "none" leaves all to the
    # system, [0, 1, 0] says the core of each worker; see docs/speed.md
    pin: Literal["auto", "none"] | list[Annotated[int, Meta(ge=0)]] = "auto"
    dtype: Literal["float32", "float64"] = "float32"


class Limits(Table, frozen=True, kw_only=True):
    """A limit on everything, so that nothing grows or waits for ever."""

    window: Count | Literal["auto"] = "auto"  # activations a producer may send ahead
    window_max: Count = 256  # what `auto` may reach
    # one message between workers, frames and all
    message_bytes: Annotated[int, Meta(ge=1, le=MESSAGE_BYTES_MAX)] = 256 * 1024 * 1024
    startup_s: Positive = 60.0  # until every worker has joined
    silence_s: Positive = 3.0  # without a sign of life: dead


class Experiment(Table, frozen=True, kw_only=True):
    """One whole experiment."""

    data: Data
    stages: Annotated[list[Stage], Meta(min_length=1)]
    schedule: Schedule = Synthetic()
    optimizer: Optimizer = Adam()
    run: Run = Run()
    limits: Limits = Limits()
