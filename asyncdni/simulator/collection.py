"""Python's search for cyclic garbage, less often: a simulation makes hundreds of thousands of small
objects a second that live for long, and hardly any cycle."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_OBJECTS = 100_000  # more than before, until the youngest are searched


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within it; afterwards all is as it was."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
