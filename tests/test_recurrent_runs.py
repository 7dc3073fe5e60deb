"""Whole runs on windows of sequences: recurrent stages in workers of their own."""

from __future__ import annotations

from typing import Any

import msgspec
import networks
import numpy as np
import pytest
from each import each
from streaming import copying, recurrent

from asyncdni.data import open_batches
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.recurrent import Lstm
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, flatten
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.build import Design, make_source, make_stage, make_whole_stage
from asyncdni.schedules.base import Op, OpKind, Source

LOCKED = {"name": "locked"}
SYNTHETIC = {"name": "synthetic"}
FUTURE = {"labels": 6}  # three coming targets of two numbers each


def run(schedule: dict[str, Any], seed: int = 1, **more: Any) -> Any:
    return simulate(copying(schedule, **more), seed=seed, maths=True)


def assert_same_bits(some: Any, others: Any) -> None:
    assert some.keys() == others.keys()
    for stage, arrays in some.items():
        assert arrays.keys() == others[stage].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[stage][name], err_msg=f"{stage} {name}")


# --- training --------------------------------------------------------------------------------


def by_hand(design: Design) -> dict[str, Array]:
    """Truncated backpropagation through the layers themselves, one window after the other."""
    run, data = design.experiment.run, design.experiment.data
    layers: list[Any] = [Lstm(5), Lstm(5), Dense(1)]
    names = ["s0", "s1", "top"]
    shape: tuple[int, ...] = design.meta.input_shape
    for name, layer in zip(names, layers, strict=True):
        shape = layer.build(shape, np.dtype("float32"), layer_streams(run.seed, f"{name}.0"))
    vectors = [flatten([layer]) for layer in layers]
    optimizers = [Adam() for _ in layers]
    for optimizer, (params, _) in zip(optimizers, vectors, strict=True):
        optimizer.start(params)
    batches, slots = open_batches(data, run.seed), [Slot() for _ in layers]
    for number in range(design.plan.batches):
        epoch, index = divmod(number, design.plan.batches_per_epoch)
        context = batches.read(epoch, index, data.batch_size, run.seed, "float32")
        h = context.pop("h")
        for layer, slot in zip(layers, slots, strict=True):
            slot["context"] = context
            h = layer.forward(h, slot)
        grad = 1 / (1 + np.exp(-h)) - context["y"]
        grad[~context["mask"]] = 0
        for layer, slot in zip(reversed(layers), reversed(slots), strict=True):
            layer.fresh = True
            grad = layer.backward(grad, slot, learn=True, send=True)
        rate = design.experiment.optimizer.learning_rate
        for optimizer, (params, grads) in zip(optimizers, vectors, strict=True):
            optimizer.step(params, grads / data.batch_size, rate)
    return {
        f"{stage}.0.{key}": value
        for stage, layer in zip(names, layers, strict=True)
        for key, value in layer.params.items()
    }


def test_a_locked_run_is_truncated_backpropagation_through_time() -> None:
    design = copying(LOCKED)
    found = simulate(design, seed=3, maths=True).weights
    for name, array in by_hand(design).items():
        stage, _, key = name.partition(".")
        np.testing.assert_allclose(found[stage][key], array, rtol=2e-3, atol=2e-5, err_msg=name)


@each("kind", ["rnn", "lstm"])
@each("future", [{}, FUTURE, {**FUTURE, "lambda": 1.0}])
def test_a_locked_run_has_the_same_bits_under_every_split(
    kind: str, future: dict[str, Any]
) -> None:
    stages, data = recurrent(kind, **future), {"ahead": 3}
    one = run(LOCKED, stages=stages, data=data)
    for split in ([3], [1, 2]):
        other = run(LOCKED, seed=2, stages=stages, data=data, run={"split": split})
        assert_same_bits(one.weights, other.weights)


GENERATORS: list[dict[str, Any]] = [
    {"kind": "error"},
    {"kind": "linear"},
    {"kind": "low_rank", "rank": 2},
    {"kind": "mlp", "hidden": [4]},
]


@each("generator", GENERATORS)
def test_a_generator_at_a_recurrent_stage_sees_each_step_with_its_own_target(
    generator: dict[str, Any],
) -> None:
    result = run(
        {**SYNTHETIC, "generator": generator}, stages=recurrent(**FUTURE), data={"ahead": 3}
    )
    before = make_whole_stage(copying(LOCKED, recurrent(**FUTURE), data={"ahead": 3})).state()
    for stage, arrays in before.items():
        assert not np.array_equal(result.weights[stage]["0.bias"], arrays["0.bias"]), stage
    assert np.isfinite(result.history[-1]["loss"])


