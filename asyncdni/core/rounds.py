"""Rounds: let workers in, have them build and connect, and start training.

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
`core.deaths` decides when a new round is needed.
"""

from __future__ import annotations

from asyncdni.core.barriers import BarrierSteps
from asyncdni.core.events import Send
from asyncdni.core.ledger import CUTS, is_cut
from asyncdni.core.members import Member, Phase, Run
from asyncdni.core.post import UnexpectedMessage
from asyncdni.messages import (
    COORDINATOR,
    Built,
    Connect,
    Hello,
    Ready,
    Rejoin,
    Start,
    Unheard,
    Welcome,
)

__all__ = ["Rounds"]


class Rounds:
    """The round that is gathering or under way.

    Methods that take a message raise `UnexpectedMessage` where it does not fit."""

    def __init__(self, run: Run, barriers: BarrierSteps) -> None:
        self._run = run
        self._out = run.out
        self._roster = run.roster
        self._ledger = run.ledger
        self._liveness = run.liveness
        self._progress = run.progress
        self._standstill = run.standstill
        self._recovery = run.recovery
        self._barriers = barriers
        self._incarnation = 1  # of the round, or of the process that joins next
        self._restore = run.ledger.restore  # what this round starts from
        self._start = 0  # the least batch that it may start with
        self._undone: dict[str, int] = {}  # updates that workers have lost since training stopped
        self._again = False  # those updates are made again in this round, of the same batches

    def hello(self, hello: Hello, peer: bytes, now: float) -> str | None:
        """Let a process in, or refuse it; the name of the worker that it is."""
        refusal = self._roster.refusal(hello, self._run.members)
        if refusal is not None:
            self._out.add(Send(peer, refusal))
            self._out.complain("refused", now, refusal.text, host=hello.host, pid=hello.pid)
            return None
        name = self._roster.find(hello.stage)
        assert name is not None
        alone = self._run.phase is Phase.MENDING or self._restore == "keep"
        restore = "snapshots" if alone else self._restore
        member = Member(name, peer, hello, self._incarnation, restore)
        self._run.members[name] = member
        self._run.by_peer[peer] = name
        self._recovery.came(name)
        self._liveness.heard(name, now)
        self._out.record("joined", now, stage=name, pid=hello.pid, host=hello.host)
        self._run.to(
            name,
            Welcome(
                stage=name,
                incarnation=member.incarnation,
                experiment=dict(self._roster.experiment),
                meta=dict(self._roster.meta),
                folder=self._roster.folder,
                restore=restore,
                trace=self._roster.trace,
                term=self._roster.term,
                cut=self._newest_cut,
            ),
        )
        return name

    @property
    def _newest_cut(self) -> str:
        """Where a stage that learns by itself may go on if it has no snapshot; empty: nowhere."""
        if is_cut(self._run.cut.restore):
            return self._run.cut.restore
        return f"{CUTS}{self._run.cut.cut:06d}" if self._run.cut.cut else ""

    def built(self, name: str, built: Built, now: float) -> None:
        """A worker has built its stage; once all have, the round goes on."""
        member = self._run.members[name]
        if built.incarnation != member.incarnation:
            return  # of a round that is over
        if member.built is not None:
            raise UnexpectedMessage
        member.built = built
        for text in built.notes:
            self._out.record("note", now, stage=name, text=text)
        if not self._run.all_built:
            return
        if self._run.phase is Phase.MENDING:
            self.open("keep", now)
        elif self._run.phase is Phase.GATHERING:
            self._connect(now)

    def _connect(self, now: float) -> None:
        """All are built: connect them, and have the round start where the farthest of them is."""
        self._run.phase = Phase.CONNECTING
        built = [member.built for member in self._run.members.values() if member.built is not None]
        start = max(self._start, *(max(one.position, one.read) for one in built))
        each_its_own = self._restore in ("keep", "snapshots")
        if each_its_own:
            self._ledger.behind(start)
        self._again = not each_its_own and start == self._run.cut.start
        undone = self._count_undone()
        for name, member in self._run.members.items():
            others = [self._run.members[other] for other in self._roster.neighbours[name]]
            connect = Connect(
                incarnation=member.incarnation,
                addresses={other.name: other.hello.address for other in others},
                incarnations={other.name: other.incarnation for other in others},
                start=start,
                barrier=self._ledger.barrier,
                planned=self._ledger.planned,
            )
            self._run.to(name, connect)
            self._recovery.begins(name, start)
        if self._run.started or start or undone:
            values = {"incarnation": self._incarnation, "restore": self._restore, "start": start}
            self._out.record("round", now, **values, lost_updates=undone, again=self._again)

    def _count_undone(self) -> dict[str, int]:
        """By worker, the updates that it had made after the state that it begins with now."""
        found = {}
        for name, member in self._run.members.items():
            restored = member.built.updates if member.built is not None else 0
            undone = self._run.updates.get(name, restored) - restored
            self._run.updates[name] = restored  # the next round has these behind it
            if undone > 0:
                found[name] = undone
                self._undone[name] = self._undone.get(name, 0) + undone
        return found

    def ready(self, name: str, ready: Ready, now: float) -> None:
        """A worker has heard all its neighbours; once all have, training starts."""
        member = self._run.members[name]
        if ready.incarnation != member.incarnation:
            return
        if self._run.phase is not Phase.CONNECTING:
            raise UnexpectedMessage
        member.ready, member.unheard = True, ()
        self._progress.heard(name, now)
        parameters = member.built.parameters if member.built is not None else 0
        self._out.record("ready", now, stage=name, parameters=parameters)
        if all(m.ready for m in self._run.members.values()):
            self._train(now)

    def _train(self, now: float) -> None:
        """All links carry something: start the round, and say what a death has cost."""
        self._run.phase = Phase.TRAINING
        self._standstill.moved(now)
        self._run.since, self._start = None, 0
        if self._run.segment_start is None:
            self._run.segment_start = now
            self._out.record("resume" if self._run.started else "start", now)
        if not self._run.started:
            self._run.cut_s = now
        self._run.started = True
        for back in list(self._recovery.down_since):
            self._back(back, now)
        self._undone.clear()
        self._run.to_all(Start())
        if self._run.stopping_since is not None:
            self._barriers.stop_work(now)

    def unheard(self, name: str, message: Unheard, now: float) -> None:
        """Over some links nothing comes to this worker: tell whoever can open a port, at once."""
        member = self._run.members[name]
        if message.incarnation != member.incarnation or self._run.phase is not Phase.CONNECTING:
            return
        if member.ready or not set(message.workers) <= set(self._roster.neighbours[name]):
            raise UnexpectedMessage
        news = [other for other in message.workers if other not in member.unheard]
        member.unheard = tuple(message.workers)
        for other in news:
            text = self._roster.unreached(self._run.members[other], member)
            self._out.record("note", now, stage=COORDINATOR, text=text)

    def _back(self, name: str, now: float) -> None:
        """Record that a worker is back, and what its death has cost."""
        values = {"down_s": self._recovery.back(name, now), "again": self._again}
        self._out.record("back", now, stage=name, lost_updates=self._undone.get(name, 0), **values)

    def check(self) -> None:
        """Assert every invariant."""
        assert all(m.incarnation <= self._incarnation for m in self._run.members.values())

    def open_again(self, now: float) -> None:
        """Open another round that starts from the same state as this one."""
        self.open(self._restore, now)

    def next_incarnation(self) -> None:
        """Make void whatever a process that has died may have sent."""
        self._incarnation += 1

    def open(self, restore: str, now: float, *, start: int | None = None) -> None:
        """Have everybody who is here drop what is in flight and join anew.

        `restore`: what to start from, see `messages.Rejoin`; `start`: the least batch to go on
        with, where earlier ones must not be had again."""
        if start is not None:
            self._start = start
        self._run.phase = Phase.GATHERING
        self._run.since = now
        self.next_incarnation()
        self._restore = restore
        self._barriers.forget()
        for name, member in self._run.members.items():
            self._progress.forget(name)
            # Who has not built anything yet has nothing to keep.
            if restore != "keep" or member.built is not None:
                member.restore = restore
            member.incarnation = self._incarnation
            member.built, member.ready, member.unheard = None, False, ()
            self._run.to(name, Rejoin(member.incarnation, member.restore))
