"""Checks tables against the structs of `config`, with messages a user can act on.

Every message is one line: the place (`stages[1] (hidden2).loss`), what was given, what is known or
expected, and the nearest known name. What passes is accepted by `msgspec.convert`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from asyncdni import config
from asyncdni.config.base import COUNT_MAX
from asyncdni.errors import ConfigError
from asyncdni.experiment.wording import (
    expected,
    listed,
    shown,
    stage_place,
    table_key,
    tag_key,
    unknown,
    variants,
)

__all__ = ["EXPERIMENT", "OPTIMIZER", "SCHEDULE", "SECTIONS", "checked", "default_tag"]

EXPERIMENT = inspect.type_info(config.Experiment)
OPTIMIZER = inspect.type_info(config.Optimizer)
SCHEDULE = inspect.type_info(config.Schedule)

_INT_LIMIT = 2**63  # what MessagePack and TOML both hold
_DEPTH_MAX = 8  # of the options of a layer
#: Characters of a text, as many as a path may have, and of a key: they come back in messages.
_TEXT_MAX = 4096
_KEY_MAX = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def checked(value: Any, kind: inspect.Type, place: str) -> Any:
    """`value` as builtins that `msgspec.convert` accepts as `kind`; kinds of tables are filled in.

    Raises `ConfigError` at the first mistake, naming the place.
    """
    match kind:
        case inspect.UnionType() if variants(kind):
            return _variant(value, kind, place)
        case inspect.UnionType():
            return _alternative(value, kind, place)
        case inspect.StructType():
            return _table(value, kind, place, place)
        case inspect.ListType() | inspect.VarTupleType():
            return _list(value, kind, place)
        case inspect.DictType(value_type=inspect.AnyType()):
            return _plain(_table_given(value, place), place)
        case inspect.DictType(value_type=item):
            given = _table_given(value, place)
            return {
                key: checked(one, item, f"{place}.{table_key(key)}") for key, one in given.items()
            }
        case inspect.LiteralType(values=values) if isinstance(value, str) and value not in values:
            raise ConfigError(f"{place}: {unknown(_noun(place), value, map(str, values))}")
        case _ if _fits(value, kind):
            return float(value) if isinstance(kind, inspect.FloatType) else value
        case _:
            raise _mismatch(value, kind, place)


def default_tag(field: inspect.Field) -> str | None:
    """The kind of table that `field` is of where nothing is said."""
    default = field.default
    tag = default.__struct_config__.tag if isinstance(default, msgspec.Struct) else None
    return None if tag is None else str(tag)


def _variant(value: Any, kind: inspect.UnionType, place: str) -> dict[str, Any]:
    choices, key, noun = variants(kind), tag_key(kind), _noun(place)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{place}: expected a table whose {key} is one of {listed(choices)}, got {shown(value)}"
        )
    if key not in value:
        raise ConfigError(f"{place}.{key}: missing; expected one of {listed(choices)}")
    tag = value[key]
    if not isinstance(tag, str) or tag not in choices:
        raise ConfigError(f"{place}.{key}: {unknown(noun, tag, choices)}")
    rest = {name: one for name, one in value.items() if name != key}
    for name in rest:
        owners = [t for t, one in choices.items() if name in _fields(one)]
        if owners and tag not in owners:
            raise ConfigError(
                f"{place}: key {shown(name)} belongs to {noun} {listed(owners)}, not to {tag}; "
                f"known keys: {listed((key, *_fields(choices[tag])))}"
            )
    return {key: tag, **_table(rest, choices[tag], place, f"{place} ({tag})")}


def _table(value: Any, kind: inspect.StructType, place: str, title: str) -> dict[str, Any]:
    fields = _fields(kind)
    for name in _table_given(value, place):
        if name not in fields:
            problem = unknown("key" if place else "section", name, fields)
            raise ConfigError(f"{title}: {problem}" if place else problem)
    result = {}
    for name, field in fields.items():
        here = f"{place}.{name}" if place else name
        if name in value:
            result[name] = checked(_with_tag(value[name], field), field.type, here)
        elif field.required:
            raise ConfigError(f"{here}: missing; expected {expected(field.type)}")
    return result


def _with_tag(value: Any, field: inspect.Field) -> Any:
    """A table that does not say its kind is of the default's kind."""
    tag = default_tag(field)
    if tag is None or not isinstance(value, Mapping) or tag_key(field.type) in value:
        return value
    return {tag_key(field.type): tag, **value}


