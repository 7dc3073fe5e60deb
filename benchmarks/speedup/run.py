"""Speed and time to accuracy on MNIST: asyncdni's schedules, one process, and PyTorch, interleaved.

    ASYNCDNI_DATA=… python benchmarks/speedup/run.py --width 256 --out runs/speedup-256
    python benchmarks/speedup/run.py --readme

Rows: every schedule over a worker a stage, all stages in one process with as many BLAS threads as
there are cores (single) and with one (single-1), and PyTorch in one process with each of
--torch-threads. Every seed runs all rows, in an order that rotates from seed to seed. An
interrupted command goes on when it is given again. Writes DIR/results.json (every run's summary
and all estimates) and prints tables in Markdown. The second command fills in the tables of
README.md from the results that are kept here, results/NAME.json between the marks of that name.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in, table

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import Entry, document, order, plan_runs, run_entry
from asyncdni.report.columns import as_estimate, fixed, interval
from asyncdni.report.machine import cores
from asyncdni.report.statistics import Comparison, Estimate, Measure, Result, time_to
from asyncdni.store.tensors import write_atomically

ROOT = Path(__file__).parents[2]
TORCH = ROOT / "benchmarks" / "peers" / "torch_mlp.py"
RESULTS, README = Path(__file__).parent / "results", Path(__file__).parent / "README.md"
FILES = {256: ROOT / "launch" / "mnist.toml", 1024: ROOT / "launch" / "mnist-wide.toml"}
DECOUPLED = ("delayed", "local_loss", "synthetic")
SCHEDULES = ("locked", "gpipe", "1f1b", *DECOUPLED)
#: In the order of the tables; PyTorch's come after them.
ROWS = (*SCHEDULES, "synthetic-zero", "single", "single-1")
#: Of samples/s over locked, by row; and of the time to the target, of the best of DECOUPLED.
SPEED_CLAIM = {"delayed": 1.85, "local_loss": 1.85}
TIME_CLAIM = {"locked": 1.7, "single": 1.0}


def main() -> None:
    args = parsed()
    try:
        if args.readme:
            kept = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
            fill_in(README, {name: tables(found) for name, found in sorted(kept.items())})
            return
        runs = plan(args)
        remember(args)
        found_now = [result_of(run, args) for run in runs]
        results = [one for one in found_now if one is not None]
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    found = collected(runs, results, args.target_accuracy)
    write_atomically(args.out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    print(tables(found), found["verdict"], sep="\n\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, choices=FILES, default=256)
    parser.add_argument("--file", type=Path, metavar="FILE.toml", help="in place of --width")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of all runs and results.json")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="run no others now, * allowed; show all there are"
    )
    parser.add_argument("--epochs", type=int, help="in place of the file's")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, 2, …")
    parser.add_argument("--target-accuracy", type=float, nargs="*", default=[0.975])
    parser.add_argument("--evaluate-every", type=int, default=6000, metavar="SAMPLES")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--options",
        type=Path,
        metavar="FILE.json",
        help="what accuracy/run.py chose: changes for each schedule; those of locked are also "
        "single's, PyTorch's, and those of schedules that it does not name",
    )
    parser.add_argument("--zero-control", action="store_true", help="a row without a generator")
    parser.add_argument("--torch-threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument(
        "--torch-modes", nargs="+", choices=("eager", "compiled", "onednn"), default=["eager"]
    )
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    args = parser.parse_args()
    if not (args.out or args.readme):
        parser.error("expected --out DIR, or --readme")
    args.file = args.file or FILES[args.width]
    if args.torch_threads and importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: its rows are left out", file=sys.stderr)
        args.torch_threads = []
    return args


# --- runs ----------------------------------------------------------------------------------------

#: A run of ours, or (name, seed, command) of another program, to which --out is added.
Run = Entry | tuple[str, int, list[str]]


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs in their order. Raises `ConfigError` and `DataError` before anything runs."""
    entries = [entry for name in ("locked", *args.schedules) for entry in entries_of(args, name)]
    # Every plan has a single of its own, by the options of its schedule: that of locked counts.
    ours = {(one.name, one.seed): one for one in reversed(entries)}
    known = {name for name, _ in ours} - ({"locked"} - set(args.schedules))
    names = [name for name in ROWS if name in known]
    peers = torch_commands(args, changes(args, "locked"))
    runs: list[Run] = []
    for name, seed in order([*names, *peers], sorted({entry.seed for entry in entries})):
        if name in peers:
            runs.append((name, seed, [*peers[name], "--seed", str(seed)]))
        else:
            runs.append(ours[name, seed])
    return runs


