"""`--set section.key=value`: changes to the tables of an experiment file before they are checked.

`stages.NAME.key` and `stages.0.key` change a stage. If a change names another kind of schedule,
generator, data set, optimizer or decay, options in the file that only other kinds have are dropped.
Options given by `--set` themselves are never dropped: those that don't fit are refused later.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import inspect

from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import (
    OPTIMIZER,
    SCHEDULE,
    SECTIONS,
    default_tag,
    shown,
    tag_key,
    unknown,
    variants,
)

__all__ = ["Path", "Setting", "apply", "parse_setting"]

Path = tuple[str | int, ...]
Setting = tuple[tuple[str, ...], Any]


def parse_setting(text: str) -> Setting:
    """Parse `a.b=1` into (("a", "b"), 1). The value is TOML; anything else is taken as a string.
    Raises `ConfigError` for a text without a key or without '='."""
    left, equals, right = text.partition("=")
    keys = tuple(_unquoted(key.strip()) for key in left.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"--set {shown(text)}: expected section.key=value, such as run.epochs=3")
    return keys, _parse_value(right.strip(), text)


def apply(tables: dict[str, Any], settings: Sequence[Setting]) -> set[Path]:
    """Put `settings` into `tables`, in place and in order; returns the paths that were set."""
    before = _schedule_name(tables)
    given = {_put(tables, keys, value) for keys, value in settings}
    if _schedule_name(tables) != before:
        _drop_rules_of(tables, given)
    for name, field in SECTIONS.items():
        if variants(field.type):
            _drop_left_over(tables.get(name), field.type, default_tag(field), (name,), given)
    _drop_in_stages(tables, given)
    return given


def _schedule_name(tables: Mapping[str, Any]) -> object:
    schedule = tables.get("schedule")
    named = schedule.get("name") if isinstance(schedule, Mapping) else None
    return named or default_tag(SECTIONS["schedule"])


def _drop_rules_of(tables: dict[str, Any], given: Collection[Path]) -> None:
    """Drop what the file says for its own schedule outside of [schedule]: the schedules of single
    stages, and the bounds on lag. Settings of `--set` stay."""
    if not any(path[0] == "staleness" for path in given):
        tables.pop("staleness", None)
    stages = tables.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict) and not any(
            path[:3] == ("stages", index, "schedule") for path in given
        ):
            stage.pop("schedule", None)


def _unquoted(key: str) -> str:
    """Remove quotes from a key. TOML requires them around "a->b"; here they are optional."""
    return key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key


def _parse_value(text: str, setting: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {shown(setting)}: the value is not TOML: {error}") from None
        return text
    value = parsed["value"]
    plain = isinstance(value, bool | int | float | str | list | dict)
    return value if plain and len(parsed) == 1 else text  # a date is text here


def _put(tables: dict[str, Any], keys: tuple[str, ...], value: Any) -> Path:
    node: Any = tables
    path: list[str | int] = []
    for part in keys[:-1]:
        key = _step(node, part, path, keys)
        if isinstance(node, dict) and node.get(key) is None:  # a table may have been left out
            node[key] = {}
        node = node[key]
        path.append(key)
    key = _step(node, keys[-1], path, keys)
    node[key] = value
    return (*path, key)


def _step(node: Any, part: str, path: list[str | int], keys: tuple[str, ...]) -> str | int:
    """Return the key or index of `node` that `part` means: `part` itself in a table; in a list the
    index of the stage of that name, or an index. Raises `ConfigError` if there is none."""
    if isinstance(node, dict):
        return part
    place, asked = ".".join(map(str, path)), ".".join(keys)
    if not isinstance(node, list):
        raise ConfigError(f"--set {asked}: {place} is {shown(node)}, not a table")
    names = _stage_names(node) if path == ["stages"] else []
    if part in names:
        return names.index(part)
    if part.isdecimal() and part.isascii() and int(part) < len(node):
        return int(part)
    if path == ["stages"]:
        raise ConfigError(f"--set {asked}: {unknown('stage', part, names)}")
    raise ConfigError(f"--set {asked}: {place} has items 0 to {len(node) - 1}, got {part!r}")


def _stage_names(stages: list[Any]) -> list[str]:
    tables = [stage if isinstance(stage, Mapping) else {} for stage in stages]
    return [str(one.get("name") or f"stage{i}") for i, one in enumerate(tables, 1)]


def _drop_left_over(
    table: Any,
    kind: inspect.Type,
    default: str | None,
    path: Path,
    given: Collection[Path],
    changed: bool = False,
) -> None:
    """Drop the options that only other kinds have, if `given` names another kind for `table`."""
    if not isinstance(table, dict):
        return
    choices, key = variants(kind), tag_key(kind)
    tag = table.get(key, default)
    if not isinstance(tag, str) or tag not in choices:
        return  # refused later, with the names that are known
    fields = {field.encode_name: field for field in choices[tag].fields}
    if changed or (*path, key) in given:
        others = {field.encode_name for one in choices.values() for field in one.fields}
        # Neither is a table taken over that one of the two kinds can do without: it is what makes
        # the kinds differ, such as the generator of `synthetic` beside that of `local_loss`.
        optional = {name for name, field in fields.items() if _may_be_left_out(field)}
        unset = {name for name in fields if table.get(name, "") is None}
        for name in others - set(fields) | optional | unset:
            if not any(one[: len(path) + 1] == (*path, name) for one in given):
                table.pop(name, None)
    for name, field in fields.items():
        if name in table and variants(field.type):
            _drop_left_over(table[name], field.type, default_tag(field), (*path, name), given)


def _may_be_left_out(field: inspect.Field) -> bool:
    """Whether the option is a table of one of several kinds, or none by default."""
    return field.default is None and bool(variants(field.type))


def _drop_in_stages(tables: dict[str, Any], given: Collection[Path]) -> None:
    """Drop such options from each stage's changes to [optimizer] and [schedule], which are of the
    same kind as these unless they name another."""
    for section, kind in (("optimizer", OPTIMIZER), ("schedule", SCHEDULE)):
        run_table = tables.get(section)
        named = default_tag(SECTIONS[section])
        if isinstance(run_table, dict):
            named = run_table.get("name", named)
        changed = (section, "name") in given
        stages = tables.get("stages")
        for index, stage in enumerate(stages if isinstance(stages, list) else []):
            table = stage.get(section) if isinstance(stage, dict) else None
            follows = changed and isinstance(table, dict) and "name" not in table
            _drop_left_over(table, kind, named, ("stages", index, section), given, changed=follows)
