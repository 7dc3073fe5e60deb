"""Simulated runs in which anything may go wrong: tens of thousands, over all schedules.

    python benchmarks/faults/simulated.py --runs 20000
    python benchmarks/faults/simulated.py --runs 5000 --more      # on top of what the file has

Each run draws a network, a schedule with its options, a split, links, checkpoints and faults of any
kind from its seed: the draws of tests/random_runs.py. The real worker and coordinator are driven
in virtual time, every invariant is checked after every event, and at the end every sample must be
accounted for. A run that fails or hangs is printed with the one command that replays it (its
experiment is kept beside the results), and makes the exit status 1. See README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from random_runs import SCHEDULES, assert_survived, draw_faulty_run
from sweep import fill_in

from asyncdni.drivers.virtual.simulation import Result
from asyncdni.errors import AsyncDNIError
from asyncdni.report.machine import describe_machine
from asyncdni.store.tensors import write_atomically

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "simulated.json", HERE / "README.md"
#: Runs that a process does before it says how they went.
_AT_A_TIME = 60
#: Of the seeds one in so many runs through the codec of the wire.
_CODEC_EVERY = 10


@dataclass
class Totals:
    """Sums over the runs of one schedule."""

    runs: int = 0
    events: int = 0
    virtual_s: float = 0.0
    ended_by_disk: int = 0  # full, in the middle of a checkpoint: no run survives that
    faults: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    rounds: int = 0
    standstills: int = 0
    resumed: int = 0
    lost_updates: int = 0
    failures: list[str] = field(default_factory=list)  # what, and the command

    def add(self, result: Result) -> None:
        self.runs += 1
        self.events += result.events
        self.virtual_s += result.virtual_s
        self.ended_by_disk += result.failure is not None
        self.faults.update(result.fault_counts)
        kinds = Counter(kind for kind, _ in result.records)
        self.restarts += kinds["launch"]
        self.rounds += kinds["round"]
        self.standstills += kinds["stuck"]
        self.resumed += max(0, kinds["start"] - 1)
        backs = [values for kind, values in result.records if kind == "back"]
        self.lost_updates += sum(one["lost_updates"] for one in backs if not one["again"])

    def include(self, other: Totals) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def do(schedule: str, seeds: range, folder: Path) -> Totals:
    """Runs of one schedule, in a process of its own."""
    totals = Totals()
    for seed in seeds:
        run = draw_faulty_run(seed, (schedule,))
        try:
            result = run.simulate(codec=seed % _CODEC_EVERY == 0)
            assert_survived(run, result)
        except (AsyncDNIError, AssertionError) as error:
            totals.runs += 1
            path = folder / f"failed-{schedule}-{seed}.toml"
            totals.failures.append(f"{error}\nreplay: {run.command(path)}")
        else:
            totals.add(result)
    return totals


def tasks(first: int, runs: int) -> Iterator[tuple[str, range]]:
    """About as many runs of each schedule."""
    each = -(-runs // len(SCHEDULES))
    for start in range(first, first + each, _AT_A_TIME):
        for name in SCHEDULES:
            yield name, range(start, min(start + _AT_A_TIME, first + each))


def run_all(first: int, runs: int, jobs: int, folder: Path) -> dict[str, Totals]:
    totals = {name: Totals() for name in SCHEDULES}
    context = multiprocessing.get_context("spawn")
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = {pool.submit(do, name, seeds, folder): name for name, seeds in tasks(first, runs)}
        for done in as_completed(waiting):
            found = done.result()
            totals[waiting[done]].include(found)
            for failure in found.failures:
                print(f"FAILED {failure}", flush=True)
            count = sum(one.runs for one in totals.values())
            print(f"\r{count:,} runs, {time.monotonic() - began:.0f} s", end="", flush=True)
    print()
    return totals


def table(totals: dict[str, Totals]) -> str:
    """Markdown, a line a schedule and one for all."""
    head = ["schedule", "runs", "events", "faults", "processes started again", "rounds"]
    head += ["coordinators resumed", "standstills", "updates lost", "ended by a full disk"]
    whole = Totals()
    for one in totals.values():
        whole.include(one)
    rows = [[*head, "failures"], ["---"] + ["---:"] * len(head)]
    for name, one in [*totals.items(), ("all", whole)]:
        numbers = [one.runs, one.events, one.faults.total(), one.restarts, one.rounds]
        numbers += [one.resumed, one.standstills, one.lost_updates, one.ended_by_disk]
        rows.append([name, *(f"{n:,}" for n in [*numbers, len(one.failures)])])
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(whole.faults.items()))
    hours = f"Virtual time: {whole.virtual_s / 3600:.1f} hours. Faults: {kinds}."
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{hours}"


def _totals(kept: dict[str, Any]) -> Totals:
    return Totals(**{**kept, "faults": Counter(kept["faults"])})


def _with_machine(kept: dict[str, Any]) -> str:
    totals = {name: _totals(one) for name, one in kept["schedules"].items()}
    events, machine = sum(one.events for one in totals.values()), kept["machine"]
    took = f"{kept['wall_s'] / 60:.0f} minutes on {machine['cores']} cores ({machine['cpu']})"
    pace = f"{events / kept['wall_s']:,.0f} events a second with every check"
    return f"{table(totals)} It took {took}, {kept['jobs']} runs at a time: {pace}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1_000_000, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--more", action="store_true", help="later seeds, added to the results")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    args = parser.parse_args()
    if args.readme:
        kept = json.loads(args.results.read_text())
        fill_in(README, {"simulated": _with_machine(kept)})
        return 0
    args.results.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(args.results.read_text()) if args.more else None
    began = time.monotonic()
    first = args.first if before is None else before["next_seed"]
    totals = run_all(first, args.runs, args.jobs, args.results.parent)
    seconds = time.monotonic() - began
    if before is not None:
        seconds += before["wall_s"]
        for name, earlier in before["schedules"].items():
            totals[name].include(_totals(earlier))
    print(table(totals))
    kept = {
        "machine": describe_machine(),
        "next_seed": first + -(-args.runs // len(SCHEDULES)),
        "jobs": args.jobs,
        "wall_s": round(seconds, 1),
        "schedules": {name: vars(one) for name, one in totals.items()},
    }
    write_atomically(args.results, (json.dumps(kept, indent=1) + "\n").encode())
    return 1 if any(one.failures for one in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
