"""Versions of the weights, where gradients come late: a backward goes through those of the batch's
forward (stash) or through the present ones (current); or forwards and backwards go through the
weights before the last update (double).

```
update            0     1     2     3
forward of batch  a     b     c     d
backward of             a     b     c      stash: a goes back through the weights of update 0
                                           current: through those of update 1
                                           double: forward and backward of c, update 1
```

Weight stashing is PipeDream's (Narayanan et al. 2019, arXiv 1806.03377, section 3.3), the double
buffer is PipeDream-2BW's (Narayanan et al. 2021, arXiv 2006.09503, section 3.1).

Looking ahead means that forwards go through the weights moved on by `look_ahead` times their last
change, close to where they will be when the gradient comes back (AsyncPP: Ajanthan et al. 2025,
arXiv 2505.01099, where the factor is Nesterov's momentum; weight prediction: Kosson et al. 2021,
arXiv 2003.11666, where it is the staleness). Together with stashing it is the error feedback of
Zmushko et al. 2026 (arXiv 2606.30634): see docs/schedules.md.

Learning rates may be divided by the staleness, to a power that falls to 0 over the first updates
(PipeMare: Yang et al. 2021, arXiv 1910.05124, technique 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from asyncdni.nn.base import Array, Layer

__all__ = ["Copy", "DoubleBuffer", "Version", "Versions"]


@dataclass(slots=True)
class Version:
    """The weights between two updates."""

    number: int  # how many updates were made before
    vector: Array | None = None  # the weights (N,); None: the live ones
    users: int = 0  # how many batches were forwarded with this version and are not yet released


class Versions:
    """The versions of one block's weights; its layers' parameters are views of one vector."""

    def __init__(
        self,
        layers: Sequence[Layer],
        params: Array,
        *,
        stash: bool,
        look_ahead: float = 0.0,
        anneal_updates: float = 0.0,
    ) -> None:
        self._layers = layers
        self._params = params
        self._stash = stash
        self._look_ahead = look_ahead
        self._anneal_updates = anneal_updates
        self._current = Version(0)
        self._before: Array | None = None  # the weights before the present update, to look ahead
        self._live = [layer.params for layer in layers]

    def take(self, group: int) -> Version:
        """Return the version for a batch that is being forwarded, which counts as its user. `group`
        is the index of the update that the batch is meant for."""
        self._current.users += 1
        return self._current

    def give_back(self, version: Version) -> None:
        """Note that a batch with this version has been released."""
        version.users -= 1

    @contextmanager
    def forward(self, version: Version) -> Iterator[None]:
        """Give layers, within this context, the weights of the version's forwards."""
        with self._in_use(version.vector):
            yield

    @contextmanager
    def backward(self, version: Version) -> Iterator[None]:
        """Give layers, within this context, the weights that backwards of batches with this version
        go through."""
        with self._in_use(version.vector if self._stash else None):
            yield

    def forget(self) -> None:
        """Note that the batches in flight have been dropped."""

    def rate_factor(self, staleness: int) -> float:
        """Return the factor of the learning rate for an update whose gradient is `staleness`
        updates old."""
        passed = self._current.number / self._anneal_updates if self._anneal_updates else 1.0
        exponent = max(0.0, 1.0 - passed)
        return math.exp(-exponent * math.log(max(1, staleness)))

    def before_update(self) -> None:
        """Copy the weights that are about to change, where they are still needed."""
        if self._stash and self._current.users and self._current.vector is None:
            self._current.vector = self._params.copy()
        if self._look_ahead:
            self._before = self._params.copy()

    def after_update(self) -> None:
        """Begin the next version, with which batches are forwarded from now on."""
        self._current = Version(self._current.number + 1)
        if self._before is not None:
            ahead = np.subtract(self._params, self._before, out=self._before)
            ahead *= self._look_ahead
            ahead += self._params
            self._current.vector, self._before = ahead, None

    # --- state -----------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Array]:
        """Return a copy of what the next forwards depend on: "number" () and, when looking ahead,
        "ahead" (N,)."""
        arrays: dict[str, Array] = {"number": np.array(self._current.number, np.int64)}
        if self._look_ahead:
            vector = self._current.vector
            arrays["ahead"] = (self._params if vector is None else vector).copy()
        return arrays

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from what `snapshot` gave; the arrays then belong to this object."""
        self._current = Version(int(arrays["number"]), arrays.get("ahead"))

    def begin(self, number: int) -> None:
        """Go on after `number` updates, with the present weights and without looking ahead yet."""
        self._current = Version(number)

    @contextmanager
    def _in_use(self, vector: Array | None) -> Iterator[None]:
        if vector is None:
            yield
            return
        for layer, params in zip(self._layers, _views(vector, self._live), strict=True):
            layer.params = params
        try:
            yield
        finally:
            for layer, params in zip(self._layers, self._live, strict=True):
                layer.params = params


class DoubleBuffer(Versions):
    """Two versions of one block's weights: the present ones, and those before the last update.

    All batches of one update go through the latter, both ways. Those of them that are forwarded
    while the update before theirs is still to be made find these weights to be the present ones.
    """

    def __init__(
        self, layers: Sequence[Layer], params: Array, *, anneal_updates: float = 0.0
    ) -> None:
        super().__init__(layers, params, stash=True, anneal_updates=anneal_updates)
        self._last = params.copy()  # the weights before the last update
        self._pending: dict[int, Version] = {}  # by index: updates whose batches are in flight

    def take(self, group: int) -> Version:
        version = self._pending.get(group)
        if version is None:
            updates = self._current.number if self._pending else self._current.number - 1
            version = self._pending[group] = Version(max(0, updates))
        version.users += 1
        return version

    @contextmanager
    def forward(self, version: Version) -> Iterator[None]:
        first = next(iter(self._pending.values()), None)
        with self._in_use(self._last if version is first else None):
            yield

    @contextmanager
    def backward(self, version: Version) -> Iterator[None]:
        with self.forward(version):
            yield

    def forget(self) -> None:
        self._pending.clear()

    def before_update(self) -> None:
        np.copyto(self._last, self._params)
        self._pending.pop(next(iter(self._pending), -1), None)

    def snapshot(self) -> dict[str, Array]:
        """Return copies of "number" () and "last" (N,), the weights before the last update."""
        return {**super().snapshot(), "last": self._last.copy()}

    def restore(self, arrays: dict[str, Array]) -> None:
        super().restore(arrays)
        np.copyto(self._last, arrays["last"])

    def begin(self, number: int) -> None:
        super().begin(number)
        np.copyto(self._last, self._params)


class Copy:
    """A copy of one block's weights and running statistics, to be evaluated while training goes on;
    its layers' parameters are views of one vector."""

    def __init__(self, layers: Sequence[Layer], params: Array) -> None:
        self._layers = layers
        self.params = list(_views(params.copy(), [layer.params for layer in layers]))
        self.buffers = [
            {name: array.copy() for name, array in layer.buffers.items()} for layer in layers
        ]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within this context, the layers have the weights and statistics of the copy."""
        live = [(layer.params, layer.buffers) for layer in self._layers]
        self._give(zip(self.params, self.buffers, strict=True))
        try:
            yield
        finally:
            self._give(live)

    def _give(self, arrays: Iterable[tuple[dict[str, Array], dict[str, Array]]]) -> None:
        for layer, (params, buffers) in zip(self._layers, arrays, strict=True):
            layer.params, layer.buffers = params, buffers


def _views(vector: Array, like: Sequence[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Return the vector as each layer's parameters, in the order of `optimizers.flatten`."""
    start = 0
    for live in like:
        views = {}
        for name, array in live.items():
            views[name] = vector[start : start + array.size].reshape(array.shape)
            start += array.size
        yield views
