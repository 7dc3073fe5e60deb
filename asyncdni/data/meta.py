"""What is known about a data set without its samples (`Meta`), and how its batches are read
(`Batches`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from asyncdni.data.stored import Stored

__all__ = [
    *("Array", "Batches", "Field", "Inputs", "Meta", "Tensor"),
    *("mismatch", "other_parts"),
]

Array = NDArray[Any]


class Tensor(msgspec.Struct, frozen=True):
    """The form of one array of a batch, without the batch axis."""

    shape: tuple[int, ...]
    dtype: Literal["bool", "float"]  # "float": the dtype of the run


class Inputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """The kind and range of the numbers x, as they are stored."""

    kind: Literal["uint8", "float"]  # uint8 is scaled by 1/255
    low: float
    high: float
    #: In 99 of 100 training samples the largest |x| is at least this.
    least: float = 0.0


class Field(msgspec.Struct, frozen=True):
    """One of several tensors that the input of a sample is made of."""

    name: str  # the argument of a model's forward that it is; empty: by its place
    kind: Literal["float", "int", "bool"]
    shape: tuple[int, ...]  # of one sample


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shapes and counts of a data set, which a network must fit, and what identifies its
    samples.

    A batch is {"h": inputs (B, *input_shape), "y": targets} and the arrays named in `context`, with
    B rows each. y is (B,) int64 class ids or (B, outputs) values; with `steps`, it has one target
    per step: (B, steps) or (B, steps, outputs). The context may have:

    * "first", "last": whether the window is the first, the last of a sequence of its stream.
    * "mask": which steps count, in the loss and in the accuracy; without it, all do.
    * "coming": the targets after the window's end, for generators, in training only.
    """

    input_shape: tuple[int, ...]  # of one sample
    targets: Literal["classes", "values"]
    outputs: int  # classes, or values per sample (per step)
    train_samples: int  # in an epoch; a window counts once for each of its streams
    test_samples: int
    steps: int = 0  # steps of a window, each with its own target; 0: one target per sample
    context: dict[str, Tensor] = {}
    answers: bool = True  # whether an output can be right or wrong, so that there is an accuracy
    vocabulary: str = ""  # the characters of a text in the order of their ids
    inputs: Inputs | None = None  # None: not known, as in runs of earlier versions
    #: The tensors that an input is made of: their numbers lie behind one another in h. Empty: it
    #: is one tensor.
    fields: tuple[Field, ...] = ()
    #: Whether batches differ in length: h is (B, T, …) with any T up to `input_shape[0]`, and so
    #: are y and the mask where each step has a target. The numbers of several fields lie behind
    #: one another in each step.
    varying: bool = False
    #: Checksums of arrays or files, by name; none for data that are published, or generated from
    #: their options alone.
    checksums: dict[str, str] = {}

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output shape of a stage with a loss: (outputs,), or (steps, outputs)."""
        return (self.steps, self.outputs) if self.steps else (self.outputs,)


def mismatch(
    meta: Meta, tensors: Mapping[str, Array], rows: int, dtype: DTypeLike, steps: int | None = None
) -> str | None:
    """Return words for the first of "y" and the context of a batch of `rows` samples that is not as
    `meta` says, such as `mask is float32 (32, 4), expected bool (32, 5)`; None where all are.

    `steps`: those of this batch, where batches differ in length."""
    each_step = (meta.steps if steps is None else steps,) if meta.steps else ()
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    if meta.targets == "classes":
        expected = {"y": (np.dtype(np.int64), (rows, *each_step))}
    else:
        expected = {"y": (np.dtype(dtype), (rows, *each_step, meta.outputs))}
    for name, tensor in meta.context.items():
        kind = np.dtype(np.bool_ if tensor.dtype == "bool" else dtype)
        shape = each_step if meta.varying else tensor.shape
        expected[name] = (kind, (rows, *shape))
    for name, (kind, shape) in expected.items():
        array = tensors.get(name)
        if array is None:
            return f"{name} is missing, expected {kind} {shape}"
        if array.dtype != kind or array.shape != shape:
            return f"{name} is {array.dtype} {array.shape}, expected {kind} {shape}"
    return None


def other_parts(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of arrays or files whose checksums have changed; none where either side is
    empty, so not known."""
    if not then or not now:
        return []
    return [name for name in {**then, **now} if then.get(name) != now.get(name)]


class Batches(Protocol):
    """A data set as numbered batches, each a dict of arrays: see `Meta` for what they hold.

    A training batch depends on (seed, epoch, index) alone, a test batch on its index. So it can be
    read again in any order and in another process: in a resumed run, after a crash, under another
    split.
    """

    @property
    def meta(self) -> Meta: ...

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many training batches one epoch has."""

    def test_batches(self, batch_size: int) -> int:
        """Return how many batches the test part has."""

    def read(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> dict[str, Array]:
        """Return training batch `index` of `epoch`. Floating arrays are of `dtype`, and "h" is in
        `out` if that is given (at least B, *input_shape). Raises `IndexError` for an index that the
        epoch does not have."""

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        """Return test batch `index`. Raises `IndexError` as `read` does."""

    def targets(self) -> Mapping[str, Array | Stored]:
        """Return targets to check that a loss can learn them, by the name of their array; they
        represent all targets."""

    def validate(self) -> None:
        """Raise `DataError` if the data can't be trained on."""
