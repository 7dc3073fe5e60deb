"""Many simulated trainings with real maths, several at a time, kept in one JSON file.

Shared by `../staleness`, `../paper-mnist` and `../random-updates`. A run is one process: the real
workers and their arithmetic in virtual time, so that a lag is what was set and one seed gives one
result.

Virtual time is arranged so that a lag is latency and nothing else: the reader of the data takes
READ_US a batch and every other op next to nothing, so all rules have the same period, and a round
trip of (lag + 1/2) periods brings a gradient back after `lag` later batches have been forwarded:

```
reader      F0 ───── F1 ───── F2 ───── F3 ─────
gradients   └──────── lag = 2 ──────┘ g0 ── g1 ─   before F3, after F2
```
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from asyncdni import experiment
from asyncdni.core.events import Finish
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.process import TimedOp
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.imports import Allowed
from asyncdni.plan.build import make_design
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import Estimate, difference, estimate
from asyncdni.store.tensors import write_atomically

__all__ = [
    "Far",
    "Job",
    "Runs",
    "cell",
    "fill_in",
    "layered",
    "machine_line",
    "run_all",
    "seeded",
    "table",
]

READ_US, OP_US = 1000.0, 1.0
#: Which links are long: the one to the stage with the loss, so that every stage sees the same lag;
#: every one, so that lags add up along the way; or every one by as little as makes the lags of a
#: pipeline, whatever `Job.lag`: each stage's is the number of stages behind it.
Far = Literal["loss", "every", "pipeline"]
#: A stage of a chain; all hidden ones are alike.
HIDDEN = [{"dense": 256}, "batch_norm", "relu"]
PERCENT = 100.0


@dataclass(frozen=True)
class Job:
    """One run: an experiment without its seed, and the lag of true gradients in batches."""

    name: str  # of the setting; with the seed it names the run
    seed: int
    tables: Mapping[str, Any]
    lag: int = 0
    far: Far = "loss"

    @property
    def key(self) -> str:
        return f"{self.name}/{self.seed}"

    @property
    def digest(self) -> str:
        """Equal for the same run."""
        told = [dict(self.tables), self.lag, self.far, self.seed]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def layered(
    layers: int,
    schedule: Mapping[str, Any],
    data: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    *,
    epochs: int,
    lag: int = 0,
    far: Far = "loss",
) -> dict[str, Any]:
    """A fully connected network, one worker a layer; the classifier counts as a layer.

    Bounds and windows are wide enough never to be felt: a lag comes from latency alone."""
    hops = layers - 1 if far == "every" else 1
    room = 2 * hops * (lag + 1) + 8  # grants are held back: a window is used by half and more
    stages: list[dict[str, Any]] = [
        {"name": f"hidden{index}", "layers": HIDDEN} for index in range(1, layers)
    ]
    stages.append({"name": "classifier", "layers": [{"dense": 10}], "loss": "cross_entropy"})
    return {
        "data": dict(data),
        "stages": stages,
        "schedule": dict(schedule),
        "optimizer": dict(optimizer),
        "run": {"epochs": epochs, "evaluate_every": float(epochs)},
        "limits": {"window": room},
        "staleness": {} if schedule["name"] in ("locked", "local_loss") else {"lag": room},
    }


# --- one run -------------------------------------------------------------------------------------


def measure(job: Job, allow_import: Allowed = False) -> dict[str, Any]:
    """Train and test once. A run that fails for its numbers has no error but a `failure`."""
    began, worked = time.perf_counter(), time.process_time()
    tables = json.loads(json.dumps(dict(job.tables)))
    tables["run"]["seed"] = job.seed
    parsed = experiment.parse(tables)
    design = make_design(parsed, describe(parsed.data), allow_import=allow_import)
    names = [group.name for group in design.plan.groups]
    costs, links = conditions(names, job.lag, job.far)
    with threadpool_limits(1):
        result = simulate(design, seed=job.seed, costs=costs, links=links, maths=True, check=False)
    return {
        "key": job.key,
        "digest": job.digest,
        **scores(result),
        "lags": {name: lag(ops) for name, ops in result.ops.items()},
        "staleness": {name: _staleness(own) for name, own in result.counters.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - worked, 1),
    }


def conditions(names: Sequence[str], lag: int, far: Far) -> tuple[Costs, Links]:
    """Of workers in a chain."""
    pairs = list(itertools.pairwise(names))
    periods = 1 + 0.5 / len(names) if far == "pipeline" else lag + 0.5  # of a round trip
    one_way_us = periods * READ_US / 2
    long = pairs[-1:] if far == "loss" else pairs
    between = {link: one_way_us for a, b in long for link in ((a, b), (b, a))}
    ops = ("forward", "predict", "backward", "relay", "learn", "update", "fit")
    costs = Costs(read_us=READ_US, **{f"{op}_us": OP_US for op in ops})
    return costs, Links(latency_us=OP_US, between=between)


def scores(result: Result) -> dict[str, Any]:
    """Test error in percent and test loss after the last epoch."""
    if not isinstance(result.end, Finish):
        return {"error": None, "loss": None, "failure": result.failure and result.failure.text}
    last = result.history[-1]
    error = round(PERCENT * (1 - last["accuracy"]), 4)
    return {"error": error, "loss": round(float(last["loss"]), 6)}


def lag(ops: Sequence[TimedOp]) -> float | None:
    """Batches forwarded between a batch's forward and the use of its true gradient: the median.

    That use is the fit of a generator, or without one the batch's first backward. None: no use.
    """
    letters = {letter for letter, *_ in ops}
    use = "T" if "T" in letters else "" if "P" in letters else "BbW"
    forwarded, at, lags = 0, dict[int, int](), list[int]()
    for letter, batch, *_ in ops:
        if letter == "F":
            forwarded += 1
            at[batch] = forwarded
        elif letter in use and batch in at:
            lags.append(forwarded - at.pop(batch))
    return statistics.median(lags) if lags else None


def _staleness(counters: Mapping[str, Any]) -> float | None:
    mean = counters.get("staleness_mean")
    return None if mean is None else round(float(mean), 2)


# --- all runs ------------------------------------------------------------------------------------


class Runs:
    """Finished runs in a file, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        self.wall_s = 0.0  # of all commands that made them
        self.machine: dict[str, Any] = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            self.wall_s, self.machine = kept["wall_s"], kept["machine"]
            self.found = {run["key"]: run for run in kept["runs"]}

    def holds(self, job: Job) -> bool:
        """Raises `AsyncDNIError` where the file has a run of this name that was another one."""
        run = self.found.get(job.key)
        if run is not None and run["digest"] != job.digest:
            raise AsyncDNIError(
                f"{self.path} has {job.key} of another experiment: give another --results"
            )
        return run is not None

    def save(self, order: Sequence[str]) -> None:
        """One line a run, in the order of the plan."""
        keys = [key for key in order if key in self.found]
        keys += [key for key in self.found if key not in set(keys)]
        lines = ",\n".join(json.dumps(self.found[key]) for key in keys)
        machine = json.dumps(self.machine)
        text = f'{{"machine": {machine},\n"wall_s": {self.wall_s:.1f},\n"runs": [\n{lines}\n]}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.encode())

    def of(self, name: str) -> dict[int, dict[str, Any]]:
        """By seed."""
        keys = {key.rpartition("/") for key in self.found}
        seeds = sorted(int(seed) for setting, _, seed in keys if setting == name)
        return {seed: self.found[f"{name}/{seed}"] for seed in seeds}

    def errors(self, name: str) -> dict[int, float | None]:
        """Test error in percent by seed; None where the run failed."""
        return {seed: run["error"] for seed, run in self.of(name).items()}

    def estimate(self, name: str) -> Estimate | None:
        """Of the test error; None where there is no run, or one that failed."""
        values = list(self.errors(name).values())
        known = [value for value in values if value is not None]
        return estimate(known) if len(known) == len(values) else None

    def shown(self, name: str) -> str:
        """Mean and interval for a table; of runs that failed, how many did."""
        errors = self.errors(name).values()
        failed = sum(error is None for error in errors)
        return f"{failed} of {len(errors)} failed" if failed else cell(self.estimate(name))

    def difference(self, name: str, other: str) -> Estimate | None:
        """Test error of `name` less that of `other`, paired over the seeds that both have."""
        a, b = self.errors(name), self.errors(other)
        both = [(a[seed], b.get(seed)) for seed in a]
        return difference([(x, y) for x, y in both if x is not None and y is not None])


