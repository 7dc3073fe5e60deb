"""How tensors travel in fewer bytes: encodings by name, and what a worker applies them to.

```
none       float32 as it is                                        4 bytes an element
bfloat16   the upper half of a float32, rounded to nearest even    2
float16    IEEE half precision; larger numbers become its largest  2
int8       per row one float32 scale, then the elements            1, and 4 a row
top_k      of a row the 16th part with the largest elements        6/16 (8/16 from 65,537 a row on)
low_rank   the matrix of all rows as a product of two thin ones    16 a row, and 16 for each column
```

A row is one sample: all elements of a tensor behind its first axis. Rows don't depend on each
other, and every step is one rounding of IEEE arithmetic, so an encoding gives the same bytes on
every machine. What is not finite is still so after decoding: in int8 all of its row is NaN.

low_rank differs: its rows depend on each other, as they have the right factor in common (PowerSGD:
Vogels et al., 2019), one number that is not finite makes the whole tensor NaN, and it is encoded
with products of matrices, whose last bits may differ between machines as those of layers do.

Of gradients int8, top_k and low_rank keep a remainder (error feedback: Seide et al., "1-bit
stochastic gradient descent", 2014; Karimireddy et al. 2019): what was left out of one batch is
added to the next one on the same link before that is encoded. So sums over batches, which weights
learn from, are right to what one batch leaves out, however many are summed. Activations have no
remainder: what is left of one sample would be put into another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncdni.messages import DATA, Activation, Gradient, Message

__all__ = ["ENCODINGS", "Compressor", "Encoded", "Encoding", "encode_with_remainder"]

Array = NDArray[Any]
Shape = tuple[int, ...]

_FLOAT32 = np.dtype("<f4")
_SCALE_BYTES = 4  # of an int8 row
_LEVELS = 127  # int8 is used from -127 to 127, so that rounding has no direction that it prefers


@dataclass(frozen=True)
class Encoding:
    """One way to write a float32 tensor into a single frame of bytes, and to read it again."""

    name: str
    #: The bytes of the frame of a tensor of this shape.
    frame_bytes: Callable[[Shape], int]
    #: float32 array (C order) -> uint8 array (frame_bytes,), as the peer gets it.
    encode: Callable[[Array], Array]
    #: Frame and shape -> float32 array, newly made. Raises `ValueError` for a frame that `encode`
    #: can't have made.
    decode: Callable[[Array, Shape], Array]
    #: Whether what is left out of a gradient is added to the next one.
    keeps_remainder: bool = False
    #: How many further rows the remainder has, for what encoding one gradient has found out for the
    #: next one.
    further_rows: int = 0
    #: In place of `encode`, where there are further rows: float32 array (C order) and these rows
    #: (further_rows, …), which are read and written.
    encode_on: Callable[[Array, Array], Array] | None = None

    def sample_bytes(self, shape: Shape, batch_size: int) -> int:
        """Return the bytes of one sample of this shape, which are fewer in a larger batch where a
        frame has a part that does not grow with the batch."""
        rows = batch_size if self.further_rows else 1
        return -(-self.frame_bytes((rows, *shape)) // rows)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A float32 tensor on its way: what stands for an array among a message's tensors."""

    encoding: Encoding
    shape: Shape
    frame: Array  # uint8

    @property
    def nbytes(self) -> int:
        return self.frame.nbytes

    def decode(self) -> Array:
        """Return the tensor as the receiver gets it: a new float32 array."""
        return self.encoding.decode(self.frame, self.shape)


def encode_with_remainder(encoding: Encoding, array: Array, remainder: Array) -> Encoded:
    """Encode `array` (B, …) plus what was left out before, and keep in `remainder` (at least B
    rows, then the encoding's further ones) what is left out now: nothing where a number is not
    finite."""
    kept = remainder[: len(array)]
    wanted = array + kept
    if encoding.encode_on is None:
        frame = encoding.encode(wanted)
    else:
        frame = encoding.encode_on(wanted, remainder[-encoding.further_rows :])
    encoded = Encoded(encoding, array.shape, frame)
    np.subtract(wanted, encoded.decode(), out=kept)
    np.copyto(kept, 0.0, where=~np.isfinite(kept))
    return encoded


