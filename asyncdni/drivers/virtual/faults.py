"""The faults of a simulated run: as one struct, and as the text that users write.

```
crashes=2, pauses=1, pause_s=3, torn_saves=0.1; crash hidden1 at 2.5s
```

A rate is the number of random faults in a second of virtual time; moment, process and size of each
are drawn from the run's seed. The lines of a script name single faults:

```
crash hidden1 at 2.5s                      pause hidden1 at 1s for 3s
starve hidden1 at 1s for 3s
crash coordinator at 2s for 4s             slow hidden1 by 5 at 1s for 500ms
partition hidden1|hidden2 at 1s for 0.5s   break hidden1>hidden2 at 1s
partition data1&hidden1|coordinator at 1s for 2s
```

After a crash of the coordinator a new one resumes the run, after the time that `for` gives.
"""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from asyncdni.drivers.virtual.clock import Clock
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import seconds
from asyncdni.files import decode_text, read_file
from asyncdni.messages import COORDINATOR

__all__ = [
    "RESUMED_AFTER_S",
    "ChanceFaults",
    "Fault",
    "Faults",
    "Save",
    "check_faults",
    "parse_faults",
    "parse_line",
]

#: How long after a coordinator's crash the run is resumed where the line does not say.
RESUMED_AFTER_S = 4.0
_LONGEST_S = 86_400.0
_LINE = re.compile(
    r"(?P<kind>[a-z]+) +(?P<who>\S+?)(?: +by +(?P<factor>[0-9.]+))? +at +(?P<at>\S+)"
    r"(?: +for +(?P<span>\S+))?"
)
_FORMS = {
    "crash": "crash NAME at TIME",
    "pause": "pause NAME at TIME for TIME",
    "starve": "starve NAME at TIME for TIME",
    "slow": "slow NAME by FACTOR at TIME for TIME",
    "partition": "partition NAME&NAME|NAME at TIME for TIME",
    "break": "break NAME>NAME at TIME",
}
_LASTING = ("pause", "starve", "slow", "partition")
_BETWEEN = {"partition": "|", "break": ">"}


@dataclass(frozen=True)
class Fault:
    """One fault at one moment.

    `who` are names of workers or "coordinator"; `others` those on the other side of a partition or
    a connection.
    """

    kind: str
    at_s: float
    who: tuple[str, ...]
    others: tuple[str, ...] = ()
    for_s: float = 0.0
    factor: float = 1.0

    def check(self, workers: Sequence[str]) -> None:
        """Raise `ConfigError` for a name that no process of the run has."""
        for name in (*self.who, *self.others):
            if name != COORDINATOR and name not in workers:
                known = ", ".join((*workers, COORDINATOR))
                raise ConfigError(f"--faults: {self.kind} {name}: known are {known}")


def parse_line(line: str) -> Fault:
    """The fault in one line of a script. Raises `ConfigError` for any other text."""
    kind = line.split(" ", 1)[0]
    if kind not in _FORMS:
        raise ConfigError(f"--faults: {line!r}: expected one of {'; '.join(_FORMS.values())}")
    match = _LINE.fullmatch(line)
    if match is None:
        raise ConfigError(f"--faults: {line!r}: expected {_FORMS[kind]}")
    who, others = _sides(kind, match["who"], line)
    resumed = kind == "crash" and who == (COORDINATOR,)
    fits = (match["factor"] is not None) is (kind == "slow")
    fits &= resumed or (match["span"] is not None) is (kind in _LASTING)
    if not fits:
        raise ConfigError(f"--faults: {line!r}: expected {_FORMS[kind]}")
    place = f"--faults: {line!r}"
    span = match["span"]
    default_s = RESUMED_AFTER_S if resumed else 0.0
    return Fault(
        kind,
        seconds(match["at"], place, _LONGEST_S),
        who,
        others,
        default_s if span is None else seconds(span, place, _LONGEST_S),
        _factor(match["factor"], line),
    )


