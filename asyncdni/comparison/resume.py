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
from asyncdni.comparison.networks import difference, network_difference, tables_of
from asyncdni.datasets import checksums, other_parts
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.files import read_file
from asyncdni.metrics.comparison import Result
from asyncdni.metrics.machine import describe_machine
from asyncdni.run import EXPERIMENT, load_experiment

__all__ = ["COMPARISON", "discard_unfinished", "finished_runs"]

#: The document of the runs so far, in the folder of a comparison.
COMPARISON = "compare.json"


def finished_runs(folder: Path, entries: Sequence[Entry]) -> list[Result]:
    """The runs of `entries` that folder/compare.json holds, in their order.

    A run whose own folder is gone counts as not finished. Raises `ConfigError` for a folder without
    a comparison, and for one of other rows, seeds, experiments, samples, machine or versions. The
    same samples may lie elsewhere than they did.
    """
    found = _read(folder)
    here = tables_of(entries[0].experiment)
    same = _are_samples_of(folder, found["runs"], entries[0].experiment.data)
    there = _tables(found["experiment"], here, same)
    _check_network(folder, there, here)
    runs = {
        (one["name"], one.get("latency_s"), one["seed"]): one["summary"] for one in found["runs"]
    }
    pairs = (
        ("seeds", found["seeds"], sorted({entry.seed for entry in entries})),
        ("rows", _names(found["rows"]), list(dict.fromkeys(entry.name for entry in entries))),
        ("latencies", found.get("latencies", []), _latencies(entries)),
        ("experiment", there, here),
        ("machine", found["machine"], json.loads(json.dumps(describe_machine()))),
    )
    for name, old, new in pairs:
        _check(folder, name, old, new)
    results = []
    for entry in entries:
        if entry.key in runs and _is_whole(folder, entry, same):
            results.append(Result(entry.name, entry.seed, runs[entry.key], entry.latency_s))
    return results


def discard_unfinished(
    folder: Path, entries: Sequence[Entry], finished: Sequence[Result]
) -> list[Path]:
    """Remove the folders of all other runs of `entries`; returns those that were there.

    Raises `ConfigError` where one can't be removed.
    """
    kept = {(one.name, one.latency_s, one.seed) for one in finished}
    paths = [folder / entry.folder for entry in entries if entry.key not in kept]
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
        found = json.loads(read_file(path))
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


def _is_whole(folder: Path, entry: Entry, same: bool) -> bool:
    """Whether the run's folder is there; raises `ConfigError` for one of another experiment."""
    if not (folder / entry.folder / EXPERIMENT).is_file():
        return False
    try:
        there = tables_of(load_experiment(folder / entry.folder))
    except AsyncDNIError as error:
        raise ConfigError(f"--resume {folder}: {error}") from error
    here = tables_of(entry.experiment)
    _check(folder, f"experiment of {entry.folder}", _tables(there, here, same), here)
    return True


def _are_samples_of(folder: Path, runs: Sequence[Mapping[str, Any]], data: config.Data) -> bool:
    """Whether `data` are known to hold the samples of the runs. Raises `ConfigError` where they
    hold others."""
    samples = checksums(data)
    known = [one["summary"].get("data", {}).get("checksums", {}) for one in runs]
    others = next(filter(None, (other_parts(one, samples) for one in known)), [])
    if others:
        raise ConfigError(
            f"--resume {folder}: it holds runs on other samples: "
            f"{getattr(data, 'path', 'the data set')} has other contents in {', '.join(others)}; "
            "put the data back, or begin another comparison with --out"
        )
    return not samples or all(known)


def _tables(there: Any, here: Mapping[str, Any], same: bool) -> Any:
    """Tables as this version writes them and, where the samples are the `same`, with the place
    where they lie now. What can't be read stays as it is."""
    try:
        read = tables_of(experiment.parse(there))
    except AsyncDNIError:
        return there
    if same and "path" in read["data"] and "path" in here["data"]:
        read["data"]["path"] = here["data"]["path"]
    return read


def _check(folder: Path, name: str, there: Any, here: Any) -> None:
    if there == here:
        return
    place, old, new = difference(name, there, here)
    raise ConfigError(
        f"--resume {folder}: it holds another comparison: {place} is {json.dumps(old)} there and "
        f"{json.dumps(new)} here; give the same command as at first, or another folder with --out"
    )


def _check_network(folder: Path, there: Any, here: Mapping[str, Any]) -> None:
    """`there`: the experiment's tables in the document; what is none differs in more than that."""
    if not isinstance(there, Mapping) or not {"data", "stages"} <= there.keys():
        return
    found = network_difference(there, here)
    if found:
        raise ConfigError(
            f"--resume {folder}: it holds runs of another network: {found}; runs of different "
            "networks can't be compared, so choose another folder with --out"
        )


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the rows, each once, whatever the number of latencies."""
    return list(dict.fromkeys(row["name"] for row in rows))


def _latencies(entries: Sequence[Entry]) -> list[float]:
    found = {entry.latency_s for entry in entries}
    return sorted(latency_s for latency_s in found if latency_s is not None)
