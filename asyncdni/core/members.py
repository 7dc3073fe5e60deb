"""Who is in a run: let workers in and connect them, in rounds. `core.deaths` opens new ones.

```
 Hello, Welcome, Built   Connect, greetings, Ready    Start
 GATHERING ── all built ──► CONNECTING ── all ready ──► TRAINING … EVALUATING … SAVING
     ▲                          │ one dies                │ one dies
     └──────── Rejoin ──────────┴─────────────────────────┤ and gradients are waited for: back to
     ▲                                                    │ the last cut, all of them
     └──────── Rejoin ─────────────────── MENDING ◄───────┘ and all learn by themselves: the others
                 one built from its snapshot                go on without it
```

Each round has a new incarnation number, which makes void whatever is still on the wire.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any

from asyncdni.core.events import Action, Fail, Record, Send
from asyncdni.core.ledger import CUTS, Ledger, is_cut
from asyncdni.core.liveness import Liveness, Standstill
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Abort,
    Built,
    Connect,
    Hello,
    Message,
    Ready,
    Refused,
    Rejoin,
    Start,
    Unheard,
    Welcome,
)
from asyncdni.schedules.base import Groups

__all__ = ["Gathering", "Member", "Phase", "Recovery", "Roster"]

# --- roster --------------------------------------------------------------------------------------
#
# Who takes part in a run: what the coordinator knows of the plan, and whom it lets in.

#: Addresses that mean another place on every host.
_ONE_HOST = re.compile(r"ipc://|tcp://(127\.|0\.0\.0\.0:|localhost:)")
_NUMERIC = re.compile(r"ipc://|tcp://[0-9.]+:")


_SINGLE = Groups(1, 0)  # each batch makes an update


@dataclass(frozen=True)
class Roster:
    """What the coordinator must know of the run."""

    workers: tuple[str, ...]  # in order; the first hosts the data
    members: Mapping[str, tuple[str, ...]]  # declared stages of each worker
    neighbours: Mapping[str, tuple[str, ...]]
    losses: tuple[str, ...]  # declared stages that carry a loss, or layers with one of their own
    experiment: Mapping[str, Any]
    meta: Mapping[str, Any]
    folder: str = ""
    term: int = 0  # of the coordinator, larger than that of all that have had the run before
    trace: bool = False
    has_tests: bool = True
    startup_s: float = 60.0
    silence_s: float = 1.0
    stuck_s: float = 60.0
    launched: bool = True  # by the coordinator's driver; otherwise workers are started by hand
    restarts: int = 5  # deaths in a row that a worker is forgiven, where there is a folder
    goes_on: bool = False  # a worker learns by itself while a neighbour is dead
    rolls_back: bool = False  # when a number has gone wrong
    cut_every_s: float | None = None  # between checkpoints; None: by position, or at the end alone
    cut_positions: frozenset[int] = frozenset()  # batches after which one is taken
    groups: Groups = _SINGLE  # batches that make one update together
    batches: int = 0  # training batches of the whole run; 0: not known
    resume: str = ""  # what to type for the run to go on from its folder; "": nothing stays there

    def find(self, stage: str) -> str | None:
        """A worker by its name, a stage of it, or its index."""
        for name in self.workers:
            if stage == name or stage in self.members[name]:
                return name
        by_index = {str(index): name for index, name in enumerate(self.workers)}
        return by_index.get(stage)

    def refusal(self, hello: Hello, members: Mapping[str, Member]) -> Refused | None:
        """Why this worker can't be let in; None where it can."""
        if hello.protocol != PROTOCOL_VERSION:
            return Refused(
                "LaunchError",
                f"this worker speaks protocol {hello.protocol}, its coordinator "
                f"{PROTOCOL_VERSION}: install the same version of asyncdni on both hosts",
            )
        name = self.find(hello.stage)
        if name is None:
            known = ", ".join(self.workers)
            return Refused("LaunchError", f"no stage {hello.stage!r} here; known: {known}")
        if name in members:
            taken = members[name].hello
            return Refused(
                "LaunchError", f"stage {name} is taken by process {taken.pid} on {taken.host}"
            )
        return None

    def unreached(self, sender: Member, receiver: Member) -> str:
        """That nothing gets from one worker to another, and what a person can do about it."""
        ends = sender.hello, receiver.hello
        address = receiver.hello.address.partition("?")[0]  # without the key
        text = f"worker {sender.name} on {ends[0].host} can't reach worker {receiver.name}"
        text += f" on {ends[1].host} at {address}: "
        chosen = (
            f"an open one with `asyncdni worker --stage {receiver.name} --bind tcp://HOST:PORT`"
        )
        if _ONE_HOST.match(address) and ends[0].host != ends[1].host:
            return f"{text}that is an address of {ends[1].host} alone, choose {chosen} there"
        if not _NUMERIC.match(address):
            text += f"see whether {ends[0].host} knows that name, or "
        return f"{text}open that port in the firewalls between them, or choose {chosen}"

    def missing(self, members: Mapping[str, Member]) -> str:
        """Who keeps the run from starting."""
        waited = f"within {self.startup_s:g} s (limits.startup_s)"
        apart = [
            self.unreached(members[other], member)
            for member in members.values()
            for other in member.unheard
            if other in members
        ]
        if apart:
            more = f"; and {len(apart) - 1} more such links" if len(apart) > 1 else ""
            return f"not all workers have reached each other {waited}: {apart[0]}{more}"
        absent = [name for name in self.workers if name not in members]
        if absent:
            return f"no worker for {', '.join(absent)} has joined {waited}"
        unbuilt = [name for name, member in members.items() if member.built is None]
        slow = unbuilt or [name for name, member in members.items() if not member.ready]
        return f"worker {', '.join(slow)} has not become ready {waited}"


