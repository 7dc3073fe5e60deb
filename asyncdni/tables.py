"""The building blocks of an experiment file's tables: their base, numbers with bounds, and the
bases of tables that anybody can add to: schedules, generators, data sets.

A field whose type is such a base (`Generator`, `Data`, or `Options` of a schedule) takes any
registered struct: those in `nn.generators`, `data.DATA_SETS` or `schedules.SCHEDULES`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

__all__ = [
    "COUNT_MAX",
    "ConvolutionalGenerator",
    "Count",
    "Data",
    "ErrorGenerator",
    "Fraction",
    "Generator",
    "HeldOut",
    "LinearGenerator",
    "LowRankGenerator",
    "MlpGenerator",
    "ModuleGenerator",
    "NonNegative",
    "Positive",
    "ReadoutGenerator",
    "Samples",
    "Seconds",
    "Table",
    "Tagged",
    "Whole",
    "Windows",
    "ZeroGenerator",
    "chain_size",
]

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
#: The limit of counts and numbers: the largest signed 32-bit integer.
COUNT_MAX = 2**31 - 1
Count = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
Whole = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
NonNegative = Annotated[float, Meta(ge=0)]
#: A limit on time. A shorter one can't be kept, and nobody waits longer than eleven days.
Seconds = Annotated[float, Meta(ge=0.01, le=1e6)]
#: How many training samples are held out to choose options by. They are the same for every seed,
#: and replace the test set: all values called test_… are then measured on them.
HeldOut = Whole


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: unknown keys are refused."""


class Tagged(Table, frozen=True, kw_only=True):
    """Base of tables of several kinds, which a tag in the file tells apart."""

    @property
    def tag(self) -> str:
        """The kind's name, as in the file: "synthetic", "mlp"."""
        return str(self.__struct_config__.tag)


# --- data sets -----------------------------------------------------------------------------------


class Data(Tagged, frozen=True, kw_only=True, tag_field="name"):
    """Base of all data sets' options: derive from `Samples` or `Windows`.

    Every data set has the options below; each declares them itself, as defaults and order differ.

        batch_size: Count
        validation: HeldOut
    """

    if TYPE_CHECKING:
        batch_size: Count  # [samples] trained on at once; a sequence's window is one sample
        validation: HeldOut  # [samples] held out of training and tested on in place of the test set

    @property
    def held_samples(self) -> int:
        """Return how many samples its host keeps in memory, training and test; 0 if the options
        don't tell."""
        return 0


class Samples(Data, frozen=True, kw_only=True):
    """Base of data sets whose samples stand by themselves."""


class Windows(Data, frozen=True, kw_only=True):
    """Base of data sets of sequences, read in windows of `window` steps."""

    if TYPE_CHECKING:
        window: Count  # [steps] read at once; gradients through time end at a window's start


# --- generators ----------------------------------------------------------------------------------


class Generator(Tagged, frozen=True, kw_only=True, tag_field="kind"):
    """Base of all generators' options; its answers are those of a generator without special
    needs."""

    maps_only: ClassVar[bool] = False  # whether it needs feature maps (C, H, W)
    in_torch: ClassVar[bool] = False  # whether it may be a module of PyTorch

    @property
    def title(self) -> str:
        """The name for tables and messages: "error generator"."""
        return f"{self.tag} generator"

    @property
    def normalises(self) -> bool:
        """Whether it has a batch norm, so that it can't be trained on a single sample."""
        return False

    @property
    def fits(self) -> bool:
        """Whether it learns from gradients that come back."""
        return True

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        """Return its number of parameters, or a lower bound, for activations of shape `row` and so
        many outputs."""
        return 0


class ErrorGenerator(Generator, frozen=True, kw_only=True, tag="error"):
    """e = softmax(hC + c) - onehot(y) of a local classifier, sent through a learned map: g = eU."""

    # of the local classifier, which Adam trains on its own cross-entropy at every batch
    head_learning_rate: Positive = 1e-2
    rate: Annotated[float, Meta(gt=0, lt=2)] = 0.03  # normalised LMS step of U; unstable from 2
    # for feature maps: the classifier sees the means of cells x cells cells of each plane
    cells: Count = 4


