"""Who has shown a sign of life, and since when not.

Signs come at intervals that depend on the machine: a thread on an overloaded host may sleep for
half a second between two. So the limit adapts: silence is death once it has lasted `silence_s` and
is far beyond the longest that this worker has been silent for lately.
"""

from __future__ import annotations

import math

__all__ = ["Liveness"]

#: Times the longest silence of late that are still no sign of death …
_MARGIN = 3.0
#: … but no more than so many times the limit that was asked for.
_STRETCH_MAX = 5.0
#: How much of the longest silence is remembered with each new sign.
_MEMORY = 0.98


class Liveness:
    """Any message counts as a sign of life; silence beyond the limit counts as death."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._heard: dict[str, float] = {}
        self._longest: dict[str, float] = {}  # silence, fading
        # Nobody is silent for too long before this: with a thousand workers, to look at each of
        # them after every message would be most of a coordinator's work.
        self._not_before = math.inf

    def heard(self, name: str, now: float) -> None:
        silence_s = now - self._heard.get(name, now)
        self._longest[name] = max(silence_s, _MEMORY * self._longest.get(name, 0.0))
        self._heard[name] = now
        self._not_before = min(self._not_before, now + self._silence_s)

    def forget(self, name: str) -> None:
        self._heard.pop(name, None)
        self._longest.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._heard

    def limit_s(self, name: str) -> float:
        """The silence of this one that counts as death."""
        most = _STRETCH_MAX * self._silence_s
        return min(most, max(self._silence_s, _MARGIN * self._longest[name]))

    def deadline(self) -> float | None:
        """When to ask who is silent: not later than when the next one has been for too long."""
        return self._not_before if self._heard else None

    def silent(self, now: float) -> tuple[str, float] | None:
        """The one whose silence has been too long for the longest, and for how long it was silent;
        None where there is none."""
        if not self._heard or now < self._not_before:
            return None
        name = min(self._heard, key=self._ends)
        self._not_before = self._ends(name)
        return (name, now - self._heard[name]) if now >= self._not_before else None

    def _ends(self, name: str) -> float:
        return self._heard[name] + self.limit_s(name)
