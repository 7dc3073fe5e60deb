"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from asyncdni.errors import ConfigError
from asyncdni.files import read_file

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
        text = f"{folder} is in use by {_holder(path)}: wait for its end{_cure(path)}"
        raise ConfigError(text) from None
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
        # Who can open a file can hold it, so nobody else may, whatever the umask.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    os.ftruncate(handle, 0)
                    with contextlib.suppress(OSError):
                        os.fchmod(handle, 0o600)  # one that an older version has left
                    return os.fdopen(handle, "w", encoding="utf-8")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before has removed it meanwhile: what is held is nobody's


def _holder(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _cure(path: Path) -> str:
    """Where it may be held by somebody else than the process that has written to it."""
    try:
        closed = not os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except OSError:
        closed = True
    return "" if closed else f"; if it has ended, another user holds its lock: remove {path}"