def entries_of(args: argparse.Namespace, schedule: str) -> list[Entry]:
    """The schedule, its control, and all stages in one process by its options."""
    return plan_runs(
        args.file,
        changes(args, schedule),
        [schedule],
        args.seeds,
        cores=cores(),
        single_threads=[1],
        zero_control=args.zero_control and schedule == "synthetic",
        evaluate_every=args.evaluate_every,
    )


def changes(args: argparse.Namespace, schedule: str) -> list[str]:
    """What differs from the file, in the order in which it is applied."""
    known = json.loads(args.options.read_text()) if args.options else {"locked": []}
    chosen = known.get(schedule, fitting(known["locked"]))
    epochs = [f"run.epochs={args.epochs}"] if args.epochs is not None else []
    return [*chosen, *args.set, *epochs]


def torch_commands(args: argparse.Namespace, locked: Sequence[str]) -> dict[str, list[str]]:
    """By row, without seed and folder: `torch-2` is eager, others say how they run."""
    chosen = experiment.load(args.file, fitting(locked), schedule="locked")
    every = args.evaluate_every / describe(chosen.data).train_samples
    settings = [*fitting(locked), f"run.evaluate_every={every!r}"]
    found = {}
    for mode in args.torch_modes:
        for threads in args.torch_threads:
            name = f"torch-{threads}" if mode == "eager" else f"torch-{threads}-{mode}"
            command = [sys.executable, str(TORCH), str(args.file), "--mode", mode]
            command += ["--threads", str(threads)]
            found[name] = command + [word for text in settings for word in ("--set", text)]
    return found


def fitting(settings: Sequence[str]) -> list[str]:
    """Without options of schedules: PyTorch has none."""
    return [text for text in settings if not text.startswith("schedule.")]


def remember(args: argparse.Namespace) -> None:
    """Refuse to go on in a folder that holds runs of another command."""
    told = {key: value for key, value in vars(args).items() if key not in ("out", "only")}
    if args.options:
        told["options"] = json.loads(args.options.read_text())
    text = json.dumps(told, indent=1, default=str) + "\n"
    path = args.out / "command.json"
    if path.exists() and path.read_text() != text:
        sys.exit(f"error: {args.out} holds runs of another command, see {path}; use another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def result_of(run: Run, args: argparse.Namespace) -> Result | None:
    """Of an earlier command, or trained now; None: not to be trained now.

    Raises what training raises."""
    name, seed = (run.name, run.seed) if isinstance(run, Entry) else run[:2]
    folder = args.out / f"{name}-seed{seed}"
    summary = folder / "summary.json"  # written last
    if not summary.is_file():
        if args.only and not any(fnmatch.fnmatch(name, part) for part in args.only):
            return None
        print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        if isinstance(run, Entry):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
            run_entry(run, args.out)
        elif subprocess.run([*run[2], "--out", str(folder)], stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"error: {name}, seed {seed} failed")
    return Result(name, seed, json.loads(summary.read_text()))


def collected(
    runs: Sequence[Run], results: Sequence[Result], targets: Sequence[float]
) -> dict[str, Any]:
    """`launch.compare` of all runs with the ratios of the claim, fit for JSON."""
    found = document([run for run in runs if isinstance(run, Entry)], results, targets)
    names = [row["name"] for row in found["rows"] if not row["control"]]
    comparison = Comparison(tuple(names), tuple(results))
    # The baseline is held against one process, so that it is no straw man.
    others = [name for name in names if name not in DECOUPLED]
    pairs = [*((a, b) for a in DECOUPLED if a in names for b in others), ("locked", "single-1")]
    speed = [ratio_of(comparison, *pair, "samples_per_s") for pair in pairs]
    times = {
        f"time to {100 * target:g} %": [
            ratio_of(comparison, other, name, time_to(target)) for name, other in pairs[:-1]
        ]
        for target in targets
    }
    return {**found, "ratios": {"samples/s": speed, **times}}


def ratio_of(
    comparison: Comparison, above: str, below: str, measure: str | Measure
) -> dict[str, Any]:
    one = comparison.ratio(above, below, measure)
    known = None if one is None else vars(one)
    return {"above": above, "below": below, "ratio": known}


# --- tables --------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> str:
    """Of `collected`, in Markdown."""
    machine = found["machine"]
    blas = ", ".join(
        f"{b['internal_api']} {b['version']} {b['architecture']}" for b in machine["blas"]
    )
    peers = {run["summary"]["version"] for run in found["runs"] if run["name"].startswith("torch")}
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}; NumPy {machine['numpy']} with {blas}; "
        f"{''.join(f'{peer}; ' for peer in sorted(peers))}"
        f"seeds {', '.join(map(str, found['seeds']))}; 95 % intervals in brackets\n",
        *speeds(found["rows"]),
        *ratios(found["ratios"]["samples/s"], "samples/s, times those of", "above", "below"),
    ]
    for index, target in enumerate(found["targets"]):
        if any(row["targets"][index]["reached"] for row in found["rows"]):
            goal = f"{100 * target:g} %"
            lines += reached(found["rows"], index, f"time to {goal}")
            sooner = found["ratios"][f"time to {goal}"]
            lines += ratios(sooner, f"to {goal}, times sooner than", "below", "above")
    return "\n".join([*lines, *claims(found)])


