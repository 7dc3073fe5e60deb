"""Logs of workers on their way from a machine that does not see the run's folder.

```
 agent                             coordinator
   │ Part, Part, … ─────────────────► │  added to DIR/logs/WORKER.log
   │ ◄──────────────────────── Taken  │
   │ Ended ─────────────────────────► │  at the end of the run: after the last line of that worker
```

Only a few parts of all logs of a machine are on their way, so that neither end holds much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from asyncdni.core.transfer import AHEAD_BYTES
from asyncdni.messages import Part, Taken
from asyncdni.store.parts import part_from

__all__ = ["LOGS", "LogSender", "log_path"]

#: The folder of the logs, in the folder of a run.
LOGS = "logs"


def log_path(worker: str) -> str:
    """Return where a worker's log is in the folder of a run."""
    return f"{LOGS}/{worker}.log"


class LogSender:
    """Sends the logs in `folder`/logs to the coordinator as they grow."""

    def __init__(self, folder: Path, send: Callable[[Part], None]) -> None:
        self._folder = folder
        self._send = send
        self._sent: Counter[str] = Counter()  # bytes, by path
        self._taken: Counter[str] = Counter()

    def look(self) -> bool:
        """Send what is new, as far as the coordinator keeps up; tell whether it has all of it.

        Raises `CheckpointError` where a log can't be read.
        """
        paths = [f"{LOGS}/{file.name}" for file in (self._folder / LOGS).glob("*.log")]
        for path in sorted(paths, key=self._sent.__getitem__):  # no log keeps the others waiting
            while self._sent.total() - self._taken.total() < AHEAD_BYTES:
                part = part_from(self._folder, path, self._sent[path])
                if part is None:
                    break
                self._send(part)
                self._sent[path] = part.size
            else:
                return False
        return self._sent == self._taken

    def taken(self, message: Taken) -> None:
        """The coordinator has added a part to the log in its folder."""
        self._taken[message.path] = message.offset

    def begin_again(self) -> None:
        """Send what has not been taken once more: another coordinator is there."""
        self._sent = Counter(self._taken)
