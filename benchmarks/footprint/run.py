"""What a run costs beside its arithmetic: time to the first batch, and memory over many batches.

    ASYNCDNI_DATA=… python benchmarks/footprint/run.py [--starts 5] [--batches 20000]

The first table: seconds from the start of the command to the end of the first training batch's
forward, from the trace of a real run. The second: resident memory of every worker while it trains,
as its reports give it. See README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from asyncdni.report.statistics import estimate
from asyncdni.report.traces import OP, read_trace

ROOT = Path(__file__).parents[2]
FILES = {256: ROOT / "launch" / "mnist.toml", 1024: ROOT / "launch" / "mnist-wide.toml"}
PER_EPOCH = 235  # batches of MNIST
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, choices=FILES, default=256)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_starts(args, Path(scratch))
        print_memory(args, Path(scratch))


def print_starts(args: argparse.Namespace, scratch: Path) -> None:
    print("| schedule | command to first batch, s | 95 % interval | runs |\n|---|--:|--:|--:|")
    for schedule in ("locked", "synthetic"):
        seconds = [
            seconds_to_first_batch(args.width, schedule, scratch / f"{schedule}-{number}")
            for number in range(args.starts)
        ]
        found = estimate(seconds)
        assert found is not None
        interval = "" if found.low is None else f"{found.low:.2f} to {found.high:.2f}"
        print(f"| {schedule} | {found.mean:.2f} | {interval} | {found.n} |")
    print()


def seconds_to_first_batch(width: int, schedule: str, out: Path) -> float:
    """From before the command's process exists to the end of the first forward in it."""
    began_s = time.perf_counter()  # one clock for all processes: see asyncdni.report.traces
    train(width, schedule, out, "--trace", "--set", "run.epochs=1")
    stages = json.loads((out / "summary.json").read_text())["stages"]
    trace = read_trace(out, stages[0]["name"])
    forward = next(op for op in trace.on(OP) if trace.names[op["name"]] == "F")
    return float(forward["end_s"]) - began_s


def print_memory(args: argparse.Namespace, scratch: Path) -> None:
    """Means over the tenths of a run, so that a leak shows as a rise."""
    out = scratch / "memory"
    epochs = math.ceil(args.batches / PER_EPOCH)
    train(args.width, "synthetic", out, "--set", f"run.epochs={epochs}")
    reports = defaultdict(list)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "report" and record["values"].get("memory_bytes"):
            reports[record["stage"]].append(record["values"]["memory_bytes"] / MIB)
    tenths = (0, 1, 3, 5, 7, 9)
    heads = " | ".join(f"{10 * (t + 1)} %" for t in tenths)
    print(f"MiB over {epochs * PER_EPOCH:,} batches, by how much of the run has passed:\n")
    print(f"| worker | {heads} |\n|---|{'--:|' * len(tenths)}")
    for stage, sizes in reports.items():
        print(f"| {stage} | " + " | ".join(f"{mean_of(sizes, t):.1f}" for t in tenths) + " |")


def mean_of(sizes: list[float], tenth: int) -> float:
    part = sizes[len(sizes) * tenth // 10 : len(sizes) * (tenth + 1) // 10] or sizes[-1:]
    return sum(part) / len(part)


def train(width: int, schedule: str, out: Path, *options: str) -> None:
    command = [sys.executable, "-P", "-m", "asyncdni", "train", str(FILES[width]), "--quiet"]
    subprocess.run([*command, "--schedule", schedule, "--out", str(out), *options], check=True)


if __name__ == "__main__":
    main()
