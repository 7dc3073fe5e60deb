"""Modules of PyTorch under every schedule and generator, killed, resumed and evaluated."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each
from processes import Command, Site, make_site, records, until_recorded

torch = pytest.importorskip("torch")

from torch_plain import differences, one_thread, trained  # noqa: E402

import asyncdni  # noqa: E402
from asyncdni import config, experiment  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.virtual.simulation import Result, simulate  # noqa: E402
from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.imports import allowing  # noqa: E402
from asyncdni.plan.build import make_design  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

RECIPES = Path(__file__).parent.parent / "launch" / "torch"

MLP: dict[str, Any] = {
    "model": {
        "build": "torch_models:mlp",
        "arguments": {"width": 24, "inputs": 37, "outputs": 5, "depth": 3},
        "stages": ["3", "6"],
    },
    "data": {
        "name": "torch",
        "build": "torch_models:points",
        "arguments": {"samples": 300},
        "batch_size": 20,
    },
    "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9},
    "run": {"epochs": 8},
}


def parsed(tables: dict[str, Any], **changes: dict[str, Any]) -> config.Experiment:
    return experiment.parse({**tables, **{name: dict(one) for name, one in changes.items()}})


def simulated(chosen: config.Experiment) -> Result:
    with allowing(True), one_thread():
        design = begin_with(make_design(chosen, describe(chosen.data), allow_import=True))
        return simulate(design, seed=0, maths=True)


def accuracies(result: Result) -> tuple[float, float]:
    """At the first evaluation, and at the last."""
    found = [one["accuracy"] for one in result.history]
    return found[0], found[-1]


# --- schedules and generators --------------------------------------------------------------------


@each(
    "schedule",
    [
        {"name": "locked"},
        {"name": "gpipe", "microbatches": 2},
        {"name": "1f1b", "microbatches": 2},
        {"name": "delayed"},
        {"name": "delayed", "weights": "stash"},
        {"name": "delayed", "look_ahead": 1.0},
        {"name": "local_loss"},
        {"name": "synthetic"},
        {"name": "synthetic", "correct": True},
        {"name": "synthetic", "mix": 0.5},
        {"name": "synthetic", "target": "bootstrap"},
    ],
)
def test_a_small_network_learns_under_every_schedule(schedule: dict[str, Any]) -> None:
    result = simulated(parsed(MLP, schedule=schedule))
    assert accuracies(result)[1] == 1.0, result.history


@each("kind", ["error", "linear", "low_rank", "mlp", "zero"])
def test_generators_of_vectors_serve_modules(kind: str) -> None:
    schedule = {"name": "synthetic", "generator": {"kind": kind}}
    assert accuracies(simulated(parsed(MLP, schedule=schedule)))[1] > 0.8


@each("kind", ["error", "convolutional", "zero"])
def test_generators_of_maps_serve_modules(kind: str) -> None:
    tables = {
        **MLP,
        "model": {
            "build": "torch_models:resnet18",
            "arguments": {"width": 4},
            "stages": ["layer2", "layer4"],
        },
        "data": {**MLP["data"], "build": "torch_models:pictures", "arguments": {"samples": 60}},
        "run": {"epochs": 3},
    }
    schedule = {"name": "synthetic", "generator": {"kind": kind}}
    result = simulated(parsed(tables, schedule=schedule))
    losses = [one["loss"] for one in result.history]
    assert losses[-1] < losses[0], losses


def test_the_vision_transformer_makes_a_step_by_gradients_through_its_readout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    x, y = np.random.default_rng(0).random((16, 1, 28, 28), np.float32), np.arange(16) % 10
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    chosen = experiment.load(
        RECIPES / "vit.toml",
        [
            f'data={{ name = "npz", path = "{tmp_path}/images.npz", batch_size = 16 }}',
            "model.arguments={ width = 8, layers = 4, heads = 2, patch = 7 }",
            'schedule={ name = "synthetic", generator = { kind = "readout" } }',
            "optimizer={ name = 'adam', learning_rate = 1e-3 }",
            "run.epochs=2",
            "run.evaluate_every=1",
        ],
    )
    losses = [one["loss"] for one in simulated(chosen).history]
    assert len(losses) == 2 and losses[1] < losses[0], losses


def test_a_gpt_reads_a_text_in_tokens_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.syspath_prepend(str(RECIPES))
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on the mat and the hat\n" * 200)
    sizes = "vocabulary = 270, width = 8, layers = 4, heads = 2, steps = 8"
    chosen = experiment.load(
        RECIPES / "gpt-bpe.toml",
        [
            f'data.arguments={{ path = "{words}", vocabulary = 270, window = 8 }}',
            f"model.arguments={{ {sizes} }}",
            "optimizer.learning_rate=1e-2",
        ],
    )
    losses = [one["loss"] for one in simulated(chosen).history]
    assert losses[-1] < 0.9 * np.log(270), losses
    from bpe import tokenizer

    found = tokenizer(str(words), 270)
    assert found.get_vocab_size() == 270
    assert found.decode(found.encode("the cat").ids) == "the cat"


def test_dropout_is_the_same_under_every_cut() -> None:
    arguments = {"width": 24, "inputs": 37, "outputs": 5}
    found = []
    for begins in (["3"], ["3", "6"], ["2", "5"]):
        model = {"build": "torch_models:dropped", "arguments": arguments, "stages": begins}
        result = simulated(parsed({**MLP, "model": model}, schedule={"name": "locked"}))
        found.append(accuracies(result)[1])
    assert min(found) == 1.0


def test_frozen_stages_stay_while_the_last_one_learns() -> None:
    model = {**MLP["model"], "build": "torch_models:frozen_below"}
    model["arguments"] = {"width": 24, "inputs": 37, "outputs": 5}
    chosen = parsed({**MLP, "model": model}, schedule={"name": "locked"})
    result = simulated(chosen)
    weights = {
        f"{stage}.{name}": one for stage, own in result.weights.items() for name, one in own.items()
    }
    assert not differences(weights, trained(chosen))


def test_an_autoencoder_learns_to_give_back_its_inputs() -> None:
    model = {
        "build": "torch_models:autoencoder",
        "arguments": {"inputs": 784},
        "stages": ["1"],
        "loss": "mse",
    }
    data = {"name": "digits", "targets": "inputs", "batch_size": 500}
    optimizer = {"name": "adam", "learning_rate": 0.01}
    chosen = parsed({"model": model, "data": data, "optimizer": optimizer, "run": {"epochs": 1}})
    losses = [one["loss"] for one in simulated(chosen).history]
    assert losses[-1] < 0.1, losses


def test_any_optimizer_of_pytorch_may_be_named() -> None:
    optimizer = {"name": "torch", "kind": "RMSprop", "learning_rate": 0.003, "options": {}}
    optimizer["options"] = {"momentum": 0.5, "alpha": 0.9}
    chosen = parsed(MLP, optimizer=optimizer, schedule={"name": "locked"})
    result = simulated(chosen)
    weights = {
        f"{stage}.{name}": one for stage, own in result.weights.items() for name, one in own.items()
    }
    assert not differences(weights, trained(chosen))


@each(
    "optimizer, words",
    [
        ({"name": "torch", "kind": "Adam2"}, "optimizer.kind"),
        ({"name": "torch", "kind": "Adam", "options": {"beta": 1}}, "optimizer.options"),
    ],
)
def test_an_optimizer_that_pytorch_does_not_have_is_refused_before_workers_start(
    optimizer: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        asyncdni.train(parsed(MLP, optimizer=optimizer), allow_import=True)


# --- real processes ------------------------------------------------------------------------------

#: Three stages in two workers. The pauses only give a test the time to do its work.
FILE = """\
[data]
name = "torch"
build = "torch_models:points"
arguments = { samples = 90 }
batch_size = 20

