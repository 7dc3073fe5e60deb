"""Samples a second and time to an accuracy on MNIST, by schedule and by latency of the links.

    ASYNCDNI_DATA=… python benchmarks/latency/run.py --results runs/latency.json     # some 20 min
    python benchmarks/latency/run.py --readme

The first command trains each schedule over four workers on real sockets whose messages are held for
a one-way latency: runs of a few seconds for the speed, runs up to the accuracy for the time to it.
With --resume it leaves out what the file has. The second fills in the tables and the plot of
README.md from the results that are kept here. See README.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from command import results_parser
from latency_tables import (
    FULL,
    LATENCIES,
    ROWS,
    SINGLE,
    TARGET,
    TIMED,
    draw,
    key,
    rows_at,
    tables_of,
)
from timed import Job, Runs, fill_in, run_in_turn, shortened, wanted

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.errors import AsyncDNIError
from asyncdni.experiment.schema import seconds
from asyncdni.launch.compare import order
from asyncdni.report.machine import cores

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "mnist.json", HERE / "README.md"
FILE = HERE.parents[1] / "launch" / "mnist.toml"
#: Wide enough never to be felt: 600 ms there and back at 100 ms, over all links.
WINDOW = 256

# --- the plan ------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run that is asked for, in an order that rotates from seed to seed."""
    kinds = [("speed", text) for text in args.latencies] + [("time", t) for t in args.time_at]
    settings: dict[str, tuple[str, str, str]] = {}
    for kind, latency in kinds:
        for row in rows_at(latency):
            name = key(kind, row, latency)
            if wanted(name, args.only):
                settings.setdefault(name, (kind, row, latency))
    turns = order([*settings], range(args.seeds))
    return [job(args, name, *settings[name], seed) for name, seed in turns]


def job(args: argparse.Namespace, name: str, kind: str, row: str, latency: str, seed: int) -> Job:
    changes = [*args.set, f"limits.window={WINDOW}", *conditions(args, row, latency)]
    if kind == "speed":
        changes += shortened(args.file, args.set, batches(args, row, latency))
    else:
        changes += evaluations(args)
    chosen = experiment.load(args.file, changes, schedule=ROWS[row], seed=seed)
    return Job(name, seed, chosen, args.target_accuracy if kind == "time" else None)


def evaluations(args: argparse.Namespace) -> list[str]:
    samples = describe(experiment.load(args.file, args.set).data).train_samples
    return [f"run.evaluate_every={args.evaluate_every / samples!r}"]


def conditions(args: argparse.Namespace, row: str, latency: str) -> list[str]:
    if row == SINGLE:
        return [f"run.split=[{hops(args) + 1}]", f"run.threads={cores()}"]
    lag = [f"staleness.lag={full_lag(args, latency)}"] if row == FULL else []
    return [f'links.latency="{latency}"', *lag]


def hops(args: argparse.Namespace) -> int:
    """Links of the chain, one way."""
    return len(experiment.load(args.file).stages) - 1


def round_trip(args: argparse.Namespace, latency: str) -> float:
    """Seconds from the first stage to the loss and back, in links alone."""
    return 2 * hops(args) * seconds(latency, "--latencies")


def full_lag(args: argparse.Namespace, latency: str) -> int:
    """Batches that leave the first stage at full speed until a gradient is back, beside those that
    its depth needs anyway."""
    return math.ceil(round_trip(args, latency) * args.rate) + hops(args)


def batches(args: argparse.Namespace, row: str, latency: str) -> int:
    """How many take about `args.seconds`.

    In flight at once: one where there is a flush (or a lock), lag + 1 where there is a bound."""
    in_flight = {"delayed": hops(args) + 1, FULL: full_lag(args, latency) + 1}.get(row, 1)
    waits = row not in (SINGLE, "local_loss", "synthetic")
    period_s = 1 / args.rate + (round_trip(args, latency) / in_flight if waits else 0.0)
    return max(args.least_batches, round(args.seconds / period_s))


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    args = parsed()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs, args.target_accuracy))
            draw(runs, HERE / "results" / "speed.svg")
            return
        run_in_turn(plan(args), runs, resume=args.resume)
        for content in tables_of(runs, args.target_accuracy).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--only", nargs="+", metavar="PART", help="of a setting's name, * allowed")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, 2, …")
    parser.add_argument("--file", type=Path, default=FILE, metavar="FILE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--latencies", nargs="*", default=LATENCIES, metavar="TIME")
    parser.add_argument("--time-at", nargs="*", default=TIMED, metavar="TIME", help="latencies")
    parser.add_argument("--seconds", type=float, default=2.5, help="of training, for the speed")
    parser.add_argument(
        "--rate", type=float, default=450.0, metavar="BATCHES", help="a second, that none exceeds"
    )
    parser.add_argument("--least-batches", type=int, default=8, help="of a run for the speed")
    parser.add_argument("--target-accuracy", type=float, default=TARGET)
    parser.add_argument("--evaluate-every", type=int, default=15_000, metavar="SAMPLES")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
