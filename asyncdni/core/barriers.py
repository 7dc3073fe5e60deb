"""Barriers on their way through one worker.

A barrier comes behind the last activation from every producer, closes the stage, is passed on
behind the stage's own last activation, and is lifted by the coordinator. Word of the next one may
come before the coordinator's, because control and data ride on separate sockets.
"""

from __future__ import annotations

__all__ = ["CHECKPOINT", "EVALUATE", "FINAL", "KINDS", "Barriers"]

#: What all drain for.
KINDS = EVALUATE, CHECKPOINT, FINAL = "evaluate", "checkpoint", "final"


class Barriers:
    """The current barrier, and the next one as far as it is here."""

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self._inputs = frozenset(inputs)
        self._from: dict[int, set[str]] = {}
        self._kind_of: dict[int, str] = {}
        self.current = -1  # number of the barrier that closed the stage last
        self.kind = EVALUATE
        self.closed = False
        self.passed = True

    def begin(self, barrier: int) -> None:
        """This one is the next."""
        self.current = barrier - 1

    def fits(self, sender: str, barrier: int, kind: str) -> bool:
        """The next barrier, for the first time from this producer."""
        return (
            sender in self._inputs
            and kind in KINDS
            and barrier == self.current + 1
            and sender not in self._from.get(barrier, ())
        )

    def arrived(self, sender: str, barrier: int, kind: str) -> None:
        """Word from one producer; that of the last one closes the stage."""
        self._from.setdefault(barrier, set()).add(sender)
        self._kind_of[barrier] = kind
        self._close_if_complete()

    def set(self, kind: str) -> None:
        """The host of the data sets the next barrier itself."""
        self.current += 1
        self.kind, self.closed, self.passed = kind, True, False

    def lift(self) -> None:
        """The coordinator's word. The next barrier may be here already."""
        self.closed = False
        self._close_if_complete()

    def _close_if_complete(self) -> None:
        following = self.current + 1
        if not self.closed and self._from.get(following, set()) == self._inputs:
            del self._from[following]
            self.set(self._kind_of.pop(following))