def run_all(
    jobs: Sequence[Job],
    runs: Runs,
    *,
    workers: int,
    resume: bool,
    measure: Callable[[Job], dict[str, Any]] = measure,
) -> None:
    """Run what the file does not have; it is written after every run.

    `measure` makes one run; what it returns has "key", "digest" and an "error" or a "loss".
    Without `resume` a file that has any of the runs is refused (`AsyncDNIError`)."""
    missing = [job for job in jobs if not runs.holds(job)]
    if not resume and len(missing) < len(jobs):
        raise AsyncDNIError(
            f"{runs.path} has {len(jobs) - len(missing)} of these runs: --resume goes on with it"
        )
    runs.machine = describe_machine()
    order, before, began = [job.key for job in jobs], runs.wall_s, time.perf_counter()
    # A fresh interpreter each: BLAS threads and locks do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(measure, job): job for job in missing}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                run = future.result()
                runs.found[run["key"]] = run
                runs.wall_s = before + time.perf_counter() - began
                runs.save(order)
                told = f"{count} of {len(missing)}: {run['key']}: {_score(run)}"
                print(told, file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    runs.save(order)


def _score(run: Mapping[str, Any]) -> str:
    return f"{run['error']} %" if "error" in run else f"loss {run['loss']}"


def seeded(name: str, seeds: int, **options: Any) -> list[Job]:
    """The same run from seeds 0 to `seeds` - 1."""
    first = Job(name, 0, **options)
    return [replace(first, seed=seed) for seed in range(seeds)]


# --- tables --------------------------------------------------------------------------------------


def cell(found: Estimate | None, *, sign: bool = False) -> str:
    """Mean and half the 95 % interval, in points."""
    if found is None:
        return "-"
    mean = f"{found.mean:+.2f}" if sign else f"{found.mean:.2f}"
    return mean if found.high is None else f"{mean} ± {found.high - found.mean:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine_line(runs: Runs, *, at_once: str = "two runs at a time") -> str:
    """What it was run on, and how long it took."""
    machine, seconds = runs.machine, [run["seconds"] for run in runs.found.values()]
    return (
        f"{len(seconds)} runs in {math.ceil(runs.wall_s / 60)} minutes on {machine['cores']} cores "
        f"({machine['cpu']}, NumPy {machine['numpy']}), {at_once} with one BLAS thread "
        f"each, {statistics.median(seconds):.0f} s a run in the middle."
    )


def fill_in(readme: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->` by each table.

    Raises `AsyncDNIError` for a name that the page does not have."""
    text = readme.read_text()
    for name, content in tables.items():
        mark = f"<!-- {name} -->\n"
        before, found, rest = text.partition(mark)
        _, end, after = rest.partition("<!-- end -->")
        if not (found and end):
            raise AsyncDNIError(f"{readme}: expected {mark.strip()} and after it <!-- end -->")
        text = f"{before}{mark}{content.rstrip()}\n{end}{after}"
    write_atomically(readme, text.encode())
