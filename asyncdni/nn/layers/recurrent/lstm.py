"""Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.recurrent.base import Recurrent
from asyncdni.nn.layers.slots import rows

__all__ = ["Lstm"]


class Lstm(Recurrent):
    """As torch.nn.LSTM of one layer; gates in its order, i f g o, and one bias for its two.

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
        # s(z) = (1 + tanh(z / 2)) / 2: with the half in the weights, one tanh does for all gates.
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
        """(4 H,): 1/2 for the logistic gates and 1 for g; and 1/2 and 0."""
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
    """One step back: gradients of the gates' inputs into d (B, 4 H), grad_c (B, H) moves on.

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
