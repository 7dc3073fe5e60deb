"""Convert tables to the structs of `config` and check them, with messages a user can act on.

Every message is one line: the place (`stages[1] (hidden2).loss`), what was given, what is known or
expected, and the nearest known name. `msgspec.convert` is not used, as its unions of tagged structs
are closed, while anybody may add a schedule, a generator or a data set.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from asyncdni import config
from asyncdni.config import COUNT_MAX
from asyncdni.data import DATA_SETS
from asyncdni.errors import ConfigError
from asyncdni.nn.generators import generator_options
from asyncdni.schedules import SCHEDULES

__all__ = [
    "BYTES_PER_S_MAX",
    "BYTES_PER_S_MIN",
    "EXPERIMENT",
    "NAME",
    "OPTIMIZER",
    "SCHEDULE",
    "SECONDS_MAX",
    "SECTIONS",
    "bytes_per_second",
    "check_texts",
    "checked",
    "default_tag",
    "expected",
    "listed",
    "nearest",
    "quoted",
    "seconds",
    "shown",
    "stage_place",
    "table_key",
    "tag_key",
    "unknown",
    "variants",
]

# --- words of messages ---------------------------------------------------------------------------

#: The names that a stage may have: safe as file names and in `stages.NAME.key=value`.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def nearest(name: object, names: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` with the closest of `names`; empty if none is close."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """List names for the end of a message: `a, b, c`, or `none`."""
    return ", ".join(names) or "none"


def shown(value: object) -> str:
    """Return a given value as text on one line of at most 60 characters."""
    match value:
        case bool():
            text = "true" if value else "false"
        case int() | float() | str() | list() | tuple() | None | dict():
            text = repr(value)
        case _:
            text = f"{value!r} ({type(value).__name__})"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def stage_place(index: int, name: object) -> str:
    """Return how messages name a stage of the file: `stages[1] (hidden2)`."""
    known_name = isinstance(name, str) and NAME.fullmatch(name)
    return f"stages[{index}] ({name})" if known_name else f"stages[{index}]"


def table_key(key: str) -> str:
    """Write a key of a table as in TOML: `hidden1`, or `"hidden1->hidden2"`."""
    return key if _BARE_KEY.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """Write a text as a TOML string on one line."""
    # TOML's basic strings escape as JSON's do, and also escape DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def unknown(noun: str, given: object, names: Iterable[str]) -> str:
    """Return a message such as `unknown loss 'mes', did you mean 'mse'? known: mse, …`."""
    names = list(names)
    return f"unknown {noun} {shown(given)}{nearest(given, names) or ';'} known: {listed(names)}"


def expected(kind: inspect.Type) -> str:
    """Describe what a value of `kind` must be: `an integer of at least 1`."""
    match kind:
        case inspect.IntType():
            return f"an integer{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.StrType(pattern=":"):
            return "a callable of yours, 'module:name'"
        case inspect.StrType(min_length=least):
            return "text that is not empty" if least else "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return ("one of " if len(values) > 1 else "") + listed(repr(one) for one in values)
        case inspect.ListType(item_type=item, min_length=least):
            return f"a list{' of at least one item' if least else ''}, each {expected(item)}"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each {expected(item)}"
        case inspect.UnionType() | inspect.StructType() if variants(kind):
            return f"a table whose {tag_key(kind)} is one of {listed(variants(kind))}"
        case inspect.UnionType(types=types):
            return " or ".join(
                expected(one) for one in types if not isinstance(one, inspect.NoneType)
            )
        case _:
            return "a table"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    most = None if kind.le == COUNT_MAX else kind.le  # named only where it is exceeded
    words = {"of at least": kind.ge, "above": kind.gt, "of at most": most, "below": kind.lt}
    limits = [f"{word} {_number(limit)}" for word, limit in words.items() if limit is not None]
    return " " + " and ".join(limits) if limits else ""


def _number(value: float) -> str:
    """Write a number for a message; whole ones in full, as they may be bytes."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def variants(kind: inspect.Type) -> dict[str, inspect.StructType]:
    """Return the structs that a table of type `kind` may have, by tag; empty if `kind` has no
    variants.

    They are the members of a union of structs, or those registered for a base at this moment.
    """
    if isinstance(kind, inspect.StructType):
        known = _TABLES.get(kind.cls)
        return {} if known is None else {tag: _type_of(one) for tag, one in known().items()}
    if not isinstance(kind, inspect.UnionType):
        return {}
    choices = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    if len(choices) == 1:  # it may be left out
        return variants(choices[0])
    structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
    return {str(one.tag): one for one in structs if one.tag is not None}


