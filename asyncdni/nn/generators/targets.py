"""Targets as inputs: what a model that is conditioned on labels sees beside its other input."""

from __future__ import annotations

import numpy as np

from asyncdni.nn.base import Array

__all__ = ["join"]


def join(x: Array, y: Array, classes: bool, out: Array) -> Array:
    """[x, onehot(y)] of class ids y (B,), else [x, y], written into `out` (B, D + K)."""
    width = x.shape[1]
    out[:, :width] = x
    if classes:
        out[:, width:] = 0
        out[:, width:][np.arange(len(x)), y] = 1
    else:
        out[:, width:] = y
    return out
