"""Small recurrent networks on sequences, for tests of whole runs."""

from __future__ import annotations

from typing import Any

import networks

from asyncdni.plan.build import Design

__all__ = ["COPY", "copying", "recurrent"]

COPY = {"name": "copy", "batch_size": 4, "window": 3, "length": 4, "sequences": 3}


def recurrent(
    kind: str = "lstm", depth: int = 2, outputs: int = 1, **future: Any
) -> networks.Tables:
    """`depth` recurrent stages of five units and a readout of every step."""
    options = {"units": 5, **({"future": future} if future else {})}
    hidden = [{"name": f"s{i}", "layers": [{kind: options}]} for i in range(depth)]
    top = {"name": "top", "layers": [{"dense": outputs}], "loss": "sigmoid_cross_entropy"}
    return [*hidden, top]


def copying(schedule: dict[str, Any], stages: networks.Tables | None = None, **more: Any) -> Design:
    """Of the copy task; `more` as for `networks.design`."""
    data = {**COPY, **more.pop("data", {})}
    return networks.design(stages or recurrent(), schedule, data=data, **more)
