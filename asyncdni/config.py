"""The experiment file (TOML) as typed, frozen values: one struct a table, a reason beside a value.

Nothing here reads a file or checks how stages fit together: see `experiment` (file, `--set`,
messages for the user) and `network` (graph, shapes). Options of schedules stand beside their rules
in `schedules/`, those of generators in `tables`; all have their names here as well.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from asyncdni.schedules.delayed import DelayedOptions as Delayed
from asyncdni.schedules.gpipe import GpipeOptions as Gpipe
from asyncdni.schedules.local_loss import LocalLossOptions as LocalLoss
from asyncdni.schedules.locked import LockedOptions as Locked
from asyncdni.schedules.one_f_one_b import OneF1BOptions as OneF1B
from asyncdni.schedules.options import Guard, InputModel, LocalHead, OnFull
from asyncdni.schedules.options import Options as Schedule
from asyncdni.schedules.synthetic import SyntheticOptions as Synthetic
from asyncdni.tables import (
    COUNT_MAX,
    ConvolutionalGenerator,
    Count,
    Data,
    ErrorGenerator,
    Fraction,
    Generator,
    HeldOut,
    LinearGenerator,
    LowRankGenerator,
    MlpGenerator,
    NonNegative,
    Positive,
    Samples,
    Seconds,
    Table,
    Whole,
    Windows,
    ZeroGenerator,
)

__all__ = [
    "COUNT_MAX",
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
    "Seconds",
    "Sgd",
    "Slow",
    "Stage",
    "Staleness",
    "Step",
    "Synthetic",
    "Table",
    "Text",
    "Trigonometry",
    "Whole",
    "Windows",
    "ZeroGenerator",
]

# --- checkpoint ----------------------------------------------------------------------------------
#
# [checkpoint] and [recovery]: what is kept for the day on which something dies, and what then.


class Checkpoint(Table, frozen=True, kw_only=True):
    """Cuts of the whole run at drained barriers, and rolling snapshots of each stage by itself."""

    # between cuts: a time such as "30s", or epochs as a number; "never": at the end alone
    every: str | Annotated[float, Meta(gt=0)] = "30s"
    keep: Count = 2  # cuts
    # between a worker's own snapshots, at least; "never": none
    snapshot_every: str = "1s"


class Recovery(Table, frozen=True, kw_only=True):
    """Workers that die are started again."""

    # deaths of one worker in a row without having learned in between; 0: the first ends the run
    restarts: Whole = 5


# --- conditions ----------------------------------------------------------------------------------
#
# [links] and [slow]: conditions to train under.


class Link(Table, frozen=True, kw_only=True):
    """How slow a link between workers is made, beside what it takes anyway."""

    latency: str = "0ms"  # one way
    jitter: str = "0ms"  # up to so much more, evenly drawn; messages stay in order
    bandwidth: str = ""  # "100Mbit/s"; empty: as it is


class Links(Link, frozen=True, kw_only=True):
    """All links, and those that are named ("hidden1->hidden2": messages that way)."""

    between: dict[str, Link] = {}


class Slow(Table, frozen=True, kw_only=True):
    """A worker on a slower or a busy machine: it sleeps after what it has done."""

    factor: Annotated[float, Meta(ge=1, le=100_000)] = 1.0  # each op takes so many times as long
    pause: str = "0ms"  # in addition, after a forward …
    chance: Fraction = 0.0  # … with this probability


# --- data ----------------------------------------------------------------------------------------
#
# [data]: what is trained on. First samples that stand by themselves, then sequences.
#
# Sequences are read in windows of T steps of B parallel streams: `window` is T, `batch_size` is B,
# and one window of one stream is what counts as a sample.

#: Steps whose targets the generators of recurrent layers see coming: "coming" in the context.
Ahead = Whole

#: What is to be told of a sample: its label, or itself (by an autoencoder).
Targets = Literal["labels", "inputs"]

#: What the numbers y of an .npz file are: whole numbers that name classes, or values. "auto": what
#: the losses of the network learn; where they learn both or none, values if y is floating.
NpzTargets = Literal["auto", "classes", "values", "inputs"]


# --- samples -------------------------------------------------------------------------------------


class Digits(Samples, frozen=True, kw_only=True, tag="digits"):
    """10,000 + 2,000 images of MNIST, embedded in the package."""

    batch_size: Count = 256  # the DNI paper's
    validation: HeldOut = 0
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Mnist(Samples, frozen=True, kw_only=True, tag="mnist"):
    """60,000 + 10,000 images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, no other is tried; empty: $ASYNCDNI_DATA, then the cache
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Addition(Samples, frozen=True, kw_only=True, tag="addition"):
    """Binary addition (Trask 2017): two numbers in, their sum out."""

    batch_size: Count = 10
    validation: HeldOut = 0
    bits: Annotated[int, Meta(ge=2, le=62)] = 8  # of the sum; each summand has one bit less
    examples: Count = 100
    test_examples: Count = 100

    @property
    def held_samples(self) -> int:
        return self.examples + self.test_examples


