"""Losses and their gradients: the error that starts every backward.

Values and gradients are of the sum over samples; each class says what one sample's loss is.
"""

from __future__ import annotations

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Loss, Slot, rows
from asyncdni.nn.layers.activations import sigmoid

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "MeanSquaredError",
    "SigmoidCrossEntropy",
    "WindowLoss",
    "by_step",
    "counted",
    "is_own",
    "make_loss",
]


class _KeepsError:
    """A loss whose forward computes the gradient already, and keeps it in the slot."""

    def backward(self, slot: Slot) -> Array:
        """Return the gradient of the summed loss, of the outputs' shape; it belongs to the slot."""
        error: Array = slot["error"]
        return error


class CrossEntropy(_KeepsError):
    """-log softmax(x)[y] of logits x (B, K) and class ids y (B,), any integer type.

    The gradient is softmax(x) - onehot(y). An answer is right if the largest logit (the first, of
    equal ones) is that of the sample's class.
    """

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        """Raise `DataError` unless y is (B,) integers in [0, K), for outputs of `shape` (K,) or
        (B, K)."""
        classes = shape[-1]
        if y.ndim != 1 or (len(shape) == 2 and len(y) != shape[0]):
            raise DataError(
                f"cross_entropy was given targets of shape {y.shape} for outputs of shape {shape}: "
                "expected one class id a sample"
            )
        if not np.issubdtype(y.dtype, np.integer):
            raise DataError(
                f"cross_entropy was given {y.dtype} targets: expected integer class ids"
            )
        wrong = (y < 0) | (y >= classes)
        if wrong.any():
            first = int(wrong.argmax())
            raise DataError(
                f"cross_entropy was given class id {y[first]} for {classes} outputs (sample "
                f"{first}): expected 0 to {classes - 1}; relabel the data or widen the last layer"
            )

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        slot["error"] = error = rows(slot, "error_rows", x.shape, x.dtype)
        best = x.argmax(axis=1)
        total, own = _softmax_error(x, y, best, error)
        return float(np.log(total).sum() - own.sum()), int(np.count_nonzero(best == y))

    def error(self, x: Array, y: Array, out: Array) -> Array:
        _softmax_error(x, y, x.argmax(axis=1), out)
        return out


def _softmax_error(x: Array, y: Array, best: Array, out: Array) -> tuple[Array, Array]:
    """Write softmax(x) - onehot(y) into `out`; `best` (B,) are the places of the largest logits.

    Returns the sums of exp(x - max) and the values x[y] - max, both (B,). The maximum is subtracted
    first so that no exp overflows.
    """
    samples = np.arange(len(x))
    np.subtract(x, x[samples, best][:, None], out=out)
    own = out[samples, y]
    np.exp(out, out=out)
    total = np.matmul(out, np.ones(x.shape[1], x.dtype))
    out /= total[:, None]
    out[samples, y] -= 1
    return total, own


class SigmoidCrossEntropy(_KeepsError):
    """Binary cross-entropy of logits x (B, K) and targets y (B, K) in [0, 1], summed over the K.

    -y log s(x) - (1 - y) log(1 - s(x)), with s the logistic function; the gradient is s(x) - y.
    Each output is one answer, which is right if x > 0 agrees with y > 0.5.
    """

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        """Raise `DataError` unless y is (B, K) within [0, 1], for outputs of `shape` (K,) or
        (B, K)."""
        _check_values("sigmoid_cross_entropy", shape, y)
        wrong = (y < 0) | (y > 1)
        if wrong.any():
            sample, output = np.argwhere(wrong)[0]
            raise DataError(
                f"sigmoid_cross_entropy was given a target of {y[sample, output]} (sample "
                f"{sample}, output {output}): expected 0 to 1; scale the targets, or use mse"
            )

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        slot["error"] = error = rows(slot, "error_rows", x.shape, x.dtype)
        # The loss as max(x, 0) - x y + log(1 + exp(-|x|)), in which no exp overflows.
        np.abs(x, out=error)
        np.negative(error, out=error)
        np.exp(error, out=error)
        np.log1p(error, out=error)
        loss = float(error.sum() + np.maximum(x, 0).sum() - np.vdot(x, y.astype(x.dtype)))
        correct = int(np.count_nonzero((x > 0) == (y > 0.5)))
        self.error(x, y, error)
        return loss, correct

    def error(self, x: Array, y: Array, out: Array) -> Array:
        sigmoid(x, out)
        return np.subtract(out, y, out=out)


