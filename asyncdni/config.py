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
    ModuleGenerator,
    NonNegative,
    Positive,
    ReadoutGenerator,
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
    "Elastic",
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
    "ModuleGenerator",
    "NonNegative",
    "Npz",
    "NpzTargets",
    "Numbers",
    "OnFull",
    "OneF1B",
    "Optimizer",
    "Positive",
    "ReadoutGenerator",
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

# --- [checkpoint], [recovery] and [elastic] ------------------------------------------------------


class Checkpoint(Table, frozen=True, kw_only=True):
    """How often state is saved: cuts of the whole run at barriers where no message is on its way,
    and rolling snapshots that each worker takes of its own stages."""

    # interval between cuts: a time such as "30s", or a number of epochs; "never": only at the end
    every: str | Annotated[float, Meta(gt=0)] = "30s"
    keep: Count = 2  # how many of the latest cuts stay on disk
    # shortest interval between two snapshots of a worker; "never": it takes none
    snapshot_every: str = "1s"


class Recovery(Table, frozen=True, kw_only=True):
    """What becomes of a run in which a process dies."""

    # how many times in a row one worker may die without an update in between; 0: the first death
    # ends the run
    restarts: Whole = 5
    # how long workers wait for another coordinator once theirs has died, in seconds; 0: they leave.
    # Those that it has started itself, as `asyncdni train` does, leave at once
    coordinator_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


class Elastic(Table, frozen=True, kw_only=True):
    """How the workers of `asyncdni run` change machines while it goes on."""

    # an agent that has been silent this long counts as gone: others run its workers, until it has
    # been back for as long
    away_s: Seconds = 10.0
    # [training time] over which the pace of workers is measured; a machine that has become slow, as
    # seen in two such windows in a row, gives a worker away
    window_s: Seconds = 30.0


# --- [links] and [slow]: conditions to train under -----------------------------------------------


class Link(Table, frozen=True, kw_only=True):
    """How much a link between workers is slowed down, on top of what it takes anyway, and how
    tensors travel over it."""

    latency: str = "0ms"  # time added to each message, one way
    jitter: str = "0ms"  # at most this much more, drawn uniformly; messages stay in order
    bandwidth: str = ""  # such as "100Mbit/s"; empty: no limit
    # how activations and gradients of training travel: "none": as float32; "auto": by `bandwidth`,
    # see docs/conditions.md
    compress: Literal["none", "bfloat16", "float16", "int8", "auto"] = "none"
    # how gradients travel that train a generator and nothing else: "top_k": the largest 16th part
    # of each sample; "low_rank": a matrix of rank 4 for each batch; None: as `compress` says
    compress_fits: Literal["top_k", "low_rank"] | None = None


class Links(Link, frozen=True, kw_only=True):
    """The conditions of all links, and of single ones by name ("hidden1->hidden2": from the first
    to the second)."""

    between: dict[str, Link] = {}  # by name of the link, such as "hidden1->hidden2"


class Slow(Table, frozen=True, kw_only=True):
    """A worker made as slow as on a slower or busy machine: it sleeps after its ops."""

    # each op takes this many times as long
    factor: Annotated[float, Meta(ge=1, le=100_000)] = 1.0
    pause: str = "0ms"  # an additional sleep after some forwards
    chance: Fraction = 0.0  # the probability of that sleep after a forward


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

    batch_size: Count = 256
    validation: HeldOut = 0
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    # what the network learns to predict: the label, or the inputs themselves (an autoencoder)
    targets: Targets = "labels"


