"""The exit of a stage: what its activation's consumers send back, or a generator in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from asyncdni.errors import NumericalError, RemoteProtocolError
from asyncdni.nn.base import Array, rows
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.error import ErrorGenerator, LocalHead
from asyncdni.nn.losses import by_step, counted
from asyncdni.nn.optimizers import norm
from asyncdni.schedules.base import Source
from asyncdni.stages.base import Agreement
from asyncdni.stages.numpy.block import Block, StageSlot, add_in_order

__all__ = ["AGREEMENT_EVERY", "LATE", "Exit", "in_order"]

#: Stands for the consumers outside, where their gradient is predicted or corrected.
_SYNTHETIC = ""
#: Late parts of an update: they come without the stage's own loss, as means over their batch.
LATE = (Source.DIFFERENCE, Source.SHARE)
#: It costs three passes over a gradient: it is measured on one fit in so many. An odd number, or
#: with `target = "half"` it would be measured on targets of one kind alone.
AGREEMENT_EVERY = 7


class Exit:
    """Of one block, whose activation leaves the stage."""

    def __init__(
        self,
        block: Block,
        generator: Generator | None,
        *,
        mix: float,
        agreement_every: int,
        steps: int = 0,
    ) -> None:
        """`mix`: the true gradient's share; `agreement_every`: fits from one measurement of the
        generator to the next; `steps`: of windows whose steps have targets of their own."""
        self.block = block
        self.generator = generator
        self.fits = 0
        self._mix = mix
        self._agreement_every = agreement_every
        shape = block.node.output_shape
        #: The activation has a time axis as the targets have: each step is a row to the generator.
        self._timed = bool(steps) and len(shape) > 1 and shape[0] == steps

    # --- gradients -------------------------------------------------------------------------------

    def gradients(
        self, batch: int, slot: StageSlot, gradients: Mapping[str, Array], source: Source
    ) -> dict[str, Array]:
        """What a backward starts from, by consumer: `gradients` that came, or instead of them."""
        self._check(slot, gradients)
        if source is Source.TRUE:
            return dict(gradients)
        if source is Source.SYNTHETIC:
            return {_SYNTHETIC: self._synthetic(slot)}
        late = self._late(slot, gradients, source)
        fault = self.block.watch.fault("late_gradient", norm(late))
        if fault is None:
            return {_SYNTHETIC: late}
        # It would take the update of a sound batch along with it.
        what = f"the late gradient of stage {self.block.node.name} {fault} at batch {batch}"
        self.block.watch.fit_left_out(what)
        return {}

    def _check(self, slot: StageSlot, gradients: Mapping[str, Array]) -> None:
        y = self._activation(slot)
        for name, grad in gradients.items():
            if grad.shape != y.shape or grad.dtype != y.dtype:
                raise RemoteProtocolError(
                    f"stage {self.block.node.name} got a gradient {grad.dtype} {grad.shape} from "
                    f"{name}, expected {y.dtype} {y.shape}"
                )

    def _activation(self, slot: StageSlot) -> Array:
        y = slot.blocks[self.block.node.name].y
        assert y is not None
        return y

    def _late(self, slot: StageSlot, gradients: Mapping[str, Array], source: Source) -> Array:
        true = self._true(slot, gradients)
        late = rows(slot.own, "late", true.shape, true.dtype)
        if source is Source.DIFFERENCE:
            assert slot.prediction is not None, "a synthetic gradient was not asked for"
            np.subtract(true, slot.prediction, out=late)
        share = self._mix if source is Source.SHARE else 1.0
        # A mean over samples: it goes with a batch of any size.
        np.multiply(true if source is Source.SHARE else late, share / slot.samples, out=late)
        return late

    def _synthetic(self, slot: StageSlot) -> Array:
        """The prediction, or what a mix leaves of it."""
        assert slot.prediction is not None, "a synthetic gradient was not asked for"
        if not self._mix:
            return slot.prediction
        mixed = rows(slot.own, "mixed", slot.prediction.shape, slot.prediction.dtype)
        return np.multiply(slot.prediction, 1.0 - self._mix, out=mixed)

    def _true(self, slot: StageSlot, gradients: Mapping[str, Array]) -> Array:
        terms = in_order(self.block, gradients)
        if len(terms) == 1:
            return terms[0]
        return add_in_order(terms, rows(slot.own, "true", terms[0].shape, terms[0].dtype))

    # --- generator -------------------------------------------------------------------------------

    def predict(self, batch: int, slot: StageSlot) -> None:
        """Keep the generator's gradient in the slot; NaN where it has none that is a number."""
        assert self.generator is not None
        h = self._activation(slot)
        try:
            predicted = self._predicted(self.generator, h, slot)
        except NumericalError as error:
            self._fit_left_out(batch, error)
            slot.prediction = np.full_like(h, np.nan)  # so that the update is left out as well
        else:
            slot.prediction = predicted.reshape(h.shape)

    def _predicted(self, generator: Generator, h: Array, slot: StageSlot) -> Array:
        """The gradient as rows; zero at steps that an own loss of the generator does not see."""
        flat, y = self._rows(h), slot.context["y"]
        if self._timed:
            y = by_step(y)
        scale, chosen = self.block.rate_scale(), self._chosen(generator, slot)
        if chosen is None:
            return generator.predict(flat, y, slot.generator, scale)
        found = rows(slot.own, "predicted", flat.shape, flat.dtype)
        found[...] = 0
        if len(chosen):
            found[chosen] = generator.predict(flat[chosen], y[chosen], slot.generator, scale)
        return found

    def _rows(self, array: Array) -> Array:
        """A row a sample, or a step: what the generator sees."""
        count = array.shape[0] * array.shape[1] if self._timed else len(array)
        return array.reshape(count, -1)

    def _chosen(self, generator: Generator, slot: StageSlot) -> Array | None:
        """Rows that a generator with a loss of its own may learn from; None: all."""
        own_loss = isinstance(generator, ErrorGenerator | LocalHead)
        return counted(slot.context.get("mask")) if own_loss and self._timed else None

    def fit(self, batch: int, slot: StageSlot, gradients: Mapping[str, Array]) -> Agreement | None:
        """See `stages.base.Stage.fit`."""
        assert self.generator is not None
        true = self._true(slot, gradients)
        self.fits += 1
        agreement = None
        measured = (self.fits - 1) % self._agreement_every == 0
        if measured and slot.prediction is not None:
            agreement = _compare(slot.prediction, true)
        fault = self.block.watch.fault("true_gradient", norm(true) / slot.samples)
        try:
            if fault is not None:
                raise NumericalError(f"the true gradient that came back {fault}")
            flat, chosen = self._rows(true), self._chosen(self.generator, slot)
            if chosen is None or len(chosen):
                flat = flat if chosen is None else flat[chosen]
                self.generator.fit(flat, slot.generator, self.block.rate_scale())
        except NumericalError as error:
            self._fit_left_out(batch, error)
        return agreement

    def _fit_left_out(self, batch: int, error: NumericalError) -> None:
        what = f"the generator of stage {self.block.node.name}, batch {batch}: {error}"
        self.block.watch.fit_left_out(what)


def in_order(block: Block, gradients: Mapping[str, Array]) -> list[Array]:
    """The gradients of the block's activation as its consumers are declared."""
    names = (*block.node.consumers, _SYNTHETIC)
    return [gradients[name] for name in names if name in gradients]


def _compare(prediction: Array, true: Array) -> Agreement | None:
    """|p - g|² is worked out from three products, without an array of differences. None where one
    of both is not finite: a mean over many batches would remember nothing else."""
    p, g = prediction.ravel(), true.ravel()
    pp, gg, pg = float(np.dot(p, p)), float(np.dot(g, g)), float(np.dot(p, g))
    if not (math.isfinite(pp) and math.isfinite(gg)):
        return None
    apart = max(0.0, pp - 2 * pg + gg)  # rounding
    norms = math.sqrt(pp * gg)
    return Agreement(
        cosine=pg / norms if norms > 0 else 0.0,
        relative_error=math.sqrt(apart / gg) if gg > 0 else 0.0,
        loss=apart / len(true),
    )
