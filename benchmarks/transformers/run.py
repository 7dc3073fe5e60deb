"""Loss of a small GPT with a block a stage, for rules that let a stage learn without waiting.

    ASYNCDNI_DATA=… python benchmarks/transformers/run.py --results runs/transformers.json
    python benchmarks/transformers/run.py --readme

The first command takes the parts of the plan in turn: it tries rates of a part's rules with one
seed until the best lies between two others, then runs the seeds at that one; at last it tries the
rates of all other rules.
Each run is written as it ends, and with --resume the file's are left out. The second fills in
README.md and draws, from the results that are kept here. Needs PyTorch. Everything is simulated in
virtual time with real maths (see ../shared/sweep.py), so a seed gives one result. See README.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path.insert(0, str(HERE.parents[1] / "launch" / "torch"))

from command import results_parser  # noqa: E402
from sweep import Far, Job, Runs, conditions, fill_in, machine_line, run_all, table  # noqa: E402
from tuning import at_rates, best, loss_of, try_rates  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.core.events import Finish  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.virtual.simulation import Result, simulate  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.plan.build import Design, make_design  # noqa: E402
from asyncdni.report.plots import styled  # noqa: E402
from asyncdni.report.statistics import Estimate, difference, estimate  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

RESULTS, README = HERE / "results" / "transformers.json", HERE / "README.md"
WIDTH, WINDOW, BATCH = 128, 64, 4
CHARACTERS = 1_115_394  # of the text
TEST_PART = 0.03  # of it, at its end
HELD_OUT = 32_768  # characters before the test part, which rates are chosen on
EVALUATIONS = 6  # in a run
TUNED_ON = 100  # the seed on which rates are chosen
SEEDS = 0, 1, 2

Table = dict[str, Any]
ADAM: Table = {"name": "adam"}
NADAM: Table = {"name": "torch", "kind": "NAdam", "options": {"betas": [0.99, 0.999]}}
MUON: Table = {"name": "torch", "kind": "Muon", "options": {"weight_decay": 0.0}}
SLOWER: Table = {
    "name": "torch",
    "kind": "Muon",
    "options": {"weight_decay": 0.0, "momentum": 0.97},  # 0.95 without
}
#: Sides of matrices that are longer than the network is wide keep their basis, to save arithmetic.
SOAP: Table = {
    "name": "torch",
    "kind": "SOAP",
    "options": {"weight_decay": 0.0, "max_precondition_dim": WIDTH},
}


def readout(**options: Any) -> Table:
    """The schedule without waiting, by gradients through copies of the readout."""
    return {"name": "synthetic", "generator": {"kind": "readout", **options}}


@dataclass(frozen=True)
class Rule:
    """How stages learn, and what they wait for meanwhile."""

    schedule: Table
    optimizer: Table = field(default_factory=lambda: ADAM)
    lag: int = 0  # [batches] that a true gradient is late
    far: Far = "loss"  # at every stage but the last, or as in a pipeline
    link_ms: int = 0  # one way, between any two workers
    tuned_as: str = ""  # the rule that its rate is tuned with; "": itself
    tuned_at: int = 4  # stages


BACKPROP, BARE = "backprop", "readout"
DELAYED: Table = {"name": "delayed"}
FED: Table = {"name": "delayed", "look_ahead": 1.0}  # error feedback: see docs/schedules.md
AHEAD = {ahead: {"name": "delayed", "look_ahead": ahead} for ahead in (2.0, 7.0)}
#: Of gradients that come late: by name, schedule and optimizer.
LATE = {
    "Adam": (DELAYED, ADAM),
    "Adam, error feedback": (FED, ADAM),
    "NAdam 0.99": (DELAYED, NADAM),
    "Muon": (DELAYED, MUON),
    "Muon, error feedback": (FED, MUON),
    "SOAP": (DELAYED, SOAP),
}
WITH_MUON, BARE_MUON, MUON_1, MUON_7 = (
    "backprop, Muon",
    "readout, Muon",
    "delayed by 1, Muon, error feedback",
    "delayed by 7, Muon",
)
AHEAD_0, AHEAD_1, AHEAD_7, PIPELINE, AHEAD_PIPELINE = (
    "backprop, Muon, 2 ahead",
    "delayed by 1, Muon, 2 ahead",
    "delayed by 7, Muon 0.97, 7 ahead",
    "delayed as in a pipeline, Muon",
    "delayed as in a pipeline, Muon, 7 ahead",
)
RULES = {
    BACKPROP: Rule({"name": "locked"}),
    BARE: Rule(readout()),
    "readout, refresh 200": Rule(readout(refresh=200), tuned_as=BARE),
    "readout, links of 10 ms": Rule(readout(), link_ms=10, tuned_as=BARE),
    "readout, links of 100 ms": Rule(readout(), link_ms=100, tuned_as=BARE),
    "readout, narrow block": Rule(readout(blocks=1, width=32)),
    "readout, full block": Rule(readout(blocks=1)),
    "readout, full block, learns from every 4th batch": Rule(readout(blocks=1, learn_every=4)),
    "local loss, own head": Rule({"name": "local_loss"}),
    WITH_MUON: Rule({"name": "locked"}, MUON),
    BARE_MUON: Rule(readout(), MUON),
    **{
        f"delayed by {lag}, {name}": Rule(schedule, optimizer, lag=lag)
        for lag in (1, 7)
        for name, (schedule, optimizer) in LATE.items()
    },
    AHEAD_0: Rule(AHEAD[2], MUON),
    AHEAD_1: Rule(AHEAD[2], MUON, lag=1),
    "delayed by 7, Muon, 7 ahead": Rule(AHEAD[7], MUON, lag=7),
    AHEAD_7: Rule(AHEAD[7], SLOWER, lag=7),
    PIPELINE: Rule(DELAYED, MUON, lag=7, far="pipeline", tuned_at=8),
    AHEAD_PIPELINE: Rule(AHEAD[7], MUON, lag=7, far="pipeline", tuned_at=8),
}

#: What may be tried; the two in the middle are tried first.
RATES = 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2
FIRST = RATES[2:4]
TUNING_STEPS = 1000
#: [ms] between two batches where links have a latency: what a block takes on a core of its own.
PERIOD_MS = 10
#: [batches] on their way between two workers, where links have a latency: never felt.
LINK_WINDOW = 64


@dataclass(frozen=True)
class Part:
    """What is compared: rules with the same network and number of steps, at their best rates and
    from all seeds, or at given rates and from the first seed."""

    stages: int
    steps: int
    rules: tuple[str, ...]
    rates: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The part's mark in README.md."""
        return f"{self.stages} stages, {self.steps} steps{', rates' if self.rates else ''}"


