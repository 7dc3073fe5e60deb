"""All that comes in at one worker, batch by batch: to train on, to test on, to learn inputs from.

```
 activation ──┬─ test ───────────────────────► Evaluate
              ├─ training ──► (join by id) ──► Forward ──► kept for a replay
 data ────────┘
 with synthetic inputs:
 data ────────┬──────────────────────────────► Forward
 activation ──┴─────────► (join by id) ──────► train the input model
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asyncdni.core.inbox import Arrival, Inbox
from asyncdni.core.position import Position
from asyncdni.core.replay import Replay
from asyncdni.messages import DATA
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Inputs"]


class Inputs:
    """Inboxes by purpose. Which activations a batch is made of is the position's business."""

    def __init__(self, position: Position, replay: Replay | None = None) -> None:
        self.train_nodes = position.train_inputs
        self.test_nodes = position.test_inputs
        self.train = Inbox(self.train_nodes)
        self.test = Inbox(self.test_nodes)
        self.replay = replay or Replay(0, 1)
        # What the input model learns from: the data, and the activations that come later.
        self.true_nodes = position.producers if position.synthetic_inputs else ()
        self.true = Inbox((*self.true_nodes, DATA))
        self.any_skipped = False  # so far: there may be batches that can't be used

    @property
    def empty(self) -> bool:
        """Nothing of training is left."""
        return not len(self.train) and not (self.true_nodes and len(self.true))

    @property
    def true_ready(self) -> Sequence[int]:
        """Batches for the input model, oldest first."""
        return self.true.ready

    def add(
        self,
        batch: int,
        node: str,
        samples: int,
        tensors: Any,
        *,
        evaluate: bool = False,
        last: bool = False,
    ) -> bool:
        """An activation, or data; False where another batch was due, or it is unlike the rest."""
        if evaluate:
            return node in self.test_nodes and self.test.add(batch, node, samples, tensors, last)
        fits = True
        if node in self.train_nodes:
            fits = self.train.add(batch, node, samples, tensors)
        if self.true_nodes and fits:
            fits = self.true.add(batch, node, samples, tensors)
        return fits

    def skip(self, batch: int, node: str) -> bool:
        """No activation of that batch will come from there; False where another was due."""
        fits = self.any_skipped = True
        if node in self.train_nodes:
            fits = self.train.skip(batch, node)
        if self.true_nodes and fits:
            fits = self.true.skip(batch, node)
        return fits

    def begin(self, start: int) -> None:
        """This training batch is the first to come."""
        self.train.begin(start)
        self.true.begin(start)

    def lose(self, node: str) -> None:
        """No activation will come from there any more."""
        self.any_skipped = True
        if node in self.train_nodes:
            self.train.lose(node)
        if self.true_nodes:
            self.true.lose(node)

    def voids(self) -> Iterator[tuple[int, tuple[str, ...], bool]]:
        """(batch, nodes whose activations came in vain, it was to be trained on) of each batch that
        can't be used and is next in line."""
        while (found := self.train.take_void()) is not None:
            yield (*found, True)
        while self.true_nodes and (found := self.true.take_void()) is not None:
            batch, nodes = found
            yield batch, tuple(node for node in nodes if node != DATA), False

    def take(self, op: Op) -> tuple[Arrival, tuple[str, ...]]:
        """What an op works on, and the nodes whose activations it takes."""
        match op.kind:
            case OpKind.FORWARD if op.replay:
                return self.replay.use(op.batch), ()
            case OpKind.FORWARD:
                arrival = self.train.take(op.batch)
                self.replay.keep(op.batch, arrival)
                return arrival, self.train_nodes
            case OpKind.EVALUATE:
                return self.test.take(op.batch), self.test_nodes
            case OpKind.FIT_INPUT:
                return self.true.take(op.batch), self.true_nodes
        raise ValueError(f"{op} takes no input")

    def check(self) -> None:
        for part in (self.train, self.test, self.true, self.replay):
            part.check()
