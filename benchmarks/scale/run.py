"""Predicted against measured samples a second, by schedule, workers and latency of the links.

    ASYNCDNI_DATA=… python benchmarks/scale/run.py --results runs/scale.json     # some 8 min
    python benchmarks/scale/run.py --readme

The first command measures what ops and messages cost, predicts every run from that in the
simulator, and then makes the same run with real processes, each time anew for each seed and number
of workers. With --resume it leaves out what the file has. The second fills in the tables of
README.md from the results that are kept here. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from command import results_parser
from scale_tables import tables_of
from timed import Runs, fill_in, wanted

from asyncdni import config, experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import design_of, train
from asyncdni.plan.build import Design
from asyncdni.profiling.measurement import measure_wire
from asyncdni.profiling.prediction import Prediction, Prices, predict, price
from asyncdni.report.machine import cores, describe_machine

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "mnist.json", HERE / "README.md"
SIMULATED = HERE / "results" / "events.json"
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "locked": {"name": "locked"},
    "1f1b": {"name": "1f1b"},
    "delayed": {"name": "delayed"},
    "synthetic": {"name": "synthetic", "fit_every": 16},
}
#: Those whose ops are on microbatches are priced apart from the others.
MICROBATCHED, WHOLE = "1f1b", "synthetic"
BATCH_SIZE = 256
#: Batches sent ahead, as in `launch/mnist.toml`.
WINDOW = 64


def tables(args: argparse.Namespace, schedule: str, workers: int) -> dict[str, Any]:
    """One worker a layer, the classifier a layer too; without a length."""
    hidden = [{"dense": args.width}, "batch_norm", "relu"]
    stages: list[dict[str, Any]] = [
        {"name": f"hidden{index}", "layers": hidden} for index in range(1, workers)
    ]
    stages.append({"name": "classifier", "layers": [{"dense": 10}], "loss": "cross_entropy"})
    return {
        "data": {"name": args.data, "batch_size": BATCH_SIZE},
        "stages": stages,
        "schedule": dict(SCHEDULES[schedule]),
        "optimizer": {"name": "adam", "learning_rate": 3e-3},
        "limits": {"window": WINDOW},
    }


def changed(design: Design, changes: Sequence[str]) -> config.Experiment:
    return experiment.change(experiment.tables(design.experiment), changes)


def length(design: Design, seconds: float, rate: float, least: int) -> list[str]:
    """Changes that make a run of about so many seconds, whole epochs of whole batches; what is not
    trained on is tested on at the end, which takes no training time."""
    batches = max(least, round(seconds * rate / BATCH_SIZE))
    an_epoch = min(batches, design.meta.train_samples // BATCH_SIZE)
    epochs = max(1, round(batches / an_epoch))
    return [
        f"data.validation={design.meta.train_samples - an_epoch * BATCH_SIZE}",
        f"run.epochs={epochs}",
        f"run.evaluate_every={float(epochs)!r}",
    ]


# --- one round: a number of workers, a seed ------------------------------------------------------


class Round:
    """The prices of a network, measured once, just before its runs."""

    def __init__(self, args: argparse.Namespace, workers: int) -> None:
        self._args = args
        self._workers = workers
        wires = {held: measure_wire(held=held) for held in (False, True)}
        self._prices: dict[tuple[str, bool], Prices] = {}
        for kind in (WHOLE, MICROBATCHED):
            found = price(self._design(kind), wires[False], args.batches)
            for held, wire in wires.items():
                self._prices[kind, held] = dataclasses.replace(found, wire=wire)

    def run(self, schedule: str, latency: str, seed: int) -> dict[str, Any]:
        """Predict, then train; raises whatever ends it."""
        args = self._args
        design = design_of(changed(self._design(schedule), [f'links.latency="{latency}"']))
        held = latency != args.latencies[0]
        prices = self._prices[MICROBATCHED if schedule == MICROBATCHED else WHOLE, held]
        began = time.perf_counter()
        predicted = predict(design, prices, cores=cores())
        predicting_s = time.perf_counter() - began
        settings = length(design, args.seconds, predicted.samples_per_s, args.least_batches)
        chosen = changed(design, [*settings, f"run.seed={seed}"])
        summary = train(chosen, progress=False).summary
        return {
            **_measured(summary),
            **_predicted(predicted),
            "predicting_s": round(predicting_s, 3),
            "settings": settings,
        }

    def _design(self, schedule: str) -> Design:
        return design_of(experiment.parse(tables(self._args, schedule, self._workers)))


def _measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run; the rate without fills and drains, as it is predicted."""
    stages = summary["stages"]
    batches = summary["train_samples"] / BATCH_SIZE
    return {
        "samples_per_s": summary["stream_samples_per_s"],
        "samples_per_s_with_drains": summary["samples_per_s"],
        "train_samples": summary["train_samples"],
        "train_s": summary["train_s"],
        "cpu_s_per_batch": summary["cpu_s"] / batches,
        "op_cpu_s_per_batch": sum(one["op_cpu_s"] for one in stages) / batches,
        "idle": {one["name"]: one["wait_s"] / one["wall_s"] for one in stages},
        "staleness": {one["name"]: one["staleness_mean"] for one in stages},
    }


