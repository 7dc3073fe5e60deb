"""What becomes of workers that die, fall silent, get stuck or break the protocol.

```
 Exited, silence, Accused ──► lost ──► Launch (after a while) ──► Hello ──► Built ──► a new round
                               │
                               ├─ learners by themselves: Lost to the others, who go on
                               └─ otherwise: Rejoin to the others, all go back to the last cut
```
"""

from __future__ import annotations

from asyncdni.core.events import Exited, Fail, Launch, Look, Looked, Rejected
from asyncdni.core.members import Gathering, Phase
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


class Deaths(Gathering):
    """The part of a coordinator that mends."""

    _rollbacks = 0  # in a row, because of numbers …
    _rolled_back_to = 0  # … to this cut

    # --- how it is found out ---------------------------------------------------------------------

    def _exited(self, event: Exited, now: float) -> None:
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

    def _watch_deaths(self, now: float) -> None:
        """Last words that have not come, and ops without an end."""
        for name, (moment, text) in list(self._dead.items()):
            if now < moment or self.phase is Phase.ENDED:
                continue
            if self._started or name in self._members:
                self._lost(name, text, now)
            else:  # what keeps it from starting would do so again
                self._fail(Fail("WorkerLost", text))
        while self.phase is not Phase.ENDED and (silent := self._progress.silent(now)) is not None:
            if self._stopping_since is not None:  # it had its time to save
                self._fail(self._interrupted(self._silence(silent[0], "not moved", silent[1])))
            else:
                self._lost(silent[0], self._silence(silent[0], "not moved", silent[1]), now)

    def _watch_silence(self, now: float) -> None:
        """Who is silent may be dead, or just not have been let to speak: have a look."""
        while self.phase is not Phase.ENDED and (silent := self._liveness.silent(now)) is not None:
            self._liveness.doubted(silent[0], now)
            self._actions.append(Look(silent[0]))

    def _looked(self, event: Looked, now: float) -> None:
        name, sight = event.stage, event.sight
        if name in self._liveness and self._liveness.is_death(name, sight, now):
            silence_s = self._liveness.silence_s(name, now)
            self._lost(name, self._silence(name, "shown no sign of life", silence_s), now)

    def _silence(self, name: str, what: str, silence_s: float) -> str:
        hello = self._members[name].hello
        process = f"process {hello.pid} on {hello.host}"
        return f"worker {name} ({process}) has {what} for {silence_s:.1f} s"

    @property
    def _standstill_s(self) -> float | None:
        """When a standstill will have lasted too long."""
        return self._standstill.deadline() if self.phase in _ALL_AT_WORK else None

    def _watch_standstill(self, now: float) -> None:
        """Somebody waits for a message that has been lost."""
        deadline = self._standstill_s
        if deadline is None or now < deadline:
            return
        text = f"nothing has moved for {self.roster.stuck_s:g} s (limits.stuck_s)"
        self._once_more("LimitExceeded", f"{text} while {self.phase.value}", now)

    def _once_more(self, kind: str, text: str, now: float) -> None:
        """A message has been lost: throw away what all remember of this round, and have another."""
        if self._stopping_since is not None:
            self._fail(self._interrupted(text))
            return
        self._standstill.noticed(self._positions, now)
        times = self._standstill.in_a_row
        if self._recovery.is_off or times > self.roster.restarts:
            again = f", {times} times at the same batch" if times > 1 else ""
            self._fail(Fail(kind, f"{text}{again}"))
            return
        self._record("stuck", now, text=text)
        if self.roster.goes_on:
            self._open_round("keep", now)
        else:
            self._go_back(now)

    def _watch_late(self, now: float) -> None:
        """A round that has not come about in time, with those that keep it from doing so."""
        if self._since is None or now < self._since + self.roster.startup_s:
            return
        if self._stopping_since is not None:
            self._fail(self._interrupted(self.roster.missing(self._members)))
            return
        if any(member.unheard for member in self._members.values()):
            self._apart(now)
            return
        late = [name for name in self.roster.workers if not self._is_in_time(name)]
        # Before the first round nobody has seen a worker that is to be started by hand: there is no
        # process that another one could take the place of.
        replaced = self._started or self.roster.launched
        if not replaced or self._recovery.is_off or not late:
            absent = [name for name in late if name not in self._members]
            about = absent or (late if self.roster.launched else [])
            text = self.roster.missing(self._members)
            self._fail(Fail("LaunchError", text, stages=tuple(about)))
            return
        self._since = now
        limit = f"{self.roster.startup_s:g} s (limits.startup_s)"
        for name in late:
            if self.phase is not Phase.ENDED:
                what = "become ready" if name in self._members else "joined"
                self._lost(name, f"worker {name} has not {what} within {limit}", now)

    def _apart(self, now: float) -> None:
        """Workers that live but do not reach each other: new processes would not do so either."""
        text = self.roster.missing(self._members)
        if self._started:
            self._once_more("LaunchError", text, now)
        else:
            self._fail(Fail("LaunchError", text))

    def _is_in_time(self, name: str) -> bool:
        member = self._members.get(name)
        return member is not None and (
            member.ready or (member.built is not None and self.phase is not Phase.CONNECTING)
        )

    def _misfit(self, name: str, message: Message, now: float, why: str = "") -> None:
        what = type(message).__name__
        text = f"worker {name} sent a {what} that does not fit ({self.phase.value})"
        self._cut_off(name, f"{text}: {why}" if why else text, now)

    def _cut_off(self, name: str, text: str, now: float) -> None:
        """A worker has broken the protocol: a new process may keep it."""
        if self._recovery.is_off:
            self._fail(Fail("RemoteProtocolError", text))
        else:
            self._lost(name, text, now)

    def _rejected(self, event: Rejected, now: float) -> None:
        """Strangers are let be; a worker that talks nonsense is not trusted with a stage."""
        self._complain("rejected", now, event.text, peer=event.peer.hex())
        name = self._by_peer.get(event.peer)
        if name is not None:
            self._cut_off(name, f"worker {name} sent what is no message: {event.text}", now)

    def _accused(self, name: str, message: Accused, now: float) -> None:
        member = self._members.get(message.worker)
        if member is None or member.incarnation != message.incarnation:
            return  # it has been replaced since
        if message.worker not in self.roster.neighbours[name]:
            self._misfit(name, message, now, f"{message.worker} sends nothing to it")
            return
        self._record("accused", now, stage=message.worker, by=name, text=message.text)
        self._cut_off(message.worker, message.text, now)

    def _failed(self, name: str, message: Failed, now: float) -> None:
        if message.kind == "NumericalError" and self.roster.rolls_back:
            self._went_wrong(name, message, now)
        elif message.kind in _OF_THE_PROCESS and not self._recovery.is_off:
            self._lost(name, f"worker {name} failed: {message.text}", now)
        else:
            self._fail(Fail(message.kind, message.text, message.trace))

    def _went_wrong(self, name: str, message: Failed, now: float) -> None:
        """A number: back to the last cut, but on with later batches, or it would be the same."""
        if self.phase in (Phase.GATHERING, Phase.CONNECTING):
            return  # somebody else has found out before
        self._rollbacks = self._rollbacks + 1 if self._rolled_back_to == self._cut.cut else 1
        self._rolled_back_to = self._cut.cut
        if self._rollbacks > _ROLLBACKS_MAX:
            text = f"{message.text}; the same after {_ROLLBACKS_MAX} returns to the last checkpoint"
            self._fail(Fail(message.kind, text))
            return
        self._record("numbers", now, stage=name, text=message.text)
        self._start = self.roster.groups.end_from(1 + max(self._positions.values(), default=0))
        self._open_round(self._cut.restore, now)

    # --- what is done about it -------------------------------------------------------------------

    def _lost(self, name: str, text: str, now: float) -> None:
        """This worker is dead, or as good as that: replace it, or end the run."""
        self._dead.pop(name, None)
        member = self._members.pop(name, None)
        if member is not None:
            del self._by_peer[member.peer]
        self._liveness.forget(name)
        self._progress.forget(name)
        self._incarnation += 1
        forgiven = self._recovery.died(name, now)
        if self._stopping_since is not None and not (self.roster.launched and forgiven):
            self._fail(self._interrupted(text))
            return
        if not forgiven:
            self._fail(Fail("WorkerLost", self._too_often(name, text), stages=(name,)))
            return
        self._record("lost", now, stage=name, text=text)
        if self.phase is Phase.GATHERING:
            self._since = now
        elif self.phase is Phase.CONNECTING:
            self._open_round(self._restore, now)
        elif self.roster.goes_on:
            self._go_on_without(name, now)
        else:
            self._go_back(now)

    def _go_on_without(self, name: str, now: float) -> None:
        self.phase = Phase.MENDING
        self._since = now
        self._forget_barrier()
        for other, member in self._members.items():
            if member.ready:  # who has not begun will hear of no neighbour that is dead
                self._to(other, Lost(name))

    def _go_back(self, now: float) -> None:
        """All of them to the last cut, from which every step will be the same."""
        self._forget_barrier()
        self.ledger.back_to(self._cut)
        self._open_round(self._cut.restore, now)

    def _launch(self, now: float) -> None:
        """Start those again whose time has come."""
        for name in self._recovery.due(now) if self.phase is not Phase.ENDED else ():
            attempt = self._recovery.attempt(name)
            self._record("launch", now, stage=name, attempt=attempt)
            self._actions.append(Launch(name))

    def _too_often(self, name: str, text: str) -> str:
        tries, batch = self._recovery.attempt(name), self._recovery.died_at(name)
        if self._recovery.is_off or tries <= 1:
            return text
        if not batch:
            return f"{text}; in {tries} tries it has not learned anything"
        return f"{text}; in {tries} tries it has not got farther than batch {batch:,} or so"


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