class Compressor:
    """Encodes what one worker sends: the activation and the gradients of training batches.

    All else travels as it is: what comes from the data set (inputs, ids, targets, masks), test
    batches, so that a test score is that of the weights, and copies and gradients of weights that
    several workers hold, which must stay equal.
    """

    def __init__(
        self,
        encodings: Mapping[str, Encoding],
        remainders: Mapping[tuple[str, str], Array],
    ) -> None:
        """Args:
        encodings: by receiving worker; tensors to others are not encoded.
        remainders: of gradients, by (receiving worker, tensor), each float32 of (batch size and
            the encoding's further rows, …); they are written to, and belong to the state of the
            stage that computes the gradients.
        """
        self._encodings = encodings
        self._remainders = remainders

    def compress(self, to: str, message: Message) -> Message:
        """Return the message as it is sent to worker `to`: itself, or one with `Encoded`
        tensors."""
        encoding = self._encodings.get(to)
        if encoding is None:
            return message
        if isinstance(message, Gradient):
            tensors = {
                name: self._gradient(encoding, to, name, array)
                for name, array in message.tensors.items()
            }
        elif isinstance(message, Activation) and message.sender != DATA and not message.evaluate:
            h = message.tensors["h"]
            if h.dtype != np.float32:  # a token of a simulation without arithmetic
                return message
            tensors = {**message.tensors, "h": Encoded(encoding, h.shape, encoding.encode(h))}
        else:
            return message
        return msgspec.structs.replace(message, tensors=tensors)

    def _gradient(self, encoding: Encoding, to: str, name: str, array: Array) -> Array | Encoded:
        if array.dtype != np.float32:
            return array
        if encoding.keeps_remainder:
            return encode_with_remainder(encoding, array, self._remainders[to, name])
        return Encoded(encoding, array.shape, encoding.encode(array))


# --- encodings -----------------------------------------------------------------------------------


def _halves(shape: Shape) -> int:
    return 2 * math.prod(shape)


def _to_bfloat16(array: Array) -> Array:
    bits = np.ascontiguousarray(array, _FLOAT32).reshape(-1).view("<u4")
    rounded = (bits >> 16) & 1  # to nearest, and a tie to the even one
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    np.copyto(rounded, 0x7FC0, where=np.isnan(array).reshape(-1))  # rounding could make it infinite
    return rounded.astype("<u2").view(np.uint8)


def _from_bfloat16(frame: Array, shape: Shape) -> Array:
    bits = frame.view("<u2").astype("<u4")
    bits <<= 16
    return bits.view(_FLOAT32).reshape(shape)


def _to_float16(array: Array) -> Array:
    with np.errstate(over="ignore"):
        halves = array.reshape(-1).astype("<f2")
    most = np.finfo(np.float16).max
    over = np.isinf(halves)
    if over.any():
        over &= np.isfinite(array).reshape(-1)
        np.copyto(halves, np.copysign(most, halves), where=over)
    return halves.view(np.uint8)


def _from_float16(frame: Array, shape: Shape) -> Array:
    return frame.view("<f2").astype(_FLOAT32).reshape(shape)


def _rows(shape: Shape) -> tuple[int, int]:
    """Return how many rows a tensor has, and the elements of each. One with a single axis, or none,
    is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _int8_bytes(shape: Shape) -> int:
    rows, width = _rows(shape)
    return rows * (_SCALE_BYTES + width)


def _to_int8(array: Array) -> Array:
    rows, width = _rows(array.shape)
    x = array.reshape(rows, width)
    greatest = np.maximum(x.max(axis=1, initial=0.0), -x.min(axis=1, initial=0.0))
    scales = greatest / np.float32(_LEVELS)
    finite = np.isfinite(scales)
    if not finite.all():
        scales[~finite] = np.nan
        x = np.where(finite[:, None], x, np.float32(0.0))
    divisors = np.where(scales > 0.0, scales, np.float32(1.0))
    levels = x / divisors[:, None]
    np.rint(levels, out=levels)
    np.clip(levels, -_LEVELS, _LEVELS, out=levels)  # a scale below the normal numbers is not exact
    frame = np.empty(_int8_bytes(array.shape), np.uint8)
    frame[: rows * _SCALE_BYTES].view(_FLOAT32)[:] = scales
    frame[rows * _SCALE_BYTES :].view(np.int8).reshape(rows, width)[:] = levels
    return frame


def _from_int8(frame: Array, shape: Shape) -> Array:
    rows, width = _rows(shape)
    scales = frame[: rows * _SCALE_BYTES].view(_FLOAT32)
    levels = frame[rows * _SCALE_BYTES :].view(np.int8).reshape(rows, width)
    found = levels.astype(_FLOAT32)
    found *= scales[:, None]
    return found.reshape(shape)


_KEPT = 16  # one element of a row in so many


def _kept(width: int) -> tuple[int, np.dtype[Any]]:
    """Return how many elements of a row top_k keeps, and the type of their places."""
    return -(-width // _KEPT), np.dtype("<u2" if width <= 1 << 16 else "<u4")


def _top_k_bytes(shape: Shape) -> int:
    rows, width = _rows(shape)
    count, places = _kept(width)
    return rows * count * (_FLOAT32.itemsize + places.itemsize)


def _to_top_k(array: Array) -> Array:
    rows, width = _rows(array.shape)
    count, places = _kept(width)
    frame = np.empty(_top_k_bytes(array.shape), np.uint8)
    if not frame.size:
        return frame
    x = array.reshape(rows, width)
    sizes = np.abs(x)
    np.copyto(sizes, np.inf, where=np.isnan(x))
    least = np.partition(sizes, width - count, axis=1)[:, width - count, None]
    larger, equal = sizes > least, sizes == least
    room = count - np.count_nonzero(larger, axis=1)[:, None]
    larger |= equal & (np.cumsum(equal, axis=1) <= room)  # of equal ones the first
    chosen = np.nonzero(larger)[1].reshape(rows, count)
    values = rows * count * _FLOAT32.itemsize
    frame[:values].view(_FLOAT32).reshape(rows, count)[:] = np.take_along_axis(x, chosen, axis=1)
    frame[values:].view(places).reshape(rows, count)[:] = chosen
    return frame


def _from_top_k(frame: Array, shape: Shape) -> Array:
    rows, width = _rows(shape)
    count, places = _kept(width)
    values = rows * count * _FLOAT32.itemsize
    chosen = frame[values:].view(places).reshape(rows, count).astype(np.int64)
    if (chosen >= width).any() or (np.diff(chosen, axis=1) <= 0).any():
        raise ValueError(f"places of elements must rise and be below {width}")
    found = np.zeros((rows, width), _FLOAT32)
    np.put_along_axis(found, chosen, frame[:values].view(_FLOAT32).reshape(rows, count), axis=1)
    return found.reshape(shape)


_RANK = 4  # the columns of low_rank's factors
_PARALLEL = 1e-3  # a column of which no more is left by the ones before it is rounding, and dropped


def _rank(shape: Shape) -> int:
    return min(_RANK, *_rows(shape))


def _low_rank_bytes(shape: Shape) -> int:
    return _rank(shape) * sum(_rows(shape)) * _FLOAT32.itemsize


def _to_low_rank(array: Array) -> Array:
    return _to_low_rank_on(array, np.zeros((_RANK, _rows(array.shape)[1]), _FLOAT32))


def _to_low_rank_on(array: Array, directions: Array) -> Array:
    """Encode with one step of power iteration from `directions`, (4, …): the right factor of the
    batch before, as rows, which this batch's replaces. Rows of zeros are not known yet."""
    rows, width = _rows(array.shape)
    rank = _rank(array.shape)
    left, right = np.zeros((rank, rows), _FLOAT32), np.zeros((rank, width), _FLOAT32)
    greatest = np.abs(array).max(initial=0.0)
    if not np.isfinite(greatest):
        left.fill(np.nan)
    elif greatest > 0.0:
        x = array.reshape(rows, width) / greatest  # so that no square is too large or too small
        known = directions.reshape(_RANK, width)
        left[:] = _orthonormal(_begun(known[:rank]) @ x.T)
        right[:] = left @ x
        # A direction that this batch lacks may be in the next one.
        np.copyto(known[:rank], right, where=_not_zero(right))
        right *= greatest
    return np.concatenate([left.reshape(-1), right.reshape(-1)]).view(np.uint8)


