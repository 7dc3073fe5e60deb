"""What follows from an op that has been computed: what is counted, kept, given up and sent."""

from __future__ import annotations

from typing import Any

from asyncdni.core.events import Computed, Release
from asyncdni.core.parts import Parts
from asyncdni.core.post import Post
from asyncdni.messages import DATA
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Results"]


class Results:
    """One method for each kind of op, which is called when such an op is done."""

    def __init__(self, parts: Parts, post: Post) -> None:
        self._parts = parts
        self._post = post
        self._name = parts.position.name
        self._flights = parts.flights
        self._counts = parts.counts
        self._scores: dict[str, Any] = {}  # of the test under way, by stage with a loss
        # A table, as this is asked after every op of a run.
        self._after = {
            OpKind.READ: self._read,
            OpKind.FORWARD: self._forwarded,
            OpKind.PREDICT: self._done,
            OpKind.BACKWARD: self._went_back,
            OpKind.LEARN: self._done,
            OpKind.UPDATE: self._handed_over if parts.position.sharers else self._done,
            OpKind.APPLY: self._nothing,  # the Update before it has been counted
            OpKind.FIT: self._fitted,
            OpKind.FIT_INPUT: self._nothing,  # nobody waits for that
            OpKind.EVALUATE: self._evaluated,
        }

    def note(self, event: Computed, op: Op, now: float) -> None:
        """An op is done."""
        kind = op.kind
        self._counts.ops += 1
        self._after[kind](event, op, now)
        if op.last and kind is not OpKind.EVALUATE and op.batch in self._flights.by_batch:
            self.release(op.batch)

    def release(self, batch: int) -> None:
        """Forget a batch in flight, and have its forward state let go of."""
        self._flights.release(batch)
        self._post.actions.append(Release(batch))

    def give_up(self, batch: int) -> None:
        """Wait for a batch's gradient no longer, and tell those who wait for ours."""
        self._counts.dropped += 1
        self.release(batch)
        self._post.skipped(batch)

    def _nothing(self, event: Computed, op: Op, now: float) -> None:
        pass

    def _done(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)

    def _went_back(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        self._post.gradients(event, op)

    def _handed_over(self, event: Computed, op: Op, now: float) -> None:
        """An Update of weights that others have as well: an Apply follows once theirs are here."""
        self._flights.done(op, now)
        self._parts.shares.handed_over(op.batch)
        self._post.shares(event, op)

    def _fitted(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        guard = self._parts.guard
        if guard is not None and guard.note(event.cosine):
            self._counts.fallbacks += guard.waiting
            self._post.guarded(guard.waiting, guard.mean)

    def _forwarded(self, event: Computed, op: Op, now: float) -> None:
        flights, counts, parts = self._flights, self._counts, self._parts
        flights.forwarded(op.batch, event.samples, now)
        if op.replay:
            return
        counts.batches += 1
        counts.samples += event.samples
        parts.lag.forwarded(op.batch, flights)
        without = self._post.activation(self._name, event, op, skips=parts.skips)
        for consumer in without:
            flights.skip(op.batch, consumer)
        counts.skipped += bool(without)
        if op.skip:
            self._post.skipped(op.batch)

    def _read(self, event: Computed, op: Op, now: float) -> None:
        parts = self._parts
        assert parts.host is not None
        parts.host.has_read(op)
        if DATA in parts.links.incoming:  # the host itself reads them, too
            parts.links.incoming[DATA].arrived(False, now)
            parts.inputs.add(
                op.batch,
                DATA,
                event.samples,
                event.outputs,
                evaluate=op.evaluate,
                last=op.last,
            )
        self._post.activation(DATA, event, op, skips=parts.skips and not op.evaluate)

    def _evaluated(self, event: Computed, op: Op, now: float) -> None:
        self._post.activation(self._name, event, op)
        for score in event.scores:
            if score.stage in self._scores:
                self._scores[score.stage].add(score)
            else:
                self._scores[score.stage] = score
        if op.last:
            self._post.evaluated(self._parts.barriers.current, self._scores.values())
            self._scores = {}
