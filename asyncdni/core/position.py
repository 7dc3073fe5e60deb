"""Where a worker stands in the network: all that its logic needs to know of the plan."""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.messages import DATA
from asyncdni.schedules.groups import Groups

__all__ = ["Position", "Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """How many samples each batch of a run has: its size, or what an epoch leaves for its last."""

    size: int  # of what flows in training, a batch or a microbatch …
    epoch: int  # … of which so many samples make an epoch
    test_size: int
    tests: int  # samples of the test set

    def of(self, batch: int) -> int:
        """Of a training batch."""
        per_epoch = -(-self.epoch // self.size)
        return min(self.size, self.epoch - batch % per_epoch * self.size)

    def of_test(self, batch: int) -> int:
        """Of a test batch; 0 and less behind the last one."""
        return min(self.test_size, self.tests - batch * self.test_size)

    def ends_test(self, batch: int) -> bool:
        """It is the last one of the test set."""
        return self.of_test(batch) > 0 >= self.of_test(batch + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """Neighbours by name. Producers and consumers in declared order."""

    name: str
    index: int
    count: int
    inputs: tuple[str, ...]  # producing nodes, DATA among them where the stage reads data
    consumers: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()  # workers that have stages of the same weights
    has_loss: bool = False
    host: str = ""  # the worker that hosts the data
    feeds: tuple[str, ...] = ()  # host only: other workers that read data
    train_feeds: tuple[str, ...] = ()  # host only: those that predict their inputs from it
    synthetic_inputs: bool = False  # trains on predictions of its inputs, made from the data
    consumers_ahead: bool = False  # they do, and may be ahead of this stage
    reads_data: bool = False  # DATA is an input of its own, not of its input model alone
    barriers: tuple[int, ...] = ()  # host only: batches after which a barrier is set, rising
    cuts: tuple[int, ...] = ()  # host only: those of them that are for a checkpoint alone
    microbatches: int = 1  # host only: that make one update, …
    per_epoch: int = 0  # … and that make an epoch; 0: there is one an update
    test_batches: int = 0  # host only
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
        """The first id from `batch` on before which no group of microbatches is cut in two."""
        return Groups(self.microbatches, self.per_epoch).end_from(batch)

    def home(self, node: str) -> str:
        """The worker where a producing node lives."""
        return self.host if node == DATA else node