def _begun(directions: Array) -> Array:
    """Return the directions (rank, width), where those that are zero have become random ones, the
    same ones every time."""
    known = _not_zero(directions)
    if known.all():
        return directions
    drawn = np.random.Generator(np.random.PCG64(0)).random(directions.shape, np.float32)
    return np.where(known, directions, drawn - np.float32(0.5))


def _not_zero(vectors: Array) -> Array:
    """Return which rows are not all zero, (rows, 1)."""
    found: Array = np.any(vectors, axis=1, keepdims=True)
    return found


def _orthonormal(vectors: Array) -> Array:
    """Return an orthonormal basis of the rows, by Gram and Schmidt's method; a row that those
    before it can stand for becomes zero."""
    found = np.zeros_like(vectors)
    for k, vector in enumerate(vectors):
        before = np.linalg.norm(vector)
        for _ in range(2):  # once more, against what rounding has left over
            vector = vector - (found[:k] @ vector) @ found[:k]
        after = np.linalg.norm(vector)
        if after > _PARALLEL * before:
            found[k] = vector / after
    return found


def _from_low_rank(frame: Array, shape: Shape) -> Array:
    rows, width = _rows(shape)
    rank = _rank(shape)
    factors = frame.view(_FLOAT32)
    left, right = factors[: rank * rows], factors[rank * rows :]
    found = np.zeros((rows, width), _FLOAT32)
    # One column after the other: a product of matrices has other last bits on other machines.
    for one, other in zip(left.reshape(rank, rows), right.reshape(rank, width), strict=True):
        found += one[:, None] * other
    return found.reshape(shape)


#: All encodings but "none", by their names in the experiment file and on the wire.
ENCODINGS = {
    one.name: one
    for one in (
        Encoding("bfloat16", _halves, _to_bfloat16, _from_bfloat16),
        Encoding("float16", _halves, _to_float16, _from_float16),
        Encoding("int8", _int8_bytes, _to_int8, _from_int8, keeps_remainder=True),
        Encoding("top_k", _top_k_bytes, _to_top_k, _from_top_k, keeps_remainder=True),
        Encoding(
            "low_rank",
            _low_rank_bytes,
            _to_low_rank,
            _from_low_rank,
            keeps_remainder=True,
            further_rows=_RANK,
            encode_on=_to_low_rank_on,
        ),
    )
}
