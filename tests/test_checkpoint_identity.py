"""Whose checkpoint it is: what must be the same about an experiment, and what may change."""

from __future__ import annotations

from typing import Any

import msgspec
import networks
from each import each

from asyncdni.data.meta import Inputs, Meta
from asyncdni.store.manifest import Manifest, differences, identity


def differ(stages: Any = None, **tables: Any) -> list[str]:
    """Between the checkpoint of a chain of three stages and another experiment."""
    schedule = tables.pop("schedule", {"name": "locked"})
    then = networks.design(networks.chain(3), {"name": "locked"})
    now = networks.design(stages or networks.chain(3), schedule, **tables)
    made = Manifest(
        number=1,
        files={},
        start=0,
        planned=0,
        barrier=0,
        identity=identity(then.experiment, then.meta),
    )
    return differences(made, now.experiment, now.meta)


def test_the_same_experiment_has_no_differences() -> None:
    assert differ() == []
    named = networks.chain(3)
    named[1]["inputs"] = ["s0"]  # as it is by default
    assert differ(named) == []


@each(
    "tables",
    [
        {"run": {"epochs": 9, "split": [1, 2], "threads": 2}},
        {"schedule": {"name": "synthetic"}},
        {"optimizer": {"name": "adam", "learning_rate": 0.5}},
        {"checkpoint": {"keep": 5}, "limits": {"silence_s": 9.0}},
    ],
)
def test_what_means_nothing_to_the_state_may_change(tables: dict[str, Any]) -> None:
    assert differ(**tables) == []


@each(
    "stages, tables, line",
    [
        (networks.chain(4), {}, "network.s2: nothing in the checkpoint"),
        (networks.chain(2), {}, "network.s1: "),
        (
            networks.chain(3, norm=True),
            {},
            'network.s0.layers: [{"dense": 6}, "relu"] in the checkpoint, '
            '[{"dense": 6}, "batch_norm", "relu"] in the experiment',
        ),
        (None, {"run": {"seed": 3}}, "run.seed: 0 in the checkpoint, 3 in the experiment"),
        (None, {"run": {"dtype": "float64"}}, 'run.dtype: "float32" in the checkpoint'),
        (None, {"optimizer": {"name": "sgd"}}, 'network.s0.optimizer: "adam" in the checkpoint'),
        (None, {"data": {"batch_size": 7}}, "data.batch_size: 5 in the checkpoint, 7"),
        (None, {"data": {"examples": 24}}, "data.examples: 23 in the checkpoint, 24"),
        (
            None,
            {"schedule": {"name": "gpipe", "microbatches": 5}},
            "schedule.microbatches: 1 in the checkpoint, 5",
        ),
    ],
)
def test_another_network_data_or_order_is_named(stages: Any, tables: Any, line: str) -> None:
    found = differ(stages, **tables)
    assert any(one.startswith(line) for one in found), found


def of_samples(then: Meta, now: Meta) -> list[str]:
    """Between checkpoints of one experiment on two sets of samples of the same shapes."""
    chosen = networks.design(networks.chain(3), {"name": "locked"}).experiment
    found = identity(chosen, then)
    made = Manifest(number=1, files={}, start=0, planned=0, barrier=0, identity=found)
    return differences(made, chosen, now)


def test_other_samples_of_the_same_shapes_are_named() -> None:
    meta = networks.design(networks.chain(3), {"name": "locked"}).meta
    first, second = (
        msgspec.structs.replace(meta, checksums={"x_train": "1", "y_train": one}) for one in "23"
    )
    assert of_samples(first, second) == ["data: other contents in y_train"]
    assert of_samples(first, first) == []
    assert of_samples(meta, first) == of_samples(first, meta) == []  # one side does not know


def test_what_follows_from_the_samples_makes_no_difference() -> None:
    meta = networks.design(networks.chain(3), {"name": "locked"}).meta
    measured = msgspec.structs.replace(meta, inputs=Inputs("float", 0, 1), answers=False)
    assert of_samples(meta, measured) == of_samples(measured, meta) == []
