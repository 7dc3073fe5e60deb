"""Sets of weights that several stages use: one step on the sum of their gradients, at every copy.

Copies begin alike. A sum is made in declared order and every copy's optimizer makes the same step
on it, so they stay alike to the last bit, whether their stages live in one worker or in several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from asyncdni.backends.numpy.block import Block
from asyncdni.backends.numpy.joining import add_in_order
from asyncdni.errors import RemoteProtocolError
from asyncdni.nn.base import Array

__all__ = ["Sharing"]


class Sharing:
    """The part that one worker's blocks have in such sets."""

    def __init__(self, blocks: Iterable[Block] = (), sharers: Iterable[Sequence[str]] = ()) -> None:
        """`sharers`: of each block, the stages with its weights, in declared order."""
        self._blocks = {block.node.name: block for block in blocks if block.parameters()}
        sets = {names: None for names in map(tuple, sharers) if len(names) > 1}
        here = [names for names in sets if self._blocks.keys() & set(names)]
        self._inside = [names for names in here if self._blocks.keys() >= set(names)]
        self._across = [names for names in here if names not in self._inside]
        #: Those here that share their weights.
        self.stages = {name for names in here for name in names} & set(self._blocks)
        #: Of each update that waits for other workers: its samples, and the gradients from here.
        self._waiting: deque[tuple[int, dict[str, Array]]] = deque()

    @property
    def waits(self) -> bool:
        """For gradients of other workers."""
        return bool(self._waiting)

    def update(self, samples: int) -> dict[str, Array]:
        """Steps of the sets that are all here; copies of the gradients (N,) of all others, by
        declared stage, which are kept for `apply`."""
        for names in self._inside:
            self._step(names, self._gradients(names), samples, None)
        if not self._across:
            return {}
        given: dict[str, Array] = {}
        for names in self._across:
            given |= self._gradients(names)
            for name in self.stages.intersection(names):
                self._blocks[name].forget()
        self._waiting.append((samples, given))
        return given

    def apply(self, batch: int, gradients: Mapping[str, Array]) -> None:
        """The step of the oldest update that waits, with the gradients from elsewhere.

        Raises `RemoteProtocolError` for a gradient of another shape or type."""
        samples, own = self._waiting.popleft()
        for names in self._across:
            found = {name: g for name, g in {**own, **gradients}.items() if name in names}
            self._step(names, found, samples, batch)

    def forget(self) -> None:
        """No gradients will come for what waits for them."""
        self._waiting.clear()

    def _gradients(self, names: Sequence[str]) -> dict[str, Array]:
        blocks = [self._blocks[name] for name in names if name in self._blocks]
        return {block.node.name: block.gradient.copy() for block in blocks if block.learned}

    def _step(
        self,
        names: Sequence[str],
        gradients: Mapping[str, Array],
        samples: int,
        batch: int | None,
    ) -> None:
        """`batch`: None for the newest."""
        terms = [gradients[name] for name in names if name in gradients]
        blocks = [self._blocks[name] for name in names if name in self._blocks]
        for term in terms:
            _check(term, blocks[0])
        total = _sum(terms)
        for block in blocks:
            block.update_on(total, samples, batch)


def _sum(terms: Sequence[Array]) -> Array | None:
    if len(terms) < 2:
        return terms[0] if terms else None
    return add_in_order(terms, np.empty_like(terms[0]))


def _check(gradient: Array, block: Block) -> None:
    if gradient.shape != (block.parameters(),) or gradient.dtype != block.dtype:
        raise RemoteProtocolError(
            f"a gradient of the weights that stage {block.node.name} shares is {gradient.dtype} "
            f"{gradient.shape}, expected {block.dtype} {(block.parameters(),)}"
        )
