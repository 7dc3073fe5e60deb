"""Getting a file from one of several mirrors, checked before anything is written.

It is held in memory until its bytes have proved to be the published ones, then written beside its
place and renamed: a folder holds whole, right files only.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from asyncdni.datasets.folders import cache_folder
from asyncdni.errors import DataError
from asyncdni.files import replaced

__all__ = ["Progress", "base_folder", "receive", "write"]

#: Called with bytes received so far and their total, None where the mirror doesn't tell it.
Progress = Callable[[int, int | None], None]

_TIMEOUT_S = 15.0  # to connect, and between two pieces
_PIECE_BYTES = 1 << 16


def base_folder() -> Path:
    """Where a fetch belongs: in $ASYNCDNI_DATA, or else in the user's cache folder.

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
    """The bytes of `name` and the mirror that had them, the first of `mirrors` with right ones.

    `check(content, mirror)` raises `DataError` for other bytes than the published ones; packed or
    not, there are at most `bytes_max`, the size unpacked. Raises `DataError` if no mirror gives
    them, saying why, for each, and what to do: `cure`.
    """
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
    """All of `content` or nothing, even if this process is killed. Raises `DataError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"{path}: can't be written ({error.strerror}); choose a folder with --folder"
        ) from None


def _received(mirror: str, name: str, bytes_max: int, progress: Progress) -> bytes:
    pieces = bytearray()
    with urllib.request.urlopen(f"{mirror}{name}", timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        while piece := response.read(_PIECE_BYTES):
            pieces += piece
            progress(len(pieces), total)
            # Packed, they are shorter than the file itself: more is something else.
            if len(pieces) > bytes_max:
                raise DataError(f"{mirror}: longer than the {bytes_max} bytes of the file unpacked")
    if total is not None and len(pieces) < total:
        raise DataError(f"{mirror}: broke off after {len(pieces)} of {total} bytes")
    return bytes(pieces)