class ZeroGenerator(Generator, frozen=True, kw_only=True, tag="zero"):
    """Always predicts zero: a control that shows what other generators contribute."""


class LinearGenerator(Generator, frozen=True, kw_only=True, tag="linear"):
    """g = hA + onehot(y)B + c, zero-initialised."""

    labels: bool = True  # whether it sees the targets y beside the activation h
    learning_rate: Positive = 3e-3  # of Adam, which trains it
    scale_targets: bool = True  # divide targets by their running RMS

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        return chain_size((_inputs(row, outputs, self.labels), _width(row)))


class LowRankGenerator(Generator, frozen=True, kw_only=True, tag="low_rank"):
    """The linear map through `rank` linear units, which needs a fraction of the arithmetic."""

    rank: Count = 32  # [units] between the two maps
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        return chain_size((_inputs(row, outputs, self.labels), self.rank, _width(row)))


class MlpGenerator(Generator, frozen=True, kw_only=True, tag="mlp"):
    """Hidden layers with batch norm and relu, last layer zero-initialised (the DNI paper's)."""

    hidden: tuple[Count, ...] = (256,)  # [units] of each hidden layer
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True

    @property
    def normalises(self) -> bool:
        return bool(self.hidden)

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        return chain_size((_inputs(row, outputs, self.labels), *self.hidden, _width(row)))


class ConvolutionalGenerator(Generator, frozen=True, kw_only=True, tag="convolutional"):
    """For feature maps: convolutions of the activation with labels as channels (the DNI
    paper's)."""

    maps_only: ClassVar[bool] = True
    hidden: tuple[Count, ...] = (64, 64)  # [channels] of each hidden layer
    kernel: Count = 5  # [pixels] height and width of each convolution
    labels: bool = True
    learning_rate: Positive = 3e-3
    scale_targets: bool = True

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        planes = _inputs(row[:1], outputs, self.labels)
        return chain_size((planes, *self.hidden, row[0])) * self.kernel**2


class ModuleGenerator(Generator, frozen=True, kw_only=True, tag="module"):
    """A module of PyTorch, the user's own, that maps (h, y) to a gradient or has a `loss(h, y)`."""

    in_torch: ClassVar[bool] = True
    module: str  # "package.module:callable", which returns an nn.Module …
    arguments: dict[str, Any] = {}  # … when it is given these
    learning_rate: Positive = 3e-3  # Adam


class ReadoutGenerator(Generator, frozen=True, kw_only=True, tag="readout"):
    """g = the gradient by h of the loss of R(A(h)): R is a copy of the last stage's readout, A a
    few local blocks, trained by that loss."""

    in_torch: ClassVar[bool] = True
    # submodule at which R begins; "": behind the last skip connection. Of stages of layers: the
    # position of the layer at which it begins; "": all layers
    begin: str = ""
    refresh: Count = 50  # the last stage's updates between two copies of R
    blocks: Whole = 0  # of A; 0: h goes straight into R
    # or "conv", which also maps to the readout's planes; "mlp"; "mymodels:Class", given its width
    block: str = "transformer"
    width: Whole = 0  # of the blocks, between a map down and one up; 0: that of h
    learning_rate: Positive = 1e-3  # Adam, of A
    learn_every: Count = 1  # A learns from one batch in so many, which saves arithmetic
    # [batches] without a new copy of R after which a stage trains its own until one comes; 0: never
    private_after: Whole = 0
    # multiply that gradient by a matrix, the identity at first, which is fitted to true gradients
    map: bool = False

    @property
    def fits(self) -> bool:
        return self.map


def chain_size(widths: Sequence[int]) -> int:
    """Return the number of weights of dense layers from each width to the next."""
    return sum(a * b for a, b in itertools.pairwise(widths))


def _width(row: tuple[int, ...]) -> int:
    return math.prod(row)


def _inputs(row: tuple[int, ...], outputs: int, labels: bool) -> int:
    return _width(row) + outputs * labels
