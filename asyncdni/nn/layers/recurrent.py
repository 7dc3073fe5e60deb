"""Recurrent layers: they work on windows of streams and carry their state between windows.

A batch is one window: T steps of B parallel streams, x (B, T, D). Windows come in order of batch
id. The state at a window's end, (B, S), starts the next window, but gradients do not cross that
line. The gradient from beyond it is 0 (truncated backpropagation through time) or is predicted by a
`Future`.

```
            window k                     window k + 1
 state ─► ▢ ─► ▢ ─► … ─► ▢ ─► state ═► ▢ ─► ▢ ─► …        ═► carried, detached
                          ◄─ future ─┘ ◄─ its target ──┘
```

Several windows may be in flight: forward k + 1 may come before backward k. These layers rely on
forwards in order of batch id, each id once, and on first learning backwards in the same order. If
ids are left out, the state is carried over the gap, and no future is fitted across it.

Steps are worked on time-major, (T, B, ·), so that each is one contiguous block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.initialisers import make_initialiser
from asyncdni.nn.layers.future import Future, Window, flags, make_future
from asyncdni.nn.options import check_flags, check_positive

__all__ = ["CarriedState", "Lstm", "Recurrent", "Rnn"]


class CarriedState:
    """The state that goes from the end of one window to the start of the next.

    `state` (B, S) is that of all streams, None before `start`. `newest` () is the number of the
    window at whose end it is, -1 at first. Both are restored by writing into the arrays.
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        """`width` is S."""
        self.newest = np.array(-1, np.int64)
        self.state: Array | None = None
        self._width, self._dtype = width, dtype

    def start(self, streams: int) -> Array:
        """Make a state of zeros for so many streams, and return it."""
        self.state = np.zeros((streams, self._width), self._dtype)
        return self.state

    def advance(self, slot: Slot) -> int:
        """Return the number of the window in `slot`: its "batch", or one more than the newest.

        Raises `DataError` for a number that is not above the newest."""
        newest = int(self.newest)
        number: int = slot.get("batch", newest + 1)
        if number <= newest:
            raise DataError(
                f"a recurrent layer was given batch {number} after batch {newest}: windows come "
                "once and in order; choose a schedule without replays"
            )
        return number

    def suits(self, first: Array) -> bool:
        """Return whether the present state fits the next window. If not, the caller must `start`
        anew: there is no state, or it is of another number of streams. `first` (B,) bool says which
        streams begin a sequence.

        Raises `DataError` where the number of streams has changed in the middle of a sequence."""
        if self.state is None or len(self.state) == len(first):
            return self.state is not None
        if first.all():
            return False
        raise DataError(
            f"a recurrent layer carries the state of {len(self.state)} streams and was given "
            f"{len(first)}: keep the batch size, or begin all sequences anew (context 'first')"
        )

    def enter(self, number: int, first: Array) -> Array:
        """Return the state (B, S) that window `number` starts with; it is zero where
        `first` (B,) bool says that a sequence begins."""
        assert self.state is not None
        self.newest[...] = number
        self.state[first] = 0
        return self.state

    def leave(self, end: Array) -> None:
        """Carry the state `end` (B, S) on to the next window. A stream whose state is not finite
        starts again from zero, as it would never become finite by itself."""
        assert self.state is not None
        self.state[...] = end
        finite = np.isfinite(self.state)
        if not finite.all():
            self.state[~finite.all(axis=1)] = 0


class _Sent(NamedTuple):
    """The arguments and result of the last backward, where it did not learn. Its gradients of the
    gates' inputs are still in scratch, for a backward that learns from the same gradient."""

    slot: Slot
    grad_y: Array
    own: bool
    start: Array

    def is_of(self, slot: Slot, grad_y: Array, own: bool) -> bool:
        return self.slot is slot and self.grad_y is grad_y and self.own == own