class Mnist(Samples, frozen=True, kw_only=True, tag="mnist"):
    """MNIST: 60,000 training and 10,000 test images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    # folder of its files; empty: they are looked for in $ASYNCDNI_DATA, then in the cache folder
    path: str = ""
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Addition(Samples, frozen=True, kw_only=True, tag="addition"):
    """Binary addition (Trask 2017): the inputs are two numbers, the target is their sum."""

    batch_size: Count = 10
    validation: HeldOut = 0
    bits: Annotated[int, Meta(ge=2, le=62)] = 8  # [bits] of the sum; each summand has one less
    examples: Count = 100  # [samples] to train on
    test_examples: Count = 100  # [samples] to test on

    @property
    def held_samples(self) -> int:
        return self.examples + self.test_examples


class Npz(Samples, frozen=True, kw_only=True, tag="npz"):
    """Arrays x_train, y_train, x_test, y_test of one .npz file, or of a folder of .npy files. Large
    ones stay there: a batch reads its rows."""

    # the .npz file, or the folder: x_train.npy in it, or x_train-0000.npy, x_train-0001.npy, …
    path: Annotated[str, Meta(min_length=1)]
    batch_size: Count = 256
    validation: HeldOut = 0
    # what y is: numbers of classes, values, or left out because the network learns its inputs;
    # "auto": what the losses learn or, where they don't tell, values if y is floating, else classes
    targets: NpzTargets = "auto"


class DigitPairs(Samples, frozen=True, kw_only=True, tag="digit_pairs"):
    """Two kinds of digits to tell apart (Seo 2018): the target is 0 for `first`, 1 for `second`."""

    batch_size: Count = 1
    validation: HeldOut = 0
    source: Literal["digits", "mnist"] = "digits"  # the data set that the images are taken from
    path: str = ""  # folder of the files of mnist; empty: as there
    first: Annotated[int, Meta(ge=0, le=9)] = 0  # the digit whose target is 0
    second: Annotated[int, Meta(ge=0, le=9)] = 1  # the digit whose target is 1
    examples: Count = 100
    test_examples: Count = 20
    steps: Count = 1  # [steps] above 1: the image is repeated at this many steps, (steps, 784)

    @property
    def held_samples(self) -> int:
        return self.examples + self.test_examples


class Cifar10(Samples, frozen=True, kw_only=True, tag="cifar10"):
    """50,000 training and 10,000 test colour images (3, 32, 32): the binary version of CIFAR-10,
    from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of its files; empty: as for mnist


class TorchData(Samples, frozen=True, kw_only=True, tag="torch"):
    """Data sets of PyTorch, or of the user's own with a length and items, which a function of the
    user's returns."""

    # "module:callable", which returns (training set, test set): map-style or iterable data sets,
    # or loaders, of (input, target)
    build: Annotated[str, Meta(min_length=1)]
    arguments: dict[str, Any] = {}  # keyword arguments of that callable
    batch_size: Count = 256
    validation: HeldOut = 0
    classes: Whole = 0  # how many there are; 0: one more than the largest target
    # the most steps of a sample: each batch is padded to its longest sample alone. 0: samples are
    # padded to the longest of all, or by the collate_fn of the loaders where these have one
    max_length: Whole = 0


# --- [data]: sequences ---------------------------------------------------------------------------
#
# Sequences are read in windows of T steps of B parallel streams: `window` is T, `batch_size` is B,
# and one window of one stream counts as one sample.


