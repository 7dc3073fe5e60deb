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
from asyncdni.core.events import Exited, Fail, Launch, Look, Looked, Rejected
from asyncdni.core.members import Phase, Run
from asyncdni.core.post import UnexpectedMessage
from asyncdni.core.rounds import Rounds
from asyncdni.messages import Accused, Failed, Lost, Message

__all__ = ["Deaths"]

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
        yield from (moment for moment, _ in self._dead.values())
        yield self._standstill_s

    def watch(self, now: float) -> None:
        """Deal with whatever is due, or has taken too long."""
        self._watch_deaths(now)
        self._watch_silence(now)
        self._watch_standstill(now)
        self._watch_late(now)
        self.launch(now)

    def _watch_deaths(self, now: float) -> None:
        """Give up waiting for last words, and for ops without an end."""
        run = self._run
        for name, (moment, text) in list(self._dead.items()):
            if now < moment or run.phase is Phase.ENDED:
                continue
            if run.started or name in run.members:
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
        if self._roster.goes_on:
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
        """A peer has sent what is no message: ignore a stranger, replace a worker."""
        self._out.complain("rejected", now, event.text, peer=event.peer.hex())
        name = self._run.by_peer.get(event.peer)
        if name is not None:
            self._cut_off(name, f"worker {name} sent what is no message: {event.text}", now)

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
        start = self._roster.groups.end_from(1 + farthest)
        self._rounds.open(self._run.cut.restore, now, start=start)

    # --- what is done about it -------------------------------------------------------------------

    def _lost(self, name: str, text: str, now: float) -> None:
        """A worker is dead, or as good as dead: replace it, or end the run."""
        self._dead.pop(name, None)
        member = self._run.members.pop(name, None)
        if member is not None:
            del self._run.by_peer[member.peer]
        self._liveness.forget(name)
        self._progress.forget(name)
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
        elif self._roster.goes_on:
            self._go_on_without(name, now)
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
        return f"{text}; in {tries} tries it has not got farther than batch {batch:,} or so"


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
