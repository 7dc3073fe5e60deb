"""The generator `readout` where stages are made of layers: what it predicts, copies and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import streaming
from each import each

from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import ConfigError
from asyncdni.messages import Gradient, Weights
from asyncdni.nn.streams import stream
from asyncdni.plan.build import Design, make_stage, readout_forms
from asyncdni.schedules.base import Source

READOUT: dict[str, Any] = {"kind": "readout", "refresh": 4}
DIGITS = {"name": "digits", "batch_size": 50}
#: The last stage's layers, with random masks, weights in a norm, and a product before the head.
DEEP: list[Any] = [{"dense": networks.WIDTH}, {"dropout": 0.5}, "layer_norm", {"dense": 4}]


def synthetic(**generator: Any) -> dict[str, Any]:
    return {"name": "synthetic", "generator": {**READOUT, **generator}}


def ended(layers: list[Any], schedule: dict[str, Any] | None = None) -> Design:
    """Three stages, the last one of `layers`."""
    *hidden, top = networks.chain(3)
    return networks.design([*hidden, {**top, "layers": layers}], schedule or synthetic())


def batch(design: Design, samples: int = 5) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = stream(0, "numbers", "test")
    x = rng.standard_normal((samples, *design.meta.input_shape)).astype(np.float32)
    return {"data": x}, {"y": rng.integers(0, 2, (samples, 4)).astype(np.float32)}


@each(
    "layers, first",
    [
        ([{"dense": 4}], 0),
        (["batch_norm", "relu", {"dense": 4}], 0),
        (DEEP, 0),
        (DEEP, 2),
    ],
)
def test_the_prediction_is_what_the_last_stage_would_send_back(
    layers: list[Any], first: int
) -> None:
    """To the last bit, batch norms' statistics and dropout's masks included."""
    design, plain = ended(layers, synthetic(begin=str(first))), ended(layers[first:])
    stage, last = make_stage(design, design.plan.groups[0]), make_stage(plain, plain.plan.groups[2])
    kept = stage.snapshot()["s0"]
    own = last.state()["top"]
    for name in own:
        position, _, rest = name.partition(".")
        given = kept.get(f"generator.readout.{int(position) + first}.{rest}")
        if given is not None:  # no running statistics
            own[name][...] = given
    inputs, context = batch(design)
    for number in range(2):
        stage.forward(number, inputs, context)
        stage.predict(number)
        last.forward(number, {"s1": stage._slots[number].blocks["s0"].y}, context)
        sent = last.backward(number, {}, source=Source.TRUE, learn=True, send=True)
        np.testing.assert_array_equal(stage._slots[number].prediction, sent["s1"]["top"])
        assert (sent["s1"]["top"] != 0).any()


def test_windows_count_the_steps_that_the_mask_does() -> None:
    hidden = {"name": "s0", "layers": [{"dense": 5}, "tanh"]}
    stages = [hidden, {**hidden, "name": "s1"}, streaming.recurrent()[-1]]
    design = streaming.copying(synthetic(), stages)
    first, _, last = (make_stage(design, group) for group in design.plan.groups)
    rng = stream(0, "numbers", "test")
    x = rng.standard_normal((4, *design.meta.input_shape)).astype(np.float32)
    y = rng.integers(0, 2, (4, 3, 1)).astype(np.float32)
    context = {"y": y, "mask": rng.integers(0, 2, (4, 3)).astype(bool)}
    first.forward(0, {"data": x}, context)
    first.predict(0)
    h, prediction = first._slots[0].blocks["s0"].y, first._slots[0].prediction
    last.forward(0, {"s1": h}, context)
    sent = last.backward(0, {}, source=Source.TRUE, learn=True, send=True)
    np.testing.assert_array_equal(prediction, sent["s1"]["top"])
    assert (prediction[~context["mask"]] == 0).all() and (prediction[context["mask"]] != 0).any()
    assert simulate(design, seed=0, maths=True, codec=True).failure is None


@each("name", ["synthetic", "local_loss"])
def test_a_network_learns_by_reading_out_alone(name: str) -> None:
    sent: list[tuple[str, str, type, int]] = []

    def watch(sender: str, to: str, message: Any) -> bool:
        sent.append((sender, to, type(message), getattr(message, "version", 0)))
        return False

    hidden = {"layers": [{"dense": 32}, "batch_norm", "relu"]}
    top = {"name": "top", "layers": [{"dense": 10}], "loss": "cross_entropy"}
    stages = [{**hidden, "name": "a"}, {**hidden, "name": "b"}, top]
    schedule = {"name": name, "generator": {**READOUT, "refresh": 50}}
    design = networks.design(stages, schedule, data=DIGITS, run={"epochs": 4})
    result = simulate(design, seed=0, maths=True, codec=True, lose=watch)
    assert result.history[-1]["accuracy"] > 0.9, result.history
    assert not any(kind is Gradient for *_, kind, _ in sent)
    copies = {(sender, to, version) for sender, to, kind, version in sent if kind is Weights}
    assert {to for _, to, _ in copies} == {"a", "b"} and {one for one, *_ in copies} == {"top"}
    assert {version % 50 for *_, version in copies} == {0}
    assert simulate(design, seed=0, maths=True, codec=True).digest == result.digest


def test_a_copy_is_taken_over_and_kept() -> None:
    design = ended(DEEP, synthetic(begin="2"))
    first, _, last = (make_stage(design, group) for group in design.plan.groups)
    forms = readout_forms(design)
    own = last.state()["top"]
    assert set(forms) == {f"{i}.{name}" for i in (2, 3) for name in ("weight", "bias")}
    assert forms == {name: (own[name].shape, own[name].dtype) for name in forms}
    kept = first.snapshot()["s0"]
    for name in forms:  # it begins with the owner's initial weights
        np.testing.assert_array_equal(kept[f"generator.readout.{name}"], own[name])
    first.adopt(8, {name: own[name] + 1 for name in forms})
    first.adopt(4, {name: own[name] + 2 for name in forms})
    assert first.readout() == {"readout_version": 8, "readout_age": 0}
    restored = make_stage(design, design.plan.groups[0])
    restored.restore(first.snapshot())
    assert restored.readout() == first.readout()
    for name in forms:
        kept = restored.snapshot()["s0"]
        np.testing.assert_array_equal(kept[f"generator.readout.{name}"], own[name] + 1)


def test_an_old_copy_learns_until_a_newer_one_comes() -> None:
    design = ended([{"dense": 4}], synthetic(private_after=2))
    stage, inputs = make_stage(design, design.plan.groups[0]), batch(design)

    def moved(number: int) -> bool:
        before = stage.snapshot()["s0"]
        stage.forward(number, *inputs)
        stage.predict(number)
        now = stage.snapshot()["s0"]
        return any((now[name] != before[name]).any() for name in now if "readout" in name)

    assert [moved(number) for number in range(4)] == [False, False, True, True]
    forms = readout_forms(design)
    stage.adopt(4, {name: np.ones(shape, dtype) for name, (shape, dtype) in forms.items()})
    assert not moved(4)
    assert stage.readout() == {"readout_version": 4, "readout_age": 0, "readout_private": 2}
    restored = make_stage(design, design.plan.groups[0])
    restored.restore(stage.snapshot())
    assert restored.readout() == stage.readout()


def test_a_copy_of_another_form_is_its_senders_fault() -> None:
    design = ended([{"dense": 4}])
    inspection = Inspection(design, design.plan.groups[0], {"top": 2})
    sound = {name: np.zeros(shape, kind) for name, (shape, kind) in readout_forms(design).items()}
    assert inspection.accusation(Weights("top", 2, 4, sound)) is None
    accused = inspection.accusation(Weights("top", 2, 4, {"0.weight": sound["0.weight"]}))
    assert accused is not None and "the Weights of version 4 from worker top" in accused.text


def test_a_killed_reader_and_a_killed_owner_go_on(tmp_path: Path) -> None:
    design = networks.design(
        networks.chain(3), synthetic(), run={"epochs": 40}, checkpoint={"snapshot_every": "1ms"}
    )
    faults = Faults(script=("crash s1 at 104ms", "crash top at 106ms"))
    result = simulate(design, seed=0, maths=True, codec=True, folder=tmp_path, faults=faults)
    assert result.failure is None and result.fault_counts == {"crash": 2}


@each(
    "layers, schedule, told",
    [
        (
            [{"dense": 4}],
            synthetic(blocks=1),
            r"generator\.blocks: only the readout of a \[model\]",
        ),
        ([{"dense": 4}], synthetic(map=True), r"generator\.map: only the readout of a \[model\]"),
        ([{"dense": 4}], synthetic(begin="1"), "begin: '1' is no layer of stage top; .* 0 to 0"),
        ([{"dense": 4}], synthetic(begin="norm"), "begin: 'norm' is no layer"),
        (
            [{"dense": 7}, {"dense": 4}],
            synthetic(begin="1"),
            r"stage s0 has activations \(6,\), .* stage top from layer 1 on, takes \(7,\)",
        ),
    ],
)
def test_a_readout_that_does_not_fit_is_refused(
    layers: list[Any], schedule: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        ended(layers, schedule)


def test_layers_that_nobody_else_can_use_are_no_readout() -> None:
    stages = streaming.recurrent()
    stages[-1] = {**stages[-1], "layers": [{"lstm": {"units": 5}}, {"dense": 1}]}
    with pytest.raises(ConfigError, match="stage top, layer 0, which is recurrent"):
        streaming.copying(synthetic(), stages)
    assert streaming.copying(synthetic(begin="1"), stages)
    with pytest.raises(ConfigError, match="stage top, layer 1, which is recurrent, has a loss"):
        ended([{"dense": 8}, "gaussian", {"dense": 4}], synthetic())
