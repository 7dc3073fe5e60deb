"""The logic of the coordinator: order what happens at barriers, watch, and stop. No tensor passes
through it. Who is there, and what becomes of those who die, is `core.members`'s business.

```
 GATHERING ──► CONNECTING ──► TRAINING ◄──────────────────────────────────────┐
                                 │ all Drained                                │ Resume
                 evaluate, final │ checkpoint                                 │
                            EVALUATING ── all Evaluated ──► SAVING ── all Saved ─┴─► ENDED
                                 └─────────────────────────────► committed
 anything that can't be mended: Abort to all ────────────────────────────────────► ENDED
```

Training time runs from Start or Resume to the last Drained: the drain counts, and so does the time
that a death costs; the evaluation and the saving do not.

A user's stop sets the last barrier where the current update's batches end: a run that is taken up
again from there does what it would have done anyway. Draining and saving may take as long as they
move; a worker that dies meanwhile is replaced, and the barrier set again. A second stop ends the
run at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from asyncdni.core.deaths import Deaths
from asyncdni.core.events import (
    Action,
    Commit,
    Event,
    Exited,
    Fail,
    Finish,
    Looked,
    Received,
    Rejected,
    Send,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.ledger import CUTS, Ledger, Steps, is_cut
from asyncdni.core.members import Phase, Roster
from asyncdni.core.position import CHECKPOINT, FINAL, KINDS
from asyncdni.messages import (
    Abort,
    Accused,
    Beat,
    Built,
    Close,
    Drained,
    Evaluate,
    Evaluated,
    Failed,
    Guarded,
    Hello,
    Leave,
    Message,
    Ready,
    Report,
    Resume,
    Save,
    Saved,
    Unheard,
)

__all__ = ["Claims", "Coordinator", "Phase"]

# --- claims --------------------------------------------------------------------------------------
#
# What workers say to the coordinator in numbers, held against what the plan lets be.
#
# A count that can't be would end as a checkpoint that nobody can load, a jump to the end of the
# data or a file of records that nothing can read. Whether a number that can be is true, nobody can
# tell.

#: More than anything here is ever counted to; floats hold every count below it.
_COUNT_MAX = 2**53
#: A round may go on behind batches that went wrong at the very end of the data.
_BEHIND_THE_END = 1000
#: Counters of a report that decisions are made by.
_COUNTERS = ("samples", "updates", "batches", "missed", "ops")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class Claims:
    """`roster` says what there is to be counted."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._positions = roster.batches + _BEHIND_THE_END if roster.batches else _COUNT_MAX
        self._faults: dict[type[Message], Callable[[str, Any], str | None]] = {
            Built: self._of_built,
            Report: self._of_report,
            Drained: self._of_drained,
            Evaluated: self._of_evaluated,
            Saved: self._of_saved,
            Guarded: self._of_guarded,
        }

    def fault(self, name: str, message: Message) -> str | None:
        """What can't be in a message of this worker; None where all can."""
        found = self._faults.get(type(message))
        return None if found is None else found(name, message)

    def _of_built(self, name: str, built: Built) -> str | None:
        return (
            _beyond("parameters", built.parameters)
            or _beyond("updates", built.updates)
            or _beyond("position", built.position, self._positions)
            or _beyond("read", built.read, self._positions)
        )

    def _of_report(self, name: str, report: Report) -> str | None:
        counts = {key: report.counters.get(key) for key in _COUNTERS}
        for key, count in counts.items():
            fault = None if count is None else _beyond(key, count)
            if fault is not None:
                return fault
        passed = (counts["batches"] or 0) + (counts["missed"] or 0)
        if not math.isfinite(report.loss_sum):
            return f"its loss_sum is {report.loss_sum}"
        return _beyond("loss_samples", report.loss_samples) or _beyond(
            "batches and missed", passed, self._positions
        )

    def _of_drained(self, name: str, drained: Drained) -> str | None:
        if drained.kind not in KINDS:
            return f"its kind is {drained.kind[:20]!r}"
        return _beyond("position", drained.position, self._positions)

    def _of_evaluated(self, name: str, score: Evaluated) -> str | None:
        tests = self._roster.meta.get("test_samples", score.samples)
        if score.samples != tests:
            return f"its samples are {score.samples}, not {tests}"
        if not math.isfinite(score.loss):
            return f"its loss is {score.loss}"
        count = score.samples if score.steps is None else score.steps
        return (
            _beyond("samples or steps", count)
            or _beyond("outputs", score.outputs)
            or _beyond("correct", score.correct or 0, count * score.outputs)
        )

    def _of_saved(self, name: str, saved: Saved) -> str | None:
        others = set(saved.files) - set(self._roster.members[name])
        if others:
            return f"it names files of {len(others)} stages of others"
        wrong = [stage for stage, digest in saved.files.items() if not _DIGEST.fullmatch(digest)]
        return f"the sha256 of {wrong[0]} is none" if wrong else None

    def _of_guarded(self, name: str, guarded: Guarded) -> str | None:
        return None if math.isfinite(guarded.cosine) else f"its cosine is {guarded.cosine}"


