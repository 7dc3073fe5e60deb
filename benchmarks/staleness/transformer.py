"""Validation loss of a small GPT under late gradients, for each way to treat them.

    ASYNCDNI_DATA=… python benchmarks/staleness/transformer.py --results runs/transformer.json
    python benchmarks/staleness/transformer.py --readme

The first command trains every rule at every rate from one seed, and then from the others at the
rate that was best; with --resume it leaves out what the file has. The second fills in the table of
README.md from the results that are kept here. Needs PyTorch. Everything is simulated in virtual
time with real maths (see ../shared/sweep.py), so a seed gives one result. See README.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path.insert(0, str(HERE.parents[1] / "launch" / "torch"))

from command import results_parser  # noqa: E402
from sweep import Job, Runs, conditions, fill_in, run_all, table  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.core.events import Finish  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.virtual.simulation import simulate  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.plan.build import Design, make_design  # noqa: E402
from asyncdni.report.statistics import Estimate, difference, estimate  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

RESULTS, README = HERE / "results" / "transformer.json", HERE / "README.md"
LAG = 7  # of all stages, in batches: that of the first of eight stages
RATES = 1e-3, 3e-3, 1e-2, 3e-2
TUNED_ON = 100  # the seed on which rates are chosen
SEEDS = 0, 1, 2
BACKPROP = "backprop"

Table = dict[str, Any]
ADAM: Table = {"name": "adam"}
NADAM: Table = {"name": "torch", "kind": "NAdam", "options": {"betas": [0.99, 0.999]}}
STASH: Table = {"name": "delayed"}
#: By name: [schedule], [optimizer], and the lag in batches.
RULES: dict[str, tuple[Table, Table, int]] = {
    BACKPROP: ({"name": "locked"}, ADAM, 0),
    "backprop, NAdam 0.99": ({"name": "locked"}, NADAM, 0),
    "4 batches an update, no lag": (STASH | {"accumulate": 4}, ADAM, 0),
    "delayed, current": (STASH | {"weights": "current"}, ADAM, LAG),
    "delayed, stash": (STASH, ADAM, LAG),
    "delayed, NAdam 0.99": (STASH, NADAM, LAG),
    "delayed, 2 batches an update": (STASH | {"accumulate": 2}, ADAM, LAG),
    "delayed, 4 batches an update": (STASH | {"accumulate": 4}, ADAM, LAG),
    "delayed, double, 4 batches": (STASH | {"weights": "double", "accumulate": 4}, ADAM, LAG),
}


def job(rule: str, rate: float, seed: int) -> Job:
    """A GPT of four narrow blocks in four stages; a part of Shakespeare's plays, once."""
    schedule, optimizer, lag = RULES[rule]
    room = 2 * (lag + 1) + 8
    tables = {
        "data": {
            "name": "text",
            "encoding": "ids",
            "window": 32,
            "batch_size": 16,
            "test_part": 0.85,
            "validation": 8192,
        },
        "model": {
            "build": "models:gpt",
            "arguments": {"vocabulary": 65, "width": 32, "layers": 4, "heads": 4, "steps": 32},
            "stages": ["h.1", "h.2", "h.3"],
            "loss": "cross_entropy",
        },
        "schedule": schedule,
        "optimizer": {
            **optimizer,
            "learning_rate": rate,
            "clip_norm": 1.0,
            "decay": {"name": "cosine", "warmup_epochs": 0.05},
        },
        "run": {"epochs": 1},
        "limits": {"window": room},
        # A lag of 0 is a bound; any other one comes from latency alone.
        "staleness": {} if schedule["name"] == "locked" else {"lag": room if lag else 0},
    }
    return Job(f"{rule}, rate {rate:g}", seed, tables, lag)


def measure(job: Job) -> dict[str, Any]:
    """Train and score once, on one thread."""
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    tables = json.loads(json.dumps(dict(job.tables)))
    tables["run"]["seed"] = job.seed
    design = design_of(tables)
    costs, links = conditions([group.name for group in design.plan.groups], job.lag, job.far)
    result = simulate(design, seed=job.seed, costs=costs, links=links, maths=True, check=False)
    ended = isinstance(result.end, Finish)
    return {
        "key": job.key,
        "digest": job.digest,
        "loss": round(float(result.history[-1]["loss"]), 5) if ended else None,
        "failure": None if ended else result.failure and result.failure.text,
        "staleness_max": {name: own["staleness_max"] for name, own in result.counters.items()},
        "updates": max(own["updates"] or 0 for own in result.counters.values()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def design_of(tables: Table) -> Design:
    """Import the model of the recipes in launch/torch, and cut it."""
    parsed = experiment.parse(tables)
    return begin_with(make_design(parsed, describe(parsed.data), allow_import=("models",)))


# --- tables --------------------------------------------------------------------------------------


def best(runs: Runs) -> dict[str, float]:
    """For each rule whose tuning is complete, the rate with the lowest loss."""
    found = {}
    for rule in RULES:
        tried = {rate: runs.found.get(job(rule, rate, TUNED_ON).key) for rate in RATES}
        losses = {rate: loss_of(run) for rate, run in tried.items() if run is not None}
        if len(losses) == len(RATES):
            found[rule] = min(losses, key=losses.__getitem__)
    return found


def loss_of(run: Mapping[str, Any]) -> float:
    """In nats a character; of a run that failed, infinite."""
    return math.inf if run["loss"] is None else float(run["loss"])


def rules(runs: Runs) -> str:
    """Loss of every rule at its best rate, and above that of backprop, seed by seed."""
    chosen = best(runs)
    scored = {
        rule: {seed: loss_of(run) for seed, run in runs.of(f"{rule}, rate {rate:g}").items()}
        for rule, rate in chosen.items()
    }
    rows = []
    for rule, losses in scored.items():
        seeds = [seed for seed in SEEDS if seed in losses and seed in scored[BACKPROP]]
        if not seeds:
            continue
        pairs = [(losses[seed], scored[BACKPROP][seed]) for seed in seeds]
        gap = "-" if rule == BACKPROP else shown(difference(pairs), "+.3f")
        run = runs.found[job(rule, chosen[rule], seeds[0]).key]
        crossed = max(one or 0 for one in run["staleness_max"].values())
        loss = shown(estimate([losses[seed] for seed in seeds]), ".3f")
        rows.append([rule, f"{chosen[rule]:g}", str(run["updates"]), str(crossed), loss, gap])
    head = ["rule", "rate", "updates", "updates crossed, most", "loss, nats", "above backprop"]
    return table(head, rows)


def shown(found: Estimate | None, form: str) -> str:
    """Mean and half its 95 % interval."""
    if found is None:
        return "-"
    spread = "" if found.high is None else f" ± {found.high - found.mean:.3f}"
    return f"{found.mean:{form}}{spread}"


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if not args.readme:
            tuning = [job(rule, rate, TUNED_ON) for rule in RULES for rate in RATES]
            run_all(tuning, runs, workers=args.jobs, resume=args.resume, measure=measure)
            jobs = [job(rule, rate, seed) for rule, rate in best(runs).items() for seed in SEEDS]
            run_all(jobs, runs, workers=args.jobs, resume=True, measure=measure)
            print(rules(runs))
        else:
            fill_in(README, {"transformer": rules(runs)})
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