@dataclass(slots=True)
class Member:
    """A worker that has been let in."""

    name: str
    peer: bytes
    hello: Hello
    incarnation: int
    restore: str  # what it was told to start from
    built: Built | None = None  # in this round
    ready: bool = False
    unheard: tuple[str, ...] = ()  # neighbours that can't reach it, by its own word


# --- recovery ------------------------------------------------------------------------------------
#
# Deaths of workers: when each is started again, and when it has died too often.
#
# ```
# died ──► 0 s ──► died again ──► 0.1 s ──► died again ──► 0.2 s ──► …     without getting farther
#   └───── gets farther than it ever was: from 0 s again                   `restarts` times at most
# ```
#
# Farther means: its weights have learned from more batches than they had at any death before.
# Whoever goes back to a checkpoint, or begins from its last snapshot, learns again what had been
# learned before; that alone is no progress, or one that dies at the same batch each time would do
# so for ever.

_FIRST_WAIT_S = 0.1
_WAIT_MAX_S = 5.0
_DOUBLINGS_MAX = 16  # the wait is at its longest by then


@dataclass(slots=True)
class _Course:
    """How far one worker has come, over all its processes; by its reports."""

    deaths: int = 0  # without having got farther in between
    farthest: int = -1  # batches behind its weights, at most, when it died; -1: it never has
    learned: int = 0  # batches behind its weights
    position: int = 0  # where it is in the data: batches that it has missed count as well
    stride: int = 0  # batches between two reports of its, at most
    died_at: int = 0  # its last position known before one of those deaths, the farthest one

    def reported(self, learned: int, position: int) -> None:
        self.stride = max(self.stride, position - self.position)
        self.learned, self.position = learned, position
        if learned > self.farthest:
            self.deaths = self.died_at = 0

    def died(self) -> None:
        """It may have come as far as its next report would have said."""
        self.deaths += 1
        self.farthest = max(self.farthest, self.learned + self.stride)
        self.died_at = max(self.died_at, self.position)


