"""A text, any UTF-8 file, plain or gzip: the target of every step is the next character.

The vocabulary is every character of the file, test part included, in the order of code points; the
id of a character is its place there. The end of the text is the test part. Of B streams, stream b
reads the b-th of B equally long pieces; one sequence fills an epoch. Characters that don't fill a
window of all streams are left out at both ends of the text: each epoch starts at another character,
so that windows are not always cut at the same places.

The mean cross-entropy is in nats per character; divide it by ln 2 for bits per character.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Listed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncdni.config import Text
from asyncdni.data.download import data_folders, listed
from asyncdni.data.meta import Array, Meta
from asyncdni.data.mnist import decompress, is_gzip
from asyncdni.data.sequences import Sequence, Sequences, describe_windows
from asyncdni.errors import DataError
from asyncdni.files import open_file, read_file
from asyncdni.nn.streams import stream

__all__ = [
    "BYTES_MAX",
    "FILES",
    "Characters",
    "checksums",
    "decode",
    "describe",
    "encode",
    "find",
    "load",
    "read",
]

#: The largest size of the unpacked file; the numbers of a larger one would not fit into memory.
BYTES_MAX = 1 << 30

#: Files to look for where no path is given: plays of Shakespeare, 1,115,394 characters.
FILES = ("tinyshakespeare.txt", "tinyshakespeare.txt.gz")

_CODE_POINTS = 0x110000
#: How many characters, or bytes of the file, are translated at a time, which bounds the memory.
_CHUNK = 1 << 20


class Characters:
    """The task of predicting the next character, as a `sequences.Task`."""

    def __init__(self, train: Array, test: Array, *, streams: int, steps: int) -> None:
        """`train` and `test` are ids (N,), at least `shortest(streams, steps)` each."""
        self._parts = {False: train, True: test}
        self._streams = streams
        self._steps = steps

    def windows(self, epoch: int | None) -> int:
        return _windows(len(self._parts[epoch is None]), self._streams, self._steps)

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        """Return x and y (B, L), views of the text; y is one character further on."""
        ids = self._parts[epoch is None]
        length = self.windows(epoch) * self._steps
        used = self._streams * length
        start = 0
        if epoch is not None:
            start = int(stream(seed, "data", "text start", epoch).integers(len(ids) - used))
        shape = self._streams, length
        return Sequence(
            ids[start : start + used].reshape(shape),
            ids[start + 1 : start + used + 1].reshape(shape),
        )


def shortest(streams: int, steps: int) -> int:
    """Return how many characters one window of all streams takes, wherever it starts."""
    return (streams + 1) * steps


def _windows(characters: int, streams: int, steps: int) -> int:
    # One window's steps are spare, so that an epoch may start anywhere in the first window and the
    # last step has a target.
    return (characters - steps) // (streams * steps)


class _Parts(NamedTuple):
    vocabulary: str
    train: Array  # ids (N,)
    test: Array


def describe(data: Text) -> Meta:
    """Return the shapes and the vocabulary: windows (T, V) of one-hot vectors or (T,) of ids, and
    one of V classes per step.

    Reads the file. Raises `DataError` if it is missing, empty, not UTF-8 or too short.
    """
    return _meta(data, _parts(data, find(data.path)))


def load(data: Text, seed: int) -> Sequences:
    """Load the windows of the text. Raises `DataError` as `describe` does."""
    path = find(data.path)
    parts = _parts(data, path)
    streams = data.batch_size
    task = Characters(parts.train, parts.test, streams=streams, steps=data.window)
    return Sequences(
        str(path), _meta(data, parts), task, streams=streams, ahead=data.ahead, seed=seed
    )


def checksums(data: Text) -> dict[str, str]:
    """Return the SHA-256 of the unpacked text. Raises `DataError` as `describe` does."""
    path, found = find(data.path), hashlib.sha256()
    with _explained(path):
        for content in _contents(path):
            found.update(content)
    return {"text": f"sha256 {found.hexdigest()}"}


def find(path: str) -> Path:
    """Return the file at `path` or, where that is empty, the one of `FILES` in the data folders.

    Raises `DataError` if there is none."""
    if path:
        return Path(path)
    folders = data_folders("", "text")
    found = (folder / name for folder in folders for name in FILES)
    for candidate in found:
        if candidate.is_file():
            return candidate
    raise DataError(
        f"no {FILES[0]} (plain or .gz) in any of {listed(folders)}; fetch it with "
        "`asyncdni data shakespeare`, or name a text of your own with data.path"
    )


def read(path: Path) -> str:
    """Read the whole file as text. Raises `DataError` if it is missing, empty or not UTF-8."""
    try:
        text = _unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is {error.object[error.start]:#04x}, no UTF-8; "
            "expected a text file in UTF-8: convert it"
        ) from None
    if not text:
        raise DataError(f"{path}: is empty; expected a text to learn from")
    return text


def _unpacked(path: Path) -> bytes:
    try:
        return decompress(read_file(path), str(path), BYTES_MAX)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); expected a text file") from None


def _contents(path: Path) -> Iterator[bytes]:
    """Yield the unpacked file in pieces, up to one byte more than the largest size."""
    with open_file(path) as file:
        packed = is_gzip(file.read(2))
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        left = BYTES_MAX + 1
        while content := stream.read(min(_CHUNK, left)):
            yield content
            left -= len(content)
        if not left:
            raise EOFError("too long")


def _pieces(path: Path) -> Iterator[str]:
    """Yield the text of the file in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for content in _contents(path):
        yield decoder.decode(content)
    yield decoder.decode(b"", final=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a piece of the file into the `DataError` that reading it whole
    gives, which tells the place in the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        read(path)
        raise DataError(f"{path}: has changed while it was read ({error})") from None


def encode(text: str, vocabulary: str) -> Array:
    """Return the ids (N,) of characters, of the smallest unsigned type that holds them.

    Raises `DataError` for a character that the vocabulary does not have."""
    pieces = (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))
    return _encoded(pieces, len(text), vocabulary)


