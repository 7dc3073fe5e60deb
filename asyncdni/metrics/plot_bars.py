"""Bars of a comparison: speed beside its ceiling, time to each target, and where the time went.

A bar is the mean over the seeds, the line through its end the 95 % interval, a ring each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncdni.metrics.comparison import Estimate
from asyncdni.metrics.flat_runs import flat_runs, time_key
from asyncdni.metrics.numerals import as_estimate, fixed, percent
from asyncdni.metrics.palette import SHARES, row_colours, row_label
from asyncdni.metrics.plots import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_shares", "draw_speed", "draw_times"]

_WIDTH = 7.4
_ROW = 0.42  # inches
_THICK = 0.62  # of a row
#: On the light colours of SHARES in both schemes, so no colour that a page replaces.
_ON_SHARES = "#15181c"
_CEILING = "; dashed: the ceiling that the run's own op times set"
_SPEEDS = ("samples_per_s", "ceiling_samples_per_s")


def draw_speed(found: Mapping[str, Any]) -> Figure | None:
    """Samples a second of each row, and how many its ceiling allows."""
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
    axes.set_xlabel(f"samples per second{_CEILING if known else ''}")
    _finish([axes], rows, room=1.38 if known else 1.16)
    return figure


def draw_times(found: Mapping[str, Any]) -> Figure | None:
    """Seconds of training to each target that any run reached: a panel each, on one scale."""
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
        axes.set_title(f"to {100 * target:.6g} % test accuracy", loc="left")
    _finish(panels, rows, room=1.16)
    panels[-1].set_xlabel("training time in seconds, evaluations left out")
    return figure


def draw_shares(found: Mapping[str, Any]) -> Figure | None:
    """Parts of the wall time of all workers of a row."""
    rows = [row for row in found["rows"] if row.get("shares")]
    if not rows:
        return None
    figure, (axes,) = _figure(0.8 + _ROW * len(rows))
    for y, row in enumerate(rows):
        left = 0.0
        for part, (colour, _) in SHARES.items():
            share = row["shares"].get(part) or 0.0
            axes.barh(y, share, _THICK, left, color=colour)
            if share >= 0.045:  # narrower ones have no room for words
                text = f"{100 * share:.0f} %"
                axes.text(left + share / 2, y, text, ha="center", va="center", color=_ON_SHARES)
            left += share
    _legend(figure)
    _finish([axes], rows, room=1.0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("share of the wall time of all workers")
    return figure


def _figure(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def _bar(axes: Axes, y: int, one: Estimate, row: Mapping[str, Any], colour: str) -> None:
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
    """Words to the right of all that is drawn in the row."""
    x = max((end for end in ends if end is not None), default=0.0)
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=colour)


def _speed_label(speed: Estimate, ceiling: Estimate | None, row: Mapping[str, Any]) -> str:
    efficiency = as_estimate(row.get("efficiency"))
    if ceiling is None:
        return fixed(speed.mean)
    text = f"{fixed(speed.mean)} of {fixed(ceiling.mean)}"
    return text if efficiency is None else f"{text} ({percent(efficiency.mean, 0)})"


def _mean_time(row: Mapping[str, Any], target: float) -> Estimate | None:
    """Seconds; None unless all runs of the row reached the target."""
    entries = [one for one in row.get("targets") or () if one["accuracy"] == target]
    return as_estimate(entries[0].get("time_s")) if entries else None


def _time(
    axes: Axes,
    y: int,
    mean: Estimate | None,
    values: Sequence[float | None],
    row: Mapping[str, Any],
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

    patches = [Patch(color=colour, label=label) for colour, label in SHARES.values()]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches))


def _finish(panels: Sequence[Axes], rows: Sequence[Mapping[str, Any]], *, room: float) -> None:
    """Names at the left, the first row at the top; `room` times the longest bar, for the words."""
    right = max(axes.dataLim.x1 for axes in panels)
    for axes in panels:
        axes.set_yticks(range(len(rows)), [row_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0.0, room * right)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
