"""The logic of the coordinator: let workers in, order what happens at barriers, watch, and stop. No
tensor passes through it.

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

Each part decides its own subject: `core.deaths` who is let in and what becomes of workers that die,
`core.barriers` what is ordered at barriers, `core.transfer` which files are written and read for
workers without access to the run's folder, `Claims` which numbers can be. They share a
`core.members.Run`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from asyncdni.core import slices
from asyncdni.core.barriers import BarrierSteps
from asyncdni.core.deaths import Deaths, Rounds
from asyncdni.core.events import (
    Action,
    Consulted,
    Event,
    Exited,
    Looked,
    Move,
    PartKept,
    PartSent,
    Received,
    Rejected,
    Send,
    Steered,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.ledger import Ledger
from asyncdni.core.members import Phase, Roster, Run
from asyncdni.core.position import KINDS
from asyncdni.core.post import UnexpectedMessage
from asyncdni.core.transfer import FileExchange
from asyncdni.messages import (
    COORDINATOR,
    Abort,
    Accused,
    Beat,
    Built,
    Drained,
    Evaluated,
    Failed,
    Fetch,
    Guarded,
    Hello,
    Introduce,
    Message,
    Part,
    Ready,
    Report,
    Saved,
    Steer,
    Taken,
    Unheard,
)

__all__ = ["Claims", "Coordinator", "Phase"]

# --- numbers that workers send -------------------------------------------------------------------

#: More than anything here is ever counted to; floats hold every count below it.
_COUNT_MAX = 2**53
#: A round may go on behind batches that went wrong at the very end of the data.
_BEHIND_THE_END = 1000
#: Counters of a report that decisions are made by.
_COUNTERS = ("samples", "updates", "batches", "missed", "ops")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class Claims:
    """Holds the numbers that workers send against what the plan lets be; `roster` says what there
    is to be counted.

    A count that can't be would end as a checkpoint that nobody can load, a jump to the end of the
    data or a file of records that nothing can read. Whether a number that can be is true, nobody
    can tell.
    """

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
            Failed: self._of_failed,
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
        strange = slices.fault(report.slices)
        if strange is not None:
            return strange
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
        strange = score.metrics.keys() - set(self._roster.metrics)
        values = [value for value in score.metrics.values() if value is not None]
        if strange or not all(map(math.isfinite, values)):
            return "its metrics are not those of the run, or no numbers"
        count = score.samples if score.steps is None else score.steps
        if not (math.isfinite(score.age_s) and score.age_s >= 0):
            return f"its age_s is {score.age_s}"
        return (
            _beyond("copy", score.copy or 0, self._positions)
            or _beyond("learned", score.learned)
            or _beyond("samples or steps", count)
            or _beyond("outputs", score.outputs)
            or _beyond("correct", score.correct or 0, count * score.outputs)
        )

    def _of_saved(self, name: str, saved: Saved) -> str | None:
        others = set(saved.files) - set(self._roster.members[name])
        if others:
            return f"it names files of {len(others)} stages that other workers have"
        wrong = [stage for stage, digest in saved.files.items() if not _DIGEST.fullmatch(digest)]
        return f"the digest of {wrong[0]} is not a SHA-256" if wrong else None

    def _of_guarded(self, name: str, guarded: Guarded) -> str | None:
        return None if math.isfinite(guarded.cosine) else f"its cosine is {guarded.cosine}"

    def _of_failed(self, name: str, failed: Failed) -> str | None:
        return None if failed.batch == -1 else _beyond("batch", failed.batch, self._positions)


def _beyond(what: str, count: float, most: int = _COUNT_MAX) -> str | None:
    if isinstance(count, int) and 0 <= count <= most:
        return None
    return f"its {what} are {count}, expected a whole number from 0 to {most}"


#: After a longer time in which this process has not run (SIGSTOP, a laptop's lid, a slow disk) it
#: was the silent one: for as long again nobody is held to have been.
_GAP_S = 0.5


class Coordinator:
    """One run, from the first Hello to the end; `ledger`: from where an earlier one has stopped."""

    def __init__(self, roster: Roster, ledger: Ledger | None = None) -> None:
        self.roster = roster
        self.ledger = ledger = ledger or Ledger()
        self._run = run = Run(roster, ledger)
        self._claims = Claims(roster)
        self._barriers = BarrierSteps(run)
        self._rounds = Rounds(run, self._barriers)
        self._deaths = Deaths(run, self._rounds, self._barriers)
        self._files = FileExchange(run)
        self._patient_until_s = -math.inf

    @property
    def phase(self) -> Phase:
        return self._run.phase

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
        """The updates that each worker has made, as it has last reported."""
        return dict(self._run.updates)

    # --- the contract of a machine ---------------------------------------------------------------

    def paused(self, for_s: float, now: float) -> None:
        """The coordinator's process has looked at nothing for `for_s` seconds, until now. If that
        was long, deadlines are put off until what has arrived meanwhile has been heard."""
        if for_s > _GAP_S:
            self._patient_until_s = now + _GAP_S

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Never raises for what a peer sends."""
        run = self._run
        actions: list[Action] = []
        if type(event) is Woke and now < self._patient_until_s:
            return actions
        run.out.actions = actions
        if run.since is None and not run.started:
            run.since = now
            self._rounds.discard_snapshots()
        if run.phase is Phase.ENDED:
            return actions
        match event:
            case Received(message=message, peer=peer):
                self._received(message, peer, now)
            case Rejected():
                self._deaths.rejected(event, now)
            case Exited():
                self._deaths.exited(event, now)
            case Looked():
                self._deaths.looked(event, now)
                self._deaths.launch(now)
            case UserStop():
                self._barriers.user_stop(now)
            case Steered(steers=steers):
                self._steered(steers, now)
            case Consulted(ends=ends):
                self._barriers.consulted(ends, now)
            case Stored(tag=tag):
                self._barriers.committed(tag, now)
                if self._barriers.is_over:
                    self._deaths.move(now)
            case Move(stage=stage, text=text):
                run.out.record("note", now, stage=COORDINATOR, text=text)
                self._barriers.move(stage)
            case PartSent():
                self._files.part_sent(event)
            case PartKept(part=part, sender=sender):
                try:
                    self._files.part_kept(event, now)
                except UnexpectedMessage as unexpected:
                    self._deaths.unexpected(sender, part, unexpected.why, now)
            case Woke():  # here alone: a message already waiting must be heard before
                self._deaths.watch(now)
                self._barriers.watch(now)
            case _:
                raise TypeError(f"a coordinator has no use for {event!r}")
        return actions

    def deadline(self) -> float | None:
        """The earliest moment at which something is due, or waiting has been too long."""
        run = self._run
        if run.phase is Phase.ENDED or (run.since is None and not run.started):
            return None
        times = [*self._deaths.deadlines(), self._barriers.next_cut_s]
        due_s = min((time for time in times if time is not None), default=None)
        return None if due_s is None else max(due_s, self._patient_until_s)

    def check(self) -> None:
        """Assert every invariant."""
        self._run.check()
        self._rounds.check()
        if self.phase is not Phase.ENDED:
            self._barriers.check()

    # --- messages --------------------------------------------------------------------------------

    def _received(self, message: Message, peer: bytes, now: float) -> None:
        run = self._run
        name = run.by_peer.get(peer)
        if name is None:
            self._strange(message, peer, now)
            return
        run.liveness.heard(name, now)
        if name in run.progress and not isinstance(message, Beat):
            run.progress.heard(name, now)
        try:
            fault = self._claims.fault(name, message)
            if fault is not None:
                raise UnexpectedMessage(fault)
            self._said(name, message, now)
        except UnexpectedMessage as unexpected:
            self._deaths.unexpected(name, message, unexpected.why, now)

    def _strange(self, message: Message, peer: bytes, now: float) -> None:
        """Answer somebody who is not in the run."""
        known = peer in self._run.dropped
        if isinstance(message, Hello) and not known:
            name = self._rounds.hello(message, peer, now)
            if name is not None:
                self._deaths.replaced(name)
        elif self.roster.takes_back and not known:
            self._run.out.add(Send(peer, Introduce()))  # an earlier coordinator knew it
        else:  # a stranger, or one that was held to be dead and comes back
            self._run.out.add(Send(peer, Abort("another process has taken its place")))

    def _said(self, name: str, message: Message, now: float) -> None:
        """Hand a worker's message to the part that it is for."""
        match message:
            case Beat():
                pass
            case Hello() if not self._run.members[name].ready:
                pass  # it is said again until it has been answered
            case Built():
                self._rounds.built(name, message, now)
            case Ready():
                self._rounds.ready(name, message, now)
            case Unheard():
                self._rounds.unheard(name, message, now)
            case Report():
                self._report(name, message, now)
            case Guarded(waiting=waiting, cosine=cosine):
                self._run.out.record("guard", now, stage=name, waiting=waiting, cosine=cosine)
            case Accused():
                self._deaths.accused(name, message, now)
            case Failed():
                self._deaths.failed(name, message, now)
            case Part() | Fetch() | Taken():
                self._files.received(name, message, now)
            case Drained() | Evaluated() | Saved():
                fault = self._barriers.received(name, message, now)
                if fault is not None:
                    self._deaths.once_more("RemoteProtocolError", fault, now)
            case _:
                raise UnexpectedMessage

    def _steered(self, steers: Mapping[str, Steer], now: float) -> None:
        """Pass on what is asked of workers, and note how they are slowed down: their speed is not
        that of the experiment from here on."""
        run = self._run
        for name, steer in steers.items():
            if name not in self.roster.workers:
                continue
            for text in _changes(run.steers.get(name, Steer()), steer):
                run.out.record("note", now, stage=name, text=text)
            run.steers[name] = steer
            run.steer(name)

    def _report(self, name: str, report: Report, now: float) -> None:
        run, counters = self._run, report.counters
        samples, updates = counters.get("samples"), counters.get("updates")
        if isinstance(samples, int):
            self.ledger.samples[name] = samples
        if isinstance(updates, int):
            run.updates[name] = updates
        learned, missed = (_whole(counters.get(one)) for one in ("batches", "missed"))
        run.positions[name] = learned + missed
        if run.members[name].ready:  # otherwise it speaks of a round that is over
            run.recovery.reported(name, learned, learned + missed)
        run.in_flight[name] = _whole(counters.get("in_flight"))
        run.add_loss(name, report.loss_sum, report.loss_samples)
        loss = {"loss_sum": report.loss_sum, "loss_samples": report.loss_samples}
        ops = counters.get("ops")
        if isinstance(ops, int):
            run.standstill.done(name, ops, now)
        run.out.record("report", now, stage=name, values={**loss, **counters})
        if report.slices:
            run.out.record("slices", now, stage=name, slices=report.slices)
        self._barriers.tell_stopping_again(now)


def _changes(before: Steer, after: Steer) -> Iterator[str]:
    """Say how a worker is slowed down otherwise than before."""
    if after.factor != before.factor:
        slower = f"ops take {after.factor:g} times as long from now on"
        yield slower if after.factor != 1.0 else "ops are no longer slowed down"
    if after.added_s != before.added_s:
        slower = f"ops take {1e3 * after.added_s:g} ms longer from now on"
        yield slower if after.added_s else "ops no longer take some time more"
    for name in sorted({*before.latency_s, *after.latency_s}):
        added_s = after.latency_s.get(name, 0.0)
        if added_s != before.latency_s.get(name, 0.0):
            slower = f"messages to {name} take {1e3 * added_s:g} ms longer from now on"
            yield slower if added_s else f"messages to {name} are no longer held up"


def _whole(count: object) -> int:
    """A worker's count; 0 for what is none."""
    return count if isinstance(count, int) else 0
