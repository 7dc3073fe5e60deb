"""Plots of a comparison, drawn with matplotlib: SVG for pages, PNG for anywhere else.

matplotlib is an extra (`plot`) and is imported only to draw. Axes and words have a few known
colours, which `inline` turns into CSS variables: on a page the plot follows the reader's light or
dark scheme, while the files have a white background.
"""

from __future__ import annotations

import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdni.errors import ConfigError
from asyncdni.report.columns import (
    COLUMNS,
    SHARES,
    Row,
    accuracy_words,
    as_estimate,
    fixed,
    flat_runs,
    percent,
    time_key,
)
from asyncdni.report.statistics import Estimate, latencies_of, slices, suffix
from asyncdni.store.tensors import write_atomically

__all__ = [
    "GRID",
    "INK",
    "MISSING_EXTRA",
    "MUTED",
    "SHARE_COLOURS",
    "STYLE",
    "Plot",
    "available",
    "check_picture_name",
    "draw_curves",
    "draw_plots",
    "draw_shares",
    "draw_speed",
    "draw_speed_over_latency",
    "draw_times",
    "draw_times_over_latency",
    "import_matplotlib",
    "inline",
    "mean_curve",
    "rendered",
    "row_colours",
    "styled",
    "write_picture",
]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The note shown without matplotlib.
MISSING_EXTRA = (
    "Plots are left out, they need matplotlib: install it with pip install 'asyncdni[plot]'"
)

