"""What a process logs: loggers below `asyncdni`, and how a command prints their records.

```
asyncdni
├── coordinator       what happens to a run: deaths, restarts, stops
├── agent.RANK        what the agent of a machine does
└── worker.NAME       what the process of a worker does
```

Whoever uses the package from Python configures these loggers like those of any other library: until
a command calls `printed`, their only handler is a `NullHandler`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

__all__ = [
    "COORDINATOR",
    "DISPLAYED",
    "LEVELS",
    "Printer",
    "be",
    "flags",
    "own",
    "parsed",
    "print_at_once",
    "printed",
]

LEVELS = ("debug", "info", "warning", "error")

_ROOT = logging.getLogger("asyncdni")
_ROOT.addHandler(logging.NullHandler())
#: What happens to a run, told in the process that coordinates it.
COORDINATOR = logging.getLogger("asyncdni.coordinator")

# --- who this process is -------------------------------------------------------------------------

_own = _ROOT


def be(kind: str, name: str = "") -> None:
    """Name the logger of this process, which is the `worker` of that name, the `agent` of that rank
    or the `coordinator`."""
    global _own
    _own = logging.getLogger(".".join(filter(None, ("asyncdni", kind, name))))


def own() -> logging.Logger:
    """Return the logger of this process: that of the package unless `be` was called."""
    return _own


# --- forms of a line -----------------------------------------------------------------------------


class _Plain(logging.Formatter):
    """For a person who has typed the command: `asyncdni: text`."""

    def format(self, record: logging.LogRecord) -> str:
        kind = "warning: " if record.levelno == logging.WARNING else ""
        return f"asyncdni: {kind}{record.getMessage()}"


class _Stamped(logging.Formatter):
    """For log files: `2026-01-31T12:00:00.000Z WARNING worker hidden1: text`."""

    def format(self, record: logging.LogRecord) -> str:
        kind, name = _who(record)
        who = f"{kind} {name}".strip()
        return f"{_time(record)} {record.levelname} {who}: {record.getMessage()}"


class _Json(logging.Formatter):
    """For programs: one JSON object a line; `worker` is null where no worker speaks."""

    def format(self, record: logging.LogRecord) -> str:
        kind, name = _who(record)
        values = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "host": socket.gethostname(),
            "logger": record.name,
            "worker": name if kind == "worker" else None,
            "text": record.getMessage(),
        }
        return json.dumps(values, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    """ISO 8601, in UTC."""
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _who(record: logging.LogRecord) -> tuple[str, str]:
    """Return ("worker", "hidden1") for a record of `asyncdni.worker.hidden1`."""
    kind, _, name = record.name.removeprefix("asyncdni.").partition(".")
    return kind, name


_STAMP = re.compile(r"\S+Z (?P<level>[A-Z]+) (asyncdni|coordinator|agent|worker)( [^:]*)?: ")


def parsed(line: str, unlogged: int = logging.WARNING) -> tuple[int, str]:
    """Return the level of a line that another process has printed, and its text without time, level
    and name. `unlogged`: the level of lines that were not logged."""
    level, text = logging.getLevelName(unlogged), line.removeprefix("asyncdni: ")
    if stamp := _STAMP.match(line):
        level, text = stamp["level"], line[stamp.end() :]
    elif line.startswith('{"time": '):
        with suppress(ValueError, KeyError):  # another program may write such lines too
            values = json.loads(line)
            level, text = values["level"].upper(), values["text"]
    return getattr(logging, level, logging.WARNING), text


# --- printing ------------------------------------------------------------------------------------

#: What a record says that a display of the run shows too: `extra=DISPLAYED`.
DISPLAYED = {"displayed": True}


class Printer(logging.Handler):
    """Prints records to standard error, which a display may replace meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Plain())
        self.json = False
        self._has_display = True

    def use(self, level: str | None, *, json: bool, stamped: bool, quiet: bool) -> None:
        """Print in another form.

        `level` is that of the loggers, here and in workers that this process starts; None: info.
        `stamped`: with time, level and name. `quiet`: there is no display, and nothing below a
        warning is printed unless `level` is given.
        """
        _ROOT.setLevel((level or "info").upper())
        self.setLevel(logging.WARNING if quiet and level is None else logging.NOTSET)
        self.setFormatter(_Json() if json else _Stamped() if stamped else _Plain())
        self.json, self._has_display = json, not quiet

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what a display shows, but not from lines for programs."""
        displayed = getattr(record, "displayed", False)
        return self.json or not (displayed and self._has_display)

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_printer: Printer | None = None


@contextmanager
def printed() -> Iterator[Printer]:
    """Print what is logged below `asyncdni` to standard error within this context."""
    global _own, _printer
    before = _own, _printer, _ROOT.level
    _printer = printer = Printer()
    _ROOT.setLevel(logging.INFO)
    _ROOT.addHandler(printer)
    try:
        yield printer
    finally:
        _ROOT.removeHandler(printer)
        _own, _printer, level = before
        _ROOT.setLevel(level)


def print_at_once(level: int, text: str) -> None:
    """Print a line past all locks and buffers, from a signal handler, or from a thread that is
    about to end the process."""
    printer = _printer or Printer()
    if level >= printer.level:
        record = _own.makeRecord(_own.name, level, "", 0, text, (), None)
        with suppress(OSError):  # standard error may be closed
            os.write(2, f"{printer.format(record)}\n".encode(errors="replace"))


def flags() -> list[str]:
    """Return the flags of `asyncdni worker` and `node` that make them log as this process does."""
    level = logging.getLevelName(_ROOT.level).lower()
    chosen = ["--log-level", level] if level in LEVELS and level != "info" else []
    return [*chosen, *(["--log-json"] if _printer is not None and _printer.json else [])]
