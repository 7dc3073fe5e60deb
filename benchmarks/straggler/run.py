"""Each stage's own updates a second while one of them is slow, by schedule.

    ASYNCDNI_DATA=… python benchmarks/straggler/run.py --results runs/straggler.json   # some 8 min
    python benchmarks/straggler/run.py --readme

The first command trains each row as it is, with one stage that stands still now and then, and with
one whose ops all take three times as long; with --resume it leaves out what the file has. The
second fills in the tables of README.md from the results that are kept here. See README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from command import results_parser
from timed import (
    Job,
    Runs,
    comparison,
    fill_in,
    machine_line,
    plus_minus,
    run_in_turn,
    shortened,
    table,
    verdict,
    wanted,
    with_interval,
)

from asyncdni import config, experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.compare import order
from asyncdni.report.statistics import Estimate, Measure

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "mnist.json", HERE / "README.md"
FILE = HERE.parents[1] / "launch" / "mnist.toml"
STAGE = "hidden2"
#: How many times as long as without it a batch takes the slow stage.
TIMES = 3
#: Of batches after which the stage stands still in the condition RANDOM.
CHANCE = 0.1
#: Narrow, so that a stage feels its consumer within a few batches, as it does in any long run.
WINDOW = 8

NORMAL, RANDOM, FACTOR = "normal", "random", "factor"
CONDITIONS = (NORMAL, RANDOM, FACTOR)
SKIP = "schedule.on_full=skip"
#: Row -> schedule and its options.
ROWS: dict[str, tuple[str, list[str]]] = {
    "locked": ("locked", []),
    "1f1b": ("1f1b", []),
    "delayed": ("delayed", []),
    "synthetic, wait": ("synthetic", []),
    "synthetic, skip": ("synthetic", [SKIP]),
    "synthetic, skip, inputs": ("synthetic", [SKIP, "schedule.synthetic_inputs=true"]),
    "local_loss, wait": ("local_loss", []),
    "local_loss, skip": ("local_loss", [SKIP]),
    "local_loss, skip, replay": ("local_loss", [SKIP, "schedule.replay=32"]),
}
#: (row, the row whose normal run its updates are held against), by what that is called.
KEPT = {row: (row, row) for row in ROWS if row != "local_loss, skip, replay"} | {
    # A stage that replays fills its idle time in normal runs, too. Without a straggler and without
    # a buffer it would do one update a batch: that is what replay is to keep up.
    "local_loss, skip, replay": ("local_loss, skip, replay", "local_loss, skip"),
    "local_loss, skip, replay, of its own": ("local_loss, skip, replay",) * 2,
}
#: (row, upstream or downstream of the straggler): these keep LEAST of their updates.
CLAIMED = (
    ("synthetic, skip", "upstream"),
    ("local_loss, skip", "upstream"),
    ("synthetic, skip, inputs", "downstream"),
    ("local_loss, skip, replay", "downstream"),
)
LEAST = 0.9

# --- the plan ------------------------------------------------------------------------------------


def key(row: str, condition: str) -> str:
    """Of results."""
    return f"{row}: {condition}"


def plan(args: argparse.Namespace) -> list[Job]:
    """Row by row, the normal run of a seed first: pauses are cut to its pace."""
    rows = [row for row in ROWS if wanted(row, args.only)]
    return [
        job(args, row, condition, seed)
        for row, seed in order(rows, range(args.seeds))
        for condition in CONDITIONS
    ]


def job(args: argparse.Namespace, row: str, condition: str, seed: int) -> Job:
    """Without the pauses of RANDOM, whose length `slowed` finds."""
    schedule, options = ROWS[row]
    changes = [f"limits.window={WINDOW}", *options, *args.set]
    changes += shortened(args.file, args.set, args.batches)
    if condition == FACTOR:
        changes.append(f"slow.{args.stage}.factor={TIMES}")
    chosen = experiment.load(args.file, changes, schedule=schedule, seed=seed)
    return Job(key(row, condition), seed, chosen)


def slowed(job: Job, runs: Runs, stage: str) -> config.Experiment:
    """The job's experiment, with pauses where it has any."""
    row, _, condition = job.name.rpartition(": ")
    if condition != RANDOM:
        return job.experiment
    normal = runs.of(key(row, NORMAL))[job.seed]
    pause_ms = 1000 * (TIMES - 1) * period(normal, stage) / CHANCE
    slow = f'{{pause="{pause_ms:.3f}ms", chance={CHANCE}}}'
    return experiment.change(experiment.tables(job.experiment), [f"slow.{stage}={slow}"])


