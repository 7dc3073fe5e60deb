"""Evaluation behind the stream: training goes on while a copy of the weights is evaluated.

```
 stage a   F7 … F8 … │H│ F9 … E0 F10 … E1 F11 …         marks = (9,): H holds a copy of the weights
 stage b        F7 … F8 … │H│ F9 … E0 F10 … E1 …         behind batch 8 at each stage
 coordinator                             Evaluated(9) ─► Scored(9) ─► all drop the copy, or hold it
```

The plan says behind which batches (the marks), so nothing need travel to tell the stages. Each
stage copies its weights and running statistics between two batches, and goes on training. The test
set follows over the same links, with a credit of its own, and each stage takes one test batch
between two training batches, or more where it would wait otherwise. The host of the data reads the
test set for one mark at a time, so test batches of two evaluations never meet.

Copies stay until the coordinator has all scores. The best so far is held until a barrier, where its
weights are saved: they are the weights that were evaluated. A death ends the evaluation that is
under way, and the best copy that has not been saved is lost with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from asyncdni.core.events import Consult
from asyncdni.core.ledger import Scores
from asyncdni.core.members import Phase, Run
from asyncdni.core.post import UnexpectedMessage
from asyncdni.messages import Evaluated, Scored

__all__ = ["BEST", "Evaluations", "Marks"]

#: The tag under which the weights of the best evaluation are saved.
BEST = "best"
#: Copies at one stage whose scores are awaited; at the next mark it waits.
_COPIES_MAX = 2


class Marks:
    """The marks of one worker, and its copies of the weights, each named by its mark.

    `turn`: a test batch may come before the next training batch.
    """

    def __init__(self, marks: Iterable[int] = ()) -> None:
        """`marks`: numbers of training batches before which the weights are copied, rising."""
        self.due = deque(marks)
        self.turn = False
        self.best: int | None = None  # the copy held to be saved
        self._awaited: dict[int, tuple[int, float]] = {}  # by copy: samples learned, and when
        self._untested: deque[int] = deque()
        self._read = -1  # the copy that the test set has been read for last

    def begin(self, start: int) -> None:
        """A round starts with this batch."""
        while self.due and self.due[0] <= start:
            self.due.popleft()

    def give_up(self) -> None:
        """Evaluate nothing more in this round: a neighbour is dead."""
        self.due.clear()
        self._awaited.clear()
        self._untested.clear()

    def reached(self, last: int) -> int | None:
        """The mark that a stage has come to whose last batch was this, if it may copy now."""
        if not self.due or last + 1 < self.due[0] or len(self._awaited) >= _COPIES_MAX:
            return None
        return self.due[0]

    def hold(self, batch: int) -> bool:
        """The batch must not be forwarded before an older evaluation is over."""
        return bool(self.due) and batch >= self.due[0] and len(self._awaited) >= _COPIES_MAX

    def copied(self, mark: int, samples: int, now: float) -> None:
        """The weights have been copied, after so many samples."""
        assert mark == self.due.popleft()
        self._awaited[mark] = samples, now
        self._untested.append(mark)

    @property
    def testing(self) -> int | None:
        """The copy that the next test batch is for."""
        return self._untested[0] if self._untested else None

    def begin_read(self) -> bool:
        """Whether the host of the data is to read the test set now, for the oldest copy."""
        if not self._untested or self._untested[0] == self._read:
            return False
        if next(iter(self._awaited)) != self._untested[0]:
            return False  # test batches for an older copy may still be on their way
        self._read = self._untested[0]
        return True

    def tested(self, mark: int) -> None:
        """The last test batch has been through this copy."""
        if mark == self.testing:  # and it has not been given up
            self._untested.popleft()

    def facts(self, mark: int, now: float) -> tuple[int, float] | None:
        """Samples learned by the copy, and its age in seconds; None where it was given up."""
        found = self._awaited.get(mark)
        return None if found is None else (found[0], now - found[1])

    def scored(self, mark: int, *, best: bool) -> list[int]:
        """All scores of a copy are in; the copies that are needed no longer."""
        if self._awaited.pop(mark, None) is None:
            return []  # given up
        if not best:
            return [mark]
        older, self.best = self.best, mark
        return [] if older is None else [older]

    def saved(self) -> list[int]:
        """The best weights are on disk; the copies that are needed no longer."""
        older, self.best = self.best, None
        return [] if older is None else [older]

    @property
    def settled(self) -> bool:
        """No evaluation is under way."""
        return not self._awaited

    def check(self) -> None:
        assert len(self._awaited) <= _COPIES_MAX
        assert set(self._untested) <= set(self._awaited)
        assert list(self._awaited) == sorted(self._awaited)


class Evaluations:
    """The coordinator's part: adds up scores that come while training goes on, and knows the best
    copy that is not saved yet.

    `best`: the mark of that copy, which all workers hold; `result`: what is known of its weights.
    """

    def __init__(self, run: Run) -> None:
        self.best: int | None = None
        self.result: dict[str, Any] = {}
        self._run = run
        self._on_disk: tuple[dict[str, float | None] | None] | None = None  # None: as in the ledger
        self._clear()

    def _clear(self) -> None:
        self._scores = Scores()
        self._mark = -1
        self._samples: list[int] = []
        self._copied_s = 0.0  # when the last stage with a loss made its copy

    def forget(self) -> None:
        """Forget what is under way, and the best copy that was not saved: workers drop theirs."""
        self._clear()
        if self._on_disk is not None:
            self._run.ledger.best, self._on_disk = self._on_disk[0], None
        self.best = None

    def superseded(self) -> None:
        """An evaluation at a barrier was better than the copy that all hold."""
        self.best = None

    def saved(self) -> None:
        """The best weights are on disk."""
        self.best = self._on_disk = None

    def received(self, name: str, message: Evaluated, now: float) -> None:
        """A loss of one copy has been summed up. Raises `UnexpectedMessage` where none is due."""
        run, roster = self._run, self._run.roster
        assert message.copy is not None
        own = set(roster.losses) & set(roster.members[name])
        other = bool(self._scores.stages) and message.copy != self._mark
        if message.stage not in own or other or run.phase is not Phase.TRAINING:
            raise UnexpectedMessage
        self._mark = message.copy
        self._scores.add(message)
        self._samples.append(message.learned)
        self._copied_s = max(self._copied_s, now - message.age_s)
        if len(self._scores.stages) == len(roster.losses):
            self._all_here(roster.losses, now)

    def _all_here(self, losses: Sequence[str], now: float) -> None:
        run, ledger, scores = self._run, self._run.ledger, self._scores.ordered(losses)
        assert run.segment_start is not None
        samples = min(self._samples)
        # The copy's age does not have the time that its message took, which may differ.
        before_s = ledger.history[-1]["train_s"] if ledger.history else 0.0
        train_s = max(before_s, ledger.train_s + self._copied_s - run.segment_start)
        entry: dict[str, Any] = {
            "batches": self._mark,
            "samples": samples,
            "train_s": train_s,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "behind": True,
            **run.since_evaluation(self._mark, samples, train_s),
        }
        if run.roster.metrics:
            entry["metrics"] = scores.metrics
        run.out.record("evaluation", now, **entry)
        run.losses.clear()
        before = ledger.best
        best = ledger.evaluated(scores, entry) and bool(run.roster.folder)
        if best:
            self._on_disk = self._on_disk or (before,)
            self.best = self._mark
            self.result = {key: entry[key] for key in ("batches", "accuracy", "loss")}
        run.to_all(Scored(self._mark, best))
        if run.roster.consults:
            run.out.add(Consult())
        self._clear()