@lru_cache
def _type_of(table: type[msgspec.Struct]) -> inspect.StructType:
    found = inspect.type_info(table)
    assert isinstance(found, inspect.StructType)
    return found


#: The bases of structs that anybody can add to, each with its registered structs by tag.
_TABLES: dict[type, Callable[[], Mapping[str, type[msgspec.Struct]]]] = {
    config.Schedule: lambda: SCHEDULES,
    config.Generator: generator_options,
    config.Data: lambda: {name: one.options for name, one in DATA_SETS.items()},
}


def tag_key(kind: inspect.Type) -> str:
    """Return the key that tells the variants of `kind` apart: "name" or "kind"."""
    return next(str(one.tag_field) for one in variants(kind).values())


# --- checking ------------------------------------------------------------------------------------

EXPERIMENT = inspect.type_info(config.Experiment)
OPTIMIZER = inspect.type_info(config.Optimizer)
SCHEDULE = inspect.type_info(config.Schedule)

_INT_LIMIT = 2**63  # what MessagePack and TOML both hold
_DEPTH_MAX = 8  # levels of lists and tables in the options of a layer
#: The most characters of a text (as many as a path may have) and of a key. They are bounded because
#: messages repeat them.
_TEXT_MAX = 4096
_KEY_MAX = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def checked(value: Any, kind: inspect.Type, place: str) -> Any:
    """Convert `value` to `kind`: tables to their structs, numbers to the declared types.

    Raises `ConfigError` at the first mistake, naming the place.
    """
    match kind:
        case inspect.UnionType() | inspect.StructType() if value is not None and variants(kind):
            return _variant(value, kind, place)
        case inspect.UnionType():
            return _alternative(value, kind, place)
        case inspect.StructType():
            return _table(value, kind, place, place)
        case inspect.ListType():
            return _list(value, kind, place)
        case inspect.VarTupleType():
            return tuple(_list(value, kind, place))
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
    """Return the tag of the struct that `field` has by default; None if its default is no tagged
    struct."""
    default = field.default
    tag = default.__struct_config__.tag if isinstance(default, msgspec.Struct) else None
    return None if tag is None else str(tag)


def _variant(
    value: Any, kind: inspect.UnionType | inspect.StructType, place: str
) -> msgspec.Struct:
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
    return _table(rest, choices[tag], place, f"{place} ({tag})")


def _table(value: Any, kind: inspect.StructType, place: str, title: str) -> msgspec.Struct:
    fields = _fields(kind)
    for name in _table_given(value, place):
        if name not in fields:
            problem = unknown("key" if place else "section", name, fields)
            raise ConfigError(f"{title}: {problem}" if place else problem)
    result: dict[str, Any] = {}
    for name, field in fields.items():
        here = f"{place}.{name}" if place else name
        if name in value:
            result[field.name] = checked(_with_tag(value[name], field), field.type, here)
        elif field.required:
            raise ConfigError(f"{here}: missing; expected {expected(field.type)}")
    made: msgspec.Struct = kind.cls(**result)
    return made


def _with_tag(value: Any, field: inspect.Field) -> Any:
    """Return a table with the tag of the default added if it has none."""
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
    if isinstance(value, str) and any(map(_is_pattern, choices)):  # likely meant to be a name
        names = next(one for one in choices if isinstance(one, inspect.LiteralType))
        raise ConfigError(f"{place}: {unknown(_noun(place), value, map(str, names.values))}")
    raise _mismatch(value, kind, place)


def _is_pattern(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.StrType) and kind.pattern is not None


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
    """Copy a table or value that is checked later (options of a layer, a stage's changes): anything
    that TOML can hold, up to a depth. Raises `ConfigError` for anything else."""
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
        case inspect.StrType(min_length=least, pattern=pattern):
            fits = isinstance(value, str) and len(value) >= (least or 0) and _is_plain(value)
            return fits and re.search(pattern or "", value) is not None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.LiteralType(values=values):
            return isinstance(value, str) and value in values
        case inspect.DictType():
            return isinstance(value, Mapping)
        case inspect.ListType():
            return isinstance(value, list | tuple)  # its items are checked once this type is chosen
        case _:
            raise TypeError(f"config uses a type that schema does not check: {kind}")


def _is_int(value: Any) -> bool:
    return type(value) is int and -_INT_LIMIT <= value < _INT_LIMIT


