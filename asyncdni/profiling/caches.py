"""Caches that have forgotten: what an op costs a worker that others have taken the core from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["last_level_bytes", "make_forget"]

#: Where the system does not say.
_USUAL_BYTES = 32 * 2**20
_BYTES_MAX = 256 * 2**20
_LINE_BYTES = 64
#: Caches don't throw out the oldest strictly: somewhat more than they hold must be touched.
_MORE = 1.5


def make_forget() -> Callable[[], None]:
    """A function after which none of what was used before it is in this core's caches.

    It reads more memory than they hold, for some milliseconds."""
    memory = np.ones(round(_MORE * last_level_bytes()), np.uint8)
    lines = memory[::_LINE_BYTES]

    def forget() -> None:
        lines.sum()

    return forget


def last_level_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Of the largest cache; a usual size where the system does not say, or says what can't be."""
    sizes = [_bytes(path) for path in folder.glob("index*/size")]
    largest = max(sizes, default=0)
    return min(largest, _BYTES_MAX) if largest else _USUAL_BYTES


def _bytes(path: Path) -> int:
    """Of "32768K"; 0 for what is no size."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    number, unit = text[:-1], text[-1:]
    factor = {"K": 2**10, "M": 2**20}.get(unit, 0)
    return int(number) * factor if number.isdecimal() else 0
