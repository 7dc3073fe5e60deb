"""Local loss: every stage learns from a local head alone, and nothing comes back.

Decoupled greedy learning (Belilovsky et al. 2019, arXiv 1901.08164, section 3). P asks the head for
the gradient of its loss by the stage's activation; the last stage has the true loss:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 F2 P2 B2 U2 .
stage 1  .  F0 P0 B0 U0 F1 P1 B1 U1 F2 P2 B2 U2
stage 2  .  .  F0 B0 U0 .  F1 B1 U1 .  F2 B2 U2
```

With `replay` a stage that has no new input learns from one that it has seen (F P B U again, nothing
is sent on): the least used first, among them the freshest (the asynchronous variant of the paper,
section 4, there for all inputs; here new ones are taken in order, so that none is missed and each
counts once). Stage 2 has nothing new after its first batch:

```
stage 0  F0 P0 B0 U0 F1 P1 B1 U1 F2 P2 B2 U2 .  .  .  .  .  .  .  .
stage 1  .  F0 P0 B0 U0 F0 P0 B0 U0 F1 P1 B1 U1 F2 P2 B2 U2 .  .  .
stage 2  .  .  F0 B0 U0 F0 B0 U0 F0 B0 U0 F1 B1 U1 F1 B1 U1 F2 B2 U2
```

A column is a unit of time, `.` is waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from asyncdni.schedules.base import NEVER, Asked, Flight, Op, OpKind, Source, View
from asyncdni.schedules.options import Cycle, LocalHead, OnFull, Options, Role, Work
from asyncdni.tables import Generator, ReadoutGenerator, Table, Whole

__all__ = ["LocalLoss", "LocalLossOptions"]


class LocalLossOptions(Options, frozen=True, kw_only=True, tag="local_loss"):
    """Greedy: every stage learns from a local head alone; nothing comes back."""

    repeatable: ClassVar[bool] = True
    repeatable_if: ClassVar[str] = "while no worker dies, without replay, skipping and readout"
    synchronous: ClassVar[bool] = False
    decoupled: ClassVar[bool] = True
    cycle: ClassVar[Cycle | None] = None
    greedy: ClassVar[bool] = True
    priced_as: ClassVar[str] = "local_loss"
    run_wide: ClassVar[tuple[str, ...]] = ("on_full",)
    one_by_one: ClassVar[Mapping[str, object]] = {"on_full": "wait", "replay": 0}

    head: LocalHead = LocalHead()  # the local classifier that a stage learns from
    generator: Generator | None = None  # in place of the head: one with a loss of its own
    replay: Whole = 0  # [batches] kept to learn from again while no new one has come
    uses_max: Annotated[int, Meta(ge=2)] = 4  # how often a stage may learn from one batch
    # towards a consumer that takes no more activations: wait for it, or skip it and learn on
    on_full: OnFull = "wait"

    def rule(self, role: Role) -> LocalLoss:
        return LocalLoss(send_at_once=role.send_at_once)

    @property
    def learns_alone(self) -> bool:
        return True

    @property
    def repeats(self) -> bool:
        return super().repeats and not isinstance(self.generator, ReadoutGenerator)

    @property
    def asked(self) -> Asked:
        return NEVER

    @property
    def predictor(self) -> Generator | LocalHead:
        return self.generator or self.head

    @property
    def models(self) -> Mapping[str, Table]:
        return {"generator": self.generator} if self.generator else {"head": self.head}

    def conflicts(self) -> Iterator[str]:
        if self.generator is not None and not self.generator.in_torch:
            yield (
                f"schedule.generator: no gradient comes back that a {self.generator.title} could "
                "learn from; expected one with a loss of its own ('module', 'readout'), or a head"
            )
        if isinstance(self.generator, ReadoutGenerator) and self.generator.map:
            yield (
                "schedule.generator.map: no gradient comes back that the map could be fitted to; "
                "expected false, or schedule.name = 'synthetic'"
            )

    def conflicts_with_locked(self, stage: str, *, waits: bool) -> Iterator[str]:
        if waits and self.replay:
            yield (f"schedule.replay: stage {stage} is locked to its consumers, which rules it out")

    def work(self, *, exits: bool, relays: bool) -> Work:
        return Work({"P": 1.0, "B": 1.0} if exits else {"B": 1.0})

    def rehearsed(self) -> LocalLossOptions:
        return msgspec.structs.replace(self, replay=0)


@dataclass(frozen=True, slots=True)
class LocalLoss:
    """Learn at once, from the head or the own loss."""

    send_at_once: bool = False  # producers are locked to this stage: they learn from its gradient

    def next_op(self, view: View) -> Op | None:
        newest = view.newest
        if newest is not None:
            return self._learn(view, newest)
        if view.ready:
            return Op(OpKind.FORWARD, view.ready[0])
        if view.replayable and not view.closed:
            return Op(OpKind.FORWARD, view.replayable[0], replay=True)
        return None

    def may_read(self, view: View) -> bool:
        return True

    def _learn(self, view: View, flight: Flight) -> Op:
        batch, done = flight.batch, flight.done
        if view.has_consumers and "P" not in done:
            return Op(OpKind.PREDICT, batch)
        if "B" not in done:
            source = Source.SYNTHETIC if view.has_consumers else Source.TRUE
            send = self.send_at_once and view.has_producers
            return Op(OpKind.BACKWARD, batch, source=source, send=send)
        return Op(OpKind.UPDATE, batch, last=True)