def _beyond(what: str, count: float, most: int = _COUNT_MAX) -> str | None:
    if isinstance(count, int) and 0 <= count <= most:
        return None
    return f"its {what} are {count}, expected a whole number from 0 to {most}"


#: Signals that come together are one request: `timeout` sends its own twice, systemd SIGTERM and
#: SIGHUP, and of a terminal that is closed both the kernel and the shell tell.
_TOGETHER_S = 0.25
#: How often it is said how far the user's stop has come.
_TELL_EVERY_S = 2.0


class Coordinator(Deaths):
    """One run, from the first Hello to the end; `ledger`: from where an earlier one has stopped."""

    def __init__(self, roster: Roster, ledger: Ledger | None = None) -> None:
        super().__init__(roster, ledger)
        self._claims = Claims(roster)
        self._at = Steps()
        self._committing: tuple[Ledger, float] | None = None  # and since when it is being saved
        self._closing = False  # a barrier for a checkpoint has been ordered
        self._told_s = 0.0  # when it was said last how far a stop has come

    @property
    def train_s(self) -> float:
        """Training time up to the last barrier."""
        return self.ledger.train_s

    @property
    def barrier(self) -> int:
        """The number of the current barrier."""
        return self.ledger.barrier

    @property
    def updates(self) -> dict[str, int]:
        """By worker, as last reported."""
        return dict(self._updates)

    # --- the contract of a machine ---------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Never raises for what a peer sends."""
        self._actions = []
        if self._since is None and not self._started:
            self._since = now
        if self.phase is Phase.ENDED:
            return []
        match event:
            case Received(message=message, peer=peer):
                self._received(message, peer, now)
            case Rejected():
                self._rejected(event, now)
            case Exited():
                self._exited(event, now)
            case Looked():
                self._looked(event, now)
                self._launch(now)
            case UserStop():
                self._user_stop(now)
            case Stored(tag=tag):
                self._committed(tag, now)
            case Woke():
                self._watch(now)  # here alone: a word already waiting must be heard before
            case _:
                raise TypeError(f"a coordinator has no use for {event!r}")
        return self._actions

    def deadline(self) -> float | None:
        """The earliest moment at which something is due, or waiting has been too long."""
        if self.phase is Phase.ENDED or (self._since is None and not self._started):
            return None
        times = [self._liveness.deadline(), self._progress.deadline(), self._recovery.deadline()]
        if self._since is not None:
            times.append(self._since + self.roster.startup_s)
        times += [moment for moment, _ in self._dead.values()]
        times += [self._next_cut_s, self._standstill_s]
        return min((time for time in times if time is not None), default=None)

    def check(self) -> None:
        """Assert every invariant."""
        super().check()
        if self.phase is not Phase.ENDED:
            assert set(self._at.drained) <= set(self._members)
            assert set(self._at.saved) <= set(self._members)

    # --- messages --------------------------------------------------------------------------------

    def _received(self, message: Message, peer: bytes, now: float) -> None:
        name = self._by_peer.get(peer)
        if name is None:
            if isinstance(message, Hello):
                self._hello(message, peer, now)
            else:  # a stranger, or one that was held to be dead and comes back
                self._actions.append(Send(peer, Abort("another process has taken its place")))
            return
        self._liveness.heard(name, now)
        if name in self._progress and not isinstance(message, Beat):
            self._progress.heard(name, now)
        fault = self._claims.fault(name, message)
        if fault is not None:
            self._misfit(name, message, now, fault)
            return
        match message:
            case Beat():
                pass
            case Built():
                self._built(name, message, now)
            case Ready():
                self._ready(name, message, now)
            case Unheard():
                self._unheard(name, message, now)
            case Report():
                self._report(name, message, now)
            case Guarded(waiting=waiting, cosine=cosine):
                self._record("guard", now, stage=name, waiting=waiting, cosine=cosine)
            case Accused():
                self._accused(name, message, now)
            case Failed():
                self._failed(name, message, now)
            case Drained() | Evaluated() | Saved():
                self._at_barrier(name, message, now)
            case _:
                self._misfit(name, message, now)

    def _at_barrier(self, name: str, message: Drained | Evaluated | Saved, now: float) -> None:
        """A step of a barrier; one from before a death means nothing any more."""
        if self.phase in (Phase.GATHERING, Phase.CONNECTING, Phase.MENDING):
            return
        if self.phase is not Phase.TRAINING:
            self._standstill.moved(now)
        match message:
            case Drained(incarnation=number) if number != self._members[name].incarnation:
                pass
            case Drained(barrier=self.barrier) if self.phase is Phase.TRAINING:
                self._drained(name, message, now)
            case Evaluated(barrier=self.barrier) if self._may_score(name, message):
                self._evaluated(message, now)
            case Saved(tag=tag) if tag in self._at.saves[:1]:
                self._saved(name, message, now)
            case _:
                self._misfit(name, message, now)

    def _report(self, name: str, report: Report, now: float) -> None:
        counters = report.counters
        samples, updates = counters.get("samples"), counters.get("updates")
        if isinstance(samples, int):
            self.ledger.samples[name] = samples
        if isinstance(updates, int):
            self._updates[name] = updates
        learned, missed = (_whole(counters.get(one)) for one in ("batches", "missed"))
        self._positions[name] = learned + missed
        if self._members[name].ready:  # otherwise it speaks of a round that is over
            self._recovery.reported(name, learned, learned + missed)
        self._in_flight[name] = _whole(counters.get("in_flight"))
        loss = {"loss_sum": report.loss_sum, "loss_samples": report.loss_samples}
        ops = counters.get("ops")
        if isinstance(ops, int):
            self._standstill.done(name, ops, now)
        self._record("report", now, stage=name, values={**loss, **counters})
        if self._stopping_since is not None and now >= self._told_s + _TELL_EVERY_S:
            self._tell_stopping(now)

    # --- barriers --------------------------------------------------------------------------------

    def _forget_barrier(self) -> None:
        self._at.take_back(self.ledger)
        self._at = Steps()
        self._closing = False

    def _drained(self, name: str, message: Drained, now: float) -> None:
        at = self._at
        at.drained[name] = message.position
        if not self._all_here or len(at.drained) < len(self._members):
            return
        if len(set(at.drained.values())) > 1:  # each batch counts once, everywhere
            counts = ", ".join(f"{stage} {count}" for stage, count in at.drained.items())
            text = f"workers have forwarded different numbers of batches: {counts}"
            self._once_more("RemoteProtocolError", text, now)
            return
        at.kind, at.position = message.kind, message.position
        assert self._segment_start is not None
        self.ledger.train_s += now - self._segment_start
        self._segment_start = None
        self._record("drained", now, barrier=self.barrier)
        self._standstill.pause(now)
        if at.kind != CHECKPOINT and self.roster.has_tests and self._stopping_since is None:
            self.phase = Phase.EVALUATING
            self._to_all(Evaluate(self.barrier))
        else:
            self._save(now)

    def _may_score(self, name: str, message: Evaluated) -> bool:
        """A loss of this worker's, of a test that was asked for (a stop may have cut it short)."""
        stages = set(self.roster.losses) & set(self.roster.members[name])
        return message.stage in stages and self.phase in (Phase.EVALUATING, Phase.SAVING)

    def _evaluated(self, message: Evaluated, now: float) -> None:
        self._at.scores.add(message)
        if self.phase is not Phase.EVALUATING:
            return  # the user's stop has cut the evaluation short
        if len(self._at.scores.stages) < len(self.roster.losses):
            return
        scores = self._at.scores = self._at.scores.ordered(self.roster.losses)
        entry = {
            "batches": self._at.position,
            "samples": self._samples_learned(),
            "train_s": self.train_s,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
        }
        self._record("evaluation", now, **entry)
        self._at.before = len(self.ledger.history), self.ledger.best
        if self.ledger.evaluated(scores, entry):
            self._at.saves.append("best")
        self._save(now)

    def _is_final(self) -> bool:
        return self._stopping_since is not None or self._at.kind == FINAL

    def _save(self, now: float) -> None:
        self.phase = Phase.SAVING
        self._at.since = now
        if self._stopping_since is not None:
            self._tell_stopping(now)
        if self._is_final():
            self._at.saves.append("final")
        if not self.roster.folder:
            self._at.saves.clear()
        elif self._cut_is_due(now):
            self._add_cut()
        self._save_next(now)

    def _add_cut(self) -> None:
        """To what is to be saved, unless it is there already."""
        if self.roster.folder and not any(map(is_cut, self._at.saves)):
            self.ledger.cut += 1
            self._at.saves.append(f"{CUTS}{self.ledger.cut:06d}")

    def _save_next(self, now: float) -> None:
        if self._at.saves:
            self._at.saved.clear()
            self._to_all(Save(self._at.saves[0]))
        elif self._is_final():
            self._end(now)
        else:
            self._resume(now)

    def _saved(self, name: str, message: Saved, now: float) -> None:
        saved, tag = self._at.saved, message.tag
        saved[name] = message.files
        if len(saved) < len(self._members):
            return
        files = {stage: digest for part in saved.values() for stage, digest in part.items()}
        if is_cut(tag):
            self._commit(tag, files)
        else:
            self._actions.append(Commit(tag, files, self._result()))

    def _result(self) -> dict[str, Any]:
        """Of the weights at this barrier; they may not have been evaluated."""
        scores = self._at.scores
        known = len(scores.stages) == len(self.roster.losses) > 0
        accuracy, loss = (scores.accuracy, scores.loss) if known else (None, None)
        return {"batches": self._at.position, "accuracy": accuracy, "loss": loss}

    def _commit(self, tag: str, files: dict[str, str]) -> None:
        """The cut is what comes after this barrier."""
        cut = deepcopy(self.ledger)
        cut.start, cut.restore = self._at.position, tag
        cut.lift(self._at.position, self._planned())
        self._committing = cut, self._at.since
        self._actions.append(Commit(tag, files, cut.state()))

    def _committed(self, tag: str, now: float) -> None:
        if not is_cut(tag):
            self._record("saved", now, tag=tag)
            self._saved_all(tag, now)
            return
        if self._committing is None or self._committing[0].restore != tag:
            return
        (self._cut, since), self._committing = self._committing, None
        self._cut_s = now
        self._record("cut", now, number=self._cut.cut, took_s=now - since)
        self._saved_all(tag, now)

    def _saved_all(self, tag: str, now: float) -> None:
        """What was ordered first is done, unless a death has come in between."""
        if self.phase is Phase.SAVING and self._at.saves[:1] == [tag]:
            self._at.saves.pop(0)
            self._save_next(now)

    def _planned(self) -> int:
        """Barriers of the plan that will have been lifted with this one."""
        kind, position = self._at.kind, self._at.position
        ordered = kind == CHECKPOINT and position not in self.roster.cut_positions
        cut_short = self._stopping_since is not None and not self._at.scores.stages
        return self.ledger.planned + (not ordered and not cut_short)

    def _resume(self, now: float) -> None:
        self._to_all(Resume(self.barrier))
        self.ledger.lift(self._at.position, self._planned())
        self._at.before = None
        self._forget_barrier()
        self.phase = Phase.TRAINING
        self._standstill.go_on(now)
        self._segment_start = now
        self._record("resume", now)

    def _end(self, now: float) -> None:
        self._to_all(Leave())
        self.phase = Phase.ENDED
        if self._stopping_since is None:
            self._actions.append(Finish())
            return
        kept = self._kept
        if self.roster.resume:
            kept = f"all is kept in {self.roster.folder}: `{self.roster.resume}` goes on"
        text = f"interrupted after {self._samples_learned():,} samples; {kept}"
        self._actions.append(Fail("Interrupted", text, orderly=True))

    # --- checkpoints -----------------------------------------------------------------------------

    def _cut_is_due(self, now: float) -> bool:
        at, every_s = self._at, self.roster.cut_every_s
        if self._is_final() or at.kind == CHECKPOINT or at.position in self.roster.cut_positions:
            return True
        return every_s is not None and self._cut_s is not None and now >= self._cut_s + every_s

    @property
    def _next_cut_s(self) -> float | None:
        """When a barrier for a checkpoint is to be ordered."""
        every_s = self.roster.cut_every_s if self.roster.folder else None
        if every_s is None or self.phase is not Phase.TRAINING or self._closing:
            return None
        if self._stopping_since is not None:
            return None  # the last one is on its way
        return self._cut_s + every_s if self._cut_s is not None else None

    # --- stopping ---------------------------------------------------------------------------------

    def _user_stop(self, now: float) -> None:
        if self._stopping_since is not None:
            if now >= self._stopping_since + _TOGETHER_S:
                self._fail(self._interrupted("saving was cut short"))
        elif not self._started or (not self.roster.launched and not self._all_here):
            self._fail(self._interrupted())  # nobody to wait for may ever come
        else:
            self._stopping_since = now
            self._tell_stopping(now)
            self._stop_work(now)

    def _tell_stopping(self, now: float) -> None:
        self._told_s = now
        batches = max(self._in_flight.values(), default=0)
        self._record("stopping", now, phase=self.phase.value, batches=batches)

    def _stop_work(self, now: float) -> None:
        if self.phase is Phase.TRAINING:
            self._to(self.roster.workers[0], Close(FINAL))
        elif self.phase is Phase.EVALUATING:
            self._save(now)  # leave the test set where it is
        elif self.phase is Phase.SAVING and "final" not in self._at.saves:
            self._at.saves.append("final")
            self._add_cut()

    def _watch(self, now: float) -> None:
        """Whatever is due, or has taken too long."""
        if self.phase is Phase.ENDED:
            return
        self._watch_deaths(now)
        self._watch_silence(now)
        self._watch_standstill(now)
        self._watch_late(now)
        self._launch(now)
        cut_s = self._next_cut_s
        if cut_s is not None and now >= cut_s:
            self._closing = True
            self._to(self.roster.workers[0], Close(CHECKPOINT))


def _whole(count: object) -> int:
    """A worker's count; 0 for what is none."""
    return count if isinstance(count, int) else 0
