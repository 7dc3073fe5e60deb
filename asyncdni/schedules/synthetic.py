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

The first `fit_first` batches send one in any case, while generators have everything to learn. With
a generator that learns without gradients (`readout`) no batch sends one.

With `mix` the true gradient's share is accumulated (M) when it arrives and applied with the next
batch's update, as a correction is; the synthetic gradient has the rest. `mix = 1` asks no generator
and is `delayed`:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 T0 M0 F2 P2 B2 U2 .  T1 M1 .  .  .  .  .  T2 M2 U
stage 1  .  F0 P0 B0 U0 T0 M0 b0 F1 P1 B1 U1 T1 M1 b1 F2 P2 B2 U2 T2 M2 b2 U  .  .
stage 2  .  .  F0 B0 U0 .  .  .  .  F1 B1 U1 .  .  .  .  F2 B2 U2 .  .  .  .  .  .
```

With `update_probability` a stage learns from a batch only where its draw says so (the paper's
section 3.1.3), and otherwise forwards it alone; what comes back is fitted to and passed on all the
same. Where the loss does not learn, no gradient comes. Stage 0 does not learn from batch 1, stage 2
not from batch 2:

```
stage 0  F0 P0 B0 U0 F1 F2 P2 B2 U2 T0 F3 P3 B3 U3 P1 T1 .  .  .  .  .  .  .  T3
stage 1  .  F0 P0 B0 U0 T0 b0 F1 P1 B1 U1 T1 b1 F2 P2 B2 U2 F3 P3 B3 U3 T3 b3 .
stage 2  .  .  F0 B0 U0 .  .  .  F1 B1 U1 .  .  .  F2 .  .  .  F3 B3 U3 .  .  .
```

With `synthetic_inputs` (complete unlock, section 2) a stage gets the network's input with the data
and forwards what its input model makes of it, without waiting for the stage before; the true
activation trains the input model (S) when it comes:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 T0 F2 P2 B2 U2 .  T1 .  .  .  .  .  .  T2
stage 1  F0 P0 B0 U0 T0 b0 S0 S1 F1 P1 B1 U1 T1 b1 S2 F2 P2 B2 U2 T2 b2 .
stage 2  F0 B0 U0 S0 F1 B1 U1 .  .  S1 F2 B2 U2 .  .  .  S2 .  .  .  .  .
```

While the guard says so a stage waits for the true gradient, one batch at a time, learns from that,
and goes on asking and fitting its generator, so that the guard can tell when it agrees again.
Stage 0 waits here:

```
stage 0  F0 .  .  .  .  .  .  P0 T0 B0 U0 F1 .  .  .  .  .  .  P1 T1 B1 U1
stage 1  .  F0 P0 B0 U0 T0 b0 .  .  .  .  .  F1 P1 B1 U1 T1 b1 .  .  .  .
stage 2  .  .  F0 B0 U0 .  .  .  .  .  .  .  .  F1 B1 U1 .  .  .  .  .  .
```

Three batches each, then the drain of a barrier. A column is a unit of time, `.` is waiting; reading
data and messages take none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from asyncdni.schedules.base import ALWAYS, NEVER, Asked, Flight, Op, OpKind, Source, View, draw
from asyncdni.schedules.options import Cycle, Guard, InputModel, OnFull, Options, Role, Work
from asyncdni.tables import Count, ErrorGenerator, Fraction, Generator, Table, Whole

__all__ = ["USUAL_LAG", "Synthetic", "SyntheticOptions"]

#: Batches whose gradient a stage awaits before it gives the oldest up.
USUAL_LAG = 256
#: A rarer fit is measured this often. An op takes as long, however often it is done.
_FIT_EVERY_MEASURED = 4


