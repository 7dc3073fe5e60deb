"""Single faults, as people write them:

```
crash hidden1 at 2.5s                      pause hidden1 at 1s for 3s
starve hidden1 at 1s for 3s
crash coordinator at 2s for 4s             slow hidden1 by 5 at 1s for 500ms
partition hidden1|hidden2 at 1s for 0.5s   break hidden1>hidden2 at 1s
partition data1&hidden1|coordinator at 1s for 2s
```

A coordinator that has crashed is followed by one that resumes the run, after what `for` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from asyncdni.errors import ConfigError
from asyncdni.messages import COORDINATOR
from asyncdni.quantities import seconds

__all__ = ["RESUMED_AFTER_S", "Mishap", "parse_line"]

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
