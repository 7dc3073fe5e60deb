"""A picture of which op each worker ran when, drawn from the traces of real runs (SVG).

One panel a run, one row a stage, one box an op; all panels on one time scale, so that the locked
staircase and the decoupled wall can be compared by eye.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from asyncdni.errors import CheckpointError

__all__ = ["Panel", "TracedOp", "draw", "read_trace"]

#: letter -> (colour, what it is called in the legend)
COLOURS = {
    "F": ("#4878a8", "forward"),
    "B": ("#d98a3d", "backward"),
    "b": ("#e9bd91", "true gradient passed on"),
    "C": ("#b8604a", "late correction"),
    "U": ("#5a9a5a", "update"),
    "P": ("#9a6fb0", "generator predicts"),
    "T": ("#c9aed6", "generator is fitted"),
    "R": ("#a8a8a8", "data"),
}
_WIDTH = 960
_LABEL = 90
_ROW = 26
_GAP = 46
_HEAD = 34
_FOOT = 58


@dataclass(frozen=True)
class TracedOp:
    """One op of one worker; times in seconds on the host's monotonic clock."""

    letter: str
    batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Panel:
    """One run: a title, and the ops of each stage in order."""

    title: str
    stages: dict[str, list[TracedOp]]


def read_trace(folder: Path, stages: Sequence[str]) -> dict[str, list[TracedOp]]:
    """The ops of each worker of a run made with `--trace`. Raises `CheckpointError`."""
    found = {}
    for stage in stages:
        path = folder / "trace" / f"{stage}.jsonl"
        try:
            lines = path.read_text().splitlines()
            found[stage] = [TracedOp(*json.loads(line)) for line in lines]
        except FileNotFoundError:
            raise CheckpointError(f"no trace at {path}: train with --trace") from None
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is no trace: {error}") from error
    return found


def draw(panels: Sequence[Panel], window_s: float, *, at: float = 0.5) -> str:
    """An SVG of `window_s` seconds of each run, beginning at the fraction `at` of it."""
    rows = sum(len(panel.stages) for panel in panels)
    height = _HEAD + rows * _ROW + len(panels) * _GAP + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    y = 10
    for panel in panels:
        parts += _panel(panel, window_s, at, y)
        y += _GAP + len(panel.stages) * _ROW
    parts += _axis(window_s, y + 4)
    parts += _legend(panels, y + 44)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, window_s: float, at: float, y: int) -> list[str]:
    begin_s = _begin(panel, window_s, at)
    parts = [f'<text x="{_LABEL}" y="{y + 16}" font-weight="bold">{escape(panel.title)}</text>']
    y += 26
    for stage, ops in panel.stages.items():
        parts.append(
            f'<text x="{_LABEL - 8}" y="{y + 17}" text-anchor="end">{escape(stage)}</text>'
            f'<rect x="{_LABEL}" y="{y}" width="{_WIDTH - _LABEL - 10}" height="{_ROW - 4}" '
            'fill="#f1f1f1"/>'
        )
        parts += [_box(op, begin_s, window_s, y) for op in ops if _seen(op, begin_s, window_s)]
        y += _ROW
    return parts


def _begin(panel: Panel, window_s: float, at: float) -> float:
    """The first op of the first stage after the fraction `at` of the run."""
    ops = [op for stage in panel.stages.values() for op in stage]
    if not ops:
        raise CheckpointError(f"the trace of {panel.title!r} holds no ops: epochs = 0?")
    first, last = min(op.start_s for op in ops), max(op.end_s for op in ops)
    wanted = first + at * max(0.0, last - first - window_s)
    reads = next(iter(panel.stages.values()))
    return next((op.start_s for op in reads if op.start_s >= wanted and op.letter == "F"), wanted)


def _seen(op: TracedOp, begin_s: float, window_s: float) -> bool:
    return op.end_s > begin_s and op.start_s < begin_s + window_s


def _x(time_s: float, begin_s: float, window_s: float) -> float:
    inside = min(1.0, max(0.0, (time_s - begin_s) / window_s))
    return _LABEL + inside * (_WIDTH - _LABEL - 10)


def _box(op: TracedOp, begin_s: float, window_s: float, y: int) -> str:
    left, right = _x(op.start_s, begin_s, window_s), _x(op.end_s, begin_s, window_s)
    colour = COLOURS.get(op.letter, ("#000", ""))[0]
    box = (
        f'<rect x="{left:.1f}" y="{y}" width="{max(0.6, right - left):.1f}" '
        f'height="{_ROW - 4}" fill="{colour}"><title>{op.letter}{op.batch}: '
        f"{(op.end_s - op.start_s) * 1e6:.0f} µs</title></rect>"
    )
    if right - left < 26:
        return box
    middle = (left + right) / 2
    label = f"{op.letter}{op.batch}"
    return box + (
        f'<text x="{middle:.1f}" y="{y + 15}" text-anchor="middle" font-size="10" '
        f'fill="#fff">{label}</text>'
    )


def _axis(window_s: float, y: int) -> list[str]:
    step_ms = next(
        (s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if window_s * 1e3 / s <= 12), 1000
    )
    parts = []
    for i in range(int(window_s * 1e3 / step_ms) + 1):
        x = _x(i * step_ms / 1e3, 0.0, window_s)
        anchor = "middle" if x < _WIDTH - 30 else "end"  # the last one must not be cut off
        parts.append(
            f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{y}" stroke="#888"/>'
            f'<text x="{x:.1f}" y="{y + 13}" text-anchor="{anchor}" font-size="11">'
            f"{i * step_ms:g} ms</text>"
        )
    return parts


def _legend(panels: Sequence[Panel], y: int) -> list[str]:
    used = {op.letter for panel in panels for ops in panel.stages.values() for op in ops}
    parts, x = [], float(_LABEL)
    for letter, (colour, name) in COLOURS.items():
        if letter not in used:
            continue
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{x + 16:.0f}" y="{y}" font-size="11">{name}</text>'
        )
        x += 30 + 5.9 * len(name)
    return parts
