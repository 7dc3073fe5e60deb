"""The reports of a comparison: CSV for those who count again, plots, and one page for readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncdni.report.page import render_page
from asyncdni.report.plots import MISSING_EXTRA, available, draw_plots, inline
from asyncdni.report.statistics import evaluations_csv, runs_csv
from asyncdni.store.tensors import write_atomically

__all__ = ["write_reports"]

# --- report --------------------------------------------------------------------------------------
#
# The reports of a comparison: CSV for those who count again, plots, and one page for readers.


def write_reports(found: Mapping[str, Any], folder: Path, *, plots: bool = True) -> list[Path]:
    """Write compare.csv, compare-evaluations.csv, plots/*.svg and *.png, compare.html.

    Returns their paths in that order, all in `folder`. Plots need matplotlib, the extra `plot`:
    without it they are left out, and the page says `plots.MISSING_EXTRA`. `found` is the document
    of compare.json; each file is written whole or not at all. Raises `CheckpointError` where the
    folder can't be written.
    """
    drawn = draw_plots(found) if plots and available() else {}
    contents = {
        "compare.csv": runs_csv(found).encode(),
        "compare-evaluations.csv": evaluations_csv(found).encode(),
    }
    for name, plot in drawn.items():
        contents[f"plots/{name}.svg"] = plot.svg
        contents[f"plots/{name}.png"] = plot.png
    missing = MISSING_EXTRA if plots and not available() else ""
    inlined = {name: inline(name, plot.svg) for name, plot in drawn.items()}
    contents["compare.html"] = render_page(found, inlined, missing).encode()
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
