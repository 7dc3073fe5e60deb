"""What travels with a window of a stream: where sequences begin and end, and what is coming.

The caller puts it into the slot before the forward, under "context": "first" (B,) bool, the window
begins a new sequence of that stream; "last" (B,) bool, it ends one; "coming" (B, …), the targets
after the window's end, which only generators see. "batch" (int) is the window's id. All may be
left out: then windows follow each other without end.
"""

from __future__ import annotations

import numpy as np

from asyncdni.errors import DataError
from asyncdni.nn.base import Array, Slot

__all__ = ["coming", "flags"]


def flags(slot: Slot, name: str, streams: int) -> Array:
    """`name` ("first" or "last") of each stream, (B,) bool; a copy. All False where it is absent.

    Raises `DataError` for another shape."""
    given = slot.get("context", {}).get(name)
    if given is None:
        return np.zeros(streams, np.bool_)
    found = np.array(given, np.bool_)
    if found.shape != (streams,):
        raise DataError(
            f"context {name!r} has shape {found.shape}, expected ({streams},): one flag a stream"
        )
    return found


def coming(slot: Slot, streams: int, width: int) -> Array:
    """The targets after the window's end, (B, width), as they were given.

    Raises `DataError` where they are missing or of another size."""
    given = slot.get("context", {}).get("coming")
    if given is None:
        raise DataError(
            f"a recurrent layer's future sees {width} coming targets, but the data has none: "
            "choose data with 'coming' in its context, or set labels = 0"
        )
    found = np.asarray(given).reshape(len(given), -1)
    if found.shape != (streams, width):
        raise DataError(
            f"context 'coming' has shape {np.shape(given)}: expected {streams} streams of {width} "
            "numbers each, as the future's labels say"
        )
    return found
