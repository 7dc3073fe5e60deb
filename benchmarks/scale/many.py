"""Many small workers against few: samples/s and CPU time of one network over 32 and over 4 workers.

    python benchmarks/scale/many.py                 # some 3 min on two quiet cores
    python benchmarks/scale/many.py --pin none      # without the long turns of docs/speed.md

The network has a stage a layer. With as many workers as stages each of them spends most of its time
beside the arithmetic: in the loop between ops, on messages, on its own generator. Rows are run in
turn, in an order that changes from seed to seed. CPU time is that of all workers, evaluations and
start-up left out; it says more than samples/s on a machine that does other things, too. See
README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from timed import table, with_interval

from asyncdni import config, experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import train
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import estimate, ratio

STAGES = 32
#: samples/s of the most workers over that of the fewest.
TARGET = 0.8


def network(args: argparse.Namespace, workers: int, seed: int) -> config.Experiment:
    """The experiment of one run: always the same network, over so many workers."""
    hidden = [{"dense": args.width}, "batch_norm", "relu"]
    stages: list[dict[str, Any]] = [
        {"name": f"hidden{index}", "layers": hidden} for index in range(1, STAGES)
    ]
    stages.append({"name": "classifier", "layers": [{"dense": 10}], "loss": "cross_entropy"})
    return experiment.parse(
        {
            "data": {"name": "digits", "batch_size": args.batch_size},
            "stages": stages,
            "schedule": {"name": "synthetic", "fit_every": 16},
            "optimizer": {"name": "adam", "learning_rate": 1e-3},
            "run": {
                "epochs": args.epochs,
                "evaluate_every": float(args.epochs),
                "seed": seed,
                "pin": args.pin,
                "split": [STAGES // workers] * workers,
            },
            "limits": {"window": 64},
        }
    )


def measured(summary: Mapping[str, Any]) -> dict[str, float]:
    """Samples/s, and microseconds of CPU time a sample: of all workers, and inside their ops."""
    samples = summary["train_samples"]
    in_ops = sum(stage["op_cpu_s"] for stage in summary["stages"])
    return {
        "samples_per_s": summary["samples_per_s"],
        "cpu_us": summary["cpu_s"] / samples * 1e6,
        "op_cpu_us": in_ops / samples * 1e6,
    }


def run_all(args: argparse.Namespace) -> dict[int, list[dict[str, float]]]:
    """What was measured, by number of workers, in the order of seeds."""
    found: dict[int, list[dict[str, float]]] = {workers: [] for workers in args.workers}
    for seed in range(args.seeds):
        turn = seed % len(args.workers)
        for workers in args.workers[turn:] + args.workers[:turn]:
            one = measured(train(network(args, workers, seed), progress=False).summary)
            found[workers].append(one)
            line = f"seed {seed}, {workers} workers: {one['samples_per_s']:,.0f} samples/s"
            print(f"{line}, {one['cpu_us']:.1f} µs of CPU a sample", file=sys.stderr, flush=True)
    return found


def tables_of(found: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """A row for each number of workers, and the ratios of the last one to the first."""
    heads = ["workers", "samples/s", "CPU µs a sample", "in ops"]
    rows = [
        [str(workers)]
        + [
            with_interval(estimate([one[name] for one in runs]), digits)
            for name, digits in (("samples_per_s", 0), ("cpu_us", 1), ("op_cpu_us", 1))
        ]
        for workers, runs in found.items()
    ]
    few, many = min(found), max(found)
    lines = [table(heads, rows), ""]
    for name, words in (("samples_per_s", "samples/s"), ("cpu_us", "CPU time a sample")):
        pairs = [(a[name], b[name]) for a, b in zip(found[many], found[few], strict=True)]
        lines.append(f"{words}, {many} workers over {few}: {with_interval(ratio(pairs))}")
    return "\n".join([*lines, f"target for samples/s: at least {TARGET}"])


def main() -> None:
    args = parsed()
    try:
        found = run_all(args)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    machine = describe_machine()
    blas = ", ".join(f"{one['internal_api']} {one['architecture']}" for one in machine["blas"])
    where = f"{machine['cores']} cores ({machine['cpu']}, NumPy {machine['numpy']} with {blas})"
    print(where, tables_of(found), sep="\n\n")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[4, STAGES], help=f"of {STAGES}")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, 2, …")
    parser.add_argument("--width", type=int, default=64, help="of each hidden layer")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=8, help="of 10,000 samples each")
    parser.add_argument("--pin", choices=("auto", "none"), default="auto", help="run.pin")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
