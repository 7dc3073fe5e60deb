"""What all schedules are made of: `Op`, `Flight`, `View`, `Schedule`, `Groups` and `Asked`.

A schedule is one pure function, `next_op(view)`: it sees ids and counts, no time, tensors or
network, and names the next op of its stage, or None to wait. Sends follow from ops (a finished
Forward sends the activation to every consumer, a finished Backward with `send` sends each producer
its gradient), so a schedule can't deadlock the network by pairing sends wrongly.

Ops are written `2F0`: stage 2, Forward, batch 0. A Backward that only passes the true gradient on
to the producers, without learning from it (or leaving that to a later Learn, `2W0`), is written
`2b0`. A Backward that learns the difference between the true and the synthetic gradient is written
`2C0`, one that learns a share of the true gradient `2M0`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

__all__ = [
    "ALWAYS",
    "NEVER",
    "Asked",
    "Flight",
    "Groups",
    "Op",
    "OpKind",
    "Schedule",
    "Source",
    "View",
    "draw",
    "pushed_back",
    "step_back",
]


class OpKind(Enum):
    """What a stage can be asked to do; the value is its letter in timelines."""

    READ = "R"  # take a batch from the data set (only the worker that hosts the data)
    FORWARD = "F"
    PREDICT = "P"  # ask the generator for a gradient
    BACKWARD = "B"
    LEARN = "W"  # accumulate the gradients of the weights that a Backward left for later
    UPDATE = "U"  # one optimizer step on what has been accumulated
    APPLY = "A"  # one optimizer step on what all sharers of weights have accumulated
    COPY = "K"  # take a copy of weights that generators of other workers read out through
    ADOPT = "V"  # put such a copy, which has come, in the place of the last one
    FIT = "T"  # train the generator on the gradient that came back
    FIT_INPUT = "S"  # train the input model on the activation that came
    DROP = "X"  # give a batch up: its gradient is no longer awaited (no arithmetic)
    EVALUATE = "E"  # forward of a test batch with running statistics; nothing is kept
    HOLD = "H"  # hold a copy of the weights of before this batch, to be evaluated later

    __hash__ = object.__hash__  # each member exists once: quicker than hashing their names


class Source(Enum):
    """Which gradient of its output a Backward starts from."""

    TRUE = "true"  # what the consumers sent, plus that of the stage's own loss
    SYNTHETIC = "synthetic"  # the generator's prediction
    DIFFERENCE = "difference"  # true minus synthetic: the late correction
    SHARE = "share"  # the true gradient times its share in a mix, late

    __hash__ = object.__hash__


#: The letters of ops, except for those Backwards that have letters of their own.
_LETTERS = {kind: kind.value for kind in OpKind}
#: The letters of late Backwards, which learn what the batch's own update could not.
_LATE = {Source.DIFFERENCE: "C", Source.SHARE: "M"}


class Op(NamedTuple):
    """One piece of work of one stage on one batch. It is a tuple, as a run makes thousands per
    second."""

    kind: OpKind
    batch: int
    source: Source = Source.TRUE  # Backward only
    learn: bool = True  # Backward: accumulate the gradients of the weights
    send: bool = True  # Backward: compute the gradients of the inputs and send them
    last: bool = False  # the batch's forward state is dropped after this op
    evaluate: bool = False  # Read only: a batch of the test set
    skip: bool = False  # Forward only: tell producers that no gradient of this batch will come
    replay: bool = False  # Forward only: learn from an input once more, sending nothing on
    copy: int | None = None  # Evaluate only: through this copy; None: the present weights

    @property
    def letter(self) -> str:
        """The letter of the op: `F`, `B`, …; `b` for a Backward that does not learn, `C` and `M`
        for late ones."""
        if self.kind is OpKind.BACKWARD:
            return _LATE.get(self.source) or ("B" if self.learn else "b")
        return _LETTERS[self.kind]

    def __str__(self) -> str:
        return f"{self.letter}{self.batch}"


@dataclass(slots=True)
class Flight:
    """A batch in flight: it has been forwarded, and its forward state has not been dropped yet."""

    batch: int
    samples: int
    version: int  # how many updates the stage had made when the batch was forwarded
    done: str = "F"  # letters of the ops done on it, in order
    arrived: bool = False  # whether the true gradient is here (from all consumers)


class View(Protocol):
    """What a schedule may know about its stage, read-only."""

    @property
    def has_consumers(self) -> bool:
        """Whether other stages take this stage's activation, so that gradients come back from
        them."""

    @property
    def has_producers(self) -> bool:
        """Whether an input comes from another stage, which needs a gradient (the data needs
        none)."""

    @property
    def ready(self) -> Sequence[int]:
        """Batches that are not yet forwarded and whose inputs are all here, oldest first.

        It is empty while a consumer grants no credit, and at the bound on lag.
        """

    @property
    def queued(self) -> int:
        """How many batches are on their way in: those of `ready`, and those that must still
        wait."""

    @property
    def last(self) -> int:
        """The batch forwarded last; -1 before the first."""

    @property
    def flights(self) -> Mapping[int, Flight]:
        """Batches in flight, oldest first."""

    @property
    def newest(self) -> Flight | None:
        """The batch forwarded last, if it is still in flight."""

    @property
    def arrived(self) -> Sequence[int]:
        """Batches in flight whose true gradient is here and not yet used, in order of arrival."""

    @property
    def hopeless(self) -> Sequence[int]:
        """Batches in flight whose true gradient will not come."""

    @property
    def true_inputs(self) -> Sequence[int]:
        """Batches whose true input is here for the input model to learn from."""

    @property
    def replayable(self) -> Sequence[int]:
        """Batches to learn from once more: the least used first, the freshest first among
        equals."""

    @property
    def waiting(self) -> bool:
        """Whether the guard requires the stage to wait for true gradients."""

    @property
    def unapplied(self) -> int:
        """How many Backwards have been accumulated since the last Update."""

    @property
    def closed(self) -> bool:
        """Whether no further batch comes until everything here has been drained."""

    @property
    def has_readers(self) -> bool:
        """Whether other workers get their data from this one."""


class Schedule(Protocol):
    """Decides which op comes next. It is made of frozen options and pure methods."""

    def next_op(self, view: View) -> Op | None:
        """The next op of this stage, or None to wait."""

    def may_read(self, view: View) -> bool:
        """Whether the host of the data may read the next batch while it has nothing else to do."""


# --- which batches -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of `size` batches or microbatches, whose accumulated gradients make one update; the
    last group of an epoch may be shorter."""

    size: int
    per_epoch: int  # (micro)batches of an epoch

    def index(self, batch: int) -> int:
        """The number of the batch's group, from 0 at the start of the run."""
        if self.size == 1:
            return batch
        epoch, position = divmod(batch, self.per_epoch)
        return epoch * -(-self.per_epoch // self.size) + position // self.size

    def ends(self, batch: int) -> bool:
        """Whether the batch is the last of its group."""
        if self.size == 1:
            return True
        position = batch % self.per_epoch
        return position == self.per_epoch - 1 or position % self.size == self.size - 1

    def length(self, batch: int) -> int:
        """How many (micro)batches of its group have come, with the batch itself."""
        return 1 if self.size == 1 else batch % self.per_epoch % self.size + 1

    def end_from(self, batch: int) -> int:
        """The first id from `batch` on at which a group begins."""
        if self.size == 1:
            return batch
        epoch, index = divmod(batch, self.per_epoch)
        groups = -(-index // self.size)
        return epoch * self.per_epoch + min(groups * self.size, self.per_epoch)

    def forwarded(self, view: View) -> bool:
        """Whether the whole group has been forwarded, or no more of it comes before a barrier."""
        return self.ends(view.last) or (view.closed and not view.queued)


@dataclass(frozen=True, slots=True)
class Asked:
    """The batches whose gradient is sent to producers: the first `first`, then each whose id is a
    multiple of `every` (0: none). The id alone decides, so all stages agree."""

    every: int = 1
    first: int = 0

    def of(self, batch: int) -> bool:
        """Whether the gradient of `batch` is sent to producers."""
        return batch < self.first or (self.every > 0 and batch % self.every == 0)


ALWAYS = Asked()
NEVER = Asked(every=0)


# --- draws ---------------------------------------------------------------------------------------

_MASK = 2**64 - 1


def draw(key: int, batch: int) -> float:
    """A uniform draw from [0, 1), fixed for each key and batch, so that every process agrees on it
    without keeping a generator's state (SplitMix64: Steele et al. 2014)."""
    state = (key + (batch + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) / 2.0**64


# --- backward, whole or in halves ----------------------------------------------------------------


def pushed_back(flight: Flight) -> bool:
    """Whether the batch's gradient has been propagated through the stage."""
    return "b" in flight.done or "B" in flight.done


def step_back(flight: Flight, *, split: bool, send: bool) -> Op:
    """The next op of a batch whose true gradient is here, up to its own update.

    With `split`, a stage that sends does what others wait for first: it computes and sends the
    gradient of its inputs (b), and only then those of its weights (W). The latter overlaps with the
    backward of its producers and changes no result (Rae et al. 2024, "2BP", arXiv 2405.18047; Qi et
    al. 2023, "Zero bubble pipeline parallelism", arXiv 2401.10241). A stage that has nothing to
    send does its backward in one op (B)."""
    done = flight.done
    if "B" in done or "W" in done:
        return Op(OpKind.UPDATE, flight.batch, last=True)
    if "b" in done:
        return Op(OpKind.LEARN, flight.batch)
    return Op(OpKind.BACKWARD, flight.batch, learn=not (split and send), send=send)
