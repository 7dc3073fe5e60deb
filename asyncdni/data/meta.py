"""What is known of a data set without its samples: the shapes that networks and peers go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Array", "Batches", "Inputs", "Meta", "Tensor", "misfit", "other_parts"]

Array = NDArray[Any]


class Tensor(msgspec.Struct, frozen=True):
    """One array of a batch, without the batch axis."""

    shape: tuple[int, ...]
    dtype: Literal["bool", "float"]  # "float": the run's


class Inputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of which kind and size the numbers x are, as they are stored."""

    kind: Literal["uint8", "float"]  # uint8 is scaled by 1/255
    low: float
    high: float
    #: Of 99 in 100 training samples the largest |x| is at least this.
    least: float = 0.0


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a network must fit, and of which samples it is known.

    A batch is {"h": inputs (B, *input_shape), "y": targets} and what `context` names, B rows each.
    y is (B,) int64 class ids or (B, outputs) values; with `steps`, one target a step: (B, steps) or
    (B, steps, outputs). Known to the context:

    * "first", "last": the window begins, ends a sequence of that stream.
    * "mask": which steps count, in the loss and among the answers; all where it is absent.
    * "coming": the targets after the window's end, for generators, in training only.
    """

    input_shape: tuple[int, ...]  # of one sample
    targets: Literal["classes", "values"]
    outputs: int  # classes, or values a sample (a step)
    train_samples: int  # of an epoch; windows are counted once for each of their streams
    test_samples: int
    steps: int = 0  # of a window, each with a target of its own; 0: one target a sample
    context: dict[str, Tensor] = {}
    answers: bool = True  # targets are what an output can be right about
    vocabulary: str = ""  # of a text: its characters in the order of their ids
    inputs: Inputs | None = None  # None: not known, as of runs of earlier versions
    #: Of arrays or files, by name. None of those that are published, or made by the options alone.
    checksums: dict[str, str] = {}

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What a stage with a loss must end in: (outputs,), or (steps, outputs)."""
        return (self.steps, self.outputs) if self.steps else (self.outputs,)


def misfit(meta: Meta, tensors: Mapping[str, Array], rows: int, dtype: DTypeLike) -> str | None:
    """Why "y" and the context of a batch of `rows` samples are not what `meta` says, as in
    `mask is float32 (32, 4), expected bool (32, 5)`; None where they are."""
    steps = (meta.steps,) if meta.steps else ()
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    if meta.targets == "classes":
        expected = {"y": (np.dtype(np.int64), (rows, *steps))}
    else:
        expected = {"y": (np.dtype(dtype), (rows, *steps, meta.outputs))}
    for name, tensor in meta.context.items():
        kind = np.dtype(np.bool_ if tensor.dtype == "bool" else dtype)
        expected[name] = (kind, (rows, *tensor.shape))
    for name, (kind, shape) in expected.items():
        array = tensors.get(name)
        if array is None:
            return f"{name} is missing, expected {kind} {shape}"
        if array.dtype != kind or array.shape != shape:
            return f"{name} is {array.dtype} {array.shape}, expected {kind} {shape}"
    return None


def other_parts(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of arrays or files whose checksums are not what they were; none where one side is
    not known."""
    if not then or not now:
        return []
    return [name for name in {**then, **now} if then.get(name) != now.get(name)]


# --- batches -------------------------------------------------------------------------------------
#
# What a data set is to those who train on it: numbered batches, each a dict of arrays.


class Batches(Protocol):
    """Training batches by (epoch, index), test batches by index: see `Meta` for what is in them.

    A batch depends on nothing but its numbers and the seed, so that it can be read again, in any
    order and in another process: in a resumed run, after a crash, under another split.
    """

    @property
    def meta(self) -> Meta: ...

    def batches_per_epoch(self, batch_size: int) -> int:
        """Training batches of one epoch."""

    def test_batches(self, batch_size: int) -> int:
        """Batches of the test part."""

    def read(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> dict[str, Array]:
        """Training batch `index` of `epoch`, floating arrays of `dtype`, "h" in `out` if given (at
        least B, *input_shape). Raises `IndexError` for an index that the epoch does not have."""

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        """Test batch `index`. Raises `IndexError` as `read` does."""

    def targets(self) -> Mapping[str, Array]:
        """Targets that stand for all, by the name of their array: what a loss must be able to
        learn."""

    def validate(self) -> None:
        """Raises `DataError` for what can't be trained on."""
