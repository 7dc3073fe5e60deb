"""The data node's hands: reads the batches that the core asks for, by id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncdni.datasets.batches import Batches
from asyncdni.schedules.base import Op

__all__ = ["Source"]


class Source:
    """Batch b of the run is batch b modulo (batches per epoch) of its epoch.

    Training batches are read into buffers that are used again when their batch has been released
    and the transport has let go of them.
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
        """`test_batch_size`: where it is not the same, as with microbatches."""
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
        """The arrays of a batch by name: see `datasets.meta.Meta`."""
        if op.evaluate:
            return self._dataset.read_test(op.batch, self._test_batch_size, self._dtype)
        buffer = self._in_use[op.batch] = self._acquire()
        epoch, index = divmod(op.batch, self._per_epoch)
        return self._dataset.read(
            epoch, index, self._batch_size, self._seed, self._dtype, out=buffer
        )

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """The worker that hosts the data is through with a batch."""
        self._retired.append((self._in_use.pop(batch), sent))

    def _acquire(self) -> NDArray[Any]:
        for i in range(len(self._retired) - 1, -1, -1):
            buffer, sent = self._retired[i]
            if sent():
                del self._retired[i]
                return buffer
        return np.empty(self._shape, self._dtype)
