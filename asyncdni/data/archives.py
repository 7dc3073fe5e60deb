"""Downloads data sets that come as one file: CIFAR-10's archive, and Shakespeare's plays as a text.

The SHA-256 of the bytes must be that of the published file. Only expected files are taken out of an
archive, by their names, and never to a path that the archive gives.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from asyncdni.data import cifar10, text
from asyncdni.data.download import Progress, base_folder, receive, write
from asyncdni.errors import DataError

__all__ = ["ARCHIVES", "Archive", "fetch", "folder_of", "held"]


class Archive(NamedTuple):
    """One published file, and the files that are made of it."""

    name: str  # of the file at its mirrors
    mirrors: tuple[str, ...]  # URLs of the folders that hold it
    sha256: str
    bytes_max: int  # size unpacked
    subfolder: str  # where its files are kept in the data folder
    sizes: Mapping[str, int]  # in bytes, of the files that are made of it, by name
    unpack: Callable[[bytes, Mapping[str, int]], Iterator[tuple[str, bytes]]]


def folder_of(archive: Archive) -> Path:
    """Return the folder for downloaded files: in $ASYNCDNI_DATA, or else in the user's cache
    folder."""
    return base_folder() / archive.subfolder


def held(archive: Archive, folder: Path) -> bool:
    """Return whether all files of `archive` are in `folder` with the right sizes; no checksums of
    the unpacked files are published."""
    paths = {folder / name: size for name, size in archive.sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def fetch(archive: Archive, folder: Path, progress: Progress) -> str:
    """Download an archive and put its files into `folder`; returns the mirror that had it.

    Raises `DataError` if no mirror gives the published bytes, or the folder can't be written to.
    """

    def check(content: bytes, source: str) -> None:
        given = hashlib.sha256(content).hexdigest()
        if given != archive.sha256:
            raise DataError(f"{source}: sha256 is {given}; expected {archive.sha256}")

    content, mirror = receive(
        archive.name,
        archive.mirrors,
        check,
        bytes_max=archive.bytes_max,
        progress=progress,
        cure=(
            f"check the network and try again, or put {', '.join(archive.sizes)} from any copy "
            f"into {folder}"
        ),
    )
    for name, part in archive.unpack(content, archive.sizes):
        write(folder / name, part)
    return mirror


def _members(content: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Return the expected files of a .tar.gz, whichever of its folders they are in.

    Raises `DataError` for an archive that is damaged or does not have all of them."""
    missing = dict(sizes)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or missing.get(name) != member.size:
                    continue
                part = archive.extractfile(member)
                assert part is not None, "a member that is a file has contents"
                yield name, part.read()
                del missing[name]
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"damaged archive ({error}); try again") from None
    if missing:
        raise DataError(f"the archive lacks {', '.join(missing)}; expected them in it")


def _as_it_is(content: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    for name in sizes:
        yield name, content


_CIFAR10_FILE_BYTES = 10_000 * cifar10.RECORD_BYTES

#: By the name that `asyncdni data` takes. Sources: "The CIFAR-10 dataset" (Krizhevsky 2009);
#: char-rnn's sample of Shakespeare's plays (Karpathy 2015), which are in the public domain.
ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        6 * _CIFAR10_FILE_BYTES,
        "cifar10",
        dict.fromkeys((*cifar10.FILES, cifar10.TEST_FILE), _CIFAR10_FILE_BYTES),
        _members,
    ),
    "shakespeare": Archive(
        "input.txt",
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
        "text",
        {text.FILES[0]: 1_115_394},
        _as_it_is,
    ),
}