def _predicted(found: Prediction) -> dict[str, Any]:
    return {
        "predicted": {
            "samples_per_s": found.samples_per_s,
            "cpu_s_per_batch": sum(found.work_s.values()),
            "idle": dict(found.idle),
            "staleness": dict(found.staleness),
            "limit": found.limit,
        }
    }


# --- all runs ------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Iterator[tuple[int, int, list[tuple[str, str, str]]]]:
    """(seed, workers, [(name, schedule, latency)]): rounds, the order of runs rotating."""
    for seed in range(args.seeds):
        for workers in args.workers:
            settings = [
                (f"{latency}, {workers} workers: {schedule}", schedule, latency)
                for latency in args.latencies
                for schedule in args.schedules
            ]
            turn = seed % len(settings)
            rotated = settings[turn:] + settings[:turn]
            yield seed, workers, [one for one in rotated if wanted(one[0], args.only)]


def digest(args: argparse.Namespace, schedule: str, workers: int, latency: str) -> str:
    told = [tables(args, schedule, workers), latency, args.seconds, args.least_batches]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def run_all(args: argparse.Namespace, runs: Runs) -> None:
    """What the file lacks; it is written after every run."""
    runs.machine = describe_machine()
    before, began = runs.wall_s, time.perf_counter()
    order = [f"{name}/{seed}" for seed, _, settings in plan(args) for name, _, _ in settings]
    if not args.resume and any(key in runs.found for key in order):
        raise AsyncDNIError(f"{runs.path} has some of these runs: --resume goes on with it")
    for seed, workers, settings in plan(args):
        missing = [one for one in settings if f"{one[0]}/{seed}" not in runs.found]
        round_ = Round(args, workers) if missing else None
        for name, schedule, latency in missing:
            assert round_ is not None
            key = f"{name}/{seed}"
            found = round_.run(schedule, latency, seed)
            runs.found[key] = {
                "key": key,
                "digest": digest(args, schedule, workers, latency),
                **found,
            }
            runs.wall_s = before + time.perf_counter() - began
            runs.save(order)
            rate, told = found["samples_per_s"], found["predicted"]["samples_per_s"]
            line = f"{key} {rate:,.0f} samples/s, predicted {told:,.0f} ({told / rate - 1:+.0%})"
            print(line, file=sys.stderr, flush=True)


def main() -> None:
    args = parsed()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs, SIMULATED))
            return
        run_all(args, runs)
        for content in tables_of(runs, SIMULATED).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--only", nargs="+", metavar="PART", help="of a setting's name, * allowed")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, 2, …")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--width", type=int, default=256, help="of each hidden layer")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--schedules", nargs="+", default=[*SCHEDULES], choices=[*SCHEDULES])
    parser.add_argument("--latencies", nargs="+", default=["0ms", "10ms"], metavar="TIME")
    parser.add_argument("--seconds", type=float, default=1.5, help="of training, about")
    parser.add_argument("--batches", type=int, default=32, help="to measure the ops on")
    parser.add_argument("--least-batches", type=int, default=16, help="of a run")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
