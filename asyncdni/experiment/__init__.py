"""Read, check and write experiment files: TOML text, plain tables and `config.Experiment`.

file ──load──► Experiment ──tables──► builtins (to a worker) ──parse──► the same Experiment
                          ──dumps───► TOML text (in the run folder) ──load──► the same again
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.overrides import Setting, apply, parse_setting
from asyncdni.experiment.recipes import find_recipe
from asyncdni.experiment.schema import (
    EXPERIMENT,
    NAME,
    OPTIMIZER,
    SCHEDULE,
    check_texts,
    checked,
    quoted,
    shown,
    stage_place,
    table_key,
    tag_key,
    variants,
)
from asyncdni.files import decode_text, is_url, read_file
from asyncdni.messages import COORDINATOR, DATA

__all__ = [
    "as_toml",
    "change",
    "dumps",
    "load",
    "parse",
    "stage_optimizer",
    "stage_schedule",
    "tables",
]

# --- toml ----------------------------------------------------------------------------------------

_WIDTH = 100


def as_toml(tables: Mapping[str, Any]) -> str:
    """Write `tables`, whose values are tables or lists of tables, as TOML (toml.io, version 1.0).

    The text looks as if written by hand: scalars first, then tables as `[a.b]`, and lists of tables
    at the top level as `[[a]]`. Tables inside the latter, such as the layers of a stage, are
    written inline, and so is a list that fits on a line. None means "not given" and is left out.
    `tomllib` reads the same values back.
    """
    blocks = []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            blocks += _table(table_key(name), value)
        else:
            blocks += [f"[[{table_key(name)}]]\n{_lines(item)}" for item in value]
    return "\n".join(blocks)


def _table(path: str, table: Mapping[str, Any]) -> list[str]:
    """Return the blocks of a table: that of its own values, if it needs one, then those of its
    tables."""
    own = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    blocks = [f"[{path}]\n{_lines(own)}"] if own or not table else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            blocks += _table(f"{path}.{table_key(key)}", value)
    return blocks


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{_pair(key, value)}\n" for key, value in table.items() if value is not None)


def _pair(key: str, value: Any) -> str:
    line = f"{table_key(key)} = {_value(value)}"
    if len(line) <= _WIDTH or not isinstance(value, list | tuple):
        return line
    items = "".join(f"    {_value(item)},\n" for item in value)
    return f"{table_key(key)} = [\n{items}]"


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return quoted(value)
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case Mapping():
            pairs = (f"{table_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
            inside = ", ".join(pairs)
            return f"{{ {inside} }}" if inside else "{}"
        case _:
            raise TypeError(f"TOML holds no {type(value).__name__}: {value!r}")


#: What the numbers y of an .npz file must be for each loss.
_LEARNED: dict[str, config.NpzTargets] = {
    "cross_entropy": "classes",
    "sigmoid_cross_entropy": "values",
    "mse": "values",
}

#: Names that no stage may have, because the graph and the control protocol use them.
RESERVED = (DATA, COORDINATOR)

#: Keys of tables whose contents only the user's own code knows.
_OPEN = ("arguments", "options")

#: The section and key of each value that is a path.
_PATHS = (("data", "path"), ("run", "init"), ("model", "weights"))


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    schedule: str | None = None,
    seed: int | None = None,
) -> config.Experiment:
    """Read the experiment in the TOML file at `path`, after `overrides` (`section.key=value`).

    `recipe:NAME` is the path of a recipe that comes with the package.
    `schedule` and `seed` are short for `schedule.name` and `run.seed`. A relative `data.path`,
    `run.init` or `model.weights` is relative to the folder of the file if the file gives it, and to
    the current folder if `--set` does.
    Raises `ConfigError` for a file that can't be read and for every mistake in it.
    """
    path = find_recipe(path)
    given = _read(path)
    _make_absolute(given, os.path.dirname(os.path.abspath(path)))
    return change(given, overrides, schedule=schedule, seed=seed)


def change(
    tables: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    schedule: str | None = None,
    seed: int | None = None,
) -> config.Experiment:
    """Make the experiment that plain tables describe, after the same changes as in `load`."""
    try:
        given = copy.deepcopy(dict(tables))
    except RecursionError:
        raise ConfigError("experiment: lists or tables nested too deeply") from None
    settings: list[Setting] = [parse_setting(text) for text in overrides]
    if schedule is not None:
        settings.append((("schedule", "name"), schedule))
    if seed is not None:
        settings.append((("run", "seed"), seed))
    apply(given, settings)
    return parse(given)


def parse(tables: Mapping[str, Any]) -> config.Experiment:
    """Make the experiment that plain tables describe, and check it.

    Stages without a name get one, relative paths become absolute, and `data.targets` = "auto"
    becomes what the losses learn, if they agree. Raises `ConfigError`: one line with the place,
    what was given and what is known or expected.
    """
    given: Any = dict(tables) if isinstance(tables, Mapping) else tables
    if isinstance(given, dict):
        _name_stages(given)
        _make_absolute(given, "")
    experiment: config.Experiment = checked(given, EXPERIMENT, "")
    _check_network(experiment, given)
    experiment = _with_targets(experiment)
    _check_names(experiment.stages)
    check_texts(experiment)
    for index, stage in enumerate(experiment.stages):
        place = f"{stage_place(index, stage.name)}.optimizer" if stage.optimizer else "optimizer"
        _check_optimizer(stage_optimizer(experiment, stage), place)
    return experiment


def tables(experiment: config.Experiment) -> dict[str, Any]:
    """Return the experiment as plain builtins, fit for MessagePack; `parse` turns them back into
    it."""
    result: dict[str, Any] = msgspec.to_builtins(experiment)
    return result


def dumps(experiment: config.Experiment) -> str:
    """Write the whole experiment as TOML, with defaults; `load` turns it back into the
    experiment."""
    full: dict[str, Any] = _without_empty_tables(tables(experiment))
    full["stages"] = [_without_defaults(stage) for stage in experiment.stages]
    return as_toml(full)


def stage_optimizer(experiment: config.Experiment, stage: config.Stage) -> config.Optimizer:
    """Return the optimizer of a stage: [optimizer] with the stage's own changes.

    A stage that names another optimizer starts from the defaults of that one. From [optimizer] it
    takes the options that both have and that are not at their defaults. Raises `ConfigError`.
    """
    if not stage.optimizer:
        return experiment.optimizer
    merged = _merge(experiment.optimizer, stage.optimizer, OPTIMIZER)
    index = experiment.stages.index(stage)
    place = f"{stage_place(index, stage.name)}.optimizer"
    optimizer: config.Optimizer = checked(merged, OPTIMIZER, place)
    return optimizer


def stage_schedule(experiment: config.Experiment, stage: config.Stage) -> config.Schedule:
    """Return the schedule of a stage: [schedule] with the stage's own changes, or another that it
    names. Raises `ConfigError`."""
    if not stage.schedule:
        return experiment.schedule
    merged = _merge(experiment.schedule, stage.schedule, SCHEDULE)
    place = f"{stage_place(experiment.stages.index(stage), stage.name)}.schedule"
    schedule: config.Schedule = checked(merged, SCHEDULE, place)
    return schedule


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    name = os.fspath(path) or "''"
    try:
        return tomllib.loads(decode_text(read_file(path)))
    except FileNotFoundError:
        raise ConfigError(
            f"{name}: no such file; expected an experiment file (TOML), as "
            "`asyncdni new NAME` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{name}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}: not TOML: line {line} is not UTF-8 text") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not usable: lists or tables nested too deeply") from None


def _make_absolute(tables: dict[str, Any], folder: str) -> None:
    for section, key in _PATHS:
        table = tables.get(section)
        path = table.get(key) if isinstance(table, Mapping) else None
        if isinstance(table, Mapping) and isinstance(path, str) and path and not is_url(path):
            absolute = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
            tables[section] = {**table, key: absolute}


def _with_targets(experiment: config.Experiment) -> config.Experiment:
    data = experiment.data
    losses = [stage.loss for stage in experiment.stages if stage.loss is not None]
    losses += [experiment.model.loss] if experiment.model is not None else []
    kinds = set(map(_LEARNED.get, losses))
    if not isinstance(data, config.Npz) or data.targets != "auto" or len(kinds) != 1:
        return experiment
    found = msgspec.structs.replace(data, targets=kinds.pop() or "auto")
    return msgspec.structs.replace(experiment, data=found)


def _name_stages(tables: dict[str, Any]) -> None:
    stages = tables.get("stages")
    if isinstance(stages, list | tuple):
        tables["stages"] = [
            {**stage, "name": f"stage{i}"}
            if isinstance(stage, Mapping) and stage.get("name", "") == ""
            else stage
            for i, stage in enumerate(stages, 1)
        ]


def _check_network(experiment: config.Experiment, given: Mapping[str, Any]) -> None:
    """Check that there are stages, or a model to cut into some. Raises `ConfigError`."""
    if experiment.model is not None and experiment.stages:
        raise ConfigError(
            "model: a network is [model] or [[stages]], not both; leave out one of them, or name "
            "the module in the layers of a stage: { module = { build = … } }"
        )
    if experiment.model is None and not experiment.stages:
        expected = "expected a list of at least one item, each a table"
        told = f"{expected}, got []" if "stages" in given else f"missing; {expected}"
        raise ConfigError(f"stages: {told}")


def _check_optimizer(optimizer: config.Optimizer, place: str) -> None:
    if isinstance(optimizer, config.Sgd) and optimizer.nesterov and not optimizer.momentum:
        raise ConfigError(f"{place}.nesterov: true needs a momentum above 0, got momentum = 0")


def _check_names(stages: Sequence[config.Stage]) -> None:
    seen: dict[str, int] = {}
    for index, stage in enumerate(stages):
        place = f"{stage_place(index, stage.name)}.name"
        if not NAME.fullmatch(stage.name):
            raise ConfigError(
                f"{place}: expected letters, digits, _ and - only, got {shown(stage.name)}"
            )
        if stage.name in RESERVED:
            raise ConfigError(f"{place}: {stage.name!r} is reserved; choose another name")
        if stage.name in seen:
            other = seen[stage.name]
            raise ConfigError(
                f"{place}: {stage.name!r} is already stages[{other}]; names must be unique"
            )
        seen[stage.name] = index


def _merge(base: msgspec.Struct, changes: Any, kind: inspect.Type) -> Any:
    """Return the table of `base` with `changes`, which may name another variant of `kind`."""
    if not isinstance(changes, Mapping):
        return changes
    key, choices = tag_key(kind), variants(kind)
    old = str(base.__struct_config__.tag)
    new = changes.get(key, old)
    fields = {one.encode_name: one for one in choices[old].fields}
    known = {one.encode_name for one in choices[new].fields} if _names_one(new, choices) else set()
    merged = {key: new}
    for name, field in fields.items():
        own = getattr(base, name)
        if name in known and (new == old or own != field.default):
            merged[name] = msgspec.to_builtins(own)
    for name, change in changes.items():
        own = getattr(base, name, None)
        if isinstance(own, msgspec.Struct) and isinstance(change, Mapping):
            kind_of_field = fields[name].type
            if variants(kind_of_field):
                change = _merge(own, change, kind_of_field)
            else:
                change = {**msgspec.to_builtins(own), **change}
        merged[name] = change
    return merged


def _names_one(tag: object, choices: Mapping[str, object]) -> bool:
    return isinstance(tag, str) and tag in choices


def _without_empty_tables(value: Any) -> Any:
    """Return a table without empty tables and values that are None, also in nested tables; tables
    of the user's own code stay as they are."""
    if not isinstance(value, dict):
        return value
    rest = {key: one if key in _OPEN else _without_empty_tables(one) for key, one in value.items()}
    return {key: one for key, one in rest.items() if one not in (None, {})}


def _without_defaults(stage: config.Stage) -> dict[str, Any]:
    """Return the stage's table with its name first, without empty values, and without `join` if it
    has one input."""
    table = msgspec.to_builtins(stage)
    if stage.join == "concat" and len(stage.inputs or ()) < 2:
        del table["join"]
    return {"name": stage.name, **{key: one for key, one in table.items() if one not in ("", {})}}
