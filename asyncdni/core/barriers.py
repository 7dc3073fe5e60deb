"""What the coordinator orders at barriers, and when it has a barrier set.

```
 TRAINING ── all Drained ──► EVALUATING ── all Evaluated ──► SAVING ── all Saved ──┬──► ENDED
    ▲             └─ for a checkpoint alone, or a stop ────────►     and committed │
    └───────────────────────────── Resume ─────────────────────────────────────────┘
```

A user's stop sets the last barrier where the current update's batches end: a run that is taken up
again from there does what it would have done anyway. Draining and saving may take as long as they
move; a worker that dies meanwhile is replaced, and the barrier set again. A second stop ends the
run at once.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from asyncdni.core.behind import BEST, Evaluations
from asyncdni.core.events import Commit, Consult, Fail, Finish
from asyncdni.core.ledger import CUTS, Ledger, Scores, is_cut
from asyncdni.core.members import Phase, Run
from asyncdni.core.position import CHECKPOINT, FINAL
from asyncdni.core.post import UnexpectedMessage
from asyncdni.messages import Close, Drained, Evaluate, Evaluated, Leave, Resume, Save, Saved

__all__ = ["BarrierSteps"]

#: Signals that come together are one request: `timeout` sends its own twice, systemd SIGTERM and
#: SIGHUP, and of a terminal that is closed both the kernel and the shell tell.
_TOGETHER_S = 0.25
#: How often it is said how far the user's stop has come.
_TELL_EVERY_S = 2.0


@dataclass(slots=True)
class _Steps:
    """What has come back for the current barrier."""

    kind: str = ""
    position: int = 0
    drained: dict[str, int] = field(default_factory=dict)  # position, by worker
    scores: Scores = field(default_factory=Scores)
    saves: list[str] = field(default_factory=list)  # tags still to be saved
    saved: dict[str, dict[str, str]] = field(default_factory=dict)  # by worker, of the first tag
    since: float = 0.0  # when the first of them was ordered
    # as they were before the evaluation: entries of the history, and the best one
    before: tuple[int, dict[str, float | None] | None] | None = None

    def take_back(self, ledger: Ledger) -> None:
        """Take the evaluation out of the ledger: it will be had again."""
        if self.before is not None:
            count, ledger.best = self.before
            del ledger.history[count:]


class BarrierSteps:
    """Orders each step of a barrier once all workers have done the one before."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._out = run.out
        self._roster = run.roster
        self._ledger = run.ledger
        self._standstill = run.standstill
        self._behind = Evaluations(run)
        self._at = _Steps()
        self._committing: tuple[Ledger, float] | None = None  # a cut, and since when it is saved
        self._closing = False  # a barrier for a checkpoint has been ordered
        self._reported_s = 0.0  # when it was said last how far a stop has come

    @property
    def is_over(self) -> bool:
        """Whether all that this barrier was for is done, and workers are to be moved before anybody
        goes on."""
        return self._run.phase is Phase.SAVING and not self._at.saves

    def check(self) -> None:
        """Assert every invariant."""
        assert set(self._at.drained) <= set(self._run.members)
        assert set(self._at.saved) <= set(self._run.members)

    def received(self, name: str, message: Drained | Evaluated | Saved, now: float) -> str | None:
        """Take note of a step of a barrier; one from before a death means nothing any more.

        Returns what is wrong with the round, if workers have lost count of the batches. Raises
        `UnexpectedMessage` for a step that is not due."""
        if self._run.phase in (Phase.GATHERING, Phase.CONNECTING, Phase.MENDING):
            return None
        if self._run.phase is not Phase.TRAINING:
            self._standstill.moved(now)
        match message:
            case Drained(incarnation=number) if number != self._run.members[name].incarnation:
                pass
            case Drained(barrier=self._ledger.barrier) if self._run.phase is Phase.TRAINING:
                return self._drained(name, message, now)
            case Evaluated(copy=int()):
                self._behind.received(name, message, now)
            case Evaluated(barrier=self._ledger.barrier) if self._may_score(name, message):
                self._evaluated(message, now)
            case Saved(tag=tag) if tag in self._at.saves[:1]:
                self._saved(name, message, now)
            case _:
                raise UnexpectedMessage
        return None

    def forget(self) -> None:
        """Forget what has come back for the current barrier; the next round has it again."""
        self._at.take_back(self._ledger)
        self._behind.forget()
        self._at = _Steps()
        self._closing = False

    def _drained(self, name: str, message: Drained, now: float) -> str | None:
        at = self._at
        at.drained[name] = message.position
        if not self._run.all_here or len(at.drained) < len(self._run.members):
            return None
        if len(set(at.drained.values())) > 1:  # each batch counts once, everywhere
            counts = ", ".join(f"{stage} {count}" for stage, count in at.drained.items())
            return f"workers have forwarded different numbers of batches: {counts}"
        at.kind, at.position = message.kind, message.position
        assert self._run.segment_start is not None
        self._ledger.train_s += now - self._run.segment_start
        self._run.segment_start = None
        self._out.record("drained", now, barrier=self._ledger.barrier)
        self._standstill.pause(now)
        if at.kind != CHECKPOINT and self._roster.has_tests and self._run.stopping_since is None:
            self._run.phase = Phase.EVALUATING
            self._run.to_all(Evaluate(self._ledger.barrier))
        else:
            self._save(now)
        return None

    def _may_score(self, name: str, message: Evaluated) -> bool:
        """The loss is this worker's, and a test was asked for (a stop may have cut it short)."""
        stages = set(self._roster.losses) & set(self._roster.members[name])
        return message.stage in stages and self._run.phase in (Phase.EVALUATING, Phase.SAVING)

    def _evaluated(self, message: Evaluated, now: float) -> None:
        self._at.scores.add(message)
        if self._run.phase is not Phase.EVALUATING:
            return  # the user's stop has cut the evaluation short
        if len(self._at.scores.stages) < len(self._roster.losses):
            return
        scores = self._at.scores = self._at.scores.ordered(self._roster.losses)
        samples = self._run.samples_learned()
        entry: dict[str, Any] = {
            "batches": self._at.position,
            "samples": samples,
            "train_s": self._ledger.train_s,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            **self._run.since_evaluation(self._at.position, samples, self._ledger.train_s),
        }
        if self._roster.metrics:
            entry["metrics"] = scores.metrics
        self._out.record("evaluation", now, **entry)
        self._at.before = len(self._ledger.history), self._ledger.best
        if self._ledger.evaluated(scores, entry):
            self._at.saves.append(BEST)
            self._behind.superseded()
        if self._roster.consults and self._at.kind != FINAL:
            self._out.add(Consult())
        else:
            self._save(now)

    def consulted(self, ends: bool, now: float) -> None:
        """The user's callbacks have seen the evaluation; with `ends` this barrier is the last, or
        the next one if it was an evaluation behind the stream."""
        if self._run.phase is Phase.EVALUATING:
            if ends:
                self._at.kind = FINAL
            self._save(now)
        elif ends and self._run.phase is Phase.TRAINING:
            self._run.to(self._roster.workers[0], Close(FINAL))

    def _is_final(self) -> bool:
        return self._run.stopping_since is not None or self._at.kind == FINAL

    def _save(self, now: float) -> None:
        self._run.phase = Phase.SAVING
        self._at.since = now
        if self._run.stopping_since is not None:
            self._tell_stopping(now)
        if self._behind.best is not None:
            self._at.saves.append(BEST)
        if self._is_final():
            self._at.saves.append("final")
        if not self._roster.folder:
            self._at.saves.clear()
        elif self._cut_is_due(now):
            self._add_cut()
        self._save_next(now)

    def _add_cut(self) -> None:
        """Have a cut saved as well, unless one is to be saved already."""
        if self._roster.folder and not any(map(is_cut, self._at.saves)):
            self._ledger.cut += 1
            self._at.saves.append(f"{CUTS}{self._ledger.cut:06d}")

    def _save_next(self, now: float) -> None:
        if self._at.saves:
            self._at.saved.clear()
            tag = self._at.saves[0]
            self._run.to_all(Save(tag, self._behind.best if tag == BEST else None))
        elif self._is_final():
            self._end(now)
        else:
            self._resume(now)

    def _saved(self, name: str, message: Saved, now: float) -> None:
        saved, tag = self._at.saved, message.tag
        saved[name] = message.files
        if len(saved) < len(self._run.members):
            return
        files = {stage: digest for part in saved.values() for stage, digest in part.items()}
        if is_cut(tag):
            self._commit(tag, files)
        else:
            copied = tag == BEST and self._behind.best is not None
            result = self._behind.result if copied else self._result()
            self._out.add(Commit(tag, files, result, whole=False))

    def _result(self) -> dict[str, Any]:
        """What is known of the weights at this barrier; they may not have been evaluated."""
        scores = self._at.scores
        known = len(scores.stages) == len(self._roster.losses) > 0
        accuracy, loss = (scores.accuracy, scores.loss) if known else (None, None)
        return {"batches": self._at.position, "accuracy": accuracy, "loss": loss}

    def _commit(self, tag: str, files: dict[str, str]) -> None:
        """Commit a cut; its state is that of the run after this barrier."""
        cut = deepcopy(self._ledger)
        cut.start, cut.restore = self._at.position, tag
        cut.lift(self._at.position, self._planned())
        self._committing = cut, self._at.since
        self._out.add(Commit(tag, files, cut.state(), whole=True))

    def committed(self, tag: str, now: float) -> None:
        """The manifest of what has been saved under that tag is on disk.

        If that was the last thing to be saved, the barrier is over: all go on, or have to be moved.
        """
        if not is_cut(tag):
            self._out.record("saved", now, tag=tag)
            if tag == BEST:
                self._behind.saved()
            self._saved_all(tag, now)
            return
        if self._committing is None or self._committing[0].restore != tag:
            return
        (self._run.cut, since), self._committing = self._committing, None
        self._run.cut_s = now
        self._out.record("cut", now, number=self._run.cut.cut, took_s=now - since)
        self._saved_all(tag, now)

    def _saved_all(self, tag: str, now: float) -> None:
        """Go on to what is to be saved next, unless a death has come in between."""
        if self._run.phase is Phase.SAVING and self._at.saves[:1] == [tag]:
            self._at.saves.pop(0)
            self._save_next(now)

    def _planned(self) -> int:
        """How many barriers of the plan will have been lifted with this one."""
        kind, position = self._at.kind, self._at.position
        ordered = kind == CHECKPOINT and position not in self._roster.cut_positions
        cut_short = self._run.stopping_since is not None and not self._at.scores.stages
        return self._ledger.planned + (not ordered and not cut_short)

    def _resume(self, now: float) -> None:
        barrier = self._ledger.barrier
        self._ledger.lift(self._at.position, self._planned())
        if self._at.before is not None:  # this evaluation stays
            self._run.losses.clear()
        self._at.before = None
        self.forget()
        if self._run.moving:
            return  # nobody goes on before all are there again: see `Deaths.move`
        self._run.to_all(Resume(barrier))
        self._run.phase = Phase.TRAINING
        self._standstill.go_on(now)
        self._run.segment_start = now
        self._out.record("resume", now)

    def _end(self, now: float) -> None:
        self._run.to_all(Leave())
        self._run.phase = Phase.ENDED
        if self._run.stopping_since is None:
            self._out.add(Finish())
            return
        kept = self._run.kept
        if self._roster.resume:
            kept = f"all is kept in {self._roster.folder}: `{self._roster.resume}` goes on"
        text = f"interrupted after {self._run.samples_learned():,} samples; {kept}"
        self._out.add(Fail("Interrupted", text, orderly=True))

    # --- checkpoints -----------------------------------------------------------------------------

    def _cut_is_due(self, now: float) -> bool:
        at, every_s = self._at, self._roster.cut_every_s
        if (
            self._is_final()
            or self._run.moving
            or at.kind == CHECKPOINT
            or at.position in self._roster.cut_positions
        ):
            return True
        last_s = self._run.cut_s
        return every_s is not None and last_s is not None and now >= last_s + every_s

    @property
    def next_cut_s(self) -> float | None:
        """When a barrier for a checkpoint is to be ordered."""
        every_s, last_s = self._roster.cut_every_s, self._run.cut_s
        if not self._roster.folder or self._run.phase is not Phase.TRAINING or self._closing:
            return None
        if self._run.stopping_since is not None or last_s is None:
            return None  # the last one is on its way, or the run has not begun
        if self._run.moving:
            return last_s  # at once
        return last_s + every_s if every_s is not None else None

    def move(self, name: str) -> None:
        """Have a worker go on elsewhere from the next cut, which is taken as soon as it can be.

        Without a folder there are no cuts: the worker stays.
        """
        if self._roster.folder and not self._is_final():
            self._run.moving.add(name)
            if self._run.phase is Phase.SAVING:
                self._add_cut()

    # --- stopping ---------------------------------------------------------------------------------

    def user_stop(self, now: float) -> None:
        """The user has asked to stop: end at a last barrier, or at once the second time."""
        if self._run.stopping_since is not None:
            if now >= self._run.stopping_since + _TOGETHER_S:
                self._run.fail(self._run.interrupted("saving was cut short"))
        elif not self._run.started or (not self._roster.launched and not self._run.all_here):
            self._run.fail(self._run.interrupted())  # nobody to wait for may ever come
        else:
            self._run.stopping_since = now
            self._tell_stopping(now)
            self.stop_work(now)

    def _tell_stopping(self, now: float) -> None:
        self._reported_s = now
        batches = max(self._run.in_flight.values(), default=0)
        self._out.record("stopping", now, phase=self._run.phase.value, batches=batches)

    def stop_work(self, now: float) -> None:
        """Have the last barrier set, or make the one that is under way the last."""
        if self._run.phase is Phase.TRAINING:
            self._run.to(self._roster.workers[0], Close(FINAL))
        elif self._run.phase is Phase.EVALUATING:
            self._save(now)  # leave the test set where it is
        elif self._run.phase is Phase.SAVING and "final" not in self._at.saves:
            self._at.saves.append("final")
            self._add_cut()

    def tell_stopping_again(self, now: float) -> None:
        """Say how far the user's stop has come, every now and then."""
        if self._run.stopping_since is not None and now >= self._reported_s + _TELL_EVERY_S:
            self._tell_stopping(now)

    def watch(self, now: float) -> None:
        """Order a barrier for a checkpoint if it is time for one."""
        cut_s = self.next_cut_s
        if cut_s is not None and now >= cut_s:
            self._closing = True
            self._run.to(self._roster.workers[0], Close(CHECKPOINT))
