"""The coordinator's process in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Action,
    Commit,
    DiscardSnapshots,
    Event,
    Exited,
    Fail,
    Finish,
    KeepPart,
    Launch,
    Look,
    Looked,
    PartKept,
    PartSent,
    Received,
    Record,
    Send,
    SendPart,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.ledger import Ledger
from asyncdni.core.liveness import Sight
from asyncdni.core.members import Roster
from asyncdni.drivers.virtual.clock import Alarm
from asyncdni.drivers.virtual.disk import Disk, PartDisk
from asyncdni.drivers.virtual.process import Arithmetic, Office, TimedOp, WorkerProcess
from asyncdni.drivers.virtual.world import World
from asyncdni.errors import CheckpointError
from asyncdni.messages import COORDINATOR, Beat, Message
from asyncdni.plan.build import Design, make_roster
from asyncdni.plan.plan import Group

__all__ = ["CoordinatorProcess", "Launcher", "Records", "find_ledger"]

# --- launcher ------------------------------------------------------------------------------------

#: How long it takes to see that a process has ended.
_NOTICED_AFTER_S = 0.1
_KILLED = -9

#: Called with the name and the exit code of a worker whose process has ended.
HasExited = Callable[[str, int], None]


class Launcher:
    """Starts the worker processes of a simulated run, sees which have ended, and kills. It lives
    and dies with a coordinator's process; what it has started lives on, and is taken over by the
    next one where workers wait for it."""

    def __init__(
        self,
        world: World,
        arithmetic: Arithmetic,
        everyone: list[WorkerProcess],
        ops: dict[str, list[TimedOp]],
    ) -> None:
        """`everyone`: all processes that there have been, of this launcher and of earlier ones."""
        self.alive = True
        self._world = world
        self._arithmetic = arithmetic
        self._everyone = everyone
        self._ops = ops
        self._groups = {group.name: group for group in world.design.plan.groups}
        self._current: dict[str, WorkerProcess] = {}
        self._numbers = Counter(process.name for process in everyone)

    def start(self, office: Office, exited: HasExited) -> None:
        """Start all workers for that coordinator, but for those that have waited for it."""
        self._office = office
        self._exited = exited
        if office.roster.takes_back:
            for process in self._everyone:
                self._take_over(process)
        for name, group in self._groups.items():
            if name not in self._current:
                self._start(group)

    def restart(self, name: str) -> None:
        """A new process; what is left of the old one is killed, unless it is out of reach."""
        self._kill(self._current[name])
        self._start(self._groups[name])

    def look(self, name: str) -> Sight:
        """What a worker's process looks like, unless it is out of reach."""
        process = self._current[name]
        apart = self._world.wires.apart(self._office.key, process.key)
        return Sight.UNSEEN if apart else process.sight

    def stop(self) -> None:
        """Kill whoever is left and in reach."""
        for process in self._everyone:
            if process.office is self._office:
                self._kill(process)

    def _take_over(self, process: WorkerProcess) -> None:
        """Take over a process of an earlier coordinator, if it lives; of several of one worker the
        newest is in sight."""
        if process.alive:
            name, number = process.name, int(process.key.rpartition("#")[2])
            process.turn_to(self._office, partial(self._has_ended, name, number))
            if number == self._numbers[name]:
                self._current[name] = process

    def _start(self, group: Group) -> None:
        self._numbers[group.name] += 1
        number = self._numbers[group.name]
        ended = partial(self._has_ended, group.name, number)
        process = WorkerProcess(
            self._world,
            group,
            number,
            self._office,
            ended,
            self._arithmetic,
            self._ops[group.name],
        )
        self._current[group.name] = process
        self._everyone.append(process)
        self._world.by_address[process.address] = process
        self._world.by_peer[process.peer] = process
        process.start()

    def _kill(self, process: WorkerProcess) -> None:
        if not self._world.wires.apart(self._office.key, process.key):
            process.exit(_KILLED)

    def _has_ended(self, name: str, number: int, code: int) -> None:
        self._world.agenda.after(_NOTICED_AFTER_S, partial(self._notice, name, number, code))

    def _notice(self, name: str, number: int, code: int) -> None:
        if self.alive and number == self._numbers[name]:  # and has not been replaced since
            self._exited(name, code)


Records = list[tuple[str, dict[str, Any]]]

#: How long workers have to leave by themselves at the end; then they are killed.
_GRACE_S = 2.0


