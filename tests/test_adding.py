"""One of each kind is added from outside the package, by one line, and trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import networks
import numpy as np
import pytest

from asyncdni import experiment, tables
from asyncdni.core.events import Finish
from asyncdni.data import DATA_SETS, DataSet, Dataset, Meta
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.generators import GENERATORS
from asyncdni.nn.layers import LAYERS
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.streams import stream
from asyncdni.plan.build import Design
from asyncdni.plan.describe import describe_workers
from asyncdni.plan.rules import is_repeatable, repeatable_words
from asyncdni.report.breakdown import ceiling
from asyncdni.schedules import SCHEDULES
from asyncdni.schedules.base import Op, OpKind, View
from asyncdni.schedules.options import Cycle, Options, Role

# --- a schedule: one batch at a time, an update every so many batches ----------------------------


class ThriftyOptions(Options, frozen=True, kw_only=True, tag="thrifty"):
    """Locked, but for the updates."""

    repeatable: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle()

    every: tables.Count = 2  # batches

    def rule(self, role: Role) -> Thrifty:
        return Thrifty(self.every)


@dataclass(frozen=True, slots=True)
class Thrifty:
    every: int

    def next_op(self, view: View) -> Op | None:
        for flight in view.flights.values():
            due = flight.batch % self.every == self.every - 1
            if "B" in flight.done:
                return Op(OpKind.UPDATE, flight.batch, last=True)
            if not flight.arrived:
                return None
            return Op(OpKind.BACKWARD, flight.batch, send=view.has_producers, last=not due)
        if view.ready:
            return Op(OpKind.FORWARD, view.ready[0])
        return Op(OpKind.UPDATE, -1) if view.closed and view.unapplied else None

    def may_read(self, view: View) -> bool:
        return True


# --- a generator: always the same -----------------------------------------------------------------


class SteadyOptions(tables.Generator, frozen=True, kw_only=True, tag="steady"):
    value: float = 0.5


class Steady:
    """Predicts a number that the fits count up."""

    Options: ClassVar[type[tables.Generator]] = SteadyOptions
    last: ClassVar[Steady]  # for the test

    def __init__(self, *, value: float = 0.5) -> None:
        self.value = value
        Steady.last = self

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        self.params: dict[str, Array] = {"value": np.full(1, self.value, dtype)}
        self.buffers: dict[str, Array] = {}

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        return np.full_like(h, self.params["value"][0])

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        self.params["value"] += 1


# --- a layer and a data set ----------------------------------------------------------------------


class Doubled(Dense):
    """Twice what a dense layer gives; its backward is for the test's sake that of a dense one."""

    def forward(self, x: Array, slot: Slot) -> Array:
        return 2 * super().forward(x, slot)


class CoinsOptions(tables.Samples, frozen=True, kw_only=True, tag="coins"):
    batch_size: tables.Count = 4
    validation: tables.HeldOut = 0
    count: tables.Count = 12


def describe_coins(data: CoinsOptions) -> Meta:
    return Meta((1,), "classes", 2, data.count, data.count)


def load_coins(data: CoinsOptions, seed: int) -> Dataset:
    sides = stream(seed, "data", "coins").integers(0, 2, data.count)
    x = sides[:, None].astype(np.float32)
    return Dataset("coins", x, sides, x, sides, classes=2)


# --- added ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each."""
    monkeypatch.setitem(SCHEDULES, "thrifty", ThriftyOptions)
    monkeypatch.setitem(GENERATORS, "steady", Steady)
    monkeypatch.setitem(LAYERS, "doubled", Doubled)
    monkeypatch.setitem(DATA_SETS, "coins", DataSet(CoinsOptions, describe_coins, load_coins))


def trained(design: Design) -> Result:
    """In the simulator, with all its checks, after a round trip of the experiment file."""
    chosen = design.experiment
    assert experiment.parse(experiment.tables(chosen)) == chosen
    result = simulate(design, seed=3, maths=True, codec=True)
    assert isinstance(result.end, Finish), result.end
    return result


def test_a_schedule_of_ones_own_trains_and_is_known_wherever_schedules_are() -> None:
    design = networks.design(networks.chain(3), {"name": "thrifty", "every": 3})
    result = trained(design)
    updates = [batch for letter, batch, *_ in result.ops["s1"] if letter == "U"]
    assert updates == [2, -1, 5, 8, -1]  # -1: before the evaluation after each epoch of 5 batches
    assert "s1      thrifty" in describe_workers(design)
    assert is_repeatable(design.experiment, design.plan)
    assert "thrifty" in repeatable_words().partition(";")[0]
    costs = {"a": {"F": 1.0, "B": 1.0}, "b": {"F": 1.0, "B": 1.0}}
    assert ceiling("thrifty", costs, {"b": ["a"]}, 2) == ceiling("locked", costs, {"b": ["a"]}, 2)


def test_its_options_are_checked_with_the_words_of_all_others() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.every: expected an integer of at least 1"):
        networks.design(networks.chain(2), {"name": "thrifty", "every": 0})
    with pytest.raises(ConfigError, match="unknown schedule 'thirfty', did you mean 'thrifty'"):
        networks.design(networks.chain(2), {"name": "thirfty"})
    with pytest.raises(ConfigError, match="under thrifty all stages go by one schedule"):
        stages = networks.chain(2)
        stages[0]["schedule"] = {"name": "locked"}
        networks.design(stages, {"name": "thrifty"})
    with pytest.raises(ConfigError, match="key 'every' belongs to schedule thrifty, not to locked"):
        networks.design(networks.chain(2), {"name": "locked", "every": 2})


@pytest.mark.parametrize("given", [{}, {"value": 2.0}])
def test_a_generator_of_ones_own_is_asked_and_fitted(given: Mapping[str, float]) -> None:
    schedule = {"name": "synthetic", "generator": {"kind": "steady", **given}}
    design = networks.design(networks.chain(2), schedule)
    assert "steady generator" in describe_workers(design)
    trained(design)
    assert Steady.last.params["value"] == given.get("value", 0.5) + design.plan.batches
    with pytest.raises(ConfigError, match=r"schedule\.generator\.kind: .*known: error, .*steady"):
        networks.design(networks.chain(2), {**schedule, "generator": {"kind": "x"}})


def test_a_layer_and_a_data_set_of_ones_own_are_trained_with() -> None:
    top = {"layers": [{"doubled": 2}], "loss": "cross_entropy"}
    for data in ({"name": "coins"}, {"name": "coins", "validation": 4, "batch_size": 2}):
        design = networks.design([top], {"name": "locked"}, data=data)
        assert design.meta.train_samples == 12 - data.get("validation", 0)  # type: ignore[operator]
        trained(design)
    with pytest.raises(ConfigError, match="unknown data set 'coin', did you mean 'coins'"):
        networks.design([top], {"name": "locked"}, data={"name": "coin"})
