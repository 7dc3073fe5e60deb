"""Copy and Repeat Copy: one bit is shown per step; then all must be recalled, R times over.

```
step            0 … N-1     N            N+1 … N+NR    to the end of the last window
bit             -1 or 1     0            0             0
showing         1           0            0             0
delimiter       0           1            0             0
R / 10          0           R / 10       0             0        (repeat_copy alone)
target, mask    0, 0        0, 0         bit as 0/1, 1 0, 0
```

The tasks are those of Graves, Wayne and Danihelka, "Neural Turing Machines" (2014), with one random
bit per step as in Jaderberg et al., "Decoupled Neural Interfaces" (2017), section 3.2; R is scaled
as in Pemberton and Costa, "BP(λ)" (2024). Bits come from streams of the seed, one for each sequence
of each epoch.

The curriculum grows with the epochs: epochs 0 … k-1 have the first size, the next k the second, and
so on, up to the full one. In the paper it grows when the error is small, but here any process must
be able to make the data again without knowing errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asyncdni.config import Copy, RepeatCopy
from asyncdni.data.meta import Meta
from asyncdni.data.sequences import Sequence, Sequences, describe_windows
from asyncdni.errors import ConfigError
from asyncdni.nn.streams import stream

__all__ = ["Copying", "Size", "describe", "load", "next_size", "sizes"]

#: How many numbers stand for a coming target: -1 or 1, and 1; or 0 and 0 where none is asked for.
_HINTS = 2


class Size(NamedTuple):
    """The size of a sequence: N bits, recalled R times."""

    bits: int  # N
    repeats: int = 1  # R

    @property
    def steps(self) -> int:
        """Steps of a sequence: bits shown, the delimiter, bits recalled."""
        return self.bits + 1 + self.bits * self.repeats

    def windows(self, steps: int) -> int:
        """Return how many windows of `steps` steps a sequence takes; the last one is filled up."""
        return -(-self.steps // steps)


def next_size(size: Size, full: Size) -> Size:
    """Return the size after `size` in the curriculum, as of Repeat Copy in Jaderberg et al. 2017.

    It has one repeat more until there are as many repeats as bits, then one bit more, up to `full`.
    For Copy, with full.repeats = 1, only the bits grow."""
    room_for_repeats = size.repeats < full.repeats
    if room_for_repeats and (size.repeats < size.bits or size.bits == full.bits):
        return size._replace(repeats=size.repeats + 1)
    return size._replace(bits=min(size.bits + 1, full.bits))


def sizes(full: Size) -> list[Size]:
    """Return all sizes of the curriculum, from one bit recalled once to `full`."""
    found = [Size(1)]
    while found[-1] != full:
        found.append(next_size(found[-1], full))
    return found


class Copying:
    """The task of copying as a `sequences.Task`."""

    def __init__(
        self,
        full: Size,
        *,
        streams: int,
        steps: int,
        grow: int = 0,
        tell_repeats: bool = False,
        test: str = "test",
    ) -> None:
        """
        Args:
            full: size of test sequences, and of all others without `grow`.
            streams: B.
            steps: T, the steps of a window.
            grow: epochs at each size of the curriculum; 0: all sequences are `full`.
            tell_repeats: whether there is a fourth input, which is R / 10 at the delimiter.
            test: name of the random stream of the test part.
        """
        self._streams = streams
        self._steps = steps
        self._grow = grow
        self._sizes = sizes(full) if grow else [full]
        self._tell_repeats = tell_repeats
        self._test = test

    def size(self, epoch: int | None) -> Size:
        """Return the size of the sequences in `epoch`, or of those of the test part for None."""
        if epoch is None or not self._grow:
            return self._sizes[-1]
        return self._sizes[min(epoch // self._grow, len(self._sizes) - 1)]

    def windows(self, epoch: int | None) -> int:
        return self.size(epoch).windows(self._steps)

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        """Return x (B, L, 3 or 4) float32, y (B, L, 1) of 0 and 1, with mask and hints."""
        if epoch is None:
            rng = stream(seed, "data", f"copy {self._test}", number)
        else:
            rng = stream(seed, "data", "copy", epoch, number)
        bits, repeats = size = self.size(epoch)
        shown = rng.integers(0, 2, (self._streams, bits))
        length = size.windows(self._steps) * self._steps
        x = np.zeros((self._streams, length, 4 if self._tell_repeats else 3), np.float32)
        x[:, :bits, 0] = 2 * shown - 1
        x[:, :bits, 1] = 1
        x[:, bits, 2] = 1
        if self._tell_repeats:
            x[:, bits, 3] = repeats / 10
        recalled = slice(bits + 1, size.steps)
        y = np.zeros((self._streams, length, 1), np.float32)
        y[:, recalled, 0] = np.tile(shown, repeats)
        mask = np.zeros((self._streams, length), np.bool_)
        mask[:, recalled] = True
        asked = mask[..., None]
        hints = np.concatenate([(2 * y - 1) * asked, asked], axis=2, dtype=np.float32)
        return Sequence(x, y, mask, hints)


def describe(data: Copy | RepeatCopy) -> Meta:
    """Return the shapes: windows (T, 3), or (T, 4) with repeats; one value per step, with a mask.

    Raises `ConfigError` for windows longer than a sequence."""
    full = _full(data)
    if data.window > full.steps:
        raise ConfigError(
            f"data.window: {data.window} steps are more than the {full.steps} of a sequence of "
            f"{full.bits} bits; expected at most as many; lower it or raise data.length"
        )
    each = full.windows(data.window)
    meta = Meta(
        input_shape=(data.window, 4 if isinstance(data, RepeatCopy) else 3),
        targets="values",
        outputs=1,
        train_samples=data.sequences * each,
        test_samples=(data.validation or data.test_sequences) * each,
        steps=data.window,
    )
    return describe_windows(
        meta, streams=data.batch_size, ahead=data.ahead, masked=True, hints=_HINTS
    )


def load(data: Copy | RepeatCopy, seed: int) -> Sequences:
    """Return the sequences of a run. The test part depends on `seed`; with `validation` it does
    not, so that all runs of a study are judged by the same sequences."""
    task = Copying(
        _full(data),
        streams=data.batch_size,
        steps=data.window,
        grow=data.grow,
        tell_repeats=isinstance(data, RepeatCopy),
        test="validation" if data.validation else "test",
    )
    return Sequences(
        "repeat_copy" if isinstance(data, RepeatCopy) else "copy",
        describe(data),
        task,
        streams=data.batch_size,
        ahead=data.ahead,
        seed=0 if data.validation else seed,
    )


def _full(data: Copy | RepeatCopy) -> Size:
    return Size(data.length, data.repeats if isinstance(data, RepeatCopy) else 1)