def test_local_heads_learn_from_the_steps_that_count_alone() -> None:
    """All steps of the last window are beyond the sequence, so the heads have nothing to say."""
    design = copying({"name": "local_loss"})
    stage = make_stage(design, design.plan.groups[0])
    context = {**window(design), "mask": np.zeros((4, 3), np.bool_)}
    x = context.pop("h")
    stage.forward(0, {"data": x}, context)
    before = stage.snapshot()["s0"]
    stage.predict(0)
    stage.backward(0, {}, source=Source.SYNTHETIC, learn=True, send=False)
    stage.update()
    np.testing.assert_array_equal(stage.snapshot()["s0"]["head.0.weight"], before["head.0.weight"])
    np.testing.assert_array_equal(stage.snapshot()["s0"]["0.bias"], before["0.bias"])


# --- losses and scores -------------------------------------------------------------------------


def window(design: Design, index: int = 0) -> dict[str, Array]:
    """A training window of the copy task: (4, 3, …)."""
    source = make_source(design, design.plan.groups[0])
    assert source is not None
    return dict(source.read(Op(OpKind.READ, index)))


def test_loss_and_right_answers_are_of_the_steps_that_count() -> None:
    result = run(LOCKED, run={"epochs": 0})
    score = result.history[-1]
    # Nobody has learnt: every answer costs about one bit, ln 2.
    assert score["loss"] == pytest.approx(np.log(2), rel=0.05)
    assert 0.2 < score["accuracy"] < 0.8


def test_a_window_without_a_step_that_counts_has_neither_loss_nor_gradient() -> None:
    design = copying(LOCKED, run={"split": [3]})
    stage = make_stage(design, design.plan.groups[0])
    context = {**window(design), "mask": np.zeros((4, 3), np.bool_)}
    x = context.pop("h")
    (score,) = stage.forward(0, {"data": x}, context).scores
    assert (score.samples, score.steps, score.count, score.loss, score.correct) == (4, 0, 0, 0.0, 0)
    before = stage.state()["s0"]["0.bias"].copy()
    stage.backward(0, {}, source=Source.TRUE, learn=True, send=False)
    stage.update()
    np.testing.assert_array_equal(stage.state()["s0"]["0.bias"], before)


def test_the_gradient_of_a_masked_loss_is_its_derivative() -> None:
    design = copying(LOCKED, run={"split": [3], "dtype": "float64"})
    stage = make_stage(design, design.plan.groups[0])
    context = window(design, 0)
    context["mask"] = np.arange(12).reshape(4, 3) % 3 > 0
    x = context.pop("h")
    stage.forward(0, {"data": x}, context)
    stage.backward(0, {}, source=Source.TRUE, learn=True, send=False)
    grad = stage._blocks["top"]._layers[0].grads["bias"][0]
    logits = stage._blocks["top"]._layers[0].params["bias"]
    values = []
    for number, change in enumerate((1e-6, -1e-6), start=1):
        logits += change
        again = {**context, "first": np.ones(4, np.bool_)}
        (score,) = stage.forward(number, {"data": x}, again).scores
        values.append(score.loss)
        logits -= change
    assert grad == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


# --- evaluation --------------------------------------------------------------------------------


def test_test_windows_are_evaluated_with_the_state_of_the_one_before() -> None:
    design = copying(LOCKED, run={"epochs": 0})
    whole = make_whole_stage(design)
    batches = open_batches(design.experiment.data, design.experiment.run.seed)
    parts = []
    for index in range(design.plan.test_batches):
        context = batches.read_test(index, 4, "float32")
        whole.evaluate({"data": context.pop("h")}, context)
        parts.append(context | {"h": batches.read_test(index, 4, "float32")["h"]})
    ends = [k for k, part in enumerate(parts) if part["last"].all()]
    sequence = parts[: ends[0] + 1]  # the first of each stream, in one go
    fresh = make_whole_stage(design)
    x = np.concatenate([part["h"] for part in sequence], axis=1)
    y = np.concatenate([part["y"] for part in sequence], axis=1)
    mask = np.concatenate([part["mask"] for part in sequence], axis=1)
    h = x
    for name in ("s0", "s1", "top"):
        h = fresh._blocks[name]._layers[0].evaluate(h)
    total = make_loss("sigmoid_cross_entropy").forward(h[mask], y[mask], {})[0]
    pieces = 0.0
    for part in sequence:
        rest = {name: array for name, array in part.items() if name != "h"}
        pieces += fresh.evaluate({"data": part["h"]}, rest).scores[0].loss
    assert pieces == pytest.approx(total, rel=1e-5)


