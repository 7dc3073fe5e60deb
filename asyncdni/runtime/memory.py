"""What this process holds and may hold: memory, and descriptors of files."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from asyncdni.errors import CheckpointError, ConfigError

__all__ = ["limit_memory", "resident_bytes", "written"]

T = TypeVar("T")

_NO_DESCRIPTOR_S = 5.0
_AGAIN_S = 0.01

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


def limit_memory(bytes_max: int, statm: Path = _STATM) -> None:
    """From now on this process has no more address space: what asks for more gets `MemoryError`.

    Raises `ConfigError` where it has more already.
    """
    try:
        held = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        held = 0
    if held >= bytes_max:
        raise ConfigError(
            f"limits.memory_bytes: {bytes_max} is less than the {held} bytes of address space that "
            "a worker has before it builds anything; raise it"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def written(write: Callable[[], T], patience_s: float = _NO_DESCRIPTOR_S) -> T:
    """What `write` gives, which is done once more for as long as no file can be opened.

    Strangers may have taken all descriptors for a moment, until they are turned away: see
    `transports.port`. Raises what `write` raises for another reason, or still after `patience_s`.
    """
    ends_at = time.monotonic() + patience_s
    while True:
        try:
            return write()
        except CheckpointError as error:
            cause = error.__cause__
            lacking = isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)
            if not lacking or time.monotonic() > ends_at:
                raise
        time.sleep(_AGAIN_S)