class Recurrent:
    """Base of recurrent layers: x (B, T, D) to all hidden states (B, T, H), or with `last_only` to
    the last one (B, H).

    Parameters, as PyTorch has them but for one bias instead of two, G gates a unit: "weight_ih"
    (G H, D), "weight_hh" (G H, H), "bias" (G H,).

    `buffers` all serve checkpoints of training: "carried.state" (B, S), there after the first
    forward or `start`, and the arrays of the future ("future.…", "carried.…"). Those named
    "carried.…" belong to the streams and are of no use to another number of streams.

    A caller may set in the slot before the backward: "own_loss" to False, for a backward of late
    corrections, which must not add the future's gradient a second time; "rate_scale", the factor of
    the future's learning rate.
    """

    GATES = 1  # blocks of H rows in the weights
    PARTS = 1  # blocks of H columns in the state
    KEPT: tuple[str, ...] = ()  # the slot's arrays that `_back` reads, (T or T + 1, B, …)

    def __init__(
        self,
        units: int,  # [units] H
        *,
        last_only: bool = False,  # output the last step of a window alone, (B, H)
        bias: bool = True,  # whether there is one
        # how both weights start: see `init`; None: as PyTorch's, uniform in ±1/sqrt(H)
        init: str | None = None,
        # options of the generator at the window's end: see `layer.future`; None: no generator
        future: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive(units=units)
        check_flags(last_only=last_only, bias=bias)
        self.units = units
        self.last_only = last_only
        self.bias = bias
        self.future: Future | None = None if future is None else make_future(future)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._initialise = make_initialiser(init or f"uniform:{1 / math.sqrt(units)!r}")
        self._scratch: Slot = {}
        self._sent: _Sent | None = None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigError(
                f"a recurrent layer takes windows of shape (T, D), steps and inputs, not {shape}"
            )
        return (self.units,) if self.last_only else (shape[0], self.units)

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers the weights have that `build` makes for inputs of `shape`,
        without making them."""
        return self.GATES * self.units * (shape[1] + self.units)

    def flops(self, shape: tuple[int, ...], samples: int, *, send: bool) -> tuple[int, int]:
        """Return the floating-point operations of the products in (forward, backward), without
        those of a future: see `nn.base.Layer.output_shape`. The backward goes through the steps
        whether it sends or not."""
        steps, inputs = shape
        a_column = 2 * samples * steps * self.GATES * self.units
        return (
            a_column * (inputs + self.units),
            a_column * (inputs * (1 + send) + 2 * self.units),
        )

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        height = self.GATES * self.units
        self.params = {
            "weight_ih": np.empty((height, shape[1]), dtype),
            "weight_hh": np.empty((height, self.units), dtype),
        }
        rng = streams("init")
        for weight in self.params.values():
            self._initialise(weight, rng)
        if self.bias:
            self.params["bias"] = np.zeros(height, dtype)
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.fresh = True
        self._steps, self._dtype = shape[0], np.dtype(dtype)
        self._carried = CarriedState(self.PARTS * self.units, self._dtype)
        self.buffers = {"carried.newest": self._carried.newest}
        self._scratch = {}
        self._sent = None
        if self.future is not None:
            self.future.build(self.PARTS * self.units, self.units, self._dtype)
            self.buffers.update(self.future.buffers)
        return output

    def start(self, streams: int) -> None:
        """Make what is carried for so many streams, all at a sequence's start, so that a checkpoint
        can be copied into `buffers`. The first forward does so too."""
        self.buffers["carried.state"] = self._carried.start(streams)
        if self.future is not None:
            kept = {name: self._kept_shape(name, streams) for name in self.KEPT}
            grads = (streams, self.units) if self.last_only else (streams, self._steps, self.units)
            self.buffers.update(self.future.start(streams, {**kept, "grads": grads}))

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, x: Array, slot: Slot) -> Array:
        """Return the hidden states for x (B, T, D): (B, T, H), or with `last_only` (B, H). Raises
        `DataError` where the number of streams has changed in the middle of a sequence, for a batch
        id that is not above the newest, and for a context of a wrong shape."""
        forwarded(slot)
        self._sent = None
        streams, steps = x.shape[:2]
        slot["window"] = self._carried.advance(slot)
        slot["first"] = first = flags(slot, "first", streams)
        slot["last"] = flags(slot, "last", streams)
        if not self._carried.suits(first):
            self.start(streams)
        end = self._run(x, self._carried.enter(slot["window"], first), slot)
        if self.future is not None:
            slot["predicted"], slot["learned"] = None, False
            self.future.see(end, slot)
        self._carried.leave(end)
        hidden: Array = slot["hidden"]
        if self.last_only:
            y = rows(slot, "y", (streams, self.units), self._dtype)
            y[...] = hidden[steps]
        else:
            y = rows(slot, "y", (streams, steps, self.units), self._dtype)
            y[...] = hidden[1:].swapaxes(0, 1)
        return y

    def evaluate(self, x: Array) -> Array:
        """Return what `forward` would, but every stream starts from the state zero and no state is
        carried: x (B, T, D) holds whole sequences, of any T."""
        return self.continued(x, None)[0]

    def continued(self, x: Array, state: Array | None) -> tuple[Array, Array]:
        """Return the output for x (B, T, D) and the state (B, S) at its end, from `state` (B, S) or
        zero.

        This serves to go through long streams piece by piece, and to sample from the network."""
        if state is None:
            state = np.zeros((len(x), self.PARTS * self.units), x.dtype)
        slot: Slot = {}
        end = self._run(x, state, slot)
        hidden: Array = slot["hidden"]
        y = hidden[-1] if self.last_only else hidden[1:].swapaxes(0, 1)
        return np.ascontiguousarray(y), end

    def _run(self, x: Array, start: Array, slot: Slot) -> Array:
        """Run all steps of the window and return the state at its end, (B, S). The inputs of all
        steps enter the gates in one product."""
        streams, steps, width = x.shape
        xs = slot["inputs"] = rows(slot, "inputs_rows", (steps, streams, width), x.dtype)
        xs[...] = x.swapaxes(0, 1)
        z = rows(slot, "gates_rows", (steps, streams, self.GATES * self.units), x.dtype)
        slot["gates"] = z
        hidden = rows(slot, "hidden_rows", (steps + 1, streams, self.units), x.dtype)
        slot["hidden"] = hidden
        hidden[0] = start[:, : self.units]
        return self._run_steps(xs, start, slot)

    def _run_steps(self, xs: Array, start: Array, slot: Slot) -> Array:
        """Fill slot["gates"] (T, B, G H) and slot["hidden"] (T + 1, B, H), whose first row is set,
        from xs (T, B, D). Return the state at the end, a new array or a view."""
        raise NotImplementedError

    # --- backward --------------------------------------------------------------------------------

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """Push grad_y (B, T, H), or (B, H) with `last_only`, and the future's gradient of the state
        at the end back through the window. The future predicts at the window's first backward, and
        is fitted at the first one with `learn`."""
        if not (learn or send):
            return None
        xs: Array = slot["inputs"]
        own: bool = slot.get("own_loss", True)
        dz, start = self._through(grad_y, slot, own)
        self._sent = None if learn else _Sent(slot, grad_y, own, start)
        if learn:
            self._learn(dz, xs, slot["hidden"])
            if own and self.future is not None and not slot["learned"]:
                slot["learned"] = True
                self._teach(self.future, grad_y, start, slot)
        if not send:
            return None
        steps, streams, width = xs.shape
        pushed = rows(self._scratch, "grad_xs", xs.shape, self._dtype)
        np.matmul(_flat(dz), self.params["weight_ih"], out=_flat(pushed))
        grad_x = gradient(slot, (streams, steps, width), self._dtype)
        grad_x[...] = pushed.swapaxes(0, 1)
        return grad_x

    def _through(self, grad_y: Array, slot: Slot, own: bool) -> tuple[Array, Array]:
        """Return the gradients of the gates' inputs (T, B, G H), in scratch, and of the state at
        the window's start (B, S).

        They are used again where the backward just before has computed them: a stage that others
        wait for first sends, and then learns from the same gradient."""
        gates: Array = slot["gates"]
        dz = rows(self._scratch, "dz", gates.shape, self._dtype)
        if self._sent is not None and self._sent.is_of(slot, grad_y, own):
            return dz, self._sent.start
        grads = self._by_step(grad_y, len(gates))
        return dz, self._back(slot, grads, self._end(slot, own), dz)

    def _back(
        self, kept: Mapping[str, Array], grads: Sequence[Array | None], end: Array, dz: Array
    ) -> Array:
        """Go back through the window: write the gradients of the gates' inputs into `dz`
        (T, B, G H), and return the gradient of the state at its start, (B, S), valid until the next
        call.

        Args:
            kept: the arrays named in `KEPT`.
            grads: the gradient of each step's output, (B, H) or None for zero.
            end: the gradient of the state at the window's end, (B, S).
        """
        raise NotImplementedError

    def _by_step(self, grad_y: Array, steps: int) -> Sequence[Array | None]:
        if self.last_only:
            return [None] * (steps - 1) + [grad_y]
        return [grad_y[:, step] for step in range(steps)]

    def _end(self, slot: Slot, own: bool) -> Array:
        """Return the gradient (B, S) of the state at the window's end that the update is to use."""
        shape = slot["gates"].shape[1], self.PARTS * self.units
        if self.future is None or not own:
            end = rows(self._scratch, "end", shape, self._dtype)
            end[...] = 0
            return end
        if slot["predicted"] is None:
            slot["predicted"] = self.future.predict(slot)
        return self.future.trusted(slot["predicted"])

    def _teach(self, future: Future, grad_y: Array, start: Array, slot: Slot) -> None:
        if future.bootstrapped and not future.trusts_all:
            # The layer's update used only a part of the prediction; the target needs all of it.
            spare = rows(self._scratch, "spare", slot["gates"].shape, self._dtype)
            grads = self._by_step(grad_y, len(spare))
            start = self._back(slot, grads, slot["predicted"], spare)
        kept = {name: slot[name] for name in self.KEPT}
        future.observe(
            Window(
                number=slot["window"],
                inputs=slot["seen"],
                first=slot["first"],
                last=slot["last"],
                start=start,
                predicted=slot["predicted"],
                kept={**kept, "grads": grad_y},
            ),
            self._push,
            slot.get("rate_scale", 1.0),
        )

    def _push(self, kept: Mapping[str, Array], end: Array) -> Array:
        """Return the gradient of the state at the start of a window kept earlier."""
        grads = kept["grads"]
        steps = self._steps if self.last_only else grads.shape[1]
        shape = (steps, len(end), self.GATES * self.units)
        spare = rows(self._scratch, "spare", shape, self._dtype)
        return self._back(kept, self._by_step(grads, steps), end, spare)

    def _kept_shape(self, name: str, streams: int) -> tuple[int, ...]:
        """Return the shape of the array `name`, one of `KEPT`."""
        extra = 1 if name in ("hidden", "cells") else 0
        width = self.units * (self.GATES if name == "gates" else 1)
        return (self._steps + extra, streams, width)

    def _learn(self, dz: Array, xs: Array, hidden: Array) -> None:
        flat = _flat(dz)
        terms = {"weight_ih": _flat(xs), "weight_hh": _flat(hidden[:-1])}
        if self.bias:
            terms["bias"] = self._ones(len(flat))
        for name, right in terms.items():
            grad = self.grads[name]
            into = (
                grad if self.fresh else rows(self._scratch, f"more.{name}", grad.shape, grad.dtype)
            )
            if name == "bias":
                np.matmul(right, flat, out=into)
            else:
                np.matmul(flat.T, right, out=into)
            if not self.fresh:
                grad += into
        self.fresh = False

    def _ones(self, count: int) -> Array:
        """Return ones (count,): a product with them sums over rows, faster than np.sum does."""
        ones = rows(self._scratch, "ones", (count,), self._dtype)
        ones[...] = 1
        return ones


def _flat(steps: Array) -> Array:
    """Return the view (T B, N) of an array (T, B, N)."""
    return steps.reshape(-1, steps.shape[-1])


class Rnn(Recurrent):
    """h(t) = tanh(W_ih x(t) + W_hh h(t-1) + b): the simple recurrent layer (Elman 1990), as
    torch.nn.RNN. The state is h (B, H)."""

    KEPT = ("hidden",)

    def _run_steps(self, xs: Array, start: Array, slot: Slot) -> Array:
        hidden: Array = slot["hidden"]
        steps, streams, width = xs.shape
        z = hidden[1:]
        np.matmul(
            xs.reshape(-1, width),
            self.params["weight_ih"].T,
            out=z.reshape(-1, self.units),
        )
        if self.bias:
            z += self.params["bias"]
        across = self.params["weight_hh"].T
        pushed = np.empty((streams, self.units), xs.dtype)
        for step in range(steps):
            z[step] += np.matmul(hidden[step], across, out=pushed)
            np.tanh(z[step], out=z[step])
        return hidden[steps]

    def _back(
        self, kept: Mapping[str, Array], grads: Sequence[Array | None], end: Array, dz: Array
    ) -> Array:
        hidden = kept["hidden"]
        weight = self.params["weight_hh"]
        grad_h = end.copy()
        for step in range(len(dz) - 1, -1, -1):
            grad_y, d, h = grads[step], dz[step], hidden[step + 1]
            if grad_y is not None:
                grad_h += grad_y
            np.multiply(h, h, out=d)
            np.subtract(1, d, out=d)
            d *= grad_h
            np.matmul(d, weight, out=grad_h)
        return grad_h


class Lstm(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gates: Gers et al. 2000).

    It is torch.nn.LSTM of one layer, with the gates in its order, i f g o, and one bias instead of
    its two:

        c(t) = s(f) c(t-1) + s(i) tanh(g),   h(t) = s(o) tanh(c(t)),   s the logistic function

    The state is [h, c], (B, 2 H).
    """

    GATES = 4
    PARTS = 2
    KEPT = ("gates", "cells", "squashed")

    def _run_steps(self, xs: Array, start: Array, slot: Slot) -> Array:
        steps, streams, width = xs.shape
        units, dtype = self.units, xs.dtype
        gates, hidden = slot["gates"], slot["hidden"]
        cells = slot["cells"] = rows(slot, "cells_rows", hidden.shape, dtype)
        squashed = slot["squashed"] = rows(slot, "squashed_rows", (steps, streams, units), dtype)
        cells[0] = start[:, units:]
        half, shift = self._half(dtype)
        # s(z) = (1 + tanh(z / 2)) / 2: with z / 2 made by the weights, one tanh serves all gates.
        across = np.ascontiguousarray(self.params["weight_hh"].T) * half
        inwards = self.params["weight_ih"].T * half
        np.matmul(xs.reshape(-1, width), inwards, out=gates.reshape(-1, 4 * units))
        if self.bias:
            gates += self.params["bias"] * half
        pushed = np.empty((streams, 4 * units), dtype)
        spare = np.empty((streams, units), dtype)
        for step in range(steps):
            z, c, th = gates[step], cells[step + 1], squashed[step]
            z += np.matmul(hidden[step], across, out=pushed)
            np.tanh(z, out=z)
            z *= half
            z += shift
            np.multiply(z[:, units : 2 * units], cells[step], out=c)
            c += np.multiply(z[:, :units], z[:, 2 * units : 3 * units], out=spare)
            np.tanh(c, out=th)
            np.multiply(z[:, 3 * units :], th, out=hidden[step + 1])
        return np.concatenate((hidden[steps], cells[steps]), axis=1)

    def _half(self, dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
        """Return the factor (4 H,) of the gates, 1/2 for logistic ones and 1 for g, and what is
        added to them after the tanh, 1/2 and 0."""
        half = np.full(4 * self.units, 0.5, dtype)
        shift = half.copy()
        g = slice(2 * self.units, 3 * self.units)
        half[g], shift[g] = 1, 0
        return half, shift

    def _back(
        self, kept: Mapping[str, Array], grads: Sequence[Array | None], end: Array, dz: Array
    ) -> Array:
        units, weight = self.units, self.params["weight_hh"]
        gates, cells, squashed = kept["gates"], kept["cells"], kept["squashed"]
        start = np.empty_like(end)
        grad_h, grad_c = end[:, :units].copy(), end[:, units:].copy()
        spare = np.empty_like(grad_h)
        for step in range(len(dz) - 1, -1, -1):
            grad_y = grads[step]
            if grad_y is not None:
                grad_h += grad_y
            _back_step(gates[step], cells[step], squashed[step], grad_h, grad_c, dz[step], spare)
            np.matmul(dz[step], weight, out=grad_h)
        start[:, :units] = grad_h
        start[:, units:] = grad_c
        return start


def _back_step(
    z: Array, c_before: Array, th: Array, grad_h: Array, grad_c: Array, d: Array, spare: Array
) -> None:
    """Go one step back: write the gradients of the gates' inputs into d (B, 4 H), and turn grad_c
    (B, H), the gradient of the cells after the step, into that of the cells before it.

    z (B, 4 H) are the gates, th = tanh(c) (B, H), grad_h (B, H) the gradient of the output.
    """
    n = len(th[0])
    i, f, g, o = z[:, :n], z[:, n : 2 * n], z[:, 2 * n : 3 * n], z[:, 3 * n :]
    d_i, d_f, d_g, d_o = d[:, :n], d[:, n : 2 * n], d[:, 2 * n : 3 * n], d[:, 3 * n :]
    np.multiply(th, th, out=spare)
    np.subtract(1, spare, out=spare)
    spare *= o
    spare *= grad_h
    grad_c += spare
    # Derivatives of all gates first: z (1 - z) of the logistic ones, 1 - g^2.
    np.multiply(z, z, out=d)
    np.subtract(z[:, : 2 * n], d[:, : 2 * n], out=d[:, : 2 * n])
    np.subtract(1, d_g, out=d_g)
    np.subtract(o, d_o, out=d_o)
    d_o *= np.multiply(grad_h, th, out=spare)
    d_i *= np.multiply(grad_c, g, out=spare)
    d_f *= np.multiply(grad_c, c_before, out=spare)
    d_g *= np.multiply(grad_c, i, out=spare)
    grad_c *= f
