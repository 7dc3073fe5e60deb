"""Synthetic: every stage updates at once from its generator's gradient (DNI, section 2).

With `target = "true"` a stage's generator is trained (T) on the true gradient when it comes back,
matched by batch id, and the stage pushes that gradient on (b) through the batch's own forward state
and today's weights. The stage without consumers has the true loss and needs no generator:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 T0 F2 P2 B2 U2 T1 .  .  .  .  .  T2
stage 1  .  F0 P0 B0 U0 T0 b0 F1 P1 B1 U1 T1 b1 F2 P2 B2 U2 T2 b2 .
stage 2  .  .  F0 B0 U0 .  .  .  F1 B1 U1 .  .  .  F2 B2 U2 .  .  .
```

With `target = "bootstrap"` (the paper's) what is sent up is the synthetic gradient pushed back
through the stage, at once: B sends, and there is no b:

```
stage 0  F0 P0 B0 U0 T0 F1 P1 B1 U1 T1 F2 P2 B2 U2 T2 .
stage 1  .  F0 P0 B0 U0 T0 F1 P1 B1 U1 T1 F2 P2 B2 U2 T2
stage 2  .  .  F0 B0 U0 .  .  F1 B1 U1 .  .  F2 B2 U2 .
```

With `correct` the difference between the true and the synthetic gradient is accumulated (C) when
the true one arrives, and applied with the next batch's update. What no batch takes along is applied
by an update of its own (U) before the barrier:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 T0 C0 F2 P2 B2 U2 .  T1 C1 .  .  .  .  .  T2 C2 U
stage 1  .  F0 P0 B0 U0 T0 C0 b0 F1 P1 B1 U1 T1 C1 b1 F2 P2 B2 U2 T2 C2 b2 U  .  .
stage 2  .  .  F0 B0 U0 .  .  .  .  F1 B1 U1 .  .  .  .  F2 B2 U2 .  .  .  .  .  .
```

With `fit_every = 2` only every second batch sends a gradient up; the others are done after U:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 T0 F2 P2 B2 U2 .  .  .  .  T2
stage 1  .  F0 P0 B0 U0 T0 b0 F1 P1 B1 U1 F2 P2 B2 U2 T2 b2 .
stage 2  .  .  F0 B0 U0 .  .  .  F1 B1 U1 .  F2 B2 U2 .  .  .
```

The first `fit_first` batches send one in any case, while generators have everything to learn.

Three batches each, then the drain of a barrier. A column is a unit of time, `.` is waiting; reading
data and messages take none.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.schedules.base import Flight, Op, OpKind, Source, View

__all__ = ["Synthetic"]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Decoupled by synthetic gradients; options as in `config.Synthetic`."""

    bootstrap: bool = False
    fit_every: int = 1
    fit_first: int = 0
    correct: bool = False
    max_in_flight: int = 256

    def next_op(self, view: View) -> Op | None:
        newest = view.newest
        if newest is not None and "U" not in newest.done:
            return self._learn(view, newest)
        if view.arrived:
            return self._use(view, view.flights[view.arrived[0]])
        if view.ready:
            if len(view.flights) >= self.max_in_flight:
                return Op(OpKind.DROP, next(iter(view.flights)), last=True)
            return Op(OpKind.FORWARD, view.ready[0])
        if view.closed and view.unapplied and not view.flights:
            return Op(OpKind.UPDATE, -1)  # late corrections that no later batch takes along
        return None

    def may_read(self, view: View) -> bool:
        return True

    def _learn(self, view: View, flight: Flight) -> Op:
        """The batch in hand: predict, learn from it, update."""
        batch, done = flight.batch, flight.done
        # A gradient goes up for this batch; its id alone decides, so that all stages agree.
        wanted = batch < self.fit_first or batch % self.fit_every == 0
        if not view.has_consumers:
            if "B" not in done:
                return Op(OpKind.BACKWARD, batch, send=wanted and view.has_producers)
            return Op(OpKind.UPDATE, batch, last=True)
        if "P" not in done:
            return Op(OpKind.PREDICT, batch)
        if "B" not in done:
            send = self.bootstrap and wanted and view.has_producers
            return Op(OpKind.BACKWARD, batch, source=Source.SYNTHETIC, send=send)
        return Op(OpKind.UPDATE, batch, last=not wanted)

    def _use(self, view: View, flight: Flight) -> Op:
        """A gradient has come back: fit the generator, correct, pass it on."""
        batch, done = flight.batch, flight.done
        relay = view.has_producers and not self.bootstrap
        if "T" not in done:
            return Op(OpKind.FIT, batch, last=not (self.correct or relay))
        if self.correct and "C" not in done:
            return Op(OpKind.BACKWARD, batch, source=Source.DIFFERENCE, send=False, last=not relay)
        return Op(OpKind.BACKWARD, batch, learn=False, last=True)
