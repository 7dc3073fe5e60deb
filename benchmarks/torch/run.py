"""PyTorch, its pipelining and asyncdni on the same models, interleaved seed by seed.

    ASYNCDNI_DATA=… python benchmarks/torch/run.py mlp --width 256 [--seeds 5] [--epochs 2]

Each run is one process of `one.py`. Prints a table in Markdown: samples/s, and ratios that are
paired by seed, with 95 % intervals. --out keeps every run in one JSON file. See README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
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
#: Which loop of PyTorch each way has to equal to the last bit.
EQUALS = {"alone": "plain-1", "locked": "plain-1", "gpipe": "accumulated", "1f1b": "accumulated"}
WAYS = {
    "plain-1": ("plain", 1),
    "plain-2": ("plain", 2),
    "accumulated": ("accumulated", 1),
    "alone": ("alone", 1),
    "locked": ("locked", 1),
    "gpipe": ("gpipe", 1),
    "1f1b": ("1f1b", 1),
    "synthetic": ("synthetic", 1),
    "recipe": ("recipe", 1),
    "pipelining": ("pipelining", 1),
}
DEFAULT = [name for name in WAYS if name not in ("accumulated", "gpipe")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("mlp", "resnet18", "gpt", "tied_gpt", "lstm"), nargs="?")
    parser.add_argument("--width", type=int, help="default: that of launch/torch/models.py")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="end each run after so many updates")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--text", help="what GPTs and LSTMs learn; default: tinyshakespeare")
    parser.add_argument("--latency", default="0ms", help="of all links, in asyncdni's ways")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    args = parser.parse_args()
    if args.readme:
        for path in (HERE / "results").glob("*.json"):
            kept = json.loads(path.read_text())
            options = argparse.Namespace(**{"steps": None, **kept["options"]})
            fill_in(HERE / "README.md", {path.stem: table(options, kept["runs"])})
        return
    if args.model is None:
        parser.error("expected a model: mlp, resnet18, gpt, tied_gpt or lstm")
    runs = [run(args, name, seed) for name, seed in order(args.ways, range(args.seeds))]
    if args.out:
        kept = {"machine": describe_machine(), "options": vars(args) | {"out": None}, "runs": runs}
        write_atomically(args.out, (json.dumps(kept, indent=1) + "\n").encode())
    print(table(args, runs))


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    way, threads = WAYS[name]
    command = [sys.executable, HERE / "one.py", way, args.model]
    command += ["--threads", threads, "--epochs", args.epochs, "--seed", seed]
    command += ["--data", args.data, "--latency", args.latency]
    for option in ("width", "steps", "text"):
        given = getattr(args, option)
        command += [] if given is None else [f"--{option}", given]
    print(f"{args.model}: {name}, seed {seed}", file=sys.stderr, flush=True)
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        words = " ".join(map(str, command))
        sys.exit(f"{name}, seed {seed} failed: run its command by itself: {words}")
    return {"name": name, "seed": seed, "summary": json.loads(done.stdout.splitlines()[-1])}


def table(args: argparse.Namespace, runs: list[dict[str, Any]]) -> str:
    results = tuple(Result(one["name"], one["seed"], one["summary"]) for one in runs)
    comparison = Comparison(tuple(args.ways), results)
    others = [name for name in ("plain-1", "plain-2", "pipelining", "1f1b") if name in args.ways]
    lines = [
        f"### {_title(args)}\n",
        "| way | samples/s | 95 % interval | accuracy % | first batch s | equals |"
        + "".join(f" times {name} |" for name in others),
        "|---|--:|---|--:|--:|---|" + "--:|" * len(others),
    ]
    for name in args.ways:
        speed = comparison.estimate(name, "samples_per_s")
        accuracy = comparison.estimate(name, "test_accuracy")
        assert speed is not None
        cells = [name, fixed(speed.mean), interval(speed) or "-"]
        cells.append(f"{100 * accuracy.mean:.2f}" if accuracy else "-")
        first = comparison.estimate(name, lambda summary: summary.get("first_batch_s"))
        cells += [f"{first.mean:.1f}" if first else "-", equality(name, results)]
        for other in others:
            found = comparison.ratio(name, other)
            cells.append(f"{found.mean:.2f} ({interval(found, 2) or '-'})" if found else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def equality(name: str, results: Sequence[Result]) -> str:
    """How many runs have the bits of the loop that the way has to equal, of the same seed."""
    other = EQUALS.get(name, "")
    digests = {(one.name, one.seed): one.summary.get("digest") for one in results}
    seeds = [seed for way, seed in digests if way == name and (other, seed) in digests]
    equal = sum(digests[name, seed] == digests[other, seed] for seed in seeds)
    return f"{other} in {equal} of {len(seeds)}" if seeds else "-"


def _title(args: argparse.Namespace) -> str:
    width = f", width {args.width}" if args.width else ""
    links = f", links of {args.latency}" if args.latency != "0ms" else ""
    long = f"{args.steps} updates" if args.steps else f"{args.epochs} epochs"
    return f"{args.model}{width}{links}: {long}, {args.seeds} seeds"


if __name__ == "__main__":
    main()
