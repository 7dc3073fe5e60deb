"""How good the network was after so many seconds, or samples: every seed, and the mean of each row.

Accuracies are drawn over the logarithm of the error, where the last tenths of a point are as wide
as the first ones: on a plain scale all curves end in one line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncdni.metrics.palette import row_colours, row_label
from asyncdni.metrics.plots import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "mean_curve"]

History = Sequence[Mapping[str, Any]]
_LABELS = {"train_s": "training time in seconds, evaluations left out", "samples": "samples"}
_MARKERS = "osD^vPX"
#: Accuracies in per cent that may stand beside the axis: the fewer first, if they are enough.
_TICKS = (
    (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9),
    (*range(0, 90, 10), *range(90, 97), 97, 97.5, 98, 98.5, *(99 + k / 10 for k in range(10))),
    (*range(0, 90, 2), *(90 + k / 2 for k in range(18)), *(99 + k / 10 for k in range(10))),
)
_TICKS_MIN = 4


def draw_curves(found: Mapping[str, Any], along: str) -> Figure | None:
    """Test accuracy (test loss where there is none) over `along`: train_s or samples."""
    from matplotlib.figure import Figure

    measure = _measure(found)
    if measure is None:
        return None
    figure = Figure(figsize=(7.4, 4.1), layout="constrained")
    axes = figure.subplots()
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
        axes.set_ylabel("test loss")
    _plain_axis(axes, along)
    figure.legend(loc="outside upper left", ncols=min(len(found["rows"]), 5))
    return figure


def mean_curve(histories: Sequence[Sequence[tuple[float, float, float]]]) -> list[list[float]]:
    """[x, y] of each evaluation that all have, told by its samples: both are means over the seeds.

    Each point is (samples, x, y). Curves of unlike length end together, so that no mean jumps
    where a seed drops out.
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
    """What to draw: the loss only where no run has an accuracy."""
    known = {key for one in _evaluations(found) for key in one if one[key] is not None}
    return next((key for key in ("accuracy", "loss") if key in known), None)


def _histories(found: Mapping[str, Any], name: str) -> list[History]:
    summaries = [run["summary"] for run in found["runs"] if run["name"] == name]
    return [history for summary in summaries if (history := summary.get("history"))]


def _evaluations(found: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (one for row in found["rows"] for h in _histories(found, row["name"]) for one in h)


def _smallest_error(found: Mapping[str, Any]) -> float:
    """Above 0: an error of none at all has no logarithm, and is drawn at half of this one."""
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
    row: Mapping[str, Any],
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
        label=row_label(row),
    )


def _accuracy_axis(axes: Axes, targets: Sequence[float], floor: float) -> None:
    """`axes` hold errors: written as accuracies, the best at the top."""
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
    axes.set_ylabel("test accuracy")


def _plain_axis(axes: Axes, along: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xlim(left=0.0)
    axes.set_xlabel(_LABELS[along])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(axis="both")
