"""Optimizers on one flat vector, the flattening of layers into one, and learning-rate schedules.

Vectors are worked on block by block: a step passes over its arrays ten times, and a block stays in
the cache from the first pass to the last. Where the loops of `fused` are there, one pass does it.

A learning-rate schedule is a pure function that gives the factor of the learning rate, from 1 down.
Time is counted in epochs (1.5: the middle of the second), so that a schedule means the same at any
batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from asyncdni.errors import ConfigError, NumericalError
from asyncdni.nn.base import Array, Layer, aligned_empty
from asyncdni.nn.fused import loops_of

__all__ = [
    "RATES",
    "Adam",
    "Sgd",
    "clip_by_norm",
    "constant",
    "cosine",
    "finite_norm",
    "flatten",
    "norm",
    "scale",
    "step",
    "warmup",
]

#: How many elements, about, make a block: smaller ones cost more in calls than they save in the
#: cache.
_BLOCK = 65536


class Sgd:
    """Stochastic gradient descent with momentum, as torch.optim.SGD (no dampening).

    Weight decay is added to the gradient. State: "momentum" (N,), where there is momentum.
    """

    def __init__(
        self, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        if nesterov and not momentum:
            raise ConfigError("nesterov = true needs a momentum above 0")
        self.momentum = float(momentum)
        self.nesterov = nesterov
        self.weight_decay = float(weight_decay)
        self.state: dict[str, Array] = {}
        self._scratch = np.empty(0)

    def start(self, params: Array) -> None:
        """Allocate what `state` lacks, so that a checkpoint can be copied into it.

        The first step does so too.
        """
        self._scratch = np.empty(_block_size(params.size), params.dtype)
        if self.momentum:
            self.state.setdefault("momentum", np.zeros_like(params))

    def step(self, params: Array, grads: Array, rate: float, scale: float = 1.0) -> None:
        """Move `params` by -rate * direction for the gradient scale * `grads`, overwritten."""
        if not self._scratch.size:
            self.start(params)
        loops = loops_of(params, grads)
        if loops is not None and self.momentum:
            numbers = np.array([scale, self.momentum, self.weight_decay, rate], params.dtype)
            loops.sgd(params, grads, self.state["momentum"], numbers, self.nesterov)
            return
        for part in _blocks(params.size):
            self._step_block(part, params[part], _scaled(grads[part], scale), float(rate))

    def _step_block(self, part: slice, p: Array, g: Array, rate: float) -> None:
        t = self._scratch[: p.size]
        if self.weight_decay:
            g += np.multiply(p, self.weight_decay, out=t)
        direction = g
        if self.momentum:
            m = self.state["momentum"][part]
            m *= self.momentum
            m += g
            direction = m
            if self.nesterov:
                g += np.multiply(m, self.momentum, out=t)
                direction = g
        p -= np.multiply(direction, rate, out=t)


class Adam:
    """Adam (Kingma and Ba 2015), as torch.optim.Adam; with weight decay AdamW, decoupled.

    State: "first" and "second" (N,), the discounted sums of gradients and of their squares, and
    "steps" (). The moments of the paper are (1 - beta) times the sums: keeping sums saves two
    passes over the vector, and the factors go into the two numbers of `_constants`.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.beta1 = float(beta1)
        self.beta2 = float(beta2)
        self.epsilon = float(epsilon)
        self.weight_decay = float(weight_decay)
        self.state: dict[str, Array] = {}
        self._scratch = np.empty(0)

    def start(self, params: Array) -> None:
        """Allocate what `state` lacks, so that a checkpoint can be copied into it.

        The first step does so too.
        """
        self._scratch = np.empty(_block_size(params.size), params.dtype)
        self.state.setdefault("first", np.zeros_like(params))
        self.state.setdefault("second", np.zeros_like(params))
        self.state.setdefault("steps", np.zeros((), np.int64))

    def step(self, params: Array, grads: Array, rate: float, scale: float = 1.0) -> None:
        """Move `params` by one step of Adam for the gradient scale * `grads`, overwritten."""
        if not self._scratch.size:
            self.start(params)
        self.state["steps"] += 1
        factor, epsilon = self._constants(int(self.state["steps"]), float(rate))
        decay = 1 - float(rate) * self.weight_decay
        loops = loops_of(params, grads)
        if loops is not None:
            numbers = [scale, self.beta1, self.beta2, epsilon, factor, decay]
            first, second = self.state["first"], self.state["second"]
            loops.adam(params, grads, first, second, np.array(numbers, params.dtype))
            return
        for part in _blocks(params.size):
            p = params[part]
            if self.weight_decay:
                p *= decay
            p -= self._move(part, _scaled(grads[part], scale), factor, epsilon)

    def _move(self, part: slice, g: Array, factor: float, epsilon: float) -> Array:
        m, v, t = self.state["first"][part], self.state["second"][part], self._scratch[: g.size]
        m *= self.beta1
        m += g
        v *= self.beta2
        v += np.square(g, out=g)
        np.sqrt(v, out=t)
        t += epsilon
        np.divide(m, t, out=t)
        t *= factor
        return t

    def _constants(self, steps: int, rate: float) -> tuple[float, float]:
        """Return (s, e) so that s * first / (sqrt(second) + e) is the step of the paper's
        algorithm 1."""
        first = (1 - self.beta1) / (1 - self.beta1**steps)
        second = math.sqrt((1 - self.beta2) / (1 - self.beta2**steps))
        return rate * first / second, self.epsilon / second


