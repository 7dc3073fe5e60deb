"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from asyncdni.errors import ConfigError

__all__ = ["LOCK", "locked"]

#: The file in the folder of a run that its coordinator holds; gone when it ends, but by SIGKILL.
LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep all others out. The system itself lets go of it for a process that dies.

    Raises `ConfigError` for a folder that another process has, and one that can't be written.
    """
    path = folder / LOCK
    try:
        file = _held(path)
    except BlockingIOError:
        raise ConfigError(f"{folder} is in use by {_holder(path)}: wait for its end") from None
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written: {error.strerror}") from error
    try:
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held, so that nobody else's goes
        file.close()


def _held(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held as long as it is open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # the holder before has removed it meanwhile: what is held is nobody's


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
