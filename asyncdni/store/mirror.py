"""A copy of a run's folder at a URL of fsspec (`s3://…`, `gs://…`, `file://…`, `memory://`).

```
DIR/checkpoints/NUMBER ──► a thread ──► URL/checkpoints/NUMBER/STAGE.safetensors, manifest.json last
DIR/best, DIR/final    ──► …        ──► the manifest is removed first and written last
DIR/summary.json       ──► …        ──► when the run has ended, and all else is there
```

The run itself reads and writes its own folder alone, so a slow or broken store never holds up
training. As in the folder, what has no manifest is no checkpoint, and what has no summary is no
complete run: nothing half copied is taken for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from asyncdni.errors import CheckpointError, ConfigError, legible
from asyncdni.files import LOCK, is_url, open_file
from asyncdni.store.checkpoint import next_cut
from asyncdni.store.claims import OWNERS
from asyncdni.store.manifest import Manifest, WeightsManifest, manifest_file, read_manifest
from asyncdni.store.run import (
    ARRAYS,
    CHECKPOINTS,
    DATA,
    EXPERIMENT,
    INIT,
    METRICS,
    REPORTS,
    SNAPSHOTS,
    SUMMARY,
)

__all__ = ["Mirror", "copied_here", "fetch_run", "run_here"]

#: How much of a file is in memory at a time, on its way to the store or back.
_CHUNK_BYTES = 8 << 20
_MANIFEST = manifest_file(Path()).name
_WEIGHTS = ("best", "final")
#: What is no part of a run that has ended, or is copied in an order of its own.
_LEFT_OUT = {LOCK, OWNERS, SNAPSHOTS, CHECKPOINTS, SUMMARY, REPORTS, *_WEIGHTS}
_CUT_FOLDER = re.compile(rf"{CHECKPOINTS}/([0-9]{{6,18}})/")
_CUT = re.compile(rf"{_CUT_FOLDER.pattern}{re.escape(_MANIFEST)}")
_CHARACTERS_MAX = 300
#: No name that leaves the folder that it is fetched to.
_NAME = re.compile(r"(?!\.)[^/\0]+(/(?!\.)[^/\0]+)*")


class _Place:
    """A folder at a URL. What fails there is raised as `CheckpointError`, in one line."""

    def __init__(self, url: str, *, option: str) -> None:
        """`option` names the URL in messages. Raises `ConfigError` where fsspec, or what it needs
        for such a URL, is not installed, or it knows no such URL."""
        self.name = f"{option} {url}"
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ConfigError(
                f"{self.name} needs fsspec, which is not installed: pip install 'asyncdni[fsspec]'"
            ) from error
        try:
            self.fs, self.root = url_to_fs(url, use_listings_cache=False)
        except Exception as error:  # each kind of store fails in its own way, here and below
            raise ConfigError(f"{self.name}: {_one_line(error)}") from error

    def at(self, name: str) -> str:
        """The path of a file as the store knows it."""
        return posixpath.join(self.root, name)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Raise `CheckpointError` for whatever goes wrong in the block."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{self.name}: can't {what}: {_one_line(error)}") from error

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of that name."""
        with self.trying(f"look for {name}"):
            return bool(self.fs.exists(self.at(name)))

    def write(self, source: Path, name: str) -> str:
        """Copy a file of this machine there, part by part; return the SHA-256 of what was copied.

        Raises `FileNotFoundError` where it is gone from this machine.
        """
        digest = hashlib.sha256()
        with open_file(source) as file, self.trying(f"write {name}"):
            self.fs.makedirs(posixpath.dirname(self.at(name)), exist_ok=True)
            with self.fs.open(self.at(name), "wb", block_size=_CHUNK_BYTES) as there:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    there.write(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        with self.trying(f"remove {name}"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def files(self) -> list[str]:
        """The names of all files, relative to the folder; none where there is no folder. Raises
        `CheckpointError` also for names that no run has."""
        root, names = self.root.rstrip("/"), []
        with self.trying("list its files"), contextlib.suppress(FileNotFoundError):
            names = [path.removeprefix(root).lstrip("/") for path in self.fs.find(root)]
        for name in names:
            if not _NAME.fullmatch(name):
                raise CheckpointError(f"{self.name}: {name!r} is no file of a run")
        return names

    def read(self, name: str, target: Path) -> None:
        """Copy a file from there to this machine, part by part."""
        with self.trying(f"read {name}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.fs.open(self.at(name), "rb") as file, open(target, "xb") as own:
                while chunk := file.read(_CHUNK_BYTES):
                    own.write(chunk)


class Mirror:
    """Copies the folder of a run to its store, in a thread of its own, while the run goes on.

    A store that fails meanwhile is only told of, by `note`: all is in the folder, and the next
    checkpoint may get through. Only `finish` raises that, since then the weights are not where they
    were asked for.
    """

    def __init__(self, folder: Path, url: str, keep: int, note: Callable[[str], None]) -> None:
        """`keep` is how many checkpoints there are at most. Raises `ConfigError` where fsspec is
        not installed, or knows no such URL."""
        self._folder = folder
        self._keep = keep
        self._place = _Place(url, option="run.store")
        self._note = note
        self._changed = threading.Condition()
        self._waiting: dict[str, str] = {}  # what is to be copied, of each kind only the newest
        self._copying = False
        self._copied: set[str] = set()  # of what does not change
        self._failures: list[str] = []
        self._thread = threading.Thread(target=self._work, daemon=True)

    def begin(self, *, resumed: bool) -> None:
        """Copy the experiment, which shows whether the store can be written, and start the thread.

        Raises `ConfigError` for one with another run, or in which this one has gone on elsewhere,
        and `CheckpointError` for one that can't be read or written.
        """
        name = self._place.name
        if not resumed and self._place.holds(EXPERIMENT):
            raise ConfigError(
                f"{name}: it holds a run already; go on with that by --resume URL, or name "
                "another URL"
            )
        there = max(_whole_cuts(self._place.files()), default=0) if resumed else 0
        here = next_cut(self._folder / CHECKPOINTS) - 1
        if there > here:
            raise ConfigError(
                f"{name}: the run has gone on elsewhere, to checkpoint {there}; {self._folder} has "
                f"{here}: go on with it by --resume URL"
            )
        self._place.remove(SUMMARY)  # it is not complete any more
        self._place.write(self._folder / EXPERIMENT, EXPERIMENT)
        self._thread.start()

    def committed(self, tag: str) -> None:
        """Have the thread copy "checkpoints/000012", "best" or "final", which has become whole."""
        with self._changed:
            self._waiting[tag.partition("/")[0]] = tag
            self._changed.notify_all()
        self._tell()

    def settle(self) -> None:
        """Wait until all that is whole has been copied, and tell of what could not be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._copying)
        self._tell()

    def finish(self) -> None:
        """Copy the folder of a run that has ended, its summary last. Raises `CheckpointError`."""
        self.settle()
        with self._place.trying("copy the run"):
            for tag in _WEIGHTS:
                self._copy_whole(tag)
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder)
                if path.is_file() and name.parts[0] not in _LEFT_OUT and path.suffix != ".part":
                    self._place.write(path, name.as_posix())
            self._place.remove(REPORTS)  # only a run that may go on needs them
            self._place.write(self._folder / SUMMARY, SUMMARY)

    def _tell(self) -> None:
        while self._failures:
            self._note(f"{self._failures.pop(0)}; all is in {self._folder}")

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._copying = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                tag = self._waiting.pop(next(iter(self._waiting)))
                self._copying = True
            try:
                with self._place.trying(f"copy {tag}"):
                    self._copy(tag)
            except CheckpointError as error:
                self._failures.append(str(error))

    def _copy(self, tag: str) -> None:
        """Copy what has become whole; then remove older checkpoints, also those half copied."""
        self._copy_whole(tag)
        if not tag.startswith(CHECKPOINTS):
            return
        names = self._place.files()
        kept = sorted(_whole_cuts(names), reverse=True)[: self._keep]
        found = (_CUT_FOLDER.match(name) for name in names)
        for number in {int(one[1]) for one in found if one} - set(kept):
            if kept and number < kept[0]:
                self._place.remove(f"{CHECKPOINTS}/{number:06d}/{_MANIFEST}")
                self._place.remove(f"{CHECKPOINTS}/{number:06d}")

    def _copy_whole(self, tag: str) -> None:
        """Copy a checkpoint or weights, the manifest last; nothing where a newer one has taken its
        place in the folder meanwhile, which comes next."""
        own, is_cut = self._folder / tag, tag.startswith(CHECKPOINTS)
        with contextlib.suppress(FileNotFoundError):
            files = _named_files(own, is_cut) if manifest_file(own).exists() else {}
            self._place.remove(f"{tag}/{_MANIFEST}")
            for stage, digest in files.items():
                name = f"{stage}.safetensors"
                if self._place.write(own / name, f"{tag}/{name}") != digest:
                    return
            if is_cut:
                self._copy_records()
            if files:
                self._place.write(manifest_file(own), f"{tag}/{_MANIFEST}")

    def _copy_records(self) -> None:
        """Copy what a run needs beside a checkpoint to go on."""
        begun = {DATA, ARRAYS, *(f"{INIT}/{one.name}" for one in (self._folder / INIT).glob("*"))}
        for name in [*sorted(begun - self._copied), METRICS, REPORTS]:
            with contextlib.suppress(FileNotFoundError):
                self._place.write(self._folder / name, name)
                self._copied.add(name)


def _named_files(folder: Path, is_cut: bool) -> dict[str, str]:
    """The files that the manifest of a checkpoint, or of weights, names, and their digests."""
    if is_cut:
        return read_manifest(folder, Manifest).files
    return read_manifest(folder, WeightsManifest).files


def _whole_cuts(names: Iterable[str]) -> set[int]:
    """The numbers of the checkpoints with a manifest."""
    found = (_CUT.fullmatch(name) for name in names)
    return {int(one[1]) for one in found if one}


# --- from the store to this machine --------------------------------------------------------------


def fetch_run(url: str, folder: Path, *, option: str = "run.store") -> bool:
    """Copy the run at `url`, if there is one, to `folder`, which must be empty or not there, but
    checkpoints that are not whole. Tell whether there was one.

    Raises `ConfigError` and `CheckpointError`, naming the URL after `option`; `folder` is as before
    then.
    """
    place = _Place(url, option=option)
    names = place.files()
    if EXPERIMENT not in names:
        return False
    _fetch(place, names, folder)
    return True


def run_here(text: str | os.PathLike[str], parent: Path = Path("runs")) -> Path:
    """Return the folder of the run that --resume names: that of a URL is first copied to a new one
    in `parent`. Raises `ConfigError` and `CheckpointError`."""
    if not is_url(text):
        return Path(text)
    url = str(text)
    name = posixpath.basename(url.rstrip("/")) or "run"
    folders = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    folder = next(one for one in folders if not one.exists())
    if not fetch_run(url, folder, option="--resume"):
        raise ConfigError(f"--resume {url}: there is no run in it: it has no {EXPERIMENT}")
    return folder


@contextlib.contextmanager
def copied_here(text: str, option: str) -> Iterator[Path]:
    """Yield the path that leads to the file or folder of weights `text`: that of a URL is copied to
    a temporary folder for as long. Raises `ConfigError` and `CheckpointError`."""
    if not is_url(text):
        yield Path(text)
        return
    with tempfile.TemporaryDirectory(prefix="asyncdni-") as temporary:
        place, into = _Place(text, option=option), Path(temporary) / "weights"
        with place.trying("read it"):
            is_file = place.fs.isfile(place.root)
        if is_file:
            place.read("", into)
        elif names := [one for one in place.files() if not one.startswith(f"{CHECKPOINTS}/")]:
            _fetch(place, names, into)
        else:
            raise CheckpointError(f"{place.name}: nothing is there")
        yield into


def _fetch(place: _Place, names: list[str], folder: Path) -> None:
    """Copy files to a folder, all or none."""
    whole = _whole_cuts(names)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for name in names:
            cut = _CUT_FOLDER.match(name)
            if cut is None or int(cut[1]) in whole:
                place.read(name, part / name)
        os.rename(part, folder)
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return legible(text, _CHARACTERS_MAX)
