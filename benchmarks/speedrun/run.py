"""Train an entry of the speedrun, eight stages in eight processes, and keep what it took.

    ASYNCDNI_DATA=… python benchmarks/speedrun/run.py benchmarks/speedrun/entries/readout.toml \
        --against benchmarks/speedrun/entries/1f1b.toml --results runs/readout.json
    python benchmarks/speedrun/check.py runs/readout.json

Each seed trains the entry and, right after it, the one that it is to beat. A run is written as it
ends, and with --resume the file's are left out. Needs PyTorch. The rules are in README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "launch" / "torch")]

from rules import Table, fixed_digest, read, tables_of  # noqa: E402
from sweep import Job, Runs  # noqa: E402

from asyncdni import experiment  # noqa: E402
from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.launch.train import train  # noqa: E402
from asyncdni.report.load import Load, watched  # noqa: E402
from asyncdni.report.machine import describe_machine  # noqa: E402

#: Of a run's summary, what is kept.
KEPT = "train_s", "startup_s", "cpu_s", "train_samples", "workers", "restarts"


def jobs(entries: Sequence[Path], seeds: int) -> list[tuple[Job, Table]]:
    """Every run with its entry, seed by seed, entries in turn."""
    read_all = {path.stem: read(path) for path in entries}
    return [
        (Job(name, seed, tables_of(entry)), entry)
        for seed in range(seeds)
        for name, entry in read_all.items()
    ]


def measure(job: Job, entry: Table) -> dict[str, Any]:
    """Train once. Whatever ends a run early is raised: no run may be left out."""
    tables = json.loads(json.dumps(dict(job.tables)))
    tables["run"]["seed"] = job.seed
    loads: list[Load] = []
    with watched(loads):
        chosen = experiment.parse(tables)
        summary = train(chosen, progress=False, allow_import=["models"]).summary
    return {
        "key": job.key,
        "digest": job.digest,
        "fixed": fixed_digest(),
        "text": summary["data"]["checksums"]["text"],
        "date": datetime.date.today().isoformat(),
        "entry": entry,
        "loss": summary["history"][-1]["loss"],
        **{name: summary[name] for name in KEPT},
        "load": dataclasses.asdict(loads[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entry", type=Path, metavar="ENTRY.toml")
    parser.add_argument("--against", type=Path, metavar="ENTRY.toml", help="the one to beat")
    parser.add_argument("--seeds", type=int, default=4, help="0, 1, 2, …")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    args = parser.parse_args()
    try:
        entries = [args.entry, *([args.against] if args.against else [])]
        runs, plan = Runs(args.results), jobs(entries, args.seeds)
        if runs.found and not args.resume:
            raise AsyncDNIError(f"{args.results} has runs: --resume goes on with it")
        runs.machine = describe_machine()
        for job, entry in plan:
            if runs.holds(job):
                continue
            run = runs.found[job.key] = measure(job, entry)
            runs.wall_s += run["train_s"] + run["startup_s"]
            runs.save([one.key for one, _ in plan])
            print(f"{job.key}: loss {run['loss']:.4f} in {run['train_s']:.1f} s", file=sys.stderr)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
