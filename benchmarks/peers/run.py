"""PyTorch in one process on the network of `launch/mnist*.toml`: threads and modes compared.

    ASYNCDNI_DATA=… python benchmarks/peers/run.py [--widths 256 1024] [--threads 1 2] [--seeds 5]

Each run is one process of `torch_mlp.py`. Runs are interleaved seed by seed and rotated. Prints
tables in Markdown; --out keeps every run's summary, goes on where an interrupted one stopped, and
holds all of them in peers.json. See README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in

from asyncdni.launch.compare import order
from asyncdni.report.columns import fixed, interval
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import Comparison, Result
from asyncdni.store.tensors import write_atomically

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"
FILES = {256: LAUNCH / "mnist.toml", 1024: LAUNCH / "mnist-wide.toml"}
MODES = ("eager", "compiled", "onednn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--file", type=Path, help="an experiment file, in place of --widths")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), metavar="DIR")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    args = parser.parse_args()
    if args.readme:
        for path in (HERE / "results").glob("*.json"):
            kept = json.loads(path.read_text())["runs"]
            tables = "\n".join(table(title, runs) for title, runs in kept.items())
            fill_in(HERE / "README.md", {path.stem: tables})
        return
    if importlib.util.find_spec("torch") is None:
        sys.exit("skipped: PyTorch is not installed; pip install 'asyncdni[torch]'")
    files = [args.file] if args.file else [FILES[width] for width in args.widths]
    found = {file.stem: compare(file, args) for file in files}
    kept = {"machine": describe_machine(), "epochs": args.epochs, "runs": found}
    write_atomically(args.out / "peers.json", (json.dumps(kept, indent=1) + "\n").encode())
    for title, runs in found.items():
        print(table(title, runs))


def compare(file: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every run, in the order in which they were made."""
    rows = {f"{mode}-{threads}": (mode, threads) for mode in args.modes for threads in args.threads}
    runs = []
    for name, seed in order(list(rows), range(args.seeds)):
        mode, threads = rows[name]
        command = [sys.executable, HERE / "torch_mlp.py", file, "--seed", seed, "--mode", mode]
        command += ["--threads", threads, "--set", f"run.epochs={args.epochs}"]
        command += ["--out", args.out / f"{file.stem}-{args.epochs}" / f"{name}-seed{seed}"]
        print(f"{file.stem}: {name}, seed {seed}", file=sys.stderr, flush=True)
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        runs.append({"name": name, "seed": seed, "summary": json.loads(done.stdout)})
    return runs


def table(title: str, runs: list[dict[str, Any]]) -> str:
    """Means with 95 % intervals; ratios are paired by seed; cores: CPU time over wall time."""
    results = tuple(Result(one["name"], one["seed"], one["summary"]) for one in runs)
    names = tuple(dict.fromkeys(one.name for one in results))
    comparison = Comparison(names, results)
    first = results[0].summary
    lines = [
        f"### {title}: {first['epochs']} epochs of {first['data']['train_samples']:,} samples\n",
        f"| mode | threads | samples/s | 95 % interval | times {names[0]} | cores | accuracy % |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for name in names:
        speed = comparison.estimate(name, "samples_per_s")
        ratio = comparison.ratio(name, names[0])
        busy = comparison.estimate(name, lambda one: one["cpu_s"] / one["train_s"])
        accuracy = comparison.estimate(name, "test_accuracy")
        mode, threads = name.split("-")
        assert speed and ratio and busy and accuracy
        lines.append(
            f"| {mode} | {threads} | {fixed(speed.mean)} | {interval(speed) or '-'} "
            f"| {ratio.mean:.2f} | {busy.mean:.2f} | {100 * accuracy.mean:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
