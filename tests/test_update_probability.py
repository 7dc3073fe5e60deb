"""Random updates: each stage learns from about the share of batches that was asked for."""

from __future__ import annotations

import math
from typing import Any

import networks
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.core.events import Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.plan.rules import make_schedule
from asyncdni.schedules.base import draw
from asyncdni.schedules.synthetic import Synthetic

NAMES = ["s0", "s1", "s2", "top"]


def draws(probability: float) -> list[list[bool]]:
    """Of four stages over 20,000 ids."""
    schedule = {"name": "synthetic", "update_probability": probability}
    design = networks.design(networks.chain(4), schedule)
    rows = []
    for group in design.plan.groups:
        own = make_schedule(design.experiment, design.plan, group)
        assert isinstance(own, Synthetic) and own.draws is not None
        rows.append([own.draws(batch) for batch in range(20_000)])
    return rows


@each("probability", [0.05, 0.3, 0.5, 0.9])
def test_the_share_is_close_and_stages_draw_independently(probability: float) -> None:
    """Within four standard deviations: of one stage, of two at once, of two batches in a row."""
    rows = draws(probability)

    def assert_close(found: list[bool], expected: float) -> None:
        deviation = math.sqrt(expected * (1 - expected) / len(found))
        assert abs(sum(found) / len(found) - expected) < 4 * deviation

    for i, row in enumerate(rows):
        assert_close(row, probability)
        assert_close([a and b for a, b in zip(row[::2], row[1::2], strict=True)], probability**2)
        for other in rows[:i]:
            assert_close([a and b for a, b in zip(row, other, strict=True)], probability**2)


@given(key=st.integers(0, 2**64 - 1), batch=st.integers(0, 10**9))
@settings(max_examples=200)
def test_a_draw_lies_between_nought_and_one_and_depends_on_nothing_else(
    key: int, batch: int
) -> None:
    assert 0 <= draw(key, batch) < 1
    assert draw(key, batch) == draw(key, batch)


def test_a_draw_is_that_of_splitmix64() -> None:
    """First outputs of the reference implementation (Vigna, splitmix64.c) from state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [draw(1234567, batch) for batch in range(3)] == [n / 2.0**64 for n in expected]


@each("options", [{}, {"target": "bootstrap"}, {"fit_every": 3}, {"correct": True}, {"mix": 0.5}])
@each("stages", [networks.chain(4), networks.fork(), networks.diamond()])
def test_every_batch_is_forwarded_and_the_drawn_ones_are_learned_from(
    stages: networks.Tables, options: dict[str, Any]
) -> None:
    schedule = {"name": "synthetic", "update_probability": 0.4, **options}
    design = networks.design(stages, schedule, run={"epochs": 4, "evaluate_every": 3.0})
    costs, links = Costs(jitter=0.9), Links(latency_us=900.0, jitter=0.9)
    result = simulate(design, seed=3, maths=True, costs=costs, links=links)
    assert isinstance(result.end, Finish)
    batches = range(design.plan.batches)
    for group in design.plan.groups:
        own = make_schedule(design.experiment, design.plan, group)
        assert isinstance(own, Synthetic) and own.draws is not None
        drawn = [batch for batch in batches if own.draws(batch)]
        ops = [op[:2] for op in result.ops[group.name]]
        assert [b for letter, b in ops if letter == "F"] == list(batches)
        assert sorted(b for letter, b in ops if letter == "B") == drawn
        assert sorted(b for letter, b in ops if letter == "U" and b >= 0) == drawn
        counters = result.counters[group.name]
        assert counters["batches"] == len(batches) and counters["in_flight"] == 0
        assert 0.2 < len(drawn) / len(batches) < 0.6


def test_the_loss_answers_for_the_batches_that_it_learned_from_alone() -> None:
    schedule = {"name": "synthetic", "update_probability": 0.5}
    design = networks.design(networks.chain(3), schedule, run={"epochs": 8})
    result = simulate(design, seed=0, maths=False)
    own = make_schedule(design.experiment, design.plan, design.plan.groups[-1])
    assert isinstance(own, Synthetic) and own.draws is not None
    answered = [batch for batch in range(design.plan.batches) if own.draws(batch)]
    for name in ("s0", "s1"):
        fits = [batch for letter, batch, *_ in result.ops[name] if letter == "T"]
        assert fits == answered
