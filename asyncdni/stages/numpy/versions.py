"""Which weights a batch goes through when gradients come late: those of its forward, or today's.

```
update            0     1     2     3
forward of batch  a     b     c     d
backward of             a     b     c      stash: a goes back through the weights of update 0
                                           current: through those of update 1
```

Weight stashing: PipeDream (Narayanan et al. 2019, arXiv 1806.03377, section 3.3). Looking ahead:
forwards go through the weights moved on by `look_ahead` times their last change, near to where they
will be when the gradient comes back (AsyncPP: Ajanthan et al. 2025, arXiv 2505.01099, where the
factor is Nesterov's momentum; weight prediction: Kosson et al. 2021, arXiv 2003.11666, where it is
the staleness). Rates divided by the staleness, less and less so: PipeMare (Yang et al. 2021, arXiv
1910.05124, technique 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from asyncdni.nn.base import Array, Layer

__all__ = ["Version", "Versions"]


@dataclass(slots=True)
class Version:
    """The weights between two updates."""

    number: int  # updates before it
    vector: Array | None = None  # None: the live ones, as they are
    users: int = 0  # batches forwarded with it and not yet released


class Versions:
    """Of one block, whose layers' parameters are views of one vector."""

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
        self._before: Array | None = None  # weights before the update under way
        self._live = [layer.params for layer in layers]

    def take(self) -> Version:
        """For a batch that is being forwarded."""
        self._current.users += 1
        return self._current

    def give_back(self, version: Version) -> None:
        """The batch is released."""
        version.users -= 1

    @contextmanager
    def forward(self, version: Version) -> Iterator[None]:
        """Layers have the weights that forwards go through."""
        with self._in_use(version.vector):
            yield

    @contextmanager
    def backward(self, version: Version) -> Iterator[None]:
        """Layers have the weights that the batch's backward goes through."""
        with self._in_use(version.vector if self._stash else None):
            yield

    def rate_factor(self, staleness: int) -> float:
        """What an update's rate is multiplied by whose gradient is so many updates old."""
        passed = self._current.number / self._anneal_updates if self._anneal_updates else 1.0
        exponent = max(0.0, 1.0 - passed)
        return math.exp(-exponent * math.log(max(1, staleness)))

    def before_update(self) -> None:
        """Keep what is still needed of the weights that are about to change."""
        if self._stash and self._current.users and self._current.vector is None:
            self._current.vector = self._params.copy()
        if self._look_ahead:
            self._before = self._params.copy()

    def after_update(self) -> None:
        """From here on batches are forwarded with the next version."""
        self._current = Version(self._current.number + 1)
        if self._before is not None:
            ahead = np.subtract(self._params, self._before, out=self._before)
            ahead *= self._look_ahead
            ahead += self._params
            self._current.vector, self._before = ahead, None

    # --- state -----------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Array]:
        """What the next forwards depend on, copied: "number" (), and looking ahead "ahead" (N,)."""
        arrays: dict[str, Array] = {"number": np.array(self._current.number, np.int64)}
        if self._look_ahead:
            vector = self._current.vector
            arrays["ahead"] = (self._params if vector is None else vector).copy()
        return arrays

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from what `snapshot` gave; takes the arrays over."""
        self._current = Version(int(arrays["number"]), arrays.get("ahead"))

    def begin(self, number: int) -> None:
        """Go on after so many updates with the weights as they are."""
        self._current = Version(number)

    @contextmanager
    def _in_use(self, vector: Array | None) -> Iterator[None]:
        if vector is None:
            yield
            return
        for layer, params in zip(self._layers, self._views(vector), strict=True):
            layer.params = params
        try:
            yield
        finally:
            for layer, params in zip(self._layers, self._live, strict=True):
                layer.params = params

    def _views(self, vector: Array) -> Iterator[dict[str, Array]]:
        """The vector as each layer's parameters, in the order of `optimizers.flatten`."""
        start = 0
        for live in self._live:
            views = {}
            for name, array in live.items():
                views[name] = vector[start : start + array.size].reshape(array.shape)
                start += array.size
            yield views
