"""The stages of a chain, driven batch after batch in one thread: for tests of what stages keep."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from asyncdni.messages import DATA
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, make_stage
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage

__all__ = ["Bits", "Line", "bits"]

Bits = dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]


def bits(state: Mapping[str, Mapping[str, Array]]) -> Bits:
    """All of it, fit for `==`."""
    return {
        stage: {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in sorted(own.items())}
        for stage, own in sorted(state.items())
    }


class Line:
    """Every worker's stage of a chain, with random batches keyed by their id."""

    def __init__(self, design: Design, lag: int = 0) -> None:
        """`lag`: batches that are forwarded ahead of the one whose gradient comes back."""
        self.design = design
        self.stages = [make_stage(design, group) for group in design.plan.groups]
        self.lag = lag
        self.poison: dict[int, float] = {}  # batch -> what its first input is
        self._groups = design.plan.groups
        self._late: set[int] = set()  # batches whose correction came

    def batch(self, batch: int) -> tuple[Array, Array]:
        meta, size = self.design.meta, self.design.plan.batch_size
        rng = np.random.default_rng(batch)
        x = rng.normal(size=(size, *meta.input_shape)).astype(self.design.experiment.run.dtype)
        y = rng.integers(0, 2, (size, meta.outputs)).astype(x.dtype)
        if batch in self.poison:
            x[0, 0] = self.poison[batch]
        return x, y

    def train(self, start: int, stop: int) -> None:
        """Batches from `start` up to `stop`, and then until nothing is in flight."""
        flight: deque[int] = deque()
        for batch in range(start, stop):
            self._forward(batch)
            flight.append(batch)
            if len(flight) > self.lag:
                self._backward(flight.popleft())
        while flight:
            self._backward(flight.popleft())
        if self.schedule("correct"):
            for stage in self.stages:
                stage.update()  # with the corrections that no batch has taken along

    def schedule(self, option: str) -> object:
        return getattr(self.design.experiment.schedule, option, None)

    def snapshot(self) -> dict[str, dict[str, Array]]:
        """Of all declared stages."""
        return {name: own for stage in self.stages for name, own in stage.snapshot().items()}

    def restore(self, state: Mapping[str, Mapping[str, Array]]) -> list[str]:
        return [note for stage in self.stages for note in stage.restore(state)]

    # --- one batch -------------------------------------------------------------------------------

    def _learns_at_once(self, stage: NumpyStage) -> bool:
        exit_ = stage._exit
        return exit_ is not None and exit_.generator is not None

    def _forward(self, batch: int) -> None:
        x, y = self.batch(batch)
        producer, h = DATA, x
        for group, stage in zip(self._groups, self.stages, strict=True):
            inputs = {producer: h}
            if group.synthetic_inputs:
                result = stage.forward(batch, {DATA: x}, {"y": y})
                stage.fit_input({**inputs, DATA: x}, {"y": y})
            else:
                result = stage.forward(batch, inputs, {"y": y})
            if self._learns_at_once(stage):
                stage.predict(batch)
                stage.backward(batch, {}, source=Source.SYNTHETIC, learn=True, send=False)
                stage.update()
            if group.exit is not None and result.activation is not None:
                producer, h = group.exit, result.activation

    def _backward(self, batch: int) -> None:
        gradients: dict[str, Array] = {}
        for group, stage in list(zip(self._groups, self.stages, strict=True))[::-1]:
            sent: dict[str, dict[str, Array]] = {}
            if not self._learns_at_once(stage):
                sent = stage.backward(batch, gradients, source=Source.TRUE, learn=True, send=True)
                if (batch + 1) % self.design.plan.per_update == 0:
                    stage.update()
            elif gradients:
                stage.fit(batch, gradients)
                sent = stage.backward(batch, gradients, source=Source.TRUE, learn=False, send=True)
                self._learn_late(stage, batch, gradients)
            producer = next((name for name in group.producers if name != DATA), None)
            gradients = sent.get(self._exit_of(producer), {}) if producer else {}
            stage.release(batch, lambda: True)

    def _learn_late(self, stage: NumpyStage, batch: int, gradients: dict[str, Array]) -> None:
        late = {"correct": Source.DIFFERENCE, "mix": Source.SHARE}
        for option, source in late.items():
            if self.schedule(option):
                stage.backward(batch, gradients, source=source, learn=True, send=False)
                stage.update()

    def _exit_of(self, worker: str) -> str:
        found = next(group.exit for group in self._groups if group.name == worker)
        assert found is not None
        return found
