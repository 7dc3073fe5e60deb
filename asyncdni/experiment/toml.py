"""Writes tables as TOML (toml.io, version 1.0), which `tomllib` reads back to the same values.

An experiment is written as one would write it by hand: scalars first, then tables as `[a.b]`, and
lists of tables at the top level as `[[a]]`. Tables inside the latter, such as the layers of a
stage, are written inline, and so is a list that fits on a line. None means "not given" and is left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncdni.experiment.schema import quoted, table_key

__all__ = ["dumps"]

_WIDTH = 100


def dumps(tables: Mapping[str, Any]) -> str:
    """The TOML text of `tables`, whose values are tables or lists of tables, not scalars."""
    blocks = []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            blocks += _table(table_key(name), value)
        else:
            blocks += [f"[[{table_key(name)}]]\n{_lines(item)}" for item in value]
    return "\n".join(blocks)


def _table(path: str, table: Mapping[str, Any]) -> list[str]:
    """The blocks of a table: that of its own values, if it needs one, then those of its tables."""
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
