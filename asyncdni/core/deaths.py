"""What becomes of workers that die, fall silent, get stuck or break the protocol.

```
 Exited, silence, Accused ──► lost ──► Launch (after a while) ──► Hello ──► Built ──► a new round
                               │
                               ├─ learners by themselves: Lost to the others, who go on
                               └─ otherwise: Rejoin to the others, all go back to the last cut
```
"""

from __future__ import annotations

from collections.abc import Iterator

from asyncdni.core.barriers import BarrierSteps
from asyncdni.core.events import (
    DiscardSnapshots,
    Exited,
    Fail,
    Launch,
    Look,
    Looked,
    Rejected,
    Send,
)
from asyncdni.core.ledger import CUTS, is_cut
from asyncdni.core.members import Member, Phase, Run
from asyncdni.core.post import UnexpectedMessage, patience_s
from asyncdni.messages import (
    COORDINATOR,
    Accused,
    Built,
    Connect,
    Failed,
    Hello,
    Leave,
    Lost,
    Message,
    Note,
    Ready,
    Rejoin,
    Start,
    Unheard,
    Welcome,
)

__all__ = ["Deaths", "Rounds"]


class Rounds:
    """The round that is gathering or under way: workers are let in, build and connect, and train.

    ```
     Hello, Welcome, Built   Connect, greetings, Ready    Start
     GATHERING ── all built ──► CONNECTING ── all ready ──► TRAINING … EVALUATING … SAVING
         ▲                          │ one dies                │ one dies
         └──────── Rejoin ──────────┴─────────────────────────┤ and gradients are waited for: all
         ▲                                                    │ go back to the last cut
         └──────── Rejoin ─────────────────── MENDING ◄───────┘ and all learn by themselves: the
                     one built from its snapshot                others go on without it
    ```

    Each round has a new incarnation number, which makes void whatever is still on the wire.
    `Deaths` decides when a new round is needed. Methods that take a message raise
    `UnexpectedMessage` where it does not fit.
    """

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
        restore = self._begins_from(hello)
        member = Member(name, peer, hello, self._incarnation, restore)
        self._run.members[name] = member
        self._run.by_peer[peer] = name
        self._run.hosts[name] = hello.host
        self._recovery.came(name)
        self._liveness.heard(name, now)
        again = {"again": True} if hello.incarnation else {}
        self._out.record("joined", now, stage=name, pid=hello.pid, host=hello.host, **again)
        if others := self._roster.other_builds(name, hello):
            self._out.record("note", now, stage=name, text=others)
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
        self._run.steer(name)
        return name

    def _begins_from(self, hello: Hello) -> str:
        """Decide from which state a process begins that is let in: see `messages.Rejoin`.

        One that an earlier coordinator has let in keeps what it has if it learns by itself; then
        all others that come begin from the newest state of their own."""
        if hello.incarnation:
            # What it and its neighbours have on the wire must not be taken for this round's.
            self._incarnation = max(self._incarnation, hello.incarnation + 1)
            if self._roster.learns_alone:
                if self._run.phase is Phase.GATHERING:
                    self._restore = "keep"
                return "keep"
        alone = self._run.phase is Phase.MENDING or self._restore == "keep"
        return "snapshots" if alone else self._restore

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
        if others := self._roster.other_source(member, self._run.members.values()):
            self._run.fail(Fail("LaunchError", others))
            return
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
        self._grant_time_to_greet(now)
        built = [member.built for member in self._run.members.values() if member.built is not None]
        start = max(self._start, *(max(one.position, one.read) for one in built))
        each_its_own = self._restore in ("keep", "snapshots")
        if self._restore == "keep" and not self._run.started and self._roster.barriers:
            behind = min(one.position for one in built)
            self._ledger.kept((behind, start), self._roster.barriers)
        elif each_its_own:
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

    def _grant_time_to_greet(self, now: float) -> None:
        """However late the last worker has come, a link that carries nothing is to be named before
        the start fails."""
        startup_s = self._roster.startup_s
        if self._run.since is not None:
            latest = now - startup_s + 2 * patience_s(startup_s)
            self._run.since = max(self._run.since, latest)

    def _count_undone(self) -> dict[str, int]:
        """The updates of each worker after the state that it begins with now."""
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
        """Over some links nothing comes to this worker: tell whoever can open a port, at once, on
        the coordinator's terminal and in the logs of both ends."""
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
            self._run.to(name, Note(text))
            self._run.to(other, Note(text))

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

    def discard_snapshots(self) -> None:
        """Have the snapshots removed that this round goes back behind. Workers do so as well, but
        not those without access to the run's folder."""
        goes_back = self._restore not in ("keep", "snapshots")
        if goes_back and self._roster.learns_alone and self._roster.folder:
            self._out.add(DiscardSnapshots())

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
        self.discard_snapshots()
        self._barriers.forget()
        if restore != "keep":  # what was learned since then is to be learned again
            self._run.losses.clear()
        for name, member in self._run.members.items():
            self._progress.forget(name)
            # Who has not built anything yet has nothing to keep.
            if restore != "keep" or member.built is not None:
                member.restore = restore
            member.incarnation = self._incarnation
            member.built, member.ready, member.unheard = None, False, ()
            self._run.to(name, Rejoin(member.incarnation, member.restore))


