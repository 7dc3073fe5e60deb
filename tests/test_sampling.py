"""What networks make by themselves: texts, curves, images of a prior, predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each
from sampled import autoencoder, circle, letters, recipe, run_of

from asyncdni.errors import CheckpointError, ConfigError, DataError
from asyncdni.evaluation import evaluate, predict
from asyncdni.plan.build import make_design, make_whole_stage
from asyncdni.sampling import (
    Stepper,
    as_csv,
    as_images,
    classifies_images,
    continue_curve,
    continue_text,
    draw_images,
    has_prior,
    image_shape,
    load_stages,
    predict_images,
    reconstruct,
    tells_characters,
    tells_points,
)
from asyncdni.store.run import Result, by_stage

ALPHABET = "abcdefgh\n" * 60


# --- step by step ----------------------------------------------------------------------------


@each("cell", ["lstm", "rnn"])
@each("join", ["concat", "sum"])
def test_steps_give_what_a_whole_window_gives(cell: str, join: str) -> None:
    """Two recurrent stages side by side, joined, and a layer that works on each step alone."""
    data = {"name": "trigonometry", "window": 6, "points": 60, "test_points": 12, "batch_size": 1}
    layers = [{cell: 5}]
    stages = [
        {"name": "left", "layers": layers, "inputs": ["data"]},
        {"name": "right", "layers": [*layers, "tanh"], "inputs": ["data"]},
        {"name": "top", "layers": ["layer_norm", {"dense": 2}], "inputs": ["left", "right"]},
    ]
    stages[2] |= {"join": join, "loss": "mse"}
    run = run_of(data, stages)
    x = np.random.default_rng(0).normal(size=(3, 6, 2)).astype(np.float32)
    stepper = Stepper(run)
    steps = np.stack([stepper.step(x[:, step]) for step in range(6)], axis=1)
    np.testing.assert_allclose(steps, predict(run, x)["top"], rtol=1e-5, atol=1e-6)


def test_a_network_that_remembers_nothing_is_refused() -> None:
    data = {"name": "trigonometry", "batch_size": 1}
    run = run_of(data, [{"name": "top", "layers": [{"dense": 2}], "loss": "mse"}])
    with pytest.raises(ConfigError, match="no recurrent layer"):
        continue_curve(run)


def test_layers_that_need_a_whole_window_are_refused() -> None:
    data = {"name": "trigonometry", "batch_size": 1, "window": 4}
    layers = [{"lstm": 3}, "flatten", {"dense": 8}, {"reshape": [4, 2]}]
    run = run_of(data, [{"name": "top", "layers": layers, "loss": "mse"}])
    with pytest.raises((ConfigError, CheckpointError), match=r"top\.2"):
        continue_curve(run)


# --- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["one_hot", "ids"])
def test_a_text_that_repeats_itself_is_continued(tmp_path: Path, encoding: str) -> None:
    run = letters(tmp_path / "text.txt", ALPHABET, train=True, encoding=encoding)
    assert tells_characters(run)
    text = continue_text(run, prompt="efgh\nabc", length=18, temperature=0)
    assert text == ("defgh\nabc" * 2)


def test_a_text_is_the_same_for_the_same_seed_alone(tmp_path: Path) -> None:
    run = letters(tmp_path / "text.txt", ALPHABET)
    texts = [continue_text(run, length=40, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 40
    assert set(texts[0]) <= set(ALPHABET)


def test_temperature_flattens_what_is_drawn(tmp_path: Path) -> None:
    """Of a network that always prefers "a": its bias says so, by 3 nats."""
    run = letters(tmp_path / "text.txt", ALPHABET)
    for name, array in run.weights.items():
        if name.startswith("readout"):
            array[...] = 0
    run.weights["readout.0.bias"][run.meta.vocabulary.index("a")] = 3
    shares = []
    for temperature in (0.5, 1.0, 100.0):
        text = continue_text(run, length=800, temperature=temperature)
        shares.append(text.count("a") / 800)
    expected = [np.exp(3 / t) / (np.exp(3 / t) + 8) for t in (0.5, 1.0, 100.0)]
    np.testing.assert_allclose(shares, expected, atol=0.05)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": "xyz"}, DataError, "'x' is not among the 9 characters"),
    ({"length": -1}, ConfigError, "length -1"),
    ({"temperature": -0.5}, ConfigError, "temperature -0.5"),
    ({"temperature": float("nan")}, ConfigError, "temperature nan"),
]


@each("options, kind, message", REFUSED)
def test_texts_that_can_not_be_are_refused(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    run = letters(tmp_path / "text.txt", ALPHABET)
    with pytest.raises(kind, match=message):
        continue_text(run, **options)


# --- curves ----------------------------------------------------------------------------------


def test_each_generated_point_is_the_next_input() -> None:
    run = circle()
    assert tells_points(run)
    curve = continue_curve(run, length=7)
    assert curve.given == 5
    assert curve.truth.shape == (12, 2)
    x = np.concatenate([curve.truth[:5], curve.generated[:-1]]).astype(np.float32)
    last_window = whole_sequence(run, x)[-7:]
    np.testing.assert_allclose(curve.generated, last_window, rtol=1e-4, atol=1e-6)


def whole_sequence(run: Result, x: np.ndarray) -> np.ndarray:
    h = x[None]
    for stage in load_stages(run, steps=len(x)):
        for layer in stage.layers:
            h = layer.evaluate(h)
    return h[0]


def test_a_circle_is_gone_around_after_training() -> None:
    run = recipe("trigonometry", "run.epochs=20", "run.evaluate_every=20", train=True)
    assert continue_curve(run).error < 0.2 < continue_curve(circle()).error


def test_the_table_of_a_curve_has_a_line_for_each_step() -> None:
    lines = as_csv(continue_curve(circle(), length=3)).splitlines()
    assert lines[0] == "step,true_cos,true_sin,cos,sin"
    assert lines[1] == "0,1.000000,0.000000,,"
    assert len(lines) == 9
    assert all(len(line.split(",")) == 5 and "" not in line.split(",") for line in lines[6:])


def test_no_points_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="length 0"):
        continue_curve(circle(), length=0)


# --- images ----------------------------------------------------------------------------------


def test_images_of_the_prior_are_what_lies_behind_the_codes() -> None:
    run = autoencoder()
    assert has_prior(run)
    images = draw_images(run, count=5, seed=3)
    assert images.shape == (5, 28, 28)
    assert ((images > 0) & (images < 1)).all()
    np.testing.assert_array_equal(images, draw_images(run, count=5, seed=3))
    run.weights["decoder.0.weight"][...] = 0
    run.weights["decoder.0.bias"][...] = np.log(3)
    np.testing.assert_allclose(draw_images(run, count=2), 0.75, rtol=1e-6)


def test_codes_go_through_the_rest_of_their_own_stage() -> None:
    """tanh follows the gaussian layer there, so no code is above 1."""
    run = autoencoder()
    run.weights["decoder.0.weight"][...] = 0
    run.weights["decoder.0.weight"][0, 0] = 1
    brightest = draw_images(run, count=300)[:, 0, 0].max()
    assert 0.7 < brightest < 1 / (1 + np.exp(-1))


def test_an_image_that_takes_more_than_its_code_is_refused() -> None:
    run = autoencoder()
    stages = [{"name": s.name, "layers": s.layers, "loss": s.loss} for s in run.experiment.stages]
    stages[2]["inputs"] = ["code", "data"]
    more = run_of({"name": "digits", "targets": "inputs", "batch_size": 50}, stages)
    with pytest.raises(ConfigError, match="stage decoder, which makes it, needs more"):
        draw_images(more)


def test_reconstructions_are_the_outputs_for_test_images() -> None:
    run = autoencoder()
    found = reconstruct(run, count=4)
    rows = found.images.reshape(4, 784).astype(np.float32)
    logits = predict(run, rows)["decoder"]
    np.testing.assert_allclose(found.made.reshape(4, 784), 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize("source", ["digits", "digit_pairs"])
def test_predictions_are_those_of_the_first_test_images(source: str) -> None:
    data = {"name": source, "batch_size": 10}
    pair = source == "digit_pairs"
    loss = "sigmoid_cross_entropy" if pair else "cross_entropy"
    run = run_of(data, [{"name": "top", "layers": [{"dense": 1 if pair else 10}], "loss": loss}])
    assert classifies_images(run)
    for name in run.weights:
        run.weights[name][...] = 0
    run.weights["top.0.bias"][-1] = 1  # whatever it is, it is the last
    found = predict_images(run, count=6)
    assert found.predicted == ["1" if pair else "9"] * 6
    assert found.right == found.truth.count(found.predicted[0])
    assert found.images.shape == (6, 28, 28)


def test_images_are_planes_or_the_pixels_of_a_square() -> None:
    assert image_shape((784,)) == image_shape((2, 784)) == image_shape((1, 28, 28)) == (28, 28)
    assert image_shape((3, 32, 32)) == (32, 32, 3)
    assert image_shape((17,)) is image_shape((5, 2)) is image_shape((2, 8, 8)) is None
    planes = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(as_images(planes, (3, 2, 2))[1, 0, 1], planes[1, :, 0, 1])


def test_weights_of_another_network_are_refused() -> None:
    run = autoencoder()
    run.weights["code.0.weight"] = run.weights["code.0.weight"][:, :3]
    with pytest.raises(CheckpointError, match=r"code\.0: weight is \(8, 3\), expected \(8, 12\)"):
        draw_images(run)


def test_a_run_is_sampled_with_its_own_weights() -> None:
    """Not with the first ones: the same stages as `evaluation` uses."""
    run = autoencoder()
    for array in run.weights.values():
        array += 0.25
    design = make_design(run.experiment, run.meta)
    whole = make_whole_stage(design)
    whole.load(by_stage(run.weights))
    x = np.random.default_rng(1).random((2, 784)).astype(np.float32)
    h = x
    for stage in load_stages(run):
        for layer in stage.layers:
            h = layer.evaluate(h)
    np.testing.assert_array_equal(h, whole.outputs({"data": x})["decoder"])


def test_an_autoencoder_has_a_loss_but_no_answers_that_are_right_or_wrong() -> None:
    told = evaluate(autoencoder())
    assert told["accuracy"] is None and told["loss"] is not None
