"""Read regular files only, write files whole or not at all, and lock a run's folder.

A path may lead to a pipe that nobody writes to, or to a device without an end. A plain read would
wait for ever, or fill the memory.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO

from asyncdni.errors import ConfigError

__all__ = [
    "LOCK",
    "check_file",
    "decode_text",
    "is_url",
    "locked",
    "open_file",
    "read_file",
    "replaced",
]

#: Names of what is no file, by `stat.S_IFMT`; for a folder the system raises its own error.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: Byte order marks, which Windows' editors put at the beginning of a text.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


#: URLs begin so; a drive of Windows has one letter.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_url(place: object) -> bool:
    """Tell whether a place is a URL, such as s3://bucket/run, and no path."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file to read. Raises `OSError`, also for a pipe, a socket, a device or a folder."""
    check_file(path)
    # Checked again once it is open, as something else may be there by now.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_kind(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file. Raises `OSError` as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` if the path leads to something that is no file; there may be nothing."""
    with contextlib.suppress(FileNotFoundError):
        _check_kind(os.stat(path))


def decode_text(content: bytes) -> str:
    """Decode a text as UTF-8, or as its byte order mark says, which is left out.

    Raises `UnicodeDecodeError`.
    """
    marked = (name for mark, name in _MARKS.items() if content.startswith(mark))
    return content.decode(next(marked, "utf-8"))


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BufferedWriter]:
    """Yield a new file that replaces `path` after the block, once its content is on the disk.

    After an error `path` is as before. The file's mode follows the process's umask. Raises
    `OSError`, also if `path` is no file.
    """
    check_file(path)
    path = Path(os.path.realpath(path))  # a link stays a link
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

#: The file in a run's folder that its coordinator locks. It stays only if that is killed.
LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for one run. The system releases the lock if the process dies.

    Raises `ConfigError` for a folder that another process has locked, and one that can't be
    written.
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
            path.unlink()  # still locked, so it can't be another process's file
        file.close()


def _held(path: Path) -> IO[str]:
    while True:
        # Whoever can open the file can lock it, so only this user may, whatever the umask.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    os.ftruncate(handle, 0)
                    with contextlib.suppress(OSError):
                        os.fchmod(handle, 0o600)  # an older version may have left it open to others
                    return os.fdopen(handle, "w", encoding="utf-8")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it meanwhile: try again with a new file


def _holder(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _cure(path: Path) -> str:
    """Return advice for a lock file that others can open: another user may hold the lock."""
    try:
        closed = not os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except OSError:
        closed = True
    return "" if closed else f"; if it has ended, another user holds its lock: remove {path}"
