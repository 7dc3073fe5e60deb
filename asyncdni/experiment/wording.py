"""The words of messages about experiments: what was given, what is expected, what is known."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

from msgspec import inspect

from asyncdni.config.base import COUNT_MAX

__all__ = [
    "NAME",
    "expected",
    "listed",
    "nearest",
    "quoted",
    "shown",
    "stage_place",
    "table_key",
    "tag_key",
    "unknown",
    "variants",
]

#: What a stage may be called: safe as a file name and in `stages.NAME.key=value`.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def nearest(name: object, names: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for the end of a message: `a, b, c`."""
    return ", ".join(names) or "none"


def shown(value: object) -> str:
    """A given value on one line, cut where it is long."""
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
    """`stages[1] (hidden2)`: how messages name a stage of the file."""
    known_name = isinstance(name, str) and NAME.fullmatch(name)
    return f"stages[{index}] ({name})" if known_name else f"stages[{index}]"


def table_key(key: str) -> str:
    """A key of a table as TOML writes it: `hidden1`, or `"hidden1->hidden2"`."""
    return key if _BARE_KEY.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """Text as TOML writes it, on one line."""
    # TOML's basic strings escape as JSON's do, and DEL besides.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def unknown(noun: str, given: object, names: Iterable[str]) -> str:
    """`unknown loss 'mes', did you mean 'mse'? known: mse, …`"""
    names = list(names)
    return f"unknown {noun} {shown(given)}{nearest(given, names) or ';'} known: {listed(names)}"


def expected(kind: inspect.Type) -> str:
    """What a value of `kind` looks like, in words: `an integer of at least 1`."""
    match kind:
        case inspect.IntType():
            return f"an integer{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
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
        case inspect.UnionType() if variants(kind):
            return f"a table whose {tag_key(kind)} is one of {listed(variants(kind))}"
        case inspect.UnionType(types=types):
            return " or ".join(
                expected(one) for one in types if not isinstance(one, inspect.NoneType)
            )
        case _:
            return "a table"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    most = None if kind.le == COUNT_MAX else kind.le  # said where it matters
    words = {"of at least": kind.ge, "above": kind.gt, "of at most": most, "below": kind.lt}
    limits = [f"{word} {_number(limit)}" for word, limit in words.items() if limit is not None]
    return " " + " and ".join(limits) if limits else ""


def _number(value: float) -> str:
    """Whole ones in full: they may be bytes."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def variants(kind: inspect.Type) -> dict[str, inspect.StructType]:
    """The kinds a table may be of, by the tag that says so; empty for anything else."""
    if not isinstance(kind, inspect.UnionType):
        return {}
    structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
    return {str(one.tag): one for one in structs if one.tag is not None}


def tag_key(kind: inspect.Type) -> str:
    """The key that tells the variants of `kind` apart: "name" or "kind"."""
    return next(str(one.tag_field) for one in variants(kind).values())
