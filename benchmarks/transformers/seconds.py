"""Seconds until a small GPT, four stages in four processes, has come to one loss: `readout` beside
`1f1b`, which computes the same gradients as backpropagation in one process.

    ASYNCDNI_DATA=… python benchmarks/transformers/seconds.py --rates
    ASYNCDNI_DATA=… python benchmarks/transformers/seconds.py --results runs/seconds.json
    python benchmarks/transformers/seconds.py --readme

The first command chooses learning rates, in virtual time; they are kept. The second trains both in
turn over real sockets whose messages are held for a latency, and with --resume leaves out what the
file has: run nothing beside it. The third fills in README.md from the results that are kept here.
Needs PyTorch. See README.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path.insert(0, str(HERE))

import run  # noqa: E402
from sweep import Job, Runs, fill_in, run_all, table  # noqa: E402
from timed import plus_minus, with_interval  # noqa: E402
from tuning import at_rates, best, try_rates  # noqa: E402

from asyncdni import Training, experiment  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.launch.train import train  # noqa: E402
from asyncdni.report.load import Load, watched  # noqa: E402
from asyncdni.report.machine import cores, describe_machine  # noqa: E402
from asyncdni.report.statistics import estimate, ratio  # noqa: E402

RATES, RESULTS = HERE / "results" / "seconds-rates.json", HERE / "results" / "seconds.json"
STAGES, WIDTH, STEPS = 4, 64, 1000
EVERY = 100  # steps between two evaluations, which take no training time
TEST_PART = 0.01  # of the text: an evaluation takes a second
LOSS = 2.52  # nats a character, at which a run ends
SEEDS = 11, 12, 13  # LOSS was chosen after runs of seed 0
LATENCIES = "10ms", "0ms"
TRIED = 1, 2, 4  # microbatches
TRIAL_STEPS = 40
#: By name: the rule of run.py whose rate it has; they have the same gradients.
PIPELINE, READOUT = "1f1b", "readout"
TUNED_AS = {PIPELINE: run.BACKPROP, READOUT: run.BARE}

Table = dict[str, Any]


def job(name: str, latency: str, microbatches: int, steps: int, seed: int, rate: float) -> Job:
    """The experiment of a run of so many steps. A trial, which is shorter than STEPS, is evaluated
    once."""
    tables = dict(run.job(TUNED_AS[name], STAGES, steps, rate, seed, width=WIDTH).tables)
    del tables["limits"], tables["staleness"]  # arranged for virtual time
    an_epoch = int(run.CHARACTERS * (1 - TEST_PART)) // (run.BATCH * run.WINDOW)
    tables["data"] = {**tables["data"], "test_part": TEST_PART}
    tables["run"] = {
        "epochs": 1,
        "max_steps": steps,
        "evaluate_every": min(EVERY, steps) / an_epoch,
    }
    if name == PIPELINE:
        tables["schedule"] = {"name": PIPELINE, "microbatches": microbatches}
    if latency != "0ms":
        tables["links"] = {"latency": latency}
    told = f", {microbatches} microbatches" if name == PIPELINE else ""
    return Job(f"{name}{told}, {latency}, {steps} steps", seed, tables)


class UntilLoss:
    """Ends a run at the first evaluation at LOSS or below: what comes later does not count."""

    def on_evaluation(self, run: Training) -> None:
        if run.history[-1]["loss"] <= LOSS:
            run.stop(f"{LOSS} nats are reached")


def measure(job: Job) -> Table:
    """Train once, over real processes, until LOSS is reached."""
    tables = json.loads(json.dumps(dict(job.tables)))
    tables["run"]["seed"] = job.seed
    loads: list[Load] = []
    with watched(loads):
        result = train(
            experiment.parse(tables),
            callbacks=[UntilLoss()],
            progress=False,
            allow_import=["models"],
        )
    summary = result.summary
    return {
        "key": job.key,
        "digest": job.digest,
        # Batches of a pipeline would be microbatches.
        "curve": [
            [one["samples"] // run.BATCH, one["train_s"], one["loss"]] for one in summary["history"]
        ],
        "train_s": summary["train_s"],
        "startup_s": summary["startup_s"],
        "op_cpu_s": sum(stage["op_cpu_s"] for stage in summary["stages"]),
        "load": dataclasses.asdict(loads[0]),
    }


# --- what is run ---------------------------------------------------------------------------------


def tuning(name: str) -> dict[float, Job]:
    """The runs that may choose a rate, in virtual time and on held-out characters."""
    return run.tuning(TUNED_AS[name], STEPS, WIDTH)


def rates() -> dict[str, float]:
    """By name: the best rate. Raises `AsyncDNIError` before it is known."""
    kept = Runs(RATES)
    found = {name: best(tuning(name), kept) for name in TUNED_AS}
    if None in found.values():
        raise AsyncDNIError(f"{RATES} does not tell the best rates yet: run with --rates first")
    return {name: rate for name, rate in found.items() if rate is not None}


def trials(latency: str, rate: float) -> list[Job]:
    """Short runs of the pipeline, one for each number of microbatches."""
    return [job(PIPELINE, latency, one, TRIAL_STEPS, run.TUNED_ON, rate) for one in TRIED]


def best_microbatches(latency: str, rate: float, runs: Runs) -> int | None:
    """The number with which the trial took the least time; None before all have been tried."""
    tried = {
        one: runs.found[trial.key]["train_s"]
        for one, trial in zip(TRIED, trials(latency, rate), strict=True)
        if trial.key in runs.found
    }
    return min(tried, key=tried.__getitem__) if len(tried) == len(TRIED) else None


def planned(name: str, latency: str, seed: int, chosen: Mapping[str, float], runs: Runs) -> Job:
    """A run to the end."""
    microbatches = best_microbatches(latency, chosen[PIPELINE], runs) or 1
    return job(name, latency, microbatches, STEPS, seed, chosen[name])


def run_in_turn(runs: Runs, seeds: Sequence[int]) -> None:
    """First the trials, then all names and latencies, seed by seed."""
    chosen = rates()

    def carry_out(one: Job) -> None:
        if runs.holds(one):
            return
        found = runs.found[one.key] = measure(one)
        runs.wall_s += found["train_s"] + found["startup_s"]
        runs.save([])
        told = f"loss {found['curve'][-1][2]:.4f} after {steps(found)} steps"
        print(f"{one.key}: {told} in {found['train_s']:.1f} s", file=sys.stderr)

    runs.machine = describe_machine()
    for latency in LATENCIES:
        for trial in trials(latency, chosen[PIPELINE]):
            carry_out(trial)
    for seed, latency, name in itertools.product(seeds, LATENCIES, TUNED_AS):
        carry_out(planned(name, latency, seed, chosen, runs))


# --- tables --------------------------------------------------------------------------------------


def reached(found: Table) -> tuple[float, float] | None:
    """Seconds and steps to LOSS, on the line between the evaluations before and after; None where
    the run has not come to it."""
    before = None
    for at, at_s, loss in found["curve"]:
        if loss <= LOSS:
            if before is None:
                return at_s, at
            share = (before[2] - LOSS) / (before[2] - loss)
            return before[1] + share * (at_s - before[1]), before[0] + share * (at - before[0])
        before = at, at_s, loss
    return None


def times(runs: Runs) -> str:
    """Of each latency and name: steps a second, seconds to LOSS, and how much sooner."""
    rows, chosen = [], rates()
    for latency in LATENCIES:
        seconds: dict[str, dict[int, float]] = {}
        for name in TUNED_AS:
            jobs = {seed: planned(name, latency, seed, chosen, runs) for seed in SEEDS}
            own = {seed: runs.found[one.key] for seed, one in jobs.items() if one.key in runs.found}
            if not own:
                continue
            points = {seed: point for seed, one in own.items() if (point := reached(one))}
            seconds[name] = {seed: point[0] for seed, point in points.items()}
            count = best_microbatches(latency, chosen[PIPELINE], runs)
            rows.append(
                [
                    f"{latency}, {name}" + (f", {count} microbatches" * (name == PIPELINE)),
                    f"{chosen[name]:g}",
                    f"{len(points)} of {len(own)}",
                    plus_minus(estimate([steps(one) / one["train_s"] for one in own.values()]), 1),
                    f"{fmean(point[1] for point in points.values()):.0f}" if points else "-",
                    plus_minus(estimate([*seconds[name].values()]), 1),
                    sooner(seconds) if name == READOUT else "-",
                    sooner({**seconds, READOUT: busy(own, points)}) if name == READOUT else "-",
                ]
            )
    head = ["links, schedule", "rate", f"came to {LOSS:.2f}", "steps/s", "steps to it"]
    return table([*head, "seconds to it", "times sooner", "ceiling"], rows)


def steps(found: Table) -> int:
    """Of the whole run."""
    return int(found["curve"][-1][0])


def sooner(seconds: Mapping[str, Mapping[int, float]]) -> str:
    """Seconds of the pipeline over those of `readout`, paired by seed."""
    pipeline, own = seconds.get(PIPELINE, {}), seconds[READOUT]
    return with_interval(ratio([(pipeline[s], own[s]) for s in own if s in pipeline]), 1)


def busy(own: Mapping[int, Table], points: Mapping[int, tuple[float, float]]) -> dict[int, float]:
    """By seed: seconds that the CPU time of the ops up to LOSS takes if no core ever waits."""
    return {
        seed: own[seed]["op_cpu_s"] / cores() * steps / STEPS for seed, (_, steps) in points.items()
    }


def tried(runs: Runs) -> str:
    """Seconds of the trials, by number of microbatches."""
    rate = rates()[PIPELINE]
    rows = [
        [latency, *(seconds_of(runs.found.get(one.key)) for one in trials(latency, rate))]
        for latency in LATENCIES
    ]
    return table(["links", *(f"{one} microbatches" for one in TRIED)], rows)


def seconds_of(found: Table | None) -> str:
    return f"{found['train_s']:.1f}" if found else "-"


def tuned() -> str:
    """Loss on held-out characters at each rate."""
    own = {name: [*tuning(name).values()] for name in TUNED_AS}
    return at_rates(run.RATES, own, Runs(RATES))


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = run.results_parser(__doc__, RESULTS)
    parser.add_argument("--rates", action="store_true", help="choose learning rates, train nothing")
    parser.add_argument("--jobs", type=int, default=2, help="of --rates: runs at a time")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    args = parser.parse_args()
    try:
        if args.rates:
            kept = Runs(RATES)
            carry_out = partial(
                run_all, runs=kept, workers=args.jobs, resume=True, measure=run.measure
            )
            try_rates([tuning(name) for name in TUNED_AS], carry_out, kept)
            return
        runs = Runs(args.results)
        if not args.readme:
            if runs.found and not args.resume:
                raise AsyncDNIError(f"{args.results} has runs: --resume goes on with it")
            run_in_turn(runs, SEEDS[: args.seeds])
        found = {"seconds": times(runs), "microbatches": tried(runs), "seconds, rates": tuned()}
        if args.readme:
            fill_in(run.README, found)
        else:
            print(*found.values(), sep="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