def _scaled(g: Array, scale: float) -> Array:
    """Multiply a block of the gradient in place by `scale`, and return it."""
    if scale != 1.0:
        g *= scale
    return g


def norm(vector: Array) -> float:
    """Return the Euclidean norm of an array taken as one vector. It is not finite as soon as one
    element is not."""
    return math.sqrt(np.vdot(vector, vector))  # unlike np.dot it does not warn of an overflow


def finite_norm(grads: Array) -> float:
    """Return the norm of `grads`. Raises `NumericalError` where it is not finite."""
    found = norm(grads)
    if not math.isfinite(found):
        raise NumericalError(f"the norm of a gradient is {found}, expected a finite number")
    return found


def clip_by_norm(grads: Array, found: float, most: float) -> None:
    """Scale `grads` (N,), whose norm is `found`, in place so that the norm is at most `most`."""
    if found > most:
        grads *= most / found


def flatten(layers: Sequence[Layer]) -> tuple[Array, Array]:
    """Return all parameters of `layers`, and all their gradients, as one vector each (N,), in
    order.

    The values are copied, and the arrays in each layer's `params` and `grads` are replaced by views
    of the vectors, so that a step on the vectors is a step of the layers.
    """
    return _flatten([layer.params for layer in layers]), _flatten([layer.grads for layer in layers])


def _flatten(owners: Sequence[dict[str, Array]]) -> Array:
    arrays = [array for owner in owners for array in owner.values()]
    flat = np.empty(0)
    if arrays:
        flat = aligned_empty((sum(array.size for array in arrays),), arrays[0].dtype)
        np.concatenate([array.ravel() for array in arrays], out=flat)
    start = 0
    for owner in owners:
        for name, array in owner.items():
            owner[name] = flat[start : start + array.size].reshape(array.shape)
            start += array.size
    return flat


def _block_size(size: int) -> int:
    """Return the size of equal blocks of about `_BLOCK` elements, so that the last one is not a
    stub."""
    return -(-size // max(1, round(size / _BLOCK)))


def _blocks(size: int) -> Iterator[slice]:
    width = max(1, _block_size(size))
    return (slice(start, start + width) for start in range(0, size, width))


def constant(epoch: float, total_epochs: float) -> float:
    """Return the factor 1 for all updates."""
    return 1.0


def step(
    epoch: float, total_epochs: float, *, epochs: Sequence[float], factor: float = 0.1
) -> float:
    """Return `factor` to the power of the number of `epochs` that have passed."""
    return float(factor) ** sum(epoch >= end for end in epochs)


def cosine(epoch: float, total_epochs: float, *, final: float = 0.0) -> float:
    """Return a factor that falls from 1 to `final` over the run, along half a cosine (Loshchilov
    and Hutter 2017, no restarts)."""
    progress = min(1.0, epoch / total_epochs) if total_epochs > 0 else 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def warmup(update: int, updates: float) -> float:
    """Return a factor that rises linearly to 1 over the first `updates`. It begins above 0, so that
    the first update is not wasted."""
    return min(1.0, (update + 1) / updates) if updates > 0 else 1.0


RATES: dict[str, Callable[..., float]] = {"constant": constant, "step": step, "cosine": cosine}


def scale(
    name: str,
    update: int,
    *,
    updates_per_epoch: float,
    total_updates: float,
    warmup_epochs: float = 0.0,
    **options: float | Sequence[float],
) -> float:
    """Return the factor of the learning rate for the update of index `update` (from 0).

    Args:
        name: the schedule's name in `RATES`.
        update: how many updates were made before this one.
        updates_per_epoch: may be a fraction.
        total_updates: the number of updates in the whole run.
        warmup_epochs: how long the warm-up lasts. Its factor multiplies the schedule's, which is
            not delayed.
        options: the schedule's options: `epochs` and `factor` of step, `final` of cosine.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in RATES:
        raise ConfigError(f"unknown learning-rate schedule {name!r}: one of {', '.join(RATES)}")
    epoch = update / updates_per_epoch
    total_epochs = total_updates / updates_per_epoch
    decay = RATES[name](epoch, total_epochs, **options)
    return decay * warmup(update, warmup_epochs * updates_per_epoch)
