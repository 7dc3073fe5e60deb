"""The exit of a stage, where gradients of its activation arrive or a generator predicts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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

#: Names, in place of a consumer, a gradient that is predicted or a late correction.
_SYNTHETIC = ""
#: Sources of late parts of an update. Their backward leaves out the stage's own loss, and their
#: gradients are means over their batch.
LATE = (Source.DIFFERENCE, Source.SHARE)
#: The agreement is measured on one fit in so many, as it costs three passes over a gradient. The
#: number is odd: with `target = "half"` an even one would measure targets of one kind only.
AGREEMENT_EVERY = 7


class Exit:
    """The exit at one block, whose activation leaves the stage."""

    def __init__(
        self,
        block: Block,
        generator: Generator | None,
        *,
        mix: float,
        agreement_every: int,
        steps: int = 0,
    ) -> None:
        """Args:
        mix: the share of the true gradient in an update, from 0 to 1.
        agreement_every: the agreement is measured on one fit in so many.
        steps: the length of windows whose steps have targets of their own; 0: there are none.
        """
        self.block = block
        self.generator = generator
        self.fits = 0
        self._mix = mix
        self._agreement_every = agreement_every
        shape = block.node.output_shape
        #: Whether the activation has the time axis of the targets: the generator then gets each
        #: step as a row.
        self._timed = bool(steps) and len(shape) > 1 and shape[0] == steps
        #: Whether the generator takes samples as they are instead of rows.
        self._whole: bool = getattr(generator, "whole", False)

    # --- gradients -------------------------------------------------------------------------------

    def gradients(
        self, batch: int, slot: StageSlot, gradients: Mapping[str, Array], source: Source
    ) -> dict[str, Array]:
        """Return the gradients that a backward starts from, by consumer: those that came (`source`
        TRUE), the predicted one, or a late correction."""
        self._check(slot, gradients)
        if source is Source.TRUE:
            return dict(gradients)
        if source is Source.SYNTHETIC:
            return {_SYNTHETIC: self._synthetic(slot)}
        late = self._late(slot, gradients, source)
        fault = self.block.watch.fault("late_gradient", norm(late))
        if fault is None:
            return {_SYNTHETIC: late}
        # It is left out: it would spoil the update of the sound batch that it is added to.
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
        # The mean over samples, so that it can be added to a batch of any size.
        np.multiply(true if source is Source.SHARE else late, share / slot.samples, out=late)
        return late

    def _synthetic(self, slot: StageSlot) -> Array:
        """Return the prediction, times its share where a mix takes the rest from the true
        gradient."""
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
        """Keep the predicted gradient in the slot. It is NaN where the generator fails with a
        `NumericalError` that is left out, so that the update is left out as well."""
        assert self.generator is not None
        h = self._activation(slot)
        if self._whole:
            slot.generator["batch"], slot.generator["context"] = batch, slot.context
        try:
            predicted = self._predicted(self.generator, h, slot)
        except NumericalError as error:
            self._fit_left_out(batch, error)
            slot.prediction = np.full_like(h, np.nan)
        else:
            slot.prediction = predicted.reshape(h.shape)

    def _predicted(self, generator: Generator, h: Array, slot: StageSlot) -> Array:
        """Return the predicted gradient as rows. It is zero at steps that do not count, for a
        generator with a loss of its own."""
        flat, y = self._rows(h), slot.context["y"]
        if self._timed and not self._whole:
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
        """Return the array as the generator takes it: with one row per sample or per step, or as it
        is."""
        if self._whole:
            return array
        count = array.shape[0] * array.shape[1] if self._timed else len(array)
        return array.reshape(count, -1)

    def _chosen(self, generator: Generator, slot: StageSlot) -> Array | None:
        """Return the indices of the rows that a generator with a loss of its own may learn from;
        None: all."""
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

    def adopt(self, version: int, weights: Mapping[str, Array]) -> None:
        """See `stages.base.Stage.adopt`."""
        generator: Any = self.generator  # one that reads out
        generator.readout.adopt(version, weights)

    def _fit_left_out(self, batch: int, error: NumericalError) -> None:
        what = f"the generator of stage {self.block.node.name}, batch {batch}: {error}"
        self.block.watch.fit_left_out(what)


def in_order(block: Block, gradients: Mapping[str, Array]) -> list[Array]:
    """Return the gradients of the block's activation, in the order in which its consumers are
    declared."""
    names = (*block.node.consumers, _SYNTHETIC)
    return [gradients[name] for name in names if name in gradients]


def _compare(prediction: Array, true: Array) -> Agreement | None:
    """Return the agreement of a prediction p with the true gradient g; None where one of them is
    not finite, as that would spoil a mean over many batches. |p - g|² is computed from three
    products, without an array of differences."""
    p, g = prediction.ravel(), true.ravel()
    pp, gg, pg = float(np.dot(p, p)), float(np.dot(g, g)), float(np.dot(p, g))
    if not (math.isfinite(pp) and math.isfinite(gg)):
        return None
    apart = max(0.0, pp - 2 * pg + gg)  # rounding may make it negative
    norms = math.sqrt(pp * gg)
    return Agreement(
        cosine=pg / norms if norms > 0 else 0.0,
        relative_error=math.sqrt(apart / gg) if gg > 0 else 0.0,
        loss=apart / len(true),
    )