class Copy(Windows, frozen=True, kw_only=True, tag="copy"):
    """The network is shown bits and must then recall them (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    # [sequences] of each stream, held out of training and tested on in place of test_sequences
    validation: HeldOut = 0
    window: Count = 5
    length: Count = 10  # [bits] to recall
    # [epochs] sequences begin with 1 bit and get one more each time this many epochs have passed;
    # 0: they have the full length from the start
    grow: Whole = 0
    sequences: Count = 50  # [sequences] in an epoch, of the full length; of shorter ones more
    test_sequences: Count = 10  # [sequences] of each stream to test on, of the full length
    # [steps] after a window whose targets the generators of recurrent layers see
    ahead: Ahead = 0


class RepeatCopy(Windows, frozen=True, kw_only=True, tag="repeat_copy"):
    """The network is shown bits and must then recall them several times over (Graves 2014,
    Jaderberg 2017)."""

    batch_size: Count = 32
    # [sequences] of each stream, held out of training and tested on in place of test_sequences
    validation: HeldOut = 0
    window: Count = 5
    length: Count = 5  # [bits] to recall
    repeats: Count = 5  # how often they are to be recalled
    # [epochs] sequences begin with 1 bit, repeated once; each time this many epochs have passed
    # they get one more repeat or, when there are as many repeats as bits, one more bit; 0: they
    # have the full size from the start
    grow: Whole = 0
    sequences: Count = 50  # [sequences] in an epoch, of the full size; of smaller ones more
    test_sequences: Count = 10  # [sequences] of each stream to test on, of the full size
    ahead: Ahead = 0


class Text(Windows, frozen=True, kw_only=True, tag="text"):
    """A text in UTF-8; the target of every step is the next character."""

    path: str = ""  # a file, plain or gzip; empty: Shakespeare's plays in the data folder
    batch_size: Count = 32
    # [characters] at the end of the training part, tested on in place of the test part
    validation: HeldOut = 0
    window: Count = 20
    # how a character is given to the network: as a vector of 0s and a 1, or as a number, which an
    # embedding layer needs
    encoding: Literal["one_hot", "ids"] = "one_hot"
    test_part: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # share of the text, at its end
    ahead: Ahead = 0


class Trigonometry(Windows, frozen=True, kw_only=True, tag="trigonometry"):
    """Points (cos, sin) on a circle; the target of every step is the next one. Streams differ in
    where they start."""

    batch_size: Count = 1
    # [windows] after the training points, tested on in place of the test points
    validation: HeldOut = 0
    window: Count = 5
    period: Positive = 20.0  # [steps] that one turn takes
    points: Count = 500  # [steps] of one stream in an epoch
    test_points: Count = 100  # [steps] of one stream to test on
    ahead: Ahead = 0


# --- [numbers] -----------------------------------------------------------------------------------


class Numbers(Table, frozen=True, kw_only=True):
    """What to do about a loss, gradient or generator that is no longer finite, or explodes."""

    # stop: end the run; skip: leave the update out; roll_back: return to the last cut and go on
    # with later batches
    policy: Literal["stop", "skip", "roll_back"] = "stop"
    # a loss or gradient norm this many times as large as its running mean is treated like NaN;
    # None: no limit, as which jump is healthy depends on the task (on MNIST all stay below 4)
    explode: Annotated[float, Meta(gt=1)] | None = None
    # [updates] that a stage may leave out in a row; after that many, skipping has not helped
    skips_max: Count = 100


# --- [optimizer] ---------------------------------------------------------------------------------


class Constant(Table, frozen=True, kw_only=True, tag_field="name", tag="constant"):
    """The learning rate stays as given."""

    warmup_epochs: NonNegative = 0.0  # over which the rate rises linearly from 0 at the start


class Step(Table, frozen=True, kw_only=True, tag_field="name", tag="step"):
    """The learning rate is multiplied by `factor` after each of `epochs`."""

    epochs: Annotated[list[Positive], Meta(min_length=1)]  # after which the rate changes
    factor: Positive = 0.1  # what the rate is multiplied by each time
    warmup_epochs: NonNegative = 0.0


class Cosine(Table, frozen=True, kw_only=True, tag_field="name", tag="cosine"):
    """The learning rate falls to `final` times its value over the whole run."""

    final: Fraction = 0.0  # share of the learning rate that is left at the end
    warmup_epochs: NonNegative = 0.0


Decay = Constant | Step | Cosine


class Sgd(Table, frozen=True, kw_only=True, tag_field="name", tag="sgd"):
    """Stochastic gradient descent, with momentum and Nesterov's variant on request."""

    learning_rate: Positive = 0.1  # size of a step, before `decay`
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share of the last step that is kept
    nesterov: bool = False  # Nesterov's variant, which needs a momentum
    weight_decay: NonNegative = 0.0  # this times the weights is added to the gradient
    # the largest norm of each stage's own gradient: a longer one is shortened; None: no limit
    clip_norm: Positive | None = None
    decay: Decay = Constant()  # how the learning rate changes over the run


