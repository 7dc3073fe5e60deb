"""Of which kind and size inputs are: those of training, and those that a network is asked about.

The same samples come as uint8, which is scaled by 1/255, or as floats, which are taken as they are:
0 … 255 or 0 … 1, raw or standardised. Nothing in their shape tells; weights that have been trained
on one are worth nothing on the other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from asyncdni.datasets.meta import Array, Inputs

__all__ = ["measured", "other_kind", "other_scale"]

#: Samples looked at together.
_CHUNK = 4096
#: What is larger than all of training, or smaller than nearly all of it, by more than this.
_FACTOR = 3.0
#: Of 0 … 1: what interpolation of scaled images may overshoot by.
_MARGIN = 0.1


def measured(x: Array) -> Inputs:
    """Of samples x (N, …), uint8 or floating, as they are stored."""
    low, high, sizes = np.inf, -np.inf, []
    for start in range(0, len(x), _CHUNK):
        rows = x[start : start + _CHUNK].reshape(min(_CHUNK, len(x) - start), -1)
        lows, highs = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        low, high = min(low, lows.min()), max(high, highs.max())
        sizes.append(np.maximum(np.abs(lows), np.abs(highs)))
    least = np.quantile(np.concatenate(sizes), 0.01, method="lower")
    kind: Literal["uint8", "float"] = "uint8" if x.dtype == np.uint8 else "float"
    return Inputs(kind, float(low), float(high), float(least))


def other_kind(trained: Inputs, given: Inputs) -> str | None:
    """Why inputs can't be taken for what was trained on: one is uint8, which is scaled to 0 … 1,
    and the other is floating on another scale; None where they can."""
    if trained.kind == given.kind:
        return None
    floating = trained if trained.kind == "float" else given
    if floating.low >= -_MARGIN and floating.high <= 1 + _MARGIN and _fits(trained, given):
        return None
    cure = {
        "uint8": "give uint8, or floats from 0 to 1",
        "float": "give floating numbers on the scale of training, x.astype('float32')",
    }
    return f"{_shown(given)}, but the run was trained on {_shown(trained)}: {cure[trained.kind]}"


def other_scale(trained: Inputs, given: Inputs) -> str | None:
    """In words, that inputs are much larger or smaller than all that was trained on; None where
    they are not."""
    if _fits(trained, given):
        return None
    return (
        f"{_shown(given)}, but the run was trained on {_shown(trained)}: what comes out means "
        "little unless inputs are scaled as in training"
    )


def _fits(trained: Inputs, given: Inputs) -> bool:
    size = _scaled(given, max(abs(given.low), abs(given.high)))
    most = _scaled(trained, max(abs(trained.low), abs(trained.high)))
    # Nothing can be said of samples that are all zero, nor by training on such.
    if not size or not most:
        return True
    return _scaled(trained, trained.least) / _FACTOR <= size <= _FACTOR * most


def _scaled(inputs: Inputs, number: float) -> float:
    return number / 255 if inputs.kind == "uint8" else number


def _shown(inputs: Inputs) -> str:
    kind = "uint8, scaled by 1/255," if inputs.kind == "uint8" else "floating numbers"
    return f"{kind} from {inputs.low:g} to {inputs.high:g}"
