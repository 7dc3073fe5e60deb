"""Loss of an entry at several learning rates, on held-out characters, without links.

    ASYNCDNI_DATA=… python benchmarks/speedrun/rates.py benchmarks/speedrun/entries/readout.toml \
        2e-3 4e-3 8e-3

Each rate is one run in one process in virtual time, with real maths and a seed of its own: a minute
of CPU time for 800 steps. So a rate is chosen without the test part and without the record's seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "launch" / "torch")]

from rules import Table, read, tables_of  # noqa: E402
from sweep import conditions  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.virtual.simulation import simulate  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.plan.build import make_design  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

SEED, HELD_OUT = 100, 32_768


def loss(entry: Table, rate: float) -> float:
    """In nats a character at the end of the run."""
    tables = tables_of(entry)
    tables["optimizer"] = {**tables["optimizer"], "learning_rate": rate}
    tables["data"]["validation"] = HELD_OUT
    tables["run"]["seed"] = SEED
    del tables["links"]
    chosen = experiment.parse(tables)
    design = begin_with(make_design(chosen, describe(chosen.data), allow_import=("models",)))
    costs, links = conditions([group.name for group in design.plan.groups], 0, "loss")
    result = simulate(design, seed=SEED, costs=costs, links=links, maths=True, check=False)
    return float(result.history[-1]["loss"])


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entry", type=Path, metavar="ENTRY.toml")
    parser.add_argument("rate", type=float, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        entry = read(args.entry)
        for rate in args.rate:
            print(f"{args.entry.stem}, rate {rate:g}: {loss(entry, rate):.4f}", flush=True)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
