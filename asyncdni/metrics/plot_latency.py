"""Speed and time to each target over the latency of the links: one line a row, both axes log.

A point is the mean over the seeds, the line through it the 95 % interval. What has no links is
level. No latency at all has no logarithm: it stands at the left, as far from the least one above it
as that makes visible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncdni.metrics.latencies import latencies_of
from asyncdni.metrics.numerals import as_estimate
from asyncdni.metrics.palette import row_colours, row_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_speed_over_latency", "draw_times_over_latency"]

Row = Mapping[str, Any]
Value = Callable[[Row], Any]  # of a row at one latency: an estimate, or None

_MARKERS = "osD^vPX"
_SPEED = "stream_samples_per_s"


def draw_speed_over_latency(found: Mapping[str, Any]) -> Figure | None:
    """Samples a second, fills and drains left out where all rows know them, and their ceilings."""
    rows = found["rows"]
    if not latencies_of(found) or not any(row.get("samples_per_s") for row in rows):
        return None
    known = [row for row in rows if row.get("runs")]
    streamed = all(row.get(_SPEED) for row in known)
    key = _SPEED if streamed else "samples_per_s"
    figure, (axes,) = _figure(1)
    _lines(axes, found, lambda row: row.get(key))
    _ceilings(axes, found)
    axes.set_ylabel(f"samples per second{', fills and drains left out' if streamed else ''}")
    _finish(figure, [axes], found)
    return figure


def draw_times_over_latency(found: Mapping[str, Any]) -> Figure | None:
    """Seconds of training to each target that all runs of any row reached: a panel each."""
    rows, targets = found["rows"], found.get("targets") or ()
    reached = [
        index
        for index in range(len(targets))
        if any(row["targets"][index]["time_s"] for row in rows if row.get("targets"))
    ]
    if not latencies_of(found) or not reached:
        return None
    figure, panels = _figure(len(reached))
    for axes, index in zip(panels, reached, strict=True):
        _lines(axes, found, _time_to(index))
        axes.set_ylabel("training time in seconds")
        axes.set_title(f"to {100 * targets[index]:.6g} % test accuracy", loc="left")
    _finish(figure, panels, found)
    return figure


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 0.6 + 3.6 * panels), layout="constrained")
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def _lines(axes: Axes, found: Mapping[str, Any], value: Value) -> None:
    colours = row_colours(found["rows"])
    for index, (name, rows) in enumerate(_by_name(found).items()):
        points = [(1000 * row["latency_s"], as_estimate(value(row))) for row in rows]
        known = [(x, one) for x, one in points if one is not None]
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
            label=row_label(rows[0]),
        )


def _time_to(index: int) -> Value:
    return lambda row: row["targets"][index]["time_s"]


def _spread(found: Sequence[Any]) -> list[list[float]]:
    """Below and above each mean; an interval that goes below 0 has no end on a log axis."""
    below = [
        one.mean - max(one.low, 0.01 * one.mean) if one.low is not None else 0.0 for one in found
    ]
    above = [one.high - one.mean if one.high is not None else 0.0 for one in found]
    return [below, above]


def _ceilings(axes: Axes, found: Mapping[str, Any]) -> None:
    """Dotted, in the colour of the row."""
    colours = row_colours(found["rows"])
    for name, rows in _by_name(found).items():
        points = [
            (1000 * row["latency_s"], as_estimate(row.get("ceiling_samples_per_s"))) for row in rows
        ]
        known = [(x, one.mean) for x, one in points if one is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=colours[name], linewidth=1.0, linestyle=":")


def _by_name(found: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of each name, at rising latency."""
    names = dict.fromkeys(row["name"] for row in found["rows"])
    return {name: [row for row in found["rows"] if row["name"] == name] for name in names}


def _finish(figure: Figure, panels: Sequence[Axes], found: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = [1000 * one for one in latencies_of(found)]
    least = min(one for one in ticks if one > 0)
    for axes in panels:
        axes.set_yscale("log")
        axes.set_xscale("symlog", linthresh=least, linscale=0.6)
        axes.set_xlim(-0.2 * least if ticks[0] == 0 else 0.8 * least, 1.25 * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(axis="both")
    panels[-1].set_xlabel("one-way latency of the links in milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5))