def speeds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| row | workers | threads | samples/s | of its ceiling % | CPU outside ops % "
        "| CPU s | test error % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        accuracy = as_estimate(row["test_accuracy"])
        cells = (
            f"{row['name']} (control)" if row["control"] else row["name"],
            row["workers"],
            row["threads"],
            shown(as_estimate(row["samples_per_s"])),
            shown(as_estimate(row["efficiency"]), 1, 100),
            shown(as_estimate(row["overhead_cpu"]), 1, 100),
            shown(as_estimate(row["cpu_s"]), 1),
            shown(error_of(accuracy), 2, 100),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def error_of(accuracy: Estimate | None) -> Estimate | None:
    if accuracy is None:
        return None
    low, high = accuracy.low, accuracy.high
    known = low is not None and high is not None
    bounds = (1 - high, 1 - low) if known else (None, None)
    return Estimate(1 - accuracy.mean, *bounds, accuracy.n)


def reached(rows: Sequence[Mapping[str, Any]], index: int, label: str) -> list[str]:
    lines = [f"| row | {label}, s | samples | runs that reached it |", "|---|--:|--:|--:|"]
    for row in rows:
        target = row["targets"][index]
        time, samples = as_estimate(target["time_s"]), as_estimate(target["samples"])
        runs = f"{target['reached']} of {row['runs']}"
        lines.append(f"| {row['name']} | {shown(time, 2)} | {shown(samples)} | {runs} |")
    return [*lines, ""]


def ratios(found: Sequence[Mapping[str, Any]], label: str, row: str, column: str) -> list[str]:
    """A row for each value of the key `row`, a column for each of the other."""
    cells = {(one[row], one[column]): shown(as_estimate(one["ratio"]), 2) for one in found}
    columns = list(dict.fromkeys(one[column] for one in found))
    if not columns:
        return []
    names = dict.fromkeys(one[row] for one in found)
    rows = [[name, *(cells.get((name, other), "-") for other in columns)] for name in names]
    return [table([label, *columns], rows), ""]


def claims(found: Mapping[str, Any]) -> list[str]:
    """The targets, and what came of them.

    Of the time: by the last accuracy that was asked for, and of the rule that is soonest of those
    whose every run reaches it."""
    speeds = {one["above"]: one for one in found["ratios"]["samples/s"] if one["below"] == "locked"}
    rows = [
        judged(f"samples/s, {name} / locked", speeds.get(name), least)
        for name, least in SPEED_CLAIM.items()
    ]
    there = {
        one["name"] for one in found["rows"] if one["targets"] and one["targets"][-1]["time_s"]
    }
    able = [name for name in DECOUPLED if name in there]
    if able:
        label = f"time to {100 * found['targets'][-1]:g} %"
        times = {(one["below"], one["above"]): one for one in found["ratios"][label]}
        best = max(able, key=lambda name: mean_of(times.get((name, "locked"))))
        for other, least in TIME_CLAIM.items():
            rows.append(judged(f"{label}, {other} / {best}", times.get((best, other)), least))
    return [table(["", "target, at least", "measured", ""], rows)]


def judged(name: str, found: Mapping[str, Any] | None, least: float) -> list[str]:
    one = as_estimate(found["ratio"]) if found else None
    met = "not measured" if one is None else "met" if one.mean >= least else "missed"
    return [name, f"{least:g}", shown(one, 2), met]


def mean_of(found: Mapping[str, Any] | None) -> float:
    one = as_estimate(found["ratio"]) if found else None
    return 0.0 if one is None else one.mean


def shown(one: Estimate | None, digits: int = 0, scale: float = 1.0) -> str:
    """`1.45 (1.38 to 1.52)`."""
    if one is None:
        return "-"
    span = interval(one, digits, scale)
    mean = fixed(one.mean, digits, scale=scale)
    return f"{mean} ({span})" if span else mean


if __name__ == "__main__":
    main()