INK, MUTED, GRID = "#1f2329", "#68707a", "#dfe3e8"
_GROUND = "#ffffff"
_CSS = {_GROUND: "none", INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
STYLE: Any = {  # matplotlib types the keys, one by one, since 3.11 only
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "figure.facecolor": _GROUND,
    "axes.facecolor": _GROUND,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # dollar signs in a name begin no formula
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, coloured by CSS
}


@dataclass(frozen=True)
class Plot:
    """One picture, on white."""

    svg: bytes = field(repr=False)
    png: bytes = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write it as `FILE.svg` or `FILE.png`; raises as `write_picture`."""
        write_picture(path, lambda: self.svg, lambda: self.png)

    def _repr_svg_(self) -> str:
        """Return what a notebook shows."""
        return self.svg.decode()


def check_picture_name(path: str | Path) -> None:
    """Raise `ConfigError` for the name of a file that is neither SVG nor PNG."""
    if Path(path).suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"{path}: expected a name that ends in .svg or .png")


def write_picture(path: str | Path, svg: Callable[[], bytes], png: Callable[[], bytes]) -> None:
    """Write the form of a picture that the name of the file asks for.

    Raises `ConfigError` for another name than `check_picture_name` takes, `CheckpointError` where
    the file can't be written."""
    check_picture_name(path)
    content = png() if Path(path).suffix.lower() == ".png" else svg()
    write_atomically(Path(path), content)


def available() -> bool:
    """Tell whether matplotlib is installed, without importing it."""
    return find_spec("matplotlib") is not None


def import_matplotlib() -> None:
    """Import matplotlib without $MPLBACKEND: pictures here need no screen, and the backend that it
    names may not exist on this machine. Raises `ImportError`."""
    given = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401 - it reads its settings now
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given


@contextmanager
def styled() -> Iterator[None]:
    """Draw with this module's style. Needs matplotlib."""
    import_matplotlib()
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def draw_plots(found: Mapping[str, Any]) -> dict[str, Plot]:
    """Draw the plots that the document has numbers for, by file name. Needs matplotlib.

    A comparison at several latencies has one plot of each kind at each latency (`shares-10ms`), and
    plots over the latency.
    """
    with styled():
        figures = {
            "speed_over_latency": draw_speed_over_latency(found),
            "time_over_latency": draw_times_over_latency(found),
        }
        for latency_s, part in slices(found):
            drawn = _figures(part)
            figures |= {f"{name}{suffix(latency_s)}": one for name, one in drawn.items()}
        return {name: rendered(name, one) for name, one in figures.items() if one is not None}


def _figures(found: Mapping[str, Any]) -> dict[str, Figure | None]:
    """Draw the plots at one latency."""
    return {
        "accuracy_over_time": draw_curves(found, "train_s"),
        "accuracy_over_samples": draw_curves(found, "samples"),
        "samples_per_s": draw_speed(found),
        "time_to_target": draw_times(found),
        "shares": draw_shares(found),
    }


def inline(name: str, svg: bytes) -> str:
    """Return the SVG element only, to stand in an HTML page among others.

    Its ids begin with `name`, its width adapts to the page, INK, MUTED and GRID become the CSS
    variables --ink, --muted and --line, and its background is transparent.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r'<style type="text/css">.*?</style>'):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", head)
    rest = re.sub(r'\bid="|href="#|url\(#', lambda match: f"{match[0]}{name}-", rest)
    rest = rest.replace("xlink:href", "href")
    for colour, variable in _CSS.items():
        rest = rest.replace(colour, variable)
    return f"{head}>{rest}".strip()


def rendered(name: str, figure: Figure) -> Plot:
    """Render a figure; the same numbers and the same `name` give the same files."""
    from matplotlib import rc_context

    svg, png = io.BytesIO(), io.BytesIO()
    # Ids derive from the name and there is no date, so the same numbers give the same file.
    with rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", metadata=nothing)
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(svg.getvalue(), png.getvalue())


# --- palette -------------------------------------------------------------------------------------

#: The colours of rows, the same in every plot and table: those of Okabe and Ito ("Color universal
#: design", 2008), which any colour vision can tell apart, ordered so that neighbours differ much.
#: Yellow is left out, as it is lost on white, and the blue is a little lighter, so that it shows on
#: black. A violet and a brown are added.
_ROWS = (
    "#1a80bb",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#858585",
    "#7a5fc4",
    "#8c6239",
)

#: The colours of the shares of wall time (Paul Tol's muted scheme); they differ from those of rows.
SHARE_COLOURS = {
    "layers": "#44aa99",
    "generator": "#cc6677",
    "transport": "#ddcc77",
    "waiting": "#d3d7dc",
    "other": "#a3aab3",
}


def row_colours(rows: Iterable[Row]) -> dict[str, str]:
    """Return `#rrggbb` by the row's name; from the tenth row on colours repeat."""
    names = dict.fromkeys(row["name"] for row in rows)
    return {name: _ROWS[index % len(_ROWS)] for index, name in enumerate(names)}


def _row_label(row: Row) -> str:
    """Return the row's name, marked if it is a control."""
    return f"{row['name']} (control)" if row.get("control") else str(row["name"])


# --- bars: means over the seeds, with the 95 % interval as a line and each run as a ring ---------

_WIDTH = 7.4
_ROW = 0.42  # inches
_THICK = 0.62  # of a row
#: The colour of words on the light SHARE_COLOURS; pages don't replace it.
_ON_SHARES = "#15181c"
_CEILING = "; dashed: the ceiling that the run's own op times set"
_SPEEDS = ("samples_per_s", "ceiling_samples_per_s")


def draw_speed(found: Mapping[str, Any]) -> Figure | None:
    """Draw the samples per second of each row, and its ceiling."""
    rows = [row for row in found["rows"] if row.get("samples_per_s") is not None]
    if not rows:
        return None
    figure, (axes,) = _figure(0.8 + _ROW * len(rows))
    runs, colours = flat_runs(found), row_colours(found["rows"])
    for y, row in enumerate(rows):
        speed, ceiling = (as_estimate(row.get(key)) for key in _SPEEDS)
        assert speed is not None
        values = [run["samples_per_s"] for run in runs if run["name"] == row["name"]]
        each = [value for value in values if value is not None]
        _bar(axes, y, speed, row, colours[row["name"]])
        if ceiling is not None:
            rest = ceiling.mean - speed.mean
            axes.barh(y, rest, _THICK, speed.mean, fc="none", ec=MUTED, ls="--")
        if len(each) > 1:
            _rings(axes, y, each)
        ends = [speed.mean, speed.high, ceiling and ceiling.mean, *each]
        _beside(axes, y, ends, _speed_label(speed, ceiling, row))
    known = any(row.get("ceiling_samples_per_s") for row in rows)
    axes.set_xlabel(f"{COLUMNS['samples_per_s'].axis}{_CEILING if known else ''}")
    _finish([axes], rows, room=1.38 if known else 1.16)
    return figure


def draw_times(found: Mapping[str, Any]) -> Figure | None:
    """Draw the seconds of training to each target that any run reached: a panel each, on one
    scale."""
    rows, runs, colours = found["rows"], flat_runs(found), row_colours(found["rows"])
    targets = [
        target
        for target in found.get("targets") or ()
        if any(run[time_key(target)] is not None for run in runs)
    ]
    if not targets:
        return None
    figure, panels = _figure(len(targets) * (len(rows) * _ROW + 0.45) + 0.5, len(targets))
    for axes, target in zip(panels, targets, strict=True):
        for y, row in enumerate(rows):
            values = [run[time_key(target)] for run in runs if run["name"] == row["name"]]
            _time(axes, y, _mean_time(row, target), values, row, colours[row["name"]])
        axes.set_title(f"to {accuracy_words(target)} test accuracy", loc="left")
    _finish(panels, rows, room=1.16)
    panels[-1].set_xlabel(COLUMNS["train_s"].axis)
    return figure


def draw_shares(found: Mapping[str, Any]) -> Figure | None:
    """Draw the shares of the wall time of all workers of a row."""
    rows = [row for row in found["rows"] if row.get("shares")]
    if not rows:
        return None
    figure, (axes,) = _figure(0.8 + _ROW * len(rows))
    for y, row in enumerate(rows):
        left = 0.0
        for part, colour in SHARE_COLOURS.items():
            share = row["shares"].get(part) or 0.0
            axes.barh(y, share, _THICK, left, color=colour)
            if share >= 0.045:  # narrower ones have no room for text
                text = f"{100 * share:.0f} %"
                axes.text(left + share / 2, y, text, ha="center", va="center", color=_ON_SHARES)
            left += share
    _legend(figure)
    _finish([axes], rows, room=1.0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("share of the wall time of all workers")
    return figure


def _plain_number(value: float, _: object) -> str:
    return f"{value:,.6g}"


def _figure(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def _bar(axes: Axes, y: int, one: Estimate, row: Row, colour: str) -> None:
    hatch = "////" if row.get("control") else None
    face = "none" if hatch else colour
    axes.barh(y, one.mean, _THICK, facecolor=face, edgecolor=colour, hatch=hatch)
    if one.low is not None and one.high is not None:
        spread = [[one.mean - one.low], [one.high - one.mean]]
        axes.errorbar(one.mean, y, xerr=spread, color=INK, linewidth=1.2, capsize=3)


def _rings(axes: Axes, y: int, values: Sequence[float]) -> None:
    offsets = [y + 0.2] * len(values)  # below the interval, not under it
    axes.scatter(values, offsets, s=9, facecolor="none", edgecolor=INK, linewidth=0.6, zorder=3)


def _beside(axes: Axes, y: int, ends: Sequence[float | None], text: str, colour: str = INK) -> None:
    """Write words to the right of all that is drawn in the row."""
    x = max((end for end in ends if end is not None), default=0.0)
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=colour)


def _speed_label(speed: Estimate, ceiling: Estimate | None, row: Row) -> str:
    efficiency = as_estimate(row.get("efficiency"))
    if ceiling is None:
        return fixed(speed.mean)
    text = f"{fixed(speed.mean)} of {fixed(ceiling.mean)}"
    return text if efficiency is None else f"{text} ({percent(efficiency.mean, 0)})"


def _mean_time(row: Row, target: float) -> Estimate | None:
    """Return the mean seconds; None unless all runs of the row reached the target."""
    entries = [one for one in row.get("targets") or () if one["accuracy"] == target]
    return as_estimate(entries[0].get("time_s")) if entries else None


def _time(
    axes: Axes,
    y: int,
    mean: Estimate | None,
    values: Sequence[float | None],
    row: Row,
    colour: str,
) -> None:
    known = [value for value in values if value is not None]
    if len(values) > 1:
        _rings(axes, y, known)
    if mean is None:
        _beside(axes, y, known, f"reached by {len(known)} of {len(values)} runs", MUTED)
    else:
        _bar(axes, y, mean, row, colour)
        _beside(axes, y, [mean.mean, mean.high, *known], fixed(mean.mean, 2, " s"))


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    words = {one.name: one.page.heading for one in SHARES if one.page}
    patches = [Patch(color=colour, label=words[part]) for part, colour in SHARE_COLOURS.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches))


def _finish(panels: Sequence[Axes], rows: Sequence[Row], *, room: float) -> None:
    """Put names at the left, the first row at the top; leave `room` times the longest bar for
    words."""
    right = max(axes.dataLim.x1 for axes in panels)
    for axes in panels:
        axes.set_yticks(range(len(rows)), [_row_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0.0, room * right)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(_plain_number)


# --- curves --------------------------------------------------------------------------------------

History = Sequence[Mapping[str, Any]]
_MARKERS = "osD^vPX"
#: Accuracies in per cent that may label the axis: the first of these with enough labels in range.
_TICKS = (
    (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9),
    (*range(0, 90, 10), *range(90, 97), 97, 97.5, 98, 98.5, *(99 + k / 10 for k in range(10))),
    (*range(0, 90, 2), *(90 + k / 2 for k in range(18)), *(99 + k / 10 for k in range(10))),
)
_TICKS_MIN = 4


def draw_curves(found: Mapping[str, Any], along: str) -> Figure | None:
    """Draw test accuracy (test loss where there is none) over `along`: train_s or samples.

    Thin curves are single runs, thick ones the mean of each row. The scale of accuracies is the
    logarithm of the error, which spreads the last tenths of a point: on a linear scale all curves
    end in one line.
    """
    measure = _measure(found)
    if measure is None:
        return None
    figure, (axes,) = _figure(4.1)
    colours = row_colours(found["rows"])
    floor = _smallest_error(found) / 2 if measure == "accuracy" else 0.0
    for index, row in enumerate(found["rows"]):
        histories = [
            [_point(one, along, measure, floor) for one in history if one.get(measure) is not None]
            for history in _histories(found, row["name"])
        ]
        _row(axes, histories, row, colours[row["name"]], _MARKERS[index % len(_MARKERS)])
    if measure == "accuracy":
        _accuracy_axis(axes, found.get("targets") or (), floor)
    else:
        axes.set_ylabel(COLUMNS["test_loss"].axis)
    _plain_axis(axes, along)
    figure.legend(loc="outside upper left", ncols=min(len(found["rows"]), 5))
    return figure


def mean_curve(histories: Sequence[Sequence[tuple[float, float, float]]]) -> list[list[float]]:
    """Return [x, y] of each evaluation that all histories have, as means over the seeds.

    Each point of a history is (samples, x, y); points with the same samples belong together. Curves
    of different length end together, so that no mean jumps where a seed ends.
    """
    at: defaultdict[float, list[tuple[float, float]]] = defaultdict(list)
    for history in histories:
        for samples, x, y in history:
            at[samples].append((x, y))
    return [
        [sum(values) / len(values) for values in zip(*points, strict=True)]
        for _, points in sorted(at.items())
        if len(points) == len(histories)
    ]


def _measure(found: Mapping[str, Any]) -> str | None:
    """Return the measure to draw: the loss only if no run has an accuracy."""
    known = {key for one in _evaluations(found) for key in one if one[key] is not None}
    return next((key for key in ("accuracy", "loss") if key in known), None)


def _histories(found: Mapping[str, Any], name: str) -> list[History]:
    summaries = [run["summary"] for run in found["runs"] if run["name"] == name]
    return [history for summary in summaries if (history := summary.get("history"))]


def _evaluations(found: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (one for row in found["rows"] for h in _histories(found, row["name"]) for one in h)


def _smallest_error(found: Mapping[str, Any]) -> float:
    """Return the smallest error above 0. An error of 0 has no logarithm, and is drawn at half of
    this."""
    scores = [one["accuracy"] for one in _evaluations(found) if one.get("accuracy") is not None]
    return min((1.0 - score for score in scores if score < 1.0), default=1e-3)


def _point(
    one: Mapping[str, Any], along: str, measure: str, floor: float
) -> tuple[float, float, float]:
    y = max(1.0 - one[measure], floor) if measure == "accuracy" else one[measure]
    return one["samples"], one[along], y


def _row(
    axes: Axes,
    histories: Sequence[Sequence[tuple[float, float, float]]],
    row: Row,
    colour: str,
    marker: str,
) -> None:
    histories = [history for history in histories if history]
    mean = mean_curve(histories) if histories else []
    if not mean:
        return
    if len(histories) > 1:
        for history in histories:
            _, x, y = zip(*history, strict=True)
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
    axes.plot(
        *zip(*mean, strict=True),
        color=colour,
        linewidth=1.9,
        linestyle=(0, (4, 1.5)) if row.get("control") else "-",
        marker=marker,
        markersize=4,
        markevery=max(1, len(mean) // 12),
        label=_row_label(row),
    )


def _accuracy_axis(axes: Axes, targets: Sequence[float], floor: float) -> None:
    """Label `axes`, which hold errors, with accuracies, the best at the top."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    for target in targets:
        if target < 1.0:
            axes.axhline(1.0 - target, color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(high, 1.0), low)
    errors = {percent: max(1.0 - percent / 100, floor) for ticks in _TICKS for percent in ticks}
    inside = [[one for one in ticks if low <= errors[one] <= high] for ticks in _TICKS]
    chosen = next((ticks for ticks in inside if len(ticks) >= _TICKS_MIN), inside[-1])
    axes.yaxis.set_major_locator(FixedLocator([errors[one] for one in chosen]))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{one:g} %" for one in chosen]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(COLUMNS["test_accuracy"].axis)


def _plain_axis(axes: Axes, along: str) -> None:
    axes.set_xlim(left=0.0)
    axes.set_xlabel(COLUMNS[along].axis)
    axes.xaxis.set_major_formatter(_plain_number)
    axes.grid(axis="both")


# --- over the latency ----------------------------------------------------------------------------

Value = Callable[[Row], Any]  # of a row at one latency: an estimate, or None

_SPEED = "stream_samples_per_s"


def draw_speed_over_latency(found: Mapping[str, Any]) -> Figure | None:
    """Draw samples per second and ceilings over the latency, a line for each row, both axes
    logarithmic.

    Fills and drains are left out if all rows know them. A point is the mean over the seeds, with
    its 95 % interval. Rows without links are level lines. A latency of 0 has no logarithm: it
    stands at the left, a little apart from the smallest other latency.
    """
    rows = found["rows"]
    if not latencies_of(found) or not any(row.get("samples_per_s") for row in rows):
        return None
    known = [row for row in rows if row.get("runs")]
    streamed = all(row.get(_SPEED) for row in known)
    key = _SPEED if streamed else "samples_per_s"
    figure, (axes,) = _figure(0.6 + 3.6)
    _lines(axes, found, lambda row: row.get(key))
    _ceilings(axes, found)
    axes.set_ylabel(COLUMNS[key].axis)
    _finish_latency(figure, [axes], found)
    return figure


def draw_times_over_latency(found: Mapping[str, Any]) -> Figure | None:
    """Draw the seconds of training to each target that all runs of some row reached: a panel
    each."""
    rows, targets = found["rows"], found.get("targets") or ()
    reached = [
        index
        for index in range(len(targets))
        if any(row["targets"][index]["time_s"] for row in rows if row.get("targets"))
    ]
    if not latencies_of(found) or not reached:
        return None
    figure, panels = _figure(0.6 + 3.6 * len(reached), len(reached))
    for axes, index in zip(panels, reached, strict=True):
        _lines(axes, found, _time_to(index))
        axes.set_ylabel("training time in seconds")
        axes.set_title(f"to {accuracy_words(targets[index])} test accuracy", loc="left")
    _finish_latency(figure, panels, found)
    return figure


def _lines(axes: Axes, found: Mapping[str, Any], value: Value) -> None:
    colours = row_colours(found["rows"])
    for index, (name, rows) in enumerate(_by_name(found).items()):
        known = _points(rows, value)
        if not known:
            continue
        axes.errorbar(
            [x for x, _ in known],
            [one.mean for _, one in known],
            yerr=_spread([one for _, one in known]),
            color=colours[name],
            linewidth=1.7,
            linestyle=(0, (4, 1.5)) if rows[0].get("control") else "-",
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4.5,
            capsize=3,
            elinewidth=1.0,
            label=_row_label(rows[0]),
        )


def _time_to(index: int) -> Value:
    return lambda row: row["targets"][index]["time_s"]


def _spread(found: Sequence[Any]) -> list[list[float]]:
    """Return how far each interval reaches below and above its mean.

    An interval that reaches below 0 has no end on a logarithmic axis: it is cut at 1 % of the mean.
    """
    below = [
        one.mean - max(one.low, 0.01 * one.mean) if one.low is not None else 0.0 for one in found
    ]
    above = [one.high - one.mean if one.high is not None else 0.0 for one in found]
    return [below, above]


def _ceilings(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw the ceilings as dotted lines in the colours of their rows."""
    colours = row_colours(found["rows"])
    for name, rows in _by_name(found).items():
        points = _points(rows, lambda row: row.get("ceiling_samples_per_s"))
        if points:
            means = [(x, one.mean) for x, one in points]
            axes.plot(*zip(*means, strict=True), color=colours[name], linewidth=1.0, linestyle=":")


def _points(rows: Sequence[Row], value: Value) -> list[tuple[float, Estimate]]:
    """Return (milliseconds of latency, estimate) of the rows that have an estimate."""
    points = [(1000 * row["latency_s"], as_estimate(value(row))) for row in rows]
    return [(x, one) for x, one in points if one is not None]


def _by_name(found: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of each name, at rising latency."""
    names = dict.fromkeys(row["name"] for row in found["rows"])
    return {name: [row for row in found["rows"] if row["name"] == name] for name in names}


def _finish_latency(figure: Figure, panels: Sequence[Axes], found: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [1000 * one for one in latencies_of(found)]
    least = min(one for one in ticks if one > 0)
    for axes in panels:
        axes.set_yscale("log")
        axes.set_xscale("symlog", linthresh=least, linscale=0.6)
        axes.set_xlim(-0.2 * least if ticks[0] == 0 else 0.8 * least, 1.25 * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(_plain_number)
        axes.grid(axis="both")
    panels[-1].set_xlabel("one-way latency of the links in milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5))
