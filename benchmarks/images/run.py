"""Test error of a ResNet-18 cut into 4 and 8 stages, for rules that let a stage learn without
waiting.

    ASYNCDNI_DATA=… python benchmarks/images/run.py --results runs/images.json
    python benchmarks/images/run.py --readme

The first command takes the parts of the plan in turn: it tries rates of a part's rules with one
seed until the best lies between two others, and other designs briefly, then runs the seeds. Each
run is written as it ends, and with --resume the file's are left out. The second fills in README.md
from the results that are kept here. Needs PyTorch. Everything is simulated in virtual time with
real maths (see ../shared/sweep.py), so a seed gives one result. See README.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "launch" / "torch")]

import sweep  # noqa: E402
from command import results_parser  # noqa: E402
from sweep import Job, Runs, cell, fill_in, machine_line, run_all, table  # noqa: E402
from tuning import at_rates, best, loss_of, try_rates  # noqa: E402

from asyncdni.errors import AsyncDNIError  # noqa: E402

RESULTS, README = HERE / "results" / "images.json", HERE / "README.md"
WIDTH, BATCH = 16, 64  # WIDTH: as in blocks.py, which needs PyTorch
IMAGES = {"mnist": 60_000, "cifar10": 50_000, "digits": 10_000}  # to train on
STEPS, AN_EPOCH, THREE_EPOCHS = 400, 938, 2814
TUNING_STEPS, TUNING_STAGES = 150, 4
HELD_OUT = 2500  # of these images, which rates are chosen on
TUNED_ON = 100  # the seed on which rates are chosen
SEEDS = 0, 1, 2
#: Where all stages but the first begin: a group of two residual blocks a stage, or one block.
CUTS = {
    4: ["layer2", "layer3", "layer4"],
    8: [f"layer{group}.{block}" for group in (1, 2, 3, 4) for block in (0, 1)][1:],
}
#: What may be tried; the two in the middle are tried first.
RATES = 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4

Table = dict[str, Any]


def readout(own: str, **options: Any) -> Table:
    """The schedule without waiting, by gradients through a block of `blocks.py` and a copy of the
    readout, unless `options` say otherwise."""
    generator = {"kind": "readout", "blocks": 1, "block": f"blocks:{own}", "refresh": 10}
    return {"name": "synthetic", "generator": generator | options}


@dataclass(frozen=True)
class Rule:
    """How stages learn."""

    schedule: Table
    tuned_as: str = ""  # the rule that its rate is tuned with; "": itself


BACKPROP, BARE, NARROW, PLACED, LOCAL = (
    "backprop",
    "readout",
    "readout, narrow block",
    "readout, narrow block, 4 x 4 places, its rate 0.004",
    "local loss, own head",
)
RULES = {
    BACKPROP: Rule({"name": "locked"}),
    BARE: Rule(readout("Repeated")),
    NARROW: Rule(readout("Narrow")),
    PLACED: Rule(readout("Placed", learning_rate=4e-3)),
    LOCAL: Rule({"name": "local_loss"}),
    "readout, narrow block, its rate 0.004": Rule(readout("Narrow", learning_rate=4e-3), NARROW),
    "readout, narrow block, 4 x 4 places": Rule(readout("Placed"), NARROW),
    "readout, block of 64 planes": Rule(readout("Wide"), NARROW),
    "readout, linear map": Rule(readout("Mapped"), NARROW),
    "readout, narrow block, refresh 50": Rule(readout("Narrow", refresh=50), NARROW),
    "readout, narrow block, 4 x 4 places, its rate 0.016": Rule(
        readout("Placed", learning_rate=1.6e-2), PLACED
    ),
    "readout, two conv blocks of 32 planes, their rate 0.004": Rule(
        readout("", **{"blocks": 2, "block": "conv", "width": 32, "learning_rate": 4e-3}), PLACED
    ),
}
#: Tried briefly, on held-out images.
DESIGNS = tuple(name for name, rule in RULES.items() if rule.tuned_as)


@dataclass(frozen=True)
class Part:
    """Rules by number of stages, which are compared after so many steps."""

    steps: int
    rows: tuple[tuple[int, str], ...]
    seeds: tuple[int, ...] = SEEDS

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule for _, rule in self.rows))


#: Backprop is the same at any cut, but for rounding.
FIRST = ((4, BACKPROP), (4, PLACED), (8, PLACED))
OTHERS = tuple((stages, rule) for rule in (BARE, LOCAL, NARROW) for stages in (4, 8))
#: In the order in which they run; one of as many steps as an earlier one adds to it.
PARTS = (
    Part(STEPS, FIRST),
    Part(AN_EPOCH, FIRST, SEEDS[:1]),
    Part(THREE_EPOCHS, FIRST),
    Part(STEPS, OTHERS),
)
LENGTHS = tuple(dict.fromkeys(part.steps for part in PARTS))


def job(rule: str, stages: int, steps: int, rate: float, seed: int, data: str = "mnist") -> Job:
    """Runs that choose a rate are scored on held-out training images."""
    schedule = RULES[rule].schedule
    held_out = HELD_OUT if seed == TUNED_ON else 0
    epochs = steps * BATCH / (IMAGES[data] - held_out)
    tables: Table = {
        "data": {
            "name": data,
            "batch_size": BATCH,
            "validation": held_out,
            **({} if data == "cifar10" else {"planes": True}),
        },
        "model": {
            "build": "models:resnet18",
            "arguments": {"width": WIDTH, "channels": 3 if data == "cifar10" else 1},
            "stages": CUTS[stages],
            "loss": "cross_entropy",
        },
        "schedule": schedule,
        "optimizer": {
            "name": "sgd",
            "momentum": 0.9,
            "learning_rate": rate,
            "decay": {"name": "cosine", "warmup_epochs": epochs / 20},
        },
        "run": {
            "epochs": int(epochs) + 1,
            "max_steps": steps,
            "evaluate_every": epochs + 1,
            "autocast": "bfloat16",
        },
        "limits": {"window": 8},
        "staleness": {"lag": 0} if schedule["name"] == "synthetic" else {},
    }
    told = "" if data == "mnist" else f", {data}"
    return Job(f"{rule}, {stages} stages, {steps} steps, rate {rate:g}{told}", seed, tables)


def measure(one: Job) -> Table:
    """Train and test once, on one thread."""
    import torch

    torch.set_num_threads(1)
    return sweep.measure(one, allow_import=("models", "blocks"))


# --- plan ----------------------------------------------------------------------------------------


def tuning(rule: str, data: str = "mnist") -> dict[float, Job]:
    """The runs that may choose the rule's rate, by rate."""
    rule = RULES[rule].tuned_as or rule
    return {rate: job(rule, TUNING_STAGES, TUNING_STEPS, rate, TUNED_ON, data) for rate in RATES}


