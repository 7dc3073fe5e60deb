"""Plots of a comparison, with matplotlib: SVG to read and to put into a page, PNG to show around.

matplotlib is an extra (`plot`) and is imported only where something is drawn. Axes and words are
drawn in few known colours, which `inline` turns into CSS variables: in a page the same picture
follows the reader's light or dark scheme, while the files stand on white.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from asyncdni.metrics.latencies import slices, suffix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "MISSING_EXTRA",
    "MUTED",
    "STYLE",
    "Plot",
    "available",
    "draw_plots",
    "import_matplotlib",
    "inline",
    "styled",
]

#: What to say where there is no matplotlib.
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
    "text.parse_math": False,  # a name with dollars in it is no formula
    "svg.fonttype": "none",  # words stay words: to be searched, read aloud, and coloured by CSS
}


@dataclass(frozen=True)
class Plot:
    """One picture, on white."""

    svg: bytes
    png: bytes


def available() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return find_spec("matplotlib") is not None


def import_matplotlib() -> None:
    """For pictures without a screen: what $MPLBACKEND says of one, which may be nonsense on this
    machine, is not looked at. Raises `ImportError`."""
    given = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401 - reads its settings
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our style. Needs matplotlib."""
    import_matplotlib()
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def draw_plots(found: Mapping[str, Any]) -> dict[str, Plot]:
    """By file name, those that the document has numbers for; of several latencies one of each kind
    at each (`shares-10ms`), and those over the latency. Needs matplotlib."""
    from asyncdni.metrics.plot_latency import draw_speed_over_latency, draw_times_over_latency

    with styled():
        figures = {
            "speed_over_latency": draw_speed_over_latency(found),
            "time_over_latency": draw_times_over_latency(found),
        }
        for latency_s, part in slices(found):
            drawn = _figures(part)
            figures |= {f"{name}{suffix(latency_s)}": one for name, one in drawn.items()}
        return {name: _rendered(name, one) for name, one in figures.items() if one is not None}


def _figures(found: Mapping[str, Any]) -> dict[str, Figure | None]:
    """At one latency."""
    from asyncdni.metrics.plot_bars import draw_shares, draw_speed, draw_times
    from asyncdni.metrics.plot_curves import draw_curves

    return {
        "accuracy_over_time": draw_curves(found, "train_s"),
        "accuracy_over_samples": draw_curves(found, "samples"),
        "samples_per_s": draw_speed(found),
        "time_to_target": draw_times(found),
        "shares": draw_shares(found),
    }


def inline(name: str, svg: bytes) -> str:
    """The SVG element alone, to stand in an HTML page among others.

    Its ids begin with `name`, it takes the width it is given, and INK, MUTED and GRID become the
    CSS variables --ink, --muted and --line; its ground is transparent.
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


def _rendered(name: str, figure: Figure) -> Plot:
    from matplotlib import rc_context

    svg, png = io.BytesIO(), io.BytesIO()
    # Ids from the name and no date: the same numbers give the same file.
    with rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", metadata=nothing)
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(svg.getvalue(), png.getvalue())