def _is_plain(text: str) -> bool:
    """Tell whether a text can be used in messages and file names: it has no control characters, is
    not too long, and has no lone surrogates, which stand for undecodable bytes of a command
    line."""
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
    """Return the noun, for messages, for the value at a place: the last part of its name."""
    word = place.rpartition(".")[2]
    return "data set" if word == "data" else word


def _fields(kind: inspect.StructType) -> dict[str, inspect.Field]:
    return {field.encode_name: field for field in kind.fields}


assert isinstance(EXPERIMENT, inspect.StructType)
SECTIONS = _fields(EXPERIMENT)
_TEXT = inspect.StrType()
_SCALARS = (_TEXT, inspect.BoolType(), inspect.IntType(), inspect.FloatType())


# --- times and rates -----------------------------------------------------------------------------

SECONDS_MAX = 60.0  # longer latencies and pauses are not worth emulating
BYTES_PER_S_MIN = 1e3
BYTES_PER_S_MAX = 1e12

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES_PER_S = {
    "kbit/s": 1e3 / 8,
    "Mbit/s": 1e6 / 8,
    "Gbit/s": 1e9 / 8,
    "kB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/]+)")
_SHOWN_MAX = 40  # characters of a given text that a message shows


def seconds(text: str, place: str, most_s: float = SECONDS_MAX) -> float:
    """Return the seconds that a text means: 0.01 for "10ms"; units us, ms, s, min.

    `place` names the value in messages. Raises `ConfigError` for anything else, and for more than
    `most_s`.
    """
    value = _convert(text, _SECONDS)
    if value is None or value > most_s:
        raise ConfigError(
            f"{place}: expected a time from 0s to {most_s:g}s, such as 10ms (units: "
            f"{', '.join(_SECONDS)}), got {_shown(text)}"
        )
    return value


def bytes_per_second(text: str, place: str) -> float:
    """Return the bytes per second that a text means: 12.5e6 for "100Mbit/s"; units kbit/s, Mbit/s,
    Gbit/s, kB/s, MB/s, GB/s, all powers of 1000.

    Raises `ConfigError` for anything else, and for what is not between 1 kB/s and 1000 GB/s.
    """
    value = _convert(text, _BYTES_PER_S)
    if value is None or not BYTES_PER_S_MIN <= value <= BYTES_PER_S_MAX:
        raise ConfigError(
            f"{place}: expected a rate from 1kB/s to 1000GB/s, such as 100Mbit/s (units: "
            f"{', '.join(_BYTES_PER_S)}), got {_shown(text)}"
        )
    return value


def _convert(text: str, units: Mapping[str, float]) -> float | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}...")


# --- links and conditions ------------------------------------------------------------------------


def check_texts(experiment: config.Experiment) -> None:
    """Check what types can't express in [links], [slow] and [staleness]: texts with units, and the
    form of link names. Raises `ConfigError`.

    `plan.conditions` checks that the names belong to the run, once it is known which worker has
    which stages.
    """
    links, stuck_s = experiment.links, experiment.limits.stuck_s
    _check_link(links, "links", stuck_s)
    _check_keys(links.between, "links.between")
    for key, link in links.between.items():
        _check_link(link, f"links.between.{table_key(key)}", stuck_s)
    for name, slow in experiment.slow.items():
        _check_slow(slow, f"slow.{table_key(name)}")
    _check_keys(experiment.staleness.links, "staleness.links")


def _check_link(link: config.Link, place: str, stuck_s: float) -> None:
    longest_s = seconds(link.latency, f"{place}.latency") + seconds(link.jitter, f"{place}.jitter")
    if longest_s >= stuck_s:
        raise ConfigError(
            f"{place}: a latency of {link.latency} and a jitter of {link.jitter} reach "
            f"limits.stuck_s = {stuck_s:g}, after which a waiting run counts as stuck; lower them "
            "or raise that"
        )
    if link.bandwidth:
        bytes_per_second(link.bandwidth, f"{place}.bandwidth")


def _check_slow(slow: config.Slow, place: str) -> None:
    pause_s = seconds(slow.pause, f"{place}.pause")
    if bool(pause_s) != bool(slow.chance):
        raise ConfigError(
            f"{place}: a pause of {slow.pause} with chance {slow.chance:g} never happens; give "
            "both pause and chance, or neither"
        )


def _check_keys(keys: Iterable[str], place: str) -> None:
    for key in keys:
        sender, arrow, receiver = key.partition("->")
        if not (sender and arrow and receiver):
            raise ConfigError(
                f'{place}: expected names of links, such as "hidden1->hidden2", got {shown(key)}'
            )
