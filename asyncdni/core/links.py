"""All links of one worker: who may send how much to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from asyncdni.core.credit import Incoming, Outgoing
from asyncdni.core.position import Position
from asyncdni.messages import DATA

__all__ = ["Links"]


class Links:
    """Credit by link, from a producing node (a worker's stage, or the data) to a worker."""

    def __init__(self, position: Position, window: int | str, window_max: int) -> None:
        everyone = (*position.feeds, *position.train_feeds)
        self._consumers = {position.name: position.consumers, DATA: everyone}
        self._testers = {position.name: position.consumers, DATA: position.feeds}
        self._lost: set[str] = set()
        self.incoming = {node: Incoming(window, window_max) for node in position.inputs}
        self.outgoing = {
            (node, to): Outgoing(window, window_max)
            for node, consumers in self._consumers.items()
            for to in consumers
        }

    def consumers(self, node: str, *, evaluate: bool = False) -> tuple[str, ...]:
        """The workers that take what this node of ours produces."""
        return (self._testers if evaluate else self._consumers)[node]

    def may_send(self, node: str, *, evaluate: bool = False) -> bool:
        """Every consumer of the node grants credit."""
        consumers = self.consumers(node, evaluate=evaluate)
        return all([self.outgoing[node, to].may_send() or to in self._lost for to in consumers])

    def takes(self, node: str, to: str, *, waits: bool) -> bool:
        """This consumer lives, and grants credit (`waits`: as it must, for what is sent)."""
        return to not in self._lost and (waits or self.outgoing[node, to].may_send())

    def lose(self, worker: str) -> None:
        """It is dead: nothing goes there, and nobody waits for its credit."""
        self._lost.add(worker)

    def is_lost(self, worker: str) -> bool:
        return worker in self._lost

    def idle(self) -> None:
        """There is nothing to do: links without credit are waited for."""
        for link in self.outgoing.values():
            link.idle()

    def sent(self, node: str, to: str) -> bool:
        """Count one activation; True where its sending had to wait for credit."""
        link = self.outgoing[node, to]
        link.sent += 1
        waited, link.waited = link.waited, False
        return waited

    def take(self, now: float, nodes: Iterable[str]) -> Iterator[tuple[str, Incoming]]:
        """An op starts on what these nodes have sent; the links whose producer is due a grant."""
        for node in nodes:
            link = self.incoming[node]
            if link.take(now):
                yield node, link

    def pause(self) -> None:
        """What comes next is no measure of training's rate."""
        for link in self.incoming.values():
            link.pause()

    def window(self) -> int | None:
        """The widest window granted."""
        return max((link.window for link in self.incoming.values()), default=None)

    def check(self) -> None:
        for incoming in self.incoming.values():
            incoming.check()
        for outgoing in self.outgoing.values():
            outgoing.check()
