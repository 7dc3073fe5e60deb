"""The folders of data files, and downloads of a file from one of several mirrors.

Data files are kept in a given folder, or else in $ASYNCDNI_DATA, then in the user's cache folder.

A download is held in memory until its bytes are known to be the published ones. It is then written
to a temporary file, which is renamed, so a folder only ever holds whole and correct files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from asyncdni.errors import DataError
from asyncdni.files import replaced

__all__ = ["Progress", "base_folder", "cache_folder", "data_folders", "listed", "receive", "write"]

# --- folders -------------------------------------------------------------------------------------


def data_folders(given: str, name: str) -> list[Path]:
    """Return the folders to look in for data set `name`, in order.

    These are `given` alone or, where it is empty, $ASYNCDNI_DATA and the cache folder; and of each
    also its subfolder `name`.
    """
    if given:
        bases = [Path(given)]
    else:
        named = os.environ.get("ASYNCDNI_DATA", "")
        cache = cache_folder()
        bases = [*([Path(named)] if named else []), *([cache] if cache else [])]
    return [folder for base in bases for folder in (base, base / name)]


def listed(folders: Sequence[Path]) -> str:
    """Return the names of the folders that were searched, for an error message."""
    return ", ".join(map(str, folders)) or "$ASYNCDNI_DATA, which is not set (nor is there a home)"


def cache_folder() -> Path | None:
    """Return the user's folder for files that can be fetched again, `asyncdni` in it; None where
    the user has no home, as in a container with a user id that has no name."""
    try:
        return _caches() / "asyncdni"
    except RuntimeError:
        return None


def _caches() -> Path:
    """Return the folder of all caches of the user. Raises `RuntimeError` for a user without a
    home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    if given and Path(given).is_absolute():
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"


# --- download ------------------------------------------------------------------------------------

#: Called with the bytes received so far and the total, None where the mirror doesn't tell it.
Progress = Callable[[int, int | None], None]

_TIMEOUT_S = 15.0  # to connect, and between two pieces
_PIECE_BYTES = 1 << 16


def base_folder() -> Path:
    """Return the folder for downloaded files: $ASYNCDNI_DATA, or else the user's cache folder.

    Raises `DataError` for a user without a home."""
    given = os.environ.get("ASYNCDNI_DATA", "")
    base = Path(given) if given else cache_folder()
    if base is None:
        raise DataError(
            "there is no home folder to keep data in: name a folder with --folder, or set "
            "ASYNCDNI_DATA"
        )
    return base


def receive(
    name: str,
    mirrors: Sequence[str],
    check: Callable[[bytes, str], object],
    *,
    bytes_max: int,
    progress: Progress,
    cure: str,
) -> tuple[bytes, str]:
    """Download `name`; returns its bytes, and the first of `mirrors` that has the right ones.

    `check(content, mirror)` raises `DataError` for other bytes than the published ones. A file
    longer than `bytes_max`, its size unpacked, is refused. Raises `DataError` if no mirror has the
    file, with the reason for each, and with `cure`: what the user can do.
    """
    import http.client  # here, as every worker process would load these for nothing
    import urllib.error

    reasons = []
    for mirror in mirrors:
        try:
            content = _received(mirror, name, bytes_max, progress)
            check(content, mirror)
        except DataError as error:
            reasons.append(str(error))
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            reasons.append(f"{mirror}: {error}")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            reasons.append(f"{mirror}: {reason}")
        else:
            return content, mirror
    raise DataError(f"no mirror gave {name} ({'; '.join(reasons)}); {cure}")


def write(path: Path, content: bytes) -> None:
    """Write all of `content` or nothing, even if this process is killed. Raises `DataError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"{path}: can't be written ({error.strerror}); choose a folder with --folder"
        ) from None


def _received(mirror: str, name: str, bytes_max: int, progress: Progress) -> bytes:
    import urllib.request

    pieces = bytearray()
    with urllib.request.urlopen(f"{mirror}{name}", timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        while piece := response.read(_PIECE_BYTES):
            pieces += piece
            progress(len(pieces), total)
            # Packed, the file is shorter than unpacked: if longer, it is another file.
            if len(pieces) > bytes_max:
                raise DataError(f"{mirror}: longer than the {bytes_max} bytes of the file unpacked")
    if total is not None and len(pieces) < total:
        raise DataError(f"{mirror}: broke off after {len(pieces)} of {total} bytes")
    return bytes(pieces)