def _sides(kind: str, text: str, line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    mark = _BETWEEN.get(kind)
    if mark is None:
        if kind == "slow" and text == COORDINATOR:
            raise ConfigError(f"--faults: {line!r}: a coordinator does no ops")
        return (text,), ()
    left, found, right = text.partition(mark)
    who, others = tuple(left.split("&")), tuple(right.split("&"))
    if not (found and all(who) and all(others)):
        raise ConfigError(f"--faults: {line!r}: expected {_FORMS[kind]}")
    both = sorted(set(who) & set(others))
    if both:
        raise ConfigError(f"--faults: {line!r}: {both[0]} can't be on both sides")
    return who, others


def _factor(text: str | None, line: str) -> float:
    if text is None:
        return 1.0
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1.0 <= factor <= 1000.0:
        raise ConfigError(f"--faults: {line!r}: expected a factor from 1 to 1000, got {text}")
    return factor


Rate = Annotated[float, Meta(ge=0, le=1000)]  # a second
Seconds = Annotated[float, Meta(ge=0, le=3600)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All faults of a run. Sizes are means: each is drawn uniformly from 0 to twice the mean."""

    crashes: Rate = 0.0  # of a worker's process: SIGKILL
    coordinator_crashes: Rate = 0.0  # of the coordinator's; the run is resumed …
    resume_s: Seconds = 4.0  # … after so long
    pauses: Rate = 0.0  # of a process, the coordinator's among them: SIGSTOP, then SIGCONT
    pause_s: Seconds = 0.5
    starvations: Rate = 0.0  # of a process, likewise: it gets no core of its host for a while
    starve_s: Seconds = 2.0
    slowdowns: Rate = 0.0  # of a worker: ops take `slow_factor` times as long for a while
    slow_s: Seconds = 0.5
    slow_factor: Annotated[float, Meta(ge=1, le=1000)] = 5.0
    partitions: Rate = 0.0  # between two groups of processes: messages wait until it heals …
    partition_s: Seconds = 0.5
    resets: Share = 0.0  # … or connections break by it, this share of them
    breaks: Rate = 0.0  # of one connection: the oldest messages on their way are lost …
    # … and between workers, with this probability, the first of the others arrives twice
    duplicates: Share = 0.0
    delay_s: Seconds = 0.0  # added to every message
    jitter_s: Seconds = 0.0  # added to every message, drawn uniformly from 0; order is kept
    skew_s: Seconds = 0.0  # clocks of processes are off by up to this …
    drift: Annotated[float, Meta(ge=0, le=0.1)] = 0.0  # … and run fast or slow by up to this share
    slow_saves: Share = 0.0  # of all saves, snapshots among them
    slow_save_s: Seconds = 0.5
    failed_saves: Share = 0.0  # the disk is full
    torn_saves: Share = 0.0  # the process dies while it writes
    most: Annotated[int, Meta(ge=0)] = 20  # random faults in all, so that the run can end
    script: tuple[str, ...] = ()

    @property
    def scripted(self) -> list[Fault]:
        """The faults of the script. Raises `ConfigError`."""
        return [parse_line(line) for line in self.script]

    @property
    def any(self) -> bool:
        """Whether there are random faults, or a script."""
        return self != Faults(most=self.most)

    def __str__(self) -> str:
        """The text that `parse_faults` reads."""
        default = Faults()
        words = [
            f"{name}={getattr(self, name):g}"
            for name in self.__struct_fields__
            if name != "script" and getattr(self, name) != getattr(default, name)
        ]
        return "; ".join([", ".join(words)] * bool(words) + list(self.script))


#: The faults that each size belongs to.
_NEEDS = {
    "resume_s": ("coordinator_crashes", "torn_saves"),
    "pause_s": ("pauses",),
    "starve_s": ("starvations",),
    "slow_s": ("slowdowns",),
    "slow_factor": ("slowdowns",),
    "partition_s": ("partitions",),
    "resets": ("partitions",),
    "duplicates": ("breaks", "partitions"),
    "slow_save_s": ("slow_saves",),
}

#: Kinds of scripted faults that such sizes belong to as well.
_SCRIPTED = {"partition": "partitions", "break": "breaks"}


def parse_faults(text: str) -> Faults:
    """The faults in a text, or in the TOML file that it names (the same names, and `script`).

    Raises `ConfigError` for anything else, and for faults that contradict each other.
    """
    tables = _from_file(Path(text)) if text.endswith(".toml") else _from_text(text)
    try:
        faults = msgspec.convert(tables, Faults)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--faults: {_plain(str(error))}") from None
    _check_sense(faults, tables)
    return faults


def check_faults(faults: Faults, workers: Sequence[str]) -> None:
    """Raise `ConfigError` where the script names a process that the run does not have."""
    for fault in faults.scripted:
        fault.check(workers)


def _from_text(text: str) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    script: list[str] = []
    for part in filter(None, (one.strip() for one in text.replace(",", ";").split(";"))):
        name, equals, value = part.partition("=")
        if not equals:
            script.append(part)
            continue
        name = name.strip()
        if name in tables:
            raise ConfigError(f"--faults: {name} is given twice")
        tables[name] = _number(name, value.strip())
    return {**tables, "script": script} if script else tables


def _number(name: str, text: str) -> float | int:
    try:
        number = int(text) if text.isdecimal() else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"--faults: {name}={text}: expected a number")
    return number


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decode_text(read_file(path)))
    except OSError as error:
        raise ConfigError(f"--faults {path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--faults {path}: {error}") from error


def _plain(text: str) -> str:
    """Rephrase a message of msgspec's."""
    if text.startswith("Object contains unknown field"):
        name = text.split("`")[1]
        known = ", ".join(Faults.__struct_fields__)
        return f"there is no fault {name!r}; known: {known}"
    what, _, where = text.partition(" - at ")
    return f"{where.strip('`').removeprefix('$.')}: {what[0].lower()}{what[1:]}"


def _check_sense(faults: Faults, given: dict[str, Any]) -> None:
    scripted = {_SCRIPTED.get(fault.kind) for fault in faults.scripted}
    for size, needed in _NEEDS.items():
        if size in given and not any(getattr(faults, one) or one in scripted for one in needed):
            raise ConfigError(
                f"--faults: {size} says how bad {' or '.join(needed)} are, but there are none"
            )
    share = faults.slow_saves + faults.failed_saves + faults.torn_saves
    if share > 1:
        raise ConfigError(
            f"--faults: slow_saves, failed_saves and torn_saves are shares of all saves, and make "
            f"{share:g} together, expected at most 1"
        )
    if not faults.scripted and not faults.any:
        raise ConfigError(
            "--faults: nothing is to go wrong; expected rates such as crashes=2, or lines such as "
            "'crash hidden1 at 2.5s'"
        )


@dataclass(frozen=True)
class Save:
    """What happens to one save."""

    extra_s: float = 0.0  # added to its duration
    fails: bool = False  # it raises an error: the disk is full
    torn: bool = False  # the process dies while it is writing


@dataclass
class ChanceFaults:
    """Faults that strike by chance rather than at a moment: those of saves, and of clocks.

    `slow`, `fail` and `torn` are probabilities of each save; `skew_s` (seconds) and `drift` (a
    share) are the largest errors of clocks.
    """

    slow: float = 0.0
    slow_s: float = 0.0
    fail: float = 0.0
    torn: float = 0.0
    skew_s: float = 0.0
    drift: float = 0.0
    most: int = 0  # faulty saves in all
    counts: Counter[str] = field(default_factory=Counter)  # faulty saves so far, by kind
    source: random.Random = field(default_factory=lambda: random.Random(0))

    def save(self) -> Save:
        """Draw what happens to the next save."""
        if not (self.slow or self.fail or self.torn) or self.counts.total() >= self.most:
            return Save()
        draw = self.source.random()
        if draw < self.torn:
            self.counts["torn save"] += 1
            return Save(torn=True)
        if draw < self.torn + self.fail:
            self.counts["failed save"] += 1
            return Save(fails=True)
        if draw < self.torn + self.fail + self.slow:
            self.counts["slow save"] += 1
            return Save(extra_s=self.source.uniform(0.0, 2.0 * self.slow_s))
        return Save()

    def clock(self) -> Clock:
        """Draw the clock of the next process."""
        if not (self.skew_s or self.drift):
            return Clock()
        offset_s = self.source.uniform(-self.skew_s, self.skew_s)
        return Clock(offset_s, self.source.uniform(-self.drift, self.drift))
