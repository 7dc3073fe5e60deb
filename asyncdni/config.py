"""The experiment file (TOML) as typed, frozen values: one struct per table, a reason beside a
value.

Nothing here reads a file or checks how stages fit together: `experiment` reads the file, applies
`--set` and words the messages for the user, and `network` checks the graph and its shapes. The
options of schedules stand beside their rules in `schedules/`, those of generators in `tables`; all
of them can be imported from here as well.
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
    "Model",
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
    "TorchData",
    "TorchOptimizer",
    "Trigonometry",
    "Whole",
    "Windows",
    "ZeroGenerator",
]

# --- [checkpoint] and [recovery] -----------------------------------------------------------------


class Checkpoint(Table, frozen=True, kw_only=True):
    """How often state is saved: cuts of the whole run at barriers where no message is on its way,
    and rolling snapshots that each worker takes of its own stages."""

    # interval between cuts: a time such as "30s", or a number of epochs; "never": only at the end
    every: str | Annotated[float, Meta(gt=0)] = "30s"
    keep: Count = 2  # how many of the latest cuts stay on disk
    # shortest interval between two snapshots of a worker; "never": it takes none
    snapshot_every: str = "1s"


class Recovery(Table, frozen=True, kw_only=True):
    """How often workers that die are started again."""

    # how many times in a row one worker may die without an update in between; 0: the first death
    # ends the run
    restarts: Whole = 5


# --- [links] and [slow]: conditions to train under -----------------------------------------------


class Link(Table, frozen=True, kw_only=True):
    """How much a link between workers is slowed down, on top of what it takes anyway."""

    latency: str = "0ms"  # added to each message, one way
    jitter: str = "0ms"  # up to so much more, drawn uniformly; messages stay in order
    bandwidth: str = ""  # such as "100Mbit/s"; empty: no limit


class Links(Link, frozen=True, kw_only=True):
    """The conditions of all links, and of single ones by name ("hidden1->hidden2": from the first
    to the second)."""

    between: dict[str, Link] = {}


class Slow(Table, frozen=True, kw_only=True):
    """A worker made as slow as on a slower or busy machine: it sleeps after its ops."""

    factor: Annotated[float, Meta(ge=1, le=100_000)] = 1.0  # each op takes so many times as long
    pause: str = "0ms"  # an additional sleep after a forward …
    chance: Fraction = 0.0  # … with this probability


# --- [data] --------------------------------------------------------------------------------------

#: How many steps after a window the generators of recurrent layers see the targets of: the tensor
#: "coming" of a batch's context.
Ahead = Whole

#: What the network learns to predict of a sample: its label, or the sample itself (autoencoder).
Targets = Literal["labels", "inputs"]

#: What the numbers y of an .npz file are: whole numbers that name classes, or values. "auto": the
#: kind that the losses of the network learn; where they learn both or none, values if y is
#: floating, else classes. "inputs": y is left out, the samples are their own targets.
NpzTargets = Literal["auto", "classes", "values", "inputs"]


# --- [data]: samples that stand by themselves ----------------------------------------------------


class Digits(Samples, frozen=True, kw_only=True, tag="digits"):
    """10,000 training and 2,000 test images of MNIST, embedded in the package."""

    batch_size: Count = 256  # the DNI paper's
    validation: HeldOut = 0
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Mnist(Samples, frozen=True, kw_only=True, tag="mnist"):
    """MNIST: 60,000 training and 10,000 test images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    # the only folder where the files are looked for; empty: $ASYNCDNI_DATA, then the cache
    path: str = ""
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Addition(Samples, frozen=True, kw_only=True, tag="addition"):
    """Binary addition (Trask 2017): the inputs are two numbers, the target is their sum."""

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
    """Two kinds of digits to tell apart (Seo 2018): the target is 0 for `first`, 1 for `second`."""

    batch_size: Count = 1
    validation: HeldOut = 0
    source: Literal["digits", "mnist"] = "digits"
    path: str = ""  # folder of the files of mnist, as in `Mnist`
    first: Annotated[int, Meta(ge=0, le=9)] = 0
    second: Annotated[int, Meta(ge=0, le=9)] = 1
    examples: Count = 100
    test_examples: Count = 20
    steps: Count = 1  # above 1: each image is repeated at so many time steps, (steps, 784)

    @property
    def held_samples(self) -> int:
        return self.examples + self.test_examples


class Cifar10(Samples, frozen=True, kw_only=True, tag="cifar10"):
    """50,000 training and 10,000 test colour images (3, 32, 32): the binary version of CIFAR-10,
    from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, as in `Mnist`


class TorchData(Samples, frozen=True, kw_only=True, tag="torch"):
    """Data sets of PyTorch, which a function of the user's returns."""

    # "module:callable", which returns (training set, test set): map-style or iterable data sets,
    # or loaders, of (input, target)
    build: Annotated[str, Meta(min_length=1)]
    arguments: dict[str, Any] = {}  # of that callable
    batch_size: Count = 256
    validation: HeldOut = 0
    classes: Whole = 0  # 0: one more than the largest target


