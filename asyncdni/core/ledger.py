"""What the coordinator has to know again after a death, its own included: see `core.coordinator`.

A ledger goes into the manifest of every cut as plain values, and comes back from there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncdni.messages import Evaluated

__all__ = ["CUTS", "SNAPSHOTS", "Ledger", "Scores", "is_cut"]

#: Tags of cuts begin with their folder in that of the run.
CUTS = "checkpoints/"
#: The folder of rolling snapshots; what `Rejoin.restore` calls them.
SNAPSHOTS = "snapshots"


class Scores:
    """The test set's result at one barrier: sums of each loss of the network.

    The accuracy is that of the last declared loss that has one."""

    def __init__(self) -> None:
        self.stages: dict[str, Evaluated] = {}

    def add(self, message: Evaluated) -> None:
        self.stages[message.stage] = message

    def ordered(self, stages: Iterable[str]) -> Scores:
        """The same in declared order, so that results do not depend on who was first."""
        scores = Scores()
        scores.stages = {stage: self.stages[stage] for stage in stages}
        return scores

    @property
    def loss(self) -> float:
        """Mean over samples (of windows: steps), summed over the network's losses."""
        return sum(score.loss / max(1, _count(score)) for score in self.stages.values())

    @property
    def accuracy(self) -> float | None:
        """Right answers out of all, or None where no loss has right answers."""
        accuracy = None
        for score in self.stages.values():
            count = _count(score)
            if score.correct is not None and count:
                accuracy = score.correct / (count * score.outputs)
        return accuracy

    @property
    def metrics(self) -> dict[str, float | None]:
        """The values of `run.metrics`, by name; empty where the run has none."""
        return {k: v for score in self.stages.values() for k, v in score.metrics.items()}

    def beats(self, accuracy: float | None, loss: float | None) -> bool:
        """Better accuracy; without one, smaller loss."""
        if self.accuracy is None or accuracy is None:
            return loss is None or self.loss < loss
        return self.accuracy > accuracy


def _count(score: Evaluated) -> int:
    """What the loss is a sum over."""
    return score.samples if score.steps is None else score.steps


#: Entries of a history. Where there are more, every other one is left out: it is a curve, and a
#: run may evaluate many times a second for days.
_HISTORY_MAX = 10_000
#: Barriers that may be taken back; those of before the last checkpoint never are.
_LIFTED_MAX = 10_000