def period(run: Mapping[str, Any], stage: str) -> float:
    """Seconds a forward at the stage's pace in that run, waiting included."""
    known = run["stages"][stage]
    forwards = known["batches"] + known["replays"]
    return float(known["wall_s"]) / forwards


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    args = parsed()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            return
        prepare = partial(slowed, runs=runs, stage=args.stage)
        run_in_turn(plan(args), runs, resume=args.resume, prepare=prepare)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--only", nargs="+", metavar="PART", help="of a row's name, * allowed")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, 2, …")
    parser.add_argument("--file", type=Path, default=FILE, metavar="FILE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--stage", default=STAGE, help="which is slow")
    parser.add_argument("--batches", type=int, default=702, help="of a run; none of them short")
    return parser.parse_args(words)


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {
        "claim": claim(runs),
        RANDOM: kept_table(runs, RANDOM),
        FACTOR: kept_table(runs, FACTOR),
        NORMAL: normal_table(runs),
        "straggler": straggler_table(runs),
        "machine": machine_line(runs),
    }


def stages_of(runs: Runs) -> list[str]:
    """In the order of the chain."""
    return next((list(run["stages"]) for run in runs.found.values() if "stages" in run), [])


def own_rate(stage: str) -> Measure:
    """The stage's own updates a second of its training time."""

    def measure(summary: Mapping[str, Any]) -> float | None:
        known = summary.get("stages", {}).get(stage)
        return known["updates"] / known["wall_s"] if known and known["updates"] else None

    return measure


def kept(runs: Runs, row: str, base: str, condition: str, stage: str) -> Estimate | None:
    """Updates a second of those in the normal run of `base`, paired by seed."""
    held = comparison(runs, {"slow": key(row, condition), "base": key(base, NORMAL)})
    return held.ratio("slow", "base", own_rate(stage))


def kept_table(runs: Runs, condition: str) -> str:
    """In percent, a column a stage."""
    stages = stages_of(runs)
    rows = [
        [name, *(with_interval(kept(runs, *pair, condition, stage), 0, 100) for stage in stages)]
        for name, pair in KEPT.items()
    ]
    return table(["own updates a second kept, %", *stages], rows)


def normal_table(runs: Runs) -> str:
    """What those percentages are of."""
    stages = stages_of(runs)
    rows = []
    for row in ROWS:
        held = comparison(runs, {row: key(row, NORMAL)})
        rows.append([row, *(plus_minus(held.estimate(row, own_rate(one))) for one in stages)])
    return table(["updates a second without a straggler", *stages], rows)


def straggler_table(runs: Runs) -> str:
    """How much of its time each slow stage stood still, and which batches went past it."""
    rows = []
    for row in ROWS:
        cells = [row]
        for condition in CONDITIONS[1:]:
            held = comparison(runs, {row: key(row, condition)})
            cells.append(plus_minus(held.estimate(row, stood_still), 0, 100))
            cells.append(plus_minus(held.estimate(row, went_past), 0, 100))
        rows.append(cells)
    heads = [f"{one}: {what}" for one in CONDITIONS[1:] for what in ("slept, %", "missed, %")]
    return table(["the slow stage", *heads], rows)


def straggler(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The only stage that has slept."""
    stages = run.get("stages", {}).values()
    return next((one for one in stages if one["slowed_s"]), None)


def stood_still(run: Mapping[str, Any]) -> float | None:
    slow = straggler(run)
    return slow["slowed_s"] / slow["wall_s"] if slow else None


def went_past(run: Mapping[str, Any]) -> float | None:
    """Of all batches, those that were not sent to it."""
    slow = straggler(run)
    return slow["missed"] / (slow["batches"] + slow["missed"]) if slow else None


def claim(runs: Runs) -> str:
    """The least that any stage on that side keeps, in the condition RANDOM."""
    rows = []
    for name, side in CLAIMED:
        found = [kept(runs, *KEPT[name], RANDOM, stage) for stage in beside(stages_of(runs), side)]
        known = [one for one in found if one is not None]
        least = min(known, key=lambda one: one.mean) if len(known) == len(found) > 0 else None
        measured = with_interval(least, 0, 100)
        rows.append([name, side, f"{100 * LEAST:g}", measured, verdict(least, LEAST)])
    return table(["", "stages", "target, at least %", "the least kept, %", ""], rows)


def beside(stages: Sequence[str], side: str) -> list[str]:
    """Those before STAGE, or behind it."""
    if STAGE not in stages:
        return []
    place = stages.index(STAGE)
    return list(stages[:place] if side == "upstream" else stages[place + 1 :])


if __name__ == "__main__":
    main()
