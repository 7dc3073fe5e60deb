"""What a data set is to those who train on it: numbered batches, each a dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from numpy.typing import DTypeLike

from asyncdni.datasets.meta import Array, Meta

__all__ = ["Batches"]


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
