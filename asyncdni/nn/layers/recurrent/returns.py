"""Targets of the generator at a window's end: from the next window, or swept back over many.

The gradient G of all loss after window k, with respect to the state s at its end, is

    G(k) = ∂(loss of window k + 1)/∂s(k) + J' [(1 - λ) ĝ(k + 1) + λ G(k + 1)],   J = ∂s(k+1)/∂s(k)

and 0 at a sequence's end. λ = 0 needs no more than the next window's own backward; λ = 1 is the
true gradient. States are those of the forwards, weights today's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from asyncdni.errors import DataError
from asyncdni.nn.base import Array

__all__ = ["Aside", "NextWindow", "Predict", "Push", "Returns", "Sweep", "Window"]

#: (inputs (B, I), last (B,), out (B, S)) -> the generator's prediction of today.
Predict = Callable[[Array, Array, Array], Array]
#: (arrays kept of a window, gradient of the state at its end) -> that at its start, both (B, S).
Push = Callable[[Mapping[str, Array], Array], Array]
#: (inputs (B, I) at a window's end, prediction (B, S) at the next one's, whether sequences go on
#: from one to the other (B,)) -> gradient of the state (B, S) that joins the target.
Aside = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Window:
    """One window after its backward."""

    number: int  # consecutive windows have consecutive numbers
    inputs: Array  # (B, I): what the generator sees at its end
    first: Array  # (B,) bool: it begins a sequence
    last: Array  # (B,) bool: it ends one
    start: Array  # (B, S): the gradient of the state at its start, future predicted
    predicted: Array  # (B, S): that future, of the state at its end
    kept: Mapping[str, Array]  # for `Push`


class Returns(Protocol):
    """What is kept of windows until the targets of their ends are known."""

    def start(
        self,
        streams: int,
        inputs: int,
        state: int,
        kept: Mapping[str, tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> dict[str, Array]:
        """Allocates it, empty, for inputs (B, inputs) and states (B, state); returns it, to be
        restored by writing into the arrays."""

    def observe(
        self, window: Window, predict: Predict, push: Push, aside: Aside | None
    ) -> Iterable[tuple[Array, Array]]:
        """Windows come in order. Gives inputs (B, I) with their targets (B, S)."""


class NextWindow:
    """λ = 0: a window's target is what the next window's backward arrives at."""

    def start(
        self,
        streams: int,
        inputs: int,
        state: int,
        kept: Mapping[str, tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> dict[str, Array]:
        self._inputs = np.zeros((streams, inputs), dtype)
        self._last = np.zeros(streams, np.bool_)
        self._number = np.array(-1, np.int64)  # of the window that waits; -1: none
        return {"inputs": self._inputs, "last": self._last, "number": self._number}

    def observe(
        self, window: Window, predict: Predict, push: Push, aside: Aside | None
    ) -> Iterable[tuple[Array, Array]]:
        if self._number >= 0 and window.number == self._number + 1:
            goes_on = ~(self._last | window.first)
            target = window.start.copy()
            if aside is not None:
                target += aside(self._inputs, window.predicted, goes_on)
            target[~goes_on] = 0
            yield self._inputs, target
        self._inputs[...] = window.inputs
        self._last[...] = window.last
        self._number[...] = window.number


class Sweep:
    """λ above 0: windows are kept, and swept back over when all sequences end or `windows` of
    them are there. In the latter case the newest begins the next sweep."""

    def __init__(self, lambda_: float, windows: int) -> None:
        self._lambda = lambda_
        self._windows = windows

    def start(
        self,
        streams: int,
        inputs: int,
        state: int,
        kept: Mapping[str, tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> dict[str, Array]:
        self._kept = {
            name: np.zeros((self._windows, *shape), dtype) for name, shape in kept.items()
        }
        self._inputs = np.zeros((self._windows, streams, inputs), dtype)
        self._first, self._last = np.zeros((2, self._windows, streams), np.bool_)
        self._state = state
        self._count = np.array(0, np.int64)
        self._number = np.array(-1, np.int64)  # of the newest
        whole = {"inputs": self._inputs, "first": self._first, "last": self._last}
        return {**self._kept, **whole, "count": self._count, "number": self._number}

    def observe(
        self, window: Window, predict: Predict, push: Push, aside: Aside | None
    ) -> Iterable[tuple[Array, Array]]:
        if window.number != self._number + 1:
            self._count[...] = 0
        self._number[...] = window.number
        self._put(int(self._count), window)
        self._count += 1
        ended = bool(window.last.all())
        if ended or self._count == self._windows:
            yield from self._sweep(ended, predict, push, aside)
            self._restart(ended)

    def _put(self, place: int, window: Window) -> None:
        self._inputs[place] = window.inputs
        self._first[place] = window.first
        self._last[place] = window.last
        for name, array in self._kept.items():
            given = window.kept[name]
            if given.shape != array.shape[1:]:
                raise DataError(
                    f"a recurrent layer whose future has lambda above 0 was given a window of "
                    f"another length: its {name} are {given.shape}, expected {array.shape[1:]}; "
                    "make all windows equally long, or set lambda = 0"
                )
            array[place] = given

    def _sweep(
        self, ended: bool, predict: Predict, push: Push, aside: Aside | None
    ) -> Iterable[tuple[Array, Array]]:
        """From the newest window to the oldest, but that each window is predicted before the
        fit: a target must not know the step that it causes."""
        newest = int(self._count) - 1
        guess = self._guess(newest, predict)
        after = guess  # zero where a sequence ends
        if ended:
            yield self._inputs[newest], after
        for k in range(newest, 0, -1):
            end = (1 - self._lambda) * guess + self._lambda * after
            end[self._last[k]] = 0
            goes_on = ~(self._last[k - 1] | self._first[k])
            after = push({name: array[k] for name, array in self._kept.items()}, end).copy()
            if aside is not None:
                after += aside(self._inputs[k - 1], guess, goes_on)
            after[~goes_on] = 0
            guess = self._guess(k - 1, predict)
            yield self._inputs[k - 1], after

    def _guess(self, place: int, predict: Predict) -> Array:
        inputs = self._inputs[place]
        out = np.empty((len(inputs), self._state), inputs.dtype)
        return predict(inputs, self._last[place], out)

    def _restart(self, ended: bool) -> None:
        if ended:
            self._count[...] = 0
            return
        newest = int(self._count) - 1
        for array in (*self._kept.values(), self._inputs, self._first, self._last):
            array[0] = array[newest]
        self._count[...] = 1
