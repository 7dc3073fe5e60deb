"""What 200 runs, one after another in one process, leave behind: nothing, whatever ends them.

    python benchmarks/faults/leaks.py                     # some 5 min
    python benchmarks/faults/leaks.py --readme

A small network in three workers trains by `asyncdni.train` again and again: to its end, with a
worker killed on the way (and replaced), stopped by the user, ended by numbers that overflow. After
each run the open files and sockets and the threads of this process, the processes that descend from
it and whatever lies in its folder for temporary files are counted; its memory is noted. See
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in

import asyncdni
from asyncdni.errors import Interrupted, NumericalError
from asyncdni.report.machine import describe_machine
from asyncdni.store.tensors import write_atomically

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "leaks.json", HERE / "README.md"
#: Runs that come first: what is imported and kept once is there after them.
WARM_UP = 8
#: Of a run in which a worker is killed.
KILLED_EPOCHS = 400
#: Marks every process that descends from this one, whoever its parent is by now.
MARK = "ASYNCDNI_LEAKS"
TABLES: Mapping[str, Any] = {
    "data": {"name": "addition", "examples": 400, "test_examples": 20, "batch_size": 10},
    "stages": [
        {"name": "low", "layers": [{"dense": 32}, "relu"]},
        {"name": "middle", "layers": [{"dense": 32}, "relu"]},
        {"name": "top", "layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"},
    ],
    "schedule": {"name": "synthetic"},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "run": {"epochs": 20, "evaluate_every": 20.0},
}


@dataclass(frozen=True)
class Left:
    """What is there between two runs."""

    files: int  # open ones, sockets included
    threads: int
    processes: int  # that descend from this one
    temporary: int  # files and folders
    rss_kib: int


def left(temporary: Path) -> Left:
    status = Path("/proc/self/status").read_text().splitlines()
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    # The folder that is being listed is open meanwhile.
    files, threads = len(os.listdir("/proc/self/fd")) - 1, len(os.listdir("/proc/self/task"))
    return Left(files, threads, len(descendants()), len(list(temporary.rglob("*"))), rss)


def descendants() -> list[int]:
    mark = f"{MARK}={os.getpid()}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark in (folder / "environ").read_bytes() + b"\0"
        except OSError:
            continue  # gone, or somebody else's
        if marked and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


# --- ways to end --------------------------------------------------------------------------------


def to_its_end(folder: Path) -> None:
    asyncdni.train(TABLES, out=folder, progress=False)


def with_a_worker_killed(folder: Path) -> None:
    """Once it trains; another takes its place."""
    pids: dict[str, int] = {}
    rounds: list[str] = []

    def kill(_: object, __: object, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "joined":
            pids[values["stage"]] = values["pid"]
        elif kind == "start" and not rounds:
            rounds.append(kind)
            os.kill(pids["middle"], signal.SIGKILL)

    tables = {**TABLES, "run": {"epochs": KILLED_EPOCHS, "evaluate_every": float(KILLED_EPOCHS)}}
    asyncdni.train(tables, out=folder, observers=[kill], progress=False)
    assert len(pids) == 3 and rounds


def stopped(folder: Path) -> None:
    """By Ctrl-C, in the midst of training."""

    def stop(_: object, __: object, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "start":
            os.kill(os.getpid(), signal.SIGINT)

    tables = {**TABLES, "run": {"epochs": 10**6, "evaluate_every": 1e6}}
    try:
        asyncdni.train(tables, out=folder, observers=[stop], progress=False)
    except KeyboardInterrupt as stop:
        if isinstance(stop.__cause__, Interrupted):
            return
        raise
    raise AssertionError("the stop has not ended the run")


def with_overflow(folder: Path) -> None:
    tables = {**TABLES, "optimizer": {"name": "sgd", "learning_rate": 1e25}}
    try:
        asyncdni.train(tables, out=folder, progress=False)
    except NumericalError:
        return
    raise AssertionError("numbers that overflow have not ended the run")


WAYS: Mapping[str, Callable[[Path], None]] = {
    "to its end": to_its_end,
    "a worker killed and replaced": with_a_worker_killed,
    "stopped by the user": stopped,
    "ended by an overflow": with_overflow,
}


def run_all(runs: int) -> list[dict[str, Any]]:
    """One entry a run: how it ended, and what was there after it."""
    with tempfile.TemporaryDirectory(prefix="leaks") as name:
        before = tempfile.tempdir
        tempfile.tempdir = os.environ["TMPDIR"] = name
        os.environ[MARK] = str(os.getpid())
        try:
            return [_after_one(number, Path(name)) for number in range(runs)]
        finally:
            tempfile.tempdir = before
            del os.environ["TMPDIR"], os.environ[MARK]


def _after_one(number: int, temporary: Path) -> dict[str, Any]:
    way = list(WAYS)[number % len(WAYS)]
    folder = temporary / "run"
    WAYS[way](folder)
    shutil.rmtree(folder)
    found = {"way": way, **asdict(left(temporary))}
    print(json.dumps(found), flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: what there is more of at the end than after the warm-up."""
    first, last = found[: WARM_UP or 1][-1], found[-1]
    names = {"files": "open files", "threads": "threads", "processes": "processes"}
    names["temporary"] = "temporary files"
    head = ["", f"after {min(WARM_UP, len(found))} runs", f"after {len(found)}", "most"]
    rows = [head, ["---", "--:", "--:", "--:"]]
    for key, title in names.items():
        most = max(one[key] for one in found[WARM_UP - 1 :])
        rows.append([title, f"{first[key]}", f"{last[key]}", f"{most}"])
    mib = [f"{one['rss_kib'] / 1024:.1f}" for one in (first, last)]
    most = max(one["rss_kib"] for one in found[WARM_UP - 1 :]) / 1024
    rows.append(["resident memory, MiB", *mib, f"{most:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    args = parser.parse_args()
    if not args.readme:
        kept = {"machine": describe_machine(), "runs": run_all(args.runs)}
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.results, (json.dumps(kept, indent=1) + "\n").encode())
        print(table(kept["runs"]))
        return
    fill_in(README, {"leaks": table(json.loads(args.results.read_text())["runs"])})


if __name__ == "__main__":
    main()
