"""What a generator is: the local model of the gradient that will come back (DNI paper, section 2).

`predict` is called once a batch, right after the forward; `fit` is called when (and if) the true
gradient of that batch arrives, possibly many batches later. What a fit needs of its prediction is
kept in the batch's slot. Gradients are of the summed loss, one row a sample.

A generator takes no step whose gradient is not finite: both methods raise `NumericalError` instead.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from asyncdni.nn.base import Array, Slot, Streams

__all__ = ["Generator", "join"]


class Generator(Protocol):
    """Predicts a gradient (B, D) from an activation (B, D) and targets."""

    params: dict[str, Array]  # trained on gradients that come back (local heads: on labels)
    buffers: dict[str, Array]  # optimizer moments and running scales, for checkpoints

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
    ) -> None:
        """Make the weights, for activations (B, width).

        `loss` ("cross_entropy", "sigmoid_cross_entropy", "mse") and `outputs` (K) describe the
        targets: (B,) class ids for cross_entropy, else (B, K)."""

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Return the predicted gradient (B, D), which belongs to the slot. Local heads make their
        own step here. `rate_scale` is the present factor of learning rates, 1 at the start of a
        run."""

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Make one step towards the gradient (B, D) that came back for the slot's batch."""


def join(x: Array, y: Array, classes: bool, out: Array) -> Array:
    """Write the input of a model conditioned on targets into `out` (B, D + K): [x, onehot(y)] for
    class ids y (B,), if `classes`; else [x, y]."""
    width = x.shape[1]
    out[:, :width] = x
    if classes:
        out[:, width:] = 0
        out[:, width:][np.arange(len(x)), y] = 1
    else:
        out[:, width:] = y
    return out