STEPS = 3000
COPIES = tuple(name for name, rule in RULES.items() if rule.tuned_as == BARE)
OF_MUON = BARE_MUON, MUON_1, AHEAD_1, MUON_7, AHEAD_7, AHEAD_PIPELINE
#: In the order in which they run; one of the same name as an earlier one adds to it.
PARTS = (
    Part(8, STEPS, (BACKPROP, BARE)),
    Part(4, STEPS, (BACKPROP, BARE, *COPIES)),
    Part(8, STEPS, (BACKPROP, BARE, WITH_MUON, *OF_MUON)),
    Part(4, STEPS, (BACKPROP, BARE), FIRST),
    Part(2, STEPS, (BACKPROP, BARE)),
)
#: Of these no more than the runs that choose a rate.
BRIEFLY = (
    *(WITH_MUON, BARE_MUON, AHEAD_0),
    *(rule for rule in RULES if rule.startswith("delayed")),
    *("readout, narrow block", "readout, full block"),
    "readout, full block, learns from every 4th batch",
    "local loss, own head",
)


def job(rule: str, stages: int, steps: int, rate: float, seed: int, *, width: int = WIDTH) -> Job:
    """A GPT with a block a stage. Runs that choose a rate are scored on held-out characters."""
    chosen = RULES[rule]
    schedule, lag = chosen.schedule, chosen.lag
    room = 2 * (lag + 1) + 8
    tuning = seed == TUNED_ON
    kept = int(CHARACTERS * (1 - TEST_PART)) - (HELD_OUT if tuning else 0)
    an_epoch = (kept - WINDOW) // (BATCH * WINDOW)
    tables: Table = {
        "data": {
            "name": "text",
            "encoding": "ids",
            "window": WINDOW,
            "batch_size": BATCH,
            "test_part": TEST_PART,
            "validation": HELD_OUT if tuning else 0,
        },
        "model": {
            "build": "models:gpt",
            "arguments": {"width": width, "layers": stages, "heads": 4, "steps": WINDOW},
            "stages": [f"h.{index}" for index in range(1, stages)],
            "loss": "cross_entropy",
        },
        "schedule": schedule,
        "optimizer": {
            **chosen.optimizer,
            "learning_rate": rate,
            "clip_norm": float(WINDOW),  # 1 for the mean over characters: gradients are their sum
            "decay": {"name": "cosine", "warmup_epochs": 0.05},
        },
        "run": {
            "epochs": math.ceil(steps / an_epoch),
            "max_steps": steps,
            "evaluate_every": steps / an_epoch / (1 if tuning else EVALUATIONS),
        },
        "limits": {"window": room},
        # A lag of 0 is a bound; any other one comes from latency alone.
        "staleness": {}
        if schedule["name"] in ("locked", "local_loss")
        else {"lag": room if lag else 0},
    }
    if chosen.link_ms:
        tables |= {
            "links": {"latency": f"{chosen.link_ms}ms"},
            "limits": {"window": LINK_WINDOW},
        }
    told = "" if width == WIDTH else f" of width {width}"
    return Job(
        f"{rule}, {stages} stages{told}, {steps} steps, rate {rate:g}",
        seed,
        tables,
        lag,
        chosen.far,
    )


