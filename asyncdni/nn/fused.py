"""Loops that stand in for several passes of NumPy over the same arrays, compiled by numba.

NumPy passes over whole arrays operation by operation; a loop reads and writes each element once.
Elements are computed by the same operations in the same order and precision, so the results of both
are the same to the last bit. Loops are compiled for one thread, and kept on disk. They need numba
(extra `fast`); without it, or with `NUMBA_DISABLE_JIT=1` in the environment, layers and optimizers
keep to NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from asyncdni.nn.base import Array

__all__ = ["PAYS_FROM", "Loops", "loops_of", "prepare"]

#: From so many weights of a stage on the loops are worth what it takes to load them: over a second
#: of CPU time and 120 MB in each process. Smaller ones win that back after some 10,000 batches.
PAYS_FROM = 1 << 14


class Loops(NamedTuple):
    """The compiled loops of one dtype. All arrays have this dtype and are C-contiguous; numbers are
    in the vector `c`."""

    adam: Callable[[Array, Array, Array, Array, Array], None]
    sgd: Callable[[Array, Array, Array, Array, bool], None]
    centre: Callable[[Array, Array, Array, Array], None]
    scale_and_shift: Callable[[Array, Array, Array, Array, Array], None]
    normalised_back: Callable[[Array, Array, Array, Array, Array, Array], None]
    relu_back: Callable[[Array, Array, Array], None]


def _adam(p: Array, g: Array, m: Array, v: Array, c: Array) -> None:
    """A step of `optimizers.Adam` on parameters p (N,) by gradient g, with the sums m and v; c is
    (scale of g, beta1, beta2, epsilon, factor, decay of p)."""
    scale, beta1, beta2, epsilon, factor, decay = c[0], c[1], c[2], c[3], c[4], c[5]
    for i in range(p.size):
        gradient = g[i] * scale
        first = m[i] * beta1 + gradient
        second = v[i] * beta2 + gradient * gradient
        m[i] = first
        v[i] = second
        p[i] = p[i] * decay - first / (np.sqrt(second) + epsilon) * factor


def _sgd(p: Array, g: Array, m: Array, c: Array, nesterov: bool) -> None:
    """A step of `optimizers.Sgd` on parameters p (N,) by gradient g, with momentum m; c is
    (scale of g, momentum, weight decay, rate)."""
    scale, momentum, decay, rate = c[0], c[1], c[2], c[3]
    for i in range(p.size):
        gradient = g[i] * scale
        if decay != 0:
            gradient += p[i] * decay
        moved = m[i] * momentum + gradient
        m[i] = moved
        direction = gradient + moved * momentum if nesterov else moved
        p[i] -= direction * rate


def _centre(x: Array, mean: Array, centred: Array, squares: Array) -> None:
    """Write x (B, D) less `mean` (D,) into `centred`, and the squares of that into `squares`."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = x[i, j] - mean[j]
            centred[i, j] = value
            squares[i, j] = value * value


def _scale_and_shift(x: Array, scale: Array, shift: Array, c: Array, y: Array) -> None:
    """Write x (B, D) times `scale` (D,) plus `shift` (D,), at least c[0], into y."""
    least = c[0]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = x[i, j] * scale[j] + shift[j]
            y[i, j] = least if value <= least else value


def _normalised_back(x: Array, grad: Array, a: Array, b: Array, s: Array, out: Array) -> None:
    """Write (x a + grad - b) s into `out`, all (B, D), for vectors a, b and s (D,)."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] * a[j] + grad[i, j] - b[j]) * s[j]


def _relu_back(grad: Array, y: Array, out: Array) -> None:
    """Write grad (N,) times 1 where y > 0, else times 0, into `out`."""
    for i in range(y.size):
        out[i] = grad[i] * (y[i] > 0)


#: By the name in `Loops`: the loop, and its arguments by what they are: v a vector and m a matrix,
#: capital where they are written to; b a flag.
_SOURCES: dict[str, tuple[Callable[..., None], str]] = {
    "adam": (_adam, "VvVVv"),
    "sgd": (_sgd, "VvVvb"),
    "centre": (_centre, "mvMM"),
    "scale_and_shift": (_scale_and_shift, "mvvvM"),
    "normalised_back": (_normalised_back, "mmvvvM"),
    "relu_back": (_relu_back, "vvV"),
}
_prepared: dict[np.dtype[Any], Loops] = {}


def prepare(dtype: np.dtype[Any]) -> None:
    """Compile the loops for arrays of `dtype`, where numba is there, or load them from disk. From
    then on `loops_of` finds them. The first time takes seconds, later ones about one."""
    if dtype not in _prepared and _is_wanted():
        _prepared[dtype] = Loops(
            **{name: _compiled(loop, forms, dtype) for name, (loop, forms) in _SOURCES.items()}
        )


def loops_of(*arrays: Array) -> Loops | None:
    """Return the loops for these arrays; None where none are prepared for their dtype, or they are
    not contiguous or not of one dtype."""
    dtype = arrays[0].dtype
    loops = _prepared.get(dtype)
    if loops is None or not all([a.flags.c_contiguous and a.dtype == dtype for a in arrays]):
        return None
    return loops


@cache
def _is_wanted() -> bool:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return False
    try:
        import numba  # noqa: F401 - there may be one that does not go with this NumPy
    except ImportError:
        return False
    return True


def _compiled(loop: Callable[..., None], forms: str, dtype: np.dtype[Any]) -> Callable[..., None]:
    """Compile `loop` for arguments of these forms, and no others."""
    import numba

    number = numba.from_dtype(dtype)
    arguments = [
        numba.boolean
        if form == "b"
        else numba.types.Array(number, 1 + (form in "mM"), "C", readonly=form.islower())
        for form in forms
    ]
    # A division by zero gives infinity, as in NumPy.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    signature = numba.void(*arguments)
    try:
        found: Callable[..., None] = numba.njit(signature, cache=True, **options)(loop)
    except RuntimeError:  # there is no folder that compiled code could be kept in
        found = numba.njit(signature, **options)(loop)
    return found
