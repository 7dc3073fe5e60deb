"""What the parts of a coordinator share: who takes part, who is in, how far the run is, and where
they put what they ask of the driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from asyncdni.core.events import Action, Fail, Record, Send
from asyncdni.core.ledger import Ledger
from asyncdni.core.liveness import Liveness, Recovery, Standstill
from asyncdni.messages import PROTOCOL_VERSION, Abort, Built, Hello, Message, Refused, Steer
from asyncdni.schedules.base import Groups

__all__ = ["Member", "Outbox", "Phase", "Roster", "Run"]

#: Addresses that mean another place on every host.
_ONE_HOST = re.compile(r"ipc://|tcp://(127\.|0\.0\.0\.0:|localhost:|\[::1?\]:)")
_NUMERIC = re.compile(r"ipc://|tcp://([0-9.]+|\[[0-9a-f:.]+\]):")


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
    takes_back: bool = False  # workers of an earlier coordinator, which may still live
    learns_alone: bool = False  # a worker learns by itself while a neighbour is dead
    rolls_back: bool = False  # when a number has gone wrong
    cut_every_s: float | None = None  # between checkpoints; None: by position, or at the end alone
    cut_positions: frozenset[int] = frozenset()  # batches after which one is taken
    groups: Groups = _SINGLE  # batches that make one update together
    batches: int = 0  # training batches of the whole run; 0: not known
    barriers: tuple[int, ...] = ()  # of the plan: the batches after which they are
    # the learning rate of [optimizer] for a training batch, by its number; None: not known
    rate: Callable[[int], float] | None = None
    consults: bool = False  # the user's callbacks may end the run at an evaluation
    resume: str = ""  # what to type for the run to go on from its folder; "": nothing stays there
    metrics: tuple[str, ...] = ()  # of the test set beside loss and accuracy
    versions: Mapping[str, str] = field(default_factory=dict)  # to be compared: see `Hello`
    sources: Mapping[str, str] = field(default_factory=dict)  # of the coordinator: see `Built`

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
        others = self._other_versions(hello, _release)
        if others:
            return Refused("LaunchError", f"worker {name} on {hello.host} {others}")
        return None

    def other_builds(self, name: str, hello: Hello) -> str:
        """Words for versions of a worker that has been let in that are other builds of the same
        release, as torch for GPUs is; empty where there are none.

        Their results may differ in the last bits, which is no reason to keep the worker out."""
        others = self._other_versions(hello, _build)
        if not others:
            return ""
        return f"worker {name} on {hello.host} {others}, or weights may differ in the last bits"

    def _other_versions(self, hello: Hello, part: Callable[[str, str], str]) -> str:
        """Words for the versions that differ in a part of them; empty where none do, and for a peer
        that does not say what it has."""
        if not hello.versions:
            return ""
        theirs, ours = [], []
        for package, own in self.versions.items():
            given = hello.versions.get(package)
            if given is None or part(package, given) != part(package, own):
                theirs.append(f"{package} {given}" if given else f"no {package}")
                ours.append(own)
        found = f"has {' and '.join(theirs)}, the coordinator {' and '.join(ours)}"
        return f"{found}: install the same" if theirs else ""

    def other_source(self, built: Member, members: Iterable[Member]) -> str:
        """Words for the modules of the user's code of which a worker that has built its stage has
        another source than the coordinator, or than another worker where the coordinator has not
        imported them; empty where there are none."""
        for module, digest in built.sources.items():
            known = {"the coordinator": self.sources} | {
                f"worker {other.name} on {other.hello.host}": other.sources for other in members
            }
            for who, sources in known.items():
                if sources.get(module, digest) != digest:
                    return (
                        f"worker {built.name} on {built.hello.host} has another source of "
                        f"{module} than {who}: copy the same files to both hosts, and start again"
                    )
        return ""

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

    def awaited(self, members: Mapping[str, Member], hosts: Mapping[str, str]) -> str:
        """Words for the workers that have not joined, and those that have not built their stages;
        `hosts` says where each of them is or was last, so far as that is known."""
        words = []
        for name in self.workers:
            host = f"on {hosts[name]}" if name in hosts else ""
            if name not in members:
                before = f"; the one before was {host}" if host else ""
                words.append(f"worker {name}, which has not joined{before}")
            elif members[name].built is None:
                words.append(f"worker {name} {host}, which builds its stages")
        return ", and ".join(words)

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


def _release(package: str, version: str) -> str:
    """The part of a version without which two processes are not let into one run.

    Patch releases of Python mend faults and leave the language and its library as they are; a
    build of PyTorch ("+cpu") is the same release for other devices."""
    if package == "Python":
        return ".".join(version.split(".")[:2])
    return version.partition("+")[0]


def _build(package: str, version: str) -> str:
    return version.partition("+")[2]


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

    @property
    def sources(self) -> Mapping[str, str]:
        """The digests of the user's code that it has sent in this round."""
        return self.built.sources if self.built is not None else {}


class Phase(Enum):
    GATHERING = "waiting for workers"
    CONNECTING = "connecting"
    TRAINING = "training"
    MENDING = "training without a worker"
    EVALUATING = "evaluating"
    SAVING = "saving"
    ENDED = "ended"


_COMPLAINTS_IN_FULL = 32  # of one kind


