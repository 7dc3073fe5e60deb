"""A worker without a coordinator: it keeps what it has learned, and leaves."""

from __future__ import annotations

import threading

from asyncdni.errors import AsyncDNIError
from asyncdni.transports.beat import exit_process

__all__ = ["Forsaken", "Told"]

#: How long the worker's own thread may take to come to a safe point, to save and to leave.
_GRACE_S = 2.0


class Told(AsyncDNIError):
    """The coordinator ended this worker, or is gone: there is nobody to tell."""


class Forsaken:
    """What the heart calls, in its thread, once there is nobody left to work for.

    The worker's own thread looks at `reason` between two ops. Where it can't, because one op takes
    too long or another library has it, the process ends without it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, reason: str) -> None:
        self.reason = reason
        last_resort = threading.Timer(_GRACE_S, exit_process, (reason,))
        last_resort.daemon = True
        last_resort.start()

    def check(self) -> None:
        """Raises `Told` once there is nobody left."""
        if self.reason is not None:
            raise Told(f"worker stops: {self.reason}")
