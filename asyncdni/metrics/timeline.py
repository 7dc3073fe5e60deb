"""A picture of which op each worker ran when, drawn from the traces of real runs.

One panel a run, one row a worker, one box an op, hatched where the worker waited, and at the right
the share of the time shown that it spent in ops. All panels are on one time scale, so that the
locked staircase and the decoupled wall can be compared by eye. Time is the wall clock's: with fewer
cores than workers, ops and waits are as long as they took until the worker had a core again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from asyncdni.errors import CheckpointError
from asyncdni.metrics.drawing import Box, Drawing, Line, Words
from asyncdni.metrics.traces import GRADIENT, OP, OP_NAMES, SLOWED, WAIT, WorkerTrace, links

__all__ = ["Panel", "draw"]

#: letter of an op -> colour
COLOURS = {
    "F": "#4878a8",
    "B": "#d98a3d",
    "b": "#e9bd91",
    "W": "#c98a4a",
    "C": "#b8604a",
    "M": "#a8483a",
    "U": "#5a9a5a",
    "A": "#86b886",
    "P": "#9a6fb0",
    "T": "#c9aed6",
    "S": "#b98fa8",
    "R": "#a8a8a8",
    "E": "#6f8f8f",
}
_UNKNOWN = "#000000"
_GROUND = "#f1f1f1"
_SLOWED = "#d9d2b0"
_DOWN, _UP = "#1f3f60", "#b05a10"  # activations, gradients
_WIDTH = 960
_LABEL = 90
_BUSY = 50
_PLOT = _WIDTH - _LABEL - _BUSY
_ROW = 26
_BAR = 22
_GAP = 46
_TOP = 10
_TITLE = 26
_AXIS = 34
_LEGEND_ROW = 18
_BATCH_WIDTH = 26  # of a box that has room for its op and batch
_NAME_MAX = 11  # characters of a worker's name

_SEEN = 0.6  # units: nothing narrower
_STEPS_MS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

Shape = Box | Line | Words


@dataclass(frozen=True)
class Panel:
    """One run: a title, and the traces of its workers in order."""

    title: str
    traces: Sequence[WorkerTrace]


@dataclass(frozen=True)
class _Window:
    begin_s: float
    length_s: float

    def part(self, events: NDArray[Any]) -> NDArray[Any]:
        end_s = self.begin_s + self.length_s
        return events[(events["end_s"] > self.begin_s) & (events["start_s"] < end_s)]

    def x(self, time_s: float) -> float:
        inside = min(1.0, max(0.0, (time_s - self.begin_s) / self.length_s))
        return _LABEL + inside * _PLOT

    def inside_s(self, start_s: float, end_s: float) -> float:
        """How much of a time is shown."""
        return min(end_s, self.begin_s + self.length_s) - max(start_s, self.begin_s)


def draw(
    panels: Sequence[Panel], window_s: float, *, at: float = 0.5, messages: bool = False
) -> Drawing:
    """`window_s` seconds of each run, beginning at the fraction `at` of it.

    `messages` adds a line for each activation and gradient, from its sender to its receiver.
    Raises `CheckpointError` for a run without ops.
    """
    shapes: list[Shape] = []
    y = _TOP
    for panel in panels:
        window = _Window(_begin(panel, window_s, at), window_s)
        shapes += _panel(panel, window, y, messages)
        y += _GAP + len(panel.traces) * _ROW
    shapes += _axis(window_s, y + 4)
    legend, bottom = _legend(shapes, y + 4 + _AXIS)
    return Drawing(_WIDTH, bottom, [*shapes, *legend])


def _begin(panel: Panel, window_s: float, at: float) -> float:
    """The first forward of the first worker after the fraction `at` of the run."""
    ops = [trace.on(OP) for trace in panel.traces]
    if not any(map(len, ops)):
        raise CheckpointError(f"the trace of {panel.title!r} holds no ops: epochs = 0?")
    first = min(own["start_s"].min() for own in ops if len(own))
    last = max(own["end_s"].max() for own in ops if len(own))
    wanted = float(first + at * max(0.0, last - first - window_s))
    names = panel.traces[0].names
    forward = names.index("F") if "F" in names else -1
    later = (ops[0]["start_s"] >= wanted) & (ops[0]["name"] == forward)
    return float(ops[0]["start_s"][later][0]) if later.any() else wanted


def _panel(panel: Panel, window: _Window, y: int, messages: bool) -> Iterator[Shape]:
    yield Words(_LABEL, y + 16, panel.title, bold=True)
    yield Words(_WIDTH - 8, y + 16, "busy", size=11, anchor="end")
    y += _TITLE
    for row, trace in enumerate(panel.traces):
        yield from _row(trace, window, y + row * _ROW)
    if messages:
        yield from _arrows(panel, window, y)


def _row(trace: WorkerTrace, window: _Window, y: int) -> Iterator[Shape]:
    ops = window.part(trace.on(OP)).tolist()
    name = trace.worker
    short = name if len(name) <= _NAME_MAX else f"{name[: _NAME_MAX - 1]}…"
    yield Words(_LABEL - 8, y + 16, short, anchor="end", size=12)
    yield Box(_LABEL, y, _PLOT, _BAR, _GROUND, "" if short == name else name)
    for *_, start_s, end_s in window.part(trace.on(WAIT)).tolist():
        left, right = window.x(start_s), window.x(end_s)
        if right - left >= _SEEN:
            title = f"waited {_span(start_s, end_s)}"
            yield Box(left, y, right - left, _BAR, "#ffffff")
            yield Box(left, y, right - left, _BAR, "#ffffff", title, hatched=True)
    for *_, start_s, end_s in window.part(trace.on(SLOWED)).tolist():
        left, right = window.x(start_s), window.x(end_s)
        yield Box(left, y, right - left, _BAR, _SLOWED, f"made slow: {_span(start_s, end_s)}")
    for _, number, _, batch, start_s, end_s in ops:
        yield from _op(trace.names[number], batch, start_s, end_s, window, y)
    busy = sum(window.inside_s(start_s, end_s) for *_, start_s, end_s in ops) / window.length_s
    yield Words(_WIDTH - 8, y + 16, f"{busy:.0%}", anchor="end", size=12)


def _op(
    letter: str, batch: int, start_s: float, end_s: float, window: _Window, y: int
) -> Iterator[Shape]:
    left, right = window.x(start_s), window.x(end_s)
    label = f"{letter}{batch}"
    title = f"{label}: {_span(start_s, end_s)}"
    yield Box(left, y, max(_SEEN, right - left), _BAR, COLOURS.get(letter, _UNKNOWN), title)
    if right - left >= _BATCH_WIDTH:
        yield Words((left + right) / 2, y + 15, label, 10, "middle", "#ffffff")


def _arrows(panel: Panel, window: _Window, y: int) -> Iterator[Shape]:
    """From the edge of the sender's row that is nearer to the receiver to the receiver's nearer."""
    end_s = window.begin_s + window.length_s
    for link in links(panel.traces):
        colour = _UP if link.kind == GRADIENT else _DOWN
        falls = link.receiver > link.sender
        y1 = y + link.sender * _ROW + (_BAR if falls else 0)
        y2 = y + link.receiver * _ROW + (0 if falls else _BAR)
        sent = panel.traces[link.sender].events["start_s"][link.sent].tolist()
        received = panel.traces[link.receiver].events["start_s"][link.received].tolist()
        for start, end in zip(sent, received, strict=True):
            if window.begin_s <= start and end <= end_s:
                yield Line(window.x(start), y1, window.x(end), y2, colour, 0.8)


def _axis(window_s: float, y: int) -> Iterator[Shape]:
    step_ms = next((s for s in _STEPS_MS if window_s * 1e3 / s <= 12), window_s * 1e3)
    for i in range(int(window_s * 1e3 / step_ms + 1e-9) + 1):
        x = _LABEL + i * step_ms / 1e3 / window_s * _PLOT
        yield Line(x, y - 4, x, y, "#888888")
        yield Words(x, y + 13, f"{i * step_ms:g} ms", 11, "middle")


def _legend(shapes: Sequence[Shape], y: int) -> tuple[list[Shape], int]:
    """What the colours in the picture stand for, and where the legend ends."""
    colours = {shape.fill for shape in shapes if isinstance(shape, Box)}
    strokes = {shape.colour for shape in shapes if isinstance(shape, Line)}
    hatched = any(isinstance(shape, Box) and shape.hatched for shape in shapes)
    named = [(COLOURS[letter], OP_NAMES[letter]) for letter in COLOURS]
    items = [(colour, name) for colour, name in named if colour in colours]
    items += [(_SLOWED, "made slow")] if _SLOWED in colours else []
    items += [("", "waiting")] if hatched else []
    items += [(_GROUND, "messages, other" if hatched else "no op")]
    items += [(c, name) for c, name in ((_DOWN, "activation"), (_UP, "gradient")) if c in strokes]
    parts: list[Shape] = []
    x = float(_LABEL)
    for colour, name in items:
        width = 30 + 5.9 * len(name)
        if x + width > _WIDTH:
            x, y = float(_LABEL), y + _LEGEND_ROW
        if colour in strokes:
            parts.append(Line(x, y - 4, x + 12, y - 4, colour, 1.6))
        else:
            parts.append(Box(x, y - 10, 12, 12, colour, hatched=not colour))
        parts.append(Words(x + 16, y, name, 11))
        x += width
    return parts, y + 14


def _span(start_s: float, end_s: float) -> str:
    return f"{(end_s - start_s) * 1e6:.0f} µs"
