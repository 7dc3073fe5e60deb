"""What encryption costs: the same run over tcp on this machine with keys and without, in samples/s.

    ASYNCDNI_DATA=… python benchmarks/faults/curve.py --results runs/curve.json       # some 15 min
    python benchmarks/faults/curve.py --readme

Runs with and without keys take turns, and are compared seed by seed. All processes are started by
their command lines, with data between workers over tcp loopback in both cases. See README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from by_hand import free_port, started
from command import results_parser
from sweep import fill_in, table
from timed import plus_minus, with_interval

from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import order
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import MEASURES, Comparison, Result
from asyncdni.wire.curve import new_keys

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "curve.json", HERE / "README.md"
LAUNCH = HERE.parents[1] / "launch"
#: Width of the hidden stages -> recipe, epochs, and the most that the issue grants.
WIDTHS = {256: ("mnist.toml", 12, 0.15), 1024: ("mnist-wide.toml", 5, 0.05)}
PLAIN, KEYS = "plain", "keys"


def measure(width: int, how: str, seed: int, schedule: str) -> dict[str, Any]:
    """One run."""
    file, epochs, _ = WIDTHS[width]
    changes = [f"run.epochs={epochs}", f"run.evaluate_every={float(epochs)}"]
    changes += ["checkpoint.every=never", "checkpoint.snapshot_every=never"]
    with tempfile.TemporaryDirectory() as place:
        flags = []
        if how == KEYS:
            new_keys(Path(place, "keys"))
            flags = ["--keys", str(Path(place, "keys"))]
        with started(
            LAUNCH / file,
            changes,
            schedule=schedule,
            seed=seed,
            address=f"tcp://127.0.0.1:{free_port()}",
            folder=Path(place, "run"),
            flags=flags,
        ) as run:
            summary = run.summary()
    kept = ("samples_per_s", "train_s", "test_accuracy", "cpu_s")
    found = {key: summary[key] for key in kept}
    return {"width": width, "how": how, "seed": seed, "schedule": schedule, **found}


def tables_of(runs: list[dict[str, Any]]) -> Mapping[str, str]:
    """The table of README.md by its name there."""
    rows = []
    settings = {(run["schedule"], run["width"]): None for run in runs}
    for schedule, width in settings:
        results = [
            Result(run["how"], run["seed"], run)
            for run in runs
            if (run["schedule"], run["width"]) == (schedule, width)
        ]
        found = Comparison((PLAIN, KEYS), tuple(results))
        rates = [found.estimate(how, MEASURES["samples_per_s"]) for how in (PLAIN, KEYS)]
        ratio = found.ratio(KEYS, PLAIN, MEASURES["samples_per_s"])
        row = [schedule, str(width), *(plus_minus(rate) for rate in rates)]
        row += [with_interval(ratio, 3), f"{1 - WIDTHS[width][2]:.2f}"]
        rows.append([*row, with_interval(found.ratio(KEYS, PLAIN, MEASURES["cpu_s"]), 3)])
    head = ["schedule", "width", "samples/s, plain", "with keys", "ratio", "at least"]
    head += ["CPU time, ratio"]
    return {"curve": table(head, rows)}


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Those in turn that the file has not; it is written after each."""
    document: dict[str, Any] = {"machine": describe_machine(), "runs": []}
    if args.resume and args.results.exists():
        document["runs"] = json.loads(args.results.read_text())["runs"]
    known = {(r["width"], r["how"], r["seed"], r["schedule"]) for r in document["runs"]}
    for schedule in args.schedules:
        for width in args.widths:
            for how, seed in order([PLAIN, KEYS], range(args.seeds)):
                if (width, how, seed, schedule) in known:
                    continue
                document["runs"].append(measure(width, how, seed, schedule))
                args.results.parent.mkdir(parents=True, exist_ok=True)
                args.results.write_text(json.dumps(document, indent=1) + "\n")
                print(document["runs"][-1], file=sys.stderr, flush=True)
    runs: list[dict[str, Any]] = document["runs"]
    return runs


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--schedules", nargs="+", default=["synthetic"], metavar="NAME")
    args = parser.parse_args()
    try:
        if args.readme:
            fill_in(README, tables_of(json.loads(args.results.read_text())["runs"]))
            return
        for content in tables_of(measure_all(args)).values():
            print(content)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
