"""The logic of the coordinator: admit, start, watch, order what happens at barriers, stop.

No tensor passes through it.

```
 GATHERING ── all said Hello ──► CONNECTING ── all Ready ──► TRAINING ◄───────────┐
                                                                │ all Drained     │ Resume
                                                            EVALUATING            │
                                                                │ all Evaluated   │
                                                             SAVING ── all Saved ─┴─► ENDED
 anything that fails: Abort to all ──────────────────────────────────────────────► ENDED
```

Training time runs from Start or Resume to the last Drained: the drain counts, the evaluation and
the saving do not. A user's stop sets the last barrier at once; what was learned is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from asyncdni.core.events import (
    Action,
    Event,
    Exited,
    Fail,
    Finish,
    Received,
    Record,
    Send,
    UserStop,
    Woke,
)
from asyncdni.core.liveness import Liveness
from asyncdni.core.roster import Member, Roster
from asyncdni.core.scores import Scores
from asyncdni.messages import (
    Abort,
    Beat,
    Connect,
    Drained,
    Evaluate,
    Evaluated,
    Failed,
    Guarded,
    Hello,
    Interrupt,
    Leave,
    Message,
    Ready,
    Report,
    Resume,
    Save,
    Saved,
    Start,
    Welcome,
)

__all__ = ["Coordinator", "Phase"]

#: A dying worker's own account may arrive after the news of its death.
_LAST_WORDS_S = 0.3
#: After the user's stop: how long the drain and the saving may take.
_STOP_S = 1.0


class Phase(Enum):
    GATHERING = "waiting for workers"
    CONNECTING = "connecting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    ENDED = "ended"


@dataclass(slots=True)
class _Barrier:
    """What has come back for the current barrier."""

    drained: dict[str, int] = field(default_factory=dict)  # batches forwarded, by worker
    scores: Scores = field(default_factory=Scores)
    saves: list[str] = field(default_factory=list)  # tags still to be saved
    saved: set[str] = field(default_factory=set)


class Coordinator:
    """One run, from the first Hello to the end."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.phase = Phase.GATHERING
        self.train_s = 0.0  # up to the last barrier
        self.barrier = 0
        self._members: dict[str, Member] = {}
        self._by_peer: dict[bytes, str] = {}
        self._liveness = Liveness(roster.silence_s)
        self._at = _Barrier()
        self._samples: dict[str, int] = {}  # forwarded, by worker, as of the last reports
        self._segment_start = 0.0
        self._best: Scores | None = None
        self._stopping_since: float | None = None
        self._dead: tuple[float, Fail] | None = None
        self._began: float | None = None
        self._actions: list[Action] = []

    # --- the contract of a machine ---------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Never raises for what a peer sends."""
        self._actions = []
        if self._began is None:
            self._began = now
        if self.phase is Phase.ENDED:
            return []
        match event:
            case Received(message=message, peer=peer):
                self._received(message, peer, now)
            case Exited():
                self._exited(event, now)
            case UserStop():
                self._user_stop(now)
            case Woke():
                self._watch(now)  # here alone: a word already waiting must be heard before
            case _:
                raise TypeError(f"a coordinator has no use for {event!r}")
        return [replace(action, cause=event) for action in self._actions]

    def deadline(self) -> float | None:
        """The earliest moment at which waiting has been too long."""
        if self.phase is Phase.ENDED or self._began is None:
            return None
        times = [self._liveness.deadline()]
        if self.phase in (Phase.GATHERING, Phase.CONNECTING):
            times.append(self._began + self.roster.startup_s)
        if self._stopping_since is not None:
            times.append(self._stopping_since + _STOP_S)
        if self._dead is not None:
            times.append(self._dead[0])
        return min((time for time in times if time is not None), default=None)

    def check(self) -> None:
        """Assert every invariant."""
        assert set(self._members) <= set(self.roster.workers)
        assert set(self._by_peer.values()) == set(self._members)
        assert set(self._at.drained) <= set(self._members)
        if self.phase not in (Phase.GATHERING, Phase.ENDED):
            assert len(self._members) == len(self.roster.workers)

    # --- messages --------------------------------------------------------------------------------

    def _received(self, message: Message, peer: bytes, now: float) -> None:
        name = self._by_peer.get(peer)
        if name is None:
            if isinstance(message, Hello):
                self._hello(message, peer, now)
            return  # a stranger's word, or one from a process that was refused
        self._liveness.heard(name, now)
        match message:
            case Beat():
                pass
            case Ready(parameters=parameters) if self.phase is Phase.CONNECTING:
                self._ready(name, parameters, now)
            case Report():
                self._report(name, message, now)
            case Guarded(waiting=waiting, cosine=cosine):
                self._record("guard", now, stage=name, waiting=waiting, cosine=cosine)
            case Drained(barrier=self.barrier) if self.phase is Phase.TRAINING:
                self._drained(name, message.batches, now)
            case Evaluated(barrier=self.barrier) if self._may_score(name, message):
                self._evaluated(message, now)
            case Saved(tag=tag) if tag in self._at.saves[:1]:
                self._saved(name, tag, now)
            case Failed(kind=kind, text=text, trace=trace):
                self._fail(Fail(kind, text, trace))
            case _:
                text = f"worker {name} sent a {type(message).__name__} that does not fit"
                self._fail(Fail("RemoteProtocolError", f"{text} ({self.phase.value})"))

    def _hello(self, hello: Hello, peer: bytes, now: float) -> None:
        refusal = self.roster.refusal(hello, self._members)
        if refusal is not None:
            self._actions.append(Send(peer, refusal))
            self._record("refused", now, host=hello.host, pid=hello.pid, text=refusal.text)
            return
        name = self.roster.find(hello.stage)
        assert name is not None
        member = Member(name, peer, hello, incarnation=1)
        self._members[name] = member
        self._by_peer[peer] = name
        self._liveness.heard(name, now)
        self._record("joined", now, stage=name, pid=hello.pid, host=hello.host)
        self._to(
            name,
            Welcome(
                stage=name,
                incarnation=member.incarnation,
                experiment=dict(self.roster.experiment),
                meta=dict(self.roster.meta),
                folder=self.roster.folder,
                trace=self.roster.trace,
            ),
        )
        if len(self._members) == len(self.roster.workers):
            self._connect()

    def _connect(self) -> None:
        self.phase = Phase.CONNECTING
        for name, member in self._members.items():
            others = [self._members[other] for other in self.roster.neighbours[name]]
            addresses = {other.name: other.hello.address for other in others}
            incarnations = {other.name: other.incarnation for other in others}
            self._actions.append(Send(member.peer, Connect(addresses, incarnations)))

    def _ready(self, name: str, parameters: int, now: float) -> None:
        self._members[name].ready = True
        self._record("ready", now, stage=name, parameters=parameters)
        if all(m.ready for m in self._members.values()):
            self.phase = Phase.TRAINING
            self._segment_start = now
            self._record("start", now)
            self._to_all(Start())

    def _report(self, name: str, report: Report, now: float) -> None:
        samples = report.counters.get("samples")
        if isinstance(samples, int):
            self._samples[name] = samples
        loss = {"loss_sum": report.loss_sum, "loss_samples": report.loss_samples}
        self._record("report", now, stage=name, values={**loss, **report.counters})

    # --- barriers --------------------------------------------------------------------------------

    def _drained(self, name: str, batches: int, now: float) -> None:
        self._at.drained[name] = batches
        if len(self._at.drained) < len(self._members):
            return
        if len(set(self._at.drained.values())) > 1:  # each batch counts once, everywhere
            counts = ", ".join(f"{stage} {count}" for stage, count in self._at.drained.items())
            text = f"workers have forwarded different numbers of batches: {counts}"
            self._fail(Fail("RemoteProtocolError", text))
            return
        self.train_s += now - self._segment_start
        self._record("drained", now, barrier=self.barrier)
        if self.roster.has_tests and self._stopping_since is None:
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
        self._record(
            "evaluation",
            now,
            samples=self._samples_learned(),
            train_s=self.train_s,
            accuracy=scores.accuracy,
            loss=scores.loss,
        )
        if self._best is None or scores.beats(self._best):
            self._best = scores
            self._at.saves.append("best")
        self._save(now)

    def _is_final(self) -> bool:
        return self._stopping_since is not None or self.barrier + 1 == self.roster.barriers

    def _save(self, now: float) -> None:
        self.phase = Phase.SAVING
        if self._is_final():
            self._at.saves.append("final")
        if not self.roster.folder:
            self._at.saves.clear()
        self._save_next(now)

    def _save_next(self, now: float) -> None:
        if self._at.saves:
            self._at.saved.clear()
            self._to_all(Save(self._at.saves[0]))
        elif self._is_final():
            self._end(now)
        else:
            self._resume(now)

    def _saved(self, name: str, tag: str, now: float) -> None:
        self._at.saved.add(name)
        if len(self._at.saved) == len(self._members):
            self._record("saved", now, tag=tag)
            self._at.saves.pop(0)
            self._save_next(now)

    def _resume(self, now: float) -> None:
        self._to_all(Resume(self.barrier))
        self.barrier += 1
        self._at = _Barrier()
        self.phase = Phase.TRAINING
        self._segment_start = now
        self._record("resume", now)

    def _end(self, now: float) -> None:
        self._to_all(Leave())
        self.phase = Phase.ENDED
        if self._stopping_since is None:
            self._actions.append(Finish())
            return
        saved = f"; weights are in {self.roster.folder}" if self.roster.folder else ""
        text = f"interrupted after {self._samples_learned():,} samples{saved}"
        self._actions.append(Fail("Interrupted", text))

    # --- what goes wrong -------------------------------------------------------------------------

    def _exited(self, event: Exited, now: float) -> None:
        if self._dead is not None:
            return
        text = f"worker {event.stage} died with {_exit_text(event.code)}"
        if event.last_lines:
            text += f"; its last lines: {event.last_lines}"
        self._dead = (now + _LAST_WORDS_S, Fail("WorkerLost", text))
        self._liveness.forget(event.stage)

    def _user_stop(self, now: float) -> None:
        running = self.phase in (Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)
        if self._stopping_since is not None or not running:
            self._fail(Fail("Interrupted", "interrupted; nothing more was saved"))
            return
        self._stopping_since = now
        if self.phase is Phase.TRAINING:
            self._to(self.roster.workers[0], Interrupt())
        elif self.phase is Phase.EVALUATING:
            self._save(now)  # leave the test set where it is
        elif "final" not in self._at.saves:
            self._at.saves.append("final")

    def _watch(self, now: float) -> None:
        """Whatever has taken too long."""
        if self.phase is Phase.ENDED:
            return
        if self._dead is not None and now >= self._dead[0]:
            self._fail(self._dead[1])
            return
        silent = self._liveness.silent(now)
        if silent is not None:
            name, silence_s = silent
            hello = self._members[name].hello
            text = f"worker {name} (process {hello.pid} on {hello.host}) has shown no sign of life"
            self._fail(Fail("WorkerLost", f"{text} for {silence_s:.1f} s"))
            return
        assert self._began is not None
        starting = self.phase in (Phase.GATHERING, Phase.CONNECTING)
        if starting and now - self._began >= self.roster.startup_s:
            self._fail(Fail("LaunchError", self.roster.missing(self._members)))
        elif self._stopping_since is not None and now - self._stopping_since >= _STOP_S:
            text = f"interrupted; the last weights could not be saved within {_STOP_S} s"
            self._fail(Fail("Interrupted", text))

    def _fail(self, fail: Fail) -> None:
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        self._to_all(Abort(fail.text))
        self._actions.append(fail)

    def _samples_learned(self) -> int:
        """Samples that have reached every loss; a worker may have skipped batches on their way."""
        losses = set(self.roster.losses)
        counts = [
            self._samples.get(name, 0)
            for name, stages in self.roster.members.items()
            if losses.intersection(stages)
        ]
        return min(counts, default=0)

    # --- small things ----------------------------------------------------------------------------

    def _to(self, name: str, message: Message) -> None:
        self._actions.append(Send(self._members[name].peer, message))

    def _to_all(self, message: Message) -> None:
        for name in self._members:
            self._to(name, message)

    def _record(self, kind: str, now: float, **values: Any) -> None:
        self._actions.append(Record(kind, {"time_s": now, **values}))


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
