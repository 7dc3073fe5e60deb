"""`fit_every` skips work, and changes nothing else: exact statements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networks
import numpy as np
import pytest

from asyncdni.core.events import Finish
from asyncdni.data import load
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import DATA, Gradient
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.plan import build as models
from asyncdni.plan.build import Design, make_stage
from asyncdni.schedules.base import Source

SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}

Bits = dict[str, dict[str, bytes]]


def bits(weights: Mapping[str, Mapping[str, Array]]) -> Bits:
    """By stage and name."""
    return {
        stage: {name: array.tobytes() for name, array in own.items()}
        for stage, own in weights.items()
    }


class Fixed:
    """A generator that never learns: its predictions are a random linear map of the activation."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        self._map = streams("map").normal(size=(width, width)).astype(dtype)

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        slot["prediction"] = h @ self._map
        return slot["prediction"]

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        pass


@pytest.mark.parametrize("target", ["true", "bootstrap"])
@pytest.mark.parametrize(
    ("stages", "split"), [(networks.chain(4, norm=True), [1, 1, 2]), (networks.fork(), None)]
)
def test_without_learning_generators_fit_every_changes_no_weight(
    stages: networks.Tables, split: list[int] | None, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is skipped are gradients on their way up and what is done with them."""
    monkeypatch.setattr(models, "make_generator", lambda kind, **options: Fixed())

    def trained(fit_every: int) -> tuple[Bits, set[int], set[int]]:
        schedule = {"name": "synthetic", "target": target, "fit_every": fit_every}
        design = networks.design(stages, schedule, run={"epochs": 4, "split": split})
        sent: set[int] = set()

        def watch(sender: str, to: str, message: object) -> bool:
            sent.update([message.batch] if isinstance(message, Gradient) else [])
            return False

        result = simulate(design, seed=1, maths=True, lose=watch, **SHAKEN)
        assert isinstance(result.end, Finish)
        used = {batch for ops in result.ops.values() for letter, batch, *_ in ops if letter in "Tb"}
        return bits(result.weights), sent, used

    always, *_ = trained(1)
    for fit_every in (2, 3, 50):
        found, sent, used = trained(fit_every)
        assert found == always
        assert sent == used == set(range(0, 20, fit_every))


def test_fit_every_is_fitting_on_every_so_many_th_batch_and_nothing_else() -> None:
    """Against a run in one process that skips no other work: all gradients go all the way up on
    every batch. Reading is so slow that each batch is over before the next one comes."""
    for fit_every in (1, 2, 3):
        schedule = {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": fit_every}
        design = networks.design(networks.chain(4, norm=True), schedule, run={"epochs": 4})
        result = simulate(design, seed=6, costs=Costs(read_us=100_000.0), maths=True)
        assert isinstance(result.end, Finish)
        assert bits(result.weights) == one_by_one(design, fit_every)


def one_by_one(design: Design, fit_every: int) -> Bits:
    """Weights after a run of a chain of stages, one op after the other."""
    stages = {group.name: make_stage(design, group) for group in design.plan.groups}
    for batch in range(design.plan.batches):
        x, y = _batch(design, batch)
        producer, sent = DATA, {}
        for name, stage in stages.items():
            last = name == "top"
            x = stage.forward(batch, {producer: x}, {"y": y}).activation
            if not last:
                stage.predict(batch)
            source = Source.TRUE if last else Source.SYNTHETIC
            sent = stage.backward(batch, {}, source=source, learn=True, send=last)
            stage.update()
            producer = name
        for name, stage in list(stages.items())[-2::-1]:
            gradients = sent[name]
            if batch % fit_every == 0:
                stage.fit(batch, gradients)
            sent = stage.backward(batch, gradients, source=Source.TRUE, learn=False, send=True)
        for stage in stages.values():
            stage.release(batch, lambda: True)
    return bits({name: stage.state()[name] for name, stage in stages.items()})


def _batch(design: Design, batch: int) -> tuple[Any, Any]:
    run, data = design.experiment.run, design.experiment.data
    epoch, index = divmod(batch, design.plan.batches_per_epoch)
    dataset = load(data, run.seed)
    return dataset.batch(epoch, index, data.batch_size, run.seed, np.dtype(run.dtype))
