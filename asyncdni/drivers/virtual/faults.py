"""What is to go wrong in a simulated run, as one struct, and as text.

```
crashes=2, pauses=1, pause_s=3, torn_saves=0.1; crash hidden1 at 2.5s
```

Rates are of random faults, so many a second of virtual time, each at a moment, a process and of a
size drawn from the run's seed. Lines of a script happen as they say: see `drivers.virtual.faults`.
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
    "Faults",
    "Mischance",
    "Mishap",
    "Save",
    "check_faults",
    "parse_faults",
    "parse_line",
]

# --- script --------------------------------------------------------------------------------------
#
# Single faults, as people write them:
#
# ```
# crash hidden1 at 2.5s                      pause hidden1 at 1s for 3s
# starve hidden1 at 1s for 3s
# crash coordinator at 2s for 4s             slow hidden1 by 5 at 1s for 500ms
# partition hidden1|hidden2 at 1s for 0.5s   break hidden1>hidden2 at 1s
# partition data1&hidden1|coordinator at 1s for 2s
# ```
#
# A coordinator that has crashed is followed by one that resumes the run, after what `for` says.

#: Where a line does not say.
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
class Mishap:
    """One fault. `who` are workers or "coordinator"; `others`: the other side, if there is one."""

    kind: str
    at_s: float
    who: tuple[str, ...]
    others: tuple[str, ...] = ()
    for_s: float = 0.0
    factor: float = 1.0

    def check(self, workers: Sequence[str]) -> None:
        """Raises `ConfigError` for names that nobody has."""
        for name in (*self.who, *self.others):
            if name != COORDINATOR and name not in workers:
                known = ", ".join((*workers, COORDINATOR))
                raise ConfigError(f"--faults: {self.kind} {name}: known are {known}")


def parse_line(line: str) -> Mishap:
    """Raises `ConfigError` for what is no fault."""
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
    return Mishap(
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
    """All of what may go wrong. Sizes are means: each is drawn evenly from 0 to twice that."""

    crashes: Rate = 0.0  # of a worker's process: SIGKILL
    coordinator_crashes: Rate = 0.0  # of the coordinator's; somebody resumes the run …
    resume_s: Seconds = 4.0  # … after so long
    pauses: Rate = 0.0  # of a process, the coordinator's among them: SIGSTOP, then SIGCONT
    pause_s: Seconds = 0.5
    starvations: Rate = 0.0  # of a process, likewise: others take all cores of its host for a while
    starve_s: Seconds = 2.0
    slowdowns: Rate = 0.0  # of a worker: ops take `slow_factor` times as long for a while
    slow_s: Seconds = 0.5
    slow_factor: Annotated[float, Meta(ge=1, le=1000)] = 5.0
    partitions: Rate = 0.0  # between two groups of processes: what is sent waits until it heals …
    partition_s: Seconds = 0.5
    resets: Share = 0.0  # … or connections break by it, this share of them
    breaks: Rate = 0.0  # of one connection: the oldest of what is on its way is lost …
    # … and between workers the first of the rest is delivered twice, this share of times
    duplicates: Share = 0.0
    delay_s: Seconds = 0.0  # more for every message
    jitter_s: Seconds = 0.0  # more for every message, evenly drawn from 0 to that; order is kept
    skew_s: Seconds = 0.0  # clocks of processes are off by up to so much …
    drift: Annotated[float, Meta(ge=0, le=0.1)] = 0.0  # … and go too fast or slow by up to that
    slow_saves: Share = 0.0  # of all saves, snapshots among them
    slow_save_s: Seconds = 0.5
    failed_saves: Share = 0.0  # the disk is full
    torn_saves: Share = 0.0  # the process dies in the middle of it
    most: Annotated[int, Meta(ge=0)] = 20  # random faults in all, so that a run comes to its end
    script: tuple[str, ...] = ()

    @property
    def mishaps(self) -> list[Mishap]:
        """What the script says. Raises `ConfigError`."""
        return [parse_line(line) for line in self.script]

    @property
    def any(self) -> bool:
        """Something may go wrong."""
        return self != Faults(most=self.most)

    def __str__(self) -> str:
        """As text that `parse_faults` reads."""
        default = Faults()
        words = [
            f"{name}={getattr(self, name):g}"
            for name in self.__struct_fields__
            if name != "script" and getattr(self, name) != getattr(default, name)
        ]
        return "; ".join([", ".join(words)] * bool(words) + list(self.script))


#: What a size is the size of.
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

#: Lines of a script that leave something open.
_SCRIPTED = {"partition": "partitions", "break": "breaks"}


def parse_faults(text: str) -> Faults:
    """From text as above, or from the TOML file that it names (the same names, and `script`).

    Raises `ConfigError` for what is no fault, and for faults that make no sense together.
    """
    tables = _from_file(Path(text)) if text.endswith(".toml") else _from_text(text)
    try:
        faults = msgspec.convert(tables, Faults)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--faults: {_plain(str(error))}") from None
    _check_sense(faults, tables)
    return faults


def check_faults(faults: Faults, workers: Sequence[str]) -> None:
    """Raises `ConfigError` where the script names a process that the run does not have."""
    for mishap in faults.mishaps:
        mishap.check(workers)


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
    """Of msgspec's words, ours."""
    if text.startswith("Object contains unknown field"):
        name = text.split("`")[1]
        known = ", ".join(Faults.__struct_fields__)
        return f"there is no fault {name!r}; known: {known}"
    what, _, where = text.partition(" - at ")
    return f"{where.strip('`').removeprefix('$.')}: {what[0].lower()}{what[1:]}"


def _check_sense(faults: Faults, given: dict[str, Any]) -> None:
    scripted = {_SCRIPTED.get(mishap.kind) for mishap in faults.mishaps}
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
    if not faults.mishaps and not faults.any:
        raise ConfigError(
            "--faults: nothing is to go wrong; expected rates such as crashes=2, or lines such as "
            "'crash hidden1 at 2.5s'"
        )


# --- mischance -----------------------------------------------------------------------------------
#
# What goes wrong by chance rather than at a moment: saves, and clocks.


@dataclass(frozen=True)
class Save:
    """How one save goes."""

    extra_s: float = 0.0  # that it takes longer
    fails: bool = False  # with an error: the disk is full
    torn: bool = False  # the process dies while it is writing


@dataclass
class Mischance:
    """Probabilities for each save, each by itself; how far clocks are off at most."""

    slow: float = 0.0
    slow_s: float = 0.0
    fail: float = 0.0
    torn: float = 0.0
    skew_s: float = 0.0
    drift: float = 0.0
    most: int = 0  # saves that are slow, fail or are torn
    counts: Counter[str] = field(default_factory=Counter)  # of what has happened
    source: random.Random = field(default_factory=lambda: random.Random(0))

    def save(self) -> Save:
        """Of the next save."""
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
        """Of the next process."""
        if not (self.skew_s or self.drift):
            return Clock()
        offset_s = self.source.uniform(-self.skew_s, self.skew_s)
        return Clock(offset_s, self.source.uniform(-self.drift, self.drift))