# --- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_a_stage_goes_on_from_its_snapshot_to_the_same_bits(lambda_: float) -> None:
    stages = recurrent(**{**FUTURE, "lambda": lambda_})
    design = copying(LOCKED, stages, data={"ahead": 3}, run={"split": [3]})
    one, other = (make_stage(design, design.plan.groups[0]) for _ in range(2))
    learn(one, design, range(2))
    assert other.restore(one.snapshot()) == []
    for stage in (one, other):
        learn(stage, design, range(2, 5))
    assert_same_bits(one.snapshot(), other.snapshot())


def learn(stage: Any, design: Design, batches: range) -> None:
    for batch in batches:
        context = window(design, batch)
        stage.forward(batch, {"data": context.pop("h")}, context)
        stage.backward(batch, {}, source=Source.TRUE, learn=True, send=False)
        stage.update()
        stage.release(batch, lambda: True)


def test_streams_and_futures_are_in_snapshots_and_not_among_the_weights() -> None:
    stages = recurrent(**FUTURE)
    design = copying(LOCKED, stages, data={"ahead": 3}, run={"split": [3]})
    stage = make_stage(design, design.plan.groups[0])
    assert {"0.carried.state", "0.future.weight"} <= stage.snapshot()["s0"].keys()
    assert stage.state()["s0"].keys() == {"0.weight_ih", "0.weight_hh", "0.bias"}


def test_samples_that_are_whole_sequences_begin_anew_with_each_batch() -> None:
    """The last batch of an epoch may be smaller, and nothing goes from one to the next."""
    data = {"name": "digit_pairs", "examples": 10, "test_examples": 6, "batch_size": 4, "steps": 2}
    hidden = {"name": "s0", "layers": [{"rnn": {"units": 3, "last_only": True}}]}
    top = {"name": "top", "layers": [{"dense": 1}], "loss": "sigmoid_cross_entropy"}
    design = networks.design([hidden, top], LOCKED, data=data)
    simulate(design, seed=1, maths=True)
    stage = make_stage(design, design.plan.groups[0])
    context = window(design)
    x = context.pop("h")
    first = stage.forward(0, {"data": x}, context).activation
    again = stage.forward(1, {"data": x[:3]}, {"y": context["y"][:3]}).activation
    assert first is not None
    assert again is not None
    np.testing.assert_allclose(again, first[:3], rtol=1e-6)
    assert not any("carried" in name for name in stage.snapshot()["s0"])


# --- what can't be ------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"name": "1f1b", "microbatches": 2}, {}, r"schedule\.microbatches: 2 would tear the streams"),
    ({"name": "local_loss", "replay": 2}, {}, r"schedule\.replay: stage s0 is recurrent"),
    ({**SYNTHETIC, "on_full": "skip"}, {}, r"schedule\.on_full: stage s0 .* expected 'wait'"),
    (SYNTHETIC, {"staleness": {"at_bound": "drop"}}, r"staleness\.at_bound: stage s0"),
    ({**SYNTHETIC, "synthetic_inputs": True}, {}, r"schedule\.synthetic_inputs: an input model"),
]


@each("schedule, more, message", REFUSED)
def test_schedules_that_would_tear_streams_apart_are_refused(
    schedule: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        copying(schedule, **more)


def test_a_generator_needs_the_steps_of_windows_apart() -> None:
    hidden = {"name": "s0", "layers": [{"lstm": 4}, "flatten"]}
    top = {"name": "top", "layers": [{"reshape": [3, 4]}, {"dense": 1}], "loss": "mse"}
    assert copying(LOCKED, [hidden, top]).network.node("s0").output_shape == (12,)
    with pytest.raises(ConfigError, match=r"ends in shape \(12,\), but its generator needs the 3"):
        copying(SYNTHETIC, [hidden, top])


def test_a_convolutional_generator_needs_feature_maps() -> None:
    schedule = {**SYNTHETIC, "generator": {"kind": "convolutional"}}
    with pytest.raises(ConfigError, match=r"ends in shape \(6,\), and a convolutional generator"):
        networks.design(networks.chain(2), schedule)


def test_a_description_of_data_survives_the_wire() -> None:
    meta = copying(LOCKED).meta
    assert msgspec.convert(msgspec.to_builtins(meta), type(meta)) == meta
