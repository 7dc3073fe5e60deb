"""The state that goes from the end of one window to the start of the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import DataError
from asyncdni.nn.base import Array, Slot

__all__ = ["Carried"]


class Carried:
    """`state` (B, S) of all streams, None before `start`, and `newest` (), the window that it is
    the end of, -1 at first. Both are restored by writing into the arrays."""

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        """`width` is S."""
        self.newest = np.array(-1, np.int64)
        self.state: Array | None = None
        self._width, self._dtype = width, dtype

    def start(self, streams: int) -> Array:
        """Zero for so many streams; returns the new `state`."""
        self.state = np.zeros((streams, self._width), self._dtype)
        return self.state

    def advance(self, slot: Slot) -> int:
        """The window's number: slot["batch"], or the next one.

        Raises `DataError` for one that was there before."""
        newest = int(self.newest)
        number: int = slot.get("batch", newest + 1)
        if number <= newest:
            raise DataError(
                f"a recurrent layer was given batch {number} after batch {newest}: windows come "
                "once and in order; choose a schedule without replays"
            )
        return number

    def suits(self, first: Array) -> bool:
        """There is a state, and it need not begin anew for another number of streams; first (B,)
        bool says which of them begin a sequence.

        Raises `DataError` where the number has changed in the middle of a sequence."""
        if self.state is None or len(self.state) == len(first):
            return self.state is not None
        if first.all():
            return False
        raise DataError(
            f"a recurrent layer carries the state of {len(self.state)} streams and was given "
            f"{len(first)}: keep the batch size, or begin all sequences anew (context 'first')"
        )

    def enter(self, number: int, first: Array) -> Array:
        """The state (B, S) that window `number` starts with, zero where first (B,)."""
        assert self.state is not None
        self.newest[...] = number
        self.state[first] = 0
        return self.state

    def leave(self, end: Array) -> None:
        """Carries `end` (B, S) on; of a stream that has left the finite numbers, zero: it would
        never come back to them."""
        assert self.state is not None
        self.state[...] = end
        finite = np.isfinite(self.state)
        if not finite.all():
            self.state[~finite.all(axis=1)] = 0