class Adam(Table, frozen=True, kw_only=True, tag_field="name", tag="adam"):
    """Adam; with `weight_decay` AdamW (decoupled)."""

    learning_rate: Positive = 1e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9  # of the running mean of gradients
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999  # of the running mean of their squares
    epsilon: Positive = 1e-8  # added to the root of the latter, so that nothing is divided by 0
    weight_decay: NonNegative = 0.0  # AdamW: weights shrink by this share of the rate at each step
    clip_norm: Positive | None = None
    decay: Decay = Constant()


class TorchOptimizer(Table, frozen=True, kw_only=True, tag_field="name", tag="torch"):
    """An optimizer of `torch.optim` by its name there, such as "RMSprop"; needs PyTorch."""

    kind: Annotated[str, Meta(min_length=1)]  # its name in `torch.optim`, or "module:Class"
    learning_rate: Positive = 1e-3
    options: dict[str, Any] = {}  # all but the learning rate, as `torch.optim` names them
    clip_norm: Positive | None = None
    decay: Decay = Constant()


Optimizer = Sgd | Adam | TorchOptimizer


#: A loss by its name, or a callable of the user's own, "module:callable", for stages in PyTorch.
Loss = Literal["cross_entropy", "sigmoid_cross_entropy", "mse"] | Annotated[str, Meta(pattern=":")]


# --- [model] -------------------------------------------------------------------------------------


class Model(Table, frozen=True, kw_only=True):
    """A network written in PyTorch, in place of [[stages]]: it is cut into stages."""

    build: Annotated[str, Meta(min_length=1)]  # "module:callable", which returns an nn.Module
    arguments: dict[str, Any] = {}  # keyword arguments of that callable
    # how many stages; "auto": as many as run.split has workers, else 4; or the submodules at which
    # all stages but the first begin: ["layer2", "layer4"]
    stages: Literal["auto"] | Count | Annotated[list[str], Meta(min_length=1)] = "auto"
    weights: str = ""  # a .safetensors file to begin with, by the model's own names
    strict: bool = True  # whether `weights` must have all names; else others begin from the seed
    # what training makes small, or "module:callable": the mean over samples, as PyTorch's losses
    loss: Loss = "cross_entropy"


# --- [run] and [limits] --------------------------------------------------------------------------

#: Upper bound of `[limits] message_bytes`: a worker's data socket takes no larger message.
MESSAGE_BYTES_MAX = 2**32 - 1


class EarlyStopping(Table, frozen=True, kw_only=True):
    """When a run ends early: once this many evaluations in a row have brought no better value.
    They use the test set: hold out samples with `data.validation` instead."""

    # "loss", "accuracy" (the default, if there is one) or one of `run.metrics`
    metric: str = ""
    patience: Count = 3  # evaluations without a better value
    min_delta: NonNegative = 0.0  # a value must be better than the best so far by more than this


