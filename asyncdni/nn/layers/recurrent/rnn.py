"""The simple recurrent layer (Elman 1990) with tanh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.recurrent.base import Recurrent

__all__ = ["Rnn"]


class Rnn(Recurrent):
    """h(t) = tanh(W_ih x(t) + W_hh h(t-1) + b), as torch.nn.RNN; the state is h (B, H)."""

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