def _alternative(value: Any, kind: inspect.UnionType, place: str) -> Any:
    choices = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    if value is None and len(choices) < len(kind.types):
        return None
    if len(choices) == 1:
        return checked(value, choices[0], place)
    for choice in choices:
        if _fits(value, choice):
            return checked(value, choice, place)
    raise _mismatch(value, kind, place)


def _list(value: Any, kind: inspect.ListType | inspect.VarTupleType, place: str) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) < (kind.min_length or 0):
        raise _mismatch(value, kind, place)
    items = []
    for index, item in enumerate(value):
        name = item.get("name") if place == "stages" and isinstance(item, Mapping) else None
        here = stage_place(index, name) if place == "stages" else f"{place}[{index}]"
        items.append(checked(item, kind.item_type, here))
    return items


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """Options of a layer, or of an optimizer before it is merged: whatever TOML can hold."""
    if isinstance(value, list | tuple) and depth < _DEPTH_MAX:
        return [_plain(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        table = _table_given(value, place)
        return {key: _plain(item, f"{place}.{key}", depth + 1) for key, item in table.items()}
    if any(_fits(value, kind) for kind in _SCALARS):
        return value
    raise ConfigError(
        f"{place}: expected text, a finite number, true or false, or lists and tables of those up "
        f"to {_DEPTH_MAX} deep, got {shown(value)}"
    )


def _table_given(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place or 'experiment'}: expected a table, got {shown(value)}")
    for key in value:
        if not _fits(key, _TEXT):
            raise ConfigError(f"{place or 'experiment'}: expected keys of text, got {shown(key)}")
        if len(key) > _KEY_MAX:
            raise ConfigError(
                f"{place or 'experiment'}: expected keys of at most {_KEY_MAX} characters, got "
                f"{shown(key)}"
            )
    return value


def _fits(value: Any, kind: inspect.Type) -> bool:
    match kind:
        case inspect.IntType():
            return _is_int(value) and _within(value, kind)
        case inspect.FloatType():
            number = _is_int(value) or (isinstance(value, float) and math.isfinite(value))
            return number and _within(value, kind)
        case inspect.StrType(min_length=least):
            return isinstance(value, str) and len(value) >= (least or 0) and _is_plain(value)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.LiteralType(values=values):
            return isinstance(value, str) and value in values
        case inspect.DictType():
            return isinstance(value, Mapping)
        case inspect.ListType():
            return isinstance(value, list | tuple)  # its items are checked where it is chosen
        case _:
            raise TypeError(f"config uses a type that schema does not check: {kind}")


def _is_int(value: Any) -> bool:
    return type(value) is int and -_INT_LIMIT <= value < _INT_LIMIT


def _is_plain(text: str) -> bool:
    """False for undecodable bytes of a command line, which come as lone surrogates, and for what no
    name and no path of anybody's has: it would break out of messages, and out of file names."""
    surrogate = any("\ud800" <= letter <= "\udfff" for letter in text)
    return not surrogate and len(text) <= _TEXT_MAX and _CONTROL.search(text) is None


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _mismatch(value: object, kind: inspect.Type, place: str) -> ConfigError:
    limit = ""
    if isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT:
        limit = " (integers must fit in 64 bits)"
    elif isinstance(value, int) and getattr(kind, "le", None) == COUNT_MAX and value > COUNT_MAX:
        limit = f" (no count may be above {COUNT_MAX})"
    elif isinstance(value, float) and not math.isfinite(value):
        limit = " (numbers must be finite)"
    elif isinstance(value, str) and len(value) > _TEXT_MAX:
        limit = f" (text may have at most {_TEXT_MAX} characters)"
    elif isinstance(value, str) and _CONTROL.search(value):
        limit = " (text may hold no control characters)"
    return ConfigError(f"{place}: expected {expected(kind)}, got {shown(value)}{limit}")


def _noun(place: str) -> str:
    """What the last part of a place holds."""
    word = place.rpartition(".")[2]
    return "data set" if word == "data" else word


def _fields(kind: inspect.StructType) -> dict[str, inspect.Field]:
    return {field.encode_name: field for field in kind.fields}


assert isinstance(EXPERIMENT, inspect.StructType)
SECTIONS = _fields(EXPERIMENT)
_TEXT = inspect.StrType()
_SCALARS = (_TEXT, inspect.BoolType(), inspect.IntType(), inspect.FloatType())
