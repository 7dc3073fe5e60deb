"""What the rest of the program asks of a schedule: `Options`, the base of all tables `[schedule]`.

A schedule is one file with two classes: its options, a struct that answers these questions, and its
rule, the pure class with `next_op` that the options make for each worker (`Options.rule`). The
table of all, `SCHEDULES`, is in the package's `__init__`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from asyncdni.schedules.base import ALWAYS, Asked, Groups, Schedule
from asyncdni.tables import Count, Generator, Positive, Table, Tagged, chain_size

__all__ = [
    "Cycle",
    "Guard",
    "InputModel",
    "Late",
    "LocalHead",
    "OnFull",
    "Options",
    "Role",
    "Weights",
    "Work",
]

#: What a producer does while a consumer grants it no credit.
OnFull = Literal["wait", "skip"]
#: Where gradients come late: the weights that a backward goes through are those of the batch's own
#: forward ("stash") or the present ones ("current"). "double": both ways of all batches of one
#: update go through the weights before the last update.
Weights = Literal["stash", "double", "current"]


# --- models that stand in for what has not come --------------------------------------------------


class LocalHead(Table, frozen=True, kw_only=True):
    """A local classifier on a stage's activation, trained by its own loss."""

    hidden: tuple[Count, ...] = ()  # [relu units] of each hidden layer; none: a linear head
    learning_rate: Positive = 1e-2  # of Adam, which trains it

    title: ClassVar[str] = "local head"  # this and the next three as of `tables.Generator`
    normalises: ClassVar[bool] = False
    maps_only: ClassVar[bool] = False
    in_torch: ClassVar[bool] = False

    def size(self, row: tuple[int, ...], outputs: int) -> int:
        """Its parameters, or less, for activations of shape `row` and that many outputs."""
        return chain_size((math.prod(row), *self.hidden, outputs))


class InputModel(Table, frozen=True, kw_only=True):
    """Predicts a stage's input from the network's, trained on the activation when it comes."""

    hidden: tuple[Count, ...] = (256,)  # [relu units] of each hidden layer
    labels: bool = False  # whether it sees the targets beside the network's input
    learning_rate: Positive = 3e-3  # of Adam, which trains it


class Guard(Table, frozen=True, kw_only=True):
    """Wait for true gradients while a generator's disagree with them."""

    window: Count = 32  # [fits] over which the cosine between both gradients is averaged
    below: Annotated[float, Meta(ge=-1, le=1)] = 0.0  # the stage waits when the cosine falls below
    above: Annotated[float, Meta(ge=-1, le=1)] = 0.1  # and stops waiting when it rises above this


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Role:
    """What a rule must know of its worker and of the run."""

    name: str  # of the worker's last stage
    seed: int  # of the run
    depth: int  # workers between it and the farthest loss
    groups: Groups  # of the batches or microbatches that make one update
    asked: Asked = ALWAYS  # batches that its consumers send gradients up for
    send_at_once: bool = False  # a producer is locked to it: it learns from the same gradient
    receives_synthetic: bool = False  # what comes back to it is synthetic, at least in part


