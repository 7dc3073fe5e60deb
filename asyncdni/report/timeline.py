"""Draw a timeline of which op each worker ran when, from the traces of real runs.

Each run is a panel, each worker a row, each op a box. A row is hatched where its worker waited; the
number at its right end is the share of the time shown that it spent in ops. All panels have the
same time scale, so that a locked and a decoupled run can be compared by eye. Time is wall time:
with fewer cores than workers, an op or a wait lasts until the worker has a core again.

SVG is written here without matplotlib: the command needs no extra for it, and boxes have titles
that a browser shows under the pointer, which matplotlib can't write. PNG is drawn with matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.report.plots import import_matplotlib, write_picture
from asyncdni.report.traces import (
    GRADIENT,
    OP,
    OP_NAMES,
    SLOWED,
    WAIT,
    WorkerTrace,
    links,
    read_trace,
)
from asyncdni.store.run import Result

__all__ = [
    "Box",
    "Drawing",
    "Line",
    "Panel",
    "Words",
    "draw",
    "panel",
    "png",
    "svg",
]

if TYPE_CHECKING:
    from matplotlib.artist import Artist

# --- shapes, as SVG and as PNG -------------------------------------------------------------------

#: Pixels of the PNG for a unit, which is one pixel of the SVG. y grows downwards.
_SCALE = 2
_UNITS_PER_INCH = 100
_POINTS = 72 / _UNITS_PER_INCH  # in a unit
_HATCH = "#cccccc"


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, or a hatched one."""

    x: float
    y: float
    width: float
    height: float
    fill: str  # "#rrggbb"
    title: str = ""  # shown by browsers under the pointer
    hatched: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Words:
    """One line of text; `y` is its base line, `anchor` which part of it stands at `x`."""

    x: float
    y: float
    text: str
    size: float = 13
    anchor: str = "start"  # "middle", "end"
    colour: str = "#222222"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Curtain:
    """White over a row, which an SVG draws away from left to right in so many seconds, again and
    again, with a line at its edge; a PNG has none."""

    x: float
    y: float
    width: float
    height: float
    seconds: float


Shape = Box | Line | Words | Curtain


