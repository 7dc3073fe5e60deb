"""Where the agents of a run meet: the coordinator's launcher of workers on many machines."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from asyncdni import logs
from asyncdni.cluster.elastic import Elastic, Host
from asyncdni.cluster.placement import Placement
from asyncdni.cluster.worker_logs import log_path
from asyncdni.core.liveness import Sight
from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError, LaunchError, by_name
from asyncdni.launch.local import LocalLauncher, last_lines
from asyncdni.messages import (
    PROTOCOL_VERSION,
    Beat,
    Dismiss,
    Ended,
    Engage,
    Enrol,
    Enrolled,
    Failed,
    Introduce,
    Message,
    Part,
    Refused,
    Taken,
)
from asyncdni.store.parts import append_part
from asyncdni.wire.address import Address, parse, reachable_as
from asyncdni.wire.codec import FROM_AGENT, TO_AGENT
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.curve import Keys

__all__ = ["Meeting", "Rendezvous", "Work"]

#: After so long the user is told which agents have not come yet.
_NOTE_S = 5.0
#: At the end of a run: how long agents that come late are waited for, so that none waits in vain.
_LATE_S = 5.0
#: How long agents that wait already may take to be heard by a coordinator that only refuses.
_WAITING_S = 2.0
_LOOK_EVERY_S = 0.1
#: At the end of a run: how long workers elsewhere may take to leave and their last lines to come,
#: and after which silence of their agent nobody waits for them.
_LAST_LINES_S, _SILENCE_S = 20.0, 5.0
#: How long the last words to the agents may take.
_LINGER_S = 1.0
_GIB = 2**30
_LOOPBACK = "127.0.0.1"
#: What a worker's death by the death of its agent looks like: a killed process.
_KILLED = -9


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet: addresses to listen at."""

    agents: str
    workers: str
    host: str = ""  # by which other machines reach this one; empty: there are none

    @classmethod
    def at(cls, address: str) -> Self:
        """Make that of a run whose agents come to `address`, tcp://HOST:PORT. Workers come to the
        port after it; to any port if PORT is 0.

        Unless HOST is one of loopback, all interfaces are listened at: the name may stand for
        another address here than elsewhere. Raises `LaunchError`.
        """
        given = parse(address, bind=True)
        host = _LOOPBACK if given.host == "localhost" else given.host
        everywhere = "::" if given.needs_ipv6() else "0.0.0.0"
        here = host if host.startswith("127.") or host == "::1" else everywhere
        ports = given.port, given.port + 1 if given.port else 0
        agents, workers = (Address("tcp", here, port).endpoint for port in ports)
        return cls(agents, workers, host)

    @classmethod
    def here(cls, folder: Path) -> Self:
        """Make that of a run on this machine alone, with sockets in a private folder."""
        return cls(f"ipc://{folder / 'agents'}", f"ipc://{folder / 'coordinator'}")

    def reached(self, listening: str) -> str:
        """Return the address by which others reach the socket that listens at `listening`."""
        return reachable_as(listening, self.host) if self.host else listening

    def await_name(self, timeout_s: float) -> None:
        """Wait until this machine knows its own name, by which its workers go to it too: that of a
        pod is made known only when the pod runs. Raises `LaunchError` after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.host:
            try:
                socket.getaddrinfo(self.host, None)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"rank 0 can't resolve {self.host}, the name that it gives the other "
                        f"ranks: {error.strerror}; give all ranks --coordinator tcp://HOST:PORT "
                        "with a name or an address that all of them know"
                    ) from error
            time.sleep(_LOOK_EVERY_S)


@dataclass(frozen=True)
class Work:
    """What a run has to be done, and where."""

    placement: Placement
    needs: Mapping[str, int]  # the least memory of each worker in bytes
    coordinator: str  # the address that workers connect to
    folder: str
    threads: int
    silence_s: float  # after which an agent counts as gone
    startup_s: float  # that agents may take to come
    commands: Mapping[str, Sequence[str]]  # that start workers on the machine of rank 0
    libraries: Sequence[str] = ()  # that workers need: see `launch.forkserver.LIBRARIES`
    coordinator_s: float = 0.0  # that agents wait for another coordinator
    term: int = 0  # of this coordinator, by which agents know whether they see its folder
    elastic: Elastic | None = None  # None: the placement holds for the whole run

    @property
    def where(self) -> Placement:
        """The rank of each worker now."""
        return self.elastic.where if self.elastic is not None else self.placement

    def of(self, rank: int) -> list[str]:
        """The workers of a rank now."""
        return [name for name, there in self.where.items() if there == rank]


@dataclass
class _Agent:
    peer: bytes
    enrol: Enrol
    heard_s: float
    running: set[str] = field(default_factory=set)  # workers that it was told to start


class Rendezvous(AbstractContextManager["Rendezvous", None]):
    """Listens for the agents of `ranks` ranks where `meeting` says, and has them start the workers
    of the run.

    It is a `drivers.real.coordinator.Launcher`; agents are heard whenever `exited` is called. The
    workers of `own_rank` are started by `own`, on this machine; both are None where all ranks have
    agents. `hosts` names the host of each rank where that is known. `watch` is called all the time
    with the ranks whose agents are there; it raises what has become of the others. As a context
    manager it tells the agents at its end how the run has ended.

    `digest` identifies the experiment; agents that have been started with another are refused.
    Raises `LaunchError` if the address can't be listened on.
    """

    def __init__(
        self,
        meeting: Meeting,
        ranks: int,
        digest: str,
        keys: Keys | None,
        *,
        own_rank: int | None = 0,
        hosts: Sequence[str] = (),
        watch: Callable[[Container[int]], None] | None = None,
    ) -> None:
        self.meeting = meeting
        self.ranks = ranks
        self._digest = digest
        self.own_rank = own_rank
        self._hosts = hosts
        self._watch_others = watch
        self._own: LocalLauncher | None = None
        self._work: Work | None = None
        self._begun_s = 0.0
        self._noted = False
        self._dismissed = False
        self._agents: dict[int, _Agent] = {}
        self._early: list[_Agent] = []  # those that have come before the work was known
        self._turned_away: set[int] = set()  # ranks of agents that can't take part
        self._late: dict[int, _Agent] = {}  # those whose rank another has, who may be gone
        self._ordered_s: dict[str, float] = {}  # when each worker was last to be started
        self._started_here: set[str] = set()  # the workers that `own` has started
        self._ended: list[tuple[str, int, str]] = []
        self._last_lines: dict[str, str] = {}  # of workers that have ended
        self._log_begins: dict[str, int] = {}  # where the log of each worker's present process does
        self._logs_fail = False
        self._transport = CoordinatorTransport(
            meeting.agents, keys, hears=FROM_AGENT, says=TO_AGENT
        )
        #: Where agents reach it.
        self.address = meeting.reached(self._transport.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        try:
            self.dismiss(_, error)
            self._await_last_lines()
        finally:
            self._transport.close(_LINGER_S)

    def dismiss(self, _: object, error: BaseException | None, *__: object) -> None:
        """Tell all agents that have come, and those that come within some seconds, that the run has
        ended: with that error, or well. Only the first call counts."""
        self._dismiss(error, _LATE_S)

    def refuse_all(self, error: BaseException) -> None:
        """Tell the agents that wait for this coordinator that there will be no run, and why."""
        self._dismiss(error, _WAITING_S)

    def _dismiss(self, error: BaseException | None, late_s: float) -> None:
        if self._dismissed:
            return
        self._dismissed = True
        farewell = _farewell(error)
        agents = [*self._agents.values(), *self._late.values(), *self._early]
        known = {agent.peer for agent in agents}
        for peer in known:
            self._transport.send(peer, farewell)
        # Agents of an earlier coordinator do not enrol: they beat until they are asked to.
        missing, told = len(self._missing()), set[bytes]()
        deadline = time.monotonic() + late_s
        while len(told) < missing and time.monotonic() < deadline:
            for peer, message in self._transport.receive(_LOOK_EVERY_S):
                if peer not in known and self._transport.send(peer, farewell):
                    told.add(peer)
                self._hear_last(peer, message)

    def _hear_last(self, peer: bytes, message: Message) -> None:
        """Hear an agent after the end of the run: only what its workers have said still counts."""
        agent = self._known(peer)
        if agent is None:
            return
        agent.heard_s = time.monotonic()
        match message:
            case Part():
                self._add_to_log(agent, message)
            case Ended(worker=worker):
                agent.running.discard(worker)

    def _await_last_lines(self) -> None:
        """Wait for the end of all workers elsewhere, of which their agents tell once they have sent
        the last lines of their logs."""
        now = time.monotonic()
        deadline = now + _LAST_LINES_S
        while now < deadline and any(
            one.running and now - one.heard_s < _SILENCE_S for one in self._agents.values()
        ):
            for peer, message in self._transport.receive(_LOOK_EVERY_S):
                self._hear_last(peer, message)
            now = time.monotonic()

    def gather(self, startup_s: float, *, takes_back: bool) -> dict[int, Host]:
        """Wait until the agents of all ranks have come, and return their machines, by rank.
        `takes_back`: also those of an earlier coordinator, which are asked to come.

        Raises `ConfigError` for an agent that does not fit, and `LaunchError` if one has not come
        in time.
        """
        self._begun_s = time.monotonic()
        while self._missing():
            for peer, message in self._transport.receive(_LOOK_EVERY_S):
                early = next((one for one in self._early if one.peer == peer), None)
                if isinstance(message, Enrol) and early is None:
                    self._check_fits(_Agent(peer, message, time.monotonic()))
                    self._early.append(_Agent(peer, message, time.monotonic()))
                elif early is not None:
                    early.heard_s = time.monotonic()
                else:
                    self._answer_stranger(peer, takes_back=takes_back)
            self._tell_rejected()
            self._watch(time.monotonic(), startup_s)
        return {one.enrol.rank: _host(one.enrol) for one in reversed(self._early)}

    def running(self) -> Placement:
        """Return where workers of an earlier coordinator live, as the gathered agents say."""
        return {name: one.enrol.rank for one in self._early for name in one.enrol.running}

    def begin(self, work: Work, own: LocalLauncher | None) -> Self:
        """Start the workers of this machine, by `own`, and those of each agent as it comes.

        Raises `LaunchError` if one can't be started.
        """
        self._work, self._own = work, own
        self._begun_s = self._begun_s or time.monotonic()
        early, self._early = self._early, []
        for agent in early:
            self._enrol(agent)
        if own is not None and self.own_rank is not None:
            for name in work.of(self.own_rank):
                self._start_here(name)
        return self

    def _start_here(self, name: str) -> None:
        """Start a worker on this machine, in place of its last process here, if any. Raises
        `LaunchError`."""
        assert self._work is not None
        if name in self._started_here:
            self._local.restart(name)
        else:
            self._started_here.add(name)
            self._local.start({name: self._work.commands[name]})

    # --- the launcher ----------------------------------------------------------------------------

    def exited(self) -> list[tuple[str, int, str]]:
        """Hear the agents; return (worker, exit code, last lines) of processes that have ended.

        Raises `ConfigError` for an agent that does not fit, `LaunchError` if agents have not come
        in time, and what an agent has failed at.
        """
        now = time.monotonic()
        for peer, message in self._transport.receive(0):
            self._received(peer, message, now)
        self._tell_rejected()
        self._admit_late(now)
        assert self._work is not None
        self._watch(now, self._work.startup_s)
        self._take_over(now)
        ended, self._ended = self._ended, []
        here = self._own.exited() if self._own is not None else ()
        return [*(one for one in here if not self._is_away(one[0])), *ended]

    def _tell_rejected(self) -> None:
        """Tell the user of peers that are no agents of this run, or have other keys."""
        for _, text in self._transport.rejected:
            logs.own().warning("at the agents' address: %s", text)
        self._transport.rejected.clear()

    def restart(self, name: str) -> None:
        """Have a worker started again by the agent of its machine, once that is there.

        Raises `LaunchError` if it is on this machine and can't be started.
        """
        assert self._work is not None
        now = time.monotonic()
        elastic = self._work.elastic
        rank = elastic.starts(name, now) if elastic is not None else self._work.where[name]
        self._ordered_s[name] = now
        if rank == self.own_rank and self._own is not None:
            self._start_here(name)
        elif rank in self._agents:
            self._engage(self._agents[rank], name)
            silent_s = now - self._agents[rank].heard_s
            if silent_s > 2.0 * self._work.silence_s:
                host = self._agents[rank].enrol.host
                logs.own().warning(
                    f"rank {rank} on {host} has been silent for {silent_s:.1f} s: {name} is "
                    "started there once its agent is back"
                )

    def moves(self) -> list[tuple[str, str]]:
        """Return workers that are to be started elsewhere at the next barrier, and why."""
        elastic = self._work.elastic if self._work is not None else None
        return elastic.moves(time.monotonic()) if elastic is not None else []

    def look(self, name: str) -> Sight:
        """Tell what state a worker's process is in; those of other machines can't be seen."""
        return Sight.UNSEEN if self._is_away(name) else self._local.look(name)

    def last_lines(self, name: str) -> str:
        """Return the last warnings and errors of a worker, as far as they are known here."""
        if not self._is_away(name):
            return self._local.last_lines(name)
        return self._last_lines.get(name) or self._last_kept(name)

    def _last_kept(self, name: str) -> str:
        """The same of a worker elsewhere, from its log in the folder of the run."""
        return last_lines(self._log(name), self._log_begins.get(name, 0))

    def _log(self, name: str) -> Path:
        assert self._work is not None
        return Path(self._work.folder, log_path(name))

    def _is_away(self, name: str) -> bool:
        assert self._work is not None
        return self._own is None or self._work.where[name] != self.own_rank

    @property
    def _local(self) -> LocalLauncher:
        assert self._own is not None
        return self._own

    def settle(self) -> None:
        """Wait until all workers have left, and for the last lines of those elsewhere."""
        self._await_last_lines()
        if self._own is not None:
            self._own.settle()

    # --- agents ----------------------------------------------------------------------------------

    def _known(self, peer: bytes) -> _Agent | None:
        """The agent that has been let in and says this."""
        return next((one for one in self._agents.values() if one.peer == peer), None)

    def _received(self, peer: bytes, message: Message, now: float) -> None:
        if isinstance(message, Enrol):
            self._enrol(_Agent(peer, message, now))
            return
        agent = self._known(peer)
        if agent is None:
            if not any(one.peer == peer for one in self._late.values()):
                takes_back = self._work is not None and self._work.coordinator_s > 0.0
                self._answer_stranger(peer, takes_back=takes_back)
            return
        agent.heard_s = now
        if self._work is not None and self._work.elastic is not None:
            self._work.elastic.heard(agent.enrol.rank, now)
        match message:
            case Beat():
                pass
            case Failed(kind=kind, text=text):
                raise by_name(kind)(text)
            case Part():
                self._add_to_log(agent, message)
            case Ended(worker=worker, code=code, last_lines=lines):
                agent.running.discard(worker)
                if self._work is not None and worker in self._work.of(agent.enrol.rank):
                    self._last_lines[worker] = lines
                    self._ended.append((worker, code, lines))

    def _add_to_log(self, agent: _Agent, part: Part) -> None:
        """Add what a worker elsewhere has printed to its log in the folder of the run. A disk that
        does not take it is told of once, and the run goes on."""
        assert self._work is not None
        folder = Path(self._work.folder)
        logs_here = {log_path(name) for name in self._work.placement}
        if part.path in logs_here and folder.is_dir():  # a run that fails at once leaves no folder
            try:
                append_part(folder, part)
            except CheckpointError as error:
                if not self._logs_fail:
                    logs.own().warning(f"what workers elsewhere print is not kept: {error}")
                self._logs_fail = True
        self._transport.send(agent.peer, Taken(0, part.path, part.size))

    def _engage(self, agent: _Agent, name: str) -> None:
        """Have an agent start a worker."""
        agent.running.add(name)
        self._last_lines.pop(name, None)
        with suppress(OSError):
            self._log_begins[name] = self._log(name).stat().st_size
        self._transport.send(agent.peer, Engage(name))

    def _answer_stranger(self, peer: bytes, *, takes_back: bool) -> None:
        """Ask an agent that is not known to enrol, if it may be that of an earlier coordinator."""
        if takes_back:
            self._transport.send(peer, Introduce())
        else:
            self._refuse(peer, "this agent does not belong to the run, or no longer does")

    def _enrol(self, agent: _Agent) -> None:
        """Let an agent in, refuse it, or have it wait until that of the same rank is known to be
        gone."""
        enrol = agent.enrol
        there = self._agents.get(enrol.rank)
        if there is not None and there.peer == agent.peer:
            return  # it enrols again until it is answered
        if not self._check_fits(agent):
            return
        if enrol.rank in self._agents:
            self._late[enrol.rank] = agent
        else:
            self._admit(agent)

    def _check_fits(self, agent: _Agent) -> bool:
        """Refuse an agent that can't take part, and raise `ConfigError` unless its rank has another
        one; tell whether it may."""
        wrong = self._fault(agent.enrol)
        if wrong:
            self._refuse(agent.peer, wrong, ConfigError)
            self._turned_away.add(agent.enrol.rank)
            if agent.enrol.rank not in self._agents:
                raise ConfigError(wrong)
        return not wrong

    def _fault(self, enrol: Enrol) -> str:
        """Why an agent can't take part; empty where it can."""
        who = f"rank {enrol.rank} on {enrol.host}"
        if enrol.protocol != PROTOCOL_VERSION:
            return (
                f"{who} speaks protocol {enrol.protocol}, the coordinator {PROTOCOL_VERSION}: "
                "install the same version of asyncdni on both machines"
            )
        if enrol.ranks != self.ranks or not 0 <= enrol.rank < self.ranks:
            return (
                f"{who} is one of {enrol.ranks} ranks, the coordinator has {self.ranks}: one run "
                "needs an address of its own, see --coordinator"
            )
        if enrol.rank == self.own_rank:
            return (
                f"{who} is an agent, but that rank coordinates the run: give each process a rank "
                "of its own"
            )
        if enrol.digest not in ("", self._digest):
            return (
                f"{who} was started with another experiment (sha256 {enrol.digest[:12]}…) than "
                f"the coordinator ({self._digest[:12]}…): give all ranks the same file and options"
            )
        return ""

    def _refuse(self, peer: bytes, text: str, error: type[AsyncDNIError] = LaunchError) -> None:
        self._transport.send(peer, Refused(error.__name__, text))

    def _admit_late(self, now: float) -> None:
        """Decide about agents whose rank is taken: by one that still beats, or by a dead one."""
        assert self._work is not None
        for rank, late in list(self._late.items()):
            there = self._agents[rank]
            if there.heard_s > late.heard_s:
                del self._late[rank]
                taken = f"process {there.enrol.pid} on {there.enrol.host}"
                self._refuse(late.peer, f"rank {rank} is taken by {taken}")
            elif now - there.heard_s > self._work.silence_s:
                del self._late[rank]
                self._succeed(there, late)

    def _admit(self, agent: _Agent) -> None:
        """Let an agent in, and have it start the workers of its machine, but for those that an
        earlier coordinator has had started there, unless they are to be started again."""
        self._welcome(agent)
        for name in self._workers(agent):
            if name not in agent.enrol.running or name in self._ordered_s:
                self._engage(agent, name)
            else:
                agent.running.add(name)

    def _succeed(self, gone: _Agent, agent: _Agent) -> None:
        """Put an agent in the place of one that is gone, and whose workers have gone with it. Those
        whose start the other was told and can't have heard are started now; of the others the
        coordinator does not know yet that they are dead."""
        self._welcome(agent)
        for name in self._workers(agent):
            if self._ordered_s.get(name, 0.0) > gone.heard_s:
                self._engage(agent, name)
            else:
                text = f"its agent on {gone.enrol.host} has ended"
                self._ended.append((name, _KILLED, self._with_last_lines(name, text)))

    def _with_last_lines(self, name: str, text: str) -> str:
        """The last lines of a worker that has died with its agent, and `text`."""
        found = self._last_kept(name)
        return f"{found} | {text}" if found else text

    def _welcome(self, agent: _Agent) -> None:
        work, enrol = self._work, agent.enrol
        assert work is not None
        self._agents[enrol.rank] = agent
        if work.elastic is not None:
            work.elastic.came(enrol.rank, _host(enrol), agent.heard_s)
        names = self._workers(agent)
        to_come = [] if work.elastic is None else work.elastic.absent(enrol.rank)
        self._transport.send(
            agent.peer,
            Enrolled(
                workers=[*names, *to_come],
                coordinator=work.coordinator,
                folder=work.folder,
                threads=work.threads,
                silence_s=work.silence_s,
                coordinator_s=work.coordinator_s,
                term=work.term,
                libraries=[*work.libraries],
            ),
        )
        gpus = f", {enrol.gpus} GPUs" if enrol.gpus else ""
        logs.own().info(
            f"rank {enrol.rank} on {enrol.host} ({enrol.cores} cores, "
            f"{enrol.memory_bytes / _GIB:.1f} GiB{gpus}): {', '.join(names) or 'nothing to do'}"
        )
        self._check_memory(enrol)

    def _take_over(self, now: float) -> None:
        """Have the workers of agents that have left started elsewhere. As after an agent's death,
        those whose start it was told and can't have heard are started now, and of the others the
        coordinator is told that they are dead."""
        work = self._work
        if work is None or work.elastic is None:
            return
        work.elastic.looked(now)
        before = dict(work.where)
        for name, rank in work.elastic.taken_over(now).items():
            gone = self._agents[before[name]]
            text = (
                f"rank {before[name]} on {gone.enrol.host} has been silent for "
                f"{now - gone.heard_s:.1f} s: rank {rank} takes over {name}"
            )
            logs.own().warning(text)
            if self._ordered_s.get(name, 0.0) > gone.heard_s:
                self.restart(name)
            else:
                self._ended.append((name, _KILLED, self._with_last_lines(name, text)))

    def _workers(self, agent: _Agent) -> list[str]:
        assert self._work is not None
        return self._work.of(agent.enrol.rank)

    def _check_memory(self, enrol: Enrol) -> None:
        """Raise `ConfigError` if a machine has too little memory for its workers."""
        assert self._work is not None
        needed = sum(self._work.needs[name] for name in self._work.of(enrol.rank))
        if 0 < enrol.memory_bytes < needed:
            raise ConfigError(
                f"rank {enrol.rank} on {enrol.host} has {enrol.memory_bytes / _GIB:,.1f} GiB of "
                f"memory, its workers need at least {needed / _GIB:,.1f} GiB: give it fewer with "
                "--place, or use more machines"
            )

    def _missing(self) -> list[int]:
        early = (one.enrol.rank for one in self._early)
        known = {self.own_rank, *self._agents, *early, *self._turned_away}
        return [rank for rank in range(self.ranks) if rank not in known]

    def _watch(self, now: float, startup_s: float) -> None:
        """Tell of agents that have not come yet; raise `LaunchError` once they are too late."""
        if self._watch_others is not None:
            self._watch_others({*self._agents, *(one.enrol.rank for one in self._early)})
        missing = self._missing()
        if not missing:
            return
        named = [f"{rank} on {self._hosts[rank]}" if self._hosts else str(rank) for rank in missing]
        ranks = f"rank{'s' if len(missing) > 1 else ''} {', '.join(named)}"
        waited_s = now - self._begun_s
        if waited_s > startup_s:
            raise LaunchError(
                f"no agent of {ranks} has come to {self.address} within {startup_s:g} s "
                "(limits.startup_s): see that the same command runs there, and that this port is "
                "open to them"
            )
        if waited_s > _NOTE_S and not self._noted:
            self._noted = True
            logs.own().info(f"waiting for the agents of {ranks} at {self.address}")


def _host(enrol: Enrol) -> Host:
    """The machine of an agent."""
    return Host(enrol.cores, enrol.memory_bytes, enrol.gpus)


def _farewell(error: BaseException | None) -> Dismiss:
    """What the agents are told of the end of the run."""
    if error is None:
        return Dismiss(0, "")
    if isinstance(error, AsyncDNIError):
        return Dismiss(error.exit_code, f"the run has ended: {error}")
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    return Dismiss(code, f"the run has ended: {type(error).__name__}")
