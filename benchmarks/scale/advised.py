"""What `asyncdni advise` says against real runs, with kernels of two kinds of processor.

    ASYNCDNI_DATA=… python benchmarks/scale/advised.py      # some 4 min on two quiet cores

For each recipe `advise` measures and predicts, as the command does; then each of its rows is run
with real processes, on the same split. This is done with the kernels that OpenBLAS chooses for this
processor, and with those for a Haswell, which has no AVX-512: OPENBLAS_CORETYPE is read when NumPy
is imported, so each kind gets a process of its own. Prints a table for each, how far the
predictions are off, and how many runs stayed within the range that `advise` shows. See README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from run import length
from timed import table

from asyncdni import config, experiment
from asyncdni.data import identify
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import design_of, train
from asyncdni.profiling.advice import Row, Setup, advise
from asyncdni.profiling.measurement import measure_wire
from asyncdni.profiling.prediction import likely_range
from asyncdni.report.load import TAKEN_MAX, read_cores, taken
from asyncdni.report.machine import cores, describe_machine

LAUNCH = Path(__file__).parents[2] / "launch"
#: Those of the README: the command that it begins with, and its table.
RECIPES = ("digits", "mnist-wide")
#: Every 16th gradient from the start; `advise` does not mean a first epoch with all of them.
CHANGES = ["schedule.fit_first=0"]
OWN, VARIABLE = "own", "OPENBLAS_CORETYPE"
BATCHES, LEAST_BATCHES = 16, 16


@dataclass(frozen=True)
class Check:
    """One row of `advise`, and a real run of it; all in samples/s."""

    name: str
    predicted: float
    low: float
    high: float
    measured: float
    others: float  # the share of the cores' time that other programs took during the run

    @property
    def held(self) -> bool:
        return self.low <= self.measured <= self.high

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1


def checks(recipe: str, seconds: float) -> list[Check]:
    """Predict, then run each row for about so many seconds of training."""
    given = experiment.load(LAUNCH / f"{recipe}.toml", CHANGES)
    meta, first = identify(given.data), read_cores()
    wire = measure_wire()
    setup = Setup(given, meta, wire=wire, cores=cores(), hosts=1, batches=BATCHES)
    advice = advise(setup, len(given.stages))
    others, _ = taken(first, read_cores(), cores())
    return [one for row in advice.rows if (one := _check(given, row, others, seconds, recipe))]


def _check(
    given: config.Experiment, row: Row, others: float | None, seconds: float, recipe: str
) -> Check | None:
    if row.prediction is None:
        return None
    rate = row.prediction.samples_per_s
    split = [f"run.split={list(row.prediction.split)}"]
    chosen = experiment.change(experiment.tables(given), split, schedule=row.schedule)
    changes = length(design_of(chosen), seconds, rate, LEAST_BATCHES)
    first = read_cores()
    ran = train(experiment.change(experiment.tables(chosen), changes), progress=False)
    meanwhile, _ = taken(first, read_cores(), cores())
    low, high = likely_range(rate, others)
    measured = ran.summary["stream_samples_per_s"]
    return Check(f"{recipe}: {row.name}", rate, low, high, measured, meanwhile or 0.0)


def report(found: list[Check]) -> str:
    """A table, and what it comes to."""
    rows = [
        [
            one.name,
            f"{one.predicted:,.0f}",
            f"{one.low:,.0f} to {one.high:,.0f}",
            f"{one.measured:,.0f}",
            f"{one.off:+.0%}",
            "held" if one.held else "MISSED",
        ]
        for one in found
    ]
    head = ["recipe: row", "predicted", "range", "measured", "off by", "range"]
    off = sorted(abs(one.off) for one in found)
    held = sum(one.held for one in found)
    return (
        f"{table(head, rows)}\n\n{held} of {len(found)} ranges held; predictions are off by "
        f"{statistics.median(off):.0%} in the middle, by {off[-1]:.0%} at worst."
    )


def one_kind(seconds: float, recipes: list[str]) -> None:
    """Check all rows with the kernels that this process has loaded."""
    machine = describe_machine()
    kernels = ", ".join(str(one["architecture"]) for one in machine["blas"])
    print(f"\n## Kernels {kernels}, {machine['cpu']}, {machine['cores']} cores\n", flush=True)
    found = [one for recipe in recipes for one in checks(recipe, seconds)]
    print(report(found))
    busy = [one.name for one in found if one.others > TAKEN_MAX]
    if busy:
        print(f"Other programs disturbed {len(busy)} runs: {', '.join(busy)}.")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", default=[OWN, "Haswell"], metavar="CORETYPE")
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=2.0, help="of training, about")
    parser.add_argument("--here", action="store_true", help="with this process's kernels only")
    args = parser.parse_args()
    if args.here:
        try:
            one_kind(args.seconds, args.recipes)
        except AsyncDNIError as error:
            sys.exit(f"error: {error}")
        return
    words = ["--here", "--seconds", str(args.seconds), "--recipes", *args.recipes]
    for kind in args.kernels:
        environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
        environment |= {} if kind == OWN else {VARIABLE: kind}
        done = subprocess.run([sys.executable, __file__, *words], env=environment)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