def tried_briefly(runs: Runs, data: str = "mnist") -> dict[str, Job]:
    """The runs of other designs, at the rate of those that they vary."""
    rates = {rule: best(tuning(rule, data), runs) for rule in DESIGNS}
    return {
        rule: job(rule, TUNING_STAGES, TUNING_STEPS, rate, TUNED_ON, data)
        for rule, rate in rates.items()
        if rate is not None
    }


def planned(part: Part, runs: Runs, data: str = "mnist") -> list[Job]:
    """The part's runs of rules whose rate is known, of one seed after the other."""
    rates = {rule: best(tuning(rule, data), runs) for rule in part.rules}
    return [
        job(rule, stages, part.steps, rate, seed, data)
        for seed in part.seeds
        for stages, rule in part.rows
        if (rate := rates[rule]) is not None
    ]


# --- tables --------------------------------------------------------------------------------------


def learned(steps: int, runs: Runs, data: str) -> str:
    """Test error of each rule and its gap to that of backprop, seed by seed."""
    rows = [row for part in PARTS if part.steps == steps for row in part.rows]
    names = {row: _name(steps, row, runs, data) for row in rows}
    found = []
    for (stages, rule), name in names.items():
        seeds = len(runs.of(name))
        if not seeds:
            continue
        gap = cell(runs.difference(name, names[4, BACKPROP]), sign=True)
        cut, gap = ("any", "-") if rule == BACKPROP else (str(stages), gap)
        rate = f"{best(tuning(rule, data), runs):g}"
        found.append([rule, cut, rate, str(seeds), runs.shown(name), gap])
    head = ["rule", "stages", "rate", "seeds", "test error, %", "points above"]
    return table(head, found) if found else "Not measured yet."


def _name(steps: int, row: tuple[int, str], runs: Runs, data: str) -> str:
    """Of the setting at the rule's best rate; empty before that is known."""
    jobs = planned(Part(steps, (row,)), runs, data)
    return jobs[0].name if jobs else ""


def designs(runs: Runs, data: str) -> str:
    """Errors and losses on held-out images, of rules at their best rates and of other designs."""
    rates = {rule: best(tuning(rule, data), runs) for rule in RULES if rule not in DESIGNS}
    jobs = {rule: tuning(rule, data)[rate] for rule, rate in rates.items() if rate is not None}
    jobs |= tried_briefly(runs, data)
    rows = [
        [rule, f"{run['error']:.2f}", f"{loss_of(run):.4f}"]
        for rule, one in jobs.items()
        if (run := runs.found.get(one.key))
    ]
    return table(["rule", "error, %", "loss, nats"], rows)


def tables_of(runs: Runs, data: str = "mnist") -> dict[str, str]:
    """By the mark in README.md."""
    rates = {rule: [*tuning(rule, data).values()] for rule in RULES if rule not in DESIGNS}
    return {
        "machine": machine_line(runs, at_once="one run at a time"),
        **{f"{steps} steps": learned(steps, runs, data) for steps in LENGTHS},
        "designs": designs(runs, data),
        "rates": at_rates(RATES, rates, runs),
    }


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = results_parser(__doc__, RESULTS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--data", choices=("mnist", "cifar10"), default="mnist")
    args = parser.parse_args()
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(README, tables_of(runs))
            return
        if runs.found and not args.resume:
            raise AsyncDNIError(f"{args.results} has runs: --resume goes on with it")
        carry_out = partial(run_all, runs=runs, workers=args.jobs, resume=True, measure=measure)
        for part in PARTS:
            try_rates([tuning(rule, args.data) for rule in part.rules], carry_out, runs)
            carry_out([*tried_briefly(runs, args.data).values()])
            carry_out(planned(part, runs, args.data))
        for content in tables_of(runs, args.data).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
