"""The words of every schedule: `Op`, `Flight`, `View`, `Schedule`. No time, no tensors, no network.

A schedule is one pure function, `next_op(view)`: it sees ids and counts, and names the next op of
its stage, or None to wait. Sends follow from ops (a finished Forward sends the activation to every
consumer, a finished Backward with `send` sends each producer its gradient), so a schedule can't
deadlock the network by pairing sends wrongly.

Ops are written `2F0`: stage 2, Forward, batch 0. A Backward that only passes the true gradient on
to the producers, without learning from it (or leaving that to a later Learn, `2W0`), is written
`2b0`; one that learns the difference between the true and the synthetic gradient `2C0`; one that
learns a share of the true gradient `2M0`.
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
    APPLY = "A"  # one on what the sharers of weights have accumulated, once all of it is here
    FIT = "T"  # train the generator on the gradient that came back
    FIT_INPUT = "S"  # train the input model on the activation that came
    DROP = "X"  # give a batch up: its gradient is no longer waited for (no arithmetic)
    EVALUATE = "E"  # forward of a test batch with running statistics; nothing is kept

    __hash__ = object.__hash__  # members are single: quicker than hashing their names


class Source(Enum):
    """Which gradient of its output a Backward starts from."""

    TRUE = "true"  # what the consumers sent, and the stage's own loss
    SYNTHETIC = "synthetic"  # the generator's prediction
    DIFFERENCE = "difference"  # true minus synthetic: the late correction
    SHARE = "share"  # the true gradient times its share in a mix, late

    __hash__ = object.__hash__


#: How ops are written, but for those Backwards that have letters of their own.
_LETTERS = {kind: kind.value for kind in OpKind}
#: Of late Backwards, which learn what the batch's own update could not.
_LATE = {Source.DIFFERENCE: "C", Source.SHARE: "M"}


class Op(NamedTuple):
    """One piece of work of one stage on one batch. A tuple, as a run makes thousands a second."""

    kind: OpKind
    batch: int
    source: Source = Source.TRUE  # Backward only
    learn: bool = True  # Backward: accumulate the gradients of the weights
    send: bool = True  # Backward: compute the gradients of the inputs and send them
    last: bool = False  # the batch's forward state is given up after this op
    evaluate: bool = False  # Read only: a batch of the test set
    skip: bool = False  # Forward only: tell producers that no gradient of this batch will come
    replay: bool = False  # Forward only: learn from an input once more, sending nothing on

    @property
    def letter(self) -> str:
        """`F`, `B`, …; `b` for a Backward that does not learn, `C` and `M` for late ones."""
        if self.kind is OpKind.BACKWARD:
            return _LATE.get(self.source) or ("B" if self.learn else "b")
        return _LETTERS[self.kind]

    def __str__(self) -> str:
        return f"{self.letter}{self.batch}"


@dataclass(slots=True)
class Flight:
    """A batch in flight: forwarded, and its forward state not yet given up."""

    batch: int
    samples: int
    version: int  # updates of the stage when the batch was forwarded
    done: str = "F"  # letters of the ops done on it, in order
    arrived: bool = False  # the true gradient is here (from all consumers)


class View(Protocol):
    """What a schedule may know. All of it read-only."""

    @property
    def has_consumers(self) -> bool:
        """Other stages take this stage's activation, so gradients come back from them."""

    @property
    def has_producers(self) -> bool:
        """Some input comes from another stage, which wants a gradient (data wants none)."""

    @property
    def ready(self) -> Sequence[int]:
        """Batches whose inputs are all here and not yet forwarded, oldest first.

        Empty while a consumer grants no credit, and at the bound on lag.
        """

    @property
    def queued(self) -> int:
        """Batches on their way in: those of `ready`, and all that may not be forwarded yet."""

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
        """Batches to learn from once more: least used first, the freshest among them."""

    @property
    def waiting(self) -> bool:
        """The guard says: wait for true gradients."""

    @property
    def unapplied(self) -> int:
        """Backwards accumulated since the last Update."""

    @property
    def closed(self) -> bool:
        """No further batch comes until everything here has been drained."""

    @property
    def has_readers(self) -> bool:
        """Other workers get their data from here."""


class Schedule(Protocol):
    """Which op next? Frozen options and one pure method."""

    def next_op(self, view: View) -> Op | None:
        """The next op of this stage, or None: wait."""

    def may_read(self, view: View) -> bool:
        """The next batch may be read while nothing else is to be done (host of the data)."""


# --- groups --------------------------------------------------------------------------------------
#
# Microbatches in groups: the accumulated gradients of each group make one update.


@dataclass(frozen=True, slots=True)
class Groups:
    """Which ids belong together: `size` a group; the last group of an epoch may be shorter."""

    size: int
    per_epoch: int  # microbatches

    def ends(self, batch: int) -> bool:
        """The batch is the last of its group."""
        position = batch % self.per_epoch
        return position == self.per_epoch - 1 or position % self.size == self.size - 1

    def end_from(self, batch: int) -> int:
        """The first id from `batch` on before which no group is cut in two."""
        if self.size == 1:
            return batch
        epoch, index = divmod(batch, self.per_epoch)
        groups = -(-index // self.size)
        return epoch * self.per_epoch + min(groups * self.size, self.per_epoch)

    def forwarded(self, view: View) -> bool:
        """The whole group has been; a barrier may cut one short where nothing more comes."""
        return self.ends(view.last) or (view.closed and not view.queued)


# --- asked ---------------------------------------------------------------------------------------
#
# Which batches a gradient is sent up for: the id alone decides, so that all stages agree.


@dataclass(frozen=True, slots=True)
class Asked:
    """The first `first` batches, and then each whose id is a multiple of `every` (0: none)."""

    every: int = 1
    first: int = 0

    def of(self, batch: int) -> bool:
        return batch < self.first or (self.every > 0 and batch % self.every == 0)


ALWAYS = Asked()
NEVER = Asked(every=0)


# --- draw ----------------------------------------------------------------------------------------
#
# Draws that every process agrees on, without a generator's state: a number in, a number out.

_MASK = 2**64 - 1


def draw(key: int, batch: int) -> float:
    """Uniform in [0, 1), for each key and batch another (SplitMix64: Steele et al. 2014)."""
    state = (key + (batch + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) / 2.0**64


# --- backward ------------------------------------------------------------------------------------
#
# The way back of one batch, in two halves or whole: shared by the schedules that wait for it.
#
# Only what others wait for comes first: a stage sends the gradient of its inputs (b) before it
# works out those of its weights (W), which overlaps with the backward of the stages below and
# changes no result (Rae et al. 2024, "2BP", arXiv 2405.18047; Qi et al. 2023, "Zero bubble pipeline
# parallelism", arXiv 2401.10241). A stage that has nothing to send keeps its backward whole (B).


def pushed_back(flight: Flight) -> bool:
    """The gradient has been through the stage."""
    return "b" in flight.done or "B" in flight.done


def step_back(flight: Flight, *, split: bool, send: bool) -> Op:
    """The next op of a batch whose gradient is here, up to its own update."""
    done = flight.done
    if "B" in done or "W" in done:
        return Op(OpKind.UPDATE, flight.batch, last=True)
    if "b" in done:
        return Op(OpKind.LEARN, flight.batch)
    return Op(OpKind.BACKWARD, flight.batch, learn=not (split and send), send=send)
