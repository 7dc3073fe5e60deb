"""Experiment files: what is read, what is refused and in which words, and round trips."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from each import each

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment import dumps, load, parse, stage_optimizer

EXAMPLE: dict[str, Any] = {
    "data": {"name": "digits", "batch_size": 128},
    "stages": [
        {"name": "hidden", "layers": [{"dense": 32}, "relu"]},
        {"name": "top", "layers": [{"dense": 10}], "loss": "cross_entropy"},
    ],
}


def changed(**sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(EXAMPLE), **sections}


def stage(**keys: Any) -> dict[str, Any]:
    """The example with `keys` in its second stage."""
    result = changed()
    result["stages"][1] |= keys
    return result


def refusal(given_tables: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(given_tables)
    text = str(caught.value)
    assert "\n" not in text
    return text


DATA_SETS = (
    "digits, mnist, addition, npz, digit_pairs, cifar10, copy, repeat_copy, text, torch, "
    "trigonometry"
)
REFUSALS = [
    (changed(runn={}), "unknown section 'runn', did you mean 'run'? known: data, stages, model, "
     "schedule, optimizer, run, limits, staleness, checkpoint, recovery, elastic, numbers, links, "
     "slow"),
    (changed(run={"epohs": 3}), "run: unknown key 'epohs', did you mean 'epochs'? known: epochs, "
     "max_steps, early_stopping, seed, split, place, evaluate_every, evaluate, metrics, threads, "
     "pin, dtype, autocast, compile, device, init, init_stages, init_sha256, store"),
    (changed(run={"epochs": "3"}), "run.epochs: expected an integer of at least 0, got '3'"),
    (changed(run={"epochs": 2.0}), "run.epochs: expected an integer of at least 0, got 2.0"),
    (changed(run={"epochs": True}), "run.epochs: expected an integer of at least 0, got true"),
    (changed(run={"epochs": 2**64}), "run.epochs: expected an integer of at least 0, got "
     "18446744073709551616 (integers must fit in 64 bits)"),
    (changed(run={"evaluate_every": 0}), "run.evaluate_every: expected a number above 0, got 0"),
    (changed(run={"evaluate_every": math.inf}), "run.evaluate_every: expected a number above 0, "
     "got inf (numbers must be finite)"),
    (changed(run={"split": [1, 0]}), "run.split[1]: expected an integer of at least 1, got 0"),
    (changed(run={"dtype": "float16"}), "run.dtype: unknown dtype 'float16', did you mean "
     "'float64'? known: float32, float64"),
    (changed(run=3), "run: expected a table, got 3"),
    (changed(limits={"window": "aut"}), "limits.window: expected an integer of at least 1 or "
     "'auto', got 'aut'"),
    (changed(schedule={"name": "synthethic"}), "schedule.name: unknown schedule 'synthethic', did "
     "you mean 'synthetic'? known: locked, gpipe, 1f1b, delayed, local_loss, synthetic"),
    (changed(schedule={"name": "locked", "generator": {"kind": "zero"}}), "schedule: key "
     "'generator' belongs to schedule local_loss, synthetic, not to locked; known keys: "
     "name, split_backward"),
    (changed(schedule="locked"), "schedule: expected a table whose name is one of locked, "
     "gpipe, 1f1b, delayed, local_loss, synthetic, got 'locked'"),
    (changed(schedule={"generator": {"kind": "linaer"}}), "schedule.generator.kind: unknown "
     "generator 'linaer', did you mean 'linear'? known: error, zero, linear, low_rank, mlp, "
     "convolutional, module, readout"),
    (changed(schedule={"generator": {"kind": "error", "rate": 2}}), "schedule.generator.rate: "
     "expected a number above 0 and below 2, got 2"),
    (changed(schedule={"generator": {"kind": "mlp", "hidden": 256}}), "schedule.generator.hidden: "
     "expected a list, each an integer of at least 1, got 256"),
    (changed(optimizer={"name": "adamw"}), "optimizer.name: unknown optimizer 'adamw', did you "
     "mean 'adam'? known: sgd, adam, torch"),
    (changed(optimizer={"momentum": 0.9}), "optimizer: key 'momentum' belongs to optimizer sgd, "
     "not to adam; known keys: name, learning_rate, beta1, beta2, epsilon, weight_decay, "
     "clip_norm, decay"),
    (changed(optimizer={"name": "sgd", "lerning_rate": 1}), "optimizer (sgd): unknown key "
     "'lerning_rate', did you mean 'learning_rate'? known: learning_rate, momentum, nesterov, "
     "weight_decay, clip_norm, decay"),
    (changed(optimizer={"decay": {"name": "linear"}}), "optimizer.decay.name: unknown decay "
     "'linear'; known: constant, step, cosine"),
    (changed(optimizer={"decay": {"name": "step"}}), "optimizer.decay.epochs: missing; expected a "
     "list of at least one item, each a number above 0"),
    (changed(data={"name": "digit"}), "data.name: unknown data set 'digit', did you mean "
     f"'digits'? known: {DATA_SETS}"),
    (changed(data={"batch_size": 3}), "data.name: missing; expected one of "
     f"{DATA_SETS}"),
    (changed(data={"name": "npz"}), "data.path: missing; expected text that is not empty"),
    (changed(data={"name": "digits", "path": "x"}), "data: key 'path' belongs to data set mnist, "
     "npz, digit_pairs, cifar10, text, not to digits; known keys: name, batch_size, validation, "
     "planes, targets"),
    ({"stages": EXAMPLE["stages"]}, "data: missing; expected a table whose name is one of "
     f"{DATA_SETS}"),
    ({"data": EXAMPLE["data"]}, "stages: missing; expected a list of at least one item, each a "
     "table"),
    (changed(stages=[]), "stages: expected a list of at least one item, each a table, got []"),
    (changed(stages={"layers": []}), "stages: expected a list, each a table, "
     "got {'layers': []}"),
    (stage(layers=[]), "stages[1] (top).layers: expected a list of at least one item, each text "
     "or a table, got []"),
    (stage(layers=["relu", 3]), "stages[1] (top).layers[1]: expected text or a table, got 3"),
    (stage(layers=[{"dense": None}]), "stages[1] (top).layers[0].dense: expected text, a finite "
     "number, true or false, or lists and tables of those up to 8 deep, got None"),
    (stage(loss="crossentropy"), "stages[1] (top).loss: unknown loss 'crossentropy', did you mean "
     "'cross_entropy'? known: cross_entropy, mse, sigmoid_cross_entropy"),
    (stage(loss=3), "stages[1] (top).loss: expected one of 'cross_entropy', 'mse', "
     "'sigmoid_cross_entropy' or a callable of yours, 'module:name', got 3"),
    (stage(join="add"), "stages[1] (top).join: unknown join 'add'; known: concat, sum"),
    (stage(input=["data"]), "stages[1] (top): unknown key 'input', did you mean 'inputs'? known: "
     "layers, name, inputs, join, loss, weights, optimizer, schedule"),
    (stage(inputs="data"), "stages[1] (top).inputs: expected a list of at least one item, each "
     "text, got 'data'"),
    (stage(name="a b"), "stages[1].name: expected letters, digits, _ and - only, got 'a b'"),
    (stage(name="data"), "stages[1] (data).name: 'data' is reserved; choose another name"),
    (stage(name="coordinator"), "stages[1] (coordinator).name: 'coordinator' is reserved; choose "
     "another name"),
    (stage(name="hidden"), "stages[1] (hidden).name: 'hidden' is already stages[0]; names must be "
     "unique"),
    (stage(name="a\ud800"), "stages[1].name: expected text, got 'a\\ud800'"),
    (stage(optimizer={"learning_rate": 0}), "stages[1] (top).optimizer.learning_rate: expected a "
     "number above 0, got 0"),
    (stage(optimizer={"name": "sgd", "beta1": 0.5}), "stages[1] (top).optimizer: key 'beta1' "
     "belongs to optimizer adam, not to sgd; known keys: name, learning_rate, momentum, nesterov, "
     "weight_decay, clip_norm, decay"),
    (stage(optimizer={"decay": "cosine"}), "stages[1] (top).optimizer.decay: expected a table "
     "whose name is one of constant, step, cosine, got 'cosine'"),
    ([], "experiment: expected a table, got []"),
    (changed(run={3: 1}), "run: expected keys of text, got 3"),
]  # fmt: skip


@each("given_tables, message", REFUSALS)
def test_a_mistake_is_refused_with_place_given_and_known(given_tables: Any, message: str) -> None:
    assert refusal(given_tables) == message


def test_a_long_value_is_cut_in_the_message() -> None:
    text = refusal(changed(run={"epochs": "x" * 1000}))
    assert text.endswith("x...") and len(text) < 150


def test_stages_without_a_name_are_numbered_by_position() -> None:
    experiment = parse(changed(stages=[{"layers": ["relu"]}, {"name": "b", "layers": ["relu"]},
                                       {"layers": ["relu"]}]))  # fmt: skip
    assert [one.name for one in experiment.stages] == ["stage1", "b", "stage3"]


def test_a_numbered_name_that_is_taken_is_refused() -> None:
    text = refusal(changed(stages=[{"name": "stage2", "layers": ["relu"]}, {"layers": ["relu"]}]))
    assert text == "stages[1] (stage2).name: 'stage2' is already stages[0]; names must be unique"


def test_a_section_without_its_kind_is_of_the_default_kind() -> None:
    experiment = parse(changed(optimizer={"beta1": 0.5}, schedule={"generator": {"rate": 0.1}}))
    assert experiment.optimizer == config.Adam(beta1=0.5)
    assert experiment.schedule == config.Synthetic(generator=config.ErrorGenerator(rate=0.1))


def test_whole_numbers_serve_as_floats() -> None:
    assert isinstance(parse(changed(run={"evaluate_every": 2})).run.evaluate_every, float)


def test_parse_leaves_the_given_tables_alone() -> None:
    given_tables = changed(data={"name": "npz", "path": "a.npz"}, stages=[{"layers": ["relu"]}])
    before = copy.deepcopy(given_tables)
    parse(given_tables)
    assert given_tables == before


def test_a_stage_without_changes_has_the_optimizer_of_the_run() -> None:
    experiment = parse(changed(optimizer={"name": "sgd", "learning_rate": 0.5}))
    expected = config.Sgd(learning_rate=0.5)
    assert stage_optimizer(experiment, experiment.stages[0]) == expected


def test_changes_of_a_stage_are_merged_into_the_optimizer_of_the_run() -> None:
    optimizer = {"name": "adam", "beta1": 0.8, "decay": {"name": "cosine", "warmup_epochs": 2}}
    own = {"learning_rate": 0.5, "decay": {"final": 0.1}}
    experiment = parse(stage(optimizer=own) | {"optimizer": optimizer})
    assert stage_optimizer(experiment, experiment.stages[1]) == config.Adam(
        learning_rate=0.5, beta1=0.8, decay=config.Cosine(final=0.1, warmup_epochs=2)
    )


def test_a_stage_with_another_optimizer_keeps_of_the_run_only_what_it_shares() -> None:
    optimizer = {"name": "adam", "beta1": 0.8, "weight_decay": 0.01, "decay": {"name": "cosine"}}
    own = {"name": "sgd", "momentum": 0.9}
    experiment = parse(stage(optimizer=own) | {"optimizer": optimizer})
    assert stage_optimizer(experiment, experiment.stages[1]) == config.Sgd(
        learning_rate=0.1, momentum=0.9, weight_decay=0.01, decay=config.Cosine()
    )


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('data.name = "digits"\n[[stages]]\nlayers = ["relu", { dense = 10 }]\n')
    assert load(file).stages[0].layers == ["relu", {"dense": 10}]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: no such file; expected an experiment file"):
        load(tmp_path / "no.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


@each(
    "content, message",
    [
        (b"[data]\nname digits\n", r"a\.toml: not TOML: .*line 2"),
        (b"[data]\nname = '\xff'\n", r"a\.toml: not TOML: line 2 is not UTF-8 text"),
        (b"a = " + b"1" * 5000, r"a\.toml: not TOML: "),
        (b"a = " + b"[" * 5000, r"a\.toml: not usable: lists or tables nested too deeply"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_the_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a.toml")


def write(folder: Path, given_tables: dict[str, Any]) -> Path:
    file = folder / "experiment.toml"
    file.write_text(dumps(parse(given_tables)))
    return file


def test_a_relative_data_path_in_the_file_means_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('data = { name = "npz", path = "sub/a.npz" }\n[[stages]]\nlayers = ["relu"]\n')
    assert load(file).data == config.Npz(path=str(tmp_path / "sub" / "a.npz"))


def test_a_relative_data_path_of_an_override_means_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, changed(data={"name": "npz", "path": "/a.npz"}))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load(file, ["data.path=b.npz"]).data.path == str(tmp_path / "here" / "b.npz")


def test_an_empty_data_path_stays_empty(tmp_path: Path) -> None:
    file = write(tmp_path, changed(data={"name": "mnist"}))
    assert load(file).data == config.Mnist(path="")


def test_arguments_for_schedule_and_seed_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, changed(run={"seed": 3}))
    experiment = load(file, ["run.seed=4"], schedule="locked", seed=5)
    assert (experiment.schedule, experiment.run.seed) == (config.Locked(), 5)


def test_the_checks_know_every_type_that_config_uses() -> None:
    """What `config` refuses by itself is refused by `parse` before, in better words."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(changed(run={"threads": 0}), config.Experiment)
    assert refusal(changed(run={"threads": 0})).startswith("run.threads: expected an integer")
