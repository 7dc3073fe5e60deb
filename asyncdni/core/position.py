"""Where a worker stands in the network: all that its logic needs to know of the plan."""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.core.counts import Counts
from asyncdni.messages import DATA
from asyncdni.schedules.base import Groups, Op, OpKind

__all__ = ["CHECKPOINT", "EVALUATE", "FINAL", "KINDS", "Barriers", "Host", "Position", "Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """How many samples each batch of a run has: its size, or what an epoch leaves for its last."""

    size: int  # of what flows in training, a batch or a microbatch …
    epoch: int  # … of which so many samples make an epoch
    test_size: int
    tests: int  # samples of the test set

    def of(self, batch: int) -> int:
        """How many samples a training batch has."""
        per_epoch = -(-self.epoch // self.size)
        return min(self.size, self.epoch - batch % per_epoch * self.size)

    def of_test(self, batch: int) -> int:
        """How many samples a test batch has; 0 or less behind the last one."""
        return min(self.test_size, self.tests - batch * self.test_size)

    def ends_test(self, batch: int) -> bool:
        """Whether this batch is the last one of the test set."""
        return self.of_test(batch) > 0 >= self.of_test(batch + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """Neighbours by name. Producers and consumers in declared order."""

    name: str
    inputs: tuple[str, ...]  # producing nodes, DATA among them where the stage reads data
    consumers: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()  # workers that have stages of the same weights
    readers: tuple[tuple[str, int], ...] = ()  # (worker, every how many updates) that read weights
    reads: str = ""  # the worker whose weights this one's generator reads; empty: none
    host: str = ""  # the worker that hosts the data
    feeds: tuple[str, ...] = ()  # host only: other workers that read data
    train_feeds: tuple[str, ...] = ()  # host only: those that predict their inputs from it
    synthetic_inputs: bool = False  # trains on predictions of its inputs, made from the data
    consumers_ahead: bool = False  # they do, and may be ahead of this stage
    reads_data: bool = False  # DATA is an input of its own, not of its input model alone
    barriers: tuple[int, ...] = ()  # host only: batches after which a barrier is set, rising
    cuts: tuple[int, ...] = ()  # host only: those of them that are for a checkpoint alone
    per_update: int = 1  # host only: the (micro)batches that make one update, …
    per_epoch: int = 0  # … and that make an epoch; 0: there is one an update
    test_batches: int = 0  # host only
    marks: tuple[int, ...] = ()  # batches before which weights are copied: see `core.behind`
    rows: Rows | None = None  # of each batch; None: any number

    @property
    def producers(self) -> tuple[str, ...]:
        """The inputs that want a gradient."""
        return tuple(node for node in self.inputs if node != DATA)

    @property
    def train_inputs(self) -> tuple[str, ...]:
        """The nodes that a training batch needs something from."""
        return (DATA,) if self.synthetic_inputs else self.inputs

    @property
    def test_inputs(self) -> tuple[str, ...]:
        """The nodes that a test batch needs something from: never synthetic."""
        return self.producers if self.synthetic_inputs and not self.reads_data else self.inputs

    @property
    def hosts_data(self) -> bool:
        return self.host == self.name

    def group_end(self, batch: int) -> int:
        """The first id from `batch` on before which no group, whose batches make one update, is
        cut in two."""
        return Groups(self.per_update, self.per_epoch).end_from(batch)

    def home(self, node: str) -> str:
        """The worker where a producing node lives."""
        return self.host if node == DATA else node


#: What a barrier is for.
KINDS = EVALUATE, CHECKPOINT, FINAL = "evaluate", "checkpoint", "final"


class Barriers:
    """Barriers on their way through one worker: the current one, and the next as far as it is here.

    A barrier comes behind the last activation from every producer, closes the stage, is passed on
    behind the stage's own last activation, and is lifted by the coordinator. The next one may
    arrive before the coordinator has lifted this one, because control and data ride on separate
    sockets.
    """

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self._inputs = frozenset(inputs)
        self._from: dict[int, set[str]] = {}
        self._kind_of: dict[int, str] = {}
        self.current = -1  # number of the barrier that closed the stage last
        self.kind = EVALUATE
        self.closed = False
        self.passed = True

    def begin(self, barrier: int) -> None:
        """The barrier of this number is the next."""
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
        """A barrier has come from one producer; that of the last one closes the stage."""
        self._from.setdefault(barrier, set()).add(sender)
        self._kind_of[barrier] = kind
        self._close_if_complete()

    def set(self, kind: str) -> None:
        """The host of the data sets the next barrier itself."""
        self.current += 1
        self.kind, self.closed, self.passed = kind, True, False

    def lift(self) -> None:
        """The coordinator has lifted the barrier. The next one may be here already."""
        self.closed = False
        self._close_if_complete()

    def _close_if_complete(self) -> None:
        following = self.current + 1
        if not self.closed and self._from.get(following, set()) == self._inputs:
            del self._from[following]
            self.set(self._kind_of.pop(following))


class Host:
    """The data as a node of the graph: what its host reads next, and where it sets barriers.

    Training batches are read in order, the test set after each barrier."""

    def __init__(self, position: Position, counts: Counts) -> None:
        self._stops = [
            (batch, _kind(number, position)) for number, batch in enumerate(position.barriers)
        ]
        self._group_ends = position.group_end
        self._test_batches = position.test_batches
        self._tested: int | None = None  # test batches read; None: not testing
        self._reading = False  # a training batch, at this moment
        self._counts = counts

    @property
    def read(self) -> int:
        """Training batches read; ids are never reused."""
        return self._counts.read

    def begin(self, planned: int) -> None:
        """Skip the barriers of the plan that have been lifted; after the last nothing is read."""
        self._stops = self._stops[planned:] or [(self.read, FINAL)]

    def at_barrier(self) -> bool:
        """The plan has a barrier here."""
        return bool(self._stops) and self.read >= self._stops[0][0]

    def set_barrier(self) -> str:
        """Take the next barrier off the plan; returns its kind."""
        return self._stops.pop(0)[1]

    def close(self, kind: str) -> None:
        """Set a barrier of that kind where the current group of batches ends; after a final
        one comes no other."""
        stop = self._group_ends(self.read + self._reading)
        if kind == FINAL:
            self._stops = [(stop, FINAL)]
        elif self._stops and stop < self._stops[0][0]:  # otherwise the plan's does as well
            self._stops.insert(0, (stop, kind))

    def begin_test(self) -> None:
        self._tested = 0 if self._test_batches else None

    @property
    def testing(self) -> bool:
        return self._tested is not None

    def next_read(self) -> Op:
        """Read the next training batch."""
        self._reading = True
        return Op(OpKind.READ, self.read)

    def next_test_read(self) -> Op:
        """Read the next test batch."""
        assert self._tested is not None
        last = self._tested + 1 == self._test_batches
        return Op(OpKind.READ, self._tested, evaluate=True, last=last)

    def has_read(self, op: Op) -> None:
        if not op.evaluate:
            self._counts.read += 1
            self._reading = False
        elif op.last:
            self._tested = None
        else:
            self._tested = op.batch + 1


def _kind(number: int, position: Position) -> str:
    if number == len(position.barriers) - 1:
        return FINAL
    return CHECKPOINT if position.barriers[number] in position.cuts else EVALUATE
