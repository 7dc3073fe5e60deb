"""How a worker comes to an end that no message has ordered: its coordinator is gone, or somebody
tells this process alone to stop. It keeps what it has learned, and leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncdni.errors import AsyncDNIError
from asyncdni.transports.beat import PARENT_VARIABLE, exit_process

__all__ = ["Forsaken", "Signals", "Told"]

#: How long the worker's own thread may take to come to a safe point, to save and to leave.
_GRACE_S = 2.0
#: Signals that come together are one request, as for the coordinator.
_TOGETHER_S = 0.25


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


class Signals:
    """What a worker does about SIGINT, SIGTERM and SIGHUP while its coordinator lives.

    Schedulers, service managers and terminals signal all processes of a job at once. Stopping is
    the coordinator's part: workers that left by themselves would take along what is to be saved.
    So the first signal is not this worker's end. The second one is, as soon as an update is whole;
    the third at once.
    """

    def __init__(self, stage: str, forsaken: Forsaken) -> None:
        self.ended_by: int | None = None  # the signal that was one too many
        self._stage = stage
        self._forsaken = forsaken
        self._heard_s: float | None = None  # the last request

    @contextmanager
    def heard(self) -> Iterator[None]:
        """In the main thread; elsewhere signals are the caller's business."""
        previous: dict[int, Any] = {}
        with contextlib.suppress(ValueError):
            for number in map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        before = self._heard_s
        if before is not None and now - before < _TOGETHER_S:
            return
        self._heard_s = now
        if before is None:
            self._say()
        elif self._forsaken.reason is None:
            self.ended_by = number
            self._forsaken(f"it got signal {number} more than once")
        else:
            os._exit(128 + number)

    def _say(self) -> None:
        """To whoever has started this worker by hand; others can read the coordinator."""
        if os.environ.get(PARENT_VARIABLE):
            return
        text = (
            f"asyncdni: worker {self._stage} goes on until its coordinator stops: stop that one, "
            "or signal this worker again to end it alone\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))
