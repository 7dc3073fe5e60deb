"""Times and rates as people write them: "10ms", "100Mbit/s"."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncdni.errors import ConfigError

__all__ = ["BYTES_PER_S_MAX", "BYTES_PER_S_MIN", "SECONDS_MAX", "bytes_per_second", "seconds"]

SECONDS_MAX = 60.0  # no link and no pause that is worth emulating takes longer
BYTES_PER_S_MIN = 1e3
BYTES_PER_S_MAX = 1e12

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES_PER_S = {
    "kbit/s": 1e3 / 8,
    "Mbit/s": 1e6 / 8,
    "Gbit/s": 1e9 / 8,
    "kB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/]+)")
_SHOWN_MAX = 40  # characters of what was given


def seconds(text: str, place: str, most_s: float = SECONDS_MAX) -> float:
    """`"10ms"` as 0.01; units us, ms, s, min. `place` names the value in messages.

    Raises `ConfigError` for anything else, and for more than `most_s`.
    """
    value = _convert(text, _SECONDS)
    if value is None or value > most_s:
        raise ConfigError(
            f"{place}: expected a time from 0s to {most_s:g}s, such as 10ms (units: "
            f"{', '.join(_SECONDS)}), got {_shown(text)}"
        )
    return value


def bytes_per_second(text: str, place: str) -> float:
    """`"100Mbit/s"` as 12.5e6; units kbit/s, Mbit/s, Gbit/s, kB/s, MB/s, GB/s, powers of 1000.

    Raises `ConfigError` for anything else, and for what is not between 1 kB/s and 1000 GB/s.
    """
    value = _convert(text, _BYTES_PER_S)
    if value is None or not BYTES_PER_S_MIN <= value <= BYTES_PER_S_MAX:
        raise ConfigError(
            f"{place}: expected a rate from 1kB/s to 1000GB/s, such as 100Mbit/s (units: "
            f"{', '.join(_BYTES_PER_S)}), got {_shown(text)}"
        )
    return value


def _convert(text: str, units: Mapping[str, float]) -> float | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}...")
