"""Generators that are modules of PyTorch: what they predict, learn and keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

import torch_models  # noqa: E402
from torch_plain import one_thread  # noqa: E402

from asyncdni import config, experiment  # noqa: E402
from asyncdni.core.flights import Copies  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.real.inspection import Inspection  # noqa: E402
from asyncdni.drivers.virtual.faults import Faults  # noqa: E402
from asyncdni.drivers.virtual.simulation import Result, simulate  # noqa: E402
from asyncdni.errors import ConfigError, NumericalError  # noqa: E402
from asyncdni.imports import allowing  # noqa: E402
from asyncdni.messages import Gradient, Weights  # noqa: E402
from asyncdni.nn.streams import layer_streams, stream  # noqa: E402
from asyncdni.nn.torch.generator import ModuleGenerator, module_generator  # noqa: E402
from asyncdni.nn.torch.model import make_readout  # noqa: E402
from asyncdni.plan.build import Design, make_design, make_stage, readout_forms  # noqa: E402
from asyncdni.schedules.base import Op, OpKind  # noqa: E402
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

READOUT: dict[str, Any] = {"kind": "readout", "refresh": 4}
NARROW = {**READOUT, "blocks": 1, "width": 8}
GPT = {"model": {"build": "torch_models:gpt", "stages": ["h.1", "h.2", "h.3"]}}
RESNET = {"build": "torch_models:resnet18", "arguments": {"width": 3}, "stages": ["layer3"]}
PICTURES = {"name": "torch", "build": "torch_models:pictures", "batch_size": 8}


def text(schedule: dict[str, Any], **tables: Any) -> config.Experiment:
    """A GPT of four blocks in four stages."""
    windows = {"name": "torch", "build": "torch_models:text_windows", "batch_size": 16}
    adam = {"name": "adam", "learning_rate": 0.003}
    given = {**GPT, "data": windows, "optimizer": adam, "schedule": schedule, "run": {"epochs": 3}}
    return experiment.parse({**given, **tables})


def synthetic(**generator: Any) -> dict[str, Any]:
    return {"name": "synthetic", "generator": {**READOUT, **generator}}


@each("name, generator", [("synthetic", READOUT), ("local_loss", NARROW)])
def test_a_gpt_learns_by_reading_out_alone(name: str, generator: dict[str, Any]) -> None:
    sent: list[tuple[str, str, type, int]] = []

    def watch(sender: str, to: str, message: Any) -> bool:
        sent.append((sender, to, type(message), getattr(message, "version", 0)))
        return False

    chosen = text({"name": name, "generator": generator})
    result = simulated(chosen, codec=True, lose=watch)
    assert result.history[-1]["accuracy"] > 0.9, result.history
    assert not any(kind is Gradient for _, _, kind, _ in sent)
    copies = [(sender, to, version) for sender, to, kind, version in sent if kind is Weights]
    assert sorted(copies) == [
        ("h_3", to, version) for to in ("h_1", "h_2", "wte") for version in (4, 8)
    ]
    assert simulated(chosen, codec=True).digest == result.digest


def test_the_prediction_is_the_gradient_through_the_last_norm_and_head() -> None:
    design = designed(text(synthetic()))
    first, *_, last = (make_stage(design, group) for group in design.plan.groups)
    rng = stream(0, "numbers", "test")
    ids, y = rng.integers(0, 12, (2, 5, 8))
    first.forward(0, {"data": ids.astype(np.float32)}, {"y": y})
    first.predict(0)
    slot = first._slots[0]
    head = torch_models.gpt()
    arrays = last.state()["h_3"]
    state = {name.removeprefix("0."): torch.from_numpy(one) for name, one in arrays.items()}
    head.load_state_dict(state, strict=False)
    h = torch.from_numpy(slot.blocks["wte"].y).requires_grad_()
    logits = head.head(head.norm(h))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten())
    (expected,) = torch.autograd.grad(loss * y.size, h)
    np.testing.assert_allclose(slot.prediction, expected.numpy(), rtol=1e-4, atol=1e-6)


@each("given", [True, False])
def test_a_readout_begins_with_the_owners_weights_and_takes_newer_ones(given: bool) -> None:
    design = designed(text(synthetic()))
    design = design if given else replace(design, init=None)
    first, *_, last = (make_stage(design, group) for group in design.plan.groups)
    own = last.state()["h_3"]
    kept = {name: array for name, array in first.snapshot()["wte"].items() if "readout" in name}
    assert len(kept) == len(readout_forms(design)) > 1
    for name, array in kept.items():
        np.testing.assert_array_equal(array, own["0." + name.removeprefix("generator.readout.")])
    newer = {name: own[name] + 1 for name in readout_forms(design)}
    first.adopt(8, newer)
    first.adopt(4, {name: own[name] + 2 for name in newer})
    assert first.readout() == {"readout_version": 8, "readout_age": 0}
    restored = make_stage(design, design.plan.groups[0])
    restored.restore(first.snapshot())
    assert restored.readout()["readout_version"] == 8
    np.testing.assert_array_equal(
        restored.snapshot()["wte"]["generator.readout.head.weight"], newer["0.head.weight"]
    )


@each(
    "build, input, begin, expected",
    [
        ("gpt", [8], "h.3", ["head.weight", "norm.bias", "norm.weight"]),
        ("opaque", [37], "2", ["4.bias", "4.weight"]),
        ("resnet18", [3, 32, 32], "layer4", ["fc.bias", "fc.weight"]),
        ("mlp", [784], "6", [f"{i}.{name}" for i in (6, 7, 9) for name in ("bias", "weight")]),
    ],
)
def test_the_readout_is_what_comes_behind_the_last_skip_connection(
    build: str, input: list[int], begin: str, expected: list[str]
) -> None:
    part = {"build": f"torch_models:{build}", "input": input, "begin": begin}
    module = make_readout(part, "", "meta", allow_import=True)
    assert sorted(name for name, _ in module.named_parameters()) == expected


def test_a_model_that_ends_in_a_block_must_say_what_its_readout_is() -> None:
    part = {"build": "torch_models:opaque", "input": [37], "arguments": {"head": False}}
    with pytest.raises(ConfigError, match=r"ends in a block.*name the submodule"):
        make_readout(part, "", "meta", allow_import=True)


def test_only_the_newest_copy_is_taken_over() -> None:
    owner, reader = Copies((("a", 4), ("b", 6))), Copies((), "owner")
    for updates in range(1, 4):
        owner.updated(updates)
    assert owner.next_op() is None
    owner.updated(12)
    assert owner.next_op() == Op(OpKind.COPY, 12) and owner.copied(12) == ["a", "b"]
    assert owner.next_op() is None and owner.copied(8) == ["a"]
    assert not reader.came("other", 4, {}) and not owner.came("owner", 4, {})
    assert reader.came("owner", 8, {"x": 8}) and reader.came("owner", 4, {"x": 4})
    assert reader.next_op() == Op(OpKind.ADOPT, 8) and reader.take() == {"owner": {"x": 8}}
    assert reader.next_op() is None
    assert reader.came("owner", 8, {}) and reader.next_op() is None


def test_a_copy_of_another_form_is_its_senders_fault() -> None:
    design = designed(text(synthetic()))
    inspection = Inspection(design, design.plan.groups[0], {"h_3": 2})
    forms = readout_forms(design)
    sound = {name: np.zeros(shape, dtype) for name, (shape, dtype) in forms.items()}
    assert inspection.accusation(Weights("h_3", 2, 4, sound)) is None
    wrong = {**sound, "0.head.weight": np.zeros((3, 3), np.float32)}
    accused = inspection.accusation(Weights("h_3", 2, 4, wrong))
    assert accused is not None and "the Weights of version 4 from worker h_3" in accused.text


def test_a_killed_reader_and_a_killed_owner_go_on(tmp_path: Path) -> None:
    snapshots = {"snapshot_every": "1ms"}
    faults = Faults(script=("crash h_1 at 104ms", "crash h_3 at 105ms"))
    chosen = text(synthetic(), run={"epochs": 8}, checkpoint=snapshots)
    result = simulated(chosen, folder=tmp_path, faults=faults)
    assert result.failure is None and result.fault_counts == {"crash": 2}
    assert result.history[-1]["accuracy"] > 0.5, result.history


@each("block", [{"block": "mlp"}, {"block": "torch_models:Doubled"}, {"block": "transformer"}])
def test_blocks_of_any_kind_are_trained(block: dict[str, Any]) -> None:
    design = designed(text(synthetic(blocks=2, **block)))
    first = make_stage(design, design.plan.groups[0])
    before = first.snapshot()["wte"]
    ids, y = stream(0, "numbers", "test").integers(0, 12, (2, 5, 8))
    first.forward(0, {"data": ids.astype(np.float32)}, {"y": y})
    first.predict(0)
    changed = {n for n, one in first.snapshot()["wte"].items() if (one != before[n]).any()}
    assert any(name.startswith("generator.blocks.") for name in changed)
    assert not any(name.startswith("generator.readout.") for name in changed)


def test_blocks_and_an_old_copy_learn_when_they_are_due() -> None:
    options = {"blocks": 1, "block": "mlp", "learn_every": 2, "private_after": 2}
    design = designed(text(synthetic(**options)))
    stage = make_stage(design, design.plan.groups[0])
    ids, y = stream(0, "numbers", "test").integers(0, 12, (2, 5, 8))

    def moved(number: int) -> set[str]:
        before = stage.snapshot()["wte"]
        stage.forward(number, {"data": ids.astype(np.float32)}, {"y": y})
        stage.predict(number)
        now = stage.snapshot()["wte"]
        names = {name.split(".")[1] for name, one in now.items() if (one != before[name]).any()}
        return names & {"blocks", "readout"}

    assert [moved(i) for i in range(4)] == [{"blocks"}, set(), {"blocks", "readout"}, {"readout"}]
    assert stage.readout()["readout_private"] == 2
    copied = {n: np.ones(shape, dtype) for n, (shape, dtype) in readout_forms(design).items()}
    stage.adopt(8, copied)
    restored = make_stage(design, design.plan.groups[0])
    restored.restore(stage.snapshot())
    assert moved(5) == set()
    assert restored.readout() == stage.readout()
    assert stage.readout() == {"readout_version": 8, "readout_age": 0, "readout_private": 2}


def test_a_map_is_fitted_to_the_true_gradients_that_are_asked_for() -> None:
    design = designed(text({**synthetic(map=True, learning_rate=3e-2), "fit_every": 4}))
    stage = make_stage(design, design.plan.groups[0])
    ids, y = stream(0, "numbers", "test").integers(0, 12, (2, 5, 8))
    errors = []
    for number in range(20):
        stage.forward(number, {"data": ids.astype(np.float32)}, {"y": y})
        stage.predict(number)
        slot = stage._slots[number]
        mapped, given = slot.prediction, slot.generator["given"].numpy()
        if not number:
            np.testing.assert_array_equal(mapped, given)
        true = np.roll(given, 1, axis=-1) * 0.5
        errors.append(float(np.square(mapped - true).sum()))
        stage.fit(number, {"h_1": true})
    assert errors[-1] < 0.1 * errors[0]
    asked: list[int] = []

    def watch(sender: str, to: str, message: Any) -> bool:
        asked.extend([message.batch] if isinstance(message, Gradient) else [])
        return False

    with one_thread():
        assert simulate(design, seed=0, maths=False, lose=watch).failure is None
    assert asked and all(batch % 4 == 0 for batch in asked)


@each(
    "tables, told",
    [
        (
            {"schedule": {"name": "local_loss", "generator": {**READOUT, "map": True}}},
            "schedule.generator.map: no gradient comes back",
        ),
        ({"schedule": synthetic(begin="nrom")}, r"'nrom' is no submodule.*norm"),
        ({"schedule": synthetic(blocks=1, block="conv")}, r'"conv" takes feature maps'),
        ({"schedule": synthetic(blocks=1, block="cnov")}, "'cnov' is unknown"),
        ({"model": RESNET, "data": PICTURES}, "fails on activations.*as they reach it in the last"),
    ],
)
def test_a_readout_that_does_not_fit_is_refused(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        designed(text(**{"schedule": synthetic(), **tables}))


def test_blocks_make_the_planes_that_the_readout_takes() -> None:
    """They begin as means of the planes that there are, repeated."""
    generator = synthetic(blocks=2, block="conv", width=5)
    design = designed(text(generator, model=RESNET, data=PICTURES))
    first, last = (make_stage(design, group) for group in design.plan.groups)
    rng = stream(0, "numbers", "test")
    x, y = rng.standard_normal((4, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 4)
    first.forward(0, {"data": x}, {"y": y})
    first.predict(0)
    (block,) = first._slots[0].blocks.values()
    h = torch.from_numpy(block.y).requires_grad_()
    weights = {name: torch.from_numpy(one) for name, one in last.state()["layer3"].items()}
    means = h.mean((2, 3)).repeat(1, 4)
    logits = torch.nn.functional.linear(means, weights["0.fc.weight"], weights["0.fc.bias"])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    (expected,) = torch.autograd.grad(loss, h)
    np.testing.assert_allclose(first._slots[0].prediction, expected, rtol=1e-4, atol=1e-6)
    before = first.snapshot()
    first.forward(1, {"data": x}, {"y": y})
    first.predict(1)
    (name,) = before
    assert not np.array_equal(
        first.snapshot()[name]["generator.blocks.up.weight"],
        before[name]["generator.blocks.up.weight"],
    )