def measure(job: Job) -> dict[str, Any]:
    """Train and score once, on one thread."""
    import torch

    torch.set_num_threads(1)
    began, worked = time.perf_counter(), time.process_time()
    tables = json.loads(json.dumps(dict(job.tables)))
    tables["run"]["seed"] = job.seed
    design = design_of(tables)
    costs, links = conditions([group.name for group in design.plan.groups], job.lag, job.far)
    if "links" in tables:
        costs = replace(costs, read_us=1000.0 * PERIOD_MS)
    result = simulate(design, seed=job.seed, costs=costs, links=links, maths=True, check=False)
    return {
        "key": job.key,
        "digest": job.digest,
        **scores(result),
        "staleness_max": {name: own["staleness_max"] for name, own in result.counters.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - worked, 1),
    }


def scores(result: Result) -> Table:
    """The last loss in nats a character, and all by the number of batches; none of a run that
    failed for its numbers."""
    if not isinstance(result.end, Finish):
        return {"loss": None, "failure": result.failure and result.failure.text}
    curve = [[one["batches"], round(float(one["loss"]), 5)] for one in result.history]
    return {"loss": curve[-1][1], "curve": curve}


def design_of(tables: Table) -> Design:
    """Import the model of the recipes in launch/torch, and cut it."""
    parsed = experiment.parse(tables)
    return begin_with(make_design(parsed, describe(parsed.data), allow_import=("models",)))


# --- tables --------------------------------------------------------------------------------------


def tuning(rule: str, steps: int = TUNING_STEPS, width: int = WIDTH) -> dict[float, Job]:
    """The runs that may choose the rule's rate, by rate."""
    rule = RULES[rule].tuned_as or rule
    stages = RULES[rule].tuned_at
    return {rate: job(rule, stages, steps, rate, TUNED_ON, width=width) for rate in RATES}


def planned(part: Part, runs: Runs) -> list[Job]:
    """The part's runs, of one seed after the other."""
    if part.rates:
        return [
            job(rule, part.stages, part.steps, rate, SEEDS[0])
            for rate in part.rates
            for rule in part.rules
        ]
    rates = {rule: best(tuning(rule), runs) for rule in part.rules}
    return [
        job(rule, part.stages, part.steps, rate, seed)
        for seed in SEEDS
        for rule, rate in rates.items()
        if rate is not None
    ]


