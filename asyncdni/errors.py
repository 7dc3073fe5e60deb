"""The tree of errors. Catch `AsyncDNIError` for all of them.

AsyncDNIError
├── ConfigError          the experiment file, a flag or a network that does not fit together
├── DataError            a data set that is missing, corrupt or out of range
├── ProtocolError        bytes or messages that break the wire protocol
│   ├── LocalProtocolError     this process was about to break it
│   └── RemoteProtocolError    a peer broke it
├── CheckpointError      a run folder or a weight file that can't be read or written
├── LaunchError          a process that can't be started, or can't reach its coordinator
├── WorkerLost           a worker that died or fell silent
├── NumericalError       a loss or gradient that is no longer a finite number
├── LimitExceeded        a queue, message or time over its limit
└── Interrupted          the user asked to stop; `asyncdni.train` raises KeyboardInterrupt from it

`DataWarning` is no error: the data are used, but they are not those that a run was trained on.

Each message says what was given, what was expected and what to do. The command line prints it as
one line and exits with `exit_code`; a worker sends it to its coordinator as (class name, text).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "AsyncDNIError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "Interrupted",
    "LaunchError",
    "LimitExceeded",
    "LocalProtocolError",
    "NumericalError",
    "ProtocolError",
    "RemoteProtocolError",
    "WorkerLost",
    "by_name",
    "legible",
]


class AsyncDNIError(Exception):
    """The base of all errors that asyncdni raises on purpose; its message is meant for the user."""

    exit_code = 1


class ConfigError(AsyncDNIError):
    """The experiment file, a flag or the network they describe can't be used."""

    exit_code = 2


class DataError(AsyncDNIError):
    """A data set is missing, corrupt or holds values that can't be trained on."""


class DataWarning(UserWarning):
    """Data are used that a run was not trained on, or that have another scale."""


class ProtocolError(AsyncDNIError):
    """The wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This process was about to send a message that the protocol forbids: a bug in this process."""


class RemoteProtocolError(ProtocolError):
    """A peer sent a message that the protocol forbids."""


class CheckpointError(AsyncDNIError):
    """A run folder or weight file can't be read or written."""


class LaunchError(AsyncDNIError):
    """A process can't be started or can't reach its coordinator."""


class WorkerLost(AsyncDNIError):
    """A worker died or fell silent."""


class NumericalError(AsyncDNIError):
    """A loss or gradient is no longer a finite number.

    `batch` is the training batch that it came with, where that is known, else -1.
    """

    def __init__(self, text: str, batch: int = -1) -> None:
        super().__init__(text)
        self.batch = batch


class LimitExceeded(AsyncDNIError):
    """A queue, message or time is over its limit."""


class Interrupted(AsyncDNIError):
    """The user asked to stop: by Ctrl-C, SIGTERM or SIGHUP, or by ending the program around a run.

    A script gets `KeyboardInterrupt` from `asyncdni.train`, once all has been saved, with this
    error as its `__cause__`. The exit code is the one that shells expect: 128 and the signal's
    number.
    """

    exit_code = 130
    #: Whether all was saved; if not, the text says from where the run can go on.
    orderly = False
    #: The run's folder; None: nothing is kept on disk.
    folder: Path | None = None
    #: The run in numbers up to here, as in `summary.json`.
    summary: dict[str, Any] | None = None
    #: The `asyncdni.Result` so far, after an orderly stop of a run that keeps nothing on disk.
    result: Any = None


def by_name(name: str) -> type[AsyncDNIError]:
    """Return the error class of that name; `AsyncDNIError` itself for an unknown name."""
    found = globals().get(name) if name in __all__ else None
    if isinstance(found, type) and issubclass(found, AsyncDNIError):
        return found
    return AsyncDNIError


def legible(text: str, characters_max: int, *, lines: bool = False) -> str:
    """Make a text from outside safe to show: cut, and without characters that steer a terminal or
    hide text (escape sequences, marks of direction).

    The result is on one line unless `lines`.
    """
    if text.isprintable() and len(text) <= characters_max:
        return text
    kept = text[:characters_max]
    if not kept.isprintable():
        kept = "".join(one if _is_legible(one, lines) else _REPLACED[one.isspace()] for one in kept)
    left = len(text) - len(kept)
    return f"{kept}… ({left:,} characters more)" if left > 0 else kept


_REPLACED = ("?", " ")


def _is_legible(character: str, lines: bool) -> bool:
    return character.isprintable() or (lines and character in "\n\t")
