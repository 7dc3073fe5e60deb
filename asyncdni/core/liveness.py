"""Who has shown a sign of life, and since when not."""

from __future__ import annotations

__all__ = ["Liveness"]


class Liveness:
    """Any message counts as a sign of life; silence beyond the limit counts as death."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._heard: dict[str, float] = {}

    def heard(self, name: str, now: float) -> None:
        self._heard[name] = now

    def forget(self, name: str) -> None:
        self._heard.pop(name, None)

    def deadline(self) -> float | None:
        """When the next one will have been silent for too long."""
        return min(self._heard.values()) + self._silence_s if self._heard else None

    def silent(self, now: float) -> tuple[str, float] | None:
        """The one silent for longest, and for how long, if that is beyond the limit."""
        if not self._heard:
            return None
        name = min(self._heard, key=lambda key: self._heard[key])
        silence_s = now - self._heard[name]
        return (name, silence_s) if silence_s >= self._silence_s else None
