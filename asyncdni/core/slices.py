"""Slices of time: the newest ops of a worker, for whoever watches the run while it goes on.

The time of a clock that all workers share is cut into slices of half a second. Of each slice a
worker keeps its first ops, as many as it is asked for, so that the rows of several workers show the
same stretches of time however fast they are. It sends the slices that are over with its reports.

```
 slice 7                                  slice 8
 ├──F──P─B─U─F─ … ─F┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄├──F──P─B─U─ …
 begin              until here every op   the next slice begins
                    is in the slice
```

A slice is a list of whole numbers, [number, until_us, code, batch, start_us, length_us, code, …]:
the slice begins `number * SLICE_S` seconds after the clock's zero, and holds every op that begins
up to `until_us` microseconds later; each op has the code point of its letter, its batch (-1: of
none), its start after the begin of the slice, and its length. An op that ends in a later slice
belongs to the one it begins in.
"""

from __future__ import annotations

from collections import deque

__all__ = ["EVALUATION", "OPS_MAX", "SLICE_S", "SLOWED", "Slices", "fault"]

SLICE_S = 0.5
#: The most ops of a slice. With at most 16 bytes an op (`code` takes one, the others five each) and
#: two slices a second, a worker sends no more than 8,000 bytes a second.
OPS_MAX = 240
#: Letters that stand for what is no op: a sleep of a worker that was made slow, and all ops of an
#: evaluation.
SLOWED, EVALUATION = "~", "E"

_SLICE_US = round(SLICE_S * 1e6)
_HEAD, _FIELDS = 2, 4  # numbers before the ops, and of each op
_KEPT = 2  # slices that wait for a report; older ones are dropped
_NUMBER_MAX = 2**53


class Slices:
    """Keeps the ops of the present slice, and of those that no report has taken yet."""

    def __init__(self, most: int, zero_s: float) -> None:
        """Keep at most `most` ops of a slice, from 1 to `OPS_MAX`. `zero_s`: what the shared clock
        shows when that of the given times shows 0."""
        self._most = min(OPS_MAX, max(1, most))
        self._zero_s = zero_s
        self._over: deque[list[int]] = deque(maxlen=_KEPT)
        self._slice: list[int] | None = None  # the present one
        self._is_whole = False  # the first one has begun before this object
        self._full_until_s = -1.0  # end of the present slice, once it is full

    def add(self, letter: str, batch: int, start_s: float, end_s: float) -> None:
        """Keep an op, if its slice has room. Ops come in the order of their starts."""
        start_s += self._zero_s
        if start_s < self._full_until_s:
            return
        number, start_us = _place(start_s)
        present = self._turn_to(number)
        if len(present) >= _HEAD + _FIELDS * self._most:
            present[1] = start_us
            self._full_until_s = (number + 1) * SLICE_S
            return
        length_us = max(0, round((end_s + self._zero_s - start_s) * 1e6))
        present += (ord(letter), batch, start_us, length_us)

    def take(self, now_s: float) -> list[list[int]]:
        """Return the slices that are over and have not been taken yet, the oldest first."""
        self._turn_to(_place(now_s + self._zero_s)[0])
        found = list(self._over)
        self._over.clear()
        return found

    def _turn_to(self, number: int) -> list[int]:
        """Return the slice of that number; those before it are over. One without ops is kept as
        well: the worker waited, or an earlier op lasted."""
        present = self._slice
        if present is not None and present[0] >= number:
            return present
        if present is not None:
            if self._is_whole:
                self._over.append(present)
            self._is_whole = True
            for empty in range(max(present[0] + 1, number - _KEPT), number):
                self._over.append([empty, _SLICE_US])
        self._slice = [number, _SLICE_US]
        return self._slice


def _place(time_s: float) -> tuple[int, int]:
    """Return the number of the slice with this moment, and the microseconds since its begin."""
    number = int(time_s // SLICE_S)
    return number, round((time_s - number * SLICE_S) * 1e6)


def fault(slices: list[list[int]]) -> str | None:
    """Return what can't be in slices that a worker has sent; None where all can."""
    if len(slices) > _KEPT:
        return f"it sends {len(slices)} slices, at most {_KEPT} can wait for a report"
    for one in slices:
        count, rest = divmod(len(one) - _HEAD, _FIELDS)
        if count < 0 or rest or count > OPS_MAX:
            return f"a slice has {len(one)} numbers"
        if not (min(one) >= -1 and max(one) <= _NUMBER_MAX and one[1] <= _SLICE_US):
            return "a number in a slice is out of range"
        if any(code > 126 for code in one[_HEAD::_FIELDS]):
            return "an op in a slice has no letter"
    return None
