"""The gradient of all loss after a window with respect to the state at its end, predicted.

A linear map of the state, zero at the start, that may also see the coming targets while training
(labels). Targets of recurrent synthetic gradients: Jaderberg et al. 2017 (arXiv 1608.05343,
section 2.1); λ-returns of them: Pemberton and Costa 2024 (BP(λ), arXiv 2401.07044). Targets
divided by their running root mean square, labels and normalised least mean squares are as in this
package's feed-forward generators.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from math import isfinite, sqrt
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.recurrent.auxiliary import Auxiliary
from asyncdni.nn.layers.recurrent.context import coming
from asyncdni.nn.layers.recurrent.returns import NextWindow, Push, Returns, Sweep, Window
from asyncdni.nn.layers.slots import rows
from asyncdni.nn.optimizers import Adam, norm

__all__ = ["Future", "make_future"]

#: Of the running mean square of the targets: it remembers some hundred fits.
DECAY = 0.99
#: Mean square of an input below which normalised least mean squares hardly moves the map.
RIDGE = 1e-6
#: Of the auxiliary map's Adam.
AUXILIARY_RATE = 1e-3


class Future:
    """ĝ = W [state, coming targets, 1] for a state (B, S): "future.weight" (S, S + labels + 1).

    All of its arrays are in `buffers`: they are no parameters of the layer, whose optimizer would
    move them. A fit whose target is not finite is left out.
    """

    def __init__(
        self,
        *,
        labels: int = 0,
        lambda_: float = 0.0,
        windows: int = 64,
        scale: float = 1.0,
        cell: bool = True,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        scale_targets: bool = True,
        auxiliary: float = 0.0,
    ) -> None:
        """Args (`lambda_` may be written `lambda` in a file):
        labels: how many numbers of the context's "coming" it sees; 0: the state alone.
        lambda_: 0, the target is the gradient at the start of the next window, whose own future
            is predicted (bootstrap); 1, the gradient swept back from the sequence's end; between,
            λ-returns.
        windows: how many are kept for the sweep at most, where lambda_ is above 0; a longer
            sequence is swept in pieces, each with a prediction at its end.
        scale: what the layer multiplies predictions by in its own update.
        cell: whether the layer's own update uses the gradient of the cell (LSTM) too.
        optimizer: "adam", or "nlms", normalised least mean squares.
        learning_rate: of Adam, or the share of its error that nlms removes (stable below 2).
        scale_targets: divide targets by their running root mean square (adam).
        auxiliary: weight of the auxiliary task (see `auxiliary`), which has an Adam of its own.
        """
        _check(labels=(labels, 0), windows=(windows, 2))
        _check_number("lambda", lambda_, 0, 1)
        _check_number("scale", scale, 0, float("inf"))
        _check_number("learning_rate", learning_rate, 0, float("inf"))
        _check_number("auxiliary", auxiliary, 0, float("inf"))
        if optimizer not in ("adam", "nlms"):
            raise ConfigError(f"optimizer {optimizer!r}: expected adam or nlms")
        for name, value in (("cell", cell), ("scale_targets", scale_targets)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} {value!r}: expected true or false")
        self.labels = labels
        self.lambda_ = float(lambda_)
        self.windows = windows
        self.scale = float(scale)
        self.cell = cell
        self.learning_rate = float(learning_rate)
        self.scale_targets = scale_targets and optimizer == "adam"
        self.bootstrapped = self.lambda_ == 0
        self.buffers: dict[str, Array] = {}
        self._adam = optimizer == "adam"
        self._auxiliary = Auxiliary(float(auxiliary), AUXILIARY_RATE) if auxiliary else None

    @property
    def trusts_all(self) -> bool:
        """The layer's update uses predictions as they are."""
        return self.scale == 1 and self.cell

    def build(self, state: int, units: int, dtype: np.dtype[Any]) -> None:
        """For a state (B, state) whose first `units` columns are the output."""
        self._state, self._units, self._dtype = state, units, dtype
        self._inputs = state + self.labels + 1
        self._map, self._change = np.zeros((2, state, self._inputs), dtype)
        self._square = np.zeros(2)  # decayed sums of the targets' mean squares, and of ones
        self.buffers = {"future.weight": self._map, "future.target_square": self._square}
        self._optimizer = Adam()
        if self._adam:
            self._optimizer.start(self._map.reshape(-1))
            moments = self._optimizer.state.items()
            self.buffers.update({f"future.{name}": moment for name, moment in moments})
        if self._auxiliary is not None:
            self._auxiliary.build(state, self._dtype)
            beside = self._auxiliary.buffers.items()
            self.buffers.update({f"future.auxiliary.{name}": array for name, array in beside})
        self._scratch: Slot = {}
        self._returns: Returns = NextWindow()

    def start(self, streams: int, kept: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Makes what is kept of windows until their target is known; `kept` gives the shapes of
        what the sweep needs of each. Returns it for checkpoints."""
        self._returns = NextWindow() if self.bootstrapped else Sweep(self.lambda_, self.windows)
        made = self._returns.start(streams, self._inputs, self._state, kept, self._dtype)
        return {f"carried.{name}": array for name, array in made.items()}

    # --- predictions -----------------------------------------------------------------------------

    def see(self, state: Array, slot: Slot) -> None:
        """Keeps in the slot what the prediction and its fit see of the window's end, (B, I)."""
        seen = slot["seen"] = rows(slot, "seen_rows", (len(state), self._inputs), self._dtype)
        seen[:, : self._state] = state
        if self.labels:
            seen[:, self._state : -1] = coming(slot, len(state), self.labels)
        seen[:, -1] = 1

    def predict(self, slot: Slot) -> Array:
        """The gradient of the state at the window's end, (B, S); zero where a sequence ends."""
        out = rows(slot, "prediction", (len(slot["seen"]), self._state), self._dtype)
        return self.predicted(slot["seen"], slot["last"], out)

    def predicted(self, inputs: Array, last: Array, out: Array) -> Array:
        """As `predict`, for inputs (B, I) and last (B,) bool, written into `out` (B, S)."""
        np.matmul(inputs, self._map.T, out=out)
        out *= self._rms()
        out[last] = 0
        return out

    def trusted(self, predicted: Array) -> Array:
        """What the layer's own update uses of a prediction (B, S)."""
        if self.trusts_all:
            return predicted
        used = rows(self._scratch, "used", predicted.shape, self._dtype)
        np.multiply(predicted, self.scale, out=used)
        if not self.cell:
            used[:, self._units :] = 0
        return used

    # --- learning --------------------------------------------------------------------------------

    def observe(self, window: Window, push: Push, rate_scale: float) -> None:
        """The window's backward is done: fits to all targets that are known now."""
        aside = None if self._auxiliary is None else partial(self._aside, rate_scale)
        for inputs, target in self._returns.observe(window, self.predicted, push, aside):
            self.fit(inputs, target, rate_scale)

    def _aside(self, rate_scale: float, inputs: Array, predicted: Array, goes_on: Array) -> Array:
        """What the auxiliary task adds to a target (B, S)."""
        assert self._auxiliary is not None
        rms = self._rms()
        state = inputs[:, : self._state]
        grad = self._auxiliary.gradient(state, predicted / rms, goes_on, rate_scale)
        grad *= rms
        return grad

    def fit(self, inputs: Array, target: Array, rate_scale: float) -> None:
        """One step towards targets (B, S) for inputs (B, I)."""
        square = norm(target) ** 2 / target.size
        if not isfinite(square) or not np.isfinite(inputs).all():
            return
        if self.scale_targets:
            self._square *= DECAY
            self._square += (1 - DECAY) * square, 1 - DECAY
        error = rows(self._scratch, "error", target.shape, self._dtype)
        np.multiply(target, -1 / self._rms(), out=error)
        error += np.matmul(inputs, self._map.T)
        np.matmul(error.T, inputs, out=self._change)
        if self._adam:
            self._change /= len(inputs)
            rate = self.learning_rate * rate_scale
            self._optimizer.step(self._map.reshape(-1), self._change.reshape(-1), rate)
        else:
            energy = norm(inputs) ** 2 + RIDGE * inputs.size
            self._change *= self.learning_rate * rate_scale / energy
            self._map -= self._change

    def _rms(self) -> float:
        """The running root mean square of the targets, 1 before the first."""
        total, weight = self._square.tolist()
        return sqrt(total / weight) if total > 0 else 1.0


def make_future(options: Mapping[str, Any]) -> Future:
    """From a table of options, where `lambda_` is written `lambda`. Raises `ConfigError`."""
    known = [name.removesuffix("_") for name in inspect.signature(Future).parameters]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"future has no option {unknown[0]!r}: its options are {', '.join(known)}"
        )
    return Future(**{"lambda_" if name == "lambda" else name: options[name] for name in options})


def _check(**wholes: tuple[object, int]) -> None:
    for name, (value, least) in wholes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} {value!r}: expected a whole number of at least {least}")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:  # type: ignore[operator]
        raise ConfigError(f"{name} {value!r}: expected a number from {least} to {most}")
