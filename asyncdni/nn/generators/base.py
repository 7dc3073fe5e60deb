"""What a generator is: the local model of the gradient that will come back (DNI paper, section 2).

`predict` is asked once a batch, right after the forward; `fit` when (and if) the true gradient of
that batch arrives, possibly many batches later. What a prediction leaves behind for its fit belongs
to the batch's slot. Gradients are of the summed loss, one row a sample.

A step whose gradient is not finite is not taken: both methods raise `NumericalError` instead.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from asyncdni.nn.base import Array, Slot, Streams

__all__ = ["Generator", "join"]


class Generator(Protocol):
    """Predicts a gradient (B, D) from an activation (B, D) and targets."""

    params: dict[str, Array]  # trained on what comes back (and on labels, for local heads)
    buffers: dict[str, Array]  # optimizer moments, running scales: for checkpoints

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
    ) -> None:
        """For activations (B, width); `loss` ("cross_entropy", "sigmoid_cross_entropy", "mse") and
        `outputs` (K) describe the targets: (B,) class ids for cross_entropy, else (B, K)."""

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """The predicted gradient (B, D), belonging to the slot. Local heads take their own step
        here. `rate_scale` is the learning-rate decay of the run at this moment, 1 at the start."""

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """One step towards the gradient (B, D) that came back for the slot's batch."""


# --- targets -------------------------------------------------------------------------------------
#
# Targets as inputs: what a model that is conditioned on labels sees beside its other input.


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
