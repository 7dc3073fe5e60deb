"""The experiment file (TOML) as typed, frozen values: one struct a table, a reason beside a value.

Nothing here reads a file or checks how stages fit together: see `experiment` (file, `--set`,
messages for the user) and `network` (graph, shapes).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from asyncdni.config.base import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Table,
)
from asyncdni.config.checkpoint import Checkpoint, Recovery
from asyncdni.config.conditions import (
    Link,
    Links,
    Slow,
)
from asyncdni.config.data import (
    Addition,
    Cifar10,
    Copy,
    Data,
    DigitPairs,
    Digits,
    HeldOut,
    Mnist,
    Npz,
    NpzTargets,
    RepeatCopy,
    Samples,
    Text,
    Trigonometry,
    Windows,
)
from asyncdni.config.numbers import Numbers
from asyncdni.config.optimizer import (
    Adam,
    Constant,
    Cosine,
    Decay,
    Optimizer,
    Sgd,
    Step,
)
from asyncdni.config.run import (
    MESSAGE_BYTES_MAX,
    Limits,
    Run,
)
from asyncdni.config.schedule import (
    ConvolutionalGenerator,
    Delayed,
    ErrorGenerator,
    Generator,
    Gpipe,
    Guard,
    InputModel,
    LinearGenerator,
    LocalHead,
    LocalLoss,
    Locked,
    LowRankGenerator,
    MlpGenerator,
    OneF1B,
    OnFull,
    Schedule,
    Staleness,
    Synthetic,
    ZeroGenerator,
)

__all__ = [
    "MESSAGE_BYTES_MAX",
    "Adam",
    "Addition",
    "Checkpoint",
    "Cifar10",
    "Constant",
    "ConvolutionalGenerator",
    "Copy",
    "Cosine",
    "Count",
    "Data",
    "Decay",
    "Delayed",
    "DigitPairs",
    "Digits",
    "ErrorGenerator",
    "Experiment",
    "Fraction",
    "Generator",
    "Gpipe",
    "Guard",
    "HeldOut",
    "InputModel",
    "Limits",
    "LinearGenerator",
    "Link",
    "Links",
    "LocalHead",
    "LocalLoss",
    "Locked",
    "LowRankGenerator",
    "MlpGenerator",
    "Mnist",
    "NonNegative",
    "Npz",
    "NpzTargets",
    "Numbers",
    "OnFull",
    "OneF1B",
    "Optimizer",
    "Positive",
    "Recovery",
    "RepeatCopy",
    "Run",
    "Samples",
    "Schedule",
    "Sgd",
    "Slow",
    "Stage",
    "Staleness",
    "Step",
    "Synthetic",
    "Table",
    "Text",
    "Trigonometry",
    "Windows",
    "ZeroGenerator",
]


class Stage(Table, frozen=True, kw_only=True):
    """Consecutive layers that are trained by one worker."""

    # "relu" | { dense = 256 } | { batch_norm = { … } }
    layers: Annotated[list[str | dict[str, Any]], Meta(min_length=1)]
    name: str = ""  # default: stage1, stage2, …
    # default: the stage before; "data" is the data set
    inputs: Annotated[list[str], Meta(min_length=1)] | None = None
    join: Literal["concat", "sum"] = "concat"  # of several inputs
    loss: Literal["cross_entropy", "sigmoid_cross_entropy", "mse"] | None = None
    weights: str = ""  # of that stage, in place of its own: one set, its gradients summed
    optimizer: dict[str, Any] = {}  # overrides of [optimizer] for this stage
    # overrides of [schedule]; { name = "locked" }: it waits for the gradient of its consumers
    schedule: dict[str, Any] = {}


class Experiment(Table, frozen=True, kw_only=True):
    """One whole experiment."""

    data: Data
    stages: Annotated[list[Stage], Meta(min_length=1)]
    schedule: Schedule = Synthetic()
    optimizer: Optimizer = Adam()
    run: Run = Run()
    limits: Limits = Limits()
    staleness: Staleness = Staleness()
    checkpoint: Checkpoint = Checkpoint()
    recovery: Recovery = Recovery()
    numbers: Numbers = Numbers()
    links: Links = Links()
    slow: dict[str, Slow] = {}  # by worker
