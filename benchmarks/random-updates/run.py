"""Random updates on MNIST: every stage learns from a batch only with probability p.

    ASYNCDNI_DATA=… python benchmarks/random-updates/run.py --results runs/random-updates.json
    python benchmarks/random-updates/run.py --readme

The first command trains with each p, without and with synthetic inputs, from several seeds, two
runs at a time; with --resume it leaves out what the file has. The second fills in the tables of
README.md from the results that are kept here. See README.md.

Source: Jaderberg et al., 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv 1608.05343), section 3.1.3 and its figure of random updates and of complete unlock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))

from command import carry_out, parser_of, wanted  # noqa: E402
from sweep import (  # noqa: E402
    Job,
    Runs,
    cell,
    layered,
    machine_line,
    seeded,
    table,
)

RESULTS, README = HERE / "results" / "mnist.json", HERE / "README.md"
#: The paper's network: three hidden layers and the classifier.
LAYERS = 4
PROBABILITIES = (1.0, 0.5, 0.2, 0.1, 0.05)
#: The claim: this test error in percent or less at the smallest p.
TARGET, RAREST = 3.0, 0.05


@dataclass(frozen=True)
class Row:
    """A way to train, at each of the probabilities."""

    name: str
    schedule: Mapping[str, Any]
    probabilities: tuple[float, ...] = PROBABILITIES
    rate: float = 3e-3  # Adam's, of the layers; chosen on held-out samples, as all options are


ERROR = {"name": "synthetic", "target": "true", "generator": {"kind": "error"}}
UNLOCKED = {
    **ERROR,
    "synthetic_inputs": True,
    "input_model": {"hidden": [128], "learning_rate": 1e-2},
}
#: The paper's generator and targets: one hidden layer, bootstrapped.
PAPER = {
    "name": "synthetic",
    "target": "bootstrap",
    "generator": {"kind": "mlp", "scale_targets": False, "learning_rate": 1e-3},
}
CLAIMED = "`error`"
ROWS = [
    Row(CLAIMED, ERROR),
    Row("`error`, synthetic inputs", UNLOCKED),
    Row("`mlp`, bootstrapped (the paper's cDNI)", PAPER, (0.2, 0.05), rate=1e-3),
]
#: What others have found, in percent, by p; both after 500,000 batches (2,133 epochs of ours).
OTHERS = {
    "paper, cDNI (no number given; about, from its figure)": {0.05: "2"},
    "a replication in PyTorch, linear cDNI": {0.2: "3.05"},
}


def key(row: str, probability: float) -> str:
    """Of results."""
    return f"{row}: p = {probability:g}"


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run that is asked for."""
    data = {"name": args.data, "validation": args.validation}
    jobs: list[Job] = []
    for row in ROWS:
        for probability in row.probabilities:
            name = key(row.name, probability)
            if not wanted(name, args):
                continue
            schedule = {**row.schedule, "update_probability": probability}
            optimizer = {"name": "adam", "learning_rate": row.rate, "decay": {"name": "cosine"}}
            tables = layered(LAYERS, schedule, data, optimizer, epochs=args.epochs)
            jobs += seeded(name, args.seeds, tables=tables)
    return jobs


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = parser_of(__doc__, RESULTS, epochs=30)
    carry_out(parser.parse_args(), plan, tables_of, README)


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {"errors": errors(runs), "claim": claim(runs), "machine": machine_line(runs)}


def errors(runs: Runs) -> str:
    """Test error in percent by p, ours and below it what others have found."""
    rows = [[row.name, *(_shown(runs, row, p) for p in PROBABILITIES)] for row in ROWS]
    rows += [[name, *(found.get(p, "") for p in PROBABILITIES)] for name, found in OTHERS.items()]
    return table(["generator", *(f"p = {p:g}" for p in PROBABILITIES)], rows)


def _shown(runs: Runs, row: Row, probability: float) -> str:
    return runs.shown(key(row.name, probability)) if probability in row.probabilities else ""


def claim(runs: Runs) -> str:
    """One sentence: the error at the smallest p, and whether it is what was to be reached."""
    found = runs.estimate(key(CLAIMED, RAREST))
    if found is None:
        return f"p = {RAREST:g} has not been run, or a run of it has failed."
    told = "reached" if found.mean <= TARGET else "missed"
    return f"At p = {RAREST:g}: {cell(found)} %; at most {TARGET:g} % was to be reached: {told}."


if __name__ == "__main__":
    main()
