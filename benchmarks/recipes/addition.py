"""Binary addition in three steps: backpropagation, generators without labels, and with them.

    python benchmarks/recipes/addition.py --results runs/addition.json
    python benchmarks/recipes/addition.py --readme

The first command trains all steps in two settings from several seeds and prints the error of a bit
after each so many epochs, side by side; with --resume it leaves out what the file has, with --plot
FILE.png it draws them. The second fills in the tables of README.md and draws results/addition.png
from the results that are kept here.

Source: A. Trask, "Deep Learning without Backpropagation", 2017.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

from bits import Point, train  # noqa: E402
from command import results_parser  # noqa: E402
from sweep import Runs, fill_in, table  # noqa: E402
from told import told  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.report.machine import describe_machine  # noqa: E402

RESULTS, README = HERE / "results" / "addition.json", HERE / "README.md"
PICTURE = HERE / "results" / "addition.png"
LAUNCH = HERE.parents[1] / "launch"

BACKPROP, OUTPUTS, LABELS = "backprop", "DNI, outputs", "DNI, outputs and labels"
#: Of each setting: the most that an error per bit may be at the end with backprop and with labels.
MOST = {"post": 0.26, "better": 0.02}
TITLES = {"post": "The post's setting", "better": "A better setting"}
#: Of each setting and step: the recipe, what else is set, and the schedule where it is another.
STEPS: dict[str, dict[str, tuple[str, list[str], str | None]]] = {
    "post": {
        BACKPROP: ("addition-post", [], "locked"),
        OUTPUTS: ("addition-post", ["schedule.generator.labels=false"], None),
        LABELS: ("addition-post", [], None),
    },
    "better": {
        BACKPROP: ("addition-backprop", [], None),
        OUTPUTS: ("addition-outputs", [], None),
        LABELS: ("addition", [], None),
        "DNI, `error`": ("addition", ["schedule.generator.kind=error"], None),
    },
}
#: Of lines and dots, by step.
STYLE = {BACKPROP: "#1f2329", OUTPUTS: "#d55e00", LABELS: "#1a80bb", "DNI, `error`": "#009e73"}


@dataclass(frozen=True)
class Job:
    """One run."""

    setting: str
    step: str
    seed: int
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.step}"

    @property
    def key(self) -> str:
        return f"{self.name}/{self.seed}"

    def experiment(self) -> Any:
        """Raises `ConfigError` for changes that do not fit."""
        recipe, own, schedule = STEPS[self.setting][self.step]
        changes = [*own, *self.changes]
        path = LAUNCH / f"{recipe}.toml"
        return experiment.load(path, changes, schedule=schedule, seed=self.seed)

    @property
    def digest(self) -> str:
        """Equal for the same run."""
        text = json.dumps(told(self.experiment()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(args: argparse.Namespace) -> Iterator[Job]:
    for setting in args.settings:
        for step in STEPS[setting]:
            for seed in range(args.seeds):
                yield Job(setting, step, seed, tuple(args.set))


def run_all(jobs: Sequence[Job], runs: Runs, *, resume: bool) -> None:
    """What the file does not have, one after another; it is written after every run."""
    missing = [job for job in jobs if not runs.holds(job)]  # type: ignore[arg-type]
    if not resume and len(missing) < len(jobs):
        raise AsyncDNIError(
            f"{runs.path} has {len(jobs) - len(missing)} of these runs: --resume goes on with it"
        )
    runs.machine = describe_machine()
    for job in missing:
        began = time.perf_counter()
        with threadpool_limits(1):
            points = train(job.experiment())
        seconds = time.perf_counter() - began
        rounded = [[round(value, 5) for value in astuple(point)] for point in points]
        runs.found[job.key] = {
            "key": job.key,
            "digest": job.digest,
            "points": rounded,  # in the order of `Point`
            "seconds": round(seconds, 1),
        }
        runs.wall_s += seconds
        runs.save([job.key for job in jobs])
        print(f"{job.key}: {points[-1].error:.3f}", file=sys.stderr, flush=True)


# --- tables --------------------------------------------------------------------------------------


def curves(runs: Runs, setting: str, step: str) -> list[list[Point]]:
    """Of every seed."""
    found = runs.of(f"{setting}/{step}").values()
    return [[Point(*values) for values in run["points"]] for run in found]


def errors(runs: Runs, setting: str) -> str:
    """Error per bit of the training examples by epoch: the mean over seeds, and at the end the
    largest and the share of wrong bits among those of the test."""
    by_step = {step: curves(runs, setting, step) for step in STEPS[setting]}
    by_step = {step: found for step, found in by_step.items() if found}
    if not by_step:
        return "Not measured yet."
    rows = []
    for points in zip(*(zip(*found, strict=True) for found in by_step.values()), strict=True):
        each = [statistics.fmean(one.error for one in seeds) for seeds in points]
        rows.append([f"{points[0][0].epoch:g}", *(f"{mean:.3f}" for mean in each)])
    ends = [[found[-1] for found in seeds] for seeds in by_step.values()]
    rows.append(["worst seed", *(f"{max(one.error for one in end):.3f}" for end in ends)])
    wrong = [statistics.fmean(one.test_wrong for one in end) for end in ends]
    rows.append(["wrong bits, test", *(f"{100 * share:.1f} %" for share in wrong)])
    return table(["epoch", *by_step], rows)


def claims(runs: Runs) -> str:
    """What is claimed, with the worst seed."""
    lines = [claim(runs, setting) for setting in STEPS]
    return "\n".join(line for line in lines if line) or "Not measured yet."


def claim(runs: Runs, setting: str) -> str:
    found = {step: curves(runs, setting, step) for step in (BACKPROP, OUTPUTS, LABELS)}
    if not all(found.values()):
        return ""
    worst = max(points[-1].error for step in (BACKPROP, LABELS) for points in found[step])
    falling = all(
        points[-1].error < points[len(points) // 2].error
        for step in (BACKPROP, LABELS)
        for points in found[step]
    )
    lag = min(points[-1].error for points in found[OUTPUTS]) - worst
    reached = worst <= MOST[setting] and falling and lag > 0
    return (
        f"* {TITLES[setting]}: at most {worst:.3f} with backprop and with labels "
        f"(≤ {MOST[setting]:g} and falling was to be reached); the best seed without labels is "
        f"{lag:.3f} behind that: {'reached' if reached else 'missed'}."
    )


def tables_of(runs: Runs) -> dict[str, str]:
    tables = {f"addition {setting}": errors(runs, setting) for setting in STEPS}
    return {"addition claim": claims(runs), **tables, "addition machine": machine(runs)}


def machine(runs: Runs) -> str:
    if not runs.found:
        return "Not measured yet."
    seconds = [run["seconds"] for run in runs.found.values()]
    return (
        f"{len(seconds)} runs of one thread on {runs.machine['cores']} cores "
        f"({runs.machine['cpu']}, NumPy {runs.machine['numpy']}), "
        f"{statistics.median(seconds):.0f} s a run in the middle, with other work beside them."
    )


def draw(runs: Runs, path: Path) -> None:
    """Error per bit over epochs, a line a seed. Raises `AsyncDNIError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AsyncDNIError(
            "the plot needs matplotlib: install it with pip install 'asyncdni[plot]'"
        ) from None
    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=150)
    for axes, setting in zip(figure.subplots(1, 2), STEPS, strict=True):
        for step in STEPS[setting]:
            for index, points in enumerate(curves(runs, setting, step)):
                axes.plot(
                    [point.epoch for point in points],
                    [point.error for point in points],
                    color=STYLE[step],
                    linewidth=1.2,
                    label=None if index else step.replace("`", ""),
                )
        axes.set_title(TITLES[setting], fontsize=10)
        axes.set_xlabel("epochs")
        axes.set_ylabel("error per bit, training examples")
        axes.set_ylim(0, 0.52)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--settings", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves too")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            draw(runs, PICTURE)
            return
        run_all(list(plan(args)), runs, resume=args.resume)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
        if args.plot:
            draw(runs, args.plot)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
