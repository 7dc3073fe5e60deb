"""A network that diverges ends with its error alone: no warnings beside it (they fail tests)."""

from __future__ import annotations

import networks
import pytest

from asyncdni.core.events import Fail
from asyncdni.drivers.virtual.simulation import simulate

_STAGES = [
    {"layers": [{"dense": 8}, "batch_norm", "relu"], "name": "hidden"},
    {"layers": [{"dense": 4}], "name": "top", "loss": "sigmoid_cross_entropy"},
]


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_overflow_is_an_error_of_the_run_and_nothing_else(schedule: str) -> None:
    steps_too_far = {"name": "sgd", "learning_rate": 1e25}
    design = networks.design(_STAGES, {"name": schedule}, optimizer=steps_too_far)
    end = simulate(design, seed=0, maths=True).end
    assert isinstance(end, Fail)
    assert end.kind == "NumericalError"
    assert "optimizer.learning_rate" in end.text
