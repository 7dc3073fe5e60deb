"""Recipes against their yardsticks: convolution on MNIST, and characters of Shakespeare's plays.

    ASYNCDNI_DATA=… python benchmarks/recipes/run.py --results runs/recipes.json
    python benchmarks/recipes/run.py --readme

The first command trains recipes of launch/ as they are, and with backpropagation in depth and in
time, from several seeds; with --resume it leaves out what the file has. The second fills in the
tables of README.md from the results that are kept here.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

from command import carry_out, parser_of, wanted  # noqa: E402
from sweep import Job, Runs, cell, machine_line, seeded, table  # noqa: E402
from told import told  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.report.statistics import Estimate, difference, estimate  # noqa: E402

RESULTS, README = HERE / "results" / "recipes.json", HERE / "README.md"
LAUNCH = HERE.parents[1] / "launch"
#: Batches until a true gradient is back where workers do not wait for it.
LAG = 4

#: Of convolution: test error of cDNI in percent, and what it may be above backprop, in points.
ERROR_MOST, NEAR = 1.2, 0.3
CONV = {"3 layers": "mnist-conv", "4 layers": "mnist-conv4"}
BACKPROP, CDNI = "backprop", "cDNI"

TEXT = "shakespeare"
BPTT, TIME, BOTH = "BPTT", "DNI in time", "DNI in time and depth"
#: The recipe as it is, and changed to what suits BPTT best.
TEXTS = {
    TEXT: (),
    f"{TEXT}, faster": (
        "optimizer.learning_rate=7e-3",
        "optimizer.decay.name=cosine",
        "run.epochs=2",
    ),
}


@dataclass(frozen=True)
class Setting:
    """A recipe, changed or not."""

    name: str  # of its results
    recipe: str
    schedule: str | None = None  # None: the recipe's
    future: bool = True  # False: recurrent layers are cut at their windows' ends
    own: tuple[str, ...] = ()  # KEY=VALUE

    def tables(self, changes: list[str]) -> dict[str, Any]:
        """Raises `ConfigError` for changes that do not fit."""
        path = LAUNCH / f"{self.recipe}.toml"
        chosen = experiment.load(path, [*self.own, *changes], schedule=self.schedule)
        tables: dict[str, Any] = told(chosen)
        tables["run"] |= {"epochs": chosen.run.epochs, "evaluate_every": float(chosen.run.epochs)}
        if not self.future:
            for stage in tables["stages"]:
                stage["layers"] = [_cut(layer) for layer in stage["layers"]]
        return tables


def _cut(layer: Any) -> Any:
    """The layer without its future."""
    if not (isinstance(layer, Mapping) and "lstm" in layer):
        return layer
    return {"lstm": {key: value for key, value in layer["lstm"].items() if key != "future"}}


def key(network: str, row: str) -> str:
    """Of results."""
    return f"{network}: {row}"


SETTINGS = [
    *(Setting(key(name, BACKPROP), recipe, "locked") for name, recipe in CONV.items()),
    *(Setting(key(name, CDNI), recipe) for name, recipe in CONV.items()),
    *(
        setting
        for name, own in TEXTS.items()
        for setting in (
            Setting(key(name, BPTT), TEXT, "locked", future=False, own=own),
            Setting(key(name, TIME), TEXT, "locked", own=own),
            Setting(key(name, BOTH), TEXT, own=own),
        )
    ),
]


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run that is asked for."""
    jobs: list[Job] = []
    for setting in SETTINGS:
        if wanted(setting.name, args):
            lag = 0 if setting.schedule == "locked" else LAG
            tables = setting.tables(changes_of(args, setting))
            found = seeded(setting.name, args.first_seed + args.seeds, tables=tables, lag=lag)
            jobs += found[args.first_seed :]
    return jobs


def changes_of(args: argparse.Namespace, setting: Setting) -> list[str]:
    """What the command line sets in a recipe."""
    changes = list(args.set)
    if args.epochs:
        changes.append(f"run.epochs={args.epochs}")
    if args.validation:
        changes.append(f"data.validation={args.validation}")
    if args.data != "mnist" and setting.recipe in CONV.values():
        changes.append(f"data.name={args.data}")
    return changes


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {
        "conv claim": conv_claim(runs),
        "conv": conv(runs),
        "text claim": text_claim(runs),
        **{name.replace(",", ""): text_table(runs, name) for name in TEXTS},
        "machine": machine_line(runs) if runs.found else "Not measured yet.",
    }


def conv(runs: Runs) -> str:
    """Test errors in percent: mean with its interval, and each seed's."""
    rows = []
    for network in CONV:
        for row in (BACKPROP, CDNI):
            each = runs.errors(key(network, row)).values()
            shown = ", ".join("failed" if one is None else f"{one:.2f}" for one in each)
            rows.append([network, row, runs.shown(key(network, row)), shown])
    return table(["network", "rule", "test error, %", "each seed"], rows)


def conv_claim(runs: Runs) -> str:
    lines = []
    for network in CONV:
        own = runs.estimate(key(network, CDNI))
        gap = runs.difference(key(network, CDNI), key(network, BACKPROP))
        if own is None or gap is None:
            continue
        met = own.mean <= ERROR_MOST and gap.mean <= NEAR
        lines.append(
            f"* {network}: {cell(own)} % with cDNI (≤ {ERROR_MOST:g} was to be reached), "
            f"{cell(gap, sign=True)} points from backprop (≤ {NEAR:g}): "
            f"{'reached' if met else 'missed'}."
        )
    return "\n".join(lines) or "Not measured yet."


def bits(runs: Runs, text: str, row: str) -> dict[int, float]:
    """Bits a character of the test part, by seed; of runs that did not fail."""
    found = runs.of(key(text, row))
    return {
        seed: run["loss"] / math.log(2) for seed, run in found.items() if run["loss"] is not None
    }


def below(runs: Runs, text: str, row: str) -> Estimate | None:
    """Bits of `row` less those of truncated backpropagation, paired by seed."""
    ours, theirs = bits(runs, text, row), bits(runs, text, BPTT)
    return difference([(ours[seed], theirs[seed]) for seed in ours if seed in theirs])


def text_table(runs: Runs, text: str) -> str:
    rows = []
    for row in (BPTT, TIME, BOTH):
        found = bits(runs, text, row)
        gap = None if row == BPTT else below(runs, text, row)
        mean = estimate(list(found.values()))
        shown = ", ".join(f"{one:.4f}" for one in found.values()) or "-"
        rows.append([row, _bits(mean), shown, _bits(gap, sign=True)])
    return table(["rule", "bits a character", "each seed", "less BPTT's"], rows)


def text_claim(runs: Runs) -> str:
    """Of the recipe as it is."""
    gap = below(runs, TEXT, TIME)
    if gap is None:
        return "Not measured yet."
    verdict = "reached" if gap.mean < 0 else "missed"
    doubt = "; the interval includes 0" if gap.high is None or not gap.excludes(0.0) else ""
    return (
        f"{_bits(gap, sign=True)} bits a character from BPTT with the same T "
        f"(below 0 was to be reached): {verdict}{doubt}."
    )


def _bits(found: Estimate | None, *, sign: bool = False) -> str:
    if found is None:
        return "-"
    mean = f"{found.mean:+.4f}" if sign else f"{found.mean:.4f}"
    return mean if found.high is None else f"{mean} ± {found.high - found.mean:.4f}"


def main() -> None:
    parser = parser_of(__doc__, RESULTS, epochs=0)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all runs")
    carry_out(parser.parse_args(), plan, tables_of, README)


if __name__ == "__main__":
    main()
