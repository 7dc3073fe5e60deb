"""What checkpoints every 30 s and rolling snapshots every second cost, in samples/s.

    ASYNCDNI_DATA=… python benchmarks/faults/overhead.py --results runs/overhead.json    # 12 min
    python benchmarks/faults/overhead.py --readme

Runs with and without them alternate, and are compared seed by seed. Each lasts long enough for at
least one checkpoint; the rate is over all training time, the drain of a checkpoint included. The
time that the saving itself takes is no training time: it is reported beside. See README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from command import results_parser
from timed import Job, Runs, comparison, fill_in, plus_minus, run_in_turn, table, with_interval

from asyncdni import experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import order
from asyncdni.report.statistics import MEASURES

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "overhead.json", HERE / "README.md"
LAUNCH = HERE.parents[1] / "launch"
NONE, SNAPSHOTS, BOTH = "none", "snapshots every 1 s", "and a checkpoint every 30 s"
ROWS = {
    NONE: ["checkpoint.every=never", "checkpoint.snapshot_every=never"],
    SNAPSHOTS: ["checkpoint.every=never"],
    BOTH: [],
}
#: Recipe -> epochs that last some 40 s under `synthetic`.
FILES = {"mnist.toml": 60, "mnist-wide.toml": 7}


def key(file: str, row: str) -> str:
    """Of results."""
    return f"{file}: {row}"


def plan(args: argparse.Namespace) -> list[Job]:
    """Rows take turns, so that a drift of the machine hits all of them."""
    jobs = []
    for file, epochs in FILES.items():
        for row, seed in order(list(ROWS), range(args.seeds)):
            changes = [f"run.epochs={epochs}", f"run.evaluate_every={float(epochs)}", *ROWS[row]]
            chosen = experiment.load(LAUNCH / file, changes, schedule="synthetic", seed=seed)
            jobs.append(Job(key(file, row), seed, chosen))
    return jobs


def tables_of(runs: Runs) -> Mapping[str, str]:
    """Every table of README.md by its name there."""
    rows = []
    for file in FILES:
        found = comparison(runs, {row: key(file, row) for row in ROWS})
        for row in ROWS:
            rate = found.estimate(row, MEASURES["samples_per_s"])
            against = found.ratio(row, NONE, MEASURES["samples_per_s"]) if row != NONE else None
            shown = with_interval(against, 3) if against is not None else "-"
            rows.append([file, row, plus_minus(rate), shown])
    head = ["recipe", "saved", "samples/s", "times that without"]
    return {"overhead": table(head, rows)}


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            return
        run_in_turn(plan(args), runs, resume=args.resume)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
