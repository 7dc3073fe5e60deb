"""Messages that are none: random bytes, and true messages that were damaged on purpose.

Damage changes bits, bytes, fields and frames at random. It does not forge: true messages are of an
incarnation that no run has, and no damage makes it one that a run may have. Who may send can forge
whatever it likes, and keys are what keeps such peers away, not the checks that are tried here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import msgspec
import numpy as np

from asyncdni.messages import Message
from asyncdni.wire.codec import BETWEEN_WORKERS, FROM_COORDINATOR, FROM_WORKER, encode

__all__ = ["make_nonsense", "templates"]

Frames = list[bytes]

#: No run comes that far.
INCARNATION = 2**50 + 2**40 + 12345
_PLAIN: dict[Any, Any] = {
    **{int: 7, float: 0.5, str: "text", bool: False, bytes: b"part"},
    list[str]: ["text"],
}
#: What a field may be replaced by. No small numbers: they could forge an incarnation.
_EXTREMES: tuple[Any, ...] = (
    *(-1, 2**63, 2**64 - 1, -(2**63), float("nan"), float("inf"), None, True, ""),
    *("x" * 5000, b"", [], {}, [[[[[]]]]], {"a": {"b": []}}, [None] * 5000),
)
#: Lengths that no memory holds, nesting without end, what MessagePack never uses.
_BOMBS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 20_000,
    b"\x81\xa1x" * 10_000,
    b"\xc1",
    b"",
)


def templates(workers: Sequence[str]) -> list[Frames]:
    """The frames of one true message of every kind, as from each of these workers."""
    kinds = sorted(FROM_WORKER | FROM_COORDINATOR | BETWEEN_WORKERS, key=lambda kind: kind.__name__)
    return [_frames(_example(kind, worker)) for kind in kinds for worker in workers]


def make_nonsense(seed: int, originals: Sequence[Frames]) -> Iterator[Frames]:
    """Frames without end, the same for the same seed."""
    rng = random.Random(seed)
    ways = (_noise, _bomb, _flipped, _cut, _replaced, _reframed)
    while True:
        frames = rng.choice(ways)(rng, list(rng.choice(originals)))
        yield frames or [b""]


def _example(kind: type[Message], worker: str) -> Message:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name == "tensors":
            values[field.name] = {"h": np.arange(32, dtype=np.float32).reshape(4, 8)}
        elif field.name in ("sender", "stage", "worker", "node"):
            values[field.name] = worker
        elif field.name == "incarnation":
            values[field.name] = INCARNATION
        elif field.required:
            values[field.name] = _PLAIN.get(field.type, None if field.name == "correct" else {})
    return kind(**values)


def _frames(message: Message) -> Frames:
    return [f if isinstance(f, bytes) else np.asarray(f).tobytes() for f in encode(message)]


# --- damage --------------------------------------------------------------------------------------


def _noise(rng: random.Random, frames: Frames) -> Frames:
    return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 4))]


def _bomb(rng: random.Random, frames: Frames) -> Frames:
    prefix = frames[0][: rng.randrange(len(frames[0]))] if rng.random() < 0.5 else b""
    return [prefix + rng.choice(_BOMBS), *frames[1:]]


def _flipped(rng: random.Random, frames: Frames) -> Frames:
    header = bytearray(frames[0])
    for _ in range(rng.randrange(1, 9)):
        header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)
    return [bytes(header), *frames[1:]]


def _cut(rng: random.Random, frames: Frames) -> Frames:
    """Bytes left out of, or put into, some frame."""
    at = rng.randrange(len(frames))
    frame = frames[at]
    begin = rng.randrange(len(frame) + 1)
    end = rng.randrange(begin, len(frame) + 1)
    between = rng.randbytes(rng.randrange(20)) if rng.random() < 0.5 else b""
    frames[at] = frame[:begin] + between + frame[end:]
    return frames


def _replaced(rng: random.Random, frames: Frames) -> Frames:
    fields = msgpack.unpackb(frames[0])
    for _ in range(rng.randrange(1, 3)):
        fields[rng.randrange(len(fields))] = rng.choice(_EXTREMES)
    return [msgpack.packb(fields), *frames[1:]]


def _reframed(rng: random.Random, frames: Frames) -> Frames:
    match rng.randrange(4):
        case 0:
            rng.shuffle(frames)
        case 1:
            frames.insert(rng.randrange(len(frames) + 1), rng.randbytes(rng.randrange(64)))
        case 2:
            frames.pop(rng.randrange(len(frames)))
        case _:
            frames *= rng.randrange(2, 5)
    return frames
