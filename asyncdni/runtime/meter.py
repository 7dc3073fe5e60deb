"""Where a worker's time goes while it trains. Evaluation, saving and start-up are left out."""

from __future__ import annotations

import time

from asyncdni.schedules.base import OpKind

__all__ = ["Meter"]

_GENERATOR = frozenset({OpKind.PREDICT, OpKind.FIT})


class Meter:
    """Seconds by purpose, between `resume` and `pause`.

    compute_s, generator_s: wall time inside ops of layers (with reading data) and of the generator.
    op_cpu_s: CPU time of this thread inside all ops; on shared cores it is less than the wall time.
    transport_s: encoding, decoding, sending and receiving. wait_s: nothing to do, nothing here.
    cpu_s: CPU time of the whole process, ZeroMQ's threads included.
    gradient_cosine: mean agreement of the synthetic gradients that were applied with the true ones
    that came back; target_cosine in its place where what comes back is itself synthetic.
    """

    def __init__(self, *, bootstrapped: bool = False) -> None:
        self._agreement = "target_cosine" if bootstrapped else "gradient_cosine"
        self.compute_s = 0.0
        self.generator_s = 0.0
        self.op_cpu_s = 0.0
        self.transport_s = 0.0
        self.wait_s = 0.0
        self._wall_s = 0.0
        self._cpu_s = 0.0
        self._since: tuple[float, float] | None = None
        self._cosine_sum = 0.0
        self._cosines = 0

    @property
    def running(self) -> bool:
        return self._since is not None

    def resume(self) -> None:
        """Training goes on."""
        if self._since is None:
            self._since = (time.perf_counter(), time.process_time())

    def pause(self) -> None:
        """A barrier: all is drained."""
        if self._since is not None:
            self._wall_s, self._cpu_s = self._totals()
            self._since = None

    def op(self, kind: OpKind, wall_s: float, cpu_s: float) -> None:
        if self._since is None:
            return
        self.op_cpu_s += cpu_s
        if kind in _GENERATOR:
            self.generator_s += wall_s
        else:
            self.compute_s += wall_s

    def waited(self, wall_s: float) -> None:
        """For something to arrive, as there was nothing else to do."""
        if self._since is not None:
            self.wait_s += wall_s

    def moved(self, wall_s: float) -> None:
        """Messages sent or received, or looked for."""
        if self._since is not None:
            self.transport_s += wall_s

    def cosine(self, value: float | None) -> None:
        """Agreement of a synthetic gradient with the true one that came back."""
        if value is not None:
            self._cosine_sum += value
            self._cosines += 1

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        wall_s, cpu_s = self._totals()
        busy_s = self.compute_s + self.generator_s
        return {
            "wall_s": wall_s,
            "busy_fraction": busy_s / wall_s if wall_s > 0 else None,
            "compute_s": self.compute_s,
            "generator_s": self.generator_s,
            "transport_s": self.transport_s,
            "wait_s": self.wait_s,
            "op_cpu_s": self.op_cpu_s,
            "cpu_s": cpu_s,
            self._agreement: self._cosine_sum / self._cosines if self._cosines else None,
        }

    def _totals(self) -> tuple[float, float]:
        if self._since is None:
            return self._wall_s, self._cpu_s
        wall_s = self._wall_s + time.perf_counter() - self._since[0]
        return wall_s, self._cpu_s + time.process_time() - self._since[1]