class Run(Table, frozen=True, kw_only=True):
    """How long to train, from which seed, and over how many workers."""

    epochs: Whole = 5  # 0 writes the initial weights
    # updates after which the run ends, even if not all epochs are over
    max_steps: Count | None = None
    early_stopping: EarlyStopping | None = None  # None: all epochs are trained
    # of initial weights, of the order of samples and of all other draws
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    split: list[Count] | None = None  # [2, 1, 1]: how many stages each worker gets; None: one each
    # [1, 3]: how many workers, in order, each rank of `asyncdni run` gets; None: as fits their work
    # and the machines; see docs/machines.md
    place: list[Whole] | None = None
    evaluate_every: Positive = 1.0  # [epochs] between evaluations; fractions allowed
    # "drained": for each evaluation all batches in flight end, and training waits; "behind": each
    # stage copies its weights, and training goes on while the copies are evaluated
    evaluate: Literal["drained", "behind"] = "drained"
    # of the test set beside loss and accuracy: "top5" (any number), "perplexity", "bits" (of a
    # character or token), or a function of yours, "mymetrics:f1"; see docs/training.md
    metrics: list[str] = []
    threads: Count = 1  # BLAS threads of each worker
    # on which cores workers run: "auto" gives neighbours in a locked chain different ones, and long
    # turns to decoupled workers of which more than two share a core; "none" leaves the choice to
    # the system, [0, 1, 0] names the core of each worker; see docs/speed.md
    pin: Literal["auto", "none"] | list[Whole] = "auto"
    dtype: Literal["float32", "float64"] = "float32"  # of weights, gradients and messages
    # stages in PyTorch: compute products and convolutions in this type, by torch.autocast; weights,
    # gradients and messages keep `dtype`
    autocast: Literal["bfloat16"] | None = None
    compile: bool = False  # stages in PyTorch: compile their modules with torch.compile
    # stages in PyTorch: where modules compute; "cuda": each worker of a host on the next of its
    # GPUs, "auto": so where there are GPUs
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    # initial weights: a run folder, a folder of STAGE.safetensors, or one .safetensors file; or a
    # URL of fsspec that leads to one
    init: str = ""
    # the stages that take their weights from `init`, the others from the seed; None: all do
    init_stages: Annotated[list[str], Meta(min_length=1)] | None = None
    init_sha256: dict[str, str] = {}  # of the weights taken, by stage; a run fills it in
    # where a copy of the run's folder is kept: a URL of fsspec such as "s3://bucket/run"; empty:
    # nowhere; see docs/recovery.md
    store: str = ""


class Limits(Table, frozen=True, kw_only=True):
    """Limits on buffers, messages, memory and waiting, so that nothing grows or waits for ever."""

    window: Count | Literal["auto"] = "auto"  # [batches] that a producer may send ahead
    window_max: Count = 256  # [batches] the largest window that "auto" may reach
    # size of one message between workers, all its frames included
    message_bytes: Annotated[int, Meta(ge=1, le=MESSAGE_BYTES_MAX)] = 256 * 1024 * 1024
    startup_s: Seconds = 60.0  # time for every worker to join
    # a worker without a sign of life for this long counts as dead; the time gets longer where its
    # signs have been coming irregularly
    silence_s: Seconds = 1.0
    stuck_s: Seconds = 60.0  # a worker busy with one op for this long counts as dead
    # address space of a worker; a worker that grows beyond it is started again; None: no limit
    memory_bytes: Annotated[int, Meta(ge=2**28)] | None = None


# --- [staleness], [[stages]] and the whole -------------------------------------------------------


class Staleness(Table, frozen=True, kw_only=True):
    """The contract on lag: how many batches a stage may be ahead of the gradients it awaits."""

    # [batches] that every stage may be ahead of the gradients it awaits; None: as many as the
    # schedule needs
    lag: Whole | None = None
    links: dict[str, Whole] = {}  # [batches] the same for single links: { "hidden1->hidden2" = 8 }
    # at the bound, wait for the gradient or give it up (synthetic only); None: the schedule's way
    at_bound: Literal["wait", "drop"] | None = None


class Stage(Table, frozen=True, kw_only=True):
    """Consecutive layers, which are trained by one worker."""

    # one after the other, by name and options: "relu", { dense = 256 } or { batch_norm = { … } }
    layers: Annotated[list[str | dict[str, Any]], Meta(min_length=1)]
    name: str = ""  # for messages, files and links; empty: stage1, stage2, …
    # the stages it gets activations from; "data": the data set; None: the stage before
    inputs: Annotated[list[str], Meta(min_length=1)] | None = None
    join: Literal["concat", "sum"] = "concat"  # how several inputs become one
    # for a stage that others don't take inputs from: what training makes small
    loss: Loss | None = None
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
    elastic: Elastic | None = None  # None: workers stay on their machines
    numbers: Numbers = Numbers()
    links: Links = Links()
    slow: dict[str, Slow] = {}  # by name of the worker
