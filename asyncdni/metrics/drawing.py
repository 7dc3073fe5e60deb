"""Boxes, lines and words on a sheet, and the two ways to put them on one: SVG and PNG.

One unit is a pixel of the SVG; the PNG has `_SCALE` of its own to each. y grows downwards.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from asyncdni.errors import ConfigError
from asyncdni.metrics.plots import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.artist import Artist

__all__ = ["Box", "Drawing", "Line", "Words", "png", "svg"]

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
    title: str = ""  # shown by browsers where the pointer is
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
    """One line of text; `y` is its base line, `anchor` what of it stands at `x`."""

    x: float
    y: float
    text: str
    size: float = 13
    anchor: str = "start"  # "middle", "end"
    colour: str = "#222222"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A white sheet; later shapes cover earlier ones."""

    width: int
    height: int
    shapes: Sequence[Box | Line | Words]


def svg(drawing: Drawing) -> str:
    """The drawing as a text that needs nothing but a browser."""
    size = f'width="{drawing.width}" height="{drawing.height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width} {drawing.height}" '
        'font-family="sans-serif">',
        '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<path d="M-1 1L1 -1M0 5L5 0M4 6L6 4" stroke="{_HATCH}" stroke-width="0.7"/></pattern>',
        f'<rect {size} fill="#ffffff"/>',
    ]
    return "\n".join([*head, *map(_element, drawing.shapes), "</svg>"]) + "\n"


def _element(shape: Box | Line | Words) -> str:
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
        case _:
            raise TypeError(f"no way to draw {shape!r}")


def png(drawing: Drawing) -> bytes:
    """The same as pixels, two to a unit. Raises `ConfigError` without the extra `plot`."""
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
    for layer, shape in enumerate(drawing.shapes):
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
        case _:
            raise TypeError(f"no way to draw {shape!r}")
