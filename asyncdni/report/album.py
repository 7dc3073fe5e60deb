"""Files in a run's folder that show its cost and what the network has learnt.

Pictures need the extra `plot`; texts and tables do not.

```
sample.txt           a generated text                            a text
curve.csv, .png      a curve continued, beside the truth         a curve
prior.png            images drawn from the prior                 a variational autoencoder
reconstructions.png  test images and their reconstructions       a variational autoencoder
predictions.png      test images and their predicted classes     images with labels
cost.png             test loss and wrong answers over epochs     all of these
```
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asyncdni.data.meta import Array
from asyncdni.imports import Allowed
from asyncdni.report import plots
from asyncdni.report.plots import GRID, INK, MUTED, row_colours, styled
from asyncdni.sampling import (
    Curve,
    Reconstructions,
    as_csv,
    classifies_images,
    continue_curve,
    continue_text,
    draw_images,
    has_prior,
    predict_images,
    reconstruct,
    tells_characters,
    tells_points,
)
from asyncdni.store.run import Result
from asyncdni.store.tensors import write_atomically

__all__ = [
    "cost_picture",
    "curve_picture",
    "grid_picture",
    "has_something_to_show",
    "leave_samples",
    "pairs_picture",
    "predictions_picture",
    "write_curve",
    "write_images",
    "write_reconstructions",
]


def has_something_to_show(run: Result) -> bool:
    """Tell whether what the run has learnt can be looked at or read."""
    kinds = (tells_characters, tells_points, has_prior, classifies_images)
    return any(is_one(run) for is_one in kinds)


def leave_samples(run: Result, *, allow_import: Allowed = False) -> list[Path]:
    """Write all files that show what the run has learnt to its folder; return their paths.

    Raises `DataError` if the data set is missing, and `ConfigError` for a network that can't be
    sampled from although its data suggest it.
    """
    assert run.folder is not None, "a run that is kept on disk"
    if not has_something_to_show(run):
        return []
    files: list[Path] = []
    if tells_characters(run):
        text = continue_text(run, allow_import=allow_import)
        files.append(_written(run.folder / "sample.txt", f"{text}\n".encode()))
    elif tells_points(run):
        files += write_curve(run.folder, continue_curve(run, allow_import=allow_import))
    if plots.available():
        files += _cost(run, run.folder)
        if has_prior(run):
            files += write_images(run.folder, draw_images(run, allow_import=allow_import))
            made = reconstruct(run, allow_import=allow_import)
            files += write_reconstructions(run.folder, made)
        elif classifies_images(run):
            files += _predictions(run, run.folder, allow_import)
    return files


def write_curve(folder: Path, curve: Curve) -> Iterator[Path]:
    """Write curve.csv and, with the extra `plot`, curve.png."""
    yield _written(folder / "curve.csv", as_csv(curve).encode())
    if plots.available():
        picture = curve_picture(curve.truth, curve.generated, curve.error)
        yield _written(folder / "curve.png", picture)


def write_images(folder: Path, images: Array) -> Iterator[Path]:
    """Write prior.png; needs the extra `plot`."""

    picture = grid_picture(images, "drawn from the prior")
    yield _written(folder / "prior.png", picture)


def write_reconstructions(folder: Path, found: Reconstructions) -> Iterator[Path]:
    """Write reconstructions.png; needs the extra `plot`."""

    yield _written(folder / "reconstructions.png", pairs_picture(found.images, found.made))


def _cost(run: Result, folder: Path) -> Iterator[Path]:
    if len(run.history) > 1:
        history = run.history
        if has_prior(run):  # the share of correct pixels would mean nothing
            history = [{**one, "accuracy": None} for one in history]
        picture = cost_picture(history, run.meta.train_samples)
        yield _written(folder / "cost.png", picture)


def _predictions(run: Result, folder: Path, allow_import: Allowed) -> Iterator[Path]:

    found = predict_images(run, allow_import=allow_import)
    picture = predictions_picture(found.images, found.truth, found.predicted)
    yield _written(folder / "predictions.png", picture)


def _written(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path


# --- pictures of one run, as PNG, in the style of `plots` ----------------------------------------

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


Pixels = NDArray[Any]
#: The first two colours of a comparison's rows, easily told apart with any colour vision.
FIRST, SECOND = row_colours([{"name": "first"}, {"name": "second"}]).values()
_DPI = 160
_IMAGE = 0.62  # inches, of one in a grid
_COLUMNS = 10


def cost_picture(history: Sequence[Mapping[str, Any]], samples_per_epoch: int) -> bytes:
    """Draw test loss over epochs and, for classes, the share of wrong answers.

    `history` is that of a run's summary, with at least two evaluations.
    """
    return _png(lambda: _draw_cost(history, samples_per_epoch))


def curve_picture(truth: Pixels, generated: Pixels, error: float) -> bytes:
    """Draw a curve (given + N, 2) and its continuation (N, 2) from its first points."""
    return _png(lambda: _curve(truth, generated, error))


def grid_picture(images: Pixels, title: str) -> bytes:
    """Draw images (N, H, W), or colour images (N, H, W, 3), side by side."""
    return _png(lambda: _grid(images, title))


def pairs_picture(images: Pixels, made: Pixels) -> bytes:
    """Draw test images, each above its reconstruction."""
    return _png(lambda: _pairs(images, made))


def predictions_picture(images: Pixels, truth: Sequence[str], predicted: Sequence[str]) -> bytes:
    """Draw test images under their predicted classes; wrong ones also show the true class."""
    return _png(lambda: _draw_predictions(images, truth, predicted))


def _png(draw: Callable[[], Figure]) -> bytes:
    file = io.BytesIO()
    with styled():
        draw().savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# --- curves --------------------------------------------------------------------------------------


def _draw_cost(history: Sequence[Mapping[str, Any]], samples_per_epoch: int) -> Figure:
    epochs = [one["samples"] / samples_per_epoch for one in history]
    losses = [one["loss"] for one in history]
    answers = [one["accuracy"] for one in history]
    known = None not in answers
    figure = _figure(7.4 if known else 4.6, 3.0)
    panels = list(figure.subplots(1, 2 if known else 1, squeeze=False)[0])
    _line(panels[0], epochs, losses, FIRST)
    panels[0].set_title("test loss", loc="left")
    if 0 < 10 * min(losses) < max(losses):  # on a linear scale its end would lie on the axis
        panels[0].set_yscale("log")
    if known:
        wrong = [100 * (1 - answer) for answer in answers]
        _line(panels[1], epochs, wrong, SECOND)
        panels[1].set_title("wrong answers in the test, per cent", loc="left")
        panels[1].set_ylim(0, 1.1 * max(*wrong, 1))
    return figure


def _line(axes: Axes, epochs: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(epochs, y, color=colour, linewidth=1.6, marker="o", markersize=3.2, clip_on=False)
    axes.set_xlim(0, epochs[-1])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epochs")
    axes.grid()


def _curve(truth: Pixels, generated: Pixels, error: float) -> Figure:
    given = len(truth) - len(generated)
    steps, made = np.arange(len(truth)), f"generated, mean absolute error {error:.3f}"
    figure = _figure(7.4, 4.4)
    panels = list(figure.subplots(2, 1, sharex=True))
    for axes, column, name in zip(panels, (0, 1), ("cosine", "sine"), strict=True):
        axes.axvspan(0, given - 1, color=GRID, linewidth=0)
        axes.plot(steps, truth[:, column], color=MUTED, alpha=0.45, linewidth=4, label="truth")
        axes.plot(steps[given:], generated[:, column], "o-", color=FIRST, ms=2.6, lw=1, label=made)
        axes.set_ylabel(name)
        axes.set_ylim(-1.35, 1.35)
        axes.set_yticks([-1, 0, 1])
        axes.grid(axis="y")
    words = f"the first {given} points are given"
    panels[0].text(given, 1.2, words, color=MUTED, va="center", fontsize=8)
    panels[1].set_xlabel("step")
    panels[1].set_xlim(0, len(truth) - 0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return figure


# --- images --------------------------------------------------------------------------------------


def _grid(images: Pixels, title: str) -> Figure:
    columns = min(len(images), max(_COLUMNS, math.ceil(math.sqrt(len(images)))))
    rows = -(-len(images) // columns)
    figure = _figure(_IMAGE * columns, _IMAGE * rows + 0.3)
    for axes, image in zip(_cells(figure, rows, columns), images, strict=False):
        _image(axes, image)
    _title(figure, title)
    return figure


def _pairs(images: Pixels, made: Pixels) -> Figure:
    columns = min(len(images), _COLUMNS)
    rows = -(-len(images) // columns)
    figure = _figure(_IMAGE * columns, (2 * _IMAGE + 0.15) * rows + 0.3)
    for part, start in zip(_bands(figure, rows), range(0, len(images), columns), strict=True):
        pair = [*images[start : start + columns], *made[start : start + columns]]
        count = len(pair) // 2
        cells = _cells(part, 2, columns)
        for index, image in enumerate(pair):
            _image(cells[index if index < count else index - count + columns], image)
    _title(figure, "test images, each above its reconstruction")
    return figure


def _draw_predictions(images: Pixels, truth: Sequence[str], predicted: Sequence[str]) -> Figure:
    columns = min(len(images), _COLUMNS)
    rows = -(-len(images) // columns)
    wide = 0.74 if max(map(len, (*truth, *predicted))) <= 2 else 1.2
    figure = _figure(wide * columns, (wide + 0.14) * rows + 0.3)
    cells = _cells(figure, rows, columns)
    for axes, image, true, said in zip(cells, images, truth, predicted, strict=False):
        _image(axes, image)
        text, colour = (said, INK) if true == said else (f"{said}, not {true}", SECOND)
        axes.set_title(text, fontsize=8, fontweight="normal", color=colour, pad=2)
    right = sum(true == said for true, said in zip(truth, predicted, strict=True))
    _title(figure, f"test images and their predicted classes: {right} of {len(truth)} right")
    return figure


def _bands(figure: Figure, rows: int) -> list[SubFigure]:
    """Make subfigures one below the other, each of which keeps its own images close together."""
    return list(figure.subfigures(rows, 1, squeeze=False, hspace=0.06)[:, 0])


def _cells(figure: Figure | SubFigure, rows: int, columns: int) -> list[Axes]:
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    return cells


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=9, fontweight="bold", x=0.01, ha="left")


def _image(axes: Axes, image: Pixels) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
