"""Predicted runs: what arithmetic, cores, links and locking must make of known prices."""

from __future__ import annotations

import math
from typing import Any

import networks
import pytest

from asyncdni.errors import AsyncDNIError
from asyncdni.plan.build import Design
from asyncdni.profiling import prediction
from asyncdni.profiling.measurement import Hop, Wire
from asyncdni.profiling.prediction import Prices, predict

FREE = Hop(0.0, 0.0, 0.0, 0.0)
#: Milliseconds, alike for every stage.
OPS = {"R": 0.0, "F": 1.0, "P": 0.5, "B": 1.0, "B_send": 2.0, "b": 1.0, "W": 1.0, "U": 0.5}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": 8}


def design(stages: int, schedule: dict[str, Any], **tables: Any) -> Design:
    data = {"examples": 10_000, "test_examples": 5, "batch_size": 8}
    return networks.design(networks.chain(stages), schedule, data=data, **tables)


def prices(made: Design, hop: Hop = FREE, event_s: float = 0.0, **changed: float) -> Prices:
    names = [node.name for node in made.network.nodes]
    seconds = {
        name: {letter: 1e-3 * one for letter, one in {**OPS, "T": 0.0, **changed}.items()}
        for name in names
    }
    return Prices(
        warm=seconds,
        cold=seconds,
        event_s=(event_s, event_s),
        wire=Wire((0, 1000), (hop, hop), (hop, hop), (0.0, 0.0)),
        activation_bytes=dict.fromkeys(names, 1000),
        gradient_bytes=dict.fromkeys(names, 1000),
    )


def test_one_worker_is_as_fast_as_its_ops() -> None:
    made = design(3, {"name": "locked"}, run={"split": [3]})
    found = predict(made, prices(made), cores=4)
    # Three forwards; three backwards, two of which send gradients on; three updates.
    assert found.samples_per_s == pytest.approx(8 / (3e-3 + 5e-3 + 1.5e-3), rel=0.01)
    assert found.limit == "worker" and found.idle[found.slowest] < 0.01


def test_decoupled_workers_are_as_fast_as_the_slowest_where_there_are_cores() -> None:
    made = design(3, SYNTHETIC)
    found = predict(made, prices(made), cores=3)
    period_s = 8 / found.samples_per_s
    assert 3e-3 <= period_s < 3.4e-3, "F P B U, and a b on every eighth batch"
    assert found.limit == "worker" and found.slowest in ("s0", "s1")
    assert found.idle["top"] == pytest.approx(1 - found.work_s["top"] / period_s)


def test_one_core_is_shared() -> None:
    made = design(3, SYNTHETIC)
    found = predict(made, prices(made), cores=1)
    assert 8 / found.samples_per_s == pytest.approx(sum(found.work_s.values()), rel=0.05)
    assert found.limit == "cores"
    assert predict(made, prices(made), cores=1, hosts=3).limit == "worker"


def test_locked_workers_wait_for_the_way_there_and_back() -> None:
    made = design(3, {"name": "locked", "split_backward": False}, links={"latency": "5ms"})
    found = predict(made, prices(made), cores=8)
    ops_s = 3 * 1e-3 + 2e-3 + 2e-3 + 1e-3 + 0.5e-3  # F F F, B_send B_send B, U of the first
    assert 8 / found.samples_per_s == pytest.approx(ops_s + 4 * 5e-3, rel=0.01)
    assert found.limit == "waiting" and min(found.idle.values()) > 0.8
    assert set(found.staleness.values()) <= {0.0, None}


def test_a_synthetic_run_does_not_wait_for_slow_links() -> None:
    fast, slow = (design(3, SYNTHETIC, links={"latency": one}) for one in ("0ms", "20ms"))
    rates = [predict(made, prices(made), cores=3).samples_per_s for made in (fast, slow)]
    assert rates[1] > 0.9 * rates[0]
    late = predict(slow, prices(slow), cores=3)
    assert max(one or 0.0 for one in late.staleness.values()) > 5


def test_bandwidth_limits_every_schedule() -> None:
    """1,000 bytes of a batch of 8 at 100 kB/s take 10 ms, however decoupled."""
    made = design(3, SYNTHETIC, links={"bandwidth": "25kB/s"})
    found = predict(made, prices(made), cores=3)
    sent = 8 * (5 * 4 + 8)  # estimated by shapes: see `drivers.virtual.costs`
    assert found.samples_per_s <= 8 / (sent / 25e3) * 1.3
    assert found.limit == "waiting"


def test_messages_and_logic_take_time_of_the_workers() -> None:
    made = design(2, SYNTHETIC)
    hop = Hop(send_s=2e-3, move_s=1e-3, receive_s=1e-3, latency_s=0.0)
    plain = predict(made, prices(made), cores=2)
    loaded = predict(made, prices(made, hop, event_s=1e-4), cores=2)
    assert loaded.work_s["s0"] > plain.work_s["s0"] + 3e-3
    assert loaded.samples_per_s < 0.7 * plain.samples_per_s


def test_microbatches_count_as_one_batch() -> None:
    made = design(2, {"name": "1f1b", "microbatches": 4}, run={"split": [2]})
    found = predict(made, prices(made), cores=1)
    one = 1e-3 * (2 * 1.0 + 2.0 + 1.0)  # F F, B with a gradient between them, B
    assert found.samples_per_s == pytest.approx(8 / (4 * one + 2 * 0.5e-3), rel=0.01)


def test_a_pipe_that_is_not_full_yet_promises_no_more_than_cores_can_do() -> None:
    """With 64 workers and few batches only some are busy at once; 2 cores have to do all."""
    made = design(64, SYNTHETIC)
    found = predict(made, prices(made), cores=2, events=3_000)
    assert 8 / found.samples_per_s >= sum(found.work_s.values()) / 2 * 0.999


def test_hundreds_of_stages_are_predicted() -> None:
    made = design(256, {"name": "delayed"})
    found = predict(made, prices(made), cores=256, events=1)
    assert math.isfinite(found.samples_per_s) and len(found.idle) == 256
    assert 8 / found.samples_per_s == pytest.approx(3.5e-3, rel=0.2)


def test_a_simulated_run_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        failure = type("Fail", (), {"text": "worker s0 can't go on"})

    monkeypatch.setattr(prediction, "simulate", lambda *_, **__: Failed)
    made = design(2, {"name": "locked"})
    with pytest.raises(AsyncDNIError, match="the simulated run failed: worker s0 can't go on"):
        predict(made, prices(made), cores=1)
