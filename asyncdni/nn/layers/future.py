"""Futures: generators of recurrent layers, which predict the gradient at a window's end.

A `Future` predicts the gradient G of all loss after a window with respect to the state at its end.
It is a linear map of the state, zero at the start, which in training may also see the coming
targets (labels). It is fitted to

    G(k) = ∂(loss of window k + 1)/∂s(k) + J' [(1 - λ) ĝ(k + 1) + λ G(k + 1)],   J = ∂s(k+1)/∂s(k)

and to 0 at a sequence's end. With λ = 0 the next window's own backward gives the target
(`NextWindow`); with λ above 0 windows are kept and swept back over (`Sweep`), and λ = 1 gives the
true gradient. J is taken at the states of the forwards, with the weights of the moment when the
target is computed.

Sources: recurrent synthetic gradients, Jaderberg et al. 2017 (arXiv 1608.05343, section 2.1);
λ-returns of them, Pemberton and Costa 2024 (BP(λ), arXiv 2401.07044). Targets divided by their
running root mean square, labels and normalised least mean squares are as in this package's
feed-forward generators.

The caller puts what travels with a window into the slot before the forward, under "context":
"first" (B,) bool, the window begins a new sequence of that stream; "last" (B,) bool, it ends one;
"coming" (B, …), the targets after the window's end, which only futures see. "batch" (int) is the
window's id. All may be left out: then windows follow each other without end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import Any, Protocol

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Slot, rows
from asyncdni.nn.optimizers import Adam, norm
from asyncdni.nn.options import check_flags, check_least, check_number
from asyncdni.nn.running import RunningRms

__all__ = [
    "Auxiliary",
    "AuxiliaryGradient",
    "Callbacks",
    "Future",
    "NextWindow",
    "Predict",
    "Push",
    "Returns",
    "Sizes",
    "Sweep",
    "Window",
    "coming",
    "flags",
    "make_future",
]

#: Computes the prediction of the future's present map: (inputs (B, I), last (B,), out (B, S)) ->
#: out.
Predict = Callable[[Array, Array, Array], Array]
#: Goes back through a window: (arrays kept of it, gradient of the state at its end) -> gradient of
#: the state at its start; both (B, S).
Push = Callable[[Mapping[str, Array], Array], Array]
#: Computes what the auxiliary task adds to a target, and makes a step of its map: (inputs (B, I) at
#: the end of a window, prediction (B, S) at the end of the next, whether the sequence goes on from
#: one to the other (B,)) -> gradient of the state (B, S).
AuxiliaryGradient = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Window:
    """One window after its backward, as a layer reports it to its future."""

    number: int  # consecutive windows have consecutive numbers
    inputs: Array  # (B, I): what the generator sees at its end
    first: Array  # (B,) bool: it begins a sequence
    last: Array  # (B,) bool: it ends one
    start: Array  # (B, S): the gradient of the state at its start, `predicted` included
    predicted: Array  # (B, S): the predicted gradient of the state at its end
    kept: Mapping[str, Array]  # the arrays that `Push` needs


@dataclass(frozen=True)
class Sizes:
    """The sizes of the windows that `Returns` keeps."""

    streams: int  # B
    inputs: int  # I
    state: int  # S
    kept: Mapping[str, tuple[int, ...]]  # the shapes of the arrays in `Window.kept`
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Callbacks:
    """What `Returns` calls to compute a target."""

    predict: Predict  # of the future
    push: Push  # of the layer
    auxiliary: AuxiliaryGradient | None  # of the future; None: it has no auxiliary task


class Returns(Protocol):
    """Keeps windows until the targets of their ends are known, and then gives these."""

    def start(self, sizes: Sizes) -> dict[str, Array]:
        """Allocate the arrays that windows are kept in, with no window in them, and return them by
        name; a checkpoint is restored by writing into them."""

    def observe(self, window: Window, calls: Callbacks) -> Iterable[tuple[Array, Array]]:
        """Take the next window, and give the pairs of inputs (B, I) and targets (B, S) that are
        known now. Windows come in order."""


class NextWindow:
    """λ = 0: a window's target is what the next window's backward arrives at."""

    def start(self, sizes: Sizes) -> dict[str, Array]:
        self._inputs = np.zeros((sizes.streams, sizes.inputs), sizes.dtype)
        self._last = np.zeros(sizes.streams, np.bool_)
        self._number = np.array(-1, np.int64)  # of the window that waits; -1: none
        return {"inputs": self._inputs, "last": self._last, "number": self._number}

    def observe(self, window: Window, calls: Callbacks) -> Iterable[tuple[Array, Array]]:
        if self._number >= 0 and window.number == self._number + 1:
            goes_on = ~(self._last | window.first)
            target = window.start.copy()
            if calls.auxiliary is not None:
                target += calls.auxiliary(self._inputs, window.predicted, goes_on)
            target[~goes_on] = 0
            yield self._inputs, target
        self._inputs[...] = window.inputs
        self._last[...] = window.last
        self._number[...] = window.number


class Sweep:
    """λ above 0: windows are kept until all sequences end or `windows` of them are there, and then
    swept back over. In the second case the newest window is also the first of the next sweep."""

    def __init__(self, lambda_: float, windows: int) -> None:
        self._lambda = lambda_
        self._windows = windows

    def start(self, sizes: Sizes) -> dict[str, Array]:
        self._kept = {
            name: np.zeros((self._windows, *shape), sizes.dtype)
            for name, shape in sizes.kept.items()
        }
        self._inputs = np.zeros((self._windows, sizes.streams, sizes.inputs), sizes.dtype)
        self._first, self._last = np.zeros((2, self._windows, sizes.streams), np.bool_)
        self._state = sizes.state
        self._count = np.array(0, np.int64)
        self._number = np.array(-1, np.int64)  # of the newest window
        whole = {"inputs": self._inputs, "first": self._first, "last": self._last}
        return {**self._kept, **whole, "count": self._count, "number": self._number}

    def observe(self, window: Window, calls: Callbacks) -> Iterable[tuple[Array, Array]]:
        if window.number != self._number + 1:
            self._count[...] = 0
        self._number[...] = window.number
        self._put(int(self._count), window)
        self._count += 1
        ended = bool(window.last.all())
        if ended or self._count == self._windows:
            yield from self._sweep(ended, calls)
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

    def _sweep(self, ended: bool, calls: Callbacks) -> Iterable[tuple[Array, Array]]:
        """Give inputs and targets from the newest window to the oldest. Each window's prediction is
        made before the fit to its own target, which must not depend on the step that it causes."""
        newest = int(self._count) - 1
        guess = self._guess(newest, calls.predict)
        after = guess  # zero where a sequence ends
        if ended:
            yield self._inputs[newest], after
        for k in range(newest, 0, -1):
            end = (1 - self._lambda) * guess + self._lambda * after
            end[self._last[k]] = 0
            goes_on = ~(self._last[k - 1] | self._first[k])
            after = calls.push({name: array[k] for name, array in self._kept.items()}, end).copy()
            if calls.auxiliary is not None:
                after += calls.auxiliary(self._inputs[k - 1], guess, goes_on)
            after[~goes_on] = 0
            guess = self._guess(k - 1, calls.predict)
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


class Auxiliary:
    """The auxiliary task of recurrent synthetic gradients: predict the next window's prediction.

    From the state s(k) at a window's end a linear map A predicts what the future will predict at
    the end of the next window, ĝ(k + 1). The error is a loss of its own, in units of the targets'
    root mean square: w |A s(k) - ĝ(k + 1)|^2 / 2. It makes the state keep what matters more than
    one window ahead. The loss is known one window late, so its gradient with respect to s(k) is
    added to the future's target at s(k), and reaches the layer through the future.

    `buffers` hold "weight" A (S, S + 1), zero at the start, and the moments of its Adam.

    Source: Jaderberg et al. 2017 (arXiv 1608.05343), section 3.2 (DNI + Aux), where the error is
    pushed back at once instead.
    """

    def __init__(self, weight: float, learning_rate: float) -> None:
        """`weight` is w, the task's weight in the loss; `learning_rate` is that of A's Adam."""
        self.weight = weight
        self.learning_rate = learning_rate
        self.buffers: dict[str, Array] = {}

    def build(self, state: int, dtype: np.dtype[Any]) -> None:
        """Make the map and its optimizer, for states (B, state)."""
        self._map = np.zeros((state, state + 1), dtype)
        self._optimizer = Adam()
        self._optimizer.start(self._map.reshape(-1))
        self.buffers = {"weight": self._map, **self._optimizer.state}

    def gradient(self, state: Array, foretold: Array, goes_on: Array, rate_scale: float) -> Array:
        """Return the gradient of the task's loss with respect to `state` (B, S), and then
        make one step of A.

        The gradient is zero where the sequence does not go on (`goes_on` (B,) bool). `foretold`
        (B, S) is ĝ(k + 1), in units of the targets' root mean square."""
        ones = np.ones((len(state), 1), state.dtype)
        inputs = np.concatenate((state, ones), axis=1)
        error = inputs @ self._map.T - foretold
        error[~goes_on] = 0
        grad: Array = error @ self._map[:, :-1]
        grad *= self.weight
        change = error.T @ inputs
        change /= len(state)
        if np.isfinite(change).all():
            rate = self.learning_rate * rate_scale
            self._optimizer.step(self._map.reshape(-1), change.reshape(-1), rate)
        return grad


