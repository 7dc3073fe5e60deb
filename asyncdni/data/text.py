"""The next character, at every step of a text: any UTF-8 file, plain or gzip.

The vocabulary is every character of the file, test part included, in the order of code points; an
id is a place in it. The end of the text is the test part. Of B streams, stream b reads the b-th of
B equally long pieces; one sequence fills an epoch. What does not fill a window of all streams is
left out, at both ends of the text: each epoch starts at another character, so that windows are not
cut at the same places for ever.

A mean loss of cross-entropy, in nats a character, is 1/ln 2 times as much in bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncdni.config import Text
from asyncdni.data.download import data_folders, listed
from asyncdni.data.meta import Array, Meta
from asyncdni.data.mnist import decompress
from asyncdni.data.sequences import Sequence, Sequences, describe_windows
from asyncdni.errors import DataError
from asyncdni.files import read_file
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

#: Of the file, unpacked: more would not fit into memory as numbers.
BYTES_MAX = 1 << 30

#: Looked for where no path is given: plays of Shakespeare, 1,115,394 characters.
FILES = ("tinyshakespeare.txt", "tinyshakespeare.txt.gz")

_CODE_POINTS = 0x110000
#: Characters that are translated together: bounds the memory of it.
_CHUNK = 1 << 20


class Characters:
    """The task: see `sequences.Task`."""

    def __init__(self, train: Array, test: Array, *, streams: int, steps: int) -> None:
        """`train`, `test`: ids (N,), at least `shortest(streams, steps)` of each."""
        self._parts = {False: train, True: test}
        self._streams = streams
        self._steps = steps

    def windows(self, epoch: int | None) -> int:
        return _windows(len(self._parts[epoch is None]), self._streams, self._steps)

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        """x, y (B, L): views of the text, y one character further on."""
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
    """Characters that one window of all streams takes, whatever it starts at."""
    return (streams + 1) * steps


def _windows(characters: int, streams: int, steps: int) -> int:
    # A start anywhere in the first window, and the target of the last step, are to spare.
    return (characters - steps) // (streams * steps)


class _Parts(NamedTuple):
    vocabulary: str
    train: Array  # ids (N,)
    test: Array


def describe(data: Text) -> Meta:
    """Windows (T, V) of one-hot vectors or (T,) of ids, one of V classes a step, the vocabulary.

    Reads the file. Raises `DataError` for one that is missing, empty, no UTF-8 or too short.
    """
    return _meta(data, _parts(data, find(data.path)))


def load(data: Text, seed: int) -> Sequences:
    """The windows of the text; raises `DataError` as `describe` does."""
    path = find(data.path)
    parts = _parts(data, path)
    streams = data.batch_size
    task = Characters(parts.train, parts.test, streams=streams, steps=data.window)
    return Sequences(
        str(path), _meta(data, parts), task, streams=streams, ahead=data.ahead, seed=seed
    )


def checksums(data: Text) -> dict[str, str]:
    """The SHA-256 of the unpacked text. Raises `DataError` as `describe` does."""
    return {"text": f"sha256 {hashlib.sha256(_unpacked(find(data.path))).hexdigest()}"}


def find(path: str) -> Path:
    """The file at `path` or, where that is empty, the one of `FILES` in the data folders.

    Raises `DataError` for none."""
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
    """The whole file as text. Raises `DataError` for one that is missing, empty or no UTF-8."""
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


def encode(text: str, vocabulary: str) -> Array:
    """Ids (N,), of the smallest unsigned type that holds them.

    Raises `DataError` for a character that the vocabulary does not have."""
    table = np.full(_CODE_POINTS, -1, np.int32)
    table[_code_points(vocabulary)] = np.arange(len(vocabulary))
    ids = np.empty(len(text), np.min_scalar_type(max(len(vocabulary) - 1, 0)))
    for start in range(0, len(text), _CHUNK):
        part = text[start : start + _CHUNK]
        found = table[_code_points(part)]
        if found.min() < 0:
            raise DataError(
                f"{part[int(found.argmin())]!r} is not among the {len(vocabulary)} characters that "
                "were trained on; expected a text of these alone"
            )
        ids[start : start + _CHUNK] = found
    return ids


def decode(ids: Listed[int] | Array, vocabulary: str) -> str:
    """The text that ids stand for. Raises `IndexError` for an id that is none."""
    return "".join(vocabulary[index] for index in ids)


def _parts(data: Text, path: Path) -> _Parts:
    text = read(path)
    vocabulary = _vocabulary(text)
    ids = encode(text, vocabulary)
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


def _vocabulary(text: str) -> str:
    """Found by marking, as sorting a long text takes long."""
    seen = np.zeros(_CODE_POINTS, np.bool_)
    for start in range(0, len(text), _CHUNK):
        seen[_code_points(text[start : start + _CHUNK])] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))


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
