"""Go on with a comparison that was interrupted: what is finished stays, the rest is done.

Only where nothing has changed: the same rows, seeds and experiments on the same machine with the
same versions. Anything else would be runs that can't be compared in one table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdni import config, experiment
from asyncdni.comparison.entries import Entry
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.metrics.comparison import Result
from asyncdni.metrics.machine import describe_machine

__all__ = ["COMPARISON", "discard_unfinished", "finished_runs"]

#: The document of the runs so far, in the folder of a comparison.
COMPARISON = "compare.json"
_EXPERIMENT = "experiment.toml"


def finished_runs(folder: Path, entries: Sequence[Entry]) -> list[Result]:
    """The runs of `entries` that folder/compare.json holds, in their order.

    A run whose own folder is gone counts as not finished. Raises `ConfigError` for a folder without
    a comparison, and for one of other rows, seeds, experiments, machine or versions.
    """
    found = _read(folder)
    runs = {(one["name"], one["seed"]): one["summary"] for one in found["runs"]}
    pairs = (
        ("seeds", found["seeds"], sorted({entry.seed for entry in entries})),
        ("rows", _names(found["rows"]), list(dict.fromkeys(entry.name for entry in entries))),
        ("experiment", found["experiment"], _tables(entries[0].experiment)),
        ("machine", found["machine"], json.loads(json.dumps(describe_machine()))),
    )
    for name, there, here in pairs:
        _check(folder, name, there, here)
    results = []
    for entry in entries:
        if (entry.name, entry.seed) in runs and _is_whole(folder, entry):
            results.append(Result(entry.name, entry.seed, runs[entry.name, entry.seed]))
    return results


def discard_unfinished(
    folder: Path, entries: Sequence[Entry], finished: Sequence[Result]
) -> list[Path]:
    """Remove the folders of all other runs of `entries`; returns those that were there.

    Raises `ConfigError` where one can't be removed.
    """
    kept = {(one.name, one.seed) for one in finished}
    paths = [folder / entry.folder for entry in entries if (entry.name, entry.seed) not in kept]
    removed = [path for path in paths if path.exists()]
    for path in removed:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise ConfigError(f"--resume: can't remove {path}: {error.strerror}") from error
    return removed


def _read(folder: Path) -> dict[str, Any]:
    path = folder / COMPARISON
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--resume {folder}: there is no {COMPARISON} in it; expected the folder of a "
            "comparison (--out DIR without --resume begins one)"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--resume {folder}: {COMPARISON} can't be read: {error}") from error
    expected = {"seeds", "rows", "experiment", "machine", "runs"}
    if not isinstance(found, dict) or not expected <= found.keys():
        raise ConfigError(
            f"--resume {folder}: {COMPARISON} lacks some of {', '.join(sorted(expected))}; it was "
            "not written by this version, so begin a new comparison"
        )
    return found


def _is_whole(folder: Path, entry: Entry) -> bool:
    """Whether the run's folder is there; raises `ConfigError` for one of another experiment."""
    path = folder / entry.folder / _EXPERIMENT
    if not path.is_file():
        return False
    try:
        there = _tables(experiment.load(path))
    except AsyncDNIError as error:
        raise ConfigError(f"--resume {folder}: {error}") from error
    _check(folder, f"experiment of {entry.folder}", there, _tables(entry.experiment))
    return True


def _check(folder: Path, name: str, there: Any, here: Any) -> None:
    if there == here:
        return
    place, old, new = _difference(name, there, here)
    raise ConfigError(
        f"--resume {folder}: it holds another comparison: {place} is {json.dumps(old)} there and "
        f"{json.dumps(new)} here; give the same command as at first, or another folder with --out"
    )


def _difference(place: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """Where two tables first differ, and the values there."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                return _difference(f"{place}.{key}", there.get(key), here.get(key))
    return place, there, here


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


def _tables(chosen: config.Experiment) -> Any:
    """As they come back from JSON."""
    return json.loads(json.dumps(experiment.tables(chosen)))
