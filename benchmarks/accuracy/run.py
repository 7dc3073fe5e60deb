"""Chooses options for locked and synthetic on held-out samples, with as many tries for each.

    ASYNCDNI_DATA=… python benchmarks/accuracy/run.py --width 256 --out runs/accuracy-256
    ASYNCDNI_DATA=… python benchmarks/accuracy/run.py --width 256 --out runs/accuracy-256 --final

Without --final: trains every setting of both grids on 55,000 samples over several seeds, scores
them on the other 5,000, and writes DIR/tuning.json (every run) and DIR/chosen.json. The test set is
not looked at. With --final: `../speedup/run.py` on all 60,000 and the test set, with what was
chosen. An interrupted command goes on when it is given again. See README.md for the rule.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in

from asyncdni import experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import Entry, order, run_entry
from asyncdni.launch.train import design_of
from asyncdni.report.machine import describe_machine
from asyncdni.report.statistics import Estimate, estimate, samples_to
from asyncdni.store.tensors import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
SPEEDUP = ROOT / "benchmarks" / "speedup" / "run.py"
FILES = {256: ROOT / "launch" / "mnist.toml", 1024: ROOT / "launch" / "mnist-wide.toml"}
#: KEY=VALUE,VALUE of what is tried, every value of one key with every value of the others.
GRIDS = {
    "locked": [
        "optimizer.learning_rate=1e-3,2e-3,3e-3,5e-3,7e-3,1e-2",
        "optimizer.decay.warmup_epochs=0,0.5",
    ],
    "synthetic": [
        "optimizer.learning_rate=3e-3,5e-3,7e-3",
        "schedule.fit_every=8,16",
        "schedule.generator.rate=0.03,0.1",
    ],
}
#: Slower than the fastest by more than this is slower; less may be the machine's mood.
SLOWER = 0.05


def main() -> None:
    args = parsed()
    if args.readme:
        fill_in(HERE / "README.md", {f"tuning-{width}": kept_tables(width) for width in FILES})
        return
    if args.final:
        sys.exit(final(args))
    try:
        settings = {name: grid(getattr(args, name)) for name in GRIDS}
        check(settings)
        found = tune(args, settings)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    rule = choose if args.target_accuracy is None else soonest
    chosen = {name: rule(rows) for name, rows in found.items()}
    write(args.out / "tuning.json", {"machine": describe_machine(), "rows": records(found)})
    write(args.out / "chosen.json", {name: list(row.setting) for name, row in chosen.items()})
    for name, rows in found.items():
        print(table(name, rows, chosen[name]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, choices=FILES, default=256)
    parser.add_argument("--file", type=Path, metavar="FILE.toml", help="in place of --width")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, help="default: 3, with --final 5")
    parser.add_argument(
        "--first-seed", type=int, default=100, help="of tuning; the final runs begin with 0"
    )
    parser.add_argument("--validation", type=int, default=5000, metavar="SAMPLES")
    parser.add_argument(
        "--target-accuracy",
        type=float,
        metavar="A",
        help="choose by samples to it, from 0 to 1, scored every tenth of an epoch",
    )
    for name, axes in GRIDS.items():
        parser.add_argument(f"--{name}", nargs="+", default=axes, metavar="KEY=VALUE,VALUE")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    parser.add_argument("--final", action="store_true", help="measure what was chosen")
    args = parser.parse_args()
    if args.out is None and not args.readme:
        parser.error("--out DIR: where are runs to be kept?")
    args.file = args.file or FILES[args.width]
    args.seeds = args.seeds or (5 if args.final else 3)
    return args


# --- tuning --------------------------------------------------------------------------------------

Setting = tuple[str, ...]  # KEY=VALUE


@dataclass(frozen=True)
class Row:
    """One setting and its runs."""

    setting: Setting
    summaries: tuple[dict[str, Any], ...]
    target: float | None = None  # accuracy

    @property
    def samples(self) -> list[float | None]:
        """To the target, of each run; None where it was not reached."""
        if self.target is None:
            return []
        return [samples_to(self.target)(one) for one in self.summaries]

    @property
    def accuracies(self) -> list[float]:
        return [one["test_accuracy"] for one in self.summaries]

    @property
    def accuracy(self) -> Estimate:
        """On the held-out samples."""
        found = estimate(self.accuracies)
        assert found is not None
        return found

    @property
    def standard_error(self) -> float:
        """Of the mean accuracy; 0 where one seed can't say."""
        count = len(self.accuracies)
        return statistics.stdev(self.accuracies) / math.sqrt(count) if count > 1 else 0.0

    @property
    def samples_per_s(self) -> float:
        return statistics.fmean(one["samples_per_s"] for one in self.summaries)


def grid(axes: Sequence[str]) -> list[Setting]:
    """Every combination of the values of `KEY=VALUE,VALUE`, as KEY=VALUE."""
    parts = [axis.partition("=") for axis in axes]
    choices = [[f"{key}={value}" for value in values.split(",")] for key, _, values in parts]
    return list(itertools.product(*choices))


