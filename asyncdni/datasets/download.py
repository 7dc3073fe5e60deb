"""Fetching MNIST's four files from public mirrors, checked before anything is written.

A file is held in memory (10 MB at most) until its uncompressed bytes have proved to be the
published ones, then written beside its place and renamed: a folder holds whole, right files only.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from asyncdni.datasets.folders import cache_folder
from asyncdni.datasets.mnist import FILES, File, checked, find
from asyncdni.errors import DataError

__all__ = ["MIRRORS", "Progress", "default_folder", "fetch", "held"]

#: Called with bytes received so far and their total, None where the mirror doesn't tell it.
Progress = Callable[[int, int | None], None]

#: Folders of the gzip files; tried in order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)

_TIMEOUT_S = 15.0  # to connect, and between two pieces
_PIECE_BYTES = 1 << 16


def default_folder() -> Path:
    """Where a fetch belongs: in $ASYNCDNI_DATA, or else in the user's cache folder.

    That is the subfolder `mnist`, unless some of the files already lie in the folder itself.
    """
    given = os.environ.get("ASYNCDNI_DATA", "")
    base = Path(given) if given else cache_folder()
    return base if any(find(file, [base]) for file in FILES) else base / "mnist"


def held(file: File, folder: Path) -> Path | None:
    """The path of `file` in `folder` if it is there and right, else None."""
    path = find(file, [folder])
    if path is None:
        return None
    try:
        checked(file, path.read_bytes(), str(path))
    except (OSError, DataError):
        return None
    return path


def fetch(file: File, folder: Path, mirrors: Sequence[str], progress: Progress) -> str:
    """Puts `file`, as gzip, into `folder`; returns the mirror that had it.

    Raises `DataError` if no mirror gives the published bytes (saying why, for each), or the folder
    can't be written to.
    """
    reasons = []
    for mirror in mirrors:
        try:
            content = _received(mirror, file, progress)
            checked(file, content, mirror)
        except DataError as error:
            reasons.append(str(error))
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            reasons.append(f"{mirror}: {error}")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            reasons.append(f"{mirror}: {reason}")
        else:
            _write(folder / f"{file.name}.gz", content)
            return mirror
    names = ", ".join(f"{each.name}.gz" for each in FILES)
    raise DataError(
        f"no mirror gave {file.name}.gz ({'; '.join(reasons)}); check the network and try again, "
        f"or put {names} from any copy of MNIST into {folder}"
    )


def _received(mirror: str, file: File, progress: Progress) -> bytes:
    pieces = bytearray()
    with urllib.request.urlopen(f"{mirror}{file.name}.gz", timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        while piece := response.read(_PIECE_BYTES):
            pieces += piece
            progress(len(pieces), total)
            # Packed, they are shorter than the file itself: more is something else.
            if len(pieces) > file.size:
                raise DataError(f"{mirror}: longer than the {file.size} bytes of the file unpacked")
    if total is not None and len(pieces) < total:
        raise DataError(f"{mirror}: broke off after {len(pieces)} of {total} bytes")
    return bytes(pieces)


def _write(path: Path, content: bytes) -> None:
    """All of `content` or nothing, even if this process is killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: can't be written ({error.strerror}); choose a folder with --folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # a folder that can't be written to holds no part
            partial.unlink(missing_ok=True)
