"""The fully connected networks of the DNI paper on MNIST, a generator between every two layers.

    ASYNCDNI_DATA=… python benchmarks/paper-mnist/run.py --results runs/paper-mnist.json
    python benchmarks/paper-mnist/run.py --readme

The first command trains 3 to 6 layers (the classifier counts) without backpropagation below the
classifier, with it, with the paper's two kinds of generators and with this project's own, from
several seeds, two runs at a time; with --resume it leaves out what the file has. The second fills
in the tables of README.md from the results that are kept here. See README.md.

Source: Jaderberg et al., 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv 1608.05343), section 3.2 and its table of feed-forward networks.
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
LAYERS = (3, 4, 5, 6)
#: How far above backprop the conditional columns may be, in points.
NEAR = 0.4
#: Chosen on held-out samples for backprop and used for all columns: see README.md.
RATE = 3e-3
#: The warm-up is for the generators: they start at zero and know nothing in the first epoch.
DECAY = {"name": "cosine", "warmup_epochs": 1.0}


@dataclass(frozen=True)
class Column:
    """A way to train, and the paper's test errors by layers, as recalled."""

    name: str
    schedule: Mapping[str, Any]
    paper: tuple[float, ...] = ()
    rate: float = RATE  # Adam's, of the layers


def _synthetic(target: str, **generator: Any) -> dict[str, Any]:
    return {"name": "synthetic", "target": target, "generator": generator}


def _unconditional(target: str) -> dict[str, Any]:
    return _synthetic(target, kind="mlp", labels=False, scale_targets=False, learning_rate=1e-3)


def _linear(target: str) -> dict[str, Any]:
    return _synthetic(target, kind="linear", scale_targets=False, learning_rate=3e-3)


BACKPROP = "backprop"
COLUMNS = [
    Column("no backprop", _synthetic("true", kind="zero"), (9.3, 12.6, 16.2, 21.4)),
    Column(BACKPROP, {"name": "locked"}, (2.0, 1.8, 1.8, 1.8)),
    Column("DNI", _unconditional("bootstrap"), (1.9, 2.2, 3.4, 4.3), rate=3e-4),
    Column("DNI, true targets", _unconditional("true"), rate=1e-3),
    Column("cDNI", _linear("bootstrap"), (2.2, 1.9, 1.7, 1.6)),
    Column("cDNI, true targets", _linear("true")),
    Column("cDNI, `error`", _synthetic("true", kind="error")),
    Column("cDNI, `error`, bootstrap", _synthetic("bootstrap", kind="error")),
]
#: Those that the claim is about: all that see the labels.
CLAIMED = [column.name for column in COLUMNS if column.name.startswith("cDNI")]


def key(column: str, layers: int) -> str:
    """Of results."""
    return f"{layers} layers: {column}"


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run that is asked for."""
    data = {"name": args.data, "validation": args.validation}
    jobs: list[Job] = []
    for layers in args.layers:
        for column in COLUMNS:
            name = key(column.name, layers)
            if not wanted(name, args):
                continue
            optimizer = {"name": "adam", "learning_rate": column.rate, "decay": DECAY}
            tables = layered(layers, column.schedule, data, optimizer, epochs=args.epochs)
            jobs += seeded(name, args.seeds, tables=tables)
    return jobs


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = parser_of(__doc__, RESULTS, epochs=12)
    parser.add_argument("--layers", type=int, nargs="+", choices=LAYERS, default=LAYERS)
    carry_out(parser.parse_args(), plan, tables_of, README)


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {"errors": errors(runs), "claim": claim(runs), "machine": machine_line(runs)}


def errors(runs: Runs) -> str:
    """Test error in percent, ours and in brackets the paper's."""
    rows = []
    for index, layers in enumerate(LAYERS):
        row = [str(layers)]
        for column in COLUMNS:
            paper = f" ({column.paper[index]})" if column.paper else ""
            row.append(runs.shown(key(column.name, layers)) + paper)
        rows.append(row)
    return table(["layers", *(column.name for column in COLUMNS)], rows)


def claim(runs: Runs) -> str:
    """The conditional columns less backprop, seed by seed."""
    rows = []
    for layers in LAYERS:
        row = [str(layers)]
        for name in CLAIMED:
            gap = runs.difference(key(name, layers), key(BACKPROP, layers))
            met = "" if gap is None else " (met)" if gap.mean <= NEAR else " (missed)"
            row.append(cell(gap, sign=True) + met)
        rows.append(row)
    return table(["layers", *(f"{name} less backprop" for name in CLAIMED)], rows)


if __name__ == "__main__":
    main()
