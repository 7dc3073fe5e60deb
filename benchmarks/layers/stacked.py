"""Stacked LSTMs over three workers: samples a second of `synthetic`, `locked`, and one process.

Of `locked` twice: as it is, and with each stage's backward whole (`split_backward = false`).

    ASYNCDNI_DATA=… python benchmarks/layers/stacked.py --out FILE.json [--seeds 5]    # some 3 min
    python benchmarks/layers/stacked.py --readme

The network of stacked.toml on the first part of Shakespeare's plays, one BLAS thread a worker.
Every seed runs all rows, in an order that rotates from seed to seed; ratios are paired by seed.
Beside each rate stands its ceiling: what the CPU times of that run's own ops allow on so many
cores, by the balance of the stages and by what locking makes wait. The second command fills in
README.md from the results that are kept here. See README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))

from sweep import fill_in, table  # noqa: E402
from timed import plus_minus, verdict, with_interval  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.config import Text  # noqa: E402
from asyncdni.data import text  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.launch.compare import Entry, order, plan_runs, run_entry  # noqa: E402
from asyncdni.report.breakdown import ceiling_samples_per_s  # noqa: E402
from asyncdni.report.machine import cores, describe_machine  # noqa: E402
from asyncdni.report.statistics import Comparison, Result  # noqa: E402
from asyncdni.store.tensors import write_atomically  # noqa: E402

FILE = HERE / "stacked.toml"
#: Kept results, by the name of their marker in README.md.
KEPT = {
    "stacked-avx2": HERE / "results" / "stacked-avx2.json",
    "stacked-avx2-5": HERE / "results" / "stacked-avx2-5.json",
    "stacked-avx512": HERE / "results" / "stacked-avx512.json",
}
SINGLE, PLAIN = "single", "plain"
#: In the order of the tables, and what they are called there.
ROWS = {
    SINGLE: "locked, one process",
    PLAIN: "locked, three workers, backward whole",
    "locked": "locked, three workers",
    "synthetic": "synthetic, three workers",
}
#: Rates held against each other, and what is claimed of them.
COMPARED = (("synthetic", "locked", 1.8), ("synthetic", PLAIN, None), ("locked", SINGLE, None))
#: `synthetic` has no such option, so it stands apart.
WHOLE = "schedule.split_backward=false"
TEST_PART = 0.05
#: Of a run's summary and of each stage, what is kept: `ceiling_samples_per_s` needs most of it.
SUMMARY = (
    *("schedule", "samples_per_s", "train_samples", "train_s", "batch_size", "workers", "threads"),
    *("cpu_s", "test_loss"),
)
STAGE = ("name", "batches", "ops")


def main() -> None:
    args = parsed()
    try:
        if args.readme:
            kept = {name: json.loads(path.read_text()) for name, path in known().items()}
            fill_in(HERE / "README.md", {name: tables(found) for name, found in kept.items()})
            return
        found = measured(args)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    print(tables(found))
    if args.out:
        write_atomically(args.out, (json.dumps(found) + "\n").encode())


def known() -> dict[str, Path]:
    return {name: path for name, path in KEPT.items() if path.is_file()}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all runs")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, 2, …")
    parser.add_argument("--windows", type=int, default=200, help="training batches of a run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    return parser.parse_args()


# --- runs ----------------------------------------------------------------------------------------


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All runs, slimmed down. Raises what reading the text and training raise."""
    with tempfile.TemporaryDirectory(prefix="stacked-") as folder:
        part = Path(folder) / "part.txt"
        part.write_text(beginning(args), encoding="utf-8")
        changes = [*args.set, f"data.path={part}", f"data.test_part={TEST_PART}"]
        runs = [run(entry, Path(folder)) for entry in plan(changes, args.seeds)]
    return {"machine": describe_machine(), "settings": args.set, "runs": runs}


def plan(changes: list[str], seeds: int) -> list[Entry]:
    """All rows seed by seed, in an order that rotates."""
    # On one core `single` is one process with one BLAS thread, as each worker has.
    entries, whole = (
        plan_runs(FILE, found, ["locked", "synthetic"], seeds, cores=1)
        for found in (changes, [*changes, WHOLE])
    )
    entries += [replace(one, name=PLAIN) for one in whole if one.name == "locked"]
    known = {(one.name, one.seed): one for one in entries}
    return [known[pair] for pair in order(list(ROWS), sorted({one.seed for one in entries}))]


