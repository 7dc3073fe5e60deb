"""Encode messages as frames and decode them: see docs/protocol.md. It has no sockets; the simulator
uses it too.

Frame 0 is a MessagePack array `[tag, field, …]` with the message's fields in order. Four messages
carry tensors; their field `tensors` is a map from name to `[dtype, shape]`, and frames 1, 2, … hold
the tensors' bytes in the map's order: C order, little endian, never copied here. A tensor that was
encoded (see `encodings`) is described by `["float32", shape, encoding]` and decoded here.

Decoding any bytes gives a `Message` or raises `RemoteProtocolError`. Encoding a message that no
peer would accept raises `LocalProtocolError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgpack
import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncdni import messages
from asyncdni.config import Limits
from asyncdni.encodings import ENCODINGS, Encoded
from asyncdni.errors import LocalProtocolError, RemoteProtocolError, legible
from asyncdni.messages import PART_BYTES, Message

__all__ = [
    "BETWEEN_WORKERS",
    "FROM_AGENT",
    "FROM_COORDINATOR",
    "FROM_WORKER",
    "HEADER_BYTES_MAX",
    "TO_AGENT",
    "Buffer",
    "decode",
    "decode_from",
    "encode",
    "size",
]

Buffer = bytes | memoryview | NDArray[Any]

HEADER_BYTES_MAX = 1 << 20  # an experiment or a traceback; tensors are not in the header
_ITEMS_MAX = 4096  # of one array or map in a header
_TENSORS_MAX = 256  # of one message
_NAME_MAX = 256  # characters of a tensor's name
_DIMENSIONS_MAX = 8
_QUOTED_MAX = 200  # characters of what is wrong with a message

#: Which messages each kind of peer may send. The transports refuse all others.
FROM_WORKER: frozenset[type[Message]] = frozenset(
    {
        messages.Hello,
        messages.Ready,
        messages.Unheard,
        messages.Drained,
        messages.Evaluated,
        messages.Saved,
        messages.Report,
        messages.Guarded,
        messages.Failed,
        messages.Built,
        messages.Accused,
        messages.Fetch,
        messages.Part,
        messages.Taken,
        messages.Beat,
    }
)
FROM_COORDINATOR: frozenset[type[Message]] = frozenset(
    {
        messages.Welcome,
        messages.Introduce,
        messages.Refused,
        messages.Connect,
        messages.Start,
        messages.Evaluate,
        messages.Save,
        messages.Scored,
        messages.Resume,
        messages.Leave,
        messages.Lost,
        messages.Note,
        messages.Steer,
        messages.Rejoin,
        messages.Close,
        messages.Part,
        messages.Taken,
        messages.Missing,
        messages.Abort,
        messages.Beat,
    }
)
BETWEEN_WORKERS: frozenset[type[Message]] = frozenset(
    {
        messages.Greeting,
        messages.Activation,
        messages.Gradient,
        messages.Barrier,
        messages.Credit,
        messages.Shared,
        messages.Skipped,
        messages.Weights,
    }
)
FROM_AGENT: frozenset[type[Message]] = frozenset(
    {messages.Enrol, messages.Ended, messages.Failed, messages.Part, messages.Beat}
)
TO_AGENT: frozenset[type[Message]] = frozenset(
    {
        messages.Enrolled,
        messages.Introduce,
        messages.Engage,
        messages.Dismiss,
        messages.Refused,
        messages.Taken,
        messages.Beat,
    }
)

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in FROM_WORKER | FROM_COORDINATOR | BETWEEN_WORKERS | FROM_AGENT | TO_AGENT
}
# Where `tensors` stands in the header, for the messages that have it.
_TENSORS_AT: dict[type[Message], int] = {
    kind: 1 + kind.__struct_fields__.index("tensors") for kind in get_args(messages.WithTensors)
}

_NAME, _ADDRESS, _TEXT, _TRACE = 256, 512, 4096, 65536  # characters
_LIST_MAX = 64  # entries of a list of texts
#: Text fields that may be shown or recorded, and how many characters of each are kept. Names in a
#: run are shorter than that, so a name that is cut was unknown anyway.
_TEXTS: dict[type[Message], tuple[tuple[str, int], ...]] = {
    messages.Hello: (
        ("stage", _NAME),
        ("address", _ADDRESS),
        ("host", _NAME),
        ("versions", _NAME),
    ),
    messages.Built: (("notes", _TEXT), ("sources", _NAME)),
    messages.Unheard: (("workers", _NAME),),
    messages.Drained: (("kind", _NAME),),
    messages.Evaluated: (("stage", _NAME), ("metrics", _NAME)),
    messages.Saved: (("tag", _NAME),),
    messages.Report: (("counters", _NAME),),
    messages.Accused: (("worker", _NAME), ("text", _TEXT)),
    messages.Failed: (("kind", _NAME), ("text", _TEXT), ("trace", _TRACE)),
    messages.Refused: (("kind", _NAME), ("text", _TEXT)),
    messages.Abort: (("text", _TEXT),),
    messages.Fetch: (("path", _NAME),),
    messages.Part: (("path", _NAME), ("sha256", _NAME)),
    messages.Taken: (("path", _NAME),),
    messages.Missing: (("path", _NAME),),
    messages.Enrol: (("digest", _NAME), ("host", _NAME)),
    messages.Ended: (("worker", _NAME), ("last_lines", _TEXT)),
    messages.Dismiss: (("text", _TEXT),),
    messages.Lost: (("worker", _NAME),),
    messages.Note: (("text", _TEXT),),
    messages.Steer: (("latency_s", _NAME),),
    messages.Greeting: (("sender", _NAME), ("to", _NAME)),
    messages.Activation: (("sender", _NAME),),
    messages.Gradient: (("sender", _NAME),),
    messages.Shared: (("sender", _NAME),),
    messages.Barrier: (("sender", _NAME), ("kind", _NAME)),
    messages.Credit: (("sender", _NAME), ("node", _NAME)),
    messages.Skipped: (("sender", _NAME),),
    messages.Weights: (("sender", _NAME),),
}

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    )
}
_DTYPE_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _DTYPES.items()}

# All that the libraries raise on bad input; MemoryError comes from an absurd length.
_BAD = (
    ValueError,  # and UnicodeError
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    BufferError,
    msgpack.UnpackException,
    msgspec.MsgspecError,
)


def encode(message: Message) -> list[Buffer]:
    """Return the frames of a message: its header, then its tensors (NumPy arrays, or `Encoded`
    ones), not copied.

    Raises `LocalProtocolError` for what a peer would refuse: a field of the wrong type, a tensor
    that is no C-contiguous array of a known dtype, a header over `HEADER_BYTES_MAX`.
    """
    kind = type(message)
    frames: list[Buffer] = [b""]
    try:
        fields = [kind.__name__, *msgspec.structs.astuple(message)]
        at = _TENSORS_AT.get(kind)
        if at is not None:
            fields[at] = _describe(fields[at], frames)
        header = msgpack.packb(fields)
        # Fields are not type-checked when a message is made. Reading the header back costs less
        # than a microsecond and keeps every bug on this side of the wire.
        msgspec.convert(_unpack(header), _KINDS[kind.__name__])
    except KeyError:
        raise LocalProtocolError(f"{kind.__name__} is not a message") from None
    except _BAD as error:
        raise LocalProtocolError(f"{kind.__name__} can't be sent: {error}") from error
    frames[0] = header
    return frames


def decode(frames: Sequence[Buffer], limits: Limits) -> Message:
    """Return the message in `frames`; its tensors are read-only views of them, encoded ones new
    arrays.

    Raises `RemoteProtocolError` for anything that is not a message within `limits`.
    """
    try:
        if not frames:
            raise ValueError("no frames")
        total = size(frames)
        if total > limits.message_bytes:
            raise ValueError(f"{total} bytes, at most {limits.message_bytes} are allowed")
        fields = _unpack(frames[0])
        kind = _KINDS[fields[0]]
        at = _TENSORS_AT.get(kind)
        if at is not None:
            fields[at] = _attach(fields[at], frames, limits.message_bytes)
        elif len(frames) != 1:
            raise ValueError(f"{kind.__name__} carries no tensors, but has {len(frames)} frames")
        return msgspec.convert(fields, kind)
    except (KeyError, IndexError):
        raise RemoteProtocolError(
            "bad message: a header must be an array that starts with a known tag and is complete"
        ) from None
    except _BAD as error:
        # The text may quote the peer, so it is cut to a line or two.
        raise RemoteProtocolError(
            f"bad message: {legible(str(error), _QUOTED_MAX) or type(error).__name__}"
        ) from error


def decode_from(
    frames: Sequence[Buffer], allowed: frozenset[type[Message]], limits: Limits
) -> Message:
    """Decode a message of one of the `allowed` kinds, and raise `RemoteProtocolError` for others.

    The message's texts are made printable and cut, so they may be shown and recorded.
    """
    message = decode(frames, limits)
    if type(message) not in allowed:
        raise RemoteProtocolError(f"{type(message).__name__} may not come from this peer")
    return _with_legible_texts(message)


def _with_legible_texts(message: Message) -> Message:
    changed = {}
    for name, most in _TEXTS.get(type(message), ()):
        given = getattr(message, name)
        if type(given) is str:
            kept: Any = legible(given, most, lines=name == "trace")
        elif type(given) is list:
            kept = [legible(text, most) for text in given[:_LIST_MAX]]
        else:
            kept = {legible(key, most): _legible(one, most) for key, one in given.items()}
        if kept != given:
            changed[name] = kept
    return msgspec.structs.replace(message, **changed) if changed else message


def _legible(value: Any, most: int) -> Any:
    return legible(value, most) if type(value) is str else value


def size(frames: Sequence[Buffer]) -> int:
    """Return the number of bytes in all frames."""
    total = 0
    for frame in frames:
        total += len(frame) if isinstance(frame, bytes) else frame.nbytes
    return total


def _unpack(header: Buffer) -> list[Any]:
    if len(header) > HEADER_BYTES_MAX:
        raise ValueError(f"header of {len(header)} bytes, at most {HEADER_BYTES_MAX} are allowed")
    fields = msgpack.unpackb(
        header,
        strict_map_key=True,
        max_str_len=HEADER_BYTES_MAX,
        max_bin_len=PART_BYTES,
        max_ext_len=0,
        max_array_len=_ITEMS_MAX,
        max_map_len=_ITEMS_MAX,
    )
    if type(fields) is not list:
        raise ValueError("the header must be an array")
    return fields


def _describe(tensors: dict[str, Any], frames: list[Buffer]) -> dict[str, Any]:
    """Return `{name: [dtype, shape]}`, with the encoding of encoded ones, and append the tensors to
    `frames`."""
    if type(tensors) is not dict or len(tensors) > _TENSORS_MAX:
        raise ValueError(f"tensors must be a dict of at most {_TENSORS_MAX} entries")
    specs: dict[str, list[Any]] = {}
    for name, array in tensors.items():
        _check_name(name)
        if isinstance(array, Encoded):
            specs[name] = ["float32", array.shape, array.encoding.name]
            frames.append(array.frame)
            continue
        if not isinstance(array, np.ndarray):
            raise TypeError(f"tensor {name!r} is a {type(array).__name__}, not a NumPy array")
        dtype = _DTYPE_NAMES.get(array.dtype)
        if dtype is None:
            raise TypeError(f"tensor {name!r} has dtype {array.dtype}, not one of {list(_DTYPES)}")
        if not array.flags.c_contiguous or array.ndim > _DIMENSIONS_MAX:
            raise ValueError(
                f"tensor {name!r} must be C-contiguous with at most {_DIMENSIONS_MAX} axes"
            )
        specs[name] = [dtype, array.shape]
        frames.append(array)
    return specs


def _attach(specs: Any, frames: Sequence[Buffer], bytes_max: int) -> dict[str, NDArray[Any]]:
    """Return the tensors described by `specs`, as views of frames 1, 2, …, or decoded from them to
    at most `bytes_max` in all."""
    if type(specs) is not dict or len(specs) > _TENSORS_MAX:
        raise ValueError(f"tensors must be a map of at most {_TENSORS_MAX} entries")
    if len(frames) != 1 + len(specs):
        raise ValueError(f"{len(specs)} tensors need {1 + len(specs)} frames, got {len(frames)}")
    tensors = {}
    decoded_bytes = 0
    for (name, spec), frame in zip(specs.items(), frames[1:], strict=True):
        _check_name(name)
        if type(spec) is not list or len(spec) not in (2, 3) or type(spec[1]) is not list:
            raise ValueError(f"tensor {name!r} must be described as [dtype, shape(, encoding)]")
        dtype, shape, *encoding = spec
        if not encoding:
            tensors[name] = _view(name, dtype, shape, frame)
            continue
        decoded_bytes += _product(name, shape, 4)
        if decoded_bytes > bytes_max:
            raise ValueError(f"{decoded_bytes} bytes when decoded, at most {bytes_max} are allowed")
        tensors[name] = _decoded(name, dtype, shape, encoding[0], frame)
    return tensors


def _view(name: str, kind: Any, shape: list[Any], frame: Buffer) -> NDArray[Any]:
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise ValueError(f"tensor {name!r} has dtype {kind!r}, not one of {list(_DTYPES)}")
    _check_bytes(name, frame, _product(name, shape, dtype.itemsize))
    array = np.ndarray(shape, dtype, buffer=frame)
    if not array.flags.aligned:
        # Small frames are slices of ZeroMQ's receive buffer, often unaligned. NumPy is slow on
        # unaligned arrays and other libraries refuse them, so they are copied.
        array = array.copy()
    array.setflags(write=False)
    return array


def _decoded(name: str, kind: Any, shape: list[Any], chosen: Any, frame: Buffer) -> NDArray[Any]:
    encoding = ENCODINGS.get(chosen)
    if encoding is None or kind != "float32":
        raise ValueError(
            f"tensor {name!r} is {kind!r} encoded as {chosen!r}, expected 'float32' as one of "
            f"{list(ENCODINGS)}"
        )
    form = tuple(shape)
    expected = encoding.frame_bytes(form)
    _check_bytes(name, frame, expected)
    array = encoding.decode(np.ndarray((expected,), np.uint8, buffer=frame), form)
    array.setflags(write=False)
    return array


def _product(name: str, shape: list[Any], itemsize: int) -> int:
    """Return the bytes of a tensor. Raises `ValueError` for what is no shape."""
    if len(shape) > _DIMENSIONS_MAX:
        raise ValueError(f"tensor {name!r} has {len(shape)} axes, at most {_DIMENSIONS_MAX} are ok")
    total = itemsize  # Python integers: no overflow
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError(f"tensor {name!r} has a shape that is not of whole numbers from 0")
        total *= length
    return total


def _check_bytes(name: str, frame: Buffer, expected: int) -> None:
    if size((frame,)) != expected:
        raise ValueError(f"tensor {name!r} needs {expected} bytes, its frame has {size((frame,))}")


def _check_name(name: Any) -> None:
    if type(name) is not str or len(name) > _NAME_MAX:
        raise ValueError(f"a tensor's name must be a string of at most {_NAME_MAX} characters")