class CoordinatorProcess:
    """Drives one `Coordinator`. `died` is called where the disk has torn it down in a commit."""

    def __init__(
        self,
        world: World,
        roster: Roster,
        launcher: Launcher,
        records: Records,
        *,
        ledger: Ledger | None = None,
        number: int = 1,
        died: Callable[[], None] | None = None,
    ) -> None:
        """`records`: where what is to be written down goes."""
        self.key = f"{COORDINATOR}#{number}"
        self.roster = roster
        self.machine = Coordinator(roster, ledger)
        self.end: Finish | Fail | None = None
        self.alive = True
        self._world = world
        self._launcher = launcher
        self._records = records
        self._died = died
        self.clock = world.chance_faults.clock()
        self._pauses = 0
        self._backlog: list[Callable[[], None]] = []
        self._idle_since = 0.0
        self._alarm = Alarm(world.agenda, self.machine, self._wake, self.clock)
        self._parts = PartDisk(world.disk, fetches=False)

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process begins: it looks at the clock for the first time, and starts the workers."""
        self._handle(Woke())
        self._launcher.start(self, self.exited)

    def kill(self) -> None:
        """End the process without a word: nobody watches its workers' processes any more."""
        self.alive = self._launcher.alive = False
        self._backlog.clear()

    def pause(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self._stand_still()
        self._world.agenda.after(for_s, self._go_on)

    def _stand_still(self) -> None:
        if not self._pauses:
            self._idle_since = self._world.agenda.now
        self._pauses += 1

    def _go_on(self) -> None:
        self._pauses -= 1
        self._work_off()

    def _work_off(self) -> None:
        if not self._pauses:
            now = self._world.agenda.now
            self.machine.paused(now - self._idle_since, self.clock.reading(now))
        while self._backlog and not self._pauses:
            self._backlog.pop(0)()

    @property
    def busy(self) -> bool:
        """Whether the process lives and the run is not over."""
        return self.alive and self.end is None

    def _now(self, what: Callable[[], None]) -> None:
        if not self.busy:
            return
        if self._pauses or self._backlog:
            self._backlog.append(what)
        else:
            what()

    # --- events ----------------------------------------------------------------------------------

    def receive(self, peer: bytes, message: Message) -> None:
        """A message of the control connection `peer` has arrived."""
        self._now(partial(self._received, peer, message))

    def _received(self, peer: bytes, message: Message) -> None:
        if type(message) is Beat:
            self._world.from_coordinator(self.key, peer, Beat())  # whoever it is
        self._handle(Received(message, peer))

    def user_stop(self) -> None:
        self._now(partial(self._handle, UserStop()))

    def exited(self, name: str, code: int) -> None:
        """A worker's process has ended."""
        self._now(partial(self._handle, Exited(name, code, "")))

    def _wake(self) -> None:
        self._now(partial(self._handle, Woke()))

    def _handle(self, event: Event) -> None:
        if not self.busy:
            return
        events = [event]
        while events:
            for action in self._world.coordinate(self.machine, events.pop(0), self.clock):
                if type(action) is Look:
                    events.append(Looked(action.stage, self._launcher.look(action.stage)))
                else:
                    self._carry_out(action)
        self._alarm.reset()

    # --- actions ---------------------------------------------------------------------------------

    def _carry_out(self, action: Action) -> None:
        match action:
            case Send(to=to, message=message):
                assert isinstance(to, bytes)
                self._world.from_coordinator(self.key, to, message)
            case Record(kind=kind, values=values):
                self._records.append((kind, values))
            case Launch(stage=stage):
                self._launcher.restart(stage)
            case Commit():
                self._commit(action)
            case SendPart():
                self._send_part(action)
            case KeepPart(part=part, sender=sender):
                self._parts.write(sender, part)
                self._handle(PartKept(part, sender))
            case DiscardSnapshots():
                self._world.disk.discard_snapshots()
            case Finish() | Fail():
                self._finish(action)
            case _:
                raise TypeError(f"a coordinator's driver can't carry out {action!r}")

    def _send_part(self, ask: SendPart) -> None:
        assert isinstance(ask.to, bytes)
        part = self._parts.read(ask.to, ask.incarnation, ask.path, ask.offset)
        if part is None:
            self._handle(PartSent(ask.to, ask.incarnation, ask.path))
            return
        self._world.from_coordinator(self.key, ask.to, part)
        end = part.offset + len(part.data)
        self._handle(PartSent(ask.to, ask.incarnation, ask.path, end, part.size))

    def _finish(self, end: Finish | Fail) -> None:
        self.end = end
        self._launcher.alive = False
        self._world.agenda.after(_GRACE_S, self._launcher.stop, idle=True)

    def _commit(self, cut: Commit) -> None:
        if not cut.whole:  # of weights: the manifest takes no time
            self._world.disk.commit_weights(cut)
            self._handle(Stored(cut.tag))
            return
        chance = self._world.chance_faults.save()
        took_s = self._world.costs.save_us * 1e-6 + chance.extra_s
        if chance.torn and self._died is not None:
            self._world.agenda.after(took_s / 2, self._died)
            return
        self._stand_still()  # it waits for the disk, and does nothing else
        self._world.agenda.after(took_s, partial(self._has_written, cut, chance.fails))

    def _has_written(self, cut: Commit, fails: bool) -> None:
        if not self.busy:
            return
        try:
            if fails:
                text = f"the manifest of {cut.tag} can't be written: the disk is full (simulated)"
                raise CheckpointError(text)
            self._world.disk.commit(cut)
        except CheckpointError as error:
            self._give_up(Fail(CheckpointError.__name__, str(error)))
            return
        self._handle(Stored(cut.tag))
        self._pauses -= 1
        self._work_off()

    def _give_up(self, fail: Fail) -> None:
        """An error of the driver's own: its workers are killed."""
        self._finish(fail)
        self._launcher.stop()


# --- resumption ----------------------------------------------------------------------------------


def find_ledger(design: Design, disk: Disk, history: list[dict[str, Any]]) -> Ledger:
    """Where a run goes on whose coordinator has died, as with `--resume`: from the newest cut or
    the workers' snapshots, see `Ledger.taken_up`. `history`: all evaluations so far."""
    ledger = Ledger()
    newest = disk.newest_cut()
    if newest is not None:
        tag, state = newest
        ledger = Ledger.restored(state, tag)
    saved = disk.snapshots() if make_roster(design).learns_alone else {}
    whole = len(saved) == len(design.plan.groups)
    counts = [one.counts for one in saved.values()] if whole else []
    ledger.taken_up(counts, history, design.plan.barriers)
    return ledger
