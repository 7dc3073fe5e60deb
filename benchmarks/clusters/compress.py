"""What encodings of tensors are worth over links of 100 Mbit/s: samples a second, and accuracy.

    export ASYNCDNI_DATA=…    # a folder with the four IDX files of MNIST, gzipped or not
    python benchmarks/clusters/compress.py --results runs/compress.json    # some 40 min
    python benchmarks/clusters/compress.py --readme

The first command times real processes over emulated links, a row after the other; predicts the
same at the pace of a quiet machine by simulation; and trains each row from the same seeds in the
simulator for its accuracy, as well as encodings of gradients that train generators alone. `--only
speed`, `predicted`, `accuracy` or `gradients` does one of these. `--resume` leaves out what the
file has; `--again` makes those runs anew, also where they are of an earlier version of the program,
which had other options. The second command fills in the tables of README.md from the results that
are kept here.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from command import results_parser
from threadpoolctl import threadpool_limits
from timed import (
    Job,
    Runs,
    comparison,
    fill_in,
    machine_line,
    measure,
    plus_minus,
    shortened,
    table,
    with_interval,
)

from asyncdni import experiment
from asyncdni.core.events import Finish
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import Costs, Hosts
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import order
from asyncdni.plan.build import make_design
from asyncdni.report.columns import COLUMNS
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import Estimate

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "compress.json", HERE / "README.md"
FILE = HERE.parents[1] / "launch" / "mnist-wide.toml"
BASE = "unlimited"
#: Row -> its [links].
ROWS = {
    BASE: [],
    **{
        name: ["links.bandwidth=100Mbit/s", f"links.compress={name}"]
        for name in ("none", "bfloat16", "int8")
    },
}
#: Row -> its [links], of the table of gradients that train generators and nothing else; NARROW.
FITS = {
    "none": [],
    "int8": ["links.compress=int8"],
    "top_k": ["links.compress_fits=top_k"],
    "low_rank": ["links.compress_fits=low_rank"],
}
NARROW = HERE.parents[1] / "launch" / "mnist.toml"
SPEED, PREDICTED, ACCURACY, GRADIENTS = "speed", "predicted", "accuracy", "gradients"
#: The least samples a second of int8 over those without a limit, and the most points it may lose.
LEAST, POINTS = 0.8, 0.2
#: About what a batch of 256 takes a worker of width 1024, in microseconds of one core: with it
#: the simulated links are as slow beside the arithmetic as the emulated ones.
COSTS = Costs(
    forward_us=4e3, predict_us=1e3, backward_us=8e3, relay_us=4e3, update_us=3e3, fit_us=3e3
)
#: With these two cores train 14,100 samples a second, as a quiet machine does: see docs/results.md.
QUIET = Costs(
    forward_us=2600.0,
    predict_us=650.0,
    backward_us=5200.0,
    relay_us=2600.0,
    update_us=1950.0,
    fit_us=1950.0,
    scale={"classifier": 0.05},
)
#: Microseconds that a batch of 256 x 1024 takes to encode and to decode.
ENCODING_US = {"bfloat16": 260.0, "int8": 340.0}


def plan(args: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that what disturbs the machine hits all rows alike."""
    lengths = {
        SPEED: shortened(args.file, args.set, args.batches),
        PREDICTED: ["run.epochs=3", "run.evaluate_every=3.0"],
        ACCURACY: [f"run.epochs={args.epochs}", f"run.evaluate_every={args.epochs}.0"],
    }
    wide = [
        Job(
            f"{part}, {row}",
            seed,
            experiment.load(args.file, [*ROWS[row], *args.set, *lengths[part]], seed=seed),
        )
        for part in (SPEED, PREDICTED, ACCURACY)
        if args.only in (None, part)
        for row, seed in order(args.rows, range(args.seeds))
    ]
    changes = ["run.epochs=3", "run.evaluate_every=3.0"]
    narrow = [
        Job(
            f"{GRADIENTS}, {row}",
            seed,
            experiment.load(args.narrow, [*FITS[row], *args.set, *changes], seed=seed),
        )
        for row, seed in order(list(FITS), range(args.seeds))
        if args.only in (None, GRADIENTS)
    ]
    return [*wide, *narrow]


def bytes_per_sample(run: Mapping[str, Any]) -> float | None:
    """Over all links of a timed run."""
    return COLUMNS["bytes_per_sample"].of_run({"stages": list(run["stages"].values())})


def scored(job: Job) -> dict[str, Any]:
    """Train in virtual time; the encodings are those of real processes."""
    began = time.perf_counter()
    design = make_design(job.experiment, describe(job.experiment.data))
    with threadpool_limits(1):
        result = simulate(design, seed=job.seed, costs=COSTS, maths=True, check=False)
    if not isinstance(result.end, Finish):
        raise AsyncDNIError(f"{job.key}: {result.end}")
    accuracy = result.history[-1]["accuracy"]
    return {"key": job.key, "test_accuracy": accuracy, "seconds": time.perf_counter() - began}


def predicted(job: Job) -> dict[str, Any]:
    """Simulate order and time alone. Encoding counts as a part of the forward."""
    began = time.perf_counter()
    design = make_design(job.experiment, describe(job.experiment.data))
    encoding_us = ENCODING_US.get(job.experiment.links.compress, 0.0)
    costs = dataclasses.replace(QUIET, forward_us=QUIET.forward_us + encoding_us)
    result = simulate(
        design, seed=job.seed, costs=costs, hosts=Hosts(cores=2), maths=False, check=False
    )
    rate = result.samples_per_s
    return {"key": job.key, "samples_per_s": rate, "seconds": time.perf_counter() - began}