def check(settings: dict[str, list[Setting]]) -> None:
    """Equal tuning: as many settings for each."""
    counts = {name: len(found) for name, found in settings.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        sys.exit(f"error: {told}: give both grids as many settings")


def tune(args: argparse.Namespace, settings: dict[str, list[Setting]]) -> dict[str, list[Row]]:
    """Runs of both schedules take turns. Raises what training raises."""
    named = {
        f"{name}-{index}": (name, setting)
        for name, found in settings.items()
        for index, setting in enumerate(found)
    }
    common = [f"data.validation={args.validation}", f"run.epochs={args.epochs}"]
    if args.target_accuracy is not None:
        common.append("run.evaluate_every=0.1")
    entries = []
    for key, seed in order(list(named), range(args.first_seed, args.first_seed + args.seeds)):
        schedule, setting = named[key]
        changes = [*common, *setting]
        chosen = experiment.load(args.file, changes, schedule=schedule, seed=seed)
        design_of(chosen)  # whatever does not fit is said before anything runs
        entries.append(Entry(key, seed, chosen))
    summaries: dict[str, list[dict[str, Any]]] = {key: [] for key in named}
    for number, entry in enumerate(entries, 1):
        print(f"{number} of {len(entries)}: {entry.folder}", file=sys.stderr, flush=True)
        summaries[entry.name].append(summary_of(entry, args.out))
    return {
        name: [
            Row(setting, tuple(summaries[f"{name}-{index}"]), args.target_accuracy)
            for index, setting in enumerate(settings[name])
        ]
        for name in settings
    }


def summary_of(entry: Entry, out: Path) -> dict[str, Any]:
    """Of an earlier command with the same experiment, or trained now; weights are not kept."""
    path = out / "tuning" / f"{entry.folder}.json"
    tables = json.loads(json.dumps(experiment.tables(entry.experiment)))
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["experiment"] != tables:
            sys.exit(f"error: {path} is of another experiment; use another --out")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            summary = run_entry(entry, Path(scratch)).summary
        kept = {"experiment": tables, "summary": dict(summary)}
        write(path, kept)
    found: dict[str, Any] = kept["summary"]
    return found


# --- the choice ----------------------------------------------------------------------------------


def choose(rows: Sequence[Row]) -> Row:
    """The rule, fixed before any run: the highest mean accuracy on the held-out samples.

    Settings within one standard error of that one's mean are tied with it. Of those, the ones that
    are slower than the fastest by more than SLOWER drop out; the most accurate of the rest it is.
    """
    best = max(rows, key=lambda row: row.accuracy.mean)
    tied = [row for row in rows if row.accuracy.mean >= best.accuracy.mean - best.standard_error]
    fastest = max(row.samples_per_s for row in tied)
    fast = [row for row in tied if row.samples_per_s >= (1 - SLOWER) * fastest]
    return max(fast, key=lambda row: row.accuracy.mean)


def soonest(rows: Sequence[Row]) -> Row:
    """The other rule: the fewest samples to the target, on average; a run without it loses."""
    return min(rows, key=lambda row: statistics.fmean(one or math.inf for one in row.samples))


def table(name: str, rows: Sequence[Row], chosen: Row) -> str:
    """Most accurate first."""
    seeds = len(rows[0].summaries)
    lines = [
        f"### {name}: {len(rows)} settings, {seeds} seeds\n",
        "| setting | validation accuracy % | 95 % interval | samples/s | samples to target | |",
        "|---|--:|--:|--:|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row.accuracy.mean):
        one, mark = row.accuracy, "chosen" if row is chosen else ""
        half = "-" if one.high is None else f"± {100 * (one.high - one.mean):.2f}"
        lines.append(
            f"| {', '.join(row.setting)} | {100 * one.mean:.2f} | {half} "
            f"| {row.samples_per_s:,.0f} | {in_words(row)} | {mark} |"
        )
    return "\n".join([*lines, ""])


def kept_tables(width: int) -> str:
    """Those of the results in this folder."""
    found = json.loads((RESULTS / f"tuning-{width}.json").read_text())["rows"]
    chosen = json.loads((RESULTS / f"chosen-{width}.json").read_text())
    tables = []
    for name, kept in found.items():
        rows = [Row(tuple(one["setting"]), tuple(one["runs"])) for one in kept]
        best = next(row for row in rows if list(row.setting) == chosen[name])
        tables.append(table(name, rows, best))
    return "\n".join(tables)


def in_words(row: Row) -> str:
    """Samples to the target, run by run."""
    return ", ".join("-" if one is None else f"{one:,.0f}" for one in row.samples)


def records(found: dict[str, list[Row]]) -> dict[str, Any]:
    """Raw results, fit for JSON."""
    return {
        name: [{"setting": row.setting, "runs": row.summaries} for row in rows]
        for name, rows in found.items()
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


# --- the test set --------------------------------------------------------------------------------


def final(args: argparse.Namespace) -> int:
    """What was chosen, in every row of ../speedup; returns its exit code."""
    chosen = args.out / "chosen.json"
    if not chosen.is_file():
        sys.exit(f"error: there is no {chosen}: choose first, by the same command without --final")
    command = [sys.executable, SPEEDUP, "--file", args.file, "--options", chosen]
    command += ["--out", args.out / "final", "--epochs", args.epochs, "--seeds", args.seeds]
    return subprocess.run(list(map(str, command))).returncode


if __name__ == "__main__":
    main()
