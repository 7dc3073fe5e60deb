"""What a stage's products and traffic take at known speeds, and what of that reports say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networks
import pytest

from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.plan.build import Design
from asyncdni.profiling import roofline
from asyncdni.profiling.measurement import Measurement, OpTime
from asyncdni.profiling.report import document
from asyncdni.profiling.roofline import Arithmetic, arithmetic_of, roofline_samples_per_s

SAMPLES, INPUTS, WIDE, MIDDLE, OUTPUTS = 5, 2 * networks.BITS, 6, 3, networks.BITS
STAGES = [
    {"name": "low", "layers": [{"dense": WIDE}, "relu", {"dense": MIDDLE}]},
    {"name": "top", "layers": [{"dense": OUTPUTS}], "loss": "sigmoid_cross_entropy"},
]
#: Operations per second of a forward, of the weights' gradient and of the input's, and bytes per
#: second.
FORWARD, LEARN, PUSH, COPIED = 1e3, 2e3, 4e3, 1e4

shapes: list[tuple[int, int, int]] = []


@pytest.fixture(autouse=True)
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def flops_per_s(rows: int, inner: int, columns: int, dtype: str, in_torch: bool) -> Any:
        shapes.append((rows, inner, columns))
        return FORWARD, LEARN, PUSH

    shapes.clear()
    monkeypatch.setattr(roofline, "_flops_per_s", flops_per_s)
    monkeypatch.setattr(roofline, "_copied_bytes_per_s", lambda count: COPIED)


def design(schedule: Mapping[str, Any], **more: Any) -> Design:
    return networks.design(STAGES, schedule, **more)


def arithmetic(of: Design) -> dict[str, Arithmetic]:
    found = arithmetic_of(of)
    assert found is not None
    return found


LOCKED = {"name": "locked"}
FIRST, SECOND = 2 * SAMPLES * INPUTS * WIDE, 2 * SAMPLES * WIDE * MIDDLE


def test_products_are_those_of_the_layers() -> None:
    low = arithmetic(design(LOCKED))["low"]
    both = FIRST + SECOND
    assert low.flops["F"] == both and low.flops["W"] == both and low.flops["b"] == both
    assert low.flops["B"] == both + SECOND and low.flops[SENDING] == 2 * both
    assert low.flops["U"] == 0
    assert low.products_s["F"] == pytest.approx(both / FORWARD)
    assert low.products_s["B"] == pytest.approx(both / LEARN + SECOND / PUSH)
    assert shapes[:2] == [(SAMPLES, INPUTS, WIDE), (SAMPLES, WIDE, MIDDLE)]


def test_traffic_is_what_layers_and_the_optimizer_must_move() -> None:
    low = arithmetic(design(LOCKED))["low"]
    weights = INPUTS * WIDE + WIDE * MIDDLE
    rows = SAMPLES * (INPUTS + WIDE + WIDE + WIDE + WIDE + MIDDLE)  # in and out of three layers
    assert low.traffic_bytes["F"] == 4 * (weights + rows)
    assert low.traffic_bytes["U"] == 4 * 7 * weights  # Adam: g, and w, m and v both ways
    sgd = arithmetic(design(LOCKED, optimizer={"name": "sgd"}))["low"]
    assert sgd.traffic_bytes["U"] == 4 * 3 * weights
    assert low.traffic_s["U"] == pytest.approx(4 * 7 * weights / COPIED)


def test_the_roofline_is_the_longer_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    low = arithmetic(design(LOCKED))["low"]
    assert low.roofline_s == low.products_s
    monkeypatch.setattr(roofline, "_copied_bytes_per_s", lambda count: 1.0)
    low = arithmetic(design(LOCKED))["low"]
    assert low.roofline_s == low.traffic_s


def test_workers_at_their_rooflines_are_as_fast_as_the_slowest() -> None:
    own = design({"name": "synthetic", "fit_every": 1})
    found = arithmetic(own)
    low, top = found["low"].products_s, found["top"].products_s
    slowest = max(low["F"] + low["B"], top["F"] + top[SENDING])
    most = roofline_samples_per_s(own, found, cores=2)
    assert most == pytest.approx(SAMPLES / slowest)
    alone = design(LOCKED, run={"split": [2], "threads": 2})
    total = low["F"] + low["B"] + top["F"] + top[SENDING]
    most = roofline_samples_per_s(alone, found, cores=2)
    assert most == pytest.approx(SAMPLES / (total / 2))


def test_where_ops_vary_there_is_no_roofline_of_a_run() -> None:
    own = design({"name": "synthetic", "mix": 0.5})
    assert roofline_samples_per_s(own, arithmetic(own), cores=2) is None


MEASURED = Measurement(
    batches=9,
    parameters={"low": 1, "top": 1},
    times={
        name: {letter: OpTime(9, *[3.0] * 3) for letter in ("F", "B", SENDING, "b", "W", "U")}
        for name in ("low", "top")
    },
    edges=(),
    event=OpTime(9, *[1e-5] * 3),
)


def test_a_profile_says_what_of_each_stage_is_products_and_traffic() -> None:
    own = design({"name": "locked", "split_backward": False})
    found = document(own, MEASURED, cores=2, workers=[2], arithmetic=arithmetic(own))
    low, _ = found["stages"]
    assert low["flops"] == {"forward": FIRST + SECOND, "backward": 2 * (FIRST + SECOND)}
    part = low["roofline"]["locked"]
    forward = (FIRST + SECOND) / FORWARD
    backward = (FIRST + SECOND) / LEARN + SECOND / PUSH
    assert part["products_s"] == pytest.approx(forward + backward)
    assert part["roofline_s"] == part["products_s"] and part["traffic_s"] > 0
    ceiling = found["given"]["schedules"]["locked"]
    assert ceiling["roofline_samples_per_s"] == pytest.approx(
        roofline_samples_per_s(own, arithmetic(own), cores=2)
    )
    unknown = document(own, MEASURED, cores=2, workers=[2])
    assert unknown["stages"][0]["roofline"] is None
    assert unknown["given"]["schedules"]["locked"]["roofline_samples_per_s"] is None


def test_a_product_is_measured_with_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pytest.importorskip("torch")
    for in_torch in (False, True):
        speeds = roofline._flops_per_s(4, 3, 2, "float32", in_torch)
        assert all(0 < speed < 1e15 for speed in speeds)
    assert 0 < roofline._copied_bytes_per_s(2**14) < 1e15