class Outbox:
    """Collects the actions that one event leads to."""

    def __init__(self) -> None:
        self.actions: list[Action] = []  # set anew for each event
        self._complaints: dict[str, int] = {}  # by kind of record

    def add(self, action: Action) -> None:
        self.actions.append(action)

    def complain(self, kind: str, now: float, text: str, **values: Any) -> None:
        """Record what strangers can bring about as often as they like: the first few times, and
        then whenever their number has doubled."""
        count = self._complaints[kind] = self._complaints.get(kind, 0) + 1
        if count > _COMPLAINTS_IN_FULL:
            if count & (count - 1):
                return
            text = f"{text} ({count:,} times so far, of various kinds)"
        self.record(kind, now, **values, text=text)

    def record(self, kind: str, now: float, **values: Any) -> None:
        self.actions.append(Record(kind, {"time_s": now, **values}))


#: Share of the silence that counts as death after which somebody has a look.
_DOUBT = 0.5


class Run:
    """The state of a run as its coordinator sees it, and how it ends."""

    def __init__(self, roster: Roster, ledger: Ledger) -> None:
        self.roster = roster
        self.ledger = ledger
        self.out = Outbox()
        self.phase = Phase.GATHERING
        self.members: dict[str, Member] = {}  # who is in, by worker
        self.by_peer: dict[bytes, str] = {}
        self.dropped: set[bytes] = set()  # peers that were in, and are held to be dead
        self.hosts: dict[str, str] = {}  # where each worker's process is, or the last one was
        self.cut = deepcopy(ledger)  # what a round that goes back starts from
        self.cut_s: float | None = None  # when it was taken, or the run began
        self.started = False  # there has been a round
        self.since: float | None = None  # when gathering or mending began
        self.segment_start: float | None = None  # of training time
        self.stopping_since: float | None = None  # when the user has asked for it
        self.liveness = Liveness(roster.silence_s, doubt=_DOUBT)  # by signs of life
        self.progress = Liveness(roster.stuck_s)  # by messages of the thread that computes
        self.standstill = Standstill(roster.stuck_s)  # of all of them
        self.recovery = Recovery(roster.restarts if roster.folder else 0)
        # By worker, as of the last reports; those of an earlier coordinator's time among them.
        self.updates = dict(ledger.updates)
        self.positions: dict[str, int] = {}  # likewise: training batches that have passed there
        self.moving: set[str] = set()  # workers that go on elsewhere from the next barrier
        self.in_flight: dict[str, int] = {}  # likewise: those not through with yet
        self.steers: dict[str, Steer] = {}  # by worker: what those who watch the run ask of it
        # Training losses since the last evaluation, by worker: their sum, over how many samples.
        self.losses: dict[str, tuple[float, int]] = {}

    def check(self) -> None:
        """Assert every invariant."""
        assert set(self.members) <= set(self.roster.workers)
        assert set(self.by_peer.values()) == set(self.members)
        if self.phase not in (Phase.GATHERING, Phase.MENDING, Phase.ENDED):
            assert self.all_here
            assert self.phase is Phase.CONNECTING or all(m.ready for m in self.members.values())

    @property
    def all_here(self) -> bool:
        return len(self.members) == len(self.roster.workers)

    @property
    def all_built(self) -> bool:
        return self.all_here and all(m.built is not None for m in self.members.values())

    def fail(self, fail: Fail) -> None:
        """End the run, and tell everybody; only the first reason counts."""
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        self.to_all(Abort(fail.text))
        self.out.add(fail)

    def samples_learned(self) -> int:
        """Samples that have reached every loss; a worker may have skipped batches before it."""
        losses = set(self.roster.losses)
        counts = [
            self.ledger.samples.get(name, 0)
            for name, stages in self.roster.members.items()
            if losses.intersection(stages)
        ]
        return min(counts, default=0)

    def add_loss(self, name: str, total: float, samples: int) -> None:
        """Add a worker's losses of so many training samples."""
        if samples:
            before, count = self.losses.get(name, (0.0, 0))
            self.losses[name] = before + total, count + samples

    def since_evaluation(
        self, batches: int, samples: int, train_s: float
    ) -> dict[str, float | None]:
        """For the history: how training has gone since the evaluation before, for an evaluation of
        the weights after so many batches, samples learned and seconds of training."""
        means = [total / count for total, count in self.losses.values()]
        history, rate = self.ledger.history, self.roster.rate
        before = history[-1] if history else {"samples": 0, "train_s": 0.0}
        seconds = train_s - before["train_s"]
        return {
            "train_loss": sum(means) if means else None,
            "learning_rate": rate(max(0, batches - 1)) if rate is not None else None,
            "samples_per_s": (samples - before["samples"]) / seconds if seconds > 0 else None,
        }

    def interrupted(self, why: str = "") -> Fail:
        """The failure of a run that the user stops without a last barrier."""
        return Fail("Interrupted", "; ".join(filter(None, ("interrupted", why, self.kept))))

    @property
    def kept(self) -> str:
        """What there is to go on from without another checkpoint, and how."""
        if not self.started and self.cut.restore == "initial":
            return "nothing had been learned yet"
        if not self.roster.resume:
            return "nothing is kept, as there is no run folder"
        none = self.cut.restore == "initial"
        kept = f"{self.roster.folder} has {'no checkpoint yet' if none else self.cut.restore}"
        if self.roster.learns_alone:
            kept += ", but maybe snapshots" if none else ", and maybe newer snapshots"
        then = "begins anew" if none and not self.roster.learns_alone else "goes on from there"
        return f"{kept}: `{self.roster.resume}` {then}"

    def to(self, name: str, message: Message) -> None:
        self.out.add(Send(self.members[name].peer, message))

    def steer(self, name: str) -> None:
        """Tell a worker what is asked of it, if it is here."""
        steer = self.steers.get(name)
        if steer is not None and name in self.members:
            self.to(name, steer)

    def to_all(self, message: Message) -> None:
        for name in self.members:
            self.to(name, message)
