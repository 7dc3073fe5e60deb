"""Gradients of weights that stages of several workers have in common, on their way to one update.

Each sharer has all of the weights. Its Update hands its own gradients to the others; once theirs of
the same batch are here as well, an Apply makes the step, the same everywhere. Batches are applied
in their order. How many a worker may forward beyond the oldest that is not applied is bounded; a
bound of 0 makes each forward wait for all updates before it.

```
            b0      b1      b2                bound 1
 here       U0 ──── U1      F2 waits          handed over: 0, 1
 sharer         U0 ───────────────── U1       came: 0, and later 1
 Apply             A0 F2          … A1
```
"""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["Shares"]


class Shares:
    """What this worker has handed over, and what has come from its sharers."""

    def __init__(self, sharers: tuple[str, ...] = (), *, bound: int = 0, ahead: int = 0) -> None:
        """`bound`: see above; `ahead`: the largest bound of any sharer."""
        self.bound = bound
        self.pending: deque[int] = deque()  # batches handed over and not applied, oldest first
        self._ahead = ahead
        self._came: dict[str, dict[int, Any]] = {name: {} for name in sharers}
        self._last = dict.fromkeys(sharers, -1)  # batch that came last, by sharer

    def handed_over(self, batch: int) -> None:
        """This worker's own gradients have been sent to the sharers."""
        assert not self.pending or batch > self.pending[-1], (batch, self.pending)
        self.pending.append(batch)

    def came(self, sharer: str, batch: int, tensors: Any) -> bool:
        """A sharer's gradients; False where it has no part in the weights, comes back to a batch,
        or is further ahead than it can be."""
        held = self._came.get(sharer)
        if held is None or batch <= self._last[sharer]:
            return False
        if len(held) > len(self.pending) + self._ahead:
            return False
        held[batch] = tensors
        self._last[sharer] = batch
        return True

    @property
    def complete(self) -> int | None:
        """The oldest batch handed over, if the gradients of all sharers are here."""
        if not self.pending:
            return None
        batch = self.pending[0]
        return batch if all(batch in held for held in self._came.values()) else None

    def take(self, batch: int) -> dict[str, Any]:
        """What the sharers sent for it: it is being applied."""
        assert batch == self.complete, (batch, self.pending)
        self.pending.popleft()
        return {sharer: held.pop(batch) for sharer, held in self._came.items()}

    def hold(self, batch: int) -> bool:
        """The batch must not be forwarded before older ones have been applied."""
        return bool(self.pending) and batch - self.pending[0] > self.bound

    def check(self, last: int) -> None:
        """`last`: the batch forwarded last."""
        assert list(self.pending) == sorted(set(self.pending)), self.pending
        assert not self.hold(last), f"batch {last} is too far ahead of {self.pending[0]}"
        for sharer, held in self._came.items():
            assert len(held) <= len(self.pending) + self._ahead + 1, (sharer, list(held))
            assert all(batch <= self._last[sharer] for batch in held)
