"""Data sets of four arrays, in memory or in files (`Dataset`), and the batches that the data's host
reads from one (`Source`).

Images stay uint8 and are scaled to [0, 1] when a batch is read, so MNIST takes 55 MB and not 220.
The order of samples in an epoch is a permutation that depends on (seed, epoch) alone: every
schedule, split and batch size sees the samples in the same order.

Shapes in comments: N samples, B samples of one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from asyncdni.data.checks import check_contents, check_forms
from asyncdni.data.meta import Array, Batches, Meta, Tensor
from asyncdni.data.stored import Stored
from asyncdni.nn.base import aligned_empty
from asyncdni.nn.streams import stream
from asyncdni.schedules.base import Op

__all__ = ["ARRAYS", "Array", "Dataset", "Meta", "Source", "Tensor", "buffer_for", "span_of"]

#: The arrays of every set of samples, by name.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Dataset:
    """Training and test samples, read in batches.

    Batches are independent of each other, so many can be in flight; the object itself serves one
    thread at a time.
    """

    def __init__(
        self,
        source: str,
        x_train: Array | Stored,
        y_train: Array | Stored,
        x_test: Array | Stored,
        y_test: Array | Stored,
        classes: int | None,
    ) -> None:
        """
        Args:
            source: file or name, for error messages.
            x_train, x_test: (N, *input_shape), floating, or uint8 to be scaled by 1/255.
            y_train, y_test: (N,) whole-number class ids, or (N, K) values of any type. All four
                are in memory, or stay in files.
            classes: how many classes there are; None for values.
        """
        self.source = source
        self.classes = classes
        self.x_train = _by_rows(x_train)
        self.y_train = _by_rows(y_train)
        self.x_test = _by_rows(x_test)
        self.y_test = _by_rows(y_test)
        self._order: Array = np.empty(0, dtype=np.int64)
        self._order_of: tuple[int, int] | None = None  # (seed, epoch)
        self._scratch = np.empty((0, *self.x_train.shape[1:]), dtype=self.x_train.dtype)

    @property
    def meta(self) -> Meta:
        """The shapes and counts of this data set."""
        values = self.classes is None
        return Meta(
            input_shape=self.x_train.shape[1:],
            targets="values" if values else "classes",
            outputs=self.y_train.shape[1] if self.classes is None else self.classes,
            train_samples=len(self.x_train),
            test_samples=len(self.x_test),
        )

    def validate(self) -> None:
        """Raise `DataError` for anything that can't be trained on: arrays that are empty or don't
        fit each other, NaN and infinity, labels out of range."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        check_forms(self.source, arrays, values=self.classes is None)
        check_contents(self.source, arrays, self.classes)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many training batches one epoch has, the smaller last one included."""
        return -(-len(self.x_train) // batch_size)

    def test_batches(self, batch_size: int) -> int:
        """Return how many batches the test set has, the smaller last one included."""
        return -(-len(self.x_test) // batch_size)

    def batch(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return training batch `index` of `epoch`, in the order that `order(seed, epoch)` gives.

        The last batch holds what is left over: 1 to `batch_size` samples.

        Args:
            out: C-contiguous buffer (at least B, *input_shape) of `dtype` to hold x; None: a new
                array.

        Returns:
            x (B, *input_shape), C-contiguous, of `dtype`: `out[:B]` where `out` is given;
            y (B,) int64 class ids, or (B, K) values of `dtype`; always a new array.

        Raises:
            IndexError: for an index outside of 0 … `batches_per_epoch` - 1.
            ValueError: for an `out` of another dtype or shape.
        """
        span = span_of(index, batch_size, len(self.x_train))
        rows = self.order(seed, epoch)[span]
        x = buffer_for(out, (len(rows), *self.x_train.shape[1:]), dtype)
        if self.x_train.dtype == x.dtype:
            _take(self.x_train, rows, x)
        else:
            if len(self._scratch) < len(rows):
                rows_max = min(batch_size, len(self.x_train))
                self._scratch = np.empty((rows_max, *x.shape[1:]), self.x_train.dtype)
            scratch = self._scratch[: len(rows)]
            _take(self.x_train, rows, scratch)
            _convert(scratch, x)
        return x, self._targets(self.y_train[rows], x.dtype)

    def test_batch(
        self, index: int, batch_size: int, dtype: DTypeLike, out: Array | None = None
    ) -> tuple[Array, Array]:
        """Return test batch `index`, in stored order; arguments, results and errors as for
        `batch`."""
        span = span_of(index, batch_size, len(self.x_test))
        samples = self.x_test[span]
        x = buffer_for(out, samples.shape, dtype)
        _convert(samples, x)
        return x, self._targets(self.y_test[span], x.dtype)

    def read(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> dict[str, Array]:
        """Return the result of `batch` as {"h": x, "y": y}."""
        return self._named(*self.batch(epoch, index, batch_size, seed, dtype, out))

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        """Return the result of `test_batch` as {"h": x, "y": y}."""
        return self._named(*self.test_batch(index, batch_size, dtype))

    def _named(self, x: Array, y: Array) -> dict[str, Array]:
        """Return the arrays of a batch by the names that `Meta` gives them."""
        return {"h": x, "y": y}

    def targets(self) -> dict[str, Array | Stored]:
        """Return all targets by name, as stored, to check that a loss can learn them."""
        return {"y_train": self.y_train, "y_test": self.y_test}

    def order(self, seed: int, epoch: int) -> Array:
        """Return indices into x_train (N,) as `batch` reads them, one batch behind another;
        read-only."""
        if self._order_of != (seed, epoch):
            rng = stream(seed, "data", "shuffle", epoch)
            self._order = rng.permutation(len(self.x_train))
            self._order.flags.writeable = False
            self._order_of = (seed, epoch)
        return self._order

    def _targets(self, y: Array, dtype: np.dtype[Any]) -> Array:
        # int64 is NumPy's index type and the one PyTorch's cross-entropy asks for.
        return y.astype(dtype if self.classes is None else np.int64)


def span_of(index: int, batch_size: int, samples: int) -> slice:
    """Return which of `samples` samples are in batch `index`. Raises `IndexError` for none."""
    start = index * batch_size
    if not 0 <= start < samples:
        raise IndexError(f"batch {index} of {batch_size} samples is not among {samples} samples")
    return slice(start, min(start + batch_size, samples))


def buffer_for(out: Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return the first rows of `out`, or a new array where it is None: C-contiguous, of `shape` and
    `dtype`.

    Raises `ValueError` for an `out` of another dtype or shape."""
    if out is None:
        return np.empty(shape, dtype=dtype)
    fits = out.shape[1:] == shape[1:] and len(out) >= shape[0] and out.flags.c_contiguous
    if out.dtype != dtype or not fits:
        raise ValueError(
            f"out is {out.shape} {out.dtype}; expected C-contiguous {np.dtype(dtype)} of {shape}, "
            "or more rows"
        )
    return out[: shape[0]]


def _by_rows(array: Array | Stored) -> Array | Stored:
    """Return the array with each row in one piece."""
    return array if isinstance(array, Stored) else np.ascontiguousarray(array)


def _take(array: Array | Stored, rows: Array, out: Array) -> None:
    if isinstance(array, Stored):
        array.read(rows, out)
    else:
        # mode="clip" only skips NumPy's buffering of `out`: rows are always in range.
        np.take(array, rows, axis=0, out=out, mode="clip")


def _convert(samples: Array, x: Array) -> None:
    np.copyto(x, samples, casting="same_kind" if samples.dtype.kind == "f" else "safe")
    if samples.dtype == np.uint8:
        # Two passes over the batch are faster than one mixed multiply, which casts in small pieces.
        np.multiply(x, x.dtype.type(1 / 255), out=x)


class Source:
    """Reads the batches that the core of the data's host asks for, by number.

    Batch b of the run is batch b modulo (batches per epoch) of its epoch. Training batches are read
    into buffers, which are used again once their batch has been released and the transport no
    longer needs them.
    """

    def __init__(
        self,
        dataset: Batches,
        *,
        batch_size: int,
        seed: int,
        dtype: np.dtype[Any],
        test_batch_size: int | None = None,
    ) -> None:
        """`test_batch_size`: size of test batches where it differs, as with microbatches."""
        self._dataset = dataset
        self._batch_size = batch_size
        self._test_batch_size = test_batch_size or batch_size
        self._per_epoch = dataset.batches_per_epoch(batch_size)
        self._seed = seed
        self._dtype = dtype
        rows = min(batch_size, dataset.meta.train_samples)
        self._shape = (rows, *dataset.meta.input_shape)
        self._in_use: dict[int, NDArray[Any]] = {}
        self._retired: list[tuple[NDArray[Any], Callable[[], bool]]] = []

    def read(self, op: Op) -> dict[str, NDArray[Any]]:
        """Return the arrays of the batch that the op `op` reads, by name: see `data.meta.Meta`."""
        if op.evaluate:
            return self._dataset.read_test(op.batch, self._test_batch_size, self._dtype)
        buffer = self._in_use[op.batch] = self._acquire()
        epoch, index = divmod(op.batch, self._per_epoch)
        return self._dataset.read(
            epoch, index, self._batch_size, self._seed, self._dtype, out=buffer
        )

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """Give the buffer of a batch back; it is used again once `sent()` says that the transport
        has sent it."""
        self._retired.append((self._in_use.pop(batch), sent))

    def _acquire(self) -> NDArray[Any]:
        for i in range(len(self._retired) - 1, -1, -1):
            buffer, sent = self._retired[i]
            if sent():
                del self._retired[i]
                return buffer
        return aligned_empty(self._shape, self._dtype)
