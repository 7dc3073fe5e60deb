"""How much memory this process holds."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["resident_bytes"]

_STATM = Path("/proc/self/statm")  # Linux: sizes in pages, the second is the resident set


def resident_bytes(statm: Path = _STATM) -> int | None:
    """The resident set right now, pages shared with others included; None where none can be read.

    The peak, which every system gives, would not do: it never falls, and so hides whether memory
    still grows.
    """
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