def flags(slot: Slot, name: str, streams: int) -> Array:
    """Return a copy of the context's flags `name` ("first" or "last"), one a stream, (B,) bool; all
    False where they are absent.

    Raises `DataError` for another shape."""
    given = slot.get("context", {}).get(name)
    if given is None:
        return np.zeros(streams, np.bool_)
    found = np.array(given, np.bool_)
    if found.shape != (streams,):
        raise DataError(
            f"context {name!r} has shape {found.shape}, expected ({streams},): one flag a stream"
        )
    return found


def coming(slot: Slot, streams: int, width: int) -> Array:
    """Return the context's targets after the window's end, as (B, width).

    Raises `DataError` where they are missing or of another size."""
    given = slot.get("context", {}).get("coming")
    if given is None:
        raise DataError(
            f"a recurrent layer's future sees {width} coming targets, but the data has none: "
            "choose data with 'coming' in its context, or set labels = 0"
        )
    found = np.asarray(given).reshape(len(given), -1)
    if found.shape != (streams, width):
        raise DataError(
            f"context 'coming' has shape {np.shape(given)}: expected {streams} streams of {width} "
            "numbers each, as the future's labels say"
        )
    return found


#: Mean square of an input below which normalised least mean squares hardly moves the map.
RIDGE = 1e-6
#: Learning rate of the auxiliary map's Adam.
AUXILIARY_RATE = 1e-3


