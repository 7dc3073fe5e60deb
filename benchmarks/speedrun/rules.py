"""The rules of the speedrun: what an entry may set, and what it must reach. See README.md."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncdni.errors import AsyncDNIError

__all__ = [
    "FIXED",
    "SEEDS_MIN",
    "TARGET",
    "TEXT",
    "WORKERS",
    "P",
    "Table",
    "fixed_digest",
    "forbidden",
    "read",
    "tables_of",
]

HERE = Path(__file__).parent
FIXED = HERE / "speedrun.toml"
#: Tables that an entry may have with all their keys, and those of which it may set some keys.
FREE = "schedule", "optimizer", "limits", "staleness"
FREE_KEYS = {
    "data": ("batch_size",),
    "run": ("max_steps", "autocast", "compile"),
    "links": ("compress", "compress_fits"),
}
TARGET = 2.30  # nats a character
P = 0.01  # of each test, one-sided
SEEDS_MIN, WORKERS = 4, 8
TEXT = "sha256 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

Table = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The entry in the file. Raises `AsyncDNIError`."""
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AsyncDNIError(f"{path}: {error}; expected the TOML file of an entry") from error
    for name, table in found.items():
        if not isinstance(table, dict):
            raise AsyncDNIError(f"{path}: {name} = {table!r}; expected tables, such as [schedule]")
    return found


def forbidden(entry: Table) -> Iterator[str]:
    """What the entry changes and may not."""
    for name, table in entry.items():
        if name in FREE_KEYS:
            yield from (f"{name}.{key}" for key in table if key not in FREE_KEYS[name])
        elif name not in FREE:
            yield name


def tables_of(entry: Table) -> dict[str, Any]:
    """The whole experiment. Raises `AsyncDNIError` for an entry that breaks the rules."""
    wrong = [*forbidden(entry)]
    if wrong:
        raise AsyncDNIError(f"an entry may not set {', '.join(wrong)}: see {HERE / 'README.md'}")
    if "max_steps" not in entry.get("run", {}):
        raise AsyncDNIError("an entry must say after how many steps it ends: [run] max_steps")
    tables = tomllib.loads(FIXED.read_text())
    for name, table in entry.items():
        tables[name] = {**tables.get(name, {}), **table}
    return tables


def fixed_digest() -> str:
    """Equal for the same task."""
    return hashlib.sha256(FIXED.read_bytes()).hexdigest()[:16]