#: Phases in which every worker is there and has something to do.
_ALL_AT_WORK = (Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)

#: A dying worker's own account may arrive after the news of its death.
_LAST_WORDS_S = 0.3
#: What ends a worker but not the run: a new process may fare better.
_OF_THE_PROCESS = frozenset({"MemoryError", "Interrupted"})
#: How often numbers may go wrong after one and the same cut.
_ROLLBACKS_MAX = 5


class Deaths:
    """Finds out who is dead, replaces them, and has the others go on or go back."""

    def __init__(self, run: Run, rounds: Rounds, barriers: BarrierSteps) -> None:
        self._run = run
        self._out = run.out
        self._roster = run.roster
        self._ledger = run.ledger
        self._liveness = run.liveness
        self._progress = run.progress
        self._standstill = run.standstill
        self._recovery = run.recovery
        self._rounds = rounds
        self._barriers = barriers
        # By worker that is said to be dead: until when its last words may come, and the news.
        self._dead: dict[str, tuple[float, str]] = {}
        self._awaited_since: float | None = None  # the `Run.since` of which was told who is awaited
        self._rollbacks = 0  # in a row, because of numbers …
        self._rolled_back_to = 0  # … to this cut

    # --- how it is found out ---------------------------------------------------------------------

    def exited(self, event: Exited, now: float) -> None:
        """A worker's process has ended."""
        name = event.stage
        if name in self._dead or self._recovery.is_known_dead(name):
            return
        text = f"worker {name} died with {_exit_text(event.code)}"
        if event.last_lines:
            text += f"; its last lines: {event.last_lines}"
        self._liveness.forget(name)
        self._progress.forget(name)
        if event.code < 0:
            self._lost(name, text, now)  # killed: it had no time for last words
        else:
            self._dead[name] = (now + _LAST_WORDS_S, text)

    def replaced(self, name: str) -> None:
        """A new process for that worker is here: last words of the old one no longer matter."""
        self._dead.pop(name, None)

    def deadlines(self) -> Iterator[float | None]:
        """When something will be due, or waiting will have been too long."""
        run = self._run
        yield from (run.liveness.deadline(), run.progress.deadline(), run.recovery.deadline())
        yield None if run.since is None else run.since + run.roster.startup_s
        yield self._tell_awaited_s
        yield from (moment for moment, _ in self._dead.values())
        yield self._standstill_s

    def watch(self, now: float) -> None:
        """Deal with whatever is due, or has taken too long."""
        self._watch_deaths(now)
        self._watch_silence(now)
        self._watch_standstill(now)
        self._watch_late(now)
        self._watch_awaited(now)
        self.launch(now)

    def _watch_deaths(self, now: float) -> None:
        """Give up waiting for last words, and for ops without an end."""
        run = self._run
        for name, (moment, text) in list(self._dead.items()):
            if now < moment or run.phase is Phase.ENDED:
                continue
            if run.started or name in run.members or self._roster.takes_back:
                self._lost(name, text, now)
            else:  # what keeps it from starting would do so again
                run.fail(Fail("WorkerLost", text))
        while run.phase is not Phase.ENDED and (silent := self._progress.silent(now)) is not None:
            text = self._silence(silent[0], "not moved", silent[1])
            if run.stopping_since is not None:  # it had its time to save
                run.fail(run.interrupted(text))
            else:
                self._lost(silent[0], text, now)

    def _watch_silence(self, now: float) -> None:
        """Have a look at silent workers: they may be dead, or only kept from speaking."""
        run = self._run
        while run.phase is not Phase.ENDED and (silent := self._liveness.silent(now)) is not None:
            self._liveness.doubted(silent[0], now)
            self._out.add(Look(silent[0]))

    def looked(self, event: Looked, now: float) -> None:
        """This is what the process of a silent worker looks like."""
        name, sight = event.stage, event.sight
        if name in self._liveness and self._liveness.is_death(name, sight, now):
            silence_s = self._liveness.silence_s(name, now)
            self._lost(name, self._silence(name, "shown no sign of life", silence_s), now)

    def _silence(self, name: str, what: str, silence_s: float) -> str:
        hello = self._run.members[name].hello
        process = f"process {hello.pid} on {hello.host}"
        return f"worker {name} ({process}) has {what} for {silence_s:.1f} s"

    @property
    def _standstill_s(self) -> float | None:
        """When a standstill will have lasted too long."""
        return self._standstill.deadline() if self._run.phase in _ALL_AT_WORK else None

    def _watch_standstill(self, now: float) -> None:
        """Open another round if nothing moves: somebody waits for a message that has been lost."""
        deadline = self._standstill_s
        if deadline is None or now < deadline:
            return
        text = f"nothing has moved for {self._roster.stuck_s:g} s (limits.stuck_s)"
        self.once_more("LimitExceeded", f"{text} while {self._run.phase.value}", now)

    def once_more(self, kind: str, text: str, now: float) -> None:
        """Have another round: a message has been lost, so all forget what they know of this one."""
        if self._run.stopping_since is not None:
            self._run.fail(self._run.interrupted(text))
            return
        self._standstill.noticed(self._run.positions, now)
        times = self._standstill.in_a_row
        if self._recovery.is_off or times > self._roster.restarts:
            again = f", {times} times at the same batch" if times > 1 else ""
            self._run.fail(Fail(kind, f"{text}{again}"))
            return
        self._out.record("stuck", now, text=text)
        if self._roster.learns_alone:
            self._rounds.open("keep", now)
        else:
            self._go_back(now)

    def _watch_late(self, now: float) -> None:
        """Replace those who keep a round from coming about in time, or end the run."""
        if self._run.since is None or now < self._run.since + self._roster.startup_s:
            return
        if self._run.stopping_since is not None:
            self._run.fail(self._run.interrupted(self._roster.missing(self._run.members)))
            return
        if any(member.unheard for member in self._run.members.values()):
            self._apart(now)
            return
        late = [name for name in self._roster.workers if not self._is_in_time(name)]
        # Before the first round nobody has seen a worker that is to be started by hand: there is no
        # process that another one could take the place of.
        replaced = self._run.started or self._roster.launched
        if not replaced or self._recovery.is_off or not late:
            absent = [name for name in late if name not in self._run.members]
            about = absent or (late if self._roster.launched else [])
            text = self._roster.missing(self._run.members)
            self._run.fail(Fail("LaunchError", text, stages=tuple(about)))
            return
        self._run.since = now
        limit = f"{self._roster.startup_s:g} s (limits.startup_s)"
        for name in late:
            if self._run.phase is not Phase.ENDED:
                what = "become ready" if name in self._run.members else "joined"
                self._lost(name, f"worker {name} has not {what} within {limit}", now)

    @property
    def _tell_awaited_s(self) -> float | None:
        """When to tell who keeps a round from coming about; None where that has been told."""
        run = self._run
        waits = run.phase in (Phase.GATHERING, Phase.MENDING) and not run.all_built
        if run.since is None or not waits or run.since == self._awaited_since:
            return None
        return run.since + patience_s(run.roster.startup_s)

    def _watch_awaited(self, now: float) -> None:
        """Tell who keeps a round from coming about for so long."""
        tell_s, since = self._tell_awaited_s, self._run.since
        if tell_s is None or since is None or now < tell_s:
            return
        self._awaited_since = since
        text = self._roster.awaited(self._run.members, self._run.hosts)
        text = f"after {now - since:.0f} s still waiting for {text}"
        self._out.record("note", now, stage=COORDINATOR, text=text)

    def _apart(self, now: float) -> None:
        """Workers live but do not reach each other: new processes would not do so either."""
        text = self._roster.missing(self._run.members)
        if self._run.started:
            self.once_more("LaunchError", text, now)
        else:
            self._run.fail(Fail("LaunchError", text))

    def _is_in_time(self, name: str) -> bool:
        member = self._run.members.get(name)
        return member is not None and (
            member.ready or (member.built is not None and self._run.phase is not Phase.CONNECTING)
        )

    def unexpected(self, name: str, message: Message, why: str, now: float) -> None:
        """A worker has sent a message that it should not have sent; `why` may be empty."""
        what = type(message).__name__
        text = f"worker {name} sent a {what} that does not fit ({self._run.phase.value})"
        self._cut_off(name, f"{text}: {why}" if why else text, now)

    def _cut_off(self, name: str, text: str, now: float) -> None:
        """Replace a worker that has broken the protocol: a new process may keep it."""
        if self._recovery.is_off:
            self._run.fail(Fail("RemoteProtocolError", text))
        else:
            self._lost(name, text, now)

    def rejected(self, event: Rejected, now: float) -> None:
        """A peer has sent something that is not a message: ignore a stranger, replace a worker."""
        self._out.complain("rejected", now, event.text, peer=event.peer.hex())
        name = self._run.by_peer.get(event.peer)
        if name is not None:
            text = f"worker {name} sent something that is not a message: {event.text}"
            self._cut_off(name, text, now)

    def accused(self, name: str, message: Accused, now: float) -> None:
        """A worker says that a neighbour has sent it what does not fit."""
        member = self._run.members.get(message.worker)
        if member is None or member.incarnation != message.incarnation:
            return  # it has been replaced since
        if message.worker not in self._roster.neighbours[name]:
            raise UnexpectedMessage(f"{message.worker} sends nothing to it")
        self._out.record("accused", now, stage=message.worker, by=name, text=message.text)
        self._cut_off(message.worker, message.text, now)

    def failed(self, name: str, message: Failed, now: float) -> None:
        """A worker's own account of why it stops."""
        if message.kind == "NumericalError" and self._roster.rolls_back:
            self._went_wrong(name, message, now)
        elif message.kind in _OF_THE_PROCESS and not self._recovery.is_off:
            self._lost(name, f"worker {name} failed: {message.text}", now)
        else:
            self._run.fail(Fail(message.kind, message.text, message.trace))

    def _went_wrong(self, name: str, message: Failed, now: float) -> None:
        """A number has gone wrong: go back to the last cut, but on with later batches, as the same
        ones would go wrong again."""
        if self._run.phase in (Phase.GATHERING, Phase.CONNECTING):
            return  # somebody else has found out before
        self._rollbacks = self._rollbacks + 1 if self._rolled_back_to == self._run.cut.cut else 1
        self._rolled_back_to = self._run.cut.cut
        if self._rollbacks > _ROLLBACKS_MAX:
            text = f"{message.text}; the same after {_ROLLBACKS_MAX} returns to the last checkpoint"
            self._run.fail(Fail(message.kind, text))
            return
        self._out.record("numbers", now, stage=name, text=message.text)
        farthest = max(self._run.positions.values(), default=0)
        # A stage may find out by what has arrived, before it has come to that batch itself.
        farthest = max(farthest, message.batch)
        start = self._roster.groups.end_from(1 + farthest)
        self._rounds.open(self._run.cut.restore, now, start=start)

    # --- what is done about it -------------------------------------------------------------------

    def _lost(self, name: str, text: str, now: float) -> None:
        """A worker is dead, or as good as dead: replace it, or end the run."""
        self._forget(name)
        self._rounds.next_incarnation()
        forgiven = self._recovery.died(name, now)
        if self._run.stopping_since is not None and not (self._roster.launched and forgiven):
            self._run.fail(self._run.interrupted(text))
            return
        if not forgiven:
            self._run.fail(Fail("WorkerLost", self._too_often(name, text), stages=(name,)))
            return
        self._out.record("lost", now, stage=name, text=text)
        if self._run.phase is Phase.GATHERING:
            self._run.since = now
        elif self._run.phase is Phase.CONNECTING:
            self._rounds.open_again(now)
        elif self._roster.learns_alone:
            self._go_on_without(name, now)
        else:
            self._go_back(now)

    def _forget(self, name: str) -> None:
        """Take a worker's process out of the run."""
        self._dead.pop(name, None)
        member = self._run.members.pop(name, None)
        if member is not None:
            del self._run.by_peer[member.peer]
            self._run.dropped.add(member.peer)
        self._liveness.forget(name)
        self._progress.forget(name)
        self._run.moving.discard(name)

    def move(self, now: float) -> None:
        """All have saved a cut: have those that go on elsewhere leave and start there, from that
        cut, and all others wait for them, so that nobody learns or misses a batch meanwhile."""
        for name in sorted(self._run.moving):
            self._run.to(name, Leave())
            self._forget(name)
            self._recovery.left(name, now)
            self._out.record("moved", now, stage=name)
            self._out.add(Launch(name))
        if self._roster.learns_alone:
            self._rounds.open("keep", now)
        else:
            self._go_back(now)

    def _go_on_without(self, name: str, now: float) -> None:
        """Have the others learn on by themselves until the dead worker has been replaced."""
        self._run.phase = Phase.MENDING
        self._run.since = now
        self._barriers.forget()
        for other, member in self._run.members.items():
            if member.ready:  # who has not begun will hear of no neighbour that is dead
                self._run.to(other, Lost(name))

    def _go_back(self, now: float) -> None:
        """Send all back to the last cut, from which every step will be the same."""
        self._barriers.forget()
        self._ledger.back_to(self._run.cut)
        self._rounds.open(self._run.cut.restore, now)

    def launch(self, now: float) -> None:
        """Start those workers again whose time has come."""
        for name in self._recovery.due(now) if self._run.phase is not Phase.ENDED else ():
            attempt = self._recovery.attempt(name)
            self._out.record("launch", now, stage=name, attempt=attempt)
            self._out.add(Launch(name))

    def _too_often(self, name: str, text: str) -> str:
        tries, batch = self._recovery.attempt(name), self._recovery.died_at(name)
        if self._recovery.is_off or tries <= 1:
            return text
        if not batch:
            return f"{text}; in {tries} tries it has not learned anything"
        return f"{text}; in {tries} tries it has not got farther than about batch {batch:,}"


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