class Future:
    """ĝ = r W [state, coming targets, 1] for a state (B, S): W is "future.weight"
    (S, S + labels + 1), and r the targets' running root mean square (1 without `scale_targets`).

    All its arrays are in `buffers` and not among the layer's parameters, so that the layer's
    optimizer does not move them. A fit whose target is not finite is left out.
    """

    def __init__(
        self,
        *,
        labels: int = 0,  # how many of the context's "coming" it sees; 0: the state alone
        # with 0 the target is the gradient at the start of the next window, whose own future is
        # predicted (bootstrap); with 1 it is swept back from the sequence's end; between, it is a
        # λ-return
        lambda_: float = 0.0,
        # [windows] kept for a sweep where lambda is above 0; a longer sequence is swept in pieces,
        # each with a prediction at its end
        windows: int = 64,
        scale: float = 1.0,  # the factor of predictions in the layer's own update
        cell: bool = True,  # use the gradient of the cell (LSTM) in the layer's own update too
        optimizer: str = "adam",  # "adam", or "nlms": normalised least mean squares
        # of Adam, or the share of its error that nlms removes (stable below 2)
        learning_rate: float = 1e-3,
        scale_targets: bool = True,  # divide targets by their running root mean square (adam)
        # weight of the auxiliary task (see `Auxiliary`), which has an Adam of its own
        auxiliary: float = 0.0,
    ) -> None:
        check_least("labels", labels, 0)
        check_least("windows", windows, 2)
        check_number("lambda", lambda_, 0, 1)
        check_number("scale", scale, 0, inf)
        check_number("learning_rate", learning_rate, 0, inf)
        check_number("auxiliary", auxiliary, 0, inf)
        if optimizer not in ("adam", "nlms"):
            raise ConfigError(f"optimizer {optimizer!r}: expected adam or nlms")
        check_flags(cell=cell, scale_targets=scale_targets)
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
        """Whether the layer's update uses predictions as they are."""
        return self.scale == 1 and self.cell

    def build(self, state: int, units: int, dtype: np.dtype[Any]) -> None:
        """Make the map, for states (B, state) whose first `units` columns are the output."""
        self._state, self._units, self._dtype = state, units, dtype
        self._inputs = state + self.labels + 1
        self._map, self._change = np.zeros((2, state, self._inputs), dtype)
        self._rms = RunningRms()  # of the targets
        self.buffers = {"future.weight": self._map, "future.target_square": self._rms.sums}
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
        """Make the arrays that keep windows until their targets are known, and return them for
        checkpoints. `kept` gives the shapes of the arrays that a sweep needs of each window."""
        self._returns = NextWindow() if self.bootstrapped else Sweep(self.lambda_, self.windows)
        made = self._returns.start(Sizes(streams, self._inputs, self._state, kept, self._dtype))
        return {f"carried.{name}": array for name, array in made.items()}

    # --- predictions -----------------------------------------------------------------------------

    def see(self, state: Array, slot: Slot) -> None:
        """Keep in the slot the inputs (B, I) of the prediction at the window's end, and of its
        fit."""
        seen = slot["seen"] = rows(slot, "seen_rows", (len(state), self._inputs), self._dtype)
        seen[:, : self._state] = state
        if self.labels:
            seen[:, self._state : -1] = coming(slot, len(state), self.labels)
        seen[:, -1] = 1

    def predict(self, slot: Slot) -> Array:
        """Return the predicted gradient (B, S) of the state at the window's end; zero where a
        sequence ends."""
        out = rows(slot, "prediction", (len(slot["seen"]), self._state), self._dtype)
        return self.predicted(slot["seen"], slot["last"], out)

    def predicted(self, inputs: Array, last: Array, out: Array) -> Array:
        """Do as `predict` for inputs (B, I) and last (B,) bool, and write the result into `out`
        (B, S)."""
        np.matmul(inputs, self._map.T, out=out)
        out *= self._rms.value()
        out[last] = 0
        return out

    def trusted(self, predicted: Array) -> Array:
        """Return the part of a prediction (B, S) that the layer's own update uses."""
        if self.trusts_all:
            return predicted
        used = rows(self._scratch, "used", predicted.shape, self._dtype)
        np.multiply(predicted, self.scale, out=used)
        if not self.cell:
            used[:, self._units :] = 0
        return used

    # --- learning --------------------------------------------------------------------------------

    def observe(self, window: Window, push: Push, rate_scale: float) -> None:
        """Take a window whose backward is done, and fit to all targets that are known now."""
        auxiliary = (
            None if self._auxiliary is None else partial(self._auxiliary_gradient, rate_scale)
        )
        calls = Callbacks(self.predicted, push, auxiliary)
        for inputs, target in self._returns.observe(window, calls):
            self.fit(inputs, target, rate_scale)

    def _auxiliary_gradient(
        self, rate_scale: float, inputs: Array, predicted: Array, goes_on: Array
    ) -> Array:
        """Return the gradient (B, S) that the auxiliary task adds to a target."""
        assert self._auxiliary is not None
        rms = self._rms.value()
        state = inputs[:, : self._state]
        grad = self._auxiliary.gradient(state, predicted / rms, goes_on, rate_scale)
        grad *= rms
        return grad

    def fit(self, inputs: Array, target: Array, rate_scale: float) -> None:
        """Move the map by one step towards targets (B, S) for inputs (B, I)."""
        square = norm(target) ** 2 / target.size
        if not isfinite(square) or not np.isfinite(inputs).all():
            return
        if self.scale_targets:
            self._rms.add(square)
        error = rows(self._scratch, "error", target.shape, self._dtype)
        np.multiply(target, -1 / self._rms.value(), out=error)
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


def make_future(options: Mapping[str, Any]) -> Future:
    """Return the future that a table of options describes, where `lambda_` is written `lambda`.
    Raises `ConfigError` for an unknown option or a wrong value."""
    known = [name.removesuffix("_") for name in inspect.signature(Future).parameters]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"future has no option {unknown[0]!r}: its options are {', '.join(known)}"
        )
    return Future(**{"lambda_" if name == "lambda" else name: options[name] for name in options})
