"""What a `Result` shows of its run: curves, a timeline, and a table for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from asyncdni.errors import ConfigError
from asyncdni.report.columns import STAGE_COLUMNS, percent
from asyncdni.report.plots import Plot, available, import_matplotlib, inline, rendered, styled
from asyncdni.report.timeline import Drawing, draw, panel
from asyncdni.store.run import Result

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_run", "draw_timeline", "plot_run", "run_html", "template_environment"]

#: Evaluations that the table of a notebook has room for, the last ones.
_EVALUATIONS = 8
#: Columns of the table of stages, of those of `STAGE_COLUMNS`.
_SHOWN = ("updates", "busy_fraction", "staleness_mean", "gradient_cosine")


def draw_run(run: Result) -> Figure:
    """Draw loss, and accuracy where the run has one, over the samples trained on.

    Raises `ConfigError` without the extra `plot`, and for a run without an evaluation.
    """
    history = run.history
    if not history:
        raise ConfigError("the run has no evaluation to draw: see run.evaluate_every")
    try:
        import_matplotlib()
    except ImportError as error:
        raise ConfigError(
            "plots are drawn with matplotlib, which is not installed: pip install 'asyncdni[plot]'"
        ) from error
    from matplotlib.figure import Figure

    scored = any(entry["accuracy"] is not None for entry in history)
    with styled():
        figure = Figure(figsize=(4.2 * (1 + scored), 3.0), layout="constrained")
        panels = figure.subplots(1, 1 + scored, squeeze=False)[0]
        _curve(panels[0], history, "loss", "test")
        _curve(panels[0], history, "train_loss", "training")
        panels[0].set(xlabel="samples", ylabel="loss")
        panels[0].legend()
        if scored:
            _curve(panels[1], history, "accuracy", "test")
            panels[1].set(xlabel="samples", ylabel="accuracy of the test set")
    return figure


def plot_run(run: Result) -> Plot:
    """Draw the figure of `draw_run` as a picture; raises as it does."""
    return rendered(f"run{run.summary['seed']}", draw_run(run))


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    """Draw one value of the history, where it is known."""
    points = [(e["samples"], e[name]) for e in history if e.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)


def draw_timeline(run: Result, window_s: float, *, at: float, messages: bool) -> Drawing:
    """Draw `window_s` seconds of a run that was traced; the arguments are those of
    `report.timeline.draw`.

    Raises `ConfigError` for a run that kept no trace.
    """
    return draw([panel(run)], window_s, at=at, messages=messages)


def run_html(run: Result) -> str:
    """Return the run as HTML for a notebook: its figures, its last evaluations, its stages, and its
    curves where matplotlib is there to draw them."""
    summary, history = run.summary, run.history
    curves = ""
    if history and available():
        curves = inline("run", plot_run(run).svg)
    stages = [
        (stage["name"], [STAGE_COLUMNS[name].text(stage.get(name)) for name in _SHOWN])
        for stage in summary.get("stages", ())
    ]
    return (
        template_environment()
        .from_string(files("asyncdni.report").joinpath("result.html.jinja").read_text("utf-8"))
        .render(
            summary=summary,
            accuracy=percent(run.test_accuracy),
            history=history[-_EVALUATIONS:],
            left_out=max(0, len(history) - _EVALUATIONS),
            headings=[STAGE_COLUMNS[name].heading for name in _SHOWN],
            stages=stages,
            curves=curves,
            folder=run.folder,
        )
    )


def template_environment() -> Environment:
    """Return the environment of all templates; it escapes every value that a template does not call
    safe."""
    from jinja2 import Environment, StrictUndefined  # imported here: workers never need it

    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
