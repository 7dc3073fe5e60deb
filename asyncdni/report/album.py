"""What a run leaves to look at: files in its folder that show its cost and what it has learnt.

Pictures need the extra `plot`; the text, and the table of a curve, do not.

```
sample.txt           a text of the network's own                 a text
curve.csv, .png      a curve continued, beside the truth         a curve
prior.png            images drawn from the prior                 a variational autoencoder
reconstructions.png  test images, made again                     a variational autoencoder
predictions.png      test images and what they were told to be   images with labels
cost.png             test loss and wrong answers over epochs     all of these
```
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asyncdni.data.meta import Array
from asyncdni.report import plots
from asyncdni.sampling import (
    Curve,
    Reconstructions,
    as_csv,
    continue_curve,
    continue_text,
    draw_images,
    has_prior,
    predict_images,
    reconstruct,
    tells_characters,
    tells_images_apart,
    tells_points,
)
from asyncdni.store.run import Result
from asyncdni.store.tensors import write_atomically

__all__ = [
    "has_something_to_show",
    "leave_samples",
    "write_curve",
    "write_images",
    "write_reconstructions",
]


def has_something_to_show(run: Result) -> bool:
    """Whether what the run has learnt can be looked at or read."""
    kinds = (tells_characters, tells_points, has_prior, tells_images_apart)
    return any(is_one(run) for is_one in kinds)


def leave_samples(run: Result, *, allow_import: bool = False) -> list[Path]:
    """Write all files that show what the run has learnt to its folder; returns their paths.

    Raises `DataError` where a data set is gone, and `ConfigError` for networks that can't be
    sampled from though their data suggest it.
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
        elif tells_images_apart(run):
            files += _predictions(run, run.folder, allow_import)
    return files


def write_curve(folder: Path, curve: Curve) -> Iterator[Path]:
    """curve.csv and, with the extra `plot`, curve.png."""
    yield _written(folder / "curve.csv", as_csv(curve).encode())
    if plots.available():
        from asyncdni.report.pictures import curve_picture

        picture = curve_picture(curve.truth, curve.generated, curve.error)
        yield _written(folder / "curve.png", picture)


def write_images(folder: Path, images: Array) -> Iterator[Path]:
    """prior.png; needs the extra `plot`."""
    from asyncdni.report.pictures import grid_picture

    picture = grid_picture(images, "drawn from the prior")
    yield _written(folder / "prior.png", picture)


def write_reconstructions(folder: Path, found: Reconstructions) -> Iterator[Path]:
    """reconstructions.png; needs the extra `plot`."""
    from asyncdni.report.pictures import pairs_picture

    yield _written(folder / "reconstructions.png", pairs_picture(found.images, found.made))


def _cost(run: Result, folder: Path) -> Iterator[Path]:
    if len(run.history) > 1:
        from asyncdni.report.pictures import cost_picture

        history = run.history
        if has_prior(run):  # how many single pixels are right means nothing
            history = [{**one, "accuracy": None} for one in history]
        picture = cost_picture(history, run.meta.train_samples)
        yield _written(folder / "cost.png", picture)


def _predictions(run: Result, folder: Path, allow_import: bool) -> Iterator[Path]:
    from asyncdni.report.pictures import predictions_picture

    found = predict_images(run, allow_import=allow_import)
    picture = predictions_picture(found.images, found.truth, found.told)
    yield _written(folder / "predictions.png", picture)


def _written(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path
