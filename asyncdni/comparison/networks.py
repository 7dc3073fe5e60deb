"""Runs are compared only if they train the same network on the same data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdni import config, experiment
from asyncdni.comparison.entries import Entry
from asyncdni.errors import ConfigError
from asyncdni.experiment.wording import shown

__all__ = ["check_same_network", "difference", "network_difference", "tables_of"]

#: What makes a stage part of another network; the rest is how it is trained.
_STRUCTURE = ("name", "layers", "inputs", "join", "loss")
Tables = Mapping[str, Any]  # of an experiment


def check_same_network(entries: Sequence[Entry]) -> None:
    """Raises `ConfigError` where not all have the same stages and the same data."""
    if not entries:
        return
    first, *others = entries
    there = tables_of(first.experiment)
    for entry in others:
        found = network_difference(there, tables_of(entry.experiment))
        if found:
            raise ConfigError(
                f"{first.title} and {entry.title} are of different networks: {found}; only runs of "
                "the same network and data are compared"
            )


def network_difference(there: Tables, here: Tables) -> str:
    """Where the networks or data of two experiments differ, in words; empty where they don't."""
    for key in sorted((there["data"].keys() | here["data"].keys()) - {"batch_size"}):
        old, new = there["data"].get(key), here["data"].get(key)
        if old != new:
            return f"data.{key} is {shown(old)} there and {shown(new)} here"
    names = [[stage["name"] for stage in one["stages"]] for one in (there, here)]
    if names[0] != names[1]:
        return f"the stages are {', '.join(names[0])} there and {', '.join(names[1])} here"
    for old, new in zip(there["stages"], here["stages"], strict=True):
        for key in _STRUCTURE:
            if old.get(key) != new.get(key):
                place, *ends = difference(f"{old['name']}.{key}", old.get(key), new.get(key))
                return f"{place} is {shown(ends[0])} there and {shown(ends[1])} here"
    return ""


def tables_of(chosen: config.Experiment) -> Any:
    """An experiment as it comes back from JSON."""
    return json.loads(json.dumps(experiment.tables(chosen)))


def difference(place: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """Where two nested values first differ, and what is there."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                return difference(f"{place}.{key}", there.get(key), here.get(key))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (old, new) in enumerate(zip(there, here, strict=True)):
            if old != new:
                return difference(f"{place}[{index}]", old, new)
    return place, there, here
