"""Files: read only where they are such, and written whole or not at all.

What is given as a file may be a pipe that nobody writes to, or a device without an end: whoever
just reads it waits for ever, or until memory is full.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO

from asyncdni.errors import ConfigError

__all__ = ["LOCK", "check_file", "decode_text", "locked", "open_file", "read_file", "replaced"]

#: What is no file, by `stat.S_IFMT`; a folder has an error of the system's own.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: Byte order marks that Windows' editors begin a text with.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """To read from. Raises `OSError`, also for what is a pipe, a socket, a device or a folder."""
    check_file(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # what if it just changed?
    try:
        _check_kind(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All that is in it. Raises `OSError` as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises `OSError` for what is there and is no file; a path of nothing may become one."""
    with contextlib.suppress(FileNotFoundError):
        _check_kind(os.stat(path))


def decode_text(content: bytes) -> str:
    """UTF-8, or what the byte order mark at its beginning says, which is left out.

    Raises `UnicodeDecodeError`.
    """
    marked = (name for mark, name in _MARKS.items() if content.startswith(mark))
    return content.decode(next(marked, "utf-8"))


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BufferedWriter]:
    """A new file, open to others as the process's umask says, that takes the place of `path` once
    the block is through, its content on the disk; after an error all is as it was.

    Raises `OSError`, also where `path` is something else than a file.
    """
    check_file(path)
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(temporary, "xb"))
        stack.callback(_remove, temporary)
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)


def _check_kind(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind in _KINDS:
        raise OSError(errno.EINVAL, f"it is {_KINDS[kind]}, expected a file")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


# --- lock ----------------------------------------------------------------------------------------
#
# One run at a time in a folder.

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
