"""The command lines of workers that people start, on any host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = ["typed_command"]


def typed_command(
    stage: str, coordinator: str, flags: Sequence[str] = (), *, allow_import: bool = False
) -> str:
    """What to type for one worker on the coordinator's host; `coordinator` is its address.

    On other hosts the name of that host takes the place of 127.0.0.1.
    """
    # A worker on this machine reaches a socket that listens on every interface through this one.
    reachable = coordinator.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
    words = ["asyncdni", "worker", "--stage", stage, "--coordinator", reachable, *flags]
    return shlex.join([*words, "--allow-import"] if allow_import else words)