class Recovery:
    """Back-off and limit by worker. A worker that gets farther than ever before starts anew."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._courses: dict[str, _Course] = defaultdict(_Course)
        self._launch_at: dict[str, float] = {}
        self.down_since: dict[str, float] = {}

    @property
    def is_off(self) -> bool:
        """No death is forgiven."""
        return self._restarts == 0

    def died(self, name: str, now: float) -> bool:
        """False where that was once too often."""
        course = self._courses[name]
        course.died()
        if course.deaths > self._restarts:
            return False
        doublings = min(course.deaths - 2, _DOUBLINGS_MAX)
        wait_s = 0.0 if course.deaths == 1 else min(_WAIT_MAX_S, _FIRST_WAIT_S * 2.0**doublings)
        self._launch_at[name] = now + wait_s
        self.down_since.setdefault(name, now)
        return True

    def is_known_dead(self, name: str) -> bool:
        """Its death has been dealt with, and no new process has been started yet."""
        return name in self._launch_at

    def begins(self, name: str, position: int) -> None:
        """A round starts there in the data."""
        self._courses[name].position = position

    def reported(self, name: str, learned: int, position: int) -> None:
        """It says how many batches its weights have learned from, and where it is in the data."""
        self._courses[name].reported(learned, position)

    def due(self, now: float) -> list[str]:
        """Whom to start now; once each."""
        due = [name for name, moment in self._launch_at.items() if now >= moment]
        for name in due:
            del self._launch_at[name]
        return due

    def came(self, name: str) -> None:
        """A process for that stage is here, whoever has started it."""
        self._launch_at.pop(name, None)

    def attempt(self, name: str) -> int:
        """Deaths since it has last got farther than before."""
        return self._courses[name].deaths

    def died_at(self, name: str) -> int:
        """The farthest batch that it had reported at one of those deaths; 0: it had not begun."""
        return self._courses[name].died_at

    def back(self, name: str, now: float) -> float:
        """It learns again: for how long it has been away, in seconds."""
        return now - self.down_since.pop(name, now)

    def deadline(self) -> float | None:
        return min(self._launch_at.values(), default=None)


#: Share of the silence that counts as death after which somebody has a look.
_DOUBT = 0.5
_COMPLAINTS_IN_FULL = 32  # of one kind


class Phase(Enum):
    GATHERING = "waiting for workers"
    CONNECTING = "connecting"
    TRAINING = "training"
    MENDING = "training without a worker"
    EVALUATING = "evaluating"
    SAVING = "saving"
    ENDED = "ended"


class Gathering:
    """The half of a coordinator that knows who is there."""

    def __init__(self, roster: Roster, ledger: Ledger | None = None) -> None:
        self.roster = roster
        self.ledger = ledger or Ledger()
        self.phase = Phase.GATHERING
        self._cut = deepcopy(self.ledger)  # what a round that goes back starts from
        self._cut_s: float | None = None  # when it was taken, or the run began
        self._members: dict[str, Member] = {}
        self._by_peer: dict[bytes, str] = {}
        self._liveness = Liveness(roster.silence_s, doubt=_DOUBT)  # by signs of life
        self._progress = Liveness(roster.stuck_s)  # by words of the thread that computes
        self._standstill = Standstill(roster.stuck_s)  # of all of them
        self._recovery = Recovery(roster.restarts if roster.folder else 0)
        self._incarnation = 1  # of the round, or of whoever comes next
        self._restore = self.ledger.restore  # of the round
        self._start = 0  # where the data stand at least
        # By worker, as of the last reports; those of an earlier coordinator's time among them.
        self._updates = dict(self.ledger.updates)
        self._undone: dict[str, int] = {}  # updates behind which workers have gone back since then
        self._again = False  # those updates are done again in this round, of the same batches
        self._positions: dict[str, int] = {}  # likewise: training batches that have passed there
        self._in_flight: dict[str, int] = {}  # likewise: those not through with yet
        self._since: float | None = None  # when gathering or mending began
        self._segment_start: float | None = None  # of training time
        self._started = False  # there has been a round
        self._dead: dict[
            str, tuple[float, str]
        ] = {}  # until when last words may come, and the news
        self._stopping_since: float | None = None  # when the user has asked for it
        self._complaints: dict[str, int] = {}  # by kind of record
        self._actions: list[Action] = []

    def check(self) -> None:
        """Assert every invariant."""
        assert set(self._members) <= set(self.roster.workers)
        assert set(self._by_peer.values()) == set(self._members)
        if self.phase not in (Phase.GATHERING, Phase.MENDING, Phase.ENDED):
            assert self._all_here
            assert all(m.incarnation <= self._incarnation for m in self._members.values())
            assert self.phase is Phase.CONNECTING or all(m.ready for m in self._members.values())

    @property
    def _all_here(self) -> bool:
        return len(self._members) == len(self.roster.workers)

    @property
    def _all_built(self) -> bool:
        return self._all_here and all(m.built is not None for m in self._members.values())

    # --- coming in -------------------------------------------------------------------------------

    def _hello(self, hello: Hello, peer: bytes, now: float) -> None:
        refusal = self.roster.refusal(hello, self._members)
        if refusal is not None:
            self._actions.append(Send(peer, refusal))
            self._complain("refused", now, refusal.text, host=hello.host, pid=hello.pid)
            return
        name = self.roster.find(hello.stage)
        assert name is not None
        alone = self.phase is Phase.MENDING or self._restore == "keep"
        restore = "snapshots" if alone else self._restore
        member = Member(name, peer, hello, self._incarnation, restore)
        self._members[name] = member
        self._by_peer[peer] = name
        self._recovery.came(name)
        self._dead.pop(name, None)
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
                restore=restore,
                trace=self.roster.trace,
                term=self.roster.term,
                cut=self._newest_cut,
            ),
        )

    @property
    def _newest_cut(self) -> str:
        """Where a stage that learns by itself may go on if it has no snapshot; empty: nowhere."""
        if is_cut(self._cut.restore):
            return self._cut.restore
        return f"{CUTS}{self._cut.cut:06d}" if self._cut.cut else ""

    def _built(self, name: str, built: Built, now: float) -> None:
        member = self._members[name]
        if built.incarnation != member.incarnation:
            return  # of a round that is over
        if member.built is not None:
            self._misfit(name, built, now)
            return
        member.built = built
        for text in built.notes:
            self._record("note", now, stage=name, text=text)
        if not self._all_built:
            return
        if self.phase is Phase.MENDING:
            self._open_round("keep", now)
        elif self.phase is Phase.GATHERING:
            self._connect(now)

    def _connect(self, now: float) -> None:
        """All are built: the round starts where the farthest of them is."""
        self.phase = Phase.CONNECTING
        built = [member.built for member in self._members.values() if member.built is not None]
        start = max(self._start, *(max(one.position, one.read) for one in built))
        each_its_own = self._restore in ("keep", "snapshots")
        if each_its_own:
            self.ledger.behind(start)
        self._again = not each_its_own and start == self._cut.start
        undone = self._count_undone()
        for name, member in self._members.items():
            others = [self._members[other] for other in self.roster.neighbours[name]]
            connect = Connect(
                incarnation=member.incarnation,
                addresses={other.name: other.hello.address for other in others},
                incarnations={other.name: other.incarnation for other in others},
                start=start,
                barrier=self.ledger.barrier,
                planned=self.ledger.planned,
            )
            self._to(name, connect)
            self._recovery.begins(name, start)
        if self._started or start or undone:
            values = {"incarnation": self._incarnation, "restore": self._restore, "start": start}
            self._record("round", now, **values, lost_updates=undone, again=self._again)

    def _count_undone(self) -> dict[str, int]:
        """By worker, the updates that it had made after the state that it begins with now."""
        found = {}
        for name, member in self._members.items():
            restored = member.built.updates if member.built is not None else 0
            undone = self._updates.get(name, restored) - restored
            self._updates[name] = restored  # the next round has these behind it
            if undone > 0:
                found[name] = undone
                self._undone[name] = self._undone.get(name, 0) + undone
        return found

    def _ready(self, name: str, ready: Ready, now: float) -> None:
        member = self._members[name]
        if ready.incarnation != member.incarnation:
            return
        if self.phase is not Phase.CONNECTING:
            self._misfit(name, ready, now)
            return
        member.ready, member.unheard = True, ()
        self._progress.heard(name, now)
        parameters = member.built.parameters if member.built is not None else 0
        self._record("ready", now, stage=name, parameters=parameters)
        if not all(m.ready for m in self._members.values()):
            return
        self.phase = Phase.TRAINING
        self._standstill.moved(now)
        self._since, self._start = None, 0
        if self._segment_start is None:
            self._segment_start = now
            self._record("resume" if self._started else "start", now)
        if not self._started:
            self._cut_s = now
        self._started = True
        for back in list(self._recovery.down_since):
            self._back(back, now)
        self._undone.clear()
        self._to_all(Start())
        if self._stopping_since is not None:
            self._stop_work(now)

    def _unheard(self, name: str, message: Unheard, now: float) -> None:
        """Links over which nothing comes to this worker: said at once, to whom can open a port."""
        member = self._members[name]
        if message.incarnation != member.incarnation or self.phase is not Phase.CONNECTING:
            return
        if member.ready or not set(message.workers) <= set(self.roster.neighbours[name]):
            self._misfit(name, message, now)
            return
        news = [other for other in message.workers if other not in member.unheard]
        member.unheard = tuple(message.workers)
        for other in news:
            text = self.roster.unreached(self._members[other], member)
            self._record("note", now, stage=COORDINATOR, text=text)

    def _back(self, name: str, now: float) -> None:
        """Say what a death has cost."""
        values = {"down_s": self._recovery.back(name, now), "again": self._again}
        self._record("back", now, stage=name, lost_updates=self._undone.get(name, 0), **values)

    def _open_round(self, restore: str, now: float) -> None:
        """Everybody who is here drops what is in flight and joins anew."""
        self.phase = Phase.GATHERING
        self._since = now
        self._incarnation += 1
        self._restore = restore
        self._forget_barrier()
        for name, member in self._members.items():
            self._progress.forget(name)
            # Who has not built anything yet has nothing to keep.
            if restore != "keep" or member.built is not None:
                member.restore = restore
            member.incarnation = self._incarnation
            member.built, member.ready, member.unheard = None, False, ()
            self._to(name, Rejoin(member.incarnation, member.restore))

    def _forget_barrier(self) -> None:
        """What has come back for the current one; the next round has it again."""
        raise NotImplementedError

    def _stop_work(self, now: float) -> None:
        """The user wants the run to stop: set the last barrier."""
        raise NotImplementedError

    def _misfit(self, name: str, message: Message, now: float, why: str = "") -> None:
        """A word that this worker should not have sent."""
        raise NotImplementedError

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
            self.ledger.samples.get(name, 0)
            for name, stages in self.roster.members.items()
            if losses.intersection(stages)
        ]
        return min(counts, default=0)

    def _interrupted(self, why: str = "") -> Fail:
        """The user's stop has come to an end at once, without a barrier."""
        return Fail("Interrupted", "; ".join(filter(None, ("interrupted", why, self._kept))))

    @property
    def _kept(self) -> str:
        """What there is to go on from without another checkpoint, and how."""
        if not self._started and self._cut.restore == "initial":
            return "nothing had been learned yet"
        if not self.roster.resume:
            return "nothing is kept, as there is no run folder"
        none = self._cut.restore == "initial"
        kept = f"{self.roster.folder} has {'no checkpoint yet' if none else self._cut.restore}"
        if self.roster.goes_on:
            kept += ", but maybe snapshots" if none else ", and maybe newer snapshots"
        goes_on = "begins anew" if none and not self.roster.goes_on else "goes on from there"
        return f"{kept}: `{self.roster.resume}` {goes_on}"

    # --- small things ----------------------------------------------------------------------------

    def _to(self, name: str, message: Message) -> None:
        self._actions.append(Send(self._members[name].peer, message))

    def _to_all(self, message: Message) -> None:
        for name in self._members:
            self._to(name, message)

    def _complain(self, kind: str, now: float, text: str, **values: Any) -> None:
        """Record what strangers can bring about as often as they like: the first few times, and
        then whenever their number has doubled."""
        count = self._complaints[kind] = self._complaints.get(kind, 0) + 1
        if count > _COMPLAINTS_IN_FULL:
            if count & (count - 1):
                return
            text = f"{text} ({count:,} times so far, of various kinds)"
        self._record(kind, now, **values, text=text)

    def _record(self, kind: str, now: float, **values: Any) -> None:
        self._actions.append(Record(kind, {"time_s": now, **values}))