@dataclass(slots=True)
class Ledger:
    """How far a run has come."""

    start: int = 0  # the next training batch to be read, as of the last cut
    barrier: int = 0  # number of the next barrier
    planned: int = 0  # barriers of the plan that have been lifted
    train_s: float = 0.0  # up to the last barrier
    # one entry an evaluation: batches (where the data stood), samples, train_s, accuracy, loss,
    # what `members.Run.since_evaluation` gives, and behind: true for one behind the stream
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float | None] | None = None  # accuracy and loss
    samples: dict[str, int] = field(default_factory=dict)  # forwarded, by worker
    cut: int = 0  # number of the last one; 0: none yet
    # of barriers of the plan that have been lifted: position, and `planned` before
    lifted: list[list[int]] = field(default_factory=list)
    restore: str = "initial"  # what a round that goes back starts from: see `messages.Rejoin`
    # of an earlier coordinator's time, by worker, as last reported; not in the manifest
    updates: dict[str, int] = field(default_factory=dict)
    # all evaluations of that time; not in the manifest
    recorded: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """For the manifest of the cut that this is."""
        return {
            "start": self.start,
            "barrier": self.barrier,
            "planned": self.planned,
            "train_s": self.train_s,
            "history": [dict(entry) for entry in self.history],
            "best": None if self.best is None else dict(self.best),
            "samples": dict(self.samples),
            "cut": self.cut,
            "lifted": [list(one) for one in self.lifted],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], restore: str) -> Ledger:
        """Make the ledger of a manifest; `restore` names the folder of its cut, or "snapshots"."""
        known = {name: state[name] for name in cls().state()}
        return cls(**known, restore=restore)

    def evaluated(self, scores: Scores, entry: dict[str, Any]) -> bool:
        """Take note of an evaluation; True where it is the best so far."""
        self.history.append(entry)
        best = self.best
        if best is not None and not scores.beats(best["accuracy"], best["loss"]):
            return False
        self.best = {"accuracy": scores.accuracy, "loss": scores.loss}
        return True

    def lift(self, position: int, planned: int) -> None:
        """A barrier has been lifted, and `planned` of the plan's with it."""
        if planned != self.planned:
            self.lifted.append([position, self.planned])
            del self.lifted[:-_LIFTED_MAX]
        self.planned = planned
        self.barrier += 1
        if len(self.history) > _HISTORY_MAX:  # the first and the last one stay
            del self.history[len(self.history) - 2 : 0 : -2]

    def go_on(self, history: Sequence[dict[str, Any]]) -> None:
        """Add the evaluations of `history`, as they were recorded, that came after this ledger's
        own: the stages have gone on since its cut, and so have the evaluations."""
        last = max((entry.get("batches", 0) for entry in self.history), default=0)
        # Where the run has gone back, the later entry of a batch counts.
        later = {b: entry for entry in history if (b := entry.get("batches", 0)) > last}
        for entry in later.values():
            self.history.append(entry)
            if entry.get("behind"):
                continue  # the copy that was evaluated has been lost: see `core.behind`
            if self.best is None or _better(entry, self.best):
                self.best = {"accuracy": entry["accuracy"], "loss": entry["loss"]}

    def behind(self, start: int) -> None:
        """Nobody is farther than `start` any more: have later barriers again."""
        while self.lifted and self.lifted[-1][0] > start:
            self.planned = self.lifted.pop()[1]
        self.forget_from(start + 1)

    def taken_up(
        self,
        saved: Sequence[Mapping[str, int]],
        history: Sequence[dict[str, Any]],
        barriers: Sequence[int],
    ) -> None:
        """A run that has ended before its time goes on: from the workers' own snapshots, where all
        of them are farther than the cut that this is of, or else from that cut.

        `saved`: what each had done by its snapshot (see `Counts.state`), or nothing where one has
        none or can't go on from it; `history`: all evaluations so far; `barriers` of the plan."""
        positions = [one.get("batches", 0) + one.get("missed", 0) for one in saved]
        if not positions or min(positions) <= self.start:
            self.fit(barriers)
            return
        first = max(*positions, *(one.get("read", 0) for one in saved))
        self.go_on(history)
        self.resumed((min(positions), first), barriers, SNAPSHOTS)

    def fit(self, barriers: Sequence[int]) -> None:
        """Adapt the ledger to a plan that may have changed since this cut."""
        done, due = barriers[: self.planned], barriers[self.planned :]
        if any(one > self.start for one in done) or any(one < self.start for one in due):
            self.planned = bisect_right(barriers, self.start)
        # The last one is had again by a run that has died behind it, so that it comes to an end.
        self.planned = min(self.planned, len(barriers) - 1)
        self.forget_from(barriers[self.planned])

    def resumed(self, span: tuple[int, int], barriers: Sequence[int], restore: str) -> None:
        """A new run goes on from what workers have saved by themselves: where the first is, as far
        as `span` says where the last and the first of them are.

        Past `barriers` of the plan before the last, and past those between that have been
        evaluated; but not past the plan's last one, so that the run comes to its end.
        """
        behind, self.start = span
        self.restore = restore
        self.forget_from(self.start + 1)
        evaluated = max((entry.get("batches", 0) for entry in self.history), default=0)
        done = max(bisect_left(barriers, behind), bisect_right(barriers, evaluated))
        self.planned = min(done, len(barriers) - 1)
        self.forget_from(barriers[self.planned])

    def kept(self, span: tuple[int, int], barriers: Sequence[int]) -> None:
        """Workers of an earlier coordinator go on from what they have in memory; for `span` and
        `barriers` see `resumed`."""
        lifted = self.planned  # by the cut that this is of: nobody is before that
        self.go_on(self.recorded)
        self.resumed(span, barriers, self.restore)
        self.planned = max(self.planned, lifted)

    def forget_from(self, position: int) -> None:
        """Forget evaluations from that position on: they will be made again."""
        self.history = [entry for entry in self.history if entry.get("batches", 0) < position]

    def back_to(self, cut: Ledger) -> None:
        """Go back to a cut: what came after it is to be done again. Time that was spent stays
        spent, and barriers go on being numbered."""
        self.start, self.planned = cut.start, cut.planned
        self.history = [dict(entry) for entry in cut.history]
        self.best = None if cut.best is None else dict(cut.best)
        self.samples = dict(cut.samples)
        self.lifted = [list(one) for one in cut.lifted]


def _better(entry: Mapping[str, Any], best: Mapping[str, float | None]) -> bool:
    """Better accuracy; without one, smaller loss."""
    accuracy, before = entry["accuracy"], best["accuracy"]
    if accuracy is None or before is None:
        loss = best["loss"]
        return loss is None or bool(entry["loss"] < loss)
    return bool(accuracy > before)


def is_cut(tag: str) -> bool:
    """What is saved under this tag is a state to go on from, not weights alone."""
    return tag.startswith(CUTS)
