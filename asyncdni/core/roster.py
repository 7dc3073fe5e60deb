"""Who takes part in a run: what the coordinator knows of the plan, and whom it lets in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncdni.messages import PROTOCOL_VERSION, Built, Hello, Refused
from asyncdni.schedules.groups import Groups

__all__ = ["Member", "Roster"]

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
