"""Sequences, read in windows of T steps of B parallel streams.

```
 epoch     ├──── sequence 0 ────┼──── sequence 1 ────┼ idle ┤
 window    0      1      2      3      4      5      6      7
 first     1                    1                    1      1
 last                    1                    1      1      1
```

Window w of an epoch is its batch w; where a batch is cut into microbatches, each has a part of the
streams. All streams begin and end a sequence together, at the border of a window, and an epoch
begins with a new sequence. If too few windows for a whole sequence are left at the end of an epoch,
they are idle: their inputs are zero and none of their steps counts. Test windows follow each other
likewise, so that state can be carried through a long text.

A window depends on (seed, epoch, index) alone; the sequence read last is kept only to save time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import DTypeLike

from asyncdni.data.base import buffer_for
from asyncdni.data.meta import Array, Meta, Tensor, mismatch
from asyncdni.errors import ConfigError, DataError

__all__ = ["Sequence", "Sequences", "Task", "describe_windows", "one_hot"]


@dataclass(frozen=True)
class Sequence:
    """One sequence of each of B streams, of L steps, which are a whole number of windows."""

    x: Array  # (B, L, *shape of a step), or (B, L) ids, which may be read as one-hot vectors
    y: Array  # (B, L) class ids, or (B, L, K) values
    mask: Array | None = None  # (B, L) bool: which steps count; None: all
    hints: Array | None = None  # (B, L, H): what generators see of each target; None: y itself


class Task(Protocol):
    """Makes the sequences of an epoch, or of the test part where `epoch` is None.

    Sequences have a mask, which idle windows need, unless one sequence fills an epoch."""

    def windows(self, epoch: int | None) -> int:
        """Return how many windows each sequence of `epoch` has."""

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        """Return sequence `number` of `epoch`, the same whenever it is asked for."""


class Sequences:
    """The windows of a task as batches: see `meta.Batches`. Serves one thread at a time."""

    def __init__(
        self, source: str, meta: Meta, task: Task, *, streams: int, ahead: int, seed: int
    ) -> None:
        """
        Args:
            source: file or name, for error messages.
            meta: as `describe_windows` makes it.
            ahead: how many steps after a window have their targets in the context, as "coming".
            seed: that of the test part.
        """
        self.source = source
        self.meta = meta
        self.task = task
        self.streams = streams
        self._ahead = ahead
        self._seed = seed
        self._windows = meta.train_samples // streams
        self._test_windows = meta.test_samples // streams
        self._held: Sequence | None = None  # the sequence that was read last …
        self._held_of: tuple[int, int | None, int] | None = None  # … and its (seed, epoch, number)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many batches an epoch has: the windows of all streams, each in equal parts of
        `batch_size` streams. Raises `ConfigError` for a `batch_size` that does not divide the
        streams."""
        return self._windows * self._parts(batch_size)

    def test_batches(self, batch_size: int) -> int:
        """Return how many batches the test part has. Raises `ConfigError` as `batches_per_epoch`
        does."""
        return self._test_windows * self._parts(batch_size)

    def read(
        self,
        epoch: int,
        index: int,
        batch_size: int,
        seed: int,
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> dict[str, Array]:
        """Return batch `index` of `epoch`: "h", "y", "first", "last" and what else `meta.context`
        names, of a window of all streams or of the next `batch_size` streams of one.

        Raises:
            ConfigError: for a `batch_size` that does not divide the number of streams.
            IndexError: for an index outside of 0 … `batches_per_epoch` - 1.
            ValueError: for an `out` of another dtype or shape than (at least B, *input_shape).
        """
        _check_index(index, self.batches_per_epoch(batch_size))
        return self._read(seed, epoch, index, batch_size, self._windows, dtype, out)

    def read_test(self, index: int, batch_size: int, dtype: DTypeLike) -> dict[str, Array]:
        """Return batch `index` of the test part; arguments, results and errors as for `read`."""
        _check_index(index, self.test_batches(batch_size))
        return self._read(self._seed, None, index, batch_size, self._test_windows, dtype, None)

    def targets(self) -> dict[str, Array]:
        """Return the targets of the first training and the first test window; values are
        float32."""
        train, test = self._first_windows()
        return {"y of training": train["y"], "y of the test": test["y"]}

    def validate(self) -> None:
        """Raise `DataError` where the task's sequences are not what `meta` says."""
        for tensors in self._first_windows():
            wrong = mismatch(self.meta, tensors, self.streams, np.float32)
            if wrong is None and not np.isfinite(tensors["h"]).all():
                wrong = "an input is not a finite number"
            if wrong:
                raise DataError(f"{self.source}: {wrong}")

    def _first_windows(self) -> tuple[dict[str, Array], dict[str, Array]]:
        streams, dtype = self.streams, np.float32
        return self.read(0, 0, streams, self._seed, dtype), self.read_test(0, streams, dtype)

    def _parts(self, batch_size: int) -> int:
        """Into how many batches the streams of a window are divided."""
        if not 0 < batch_size <= self.streams or self.streams % batch_size:
            raise ConfigError(
                f"data.batch_size: windows of {self.streams} streams were asked for {batch_size} "
                "at a time; expected a divisor of the streams"
            )
        return self.streams // batch_size

    def _read(
        self,
        seed: int,
        epoch: int | None,
        index: int,
        batch_size: int,
        windows: int,
        dtype: DTypeLike,
        out: Array | None,
    ) -> dict[str, Array]:
        window, part = divmod(index, self._parts(batch_size))
        each = self.task.windows(epoch)
        number, place = divmod(window, each)
        if number < windows // each:
            sequence = self._sequence(seed, epoch, number)
        else:
            sequence, place = _idle(self._sequence(seed, epoch, 0), self.meta.steps), 0
        streams = slice(part * batch_size, (part + 1) * batch_size)
        return self._cut(_of_streams(sequence, streams), place, np.dtype(dtype), out)

    def _sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        wanted = seed, epoch, number
        if self._held is None or self._held_of != wanted:
            self._held, self._held_of = self.task.sequence(seed, epoch, number), wanted
        return self._held

    def _cut(
        self, sequence: Sequence, place: int, dtype: np.dtype[np.generic], out: Array | None
    ) -> dict[str, Array]:
        """Return the arrays of window `place` of a sequence."""
        steps = self.meta.steps
        start, end = place * steps, (place + 1) * steps
        streams = len(sequence.y)
        x = buffer_for(out, (streams, *self.meta.input_shape), dtype)
        _fill(x, sequence.x[:, start:end])
        kind = np.int64 if self.meta.targets == "classes" else dtype
        tensors = {
            "h": x,
            "y": np.array(sequence.y[:, start:end], kind, order="C"),
            "first": np.full(streams, start == 0),
            "last": np.full(streams, end == sequence.y.shape[1]),
        }
        if sequence.mask is not None:
            tensors["mask"] = np.array(sequence.mask[:, start:end], np.bool_, order="C")
        if self._ahead:
            tensors["coming"] = self._coming(sequence, end, dtype)
        return tensors

    def _coming(self, sequence: Sequence, end: int, dtype: np.dtype[np.generic]) -> Array:
        """Return the hints for the targets after step `end`, (B, ahead * H); zero beyond the
        sequence's end."""
        hints = sequence.y if sequence.hints is None else sequence.hints
        wide = self.meta.context["coming"].shape[0] // self._ahead
        coming = np.zeros((len(hints), self._ahead, wide), dtype)
        part = hints[:, end : end + self._ahead]
        _fill(coming[:, : part.shape[1]], part)
        return coming.reshape(len(hints), -1)


def describe_windows(
    meta: Meta, *, streams: int, ahead: int, masked: bool, hints: int | None = None
) -> Meta:
    """Return `meta`, which counts the windows of one stream, for `streams` streams and with its
    context.

    `hints` is how many numbers stand for one coming target; by default as many as outputs."""
    context = {"first": Tensor((), "bool"), "last": Tensor((), "bool")}
    if masked:
        context["mask"] = Tensor((meta.steps,), "bool")
    if ahead:
        context["coming"] = Tensor((ahead * (hints or meta.outputs),), "float")
    return msgspec.structs.replace(
        meta,
        train_samples=meta.train_samples * streams,
        test_samples=meta.test_samples * streams,
        context=context,
    )


def one_hot(ids: Array, classes: int, dtype: DTypeLike) -> Array:
    """Return ids (…) as one-hot vectors (…, classes) of `dtype`."""
    out = np.empty((*ids.shape, classes), dtype)
    _fill(out, ids)
    return out


def _fill(out: Array, values: Array) -> None:
    """Copy `values` into `out`; if `out` has one axis more, they are ids and become one-hot
    vectors."""
    if values.ndim == out.ndim:
        out[...] = values
        return
    out[...] = 0
    np.put_along_axis(out, values[..., None].astype(np.intp), 1, axis=-1)


def _of_streams(sequence: Sequence, streams: slice) -> Sequence:
    """Return the sequences of some of the streams, as views."""
    return Sequence(
        sequence.x[streams],
        sequence.y[streams],
        mask=None if sequence.mask is None else sequence.mask[streams],
        hints=None if sequence.hints is None else sequence.hints[streams],
    )


def _idle(like: Sequence, steps: int) -> Sequence:
    """Return a sequence of one idle window: zeros, of which no step counts."""
    streams = len(like.y)

    def zeros(array: Array) -> Array:
        return np.zeros((streams, steps, *array.shape[2:]), array.dtype)

    return Sequence(
        zeros(like.x),
        zeros(like.y),
        mask=np.zeros((streams, steps), np.bool_),
        hints=None if like.hints is None else zeros(like.hints),
    )


def _check_index(index: int, windows: int) -> None:
    if not 0 <= index < windows:
        raise IndexError(f"window {index} is not among {windows}")
