"""Compare schedules by running them: the same network, data and seeds for each.

`plan_runs` plans the runs, `run_entry` trains one of them, and `document` turns their results, with
`report.statistics`, into what is written and shown. `finished_runs` reads what an interrupted
comparison has finished. Runs are interleaved seed by seed, and their order rotates from seed to
seed, so that a machine that grows slower or faster affects all rows alike.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from asyncdni import config, experiment
from asyncdni.data import checksums, describe
from asyncdni.data.meta import other_parts
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.experiment.schema import SECTIONS, seconds, shown, unknown, variants
from asyncdni.files import read_file
from asyncdni.imports import Allowed, allowing
from asyncdni.launch.conduct import Observer
from asyncdni.launch.train import design_of, train
from asyncdni.messages import DATA
from asyncdni.plan.build import Design
from asyncdni.plan.model import with_cuts
from asyncdni.profiling.roofline import Arithmetic, arithmetic_of, roofline_samples_per_s
from asyncdni.report.breakdown import SHARES, ceiling_samples_per_s, overhead_cpu, shares
from asyncdni.report.load import Load, load_from, plain, watched
from asyncdni.report.machine import cores, describe_machine
from asyncdni.report.statistics import (
    MEASURES,
    RATES,
    Comparison,
    Estimate,
    Key,
    Measure,
    Result,
    at,
    judged,
    latency_words,
    samples_to,
    suffix,
    time_to,
)
from asyncdni.report.verdict import (
    BASELINES,
    SINGLE,
    kept,
    kept_sentence,
    latency_sentence,
    verdict,
)
from asyncdni.schedules import SCHEDULES
from asyncdni.store.given import begin_with
from asyncdni.store.run import EXPERIMENT, load_experiment

__all__ = [
    "BASELINE",
    "COMPARISON",
    "ZERO",
    "Entry",
    "Row",
    "at_latencies",
    "check_schedules",
    "difference",
    "discard_run",
    "discard_unfinished",
    "document",
    "finished_runs",
    "fitting",
    "limited",
    "order",
    "plan_runs",
    "planned_before",
    "remarks_before",
    "run_entry",
    "tables_of",
]

# --- rows ----------------------------------------------------------------------------------------

#: The schedule of the row `single`: all stages in one worker process with all cores.
BASELINE = "locked"
#: The control of `synthetic`: its generators always predict zero, so it shows what the network
#: learns without synthetic gradients.
ZERO = "synthetic-zero"

_CONTROLLED = "synthetic"
_SCHEDULES = variants(SECTIONS["schedule"].type)


@dataclass(frozen=True)
class Row:
    """One row of a comparison, at one latency: how it changes the experiment file.

    A row takes those settings of the file and of `--set` that its schedule knows: a schedule's
    options, a bound on lag only where gradients may be late, and a stage's own schedule only where
    the two can be combined. `single` has no links and no slow worker.
    """

    name: str
    schedule: str
    changes: Sequence[str]  # as for --set
    latency_s: float | None = None


def check_schedules(names: Sequence[str]) -> None:
    """Raise `ConfigError` for no name, a repeated one, an unknown one, or SINGLE."""
    if not names:
        raise ConfigError(f"--schedules: none given; known: {', '.join(_SCHEDULES)}")
    for index, name in enumerate(names):
        if name == SINGLE:
            raise ConfigError(f"--schedules: {SINGLE} is always compared with; leave it out")
        if name not in _SCHEDULES:
            raise ConfigError(f"--schedules: {unknown('schedule', name, _SCHEDULES)}")
        if name in names[:index]:
            raise ConfigError(f"--schedules: {name} is given twice; expected each once")


def fitting(
    file: config.Experiment, changes: Sequence[str], schedule: str, schedules: Sequence[str]
) -> list[str]:
    """Return the `changes` that apply to `schedule`, and changes that undo what `file` has for
    others.

    A change that none of `schedules` knows is kept: loading refuses it and lists what is known.
    """
    meant = [text for text in changes if _fits(text, schedule, schedules)]
    return [*meant, *_undoing(file, schedule)]


def _zero_row(file: config.Experiment, changes: Sequence[str], schedules: Sequence[str]) -> Row:
    """Make the row of the control. Raises `ConfigError` if `synthetic` is not compared."""
    if _CONTROLLED not in schedules:
        raise ConfigError(
            f"--zero-control: {_CONTROLLED} is not compared, so there is nothing to control; "
            f"name it with --schedules, given: {','.join(schedules)}"
        )
    own = [text for text in changes if parse_setting(text)[0][:2] != ("schedule", "generator")]
    meant = fitting(file, own, _CONTROLLED, schedules)
    return Row(ZERO, _CONTROLLED, [*meant, 'schedule.generator={kind="zero"}'])


def _single_row(
    file: config.Experiment,
    changes: Sequence[str],
    schedules: Sequence[str],
    *,
    threads: int,
    cores: int,
) -> Row:
    """Make the row of one process with so many BLAS threads; its name is SINGLE if it has all
    cores."""
    name = SINGLE if threads == cores else f"{SINGLE}-{threads}"
    alone = [f"run.split=[{_stage_count(file)}]", f"run.threads={threads}", "links={}", "slow={}"]
    return Row(name, BASELINE, [*fitting(file, changes, BASELINE, schedules), *alone])


def at_latencies(rows: Iterable[Row], texts: Sequence[str]) -> list[Row]:
    """Repeat `rows` for each latency of all links, such as 10ms; without any, return them as they
    are.

    If there is only one latency, rows get it as a setting, but no `latency_s`. Raises
    `ConfigError`.
    """
    rows, found = list(rows), dict[float, str]()
    for text in texts:
        latency_s = seconds(text, "--latencies")
        if latency_s in found:
            raise ConfigError(f"--latencies: {found[latency_s]} and {text} are the same")
        found[latency_s] = text
    if not found:
        return rows
    return [
        replace(
            row,
            changes=[*row.changes, f'links.latency="{text}"'],
            latency_s=latency_s if len(found) > 1 else None,
        )
        for latency_s, text in sorted(found.items())
        for row in rows
    ]


def _fits(text: str, schedule: str, schedules: Sequence[str]) -> bool:
    keys, _ = parse_setting(text)
    if keys[0] != "schedule":
        return True
    if len(keys) == 1 or keys[1] == "name":
        raise ConfigError(f"--set {text}: name the schedules to compare with --schedules")
    owners = [name for name in schedules if keys[1] in _options(name)]
    return not owners or schedule in owners


def _options(schedule: str) -> set[str]:
    return {field.encode_name for field in _SCHEDULES[schedule].fields}


def _undoing(file: config.Experiment, schedule: str) -> list[str]:
    changes = [] if SCHEDULES[schedule].ahead else ["staleness={}"]
    if schedule == file.schedule.__struct_config__.tag:
        return changes
    return changes + [
        f"stages.{stage.name}.schedule={{}}"
        for stage in file.stages
        if stage.schedule and not _stands_beside(stage.schedule, schedule)
    ]


def _stands_beside(own: Mapping[str, object], schedule: str) -> bool:
    return SCHEDULES[schedule].decoupled and own == {"name": BASELINE}


# --- runs ----------------------------------------------------------------------------------------

_SEEDS_MAX = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    name: str  # of its row
    seed: int
    experiment: config.Experiment
    #: For each worker, those whose activations it takes; without it the run has no ceiling.
    producers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: One-way, in seconds; None unless latencies are compared, and for a run without links.
    latency_s: float | None = None
    #: What products and memory traffic alone would allow; None: unknown.
    roofline_samples_per_s: float | None = None
    #: Of an epoch, of `data.batch_size` samples each.
    batches: int = 1

    @property
    def key(self) -> Key:
        """What identifies the run in the comparison."""
        return self.name, self.latency_s, self.seed

    @property
    def title(self) -> str:
        """The run in words: `locked at 10 ms, seed 0`."""
        where = "" if self.latency_s is None else f" at {latency_words(self.latency_s)}"
        return f"{self.name}{where}, seed {self.seed}"

    @property
    def epochs(self) -> float:
        """How many epochs the run has, at most; `run.max_steps` may end it within one."""
        run = self.experiment.run
        if run.max_steps is None:
            return run.epochs
        return min(run.epochs, run.max_steps * self.experiment.schedule.accumulate / self.batches)

    @property
    def folder(self) -> str:
        """The name of the run's folder inside the comparison's folder."""
        return f"{self.name}{suffix(self.latency_s)}-seed{self.seed}"


def order(names: Sequence[T], seeds: Iterable[int]) -> list[tuple[T, int]]:
    """Return (name, seed) of each run, seed by seed; the names are rotated by one for each further
    seed."""
    return [
        (names[(turn + k) % len(names)], seed)
        for turn, seed in enumerate(seeds)
        for k in range(len(names))
    ]


def plan_runs(
    path: str | Path,
    changes: Sequence[str],
    schedules: Sequence[str],
    seeds: int,
    *,
    cores: int,
    single_threads: Sequence[int] = (),
    zero_control: bool = False,
    evaluate_every: int | None = None,
    latencies: Sequence[str] = (),
    allow_import: Allowed = False,
) -> list[Entry]:
    """Plan and check all runs of a comparison, in their order; seeds count up from the file's.

    There is a row for each schedule and the row `single`, one process with all cores; on request
    also the control and further single rows. With several latencies each row is run at each of
    them, except single rows, which have no links.

    Args:
        path, changes: the experiment file and `--set`; a schedule's option applies to schedules
            that know it.
        schedules: a row for each.
        cores: BLAS threads of the row SINGLE.
        single_threads: further rows `single-N` of one process with N BLAS threads.
        zero_control: add the row ZERO.
        evaluate_every: samples between evaluations, in place of `run.evaluate_every`.
        latencies: one-way latencies of all links, such as 10ms, to compare. A single one applies to
            all runs; without any the file decides.

    Raises `ConfigError` and `DataError` before anything runs.
    """
    check_schedules(schedules)
    if seeds > _SEEDS_MAX:
        raise ConfigError(f"--seeds: expected at most {_SEEDS_MAX} runs of each, got {seeds}")
    file = experiment.load(path, [text for text in changes if not _is_of_schedule(text)])
    if file.run.epochs == 0:
        raise ConfigError("run.epochs: 0 leaves nothing to compare; expected at least 1")
    with allowing(allow_import):
        file = _cut(file, allow_import)
        changes = [*changes, *_evaluations(file, evaluate_every), *_cuts(file)]
    rows = [Row(name, name, fitting(file, changes, name, schedules)) for name in schedules]
    rows += [_zero_row(file, changes, schedules)] if zero_control else []
    rows = at_latencies(rows, latencies)
    rows += [
        _single_row(file, changes, schedules, threads=threads, cores=cores)
        for threads in dict.fromkeys((cores, *single_threads))
    ]
    first = file.run.seed
    return _entries(path, rows, range(first, first + seeds), allow_import)


def limited(entries: Sequence[Entry], batches: int) -> list[Entry]:
    """Return the runs, each of which ends after so many batches, or before.

    All rows train on the same samples: the number is rounded down to whole updates of the row that
    makes one from the most batches, but to one update at least.
    """
    most = max(entry.experiment.schedule.accumulate for entry in entries)
    batches = max(most, batches // most * most)
    found = []
    for entry in entries:
        run, steps = entry.experiment.run, batches // entry.experiment.schedule.accumulate
        run = msgspec.structs.replace(run, max_steps=min(steps, run.max_steps or steps))
        chosen = msgspec.structs.replace(entry.experiment, run=run)
        found.append(replace(entry, experiment=chosen))
    return found


def run_entry(
    entry: Entry, folder: Path, observers: Sequence[Observer] = (), *, allow_import: Allowed = False
) -> Result:
    """Train one run in `folder`/`entry.folder`, and measure what else the machine does meanwhile.

    Errors of training are raised with the run's title.
    """
    load: list[Load] = []
    try:
        with watched(load):
            finished = train(
                entry.experiment,
                out=folder / entry.folder,
                observers=observers,
                progress=False,
                allow_import=allow_import,
            )
    except AsyncDNIError as error:
        raise type(error)(f"{entry.title}: {error}") from error
    return Result(entry.name, entry.seed, finished.summary, entry.latency_s, load[0])


def _is_of_schedule(text: str) -> bool:
    keys, _ = parse_setting(text)
    return keys[0] == "schedule"


def _cut(file: config.Experiment, allow_import: Allowed) -> config.Experiment:
    """Return the experiment with its `[model]`, if it has one, cut for all rows alike."""
    if file.model is None:
        return file
    return with_cuts(file, describe(file.data), allow_import=allow_import)


def _cuts(file: config.Experiment) -> list[str]:
    """Return the setting that says where a `[model]` is cut."""
    return [] if file.model is None else [f"model.stages={json.dumps(file.model.stages)}"]


def _stage_count(file: config.Experiment) -> int:
    if file.model is None:
        return len(file.stages)
    return len(file.model.stages) + 1 if isinstance(file.model.stages, list) else 1


def _evaluations(file: config.Experiment, samples: int | None) -> list[str]:
    if samples is None:
        return []
    return [f"run.evaluate_every={samples / describe(file.data).train_samples!r}"]


def _entries(
    path: str | Path, rows: Sequence[Row], seeds: Iterable[int], allow_import: Allowed
) -> list[Entry]:
    """Plan the runs; a row's design is shared by its seeds and latencies."""
    designs: dict[str, Design] = {}
    works: dict[str, Mapping[str, Arithmetic] | None] = {}
    entries = []
    for row, seed in order(rows, seeds):
        chosen = experiment.load(path, row.changes, schedule=row.schedule, seed=seed)
        if row.name not in designs:
            designs[row.name] = _design(row.name, chosen, allow_import)
            works[row.name] = arithmetic_of(designs[row.name])
        design = designs[row.name]
        given = design.experiment.run.init_sha256  # the same weights for all
        run = msgspec.structs.replace(chosen.run, init_sha256=given)
        chosen = msgspec.structs.replace(chosen, run=run)
        batches = -(-design.meta.train_samples // chosen.data.batch_size)
        entry = Entry(*(row.name, seed, chosen, _producers(design), row.latency_s), batches=batches)
        entries.append(
            replace(entry, roofline_samples_per_s=_roofline(entry, design, works[row.name]))
        )
    return entries


def _roofline(
    entry: Entry, design: Design, arithmetic: Mapping[str, Arithmetic] | None
) -> float | None:
    """Return the run's roofline on this machine; see `profiling.roofline`."""
    if arithmetic is None:
        return None
    latency_s = _least_latency(entry.experiment)
    return roofline_samples_per_s(design, arithmetic, cores(), lag=_lag(entry), latency_s=latency_s)


def _design(name: str, chosen: config.Experiment, allow_import: Allowed) -> Design:
    """Make a row's design. Raises, with the row's name, what its runs would raise before they
    begin."""
    try:
        design = begin_with(design_of(chosen, allow_import=allow_import))
    except AsyncDNIError as error:
        raise type(error)(f"{name}: {error}") from error
    return replace(design, init=None)


def _producers(design: Design) -> dict[str, tuple[str, ...]]:
    groups = design.plan.groups
    return {group.name: tuple(p for p in group.producers if p != DATA) for group in groups}


# --- the same network ----------------------------------------------------------------------------

#: The options that define a stage of the network; all others are about training.
_STRUCTURE = ("name", "layers", "inputs", "join", "loss")
Tables = Mapping[str, Any]  # of an experiment


def _check_same_network(entries: Sequence[Entry]) -> None:
    """Raise `ConfigError` unless all runs train the same network on the same data."""
    if not entries:
        return
    first, *others = entries
    there = tables_of(first.experiment)
    for entry in others:
        found = _network_difference(there, tables_of(entry.experiment))
        if found:
            raise ConfigError(
                f"{first.title} and {entry.title} are of different networks: {found}; only runs of "
                "the same network and data are compared"
            )


def _network_difference(there: Tables, here: Tables) -> str:
    """Describe where the networks or data of two experiments differ; empty if they don't."""
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
    """Return an experiment as plain tables, as JSON would give them back."""
    return json.loads(json.dumps(experiment.tables(chosen)))


def difference(place: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """Return the place where two nested values first differ, and both values there."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                return difference(f"{place}.{key}", there.get(key), here.get(key))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (old, new) in enumerate(zip(there, here, strict=True)):
            if old != new:
                return difference(f"{place}[{index}]", old, new)
    return place, there, here


# --- resuming a comparison -----------------------------------------------------------------------

#: The file in a comparison's folder that holds the document of the runs so far.
COMPARISON = "compare.json"


def finished_runs(folder: Path, entries: Sequence[Entry]) -> list[Result]:
    """Return the results of `entries` in folder/compare.json, in the order of `entries`.

    A run whose own folder is missing counts as unfinished. Raises `ConfigError` for a folder
    without a comparison, and for one with other rows, seeds, experiments, samples, machine or
    versions, since such runs can't be compared in one table. The data may have moved, but must hold
    the same samples.
    """
    found = _read(folder)
    here = tables_of(entries[0].experiment)
    same = _are_samples_of(folder, found["runs"], entries[0].experiment.data)
    there = _tables(found["experiment"], here, same)
    _check_network(folder, there, here)
    runs = {(one["name"], one.get("latency_s"), one["seed"]): one for one in found["runs"]}
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
            one = runs[entry.key]
            load = load_from(one.get("load"))
            results.append(Result(*(entry.name, entry.seed, one["summary"], entry.latency_s), load))
    return results


def planned_before(folder: Path) -> tuple[int, int, int | None]:
    """Return the seeds and epochs of the comparison in `folder`, which a time budget may have made
    fewer than was asked for, and the batches after which its runs end, if not after all epochs.

    Raises `ConfigError` for a folder without a comparison.
    """
    found = _read(folder)
    try:
        run, schedule = found["experiment"]["run"], found["experiment"]["schedule"]
        steps = run.get("max_steps")
        batches = None if steps is None else int(steps) * int(schedule.get("accumulate", 1))
        return len(found["seeds"]), int(run["epochs"]), batches
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"--resume {folder}: {COMPARISON} does not say how many epochs its runs have; "
            "begin a new comparison"
        ) from None


def remarks_before(folder: Path) -> list[str]:
    """Return the remarks of the comparison in `folder`, which hold for it when it goes on, too."""
    return [str(one) for one in _read(folder).get("remarks") or ()]


def discard_run(folder: Path, entry: Entry) -> None:
    """Remove the folder of one run, so that it can be made again. Raises `ConfigError`."""
    _remove(folder / entry.folder, "")


def discard_unfinished(
    folder: Path, entries: Sequence[Entry], finished: Sequence[Result]
) -> list[Path]:
    """Remove the folders of all unfinished runs; return those that existed.

    Raises `ConfigError` if one can't be removed.
    """
    kept = {one.key for one in finished}
    paths = [folder / entry.folder for entry in entries if entry.key not in kept]
    removed = [path for path in paths if path.exists()]
    for path in removed:
        _remove(path, "--resume: ")
    return removed


def _remove(path: Path, place: str) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise ConfigError(f"{place}can't remove {path}: {error.strerror}") from error


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
    """Tell whether the run's folder exists; raise `ConfigError` if it holds another experiment."""
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
    """Tell whether `data` are known to hold the samples of the runs.

    Raises `ConfigError` if they hold others.
    """
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
    """Return the tables as this version writes them, or unchanged if they can't be read.

    If the samples are the `same`, the tables get the place where the data lie now.
    """
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
    """Raise `ConfigError` if the document's experiment, `there`, has another network.

    `there` may be anything; what is no experiment at all is refused elsewhere.
    """
    if not isinstance(there, Mapping) or not {"data", "stages"} <= there.keys():
        return
    found = _network_difference(there, here)
    if found:
        raise ConfigError(
            f"--resume {folder}: it holds runs of another network: {found}; runs of different "
            "networks can't be compared, so choose another folder with --out"
        )


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the rows, each once for all latencies."""
    return list(dict.fromkeys(row["name"] for row in rows))


def _latencies(entries: Sequence[Entry]) -> list[float]:
    found = {entry.latency_s for entry in entries}
    return sorted(latency_s for latency_s in found if latency_s is not None)


# --- document ------------------------------------------------------------------------------------

#: For each control, the row that it controls.
_CONTROLS = {ZERO: "synthetic"}
_SPEEDS = ("samples_per_s", "stream_samples_per_s")


def document(
    entries: Sequence[Entry],
    results: Sequence[Result],
    targets: Sequence[float] = (),
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the comparison so far as plain tables, fit for JSON: what is written, drawn and shown.

    ```
    complete   whether every planned run is in it        targets      accuracies, rising
    machine    what it was measured on                   verdict      a sentence, or one a latency
    seeds      of all runs                               experiment   tables of the first run
    schedules  tables by name                            latencies    seconds, rising, if compared
    rows       one a name and latency: see `_row`        runs         name, seed, folder, summary, …
    remarks    sentences about how it went
    ```

    An estimate is {mean, low, high, n}: over n seeds, with a 95 % interval (None for one seed).
    Ratios are paired by seed. Means and intervals of ratios, speeds and times are computed on
    logarithms. A run's `load` tells what else the machine did, and `disturbed` what disturbed it.
    `report.statistics` explains the latency of rows and runs, `report.columns` how columns are
    shown.

    `results` may have names that no entry has: runs of other programs get rows of their own, after
    ours; `report.statistics.Result` tells what their summaries need. `targets` are test accuracies
    from 0 to 1. Raises `ConfigError` for entries of different networks or data.
    """
    _check_same_network(entries)
    planned = {entry.key: entry for entry in entries}
    results = judged(results)
    comparisons = _by_latency(entries, results, targets)
    first = next(iter(comparisons.values()))
    latencies = [latency_s for latency_s in comparisons if latency_s is not None]
    return {
        "complete": planned.keys() <= {one.key for one in results},
        "machine": describe_machine(),
        "seeds": sorted({entry.seed for entry in entries} or {one.seed for one in results}),
        "latencies": latencies,
        "targets": list(first.targets),
        "experiment": tables_of(entries[0].experiment) if entries else None,
        "schedules": {entry.name: tables_of(entry.experiment)["schedule"] for entry in entries},
        "rows": _rows(comparisons, entries),
        "verdict": _sentences(comparisons) if latencies else verdict(first),
        "runs": [_run(one, planned.get(one.key)) for one in results],
        "remarks": list(remarks),
    }


def _by_latency(
    entries: Sequence[Entry], results: Sequence[Result], targets: Sequence[float]
) -> dict[float | None, Comparison]:
    """Make a comparison for each latency; the only key is None if latencies are not compared."""
    names = tuple(dict.fromkeys([*(e.name for e in entries), *(r.name for r in results)]))
    controls = {control: of for control, of in _CONTROLS.items() if control in names}
    found = {entry.latency_s for entry in entries} | {one.latency_s for one in results}
    latencies = sorted(latency_s for latency_s in found if latency_s is not None)
    goals = tuple(sorted(set(targets)))
    return {
        latency_s: Comparison(names, at(latency_s, results), goals, controls)
        for latency_s in latencies or (None,)
    }


def _sentences(comparisons: Mapping[float | None, Comparison]) -> list[str]:
    known = {latency_s: one for latency_s, one in comparisons.items() if latency_s is not None}
    found = [latency_sentence(one, latency_s) for latency_s, one in known.items()]
    found.append(kept_sentence(known))
    if max(len(one.of(name)) for one in known.values() for name in one.names) == 1:
        found.append("One seed shows no spread: compare over more (--seeds 5).")
    return [sentence for sentence in found if sentence]


def _run(one: Result, entry: Entry | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "latency_s": one.latency_s,
        "seed": one.seed,
        "folder": entry.folder if entry else None,
        "load": plain(one.load),
        "disturbed": one.disturbed,
        "summary": dict(one.summary),
    }


def _rows(
    comparisons: Mapping[float | None, Comparison], entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    ceilings = {(entry.name, entry.latency_s): _ceiling(entry) for entry in entries}
    rooflines = {(entry.name, entry.latency_s): entry.roofline_samples_per_s for entry in entries}
    rows = []
    for latency_s, comparison in comparisons.items():
        for name in comparison.names:
            place = name, latency_s
            row = _row(comparison, name, ceilings.get(place, _unknown), rooflines.get(place))
            rows.append({**row, "latency_s": latency_s, **_kept(comparisons, latency_s, name)})
    return rows


def _kept(
    comparisons: Mapping[float | None, Comparison], latency_s: float | None, name: str
) -> dict[str, Any]:
    """Return the share of the speed at the least latency that is kept; empty for a single
    latency."""
    known = {one: comparison for one, comparison in comparisons.items() if one is not None}
    if latency_s is None:
        return {}
    return {f"kept_{measure}": _plain(kept(known, latency_s, name, measure)) for measure in _SPEEDS}


def _row(
    comparison: Comparison, name: str, ceiling: Measure, roofline: float | None
) -> dict[str, Any]:
    """Return the numbers of a row; a ratio is None if there is no run to pair with."""
    first = next((one.summary for one in comparison.of(name)), {})

    def efficiency(summary: Mapping[str, Any]) -> float | None:
        most, speed = ceiling(summary), summary.get("samples_per_s")
        return speed / most if most and speed else None

    def of_roofline(summary: Mapping[str, Any]) -> float | None:
        speed = summary.get("samples_per_s")
        return speed / roofline if roofline and speed else None

    estimates = {m: comparison.rate if m in RATES else comparison.estimate for m in MEASURES}
    return {
        "name": name,
        "runs": len(comparison.of(name)),
        "workers": first.get("workers"),
        "threads": first.get("threads"),
        "control": name in comparison.controls,
        "disturbed": sum(comparison.disturbed(name)),
        **{measure: _plain(estimate(name, measure)) for measure, estimate in estimates.items()},
        **{f"speedup_over_{other}": _plain(comparison.ratio(name, other)) for other in BASELINES},
        "ceiling_samples_per_s": _plain(comparison.rate(name, ceiling)),
        "efficiency": _plain(comparison.rate(name, efficiency)),
        "roofline_samples_per_s": roofline,
        "of_roofline": _plain(comparison.rate(name, of_roofline)),
        "overhead_cpu": _plain(comparison.estimate(name, overhead_cpu)),
        "shares": _shares(comparison, name),
        "targets": [_target(comparison, name, accuracy) for accuracy in comparison.targets],
    }


def _target(comparison: Comparison, name: str, accuracy: float) -> dict[str, Any]:
    """Count the runs of a row that reached an accuracy, and tell when they did.

    Means are given only if every run reached it. Ratios tell how many times sooner than the other
    row; they cover the `n` pairs in which both runs reached it.
    """
    time = time_to(accuracy)
    reached = len(comparison.values(name, time))
    whole = reached == len(comparison.of(name))
    return {
        "accuracy": accuracy,
        "reached": reached,
        "time_s": _plain(comparison.rate(name, time)) if whole else None,
        "samples": _plain(comparison.rate(name, samples_to(accuracy))) if whole else None,
        **{
            f"speedup_over_{other}": _plain(comparison.ratio(other, name, time))
            for other in BASELINES
        },
    }


def _shares(comparison: Comparison, name: str) -> dict[str, float] | None:
    """Return means over runs; like those of each run they sum to 1."""
    known = [one for one in (shares(run.summary) for run in comparison.of(name)) if one]
    if not known:
        return None
    return {part: sum(one[part] for one in known) / len(known) for part in SHARES}


def _ceiling(entry: Entry) -> Measure:
    """Return the ceiling of a run; it is unknown if stages have schedules of their own."""
    if any(stage.schedule for stage in entry.experiment.stages):
        return _unknown
    return lambda summary: ceiling_samples_per_s(
        summary,
        entry.producers,
        cores(),
        microbatches=entry.experiment.schedule.per_update,
        lag=_lag(entry),
        latency_s=_least_latency(entry.experiment),
    )


def _lag(entry: Entry) -> int | None:
    """Return the greatest lag of any worker; None if the schedule decides for each."""
    staleness = entry.experiment.staleness
    if not staleness.links:
        return staleness.lag
    usual = len(entry.producers) if staleness.lag is None else staleness.lag
    return max(usual, *staleness.links.values())


def _least_latency(chosen: config.Experiment) -> float:
    """Return the least latency of all links, so that the ceiling is too low for none of them."""
    links = (chosen.links, *chosen.links.between.values())
    return min(seconds(link.latency, "links.latency") for link in links)


def _unknown(summary: Mapping[str, Any]) -> float | None:
    """Return None, the ceiling of a run without one, such as that of another program."""
    return None


def _plain(one: Estimate | None) -> dict[str, Any] | None:
    return None if one is None else asdict(one)
