"""Learning-rate schedules as functions of the count of updates."""

from __future__ import annotations

from typing import Any

import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.errors import ConfigError
from asyncdni.nn.optimizers import RATES, scale

OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"epochs": [1, 2.5], "factor": 0.5},
    "cosine": {"final": 0.1},
}


def at(name: str, update: int, **more: Any) -> float:
    """Of a run of 4 epochs of 10 updates."""
    options = {**OPTIONS[name], **more}
    return scale(name, update, updates_per_epoch=10, total_updates=40, **options)


def test_constant_is_one_throughout() -> None:
    assert [at("constant", update) for update in (0, 17, 39)] == [1.0, 1.0, 1.0]


def test_step_falls_by_its_factor_once_each_of_its_epochs_is_over() -> None:
    found = [at("step", update) for update in (0, 9, 10, 24, 25, 39)]
    assert found == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_falls_from_one_over_the_middle_to_its_final_value() -> None:
    assert [at("cosine", update) for update in (0, 20, 40)] == pytest.approx([1.0, 0.55, 0.1])
    assert at("cosine", 41) == pytest.approx(0.1)  # and stays there


@each("name", RATES)
def test_warm_up_rises_linearly_and_multiplies_the_schedule(name: str) -> None:
    found = [at(name, update, warmup_epochs=0.5) / at(name, update) for update in range(7)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


@given(
    name=st.sampled_from(sorted(RATES)),
    update=st.integers(0, 10**6),
    updates_per_epoch=st.floats(0.1, 1e4),
    total_updates=st.integers(0, 10**6),
    warmup_epochs=st.floats(0, 100),
)
def test_the_scale_never_leaves_zero_to_one(name: str, **given: Any) -> None:
    assert 0 <= scale(name, **given, **OPTIONS[name]) <= 1


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'exponential'.*constant, step, cosine"):
        scale("exponential", 0, updates_per_epoch=1, total_updates=1)
