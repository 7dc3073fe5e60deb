"""One colour a row, the same in every plot and table.

Rows take the colours of Okabe and Ito ("Color universal design", 2008), told apart by all kinds of
colour vision, in an order that keeps neighbours far apart. Yellow is left out, it is lost on white,
and the blue is a little lighter, so that it is not lost on black. A violet and a brown follow them.
The parts of a worker's time have colours of their own (Paul Tol's muted scheme), so that none is
taken for a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SHARES", "row_colours", "row_label"]

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

#: Part of the wall time of all workers -> (colour, what it is called).
SHARES = {
    "layers": ("#44aa99", "layer maths"),
    "generator": ("#cc6677", "generator maths"),
    "transport": ("#ddcc77", "transport"),
    "waiting": ("#d3d7dc", "waiting"),
    "other": ("#a3aab3", "other"),
}


def row_colours(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """`#rrggbb` by the row's name; from the tenth row on they repeat."""
    names = dict.fromkeys(row["name"] for row in rows)
    return {name: _ROWS[index % len(_ROWS)] for index, name in enumerate(names)}


def row_label(row: Mapping[str, Any]) -> str:
    """The row's name, marked where it is a control."""
    return f"{row['name']} (control)" if row.get("control") else str(row["name"])