def learned(part: Part, runs: Runs) -> str:
    """Loss of each rule, and above those of backprop with its optimizer and of fresh copies, seed
    by seed."""
    rows = []
    for rule in part.rules:
        found = losses(rule, part, runs)
        if not found:
            continue
        gaps = [
            above(found, losses(other, part, runs)) if compared and other != rule else "-"
            for other, compared in ((_backprop(rule), True), (BARE, rule in COPIES))
        ]
        rate, mean = f"{best(tuning(rule), runs):g}", shown(estimate([*found.values()]), ".4f")
        rows.append([rule, rate, str(len(found)), mean, *gaps])
    head = ["rule", "rate", "seeds", "loss, nats", "above its backprop", "above readout"]
    return table(head, rows)


def _backprop(rule: str) -> str:
    """The rule that waits for true gradients and has the same optimizer."""
    return WITH_MUON if RULES[rule].optimizer.get("kind") == "Muon" else BACKPROP


def above(found: Mapping[int, float], beside: Mapping[int, float]) -> str:
    """The gap between the losses of two rules, paired by seed."""
    return shown(
        difference([(found[seed], beside[seed]) for seed in found if seed in beside]), "+.4f"
    )


def losses(rule: str, part: Part, runs: Runs) -> dict[int, float]:
    """By seed, of the runs that there are."""
    keys = {one.seed: one.key for one in planned(replace(part, rules=(rule,)), runs)}
    return {seed: loss_of(runs.found[key]) for seed, key in keys.items() if key in runs.found}


def tuned(runs: Runs) -> str:
    """Loss on held-out characters at each rate."""
    own = {name: [*tuning(name).values()] for name, rule in RULES.items() if not rule.tuned_as}
    return at_rates(RATES, own, runs)


def checked(part: Part, runs: Runs) -> str:
    """Loss of the first seed's long runs at each of the part's rates."""
    jobs = {rule: planned(replace(part, rules=(rule,)), runs) for rule in part.rules}
    return at_rates(part.rates, jobs, runs)


def shown(found: Estimate | None, form: str) -> str:
    """Mean and half its 95 % interval."""
    if found is None:
        return "-"
    spread = "" if found.high is None else f" ± {found.high - found.mean:.4f}"
    return f"{found.mean:{form}}{spread}"


def tables_of(runs: Runs) -> dict[str, str]:
    """By the mark in README.md."""
    found = {
        part.name: checked(part, runs) if part.rates else learned(part, runs) for part in PARTS
    }
    return {"machine": machine_line(runs), "rates": tuned(runs), **found}


def draw(runs: Runs, path: Path) -> None:
    """Loss against steps, the mean over seeds; a panel for each number of stages."""
    with styled():
        from matplotlib.figure import Figure

        widest = {part.stages: part for part in PARTS if not part.rates}
        parts = [widest[stages] for stages in sorted(widest)]
        figure = Figure(figsize=(4.5 * len(parts), 5.4), layout="constrained")
        for axes, part in zip(figure.subplots(1, len(parts)), parts, strict=True):
            for rule in part.rules:
                curves = [
                    runs.found[one.key]["curve"]
                    for one in planned(replace(part, rules=(rule,)), runs)
                    if runs.found.get(one.key, {}).get("curve")
                ]
                if curves:
                    steps = [at for at, _ in curves[0]]
                    means = [fmean(loss for _, loss in at) for at in zip(*curves, strict=True)]
                    style = "-" if rule == BACKPROP else "--"
                    axes.plot(steps, means, style, marker="o", markersize=3, label=rule)
            axes.set_title(f"{part.stages} stages")
            axes.set_xlabel("steps")
            axes.set_ylabel("loss, nats a character")
            axes.grid(alpha=0.3)
            if axes.lines:
                below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
                axes.legend(fontsize=8, frameon=False, **below)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            draw(runs, HERE / "results" / "transformers.svg")
            return
        if runs.found and not args.resume:
            raise AsyncDNIError(f"{args.results} has runs: --resume goes on with it")
        carry_out = partial(run_all, runs=runs, workers=args.jobs, resume=True, measure=measure)
        for part in PARTS:
            try_rates([tuning(rule) for rule in part.rules], carry_out, runs)
            carry_out(planned(part, runs))
        try_rates([tuning(rule) for rule in BRIEFLY], carry_out, runs)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