@dataclass(frozen=True, slots=True)
class Cycle:
    """What locking keeps a stage waiting for: its batch's way down to a loss and back.

    See `report.breakdown` for the arithmetic."""

    group: bool = False  # all microbatches of a group are on their way, and end in one update
    narrow: bool = False  # … but no more at a time than there are stages below
    lag: bool = False  # as many batches more are on their way as the stage may be ahead


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does with a batch, on average, beside its forward and its update."""

    ops: Mapping[str, float]  # how often, by the letter of the op
    sending: float = 0.0  # share of the backwards B that give producers a gradient


@dataclass(frozen=True, slots=True)
class Late:
    """What a stage does about gradients that come late."""

    weights: Weights = "stash"
    look_ahead: float = 0.0  # forward with the weights moved on by so many last updates
    anneal_epochs: float = 0.0  # divide learning rates by the staleness, less and less so


class Options(Tagged, frozen=True, kw_only=True, tag_field="name"):
    """Base of all schedules' options.

    The four class variables without a value must be given by each schedule. All other answers are
    those of a schedule that waits for the true gradient of every batch."""

    #: The same seed gives the same weights to the last bit, however long ops and messages take …
    repeatable: ClassVar[bool]
    #: … if so, in words; "" where it always does.
    repeatable_if: ClassVar[str] = ""
    #: The results are those of one process, to the last bit.
    synchronous: ClassVar[bool]
    #: Stages learn from gradients of their own, so that any of them may have its own schedule.
    decoupled: ClassVar[bool]
    #: What keeps its stages waiting; None: only cores and the slowest worker limit its speed.
    cycle: ClassVar[Cycle | None]
    #: The same in words, for `asyncdni profile`.
    waits_for: ClassVar[str] = ""
    #: A stage has one batch in flight. So it may stand in a decoupled run, waiting for consumers.
    locks: ClassVar[bool] = False
    #: Stages are ahead of the gradients that they await, as far as [staleness] lets them.
    ahead: ClassVar[bool] = False
    #: Stages learn by losses of their own: no gradient comes back, none is waited for.
    greedy: ClassVar[bool] = False
    #: The schedule whose ops, once measured, give the price of this one's.
    priced_as: ClassVar[str] = "synthetic"
    #: Options that must be the same for all stages: they say which gradients travel.
    run_wide: ClassVar[tuple[str, ...]] = ()
    #: Options that weights shared between workers rule out, with what they must be.
    one_by_one: ClassVar[Mapping[str, object]] = {}

    # --- the rule, and what it needs -------------------------------------------------------------

    def rule(self, role: Role) -> Schedule:
        """The pure rule of one worker."""
        raise NotImplementedError(f"{type(self).__name__} makes no rule")

    def lag_needed(self, depth: int) -> int:
        """The least lag that a stage with so many workers below runs with, in batches."""
        return 0

    def lag_usual(self, depth: int) -> int:
        """The bound on lag where [staleness] sets none."""
        return self.lag_needed(depth)

    def late(self, ahead: bool) -> Late | None:
        """What a stage must know of gradients that come late; None where none does. `ahead`: some
        bound on lag is above 0, so that weights may have moved meanwhile."""
        return None

    @property
    def learns_alone(self) -> bool:
        """A stage goes on learning while no gradient comes; the oldest batch that awaits one is
        given up at the bound on lag."""
        return False

    @property
    def asked(self) -> Asked:
        """The batches that gradients are sent up for."""
        return ALWAYS

    @property
    def only_fits(self) -> bool:
        """Whether true gradients train generators and go into no update."""
        return False

    @property
    def sends_synthetic(self) -> bool:
        """What a stage with consumers sends up is synthetic, at least in part."""
        return False

    @property
    def repeats(self) -> bool:
        """These options give the same weights whenever the seed is the same."""
        return self.repeatable and not self.replay and self.on_full != "skip"

    # --- models ----------------------------------------------------------------------------------

    @property
    def predictor(self) -> Generator | LocalHead | None:
        """What gives a stage with consumers a gradient at once; None: it waits for theirs."""
        return None

    @property
    def input_predictor(self) -> InputModel | None:
        """What stands in for an activation that has not come; None: it is waited for."""
        return None

    @property
    def models(self) -> Mapping[str, Table]:
        """Of all models that stages may train under these options, by the option's name: what they
        have learned is of no use to models of another form."""
        return {}

    # --- options that not every schedule has -----------------------------------------------------

    @property
    def microbatches(self) -> int:
        """Parts of a batch that flow one by one and end in one update."""
        return 1

    @property
    def accumulate(self) -> int:
        """Batches whose gradients are summed for one update."""
        return 1

    @property
    def per_update(self) -> int:
        """Batches or microbatches that flow one by one and make one update."""
        return self.microbatches * self.accumulate

    @property
    def split_backward(self) -> bool:
        """The gradient that others wait for is sent before the stage learns from it."""
        return True

    @property
    def on_full(self) -> OnFull:
        return "wait"

    @property
    def replay(self) -> int:
        """Inputs kept to learn from while no new one is here."""
        return 0

    @property
    def uses_max(self) -> int:
        """How often a stage may learn from one input."""
        return 1

    @property
    def synthetic_inputs(self) -> bool:
        """No stage waits for an activation: all get the data."""
        return False

    @property
    def fit_every(self) -> int:
        """One batch of so many sends a gradient up."""
        return 1

    @property
    def mix(self) -> float:
        """Share of the true gradient in an update that begins with a synthetic one."""
        return 0.0

    @property
    def guard(self) -> Guard | None:
        return None

    # --- what can't go together ------------------------------------------------------------------

    def conflicts(self) -> Iterator[str]:
        """Why these options contradict each other, as messages for the user."""
        return iter(())

    def conflicts_with_locked(self, stage: str, *, waits: bool) -> Iterator[str]:
        """The same for a run in which `stage` is locked and, with `waits`, has consumers whose
        gradients it waits for."""
        return iter(())

    def conflicts_at_once(self, stage: str) -> Iterator[str]:
        """The same for `stage`, whose producers are locked to it."""
        return iter(())

    # --- what it costs ---------------------------------------------------------------------------

    def work(self, *, exits: bool, relays: bool) -> Work:
        """Of a worker; `exits`: it sends an activation on, `relays`: it gets one from others."""
        if self.split_backward and relays:
            return Work({"b": 1.0, "W": 1.0})
        return Work({"B": 1.0}, sending=1.0)

    def unpriced(self) -> str:
        """The option because of which ops differ from batch to batch in ways that no sum over ops
        has ("schedule.mix is set"); "" where there is none."""
        return ""

    def rehearsed(self) -> Options:
        """These options, changed so that each op is done often enough to be measured."""
        return self

    def settled(self) -> Options:
        """These options as they are once training has got going."""
        return self

    # --- words -----------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """For tables and drawings: "1f1b, 4 microbatches", "delayed, 2 batches an update"."""
        cut = f", {self.microbatches} microbatches" if self.microbatches > 1 else ""
        summed = f", {self.accumulate} batches an update" if self.accumulate > 1 else ""
        return f"{self.tag}{cut}{summed}"
