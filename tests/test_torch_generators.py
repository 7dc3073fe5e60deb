"""Generators that are modules of PyTorch: what they predict, learn and keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

from torch_plain import one_thread  # noqa: E402

from asyncdni import config, experiment  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.virtual.faults import Faults  # noqa: E402
from asyncdni.drivers.virtual.simulation import Result, simulate  # noqa: E402
from asyncdni.errors import ConfigError, NumericalError  # noqa: E402
from asyncdni.imports import allowing  # noqa: E402
from asyncdni.nn.streams import layer_streams, stream  # noqa: E402
from asyncdni.nn.torch.generator import ModuleGenerator, module_generator  # noqa: E402
from asyncdni.plan.build import Design, make_design  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

WIDTH, CLASSES, SAMPLES = 6, 4, 5
MAP: dict[str, Any] = {
    "kind": "module",
    "module": "torch_models:GradientMap",
    "arguments": {"width": 24, "classes": 5},
}
HEAD = {**MAP, "module": "torch_models:OwnHead"}


def built(module: str) -> ModuleGenerator:
    arguments = {"width": WIDTH, "classes": CLASSES}
    generator = module_generator(module, arguments, learning_rate=1e-2, allow_import=True)
    dtype, streams = np.dtype("float32"), layer_streams(0, "generator")
    generator.build(WIDTH, CLASSES, "cross_entropy", dtype, streams, shape=(WIDTH,))
    return generator


def batch(key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = stream(0, "numbers", "test", key)
    h, grad = rng.normal(size=(2, SAMPLES, WIDTH)).astype(np.float32)
    return h, rng.integers(0, CLASSES, SAMPLES), grad


# --- alone ---------------------------------------------------------------------------------------


def test_a_module_is_fitted_to_the_gradients_that_come_back() -> None:
    generator = built("torch_models:GradientMap")
    h, y, grad = batch(0)
    first = generator.predict(h, y, {}, 1.0)
    for _ in range(300):
        slot: dict[str, Any] = {}
        found = generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)
    assert found.shape == h.shape and not first.any()
    assert np.square(found - grad).sum() < 0.2 * np.square(grad).sum()


def test_the_gradient_of_a_loss_of_its_own_is_the_prediction() -> None:
    generator = built("torch_models:OwnHead")
    h, y, grad = batch(0)
    weight, bias = generator.params["head.weight"].copy(), generator.buffers["head.bias"].copy()
    exponents = np.exp(h @ weight.T + bias)
    error = exponents / exponents.sum(1, keepdims=True) - np.eye(CLASSES)[y]
    slot: dict[str, Any] = {}
    np.testing.assert_allclose(generator.predict(h, y, slot, 1.0), error @ weight, rtol=1e-4)
    moved = generator.params["head.weight"].copy()
    generator.fit(grad, slot, 1.0)
    assert (moved != weight).all() and (generator.params["head.weight"] == moved).all()
    assert (generator.buffers["head.bias"] == bias).all()


@each("module", ["torch_models:GradientMap", "torch_models:OwnHead"])
def test_writing_into_its_arrays_restores_a_module(module: str) -> None:
    def go_on(generator: ModuleGenerator, keys: range) -> np.ndarray:
        for key in keys:
            h, y, grad = batch(key)
            slot: dict[str, Any] = {"batch": key}
            found = generator.predict(h, y, slot, 1.0)
            generator.fit(grad, slot, 1.0)
        return found

    whole, first, second = built(module), built(module), built(module)
    expected = go_on(whole, range(6))
    go_on(first, range(3))
    for name, array in {**first.params, **first.buffers}.items():
        np.copyto({**second.params, **second.buffers}[name], array)
    np.testing.assert_array_equal(go_on(second, range(3, 6)), expected)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    generator = built("torch_models:OwnHead")
    h, y, _ = batch(0)
    before = generator.params["head.weight"].copy()
    with pytest.raises(NumericalError):
        generator.predict(h * np.float32(np.nan), y, {}, 1.0)
    assert (generator.params["head.weight"] == before).all()


# --- in a run ------------------------------------------------------------------------------------


def parsed(schedule: dict[str, Any], **run: Any) -> config.Experiment:
    points = {"build": "torch_models:points", "arguments": {"samples": 300}, "batch_size": 20}
    mlp = {"width": 24, "inputs": 37, "outputs": 5, "depth": 3}
    tables = {
        "model": {"build": "torch_models:mlp", "arguments": mlp, "stages": ["3", "6"]},
        "data": {"name": "torch", **points},
        "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9},
        "schedule": schedule,
        "checkpoint": {"snapshot_every": "20ms"},
        "run": {"epochs": 4, **run},
    }
    return experiment.parse(tables)


def designed(chosen: config.Experiment) -> Design:
    with allowing(True):
        return begin_with(make_design(chosen, describe(chosen.data), allow_import=True))


def simulated(chosen: config.Experiment, **options: Any) -> Result:
    with allowing(True), one_thread():
        return simulate(designed(chosen), seed=0, maths=True, **options)


@each(
    "schedule",
    [
        {"name": "synthetic", "generator": MAP},
        {"name": "synthetic", "generator": MAP, "guard": {}},
        {"name": "synthetic", "generator": HEAD},
        {"name": "local_loss", "generator": HEAD},
    ],
)
def test_a_network_learns_by_the_users_generator(schedule: dict[str, Any]) -> None:
    history = simulated(parsed(schedule)).history
    assert history[-1]["accuracy"] > 0.9, history


def test_a_killed_worker_goes_on_with_its_generator(tmp_path: Path) -> None:
    schedule = {"name": "local_loss", "generator": HEAD}
    faults = Faults(script=("crash layer0 at 120ms",))
    result = simulated(parsed(schedule), folder=tmp_path, faults=faults)
    assert result.failure is None and result.fault_counts == {"crash": 1}
    assert "anew" not in str(result.records)


@each(
    "schedule, told",
    [
        ({"name": "local_loss", "generator": MAP}, r"GradientMap has no loss\(h, y\)"),
        ({"name": "local_loss", "generator": {"kind": "linear"}}, "no gradient comes back"),
        (
            {"name": "synthetic", "generator": {**MAP, "arguments": {"width": 9, "classes": 5}}},
            r"its forward fails on activations \(2, 24\) and targets \(2,\)",
        ),
        (
            {"name": "synthetic", "generator": {**MAP, "module": "torch_models:Nothing"}},
            "has no 'Nothing'",
        ),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(schedule: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        designed(parsed(schedule))


# --- readout -------------------------------------------------------------------------------------


def text(schedule: dict[str, Any], **tables: Any) -> config.Experiment:
    """A GPT of four blocks in four stages."""
    return experiment.parse(
        {
            "model": {"build": "torch_models:gpt", "stages": ["h.1", "h.2", "h.3"]},
            "data": {"name": "torch", "build": "torch_models:text_windows", "batch_size": 16},
            "optimizer": {"name": "adam", "learning_rate": 0.003},
            "schedule": schedule,
            "run": {"epochs": 4},
            **tables,
        }
    )


@each("name", ["synthetic", "local_loss"])
def test_a_gpt_learns_by_reading_out_and_a_seed_replays_it(name: str) -> None:
    readout = {"kind": "readout", "refresh": 4, "blocks": 1, "width": 8}
    chosen = text({"name": name, "generator": readout})
    first, second = simulated(chosen, codec=True), simulated(chosen, codec=True)
    print(first.history, first.counters)
    assert first.digest == second.digest