[model]
build = "torch_models:mlp"
arguments = { width = 11, inputs = 37, outputs = 5, depth = 3 }
stages = ["3", "6"]

[schedule]
name = "locked"

[optimizer]
name = "adam"

[checkpoint]
every = 5.0

[run]
epochs = 40
seed = 5
evaluate_every = 20.0
split = [2, 1]

[slow.layer6]
pause = "4ms"
chance = 1.0
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("run.toml", FILE)
        made.write("torch_models.py", (Path(__file__).parent / "torch_models.py").read_text())
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of the file, trained by a plain loop."""
    path = tmp_path_factory.mktemp("plain") / "run.toml"
    path.write_text(FILE)
    return trained(experiment.load(path))


def start(site: Site) -> Command:
    return site.start("train", "run.toml", "--out", "run", "--allow-import")


def test_a_killed_worker_ends_with_the_weights_of_the_undisturbed_run(
    site: Site, undisturbed: Any
) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    pids = {one["stage"]: one["pid"] for one in records(site.folder / "run", "joined")}
    os.kill(pids["layer6"], signal.SIGKILL)
    done = command.finished()
    assert (done.code, done.err) == (0, "")
    result = asyncdni.open_run(site.folder / "run")
    assert result.summary["restarts"] == 1
    assert not differences(result.weights, undisturbed)


@pytest.mark.long
def test_an_interrupted_run_goes_on_under_another_split(site: Site, undisturbed: Any) -> None:
    command = start(site)
    until_recorded(site.folder / "run", "cut")
    command.interrupt()
    command.finished().refused("interrupted after")
    changes = ("--set", "run.split=[1, 1, 1]", "--set", "slow={}")
    done = site.run("train", "--resume", "run", "--allow-import", *changes)
    assert (done.code, done.err) == (0, "")
    result = asyncdni.open_run(site.folder / "run")
    assert result.summary["resumes"] == 1
    assert not differences(result.weights, undisturbed)
