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

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from asyncdni.core.position import Position
from asyncdni.messages import DATA
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Arrival", "Inbox", "Inputs", "Replay"]


@dataclass(slots=True)
class Arrival:
    """The inputs of one batch, as far as they are here."""

    samples: int = 0  # 0: not known, all so far has been skipped
    last: bool = False  # of the test set
    tensors: dict[str, Any] = field(default_factory=dict)  # by producing node
    skipped: int = 0  # producers whose activation will not come


class Inbox:
    """Joins the activations of several producers by batch id.

    Each producer sends ids in order and leaves none out: it says which ones it skips. So batches
    complete in order too, and one that a producer has skipped is void once all have spoken.
    """

    def __init__(self, producers: tuple[str, ...]) -> None:
        self._producers = producers
        self._due = dict.fromkeys(producers, 0)  # the id that each must send next
        self._lost: set[str] = set()  # producers that are dead
        self._partial: dict[int, Arrival] = {}
        self._complete: dict[int, Arrival] = {}
        self.ready: deque[int] = deque()  # complete and not yet taken, oldest first

    def __len__(self) -> int:
        return len(self._partial) + len(self._complete)

    def add(self, batch: int, node: str, samples: int, tensors: Any, last: bool = False) -> bool:
        """One input of a batch is here; False if another was due, or it is unlike its siblings."""
        if batch != self._due[node]:
            return False
        arrival = self._partial.setdefault(batch, Arrival())
        if arrival.samples == 0:
            arrival.samples, arrival.last = samples, last
        elif (samples, last) != (arrival.samples, arrival.last):
            return False
        arrival.tensors[node] = tensors
        self._heard(batch, node, arrival)
        return True

    def skip(self, batch: int, node: str) -> bool:
        """One input of a training batch will not come; False if another was due."""
        if batch != self._due[node]:
            return False
        arrival = self._partial.setdefault(batch, Arrival())
        arrival.skipped += 1
        self._heard(batch, node, arrival)
        return True

    def begin(self, start: int) -> None:
        """This batch is the first to come."""
        self._due = dict.fromkeys(self._due, start)

    def lose(self, node: str) -> None:
        """A producer is dead: what it has not sent, of batches that others have, will not come."""
        self._lost.add(node)
        for batch in sorted(self._partial):
            self._without_lost(batch)

    def take(self, batch: int) -> Arrival:
        """Hand over a complete batch, inputs in declared order of the producers."""
        self.ready.remove(batch)
        arrival = self._complete.pop(batch)
        arrival.tensors = {node: arrival.tensors[node] for node in self._producers}
        return arrival

    def take_void(self) -> tuple[int, tuple[str, ...]] | None:
        """The oldest complete batch, if it is void, and the nodes whose activations came for it."""
        if not self.ready or not self._complete[self.ready[0]].skipped:
            return None
        batch = self.ready.popleft()
        return batch, tuple(self._complete.pop(batch).tensors)

    def check(self) -> None:
        assert list(self.ready) == sorted(self.ready), self.ready
        assert set(self.ready) == set(self._complete)

    def _heard(self, batch: int, node: str, arrival: Arrival) -> None:
        """A producer has spoken about a batch; the last of a test set makes ids start anew."""
        self._due[node] = 0 if arrival.last else batch + 1
        if len(arrival.tensors) + arrival.skipped == len(self._producers):
            del self._partial[batch]
            self._complete[batch] = arrival
            self.ready.append(batch)
        elif self._lost:
            self._without_lost(batch)

    def _without_lost(self, batch: int) -> None:
        for node in self._lost:
            if batch in self._partial and self._due[node] <= batch:
                arrival = self._partial[batch]
                arrival.skipped += 1
                self._heard(batch, node, arrival)


class Replay:
    """The last `size` inputs, kept to learn from once more while no new one is here.

    Each is used at most `uses_max` times, its first use included.

    The least used comes first, the freshest among them (Belilovsky et al. 2019, section 4).
    """

    def __init__(self, size: int, uses_max: int) -> None:
        self._size = size
        self._uses_max = uses_max
        self._kept: dict[int, Arrival] = {}  # oldest first
        self._uses: dict[int, int] = {}

    def keep(self, batch: int, arrival: Arrival) -> None:
        """Keep a new input, which is being used for the first time."""
        if self._size == 0:
            return
        if len(self._kept) == self._size:
            self._forget(next(iter(self._kept)))
        self._kept[batch] = arrival
        self._uses[batch] = 1

    @property
    def preferred(self) -> tuple[int, ...]:
        """The next one to use, if any is left."""
        if not self._kept:
            return ()
        return (min(self._kept, key=lambda batch: (self._uses[batch], -batch)),)

    def use(self, batch: int) -> Arrival:
        """Hand over a kept input, to be used once more."""
        arrival = self._kept[batch]
        self._uses[batch] += 1
        if self._uses[batch] >= self._uses_max:
            self._forget(batch)
        return arrival

    def clear(self) -> None:
        """Forget all inputs: after a barrier they are too old."""
        self._kept.clear()
        self._uses.clear()

    def check(self) -> None:
        assert len(self._kept) <= self._size
        assert self._kept.keys() == self._uses.keys()
        assert all(1 <= uses < self._uses_max for uses in self._uses.values())

    def _forget(self, batch: int) -> None:
        del self._kept[batch], self._uses[batch]


class Inputs:
    """Inboxes by purpose; the position says which activations a batch is made of."""

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
