"""`--set section.key=value`: values, places, and options left over from another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from each import each

from asyncdni import config, experiment
from asyncdni.errors import ConfigError
from asyncdni.experiment import dumps, load
from asyncdni.experiment.overrides import parse_setting

FILE = """
[data]
name = "npz"
path = "/a.npz"
batch_size = 32

[[stages]]
name = "hidden1"
layers = [{ dense = 8 }, "relu"]
optimizer = { beta1 = 0.5, learning_rate = 0.02 }

[[stages]]
layers = [{ dense = 2 }]
loss = "cross_entropy"

[schedule]
name = "synthetic"
fit_every = 4
generator = { kind = "mlp", hidden = [8], labels = false }

[optimizer]
name = "adam"
learning_rate = 0.01
beta1 = 0.8
decay = { name = "step", epochs = [1, 2], warmup_epochs = 1 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(FILE)
    return path


def refusal(file: Path, *overrides: str, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, overrides, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@each(
    "text, value",
    [
        ("0.5", 0.5),
        ("3", 3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("{ a = 1 }", {"a": 1}),
        ("'x'", "x"),
        ("mse", "mse"),
        ("a=b", "a=b"),
        ("", ""),
        (" spaced ", "spaced"),
        ("2024-01-01", "2024-01-01"),
        ("1\nb = 2", "1\nb = 2"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_a_value_is_toml_or_else_a_bare_string(text: str, value: object) -> None:
    assert parse_setting(f"a.b={text}") == (("a", "b"), value)


@each("text", ["epochs", "=3", "run.=3", ".epochs=3", ""])
def test_a_setting_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value, such as run\.epochs=3"):
        parse_setting(text)


def test_a_value_that_begins_like_toml_but_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set 'run\.split=\[1, 2': the value is not TOML"):
        parse_setting("run.split=[1, 2")


def test_settings_reach_sections_the_file_has_not(file: Path) -> None:
    assert load(file, ["run.epochs=7"]).run.epochs == 7


def test_the_last_of_two_settings_wins(file: Path) -> None:
    assert load(file, ["run.epochs=7", "run.epochs=8"]).run.epochs == 8


def test_stages_are_found_by_name_default_name_and_index(file: Path) -> None:
    overrides = ["stages.hidden1.layers=[{ dense = 4 }]", "stages.stage2.join=sum"]
    first, second = load(file, [*overrides, "stages.1.loss=mse"]).stages
    assert (first.layers, second.join, second.loss) == ([{"dense": 4}], "sum", "mse")


def test_a_layer_is_found_by_index(file: Path) -> None:
    assert load(file, ["stages.hidden1.layers.0.dense=4"]).stages[0].layers[0] == {"dense": 4}


def test_unknown_places_are_refused(file: Path) -> None:
    assert refusal(file, "stages.hiden1.loss=mse") == (
        "--set stages.hiden1.loss: unknown stage 'hiden1', did you mean 'hidden1'? known: hidden1, "
        "stage2"
    )
    assert refusal(file, "stages.2.loss=mse") == (
        "--set stages.2.loss: unknown stage '2'; known: hidden1, stage2"
    )
    assert refusal(file, "stages.0.layers.2=relu") == (
        "--set stages.0.layers.2: stages.0.layers has items 0 to 1, got '2'"
    )
    assert refusal(file, "data.path.x=1") == (
        "--set data.path.x: data.path is '/a.npz', not a table"
    )
    assert refusal(file, "runn.epochs=1").startswith("unknown section 'runn', did you mean 'run'?")
    assert refusal(file, "run.epoch=1").startswith("run: unknown key 'epoch', did you mean")


def test_another_schedule_drops_the_options_of_the_old_one(file: Path) -> None:
    assert load(file, schedule="locked").schedule == config.Locked()
    assert load(file, ["schedule.name=locked"]).schedule == config.Locked()


def test_an_unknown_schedule_is_refused_with_those_known(file: Path) -> None:
    text = (
        "schedule.name: unknown schedule 'chimera'; known: locked, gpipe, 1f1b, delayed, "
        "local_loss, synthetic"
    )
    assert refusal(file, schedule="chimera") == text


def test_another_schedule_drops_what_stages_changed_of_the_old_one(file: Path) -> None:
    own = ["stages.0.schedule.fit_every=2", "stages.0.schedule.split_backward=false"]
    text = dumps(load(file, ["schedule.name=synthetic", own[0]]))
    file.write_text(text)
    assert load(file).stages[0].schedule == {"fit_every": 2}
    assert load(file, schedule="locked").stages[0].schedule == {}
    assert load(file, own[1:], schedule="locked").stages[0].schedule == {"split_backward": False}


def test_a_key_may_be_quoted_as_toml_wants_it(file: Path) -> None:
    for key in ("a->b", '"a->b"'):
        between = load(file, [f"links.between.{key}.latency=5ms"]).links.between
        assert between == {"a->b": config.Link(latency="5ms")}


def test_another_generator_keeps_the_options_it_knows(file: Path) -> None:
    schedule = load(file, ["schedule.generator.kind=linear"]).schedule
    assert schedule == config.Synthetic(fit_every=4, generator=config.LinearGenerator(labels=False))


def test_another_data_set_drops_the_path(file: Path) -> None:
    assert load(file, ["data.name=digits"]).data == config.Digits(batch_size=32)


def test_another_optimizer_keeps_what_it_knows_in_the_run_and_in_stages(file: Path) -> None:
    experiment = load(file, ["optimizer.name=sgd"])
    decay = config.Step(epochs=[1, 2], warmup_epochs=1)
    assert experiment.optimizer == config.Sgd(learning_rate=0.01, decay=decay)
    assert experiment.stages[0].optimizer == {"learning_rate": 0.02}


def test_another_optimizer_of_one_stage_keeps_what_it_knows(file: Path) -> None:
    experiment = load(file, ["stages.hidden1.optimizer.name=sgd"])
    assert experiment.stages[0].optimizer == {"name": "sgd", "learning_rate": 0.02}


def test_another_decay_keeps_what_it_knows(file: Path) -> None:
    decay = load(file, ["optimizer.decay.name=cosine"]).optimizer.decay
    assert decay == config.Cosine(warmup_epochs=1)


@pytest.mark.parametrize("reverse", [False, True])
def test_options_given_by_set_are_never_dropped(file: Path, reverse: bool) -> None:
    overrides = ["schedule.name=locked", "schedule.generator.labels=true"]
    assert refusal(file, *(overrides[::-1] if reverse else overrides)) == (
        "schedule: key 'generator' belongs to schedule local_loss, synthetic, not to locked; known "
        "keys: name, split_backward"
    )


def test_options_of_the_default_kind_need_no_name(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('data.name = "digits"\n[[stages]]\nlayers = ["relu"]\n')
    assert load(path, ["optimizer.beta1=0.5"]).optimizer == config.Adam(beta1=0.5)
    generator = load(path, ["schedule.generator.kind=zero"]).schedule
    assert generator == config.Synthetic(generator=config.ZeroGenerator())


def test_a_mistake_in_the_file_is_not_dropped_with_the_old_options(file: Path) -> None:
    file.write_text(FILE.replace("fit_every", "fit_evry"))
    text = refusal(file, schedule="locked")
    assert text == "schedule (locked): unknown key 'fit_evry'; known: split_backward"


def test_a_table_that_the_other_kind_can_do_without_is_not_taken_over() -> None:
    """Both schedules have a `generator`; that of `local_loss` needs a loss of its own."""
    tables = {
        "data": {"name": "digits"},
        "stages": [{"layers": [{"dense": 10}], "loss": "cross_entropy"}],
        "schedule": {"name": "synthetic", "generator": {"kind": "linear"}},
    }
    local = experiment.change(tables, schedule="local_loss")
    assert local.schedule == config.LocalLoss()
    assert experiment.change(experiment.tables(local), schedule="synthetic").schedule == (
        config.Synthetic()
    )