class Npz(Samples, frozen=True, kw_only=True, tag="npz"):
    """Arrays x_train, y_train, x_test, y_test of one .npz file."""

    path: Annotated[str, Meta(min_length=1)]
    batch_size: Count = 256
    validation: HeldOut = 0
    targets: NpzTargets = "auto"


class DigitPairs(Samples, frozen=True, kw_only=True, tag="digit_pairs"):
    """Two kinds of digits to tell apart (Seo 2018): the first is 0, the second 1."""

    batch_size: Count = 1
    validation: HeldOut = 0
    source: Literal["digits", "mnist"] = "digits"
    path: str = ""  # of mnist, as there
    first: Annotated[int, Meta(ge=0, le=9)] = 0
    second: Annotated[int, Meta(ge=0, le=9)] = 1
    examples: Count = 100
    test_examples: Count = 20
    steps: Count = 1  # above 1: the same image at so many time stamps, (steps, 784)

    @property
    def held_samples(self) -> int:
        return self.examples + self.test_examples


class Cifar10(Samples, frozen=True, kw_only=True, tag="cifar10"):
    """50,000 + 10,000 colour images (3, 32, 32), the binary version, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, as with mnist


# --- sequences -----------------------------------------------------------------------------------


class Copy(Windows, frozen=True, kw_only=True, tag="copy"):
    """Bits are shown, then to be recalled (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 10  # bits
    # 0: sequences have the full length; k: they begin with 1 and are one longer every k epochs
    grow: Whole = 0
    sequences: Count = 50  # of the full length, that an epoch takes; shorter ones are more
    test_sequences: Count = 10  # of each stream, of the full length
    ahead: Ahead = 0


class RepeatCopy(Windows, frozen=True, kw_only=True, tag="repeat_copy"):
    """Bits are shown, then to be recalled several times over (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 5  # bits
    repeats: Count = 5
    # 0: sequences have the full size; k: they begin with 1 bit once, and every k epochs have one
    # repeat more or, where these are as many as the bits, one bit more
    grow: Whole = 0
    sequences: Count = 50  # of the full size, that an epoch takes; smaller ones are more
    test_sequences: Count = 10  # of each stream, of the full size
    ahead: Ahead = 0


class Text(Windows, frozen=True, kw_only=True, tag="text"):
    """The next character of a text, UTF-8, at every step."""

    path: str = ""  # of the file, which may be gzip; empty: Shakespeare's plays in the data folder
    batch_size: Count = 32
    validation: HeldOut = 0  # characters at the end of the training part, in place of the test part
    window: Count = 20
    encoding: Literal["one_hot", "ids"] = "one_hot"  # ids are for an embedding layer
    test_part: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # of the text, its end
    ahead: Ahead = 0


class Trigonometry(Windows, frozen=True, kw_only=True, tag="trigonometry"):
    """The next point (cos, sin) of a circle at every step; streams differ in their start."""

    batch_size: Count = 1
    validation: HeldOut = 0  # windows between the points of training and test, in place of the test
    window: Count = 5
    period: Positive = 20.0  # steps
    points: Count = 500  # of one stream in an epoch
    test_points: Count = 100
    ahead: Ahead = 0


# --- numbers -------------------------------------------------------------------------------------
#
# [numbers]: what to do about a loss, gradient or generator that is no longer a finite number.


class Numbers(Table, frozen=True, kw_only=True):
    """NaN, infinity, and norms that explode."""

    # end the run; leave the update out; or go back to the last cut and on with later batches
    policy: Literal["stop", "skip", "roll_back"] = "stop"
    # a loss or a norm of a gradient that is so many times its running mean is as bad as NaN. None:
    # no limit, as what is a healthy jump depends on the task; on MNIST all stay below 4
    explode: Annotated[float, Meta(gt=1)] | None = None
    # updates that a stage may leave out one after the other: by then skipping has not helped
    skips_max: Count = 100


# --- optimizer -----------------------------------------------------------------------------------
#
# [optimizer]: how weights move.


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


# --- run -----------------------------------------------------------------------------------------
#
# [run] and [limits]: how long, over how many workers, and no more than what.

#: The most that `[limits] message_bytes` may be: what a worker's data socket takes at all.
MESSAGE_BYTES_MAX = 2**32 - 1


class Run(Table, frozen=True, kw_only=True):
    """How long, from which seed, over how many workers."""

    epochs: Whole = 5  # 0 writes the initial weights
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    split: list[Count] | None = None  # [2, 1, 1]: how many stages each worker gets; None: one
    evaluate_every: Positive = 1.0  # epochs between evaluations; fractions allowed
    threads: Count = 1  # BLAS threads a worker
    # cores: "auto" gives neighbours of a locked chain different ones, "none" leaves all to the
    # system, [0, 1, 0] says the core of each worker; see docs/speed.md
    pin: Literal["auto", "none"] | list[Whole] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    # weights to begin with: a run folder, a folder of STAGE.safetensors, or one .safetensors file
    init: str = ""
    # stages that take theirs from there, the others begin as the seed says; None: all of them
    init_stages: Annotated[list[str], Meta(min_length=1)] | None = None
    init_sha256: dict[str, str] = {}  # by stage, of what was taken; a run fills it in


class Limits(Table, frozen=True, kw_only=True):
    """A limit on everything, so that nothing grows or waits for ever."""

    window: Count | Literal["auto"] = "auto"  # activations a producer may send ahead
    window_max: Count = 256  # what `auto` may reach
    # one message between workers, frames and all
    message_bytes: Annotated[int, Meta(ge=1, le=MESSAGE_BYTES_MAX)] = 256 * 1024 * 1024
    startup_s: Seconds = 60.0  # until every worker has joined
    # without a sign of life: dead; more where a worker's signs have been coming irregularly
    silence_s: Seconds = 1.0
    stuck_s: Seconds = 60.0  # alive, but not through with one op: as good as dead
    # address space of a worker; one that grows beyond it is started again; None: no limit
    memory_bytes: Annotated[int, Meta(ge=2**28)] | None = None


# --- staleness ---------------------------------------------------------------------------------


class Staleness(Table, frozen=True, kw_only=True):
    """The contract on lag: how many batches a stage may be ahead of the gradients it awaits."""

    lag: Whole | None = None  # batches; None: what the schedule needs
    links: dict[str, Whole] = {}  # { "hidden1->hidden2" = 8 }
    # wait for the gradient, or give it up (synthetic only); None: as the schedule does
    at_bound: Literal["wait", "drop"] | None = None


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