def beginning(args: argparse.Namespace) -> str:
    """As much of the plays as makes so many windows; before it every character once, so that the
    vocabulary is the whole one."""
    data = experiment.load(FILE, args.set).data
    assert isinstance(data, Text)
    whole = text.read(text.find(data.path))
    train = (args.windows * data.batch_size + 1) * data.window
    characters = "".join(sorted(set(whole)))
    return (characters + whole)[: math.ceil(train / (1 - TEST_PART))]


def run(entry: Entry, folder: Path) -> dict[str, Any]:
    print(entry.title, file=sys.stderr, flush=True)
    summary = run_entry(entry, folder).summary
    stages = [{key: stage[key] for key in STAGE} for stage in summary["stages"]]
    slim = {**{key: summary[key] for key in SUMMARY}, "stages": stages}
    most = ceiling_samples_per_s(slim, entry.producers, cores())
    return {"name": entry.name, "seed": entry.seed, "summary": {**slim, "ceiling": most}}


# --- tables --------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> str:
    """Rates, and what is claimed of them, in Markdown."""
    results = [Result(one["name"], one["seed"], one["summary"]) for one in found["runs"]]
    held = Comparison(tuple(ROWS), tuple(results))
    machine = found["machine"]
    blas = ", ".join(f"{b['internal_api']} {b['architecture']}" for b in machine["blas"])
    seeds = len({one.seed for one in results})
    head = f"{machine['cores']} cores ({machine['cpu']}, NumPy {machine['numpy']} with {blas}), "
    return f"{head}{seeds} seeds.\n\n{rates(held)}\n\n{claims(held)}\n"


def rates(held: Comparison) -> str:
    rows = []
    for name, called in ROWS.items():
        rows.append(
            [
                called,
                plus_minus(held.estimate(name, "samples_per_s")),
                plus_minus(held.estimate(name, ceiling)),
                plus_minus(held.estimate(name, work_ms), 1),
                plus_minus(held.estimate(name, slowest_ms), 1),
                plus_minus(held.estimate(name, bits), 2),
            ]
        )
    head = ["", "samples/s", "ceiling", "work a batch, ms", "slowest stage, ms"]
    return table([*head, "test, bits a character"], rows)


def claims(held: Comparison) -> str:
    """Ratios of rates, and of their ceilings: what balance and locking alone would give."""
    rows = []
    for above, below, least in COMPARED:
        rate = held.ratio(above, below)
        rows.append(
            [
                f"{ROWS[above]} / {ROWS[below]}",
                "" if least is None else f"{least:g}",
                with_interval(rate),
                "" if least is None else verdict(rate, least),
                with_interval(held.ratio(above, below, ceiling)),
            ]
        )
    return table(["samples/s", "target, at least", "measured", "", "of the ceilings"], rows)


def ceiling(summary: Mapping[str, Any]) -> float | None:
    """Samples a second; of one process, whose ops follow each other, what its work allows."""
    if summary["workers"] > 1:
        most: float | None = summary["ceiling"]
        return most
    return 1e3 * float(summary["batch_size"]) / work_ms(summary)


def bits(summary: Mapping[str, Any]) -> float:
    """A character of the test part, from a mean loss in nats."""
    return float(summary["test_loss"]) / math.log(2)


def work_ms(summary: Mapping[str, Any]) -> float:
    """CPU time of all ops on a batch."""
    return sum(stage_ms(summary))


def slowest_ms(summary: Mapping[str, Any]) -> float:
    return max(stage_ms(summary))


def stage_ms(summary: Mapping[str, Any]) -> list[float]:
    """Of each worker, on a batch."""
    batches = summary["train_samples"] / summary["batch_size"]
    return [
        1e3 * sum(op["cpu_s"] for op in stage["ops"].values()) / batches
        for stage in summary["stages"]
    ]


if __name__ == "__main__":
    main()