# --- [data]: sequences ---------------------------------------------------------------------------
#
# Sequences are read in windows of T steps of B parallel streams: `window` is T, `batch_size` is B,
# and one window of one stream counts as one sample.


class Copy(Windows, frozen=True, kw_only=True, tag="copy"):
    """The network is shown bits and must then recall them (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 10  # bits
    # 0: sequences have the full length; k: they start with length 1 and grow by 1 every k epochs
    grow: Whole = 0
    sequences: Count = 50  # in an epoch, at full length; of shorter ones it takes more
    test_sequences: Count = 10  # of each stream, of the full length
    ahead: Ahead = 0


class RepeatCopy(Windows, frozen=True, kw_only=True, tag="repeat_copy"):
    """The network is shown bits and must then recall them several times over (Graves 2014,
    Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 5  # bits
    repeats: Count = 5
    # 0: sequences have the full size; k: they start with 1 bit, repeated once, and every k epochs
    # they get one repeat more or, when there are as many repeats as bits, one bit more
    grow: Whole = 0
    sequences: Count = 50  # in an epoch, at full size; of smaller ones it takes more
    test_sequences: Count = 10  # of each stream, of the full size
    ahead: Ahead = 0


class Text(Windows, frozen=True, kw_only=True, tag="text"):
    """A text in UTF-8; the target of every step is the next character."""

    path: str = ""  # a file, plain or gzip; empty: Shakespeare's plays in the data folder
    batch_size: Count = 32
    validation: HeldOut = 0  # characters at the end of the training part, in place of the test part
    window: Count = 20
    encoding: Literal["one_hot", "ids"] = "one_hot"  # ids are for an embedding layer
    test_part: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # share of the text, at its end
    ahead: Ahead = 0


class Trigonometry(Windows, frozen=True, kw_only=True, tag="trigonometry"):
    """Points (cos, sin) on a circle; the target of every step is the next one. Streams differ in
    where they start."""

    batch_size: Count = 1
    validation: HeldOut = 0  # windows between training and test points, in place of the test
    window: Count = 5
    period: Positive = 20.0  # steps that one turn takes
    points: Count = 500  # of one stream in an epoch
    test_points: Count = 100
    ahead: Ahead = 0


# --- [numbers] -----------------------------------------------------------------------------------


class Numbers(Table, frozen=True, kw_only=True):
    """What to do about a loss, gradient or generator that is no longer finite, or explodes."""

    # stop: end the run; skip: leave the update out; roll_back: return to the last cut and go on
    # with later batches
    policy: Literal["stop", "skip", "roll_back"] = "stop"
    # a loss or gradient norm of so many times its running mean is treated like NaN. None: no limit,
    # as it depends on the task which jump is healthy; on MNIST all of them stay below 4
    explode: Annotated[float, Meta(gt=1)] | None = None
    # how many updates in a row a stage may leave out: after so many, skipping has not helped
    skips_max: Count = 100


# --- [optimizer] ---------------------------------------------------------------------------------


class Constant(Table, frozen=True, kw_only=True, tag_field="name", tag="constant"):
    """The learning rate stays as given."""

    warmup_epochs: NonNegative = 0.0  # rises linearly from 0


class Step(Table, frozen=True, kw_only=True, tag_field="name", tag="step"):
    """The learning rate is multiplied by `factor` after each of `epochs`."""

    epochs: Annotated[list[Positive], Meta(min_length=1)]
    factor: Positive = 0.1
    warmup_epochs: NonNegative = 0.0


class Cosine(Table, frozen=True, kw_only=True, tag_field="name", tag="cosine"):
    """The learning rate falls to `final` times its value over the whole run."""

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


class TorchOptimizer(Table, frozen=True, kw_only=True, tag_field="name", tag="torch"):
    """An optimizer of `torch.optim` by its name there, such as "RMSprop"; needs PyTorch."""

    kind: Annotated[str, Meta(min_length=1)]
    learning_rate: Positive = 1e-3
    options: dict[str, Any] = {}  # all but the learning rate, as `torch.optim` names them
    clip_norm: Positive | None = None
    decay: Decay = Constant()


Optimizer = Sgd | Adam | TorchOptimizer


# --- [model] -------------------------------------------------------------------------------------


class Model(Table, frozen=True, kw_only=True):
    """A network written in PyTorch, in place of [[stages]]: it is cut into stages."""

    build: Annotated[str, Meta(min_length=1)]  # "module:callable", which returns an nn.Module
    arguments: dict[str, Any] = {}  # of that callable
    # how many stages; "auto": as many as run.split has workers, else 4; or the submodules at which
    # all stages but the first begin: ["layer2", "layer4"]
    stages: Literal["auto"] | Count | Annotated[list[str], Meta(min_length=1)] = "auto"
    weights: str = ""  # a .safetensors file to begin with, by the model's own names
    strict: bool = True  # whether `weights` must have all names; else others begin from the seed
    loss: Literal["cross_entropy", "sigmoid_cross_entropy", "mse"] = "cross_entropy"


# --- [run] and [limits] --------------------------------------------------------------------------

#: Upper bound of `[limits] message_bytes`: a worker's data socket takes no larger message.
MESSAGE_BYTES_MAX = 2**32 - 1


class Run(Table, frozen=True, kw_only=True):
    """How long to train, from which seed, and over how many workers."""

    epochs: Whole = 5  # 0 writes the initial weights
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    split: list[Count] | None = None  # [2, 1, 1]: how many stages each worker gets; None: one each
    evaluate_every: Positive = 1.0  # epochs between evaluations; fractions allowed
    # "drained": for each evaluation all batches in flight end, and training waits; "behind": each
    # stage copies its weights, and training goes on while the copies are evaluated
    evaluate: Literal["drained", "behind"] = "drained"
    threads: Count = 1  # BLAS threads of each worker
    # on which cores workers run: "auto" gives neighbours in a locked chain different ones, "none"
    # leaves the choice to the system, [0, 1, 0] names the core of each worker; see docs/speed.md
    pin: Literal["auto", "none"] | list[Whole] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    # stages in PyTorch: compute products and convolutions in this type, by torch.autocast; weights,
    # gradients and messages keep `dtype`
    autocast: Literal["bfloat16"] | None = None
    compile: bool = False  # stages in PyTorch: compile their modules with torch.compile
    # initial weights: a run folder, a folder of STAGE.safetensors, or one .safetensors file
    init: str = ""
    # the stages that take their weights from `init`, the others from the seed; None: all do
    init_stages: Annotated[list[str], Meta(min_length=1)] | None = None
    init_sha256: dict[str, str] = {}  # of the weights taken, by stage; a run fills it in


class Limits(Table, frozen=True, kw_only=True):
    """Limits on buffers, messages, memory and waiting, so that nothing grows or waits for ever."""

    window: Count | Literal["auto"] = "auto"  # activations a producer may send ahead
    window_max: Count = 256  # the largest window that "auto" may reach
    # size of one message between workers, all its frames included
    message_bytes: Annotated[int, Meta(ge=1, le=MESSAGE_BYTES_MAX)] = 256 * 1024 * 1024
    startup_s: Seconds = 60.0  # time for every worker to join
    # a worker without a sign of life for so long counts as dead; it gets longer where its signs
    # have been coming irregularly
    silence_s: Seconds = 1.0
    stuck_s: Seconds = 60.0  # alive, but busy with one op for so long: counts as dead
    # address space of a worker; a worker that grows beyond it is started again; None: no limit
    memory_bytes: Annotated[int, Meta(ge=2**28)] | None = None


# --- [staleness], [[stages]] and the whole -------------------------------------------------------


class Staleness(Table, frozen=True, kw_only=True):
    """The contract on lag: how many batches a stage may be ahead of the gradients it awaits."""

    lag: Whole | None = None  # batches; None: as many as the schedule needs
    links: dict[str, Whole] = {}  # { "hidden1->hidden2" = 8 }
    # at the bound, wait for the gradient or give it up (synthetic only); None: the schedule's way
    at_bound: Literal["wait", "drop"] | None = None


class Stage(Table, frozen=True, kw_only=True):
    """Consecutive layers, which are trained by one worker."""

    # "relu" | { dense = 256 } | { batch_norm = { … } }
    layers: Annotated[list[str | dict[str, Any]], Meta(min_length=1)]
    name: str = ""  # default: stage1, stage2, …
    # default: the stage before; "data" stands for the data set
    inputs: Annotated[list[str], Meta(min_length=1)] | None = None
    join: Literal["concat", "sum"] = "concat"  # how several inputs become one
    loss: Literal["cross_entropy", "sigmoid_cross_entropy", "mse"] | None = None
    # name of the stage whose weights this one uses: they share one set, and sum their gradients
    weights: str = ""
    optimizer: dict[str, Any] = {}  # options that replace those of [optimizer] for this stage
    # options that replace those of [schedule]; { name = "locked" }: the stage waits for the
    # gradient of its consumers
    schedule: dict[str, Any] = {}


class Experiment(Table, frozen=True, kw_only=True):
    """One whole experiment."""

    data: Data
    stages: list[Stage] = []
    model: Model | None = None
    schedule: Schedule = Synthetic()
    optimizer: Optimizer = Adam()
    run: Run = Run()
    limits: Limits = Limits()
    staleness: Staleness = Staleness()
    checkpoint: Checkpoint = Checkpoint()
    recovery: Recovery = Recovery()
    numbers: Numbers = Numbers()
    links: Links = Links()
    slow: dict[str, Slow] = {}  # by name of the worker