class SyntheticOptions(Options, frozen=True, kw_only=True, tag="synthetic"):
    """Update at once from the generator's gradient; train it on what comes back."""

    repeatable: ClassVar[bool] = False  # what an update sees goes by when messages arrive
    synchronous: ClassVar[bool] = False
    decoupled: ClassVar[bool] = True
    cycle: ClassVar[Cycle | None] = None
    ahead: ClassVar[bool] = True
    run_wide: ClassVar[tuple[str, ...]] = (
        "target",
        "fit_every",
        "fit_first",
        "mix",
        "update_probability",
        "synthetic_inputs",
        "on_full",
    )
    one_by_one: ClassVar[Mapping[str, object]] = {
        "on_full": "wait",
        "update_probability": 1,
        "correct": False,
        "mix": 0,
        "guard": None,
    }

    # what generators learn from: true gradients, synthetic ones that the next generator makes
    # ("bootstrap"), or each of them for half of the batches
    target: Literal["true", "bootstrap", "half"] = "true"
    generator: Generator = ErrorGenerator()  # predicts the gradient that a stage learns from
    # [batches] one batch in this many sends its gradient up, and generators learn from those alone
    fit_every: Count = 1
    # [batches] at the start of training send a gradient up in any case, while generators are new
    fit_first: Whole = 0
    # add the true gradient minus the synthetic one to a later update, once the true one is here
    correct: bool = False
    mix: Fraction = 0.0  # share of the true gradient in an update; the rest is synthetic
    # a stage learns from a batch with this probability, and only passes it on otherwise
    update_probability: Annotated[float, Meta(gt=0, le=1)] = 1.0
    synthetic_inputs: bool = False  # predict activations too, so that no stage waits for one
    input_model: InputModel = InputModel()  # predicts them
    guard: Guard | None = None  # wait for true gradients while synthetic ones disagree with them
    on_full: OnFull = "wait"

    def rule(self, role: Role) -> Synthetic:
        return Synthetic(
            bootstrap=self.target == "bootstrap",
            half=self.target == "half",
            asked=self.asked,
            correct=self.correct,
            mix=self.mix,
            draws=self._draws(role),
            send_at_once=role.send_at_once,
            receives_synthetic=self.target != "true" or role.receives_synthetic,
        )

    def _draws(self, role: Role) -> Callable[[int], bool] | None:
        """Whether the stage learns from a batch; keyed by its name, so that no two agree."""
        if self.update_probability == 1:
            return None
        digest = hashlib.sha256(f"{role.seed}/{role.name}/update".encode()).digest()
        return partial(_below, int.from_bytes(digest[:8], "little"), self.update_probability)

    def lag_usual(self, depth: int) -> int:
        return USUAL_LAG if self.learns_alone else depth

    @property
    def learns_alone(self) -> bool:
        return self.mix < 1

    @property
    def asked(self) -> Asked:
        """Whoever has a generator that learns without gradients asks for none, unless something
        else needs them."""
        needed = self.generator.fits or self.correct or self.mix > 0 or self.guard is not None
        return Asked(self.fit_every, self.fit_first) if needed else NEVER

    @property
    def only_fits(self) -> bool:
        return not self.correct and self.mix == 0 and self.guard is None

    @property
    def sends_synthetic(self) -> bool:
        return self.target != "true"

    @property
    def predictor(self) -> Generator | None:
        return self.generator if self.mix < 1 else None

    @property
    def input_predictor(self) -> InputModel | None:
        return self.input_model if self.synthetic_inputs else None

    @property
    def models(self) -> Mapping[str, Table]:
        return {"generator": self.generator, "input_model": self.input_model}

    def conflicts(self) -> Iterator[str]:
        true, guard = self.target == "true", self.guard
        if self.mix > 0 and not true:
            yield (
                "schedule.mix: a share of the true gradient needs target = 'true', got "
                f"{self.target!r}"
            )
        if self.mix > 0 and self.fit_every > 1:
            yield (
                f"schedule.mix: with fit_every = {self.fit_every} most batches get no true "
                "gradient to take a share of; expected fit_every = 1"
            )
        if self.mix > 0 and self.correct:
            yield (
                "schedule.mix: a correction replaces the synthetic gradient already; expected one "
                "of mix and correct"
            )
        if self.mix == 1 and self.update_probability < 1:
            yield (
                "schedule.mix: with mix = 1 nothing is synthetic, and update_probability belongs "
                "to what is; expected mix below 1"
            )
        if self.mix == 1 and guard is not None:
            yield (
                "schedule.guard: with mix = 1 no generator is asked, so there is none to guard; "
                "expected mix below 1"
            )
        if guard is not None and not true:
            yield (
                "schedule.guard: it compares with true gradients, so it needs target = 'true', got "
                f"{self.target!r}"
            )
        if guard is not None and guard.above < guard.below:
            yield (
                "schedule.guard: above must not be less than below, or a stage would go back and "
                "forth"
            )

    def conflicts_with_locked(self, stage: str, *, waits: bool) -> Iterator[str]:
        if self.synthetic_inputs:
            yield f"schedule.synthetic_inputs: stage {stage} is locked, which rules it out"
        if waits and self.mix:
            yield f"schedule.mix: stage {stage} is locked to its consumers, which rules it out"
        if waits and self.update_probability < 1:
            yield (
                f"schedule.update_probability: stage {stage} is locked to its consumers and needs "
                "a gradient of each batch; expected 1"
            )

    def conflicts_at_once(self, stage: str) -> Iterator[str]:
        if self.guard is not None and self.fit_every > 1:
            yield (
                f"schedule.guard: stages locked to {stage} need a gradient of each batch, also "
                "while it waits; expected fit_every = 1"
            )

    def work(self, *, exits: bool, relays: bool) -> Work:
        share = 1.0 / self.fit_every if self.asked.every else 0.0
        sends_on_learning = not exits or self.target == "bootstrap"
        ops = {"B": 1.0}
        if exits:
            ops |= {"P": 1.0, "T": share}
            if self.target == "true":
                ops["b"] = share
            if self.correct:
                ops["C"] = share
        return Work(ops, sending=share if sends_on_learning else 0.0)

    def unpriced(self) -> str:
        if self.target == "half":
            return "schedule.target is 'half'"
        plain = SyntheticOptions()
        names = ("guard", "synthetic_inputs", "update_probability", "mix")
        found = (name for name in names if getattr(self, name) != getattr(plain, name))
        return next((f"schedule.{name} is set" for name in found), "")

    def rehearsed(self) -> SyntheticOptions:
        return msgspec.structs.replace(self, fit_every=min(self.fit_every, _FIT_EVERY_MEASURED))

    def settled(self) -> SyntheticOptions:
        return msgspec.structs.replace(self, fit_first=0)


