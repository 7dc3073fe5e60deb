"""Small networks on binary addition, for tests of whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.plan.build import Design, make_design

__all__ = ["BITS", "chain", "design", "diamond", "fork", "several_readers"]

BITS = 4
WIDTH = 6

_ADDITION = {"name": "addition", "bits": BITS, "batch_size": 5, "examples": 23}

Tables = list[dict[str, Any]]


def _hidden(name: str, inputs: Sequence[str] = (), norm: bool = False, **more: Any) -> Any:
    layers = [{"dense": WIDTH}, *["batch_norm"] * norm, "relu"]
    return {"name": name, "layers": layers, **({"inputs": list(inputs)} if inputs else {}), **more}


def _top(name: str = "top", inputs: Sequence[str] = (), **more: Any) -> Any:
    loss = {"loss": "sigmoid_cross_entropy"}
    stage = {"name": name, "layers": [{"dense": BITS}], **loss, **more}
    return {**stage, "inputs": list(inputs)} if inputs else stage


def chain(length: int, norm: bool = False) -> Tables:
    """`length` stages, one after the other."""
    return [*(_hidden(f"s{i}", norm=norm) for i in range(length - 1)), _top()]


def fork(join: str = "concat") -> Tables:
    """One stage feeds three, and the last joins them."""
    middle = [_hidden(name, ["root"]) for name in ("a", "b", "c")]
    return [_hidden("root"), *middle, _top(inputs=["a", "b", "c"], join=join)]


def diamond() -> Tables:
    """Paths of different length from one stage to the last, and a loss on the way."""
    aside = _top("aside", ["root"])
    return [_hidden("root"), _hidden("long"), _top(inputs=["long", "root"]), aside]


def several_readers() -> Tables:
    """The data go to three stages, one of them the last."""
    left, right = _hidden("left", ["data"]), _hidden("right", ["data"])
    return [left, right, _top(inputs=["left", "right", "data"])]


def design(
    stages: Tables,
    schedule: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    **tables: Mapping[str, Any],
) -> Design:
    """By default 23 samples in batches of 5, the last of an epoch smaller, for two epochs.

    `tables`: [staleness], [links], [slow].
    """
    chosen = experiment.parse(
        {
            "data": dict(data or {}) if "name" in (data or {}) else {**_ADDITION, **(data or {})},
            "stages": stages,
            "schedule": dict(schedule),
            "optimizer": dict(optimizer or {"name": "adam"}),
            "run": {"epochs": 2, **(run or {})},
            "limits": dict(limits or {}),
            **tables,
        }
    )
    return make_design(chosen, describe(chosen.data))
