"""Files of a run's folder that are read and written in parts, for hosts without access to it.

```
DIR/snapshots/STAGE.0.safetensors.part    as its parts come; it takes its place once it is whole
DIR/logs/WORKER.log                       grows with each part
```
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from asyncdni.core.ledger import SNAPSHOTS
from asyncdni.errors import CheckpointError, RemoteProtocolError
from asyncdni.files import check_file, open_file
from asyncdni.messages import PART_BYTES, Part
from asyncdni.store.manifest import manifest_file
from asyncdni.store.tensors import sync_folder

__all__ = ["PartStore", "append_part", "part_from"]

_PART = ".part"
#: Ends the name of a folder of weights that are not committed yet: see `store.weights`.
_NEW = ".new"


@dataclass
class _Open:
    """A file that is being read, or written, from its beginning to its end."""

    path: Path
    file: IO[bytes]
    sha256: Any = field(default_factory=hashlib.sha256)


class PartStore:
    """The files of one run's folder. Each peer reads one at a time, and writes one.

    Which paths a peer may name is for the caller to know. `CheckpointError` is raised where this
    host's disk fails, `RemoteProtocolError` where a file is not what its sender says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading: dict[str | bytes, _Open] = {}  # by peer
        self._writing: dict[str, _Open] = {}

    def read(self, peer: str | bytes, incarnation: int, path: str, offset: int) -> Part | None:
        """Return the part of a file that begins at `offset`, for that peer; None where there is no
        such file, or nothing in it. It is opened at offset 0, and read in order from there on."""
        if offset == 0 and not self._open(peer, path):
            return None
        own = self._reading[peer]
        try:
            size = os.fstat(own.file.fileno()).st_size
            data = own.file.read(PART_BYTES)
        except OSError as error:
            raise CheckpointError(f"can't read {own.path}: {error.strerror}") from error
        if not data:
            raise CheckpointError(f"{own.path} has become shorter while it was read")
        own.sha256.update(data)
        digest = ""
        if offset + len(data) >= size:
            self._reading.pop(peer).file.close()
            digest = own.sha256.hexdigest()
        return Part(incarnation, path, offset, size, data, digest)

    def _open(self, peer: str | bytes, path: str) -> bool:
        left = self._reading.pop(peer, None)
        if left is not None:
            left.file.close()
        place = self._folder / path
        try:
            file = open_file(place)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CheckpointError(f"can't read {place}: {error.strerror}") from error
        if os.fstat(file.fileno()).st_size == 0:
            file.close()
            return False
        self._reading[peer] = _Open(place, file)
        return True

    def write(self, peer: str, part: Part) -> None:
        """Write a part that a peer has sent; the last one puts the file in its place.

        Parts come in order. After an error the rest of that file is passed over.
        """
        try:
            own = self._begin(peer, part) if part.offset == 0 else self._writing.get(peer)
            if own is None:
                return
            own.file.write(part.data)
            own.sha256.update(part.data)
            if part.sha256:
                self._finish(peer, own, part)
        except OSError as error:
            self._drop(peer)
            place = self._folder / part.path
            raise CheckpointError(f"can't write {place}: {error.strerror}") from error

    def close(self) -> None:
        """Close all files, and remove those that never became whole."""
        for own in self._reading.values():
            own.file.close()
        for peer in list(self._writing):
            self._drop(peer)

    def _begin(self, peer: str, part: Part) -> _Open:
        self._drop(peer)
        place = self._folder / part.path
        for folder in (place.parent.parent, place.parent):  # DIR itself must be there
            if folder != self._folder:
                folder.mkdir(exist_ok=True)
        if place.parent.name.endswith(_NEW):  # of an earlier attempt, cut short just before its end
            manifest_file(place.parent).unlink(missing_ok=True)
        unfinished = place.with_name(place.name + _PART)
        check_file(unfinished)
        own = self._writing[peer] = _Open(unfinished, open(unfinished, "wb"))  # noqa: SIM115
        return own

    def _finish(self, peer: str, own: _Open, part: Part) -> None:
        if own.sha256.hexdigest() != part.sha256:
            self._drop(peer)
            raise RemoteProtocolError(f"{part.path} has another sha256 than its sender says")
        durable = not part.path.startswith(f"{SNAPSHOTS}/")
        own.file.flush()
        if durable:
            os.fsync(own.file.fileno())
        own.file.close()
        os.replace(own.path, self._folder / part.path)
        del self._writing[peer]
        if durable:
            sync_folder(own.path.parent)

    def _drop(self, peer: str) -> None:
        own = self._writing.pop(peer, None)
        if own is not None:
            own.file.close()
            with contextlib.suppress(OSError):
                own.path.unlink()


# --- files that grow -----------------------------------------------------------------------------


def part_from(folder: Path, path: str, offset: int) -> Part | None:
    """Return at most `PART_BYTES` of the file `path` in `folder` from `offset` on; None where there
    is nothing more. Raises `CheckpointError` where this host's disk fails."""
    place = folder / path
    try:
        with open_file(place) as file:
            file.seek(offset)
            data = file.read(PART_BYTES)
    except OSError as error:
        raise CheckpointError(f"can't read {place}: {error.strerror}") from error
    return Part(0, path, offset, offset + len(data), data) if data else None


def append_part(folder: Path, part: Part) -> None:
    """Add a part at the end of a file in `folder`, whatever its offset at its sender. Raises
    `CheckpointError` where this host's disk fails."""
    place = folder / part.path
    try:
        check_file(place)
        place.parent.mkdir(exist_ok=True)
        with open(place, "ab") as file:
            file.write(part.data)
    except OSError as error:
        raise CheckpointError(f"can't write {place}: {error.strerror}") from error