MEASURES = {SPEED: measure, PREDICTED: predicted, ACCURACY: scored, GRADIENTS: scored}


def missing_of(jobs: Sequence[Job], runs: Runs, *, again: bool) -> list[Job]:
    """Those that the file does not have; all if they are to be made `again`. Raises `AsyncDNIError`
    where it has one of another experiment."""
    try:
        return [job for job in jobs if again or not runs.holds(job)]
    except AsyncDNIError as error:
        raise AsyncDNIError(
            f"{error}, or --again to make the runs that are asked for anew"
        ) from error


def run_all(jobs: Sequence[Job], runs: Runs, *, again: bool) -> None:
    """Run what the file does not have, or all `again`; it is written after every run."""
    runs.machine = describe_machine()
    missing, keys = missing_of(jobs, runs, again=again), [job.key for job in jobs]
    for count, job in enumerate(missing, 1):
        began = time.perf_counter()
        found = MEASURES[job.name.partition(",")[0]](job)
        runs.found[job.key] = {**found, "digest": job.digest}
        runs.wall_s += time.perf_counter() - began
        runs.save(keys)
        told = found.get("samples_per_s") or found["test_accuracy"]
        print(f"{count} of {len(missing)}: {job.key} {told:,.4f}", file=sys.stderr, flush=True)


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {
        "claim": claim(runs),
        "rows": rows_table(runs),
        "gradients": fits_table(runs),
        "machine": machine_line(runs),
    }


def of_part(runs: Runs, part: str) -> Any:
    rows = FITS if part == GRADIENTS else ROWS
    return comparison(runs, {row: f"{part}, {row}" for row in rows})


def fits_table(runs: Runs) -> str:
    """The table of encodings of gradients that train generators."""
    found = of_part(runs, GRADIENTS)
    lines = []
    for row in FITS:
        points = found.difference(row, "none", "test_accuracy")
        near = points is not None and 100 * points.mean >= -POINTS
        accuracy = plus_minus(found.estimate(row, "test_accuracy"), 2, 100.0)
        verdict = _verdict(points, near) if row != "none" else ""
        lines.append([f"`{row}`", accuracy, plus_minus(points, 2, 100.0), verdict])
    head = ["gradients to generators", "test accuracy, %", "points more than `none`"]
    return table([*head, f"at most {POINTS} lost"], lines)


def rows_table(runs: Runs) -> str:
    speed, quiet, accuracy = (of_part(runs, part) for part in (SPEED, PREDICTED, ACCURACY))
    lines = []
    for row in ROWS:
        size = speed.estimate(row, bytes_per_sample)
        lines.append(
            [
                f"`{row}`" if row != BASE else "float32, no limit",
                plus_minus(size),
                plus_minus(speed.estimate(row, "samples_per_s")),
                with_interval(speed.ratio(row, BASE, "samples_per_s")),
                plus_minus(quiet.estimate(row, "samples_per_s")),
                with_interval(quiet.ratio(row, BASE, "samples_per_s")),
                plus_minus(accuracy.estimate(row, "test_accuracy"), 2, 100.0),
                plus_minus(accuracy.difference(row, BASE, "test_accuracy"), 2, 100.0),
            ]
        )
    head = ["100 Mbit/s, `compress`", "bytes a sample", "samples/s", "over no limit"]
    head += ["samples/s, quiet, predicted", "over no limit"]
    return table([*head, "test accuracy, %", "points more than float32"], lines)


def claim(runs: Runs) -> str:
    ratio = of_part(runs, SPEED).ratio("int8", BASE, "samples_per_s")
    points = of_part(runs, ACCURACY).difference("int8", BASE, "test_accuracy")
    fast = ratio is not None and ratio.mean >= LEAST
    near = points is not None and abs(100 * points.mean) <= POINTS
    rows = [
        ["samples/s of `int8` at 100 Mbit/s over those without a limit", f"at least {LEAST}"],
        ["points of test accuracy between them", f"at most {POINTS}"],
    ]
    rows[0] += [with_interval(ratio), _verdict(ratio, fast)]
    rows[1] += [plus_minus(points, 2, 100.0), _verdict(points, near)]
    return table(["", "target", "measured", ""], rows)


def _verdict(found: Estimate | None, met: bool) -> str:
    if found is None:
        return "not measured"
    return "met" if met else "missed"


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--only", choices=list(MEASURES))
    parser.add_argument("--again", action="store_true", help="make what the file has anew")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, 2, …")
    parser.add_argument("--file", type=Path, default=FILE, metavar="FILE.toml")
    parser.add_argument("--narrow", type=Path, default=NARROW, metavar="FILE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--batches", type=int, default=234, help="of a timed run")
    parser.add_argument("--epochs", type=int, default=2, help="of a run for its accuracy")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            return
        if runs.found and not (args.resume or args.again):
            raise AsyncDNIError(f"{args.results} has runs: --resume goes on with it")
        run_all(plan(args), runs, again=args.again)
        print(*tables_of(runs).values(), sep="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
