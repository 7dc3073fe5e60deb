"""Simulated events a second, with and without codec and checks, and the time of a prediction for up
to 1,024 stages.

    python benchmarks/scale/events.py                  # some 2 minutes; writes results/events.json
    python benchmarks/scale/events.py --stages 1024 --only synthetic --no-predictions

See README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.plan.build import Design, make_design
from asyncdni.profiling.measurement import Hop, Wire
from asyncdni.profiling.prediction import Prices, predict
from asyncdni.report.machine import describe_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "events.json"
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "locked": {"name": "locked"},
    "1f1b": {"name": "1f1b", "microbatches": 2},
    "delayed": {"name": "delayed"},
    "synthetic": {"name": "synthetic"},
}
#: What stages cost in a prediction, about as of width 256 on a batch of 256.
SECONDS = {
    **{"R": 1e-4, "F": 4.2e-4, "P": 1.3e-4, "B": 4.1e-4, "B_send": 7e-4},
    **{"b": 4.1e-4, "W": 3.4e-4, "U": 8e-5, "T": 7e-5},
}
TENSOR_BYTES = 2**18


def design(schedule: str, stages: int, *, batches: int, latency: str = "0ms") -> Design:
    """A chain without much to compute; arithmetic is left out anyway."""
    hidden = [
        {"layers": [{"dense": 16}, "relu"], "name": f"s{index}"} for index in range(1, stages)
    ]
    top = {"layers": [{"dense": 8}], "name": "top", "loss": "sigmoid_cross_entropy"}
    data = {"name": "addition", "examples": 10 * batches, "test_examples": 20, "batch_size": 10}
    tables = {
        "data": data,
        "stages": [*hidden, top],
        "schedule": dict(SCHEDULES[schedule]),
        "run": {"epochs": 1},
        "links": {"latency": latency},
    }
    parsed = experiment.parse(tables)
    return make_design(parsed, describe(parsed.data))


def events_per_second(schedule: str, stages: int, rounds: int) -> dict[str, Any]:
    """CPU seconds, medians over rounds; both ways in turn."""
    made = design(schedule, stages, batches=max(20, 3200 // stages))
    rates: dict[bool, list[float]] = {True: [], False: []}
    events = 0
    for _ in range(rounds):
        for both, found in rates.items():
            began = time.process_time()
            result = simulate(made, seed=0, maths=False, check=both, codec=both)
            found.append(result.events / (time.process_time() - began))
            events = result.events
    medians = {both: statistics.median(found) for both, found in rates.items()}
    return {
        "schedule": schedule,
        "stages": stages,
        "events": events,
        "with_codec_and_check": round(medians[True]),
        "without": round(medians[False]),
    }


def prediction_time(schedule: str, stages: int) -> dict[str, Any]:
    """Wall seconds of one prediction, 8 cores a host, 1 ms between workers."""
    made = design(schedule, stages, batches=400, latency="1ms")
    names = [node.name for node in made.network.nodes]
    seconds = {name: dict(SECONDS) for name in names}
    hop = Hop(1e-5, 2e-5, 1e-5, 1e-4)
    prices = Prices(
        warm=seconds,
        cold=seconds,
        event_s=(1e-5, 3e-5),
        wire=Wire((0, TENSOR_BYTES), (hop, hop), (hop, hop), (2e-6, 2e-5)),
        activation_bytes=dict.fromkeys(names, TENSOR_BYTES),
        gradient_bytes=dict.fromkeys(names, TENSOR_BYTES),
    )
    began = time.perf_counter()
    found = predict(made, prices, cores=8, hosts=max(1, stages // 8))
    took_s = time.perf_counter() - began
    return {
        "schedule": schedule,
        "stages": stages,
        "seconds": round(took_s, 2),
        "batches_per_s": round(found.samples_per_s / 10),
        "limit": found.limit,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument("--stages", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--predicted-stages", type=int, nargs="+", default=[16, 128, 1024])
    parser.add_argument("--only", nargs="+", default=[*SCHEDULES], choices=[*SCHEDULES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-predictions", action="store_true")
    args = parser.parse_args(words)
    found: dict[str, Any] = {"machine": describe_machine(), "events": [], "predictions": []}
    for schedule in args.only:
        for stages in args.stages:
            found["events"].append(events_per_second(schedule, stages, args.rounds))
            print(json.dumps(found["events"][-1]), flush=True)
    for schedule in [] if args.no_predictions else args.only:
        for stages in args.predicted_stages:
            found["predictions"].append(prediction_time(schedule, stages))
            print(json.dumps(found["predictions"][-1]), flush=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
