"""Copy and Repeat Copy: the longest sequence solved, truncated backpropagation against DNI.

    python benchmarks/copy/run.py --results runs/copy.json
    python benchmarks/copy/run.py --readme

The first command trains with every rule at every T from several seeds, with --resume those that
the file does not have. The second fills in the tables of README.md from the results that are kept
here. See README.md.

Source: Jaderberg et al., 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv 1608.05343), section 3.2 and its table 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

from command import results_parser  # noqa: E402
from sweep import Runs, fill_in, table  # noqa: E402
from train import Settings, train  # noqa: E402

from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.report.machine import describe_machine  # noqa: E402

RESULTS, README = HERE / "results" / "lengths.json", HERE / "README.md"
STEPS = (2, 3, 4, 5)
#: The claim: DNI solves sequences of at least so many times BPTT's length, at every T, on Copy.
LEAST = 1.7
#: As recalled, the paper's Table 1, by task and rule, at T = 2, 3, 4, 5; LSTM of 256, other budget.
PAPER = {
    "copy": {"BPTT": (7, 8, 10, 8), "DNI": (16, 14, 18, 18)},
    "repeat": {"BPTT": (7, 5, 19, 23), "DNI": (39, 33, 39, 59)},
}
TITLES = {"copy": "Copy", "repeat": "Repeat Copy"}
#: Targets that the generator sees coming.
AHEAD = {"copy": 40, "repeat": 64}

DNI = {"lambda": 1.0, "scale": 0.3, "cell": False, "learning_rate": 1e-3}
BPTT_RATES = (1e-3, 2e-3)
CLAIMED = "DNI"
RULES: Mapping[str, Mapping[str, Any]] = {
    **{f"BPTT, rate {rate:g}": {"learning_rate": rate} for rate in BPTT_RATES},
    CLAIMED: {"future": DNI, "learning_rate": 2e-3},
}


@dataclass(frozen=True)
class Job:
    """One run; its key ends with the seed."""

    task: str
    rule: str
    settings: Settings

    @property
    def key(self) -> str:
        return f"{self.task}/{self.rule}/{self.settings.steps}/{self.settings.seed}"

    @property
    def digest(self) -> str:
        """Equal for the same run."""
        told = json.dumps(asdict(self.settings), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def plan(args: argparse.Namespace) -> Iterator[Job]:
    for task in args.tasks:
        for rule, options in RULES.items():
            for steps in args.windows:
                ahead = AHEAD[task] if "future" in options else 0
                settings = Settings(steps, repeat=task == "repeat", ahead=ahead, **options)
                settings = replace(settings, budget=args.budget)
                jobs = (Job(task, rule, replace(settings, seed=s)) for s in range(args.seeds))
                yield from (job for job in jobs if wanted(job.key, args.only))


def wanted(key: str, only: list[str] | None) -> bool:
    return not only or any(fnmatch.fnmatch(key, f"*{part}*") for part in only)


def measure(job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    with threadpool_limits(1):
        curriculum = train(job.settings)
    seconds = round(time.perf_counter() - began, 1)
    return {
        "key": job.key,
        "digest": job.digest,
        "solved": curriculum.solved,
        "seconds": seconds,
        "settings": asdict(job.settings),
    }


def run_all(jobs: list[Job], runs: Runs, *, workers: int, resume: bool) -> None:
    """What the file does not have; it is written after every run."""
    missing = [job for job in jobs if not runs.holds(job)]  # type: ignore[arg-type]
    if not resume and len(missing) < len(jobs):
        raise AsyncDNIError(
            f"{runs.path} has {len(jobs) - len(missing)} of these runs: --resume goes on with it"
        )
    runs.machine = describe_machine()
    before, began = runs.wall_s, time.perf_counter()
    context = multiprocessing.get_context("spawn")  # BLAS threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, job) for job in missing]):
            run = done.result()
            runs.found[run["key"]] = run
            runs.wall_s = before + time.perf_counter() - began
            runs.save([job.key for job in jobs])
            print(f"{run['key']}: {run['solved']}", file=sys.stderr, flush=True)


# --- tables --------------------------------------------------------------------------------------


def solved(runs: Runs, task: str, rule: str, steps: int) -> list[int]:
    """The lengths of all seeds."""
    return [run["solved"] for run in runs.of(f"{task}/{rule}/{steps}").values()]


def best_bptt(runs: Runs, task: str, steps: int) -> float | None:
    """The mean length at the rate that suits BPTT best, here, after the fact."""
    found = [solved(runs, task, rule, steps) for rule in RULES if rule.startswith("BPTT")]
    return max((statistics.fmean(lengths) for lengths in found if lengths), default=None)


def ratio(runs: Runs, task: str, steps: int) -> float | None:
    """Of DNI's mean length to that of the better BPTT."""
    ours, theirs = solved(runs, task, CLAIMED, steps), best_bptt(runs, task, steps)
    return statistics.fmean(ours) / theirs if ours and theirs else None


def lengths(runs: Runs, task: str) -> str:
    rows = [
        [rule, *(", ".join(map(str, solved(runs, task, rule, t))) or "-" for t in STEPS)]
        for rule in RULES
    ]
    found = [ratio(runs, task, steps) for steps in STEPS]
    rows.append(
        ["DNI over the better BPTT, means", *("-" if r is None else f"{r:.1f}" for r in found)]
    )
    rows += [
        [f"paper, {rule} (as recalled)", *map(str, values)] for rule, values in PAPER[task].items()
    ]
    return table(["rule", *(f"T = {steps}" for steps in STEPS)], rows)


def claim(runs: Runs) -> str:
    found = [ratio(runs, "copy", steps) for steps in STEPS]
    if None in found:
        return "Not measured yet."
    worst = min(r for r in found if r is not None)
    verdict = "reached" if worst >= LEAST else "missed"
    return f"The smallest ratio is {worst:.1f}; at least {LEAST} was to be reached: {verdict}."


def tables_of(runs: Runs) -> dict[str, str]:
    return {
        "claim": claim(runs),
        **{task: lengths(runs, task) for task in TITLES},
        "machine": machine(runs),
    }


def machine(runs: Runs) -> str:
    if not runs.found:
        return "Not measured yet."
    seconds = [run["seconds"] for run in runs.found.values()]
    return (
        f"{len(seconds)} runs of one thread on {runs.machine['cores']} cores "
        f"({runs.machine['cpu']}, NumPy {runs.machine['numpy']}), "
        f"{statistics.median(seconds):.0f} s a run in the middle, with other work beside them; "
        f"{math.ceil(sum(seconds) / 60)} minutes of runs."
    )


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--tasks", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--windows", type=int, nargs="+", default=list(STEPS), metavar="T")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=150_000, help="LSTM time steps of a run")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of a run's name, * allowed")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            return
        run_all(list(plan(args)), runs, workers=args.jobs, resume=args.resume)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
