"""Files of a run's folder on their way between the coordinator and a worker that has no access to
it.

```
 worker                       coordinator        worker                        coordinator
   │ Part, Part, … ────────────► │                 │ Fetch ──────────────────────► │
   │ ◄─────── Taken, once it is  │                 │ ◄────────────── Part, Part, … │ or Missing
   │          written            │                 │ Taken ──────────────────────► │
   │ Part with the sha256 ─────► │ in its place    │ the file is in its place      │
```

Such a worker keeps a folder of its own, with the same files. What it writes there is sent on; what
it is to begin with is fetched first. One file goes at a time in each direction, and only a few
parts of it are on their way, so that neither end holds much and other messages wait for little.
Here are decisions alone: a driver reads and writes the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from asyncdni.core.events import Action, KeepPart, PartKept, PartSent, Send, SendPart
from asyncdni.core.ledger import CUTS, SNAPSHOTS
from asyncdni.core.members import Phase, Run
from asyncdni.core.post import UnexpectedMessage
from asyncdni.errors import CheckpointError
from asyncdni.messages import COORDINATOR, PART_BYTES, Fetch, Missing, Part, Taken

__all__ = ["AHEAD_BYTES", "FileExchange", "Incoming", "Outgoing", "may_fetch", "may_send", "needed"]

#: The most bytes of one file that have been sent and not been taken yet.
AHEAD_BYTES = 4 * PART_BYTES
#: The folder of the weights that a run was given to begin with: see `store.given`.
_INIT = "init"
_STATE = re.compile(r"(checkpoints/[0-9]{6,18}|snapshots)/([A-Za-z0-9_-]+)(\.[01])?\.safetensors")
_WEIGHTS = re.compile(r"(best\.new|final\.new|init)/([A-Za-z0-9_-]+)()\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def may_send(path: str, stages: Sequence[str], cut: str) -> bool:
    """Whether a worker with these declared stages may write this file: their weights, snapshots and
    states in the folder `cut`, which is being saved (empty: none is)."""
    if path.startswith(f"{_INIT}/") or (path.startswith(CUTS) and not path.startswith(cut or "-")):
        return False
    return _is_of(path, stages)


def may_fetch(path: str, stages: Sequence[str]) -> bool:
    """Whether a worker with these declared stages may read this file: what they may begin with."""
    return _is_of(path, stages) and ".new/" not in path


def _is_of(path: str, stages: Sequence[str]) -> bool:
    found = _STATE.fullmatch(path) or _WEIGHTS.fullmatch(path)
    if found is None or found[2] not in stages:
        return False
    return (found[1] == SNAPSHOTS) == bool(found[3])  # a snapshot has one of two numbers


def needed(places: Iterable[str], stages: Sequence[str], *, given: bool) -> list[str]:
    """The files that stages which begin from their state in one of `places` (folders of the run)
    may need; `given`: the run began with weights that were given."""
    paths = []
    for place in filter(None, places):
        endings = (".0", ".1") if place == SNAPSHOTS else ("",)
        paths += [f"{place}/{stage}{one}.safetensors" for stage in stages for one in endings]
    return [*paths, *(f"{_INIT}/{stage}.safetensors" for stage in stages if given)]


class Outgoing:
    """The files that are to be sent to one peer, one after another."""

    def __init__(self, to: str | bytes) -> None:
        self._to = to
        self._incarnation = 0
        self._paths: list[str] = []  # the first is on its way
        self._begin()

    def _begin(self) -> None:
        self._sent = self._taken = 0
        self._size: int | None = None  # of the first file; None: not known yet
        self._asked = False  # the driver is reading a part

    @property
    def idle(self) -> bool:
        """Whether all files have arrived."""
        return not self._paths

    def clear(self, incarnation: int) -> None:
        """Send nothing more of what was to be sent; what follows is of this incarnation."""
        self._incarnation = incarnation
        self._paths.clear()
        self._begin()

    def add(self, paths: Iterable[str]) -> list[Action]:
        """Send these as well."""
        self._paths.extend(paths)
        return self._next()

    def part_sent(self, event: PartSent) -> list[Action]:
        """The driver has sent a part, or found no such file."""
        if not self._is_current(event.incarnation, event.path):
            return []
        self._asked = False
        if event.size is None:
            self._paths.pop(0)
            self._begin()
            return [Send(self._to, Missing(event.incarnation, event.path)), *self._next()]
        self._sent, self._size = event.end, event.size
        return self._next()

    def taken(self, message: Taken) -> list[Action]:
        """The peer has written a part. Raises `UnexpectedMessage`."""
        if message.incarnation != self._incarnation:
            return []
        if not self._is_current(message.incarnation, message.path):
            raise UnexpectedMessage("nothing of that file is on its way")
        if not self._taken < message.offset <= self._sent:
            raise UnexpectedMessage(f"of that file {self._sent} bytes have been sent")
        self._taken = message.offset
        if self._taken == self._size:
            self._paths.pop(0)
            self._begin()
        return self._next()

    def _is_current(self, incarnation: int, path: str) -> bool:
        return incarnation == self._incarnation and self._paths[:1] == [path]

    def _next(self) -> list[Action]:
        if self._asked or not self._paths or self._sent == self._size:
            return []
        if self._sent - self._taken >= AHEAD_BYTES:
            return []
        self._asked = True
        return [SendPart(self._to, self._incarnation, self._paths[0], self._sent)]


class Incoming:
    """How much has come of the file that one peer sends."""

    def __init__(self) -> None:
        self._path, self._end, self._size = "", 0, 0

    def accept(self, part: Part) -> None:
        """Raises `UnexpectedMessage` for a part that is none, or out of order."""
        end = part.offset + len(part.data)
        if part.offset == 0:
            self._path, self._end, self._size = part.path, 0, part.size
        if (part.path, part.offset, part.size) != (self._path, self._end, self._size):
            raise UnexpectedMessage("the parts of a file come in order")
        if not 0 < len(part.data) <= PART_BYTES or end > part.size:
            raise UnexpectedMessage(f"a part has 1 to {PART_BYTES} bytes, within its file")
        is_last = end == part.size
        if bool(part.sha256) != is_last or (is_last and not _SHA256.fullmatch(part.sha256)):
            raise UnexpectedMessage("the last part of a file has its sha256, and no other")
        self._end = end


class FileExchange:
    """The coordinator's side: which files its workers may have it write and read, and what is on
    its way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._incoming: dict[str, Incoming] = {}  # by worker
        self._outgoing: dict[str, Outgoing] = {}
        self._complained = False  # of a snapshot that could not be written

    def received(self, name: str, message: Part | Fetch | Taken, now: float) -> None:
        """A worker sends, or asks for, a file. What is of an earlier incarnation means nothing any
        more. Raises `UnexpectedMessage` for what it may not do."""
        run, stages = self._run, self._run.roster.members[name]
        if message.incarnation != run.members[name].incarnation:
            return
        match message:
            case Part(path=path):
                cut = f"{CUTS}{run.ledger.cut:06d}/" if run.ledger.cut > run.cut.cut else ""
                if not run.roster.folder or not may_send(path, stages, cut):
                    raise UnexpectedMessage(f"it may not write {path!r}")
                self._incoming.setdefault(name, Incoming()).accept(message)
                if run.phase is Phase.SAVING:
                    run.standstill.moved(now)
                run.out.add(KeepPart(message, name))
            case Fetch(incarnation=incarnation, path=path):
                if not run.roster.folder or not may_fetch(path, stages):
                    raise UnexpectedMessage(f"it may not read {path!r}")
                outgoing = self._outgoing[name] = Outgoing(run.members[name].peer)
                outgoing.clear(incarnation)
                run.out.actions += outgoing.add([path])
            case Taken():
                if name not in self._outgoing:
                    raise UnexpectedMessage
                run.out.actions += self._outgoing[name].taken(message)

    def part_sent(self, event: PartSent) -> None:
        """The driver has sent a part of a file to a worker, or there is no such file."""
        name = self._run.by_peer.get(event.to) if isinstance(event.to, bytes) else None
        if name in self._outgoing:
            self._run.out.actions += self._outgoing[name].part_sent(event)

    def part_kept(self, event: PartKept, now: float) -> None:
        """The driver has written a part that a worker has sent, or could not. A snapshot that can't
        be written is told of once and done without, as by a worker that writes its own; anything
        else ends the run.

        Raises `UnexpectedMessage` for a file that is not what its sender says, and the driver's
        `CheckpointError`."""
        part, member = event.part, self._run.members.get(event.sender)
        if event.error is not None:
            self._not_written(event, event.error, now)
        if member is None or member.incarnation != part.incarnation:
            return
        if event.fault:
            raise UnexpectedMessage(event.fault)
        taken = Taken(part.incarnation, part.path, part.offset + len(part.data))
        self._run.to(event.sender, taken)

    def _not_written(self, event: PartKept, error: CheckpointError, now: float) -> None:
        is_snapshot = event.part.path.startswith(f"{SNAPSHOTS}/")
        if not is_snapshot or event.folder_gone:
            raise error
        if not self._complained:
            text = f"no snapshot of {event.sender} was written: {error}"
            self._run.out.record("note", now, stage=COORDINATOR, text=text)
        self._complained = True
