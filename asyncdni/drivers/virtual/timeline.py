"""Timelines as text: a row a worker, a column a step, and what overlaps in time shares a column.

```
stage1  F0 .  .  B0 U0 F1
stage2  .  F0 B0 U0 .  .
```

Columns keep order, not duration: an op stands to the right of every op, anywhere, that had ended
when it began. `-` is an op that goes on, `.` is waiting.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from asyncdni.drivers.virtual.process import TimedOp
from asyncdni.schedules.base import OpKind

__all__ = ["LEGEND", "timeline"]

LEGEND = (
    "F forward  P predict  B backward  U update  T fit  b passes the gradient on  W learns\n"
    "C corrects  - goes on  . waits; columns keep the order of ops, not their duration"
)
_NAME_MAX = 20
#: The data are read ahead, beside what a timeline is about.
_HIDDEN = OpKind.READ.value
_GOES_ON, _WAITS = "-", "."
#: Sums of the same durations, taken in different orders, differ by rounding.
_SAME_S = 1e-9


def timeline(
    ops: Mapping[str, Sequence[TimedOp]], *, batches: int = 3, width: int = 100
) -> list[str]:
    """Lines of at most `width` characters, until batch `batches` - 1 has updated every worker.

    What does not fit beside each other goes below, after an empty line.
    """
    end = _end_of(ops, batches)
    chosen = sorted(
        (op[2], op[3], name, op[0] + str(op[1]))
        for name, own in ops.items()
        for op in own
        if op[0] != _HIDDEN and op[2] < end
    )
    if not chosen:
        return []
    columns = _columns(chosen)
    cell = max(len(label) for _, _, _, label in chosen) + 1
    rows = {name: [_WAITS] * (columns[-1] + 1) for name in ops}
    starts = [start for start, _, _, _ in chosen]
    for column, (_, finish, name, label) in zip(columns, chosen, strict=True):
        last = columns[bisect_left(starts, finish - _SAME_S) - 1]
        rows[name][column : last + 1] = [label] + [_GOES_ON] * (last - column)
    return _wrapped(rows, cell, width)


def _end_of(ops: Mapping[str, Sequence[TimedOp]], batches: int) -> float:
    update = OpKind.UPDATE.value
    ends = [
        end
        for own in ops.values()
        for letter, b, _, end in own
        if (letter, b) == (update, batches - 1)
    ]
    return max(ends, default=float("inf"))


def _columns(chosen: Sequence[tuple[float, float, str, str]]) -> list[int]:
    """The column of each op; `chosen` by start."""
    columns: list[int] = []
    frontier = 0
    running: list[tuple[float, int]] = []  # (end, column)
    for start, end, _, _ in chosen:
        while running and running[0][0] <= start + _SAME_S:
            frontier = max(frontier, heapq.heappop(running)[1] + 1)
        columns.append(frontier)
        heapq.heappush(running, (end, frontier))
    return columns


def _wrapped(rows: Mapping[str, Sequence[str]], cell: int, width: int) -> list[str]:
    name_width = min(_NAME_MAX, max(map(len, rows)))
    a_line = max(1, (width - name_width - 2) // cell)
    count = len(next(iter(rows.values())))
    lines: list[str] = []
    for first in range(0, count, a_line):
        lines += [""] if lines else []
        for name, cells in rows.items():
            text = "".join(one.ljust(cell) for one in cells[first : first + a_line])
            lines.append(f"{name[:name_width]:{name_width}}  {text}".rstrip())
    return lines