@dataclass(frozen=True, slots=True)
class Drawing:
    """A white sheet; later shapes cover earlier ones."""

    width: int
    height: int
    shapes: Sequence[Shape] = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the drawing as `FILE.svg`, or as `FILE.png` with the extra `plot`.

        Raises `ConfigError` for another suffix or without the extra, `CheckpointError` where the
        file can't be written.
        """
        write_picture(path, lambda: svg(self).encode(), lambda: png(self))

    def _repr_svg_(self) -> str:
        """Return what a notebook shows."""
        return svg(self)


def svg(drawing: Drawing) -> str:
    """Return the drawing as SVG text, which needs only a browser."""
    size = f'width="{drawing.width}" height="{drawing.height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width} {drawing.height}" '
        'font-family="sans-serif">',
        '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<path d="M-1 1L1 -1M0 5L5 0M4 6L6 4" stroke="{_HATCH}" stroke-width="0.7"/></pattern>',
        f'<rect {size} fill="#ffffff"/>',
    ]
    return "\n".join([*head, *map(_element, drawing.shapes), "</svg>"]) + "\n"


def _element(shape: Shape) -> str:
    match shape:
        case Box(x, y, width, height, fill, title, hatched):
            start = f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill='
            body = f'"{fill}"' if not hatched else '"url(#hatch)"'
            return start + body + (f"><title>{escape(title)}</title></rect>" if title else "/>")
        case Line(x1, y1, x2, y2, colour, width):
            ends = f'x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}"'
            return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'
        case Words(x, y, text, size, anchor, colour, bold):
            weight = ' font-weight="bold"' if bold else ""
            place = f'x="{x:.1f}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
            return f'<text {place} fill="{colour}"{weight}>{escape(text)}</text>'
        case Curtain(x, y, width, height, seconds):
            moved = _moving("x", x, x + width, seconds)
            white = (
                f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="#ffffff">'
            )
            edge = f'<rect x="{x:g}" y="{y:g}" width="1" height="{height:g}" fill="#222222">'
            return f"{white}{moved}{_moving('width', width, 0, seconds)}</rect>{edge}{moved}</rect>"


def _moving(attribute: str, start: float, end: float, seconds: float) -> str:
    """Move an attribute from `start` to `end`, where it stays for the last eighth of the time."""
    return (
        f'<animate attributeName="{attribute}" values="{start:g};{end:g};{end:g}" '
        f'keyTimes="0;0.875;1" dur="{seconds:g}s" repeatCount="indefinite"/>'
    )


def png(drawing: Drawing) -> bytes:
    """Return the drawing as a PNG with two pixels for a unit.

    Raises `ConfigError` without the extra `plot`.
    """
    try:
        import_matplotlib()
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a PNG is drawn with matplotlib, which is not installed: "
            "pip install 'asyncdni[plot]', or give --out a name that ends in .svg"
        ) from error
    inches = (drawing.width / _UNITS_PER_INCH, drawing.height / _UNITS_PER_INCH)
    figure = Figure(figsize=inches, dpi=_UNITS_PER_INCH * _SCALE, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    still = (shape for shape in drawing.shapes if not isinstance(shape, Curtain))
    for layer, shape in enumerate(still):
        axes.add_artist(_artist(shape)).set_zorder(layer)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _artist(shape: Box | Line | Words) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    match shape:
        case Box(x, y, width, height, fill, _, hatched):
            look: dict[str, Any] = {"facecolor": fill, "linewidth": 0}
            if hatched:
                look |= {"facecolor": "none", "edgecolor": _HATCH, "hatch": "////"}
            return Rectangle((x, y), width, height, **look)
        case Line(x1, y1, x2, y2, colour, width):
            return Line2D([x1, x2], [y1, y2], color=colour, linewidth=width * _POINTS)
        case Words(x, y, text, size, anchor, colour, bold):
            return Text(
                *(x, y, text),
                fontsize=size * _POINTS,
                color=colour,
                ha={"start": "left", "middle": "center", "end": "right"}[anchor],
                va="baseline",
                weight="bold" if bold else "normal",
                parse_math=False,
            )


# --- the timeline --------------------------------------------------------------------------------

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
    "K": "#a9c9a9",
    "V": "#d9c2e2",
    "P": "#9a6fb0",
    "T": "#c9aed6",
    "S": "#b98fa8",
    "R": "#a8a8a8",
    "E": "#6f8f8f",
    "H": "#4f6f6f",
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
_BATCH_WIDTH = 26  # the least width of a box with room for its op and batch
_NAME_MAX = 11  # characters of a worker's name

_VISIBLE = 0.6  # units: an op is drawn at least so wide, and a narrower wait not at all
_STEPS_MS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


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
        """Return how many seconds between `start_s` and `end_s` lie in the window."""
        return min(end_s, self.begin_s + self.length_s) - max(start_s, self.begin_s)


def panel(run: Result) -> Panel:
    """Read the traces of a run. Raises `ConfigError` for a run that has kept none or has not
    finished, `CheckpointError` for one whose files are damaged."""
    summary, folder = run.summary, run.folder
    if folder is None or "stages" not in summary:
        raise ConfigError(
            f"{folder} holds no finished run: it has no summary.json"
            if folder is not None
            else "the run was not kept: train(..., out=DIR, trace=True) leaves a timeline"
        )
    rate = summary["samples_per_s"]
    title = summary["schedule"] + (f": {rate:,.0f} samples/s" if rate else "")
    return Panel(title, [read_trace(folder, stage["name"]) for stage in summary["stages"]])


def draw(
    panels: Sequence[Panel],
    window_s: float,
    *,
    at: float = 0.5,
    messages: bool = False,
    animate_s: float = 0.0,
) -> Drawing:
    """Draw `window_s` seconds of each run, beginning at the fraction `at` of it.

    `messages` adds a line for each activation and gradient, from its sender to its receiver.
    `animate_s`: an SVG plays the runs side by side in so many seconds; 0: it stands still. Raises
    `CheckpointError` for a run without ops.
    """
    shapes: list[Shape] = []
    y = _TOP
    for one in panels:
        window = _Window(_begin(one, window_s, at), window_s)
        shapes += _panel(one, window, y, messages)
        if animate_s:
            # One more above: the edge of a box that is smoothed would show there.
            rows, height = y + _TITLE - 1, len(one.traces) * _ROW + 1
            shapes.append(Curtain(_LABEL, rows, _PLOT, height, animate_s))
        y += _GAP + len(one.traces) * _ROW
    shapes += _axis(window_s, y + 4)
    legend, bottom = _legend(shapes, y + 4 + _AXIS)
    return Drawing(_WIDTH, bottom, [*shapes, *legend])


def _begin(panel: Panel, window_s: float, at: float) -> float:
    """Return the start of the first worker's first forward after the fraction `at` of the run."""
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
        if right - left >= _VISIBLE:
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
    yield Box(left, y, max(_VISIBLE, right - left), _BAR, COLOURS.get(letter, _UNKNOWN), title)
    if right - left >= _BATCH_WIDTH:
        yield Words((left + right) / 2, y + 15, label, 10, "middle", "#ffffff")


def _arrows(panel: Panel, window: _Window, y: int) -> Iterator[Shape]:
    """Draw a line for each message, between the edges of two rows that face each other."""
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
    """Return the shapes of the legend, which explains the colours in use, and its lower end."""
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