def _below(key: int, probability: float, batch: int) -> bool:
    return draw(key, batch) < probability


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Decoupled by synthetic gradients."""

    bootstrap: bool = False
    half: bool = False  # every second batch that sends a gradient sends a bootstrapped one
    asked: Asked = ALWAYS  # for gradients, by the producers
    correct: bool = False
    mix: float = 0.0
    draws: Callable[[int], bool] | None = None  # this stage learns from the batch; None: from all
    send_at_once: bool = False  # producers are locked to this stage: they learn from its gradient
    receives_synthetic: bool = False  # what comes back is no true gradient; for reports alone

    def next_op(self, view: View) -> Op | None:
        newest = view.newest
        learned = newest is None or "U" in newest.done
        if newest is not None and not learned and self._learns_at_once(view, newest):
            return self._learn(view, newest)
        if view.arrived:
            return self._use(view, view.flights[view.arrived[0]])
        for batch in view.hopeless:
            return Op(OpKind.DROP, batch, last=True)
        if view.true_inputs:
            return Op(OpKind.FIT_INPUT, view.true_inputs[0])
        ready = view.ready
        if ready and (learned or not view.waiting):
            return self._forward(view, ready[0])
        if view.closed and view.unapplied and not view.flights:
            return Op(OpKind.UPDATE, -1)  # late corrections that no later batch takes along
        return None

    def may_read(self, view: View) -> bool:
        return True

    # --- the batch in hand -----------------------------------------------------------------------

    def _forward(self, view: View, batch: int) -> Op:
        """What no gradient is asked of and nothing is learned from is done with its forward."""
        if self._drawn(batch) and (self._predicts(view) or not view.has_consumers):
            return Op(OpKind.FORWARD, batch)
        asked = self.asked.of(batch)
        if not view.has_consumers:
            return Op(OpKind.FORWARD, batch, last=True, skip=asked)
        skip = asked and self._bootstrapped(batch) and not self._drawn(batch)
        return Op(OpKind.FORWARD, batch, last=not asked, skip=skip)

    def _learns_at_once(self, view: View, flight: Flight) -> bool:
        """Its own update, which is not done, needs no true gradient from elsewhere."""
        if "T" in flight.done or not self._drawn(flight.batch):
            return False
        return self._predicts(view) or not view.has_consumers

    def _predicts(self, view: View) -> bool:
        return self.mix < 1 and not view.waiting

    def _learn(self, view: View, flight: Flight) -> Op:
        """The batch in hand: predict, learn from it, update."""
        batch, done = flight.batch, flight.done
        asked = self.asked.of(batch)
        if not view.has_consumers:
            if "B" not in done:
                send = view.has_producers and (asked or self.send_at_once)
                return Op(OpKind.BACKWARD, batch, send=send)
            return Op(OpKind.UPDATE, batch, last=True)
        if "P" not in done:
            return Op(OpKind.PREDICT, batch)
        if "B" not in done:
            send = view.has_producers and self._sends_at_once(batch)
            return Op(OpKind.BACKWARD, batch, source=Source.SYNTHETIC, send=send)
        return Op(OpKind.UPDATE, batch, last=not asked)

    # --- a gradient has come back ----------------------------------------------------------------

    def _use(self, view: View, flight: Flight) -> Op:
        """Fit the generator, learn what is left to learn, pass it on."""
        batch, done = flight.batch, flight.done
        drawn = self._drawn(batch)
        late = drawn and "U" not in done  # its update waited for this gradient
        relay = view.has_producers and not self._sends_at_once(batch) and not late
        more = drawn and not late and (self.correct or self.mix > 0)
        if self.mix < 1:
            if "P" not in done:
                return Op(OpKind.PREDICT, batch)
            if "T" not in done:
                return Op(OpKind.FIT, batch, last=not (late or relay or more))
        if late:
            if "B" not in done:
                return Op(OpKind.BACKWARD, batch, send=view.has_producers)
            return Op(OpKind.UPDATE, batch, last=True)
        source = Source.DIFFERENCE if self.correct else Source.SHARE
        if more and not ("C" in done or "M" in done):
            return Op(OpKind.BACKWARD, batch, source=source, send=False, last=not relay)
        return Op(OpKind.BACKWARD, batch, learn=False, last=True)

    # --- by the batch's id -----------------------------------------------------------------------

    def _drawn(self, batch: int) -> bool:
        return self.draws is None or self.draws(batch)

    def _bootstrapped(self, batch: int) -> bool:
        """What is sent up for it is synthetic, pushed back through the stage at once."""
        return self.bootstrap or (self.half and batch // max(1, self.asked.every) % 2 == 1)

    def _sends_at_once(self, batch: int) -> bool:
        return self.send_at_once or (self._bootstrapped(batch) and self.asked.of(batch))
