"""Fetching MNIST's four files from public mirrors: see `transfer` for how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asyncdni.datasets.mnist import FILES, File, checked, find
from asyncdni.datasets.transfer import Progress, base_folder, receive, write
from asyncdni.errors import DataError
from asyncdni.files import read_file

__all__ = ["MIRRORS", "Progress", "default_folder", "fetch", "held"]

#: Folders of the gzip files; tried in order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)


def default_folder() -> Path:
    """Where a fetch belongs: in $ASYNCDNI_DATA, or else in the user's cache folder.

    That is the subfolder `mnist`, unless some of the files already lie in the folder itself.
    """
    base = base_folder()
    return base if any(find(file, [base]) for file in FILES) else base / "mnist"


def held(file: File, folder: Path) -> Path | None:
    """The path of `file` in `folder` if it is there and right, else None."""
    path = find(file, [folder])
    if path is None:
        return None
    try:
        checked(file, read_file(path), str(path))
    except (OSError, DataError):
        return None
    return path


def fetch(file: File, folder: Path, mirrors: Sequence[str], progress: Progress) -> str:
    """Puts `file`, as gzip, into `folder`; returns the mirror that had it.

    Raises `DataError` if no mirror gives the published bytes (saying why, for each), or the folder
    can't be written to.
    """
    names = ", ".join(f"{each.name}.gz" for each in FILES)
    cure = f"check the network and try again, or put {names} from any copy of MNIST into {folder}"
    content, mirror = receive(
        f"{file.name}.gz",
        mirrors,
        lambda content, source: checked(file, content, source),
        bytes_max=file.size,
        progress=progress,
        cure=cure,
    )
    write(folder / f"{file.name}.gz", content)
    return mirror
