"""How links and workers are made slow: pure arithmetic, the same for real and simulated runs.

Random numbers come from streams keyed by (seed, names), so the same experiment has the same jitter
and the same pauses again, message by message and forward by forward.
"""

from __future__ import annotations

import random

from asyncdni.schedules.base import Op, OpKind

__all__ = ["LinkDelay", "Slow"]


class LinkDelay:
    """Computes when messages from one worker to another arrive, in the order in which they are
    sent.

    ```
    sent ──► waits for the one before ──► bytes / bandwidth ──► latency + jitter ──► due
                 (bandwidth only)          (occupies the link)   (any number at once)
    ```
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        bytes_per_s: float | None = None,
        seed: int,
        sender: str,
        receiver: str,
    ) -> None:
        """`jitter_s`: the most that is added to the latency, uniformly drawn; `bytes_per_s` None:
        no limit."""
        self.latency_s = latency_s
        self.added_s = 0.0  # beside the latency, while somebody who watches the run asks for it
        self.jitter_s = jitter_s
        self.bytes_per_s = bytes_per_s
        self._random = random.Random(f"{seed}/{sender}/{receiver}/conditions")
        self._free_at = 0.0  # when the last message has left the sender
        self._due = 0.0  # when the last message is due

    def due(self, now: float, message_bytes: int) -> float:
        """Return when a message sent now is due, in seconds on the clock of `now`.

        It is never before an earlier message: a late one delays those behind it.
        """
        leaves = now
        if self.bytes_per_s is not None:
            leaves = max(now, self._free_at) + message_bytes / self.bytes_per_s
            self._free_at = leaves
        drawn_s = self._random.random() * self.jitter_s if self.jitter_s else 0.0
        self._due = max(self._due, leaves + self.latency_s + self.added_s + drawn_s)
        return self._due


class Slow:
    """Computes how long a worker must sleep after its ops to be as slow as asked. Sleep is no CPU
    time.

    `factor` (at least 1): each op takes so many times as long. `pause_s`: an additional pause after
    a forward, with probability `chance`.
    """

    def __init__(
        self,
        seed: int,
        worker: str,
        *,
        factor: float = 1.0,
        pause_s: float = 0.0,
        chance: float = 0.0,
    ) -> None:
        # Beside the factor and pauses, while somebody who watches the run asks for it: each op
        # takes so many times as long, and so many seconds more.
        self.times, self.added_s = 1.0, 0.0
        self._factor = factor
        self._pause_s = pause_s
        self._chance = chance
        self._random = random.Random(f"{seed}/{worker}/slow")

    def after(self, op: Op, wall_s: float) -> float:
        """Return the seconds to sleep after `op`, which has taken `wall_s`. Evaluations are not
        slowed."""
        if op.evaluate or op.kind in (OpKind.EVALUATE, OpKind.HOLD):
            return 0.0
        sleep_s = (self._factor * self.times - 1.0) * wall_s + self.added_s
        # Drawn for every forward, so that what ran in between does not change which ones pause.
        if op.kind is OpKind.FORWARD and self._random.random() < self._chance:
            sleep_s += self._pause_s
        return sleep_s