class MeanSquaredError(_KeepsError):
    """Squared error of x (B, K) against y (B, K), averaged over the K outputs of a sample.

    The mean over a batch therefore equals torch.nn.MSELoss. The gradient is 2 (x - y) / K. This
    loss has no notion of a right answer.
    """

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        """Raise `DataError` unless y is (B, K) finite numbers, for outputs of `shape` (K,) or
        (B, K)."""
        _check_values("mse", shape, y)

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        slot["error"] = error = rows(slot, "error_rows", x.shape, x.dtype)
        self.error(x, y, error)
        # The sum of (x - y)^2 / K, computed from the gradient 2 (x - y) / K.
        return float(np.vdot(error, error)) * x.shape[1] / 4, None

    def error(self, x: Array, y: Array, out: Array) -> Array:
        np.subtract(x, y, out=out)
        out *= 2 / x.shape[1]
        return out


def _check_values(name: str, shape: tuple[int, ...], y: Array) -> None:
    if y.ndim != 2 or y.shape[-len(shape) :] != shape:
        raise DataError(
            f"{name} was given targets of shape {y.shape} for outputs of shape {shape}: expected "
            "one value an output"
        )
    if y.dtype.kind not in "fiub":
        raise DataError(f"{name} was given {y.dtype} targets: expected numbers")
    bad = ~np.isfinite(y)
    if bad.any():
        sample, output = np.argwhere(bad)[0]
        raise DataError(
            f"{name} was given a target of {y[sample, output]} (sample {sample}, output {output}): "
            "expected finite numbers"
        )


def is_own(loss: str) -> bool:
    """Whether this names a callable of the user's own, "module:callable"."""
    return ":" in loss


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "mse": MeanSquaredError,
}


def make_loss(name: str) -> Loss:
    """Return the loss of that name. Raises `ConfigError`, which lists the known ones."""
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}: expected one of {', '.join(LOSSES)}")
    return LOSSES[name]()


class WindowLoss(_KeepsError):
    """`loss` on windows: each step that counts is treated as one sample.

    Outputs x are (B, T, K), targets y (B, T) or (B, T, K). The mask (B, T) bool says which steps
    count. Value and gradient are sums over these steps; both are 0 for a window without any.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def forward(
        self, x: Array, y: Array, mask: Array | None, slot: Slot
    ) -> tuple[float, int | None, int]:
        """Return the loss, the number of right answers (None: the loss has no such notion), and the
        number of steps that count, and keep the error in `slot`."""
        inner: Slot = slot.setdefault("steps", {})
        outputs, targets, chosen = by_step(x), by_step(y), counted(mask)
        if chosen is None:
            loss, correct = self._loss.forward(outputs, targets, inner)
            slot["error"] = self._loss.backward(inner).reshape(x.shape)
            return loss, correct, len(outputs)
        loss, correct = self._loss.forward(outputs[chosen], targets[chosen], inner)
        error = rows(slot, "error_rows", outputs.shape, x.dtype)
        error[...] = 0
        error[chosen] = self._loss.backward(inner)
        slot["error"] = error.reshape(x.shape)
        return loss, correct, len(chosen)


def by_step(windows: Array) -> Array:
    """Return windows (B, T, …) as (B T, …), one row a step."""
    return windows.reshape(-1, *windows.shape[2:])


def counted(mask: Array | None) -> Array | None:
    """Return the indices of the rows of `by_step` that count; None where all do."""
    return None if mask is None else np.flatnonzero(mask)