def _encoded(pieces: Iterable[str], count: int, vocabulary: str) -> Array:
    """Return what `encode` does of a text of `count` characters, given in pieces."""
    table = np.full(_CODE_POINTS, -1, np.int32)
    table[_code_points(vocabulary)] = np.arange(len(vocabulary))
    ids = np.empty(count, np.min_scalar_type(max(len(vocabulary) - 1, 0)))
    start = 0
    for part in filter(None, pieces):
        found = table[_code_points(part)]
        if found.min() < 0:
            raise DataError(
                f"{part[int(found.argmin())]!r} is not among the {len(vocabulary)} characters that "
                "were trained on; expected a text of these alone"
            )
        ids[start : start + len(part)] = found
        start += len(part)
    return ids


def decode(ids: Listed[int] | Array, vocabulary: str) -> str:
    """Return the text that ids stand for. Raises `IndexError` for an id that is too large."""
    return "".join(vocabulary[index] for index in ids)


def _parts(data: Text, path: Path) -> _Parts:
    with _explained(path):
        vocabulary, count = _vocabulary(_pieces(path))
        if not count:
            raise EOFError("empty")
        ids = _encoded(_pieces(path), count, vocabulary)
    border = len(ids) - round(data.test_part * len(ids))
    train, test = ids[:border], ids[border:]
    if data.validation:
        train, test = train[: -data.validation], train[-data.validation :]
    least = shortest(data.batch_size, data.window)
    for name, part in (("train", train), ("test", test)):
        if len(part) < least:
            held = "validation" if data.validation and name == "test" else "test_part"
            raise DataError(
                f"{path}: too short: {len(ids)} characters leave {len(part)} to {name} on; "
                f"expected at least {least} for {data.batch_size} streams in windows of "
                f"{data.window}: lower data.batch_size or data.window, or change data.{held}"
            )
    return _Parts(vocabulary, train, test)


def _vocabulary(pieces: Iterable[str]) -> tuple[str, int]:
    """Return the different characters of a text in the order of code points, and how many
    characters it has. Each is marked in a table, as sorting a long text takes long."""
    seen = np.zeros(_CODE_POINTS, np.bool_)
    count = 0
    for piece in pieces:
        seen[_code_points(piece)] = True
        count += len(piece)
    return "".join(map(chr, np.flatnonzero(seen).tolist())), count


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.intp, copy=False)


def _meta(data: Text, parts: _Parts) -> Meta:
    classes, steps = len(parts.vocabulary), data.window
    meta = Meta(
        input_shape=(steps, classes) if data.encoding == "one_hot" else (steps,),
        targets="classes",
        outputs=classes,
        train_samples=_windows(len(parts.train), data.batch_size, steps),
        test_samples=_windows(len(parts.test), data.batch_size, steps),
        steps=steps,
        vocabulary=parts.vocabulary,
    )
    return describe_windows(meta, streams=data.batch_size, ahead=data.ahead, masked=False)
