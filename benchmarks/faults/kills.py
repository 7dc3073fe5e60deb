"""MNIST with a random worker killed every ten seconds, beside the same run left in peace.

    ASYNCDNI_DATA=… python benchmarks/faults/kills.py --results runs/kills.json       # some 25 min
    python benchmarks/faults/kills.py --readme

Both train the same number of samples. A thread of this process sends SIGKILL to a worker drawn at
random; nothing else is done about it. What is reported: how long it is from a kill to the moment at
which the stage learns again, what the stages before the dead one go on doing meanwhile, and the
test accuracy in the end. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in, table

from asyncdni import experiment
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import train
from asyncdni.report.machine import describe_machine

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "kills.json", HERE / "README.md"
FILE = HERE.parents[1] / "launch" / "mnist.toml"

#: Before a kill: the pace that a stage keeps, or does not, while another one is dead.
BEFORE_S = 4.0

# --- a run ---------------------------------------------------------------------------------------


class Watcher:
    """An observer of a run: keeps where the workers are and what they report."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.updates: dict[str, list[tuple[float, int]]] = {}  # (time, so far) by stage
        self.back: list[dict[str, Any]] = []
        self.started = threading.Event()
        self.began_s = 0.0

    def __call__(self, _: object, __: object, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "joined":
            self.pids[values["stage"]] = values["pid"]
        elif kind == "start":
            self.began_s = values["time_s"]
            self.started.set()
        elif kind == "report":
            count = values["values"]["updates"]
            self.updates.setdefault(values["stage"], []).append((values["time_s"], count))
        elif kind == "back":
            self.back.append(dict(values))

    def at(self, stage: str, moment: float) -> float:
        """Updates by then, between two reports in proportion."""
        known = self.updates[stage]
        right = bisect_right(known, (moment, float("inf")))
        if right == 0 or right == len(known):
            return float(known[min(right, len(known) - 1)][1])
        (before, low), (after, high) = known[right - 1], known[right]
        return low + (high - low) * (moment - before) / max(1e-9, after - before)

    def done(self, stage: str, since: float, until: float) -> float:
        """Updates between two moments."""
        return self.at(stage, until) - self.at(stage, since)


class Killer:
    """Kills a worker every `every_s` while the run trains; nobody is killed twice while dead."""

    def __init__(self, watcher: Watcher, every_s: float, seed: int) -> None:
        self.kills: list[tuple[float, str]] = []
        self._watcher = watcher
        self._every_s = every_s
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.started.set()
        self._thread.join()

    def _run(self) -> None:
        self._watcher.started.wait()
        while not self._over.wait(self._every_s):
            stage = self._random.choice(sorted(self._watcher.pids))
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._watcher.pids[stage], signal.SIGKILL)
                self.kills.append((time.monotonic(), stage))


def measure(args: argparse.Namespace, every_s: float | None) -> dict[str, Any]:
    """One run; `every_s` None: in peace."""
    changes = [f"run.epochs={args.epochs}", f"run.evaluate_every={args.epochs / 10}"]
    chosen = experiment.load(args.file, [*changes, *args.set], schedule=args.schedule, seed=0)
    watcher = Watcher()
    killer = Killer(watcher, every_s or float("inf"), seed=0)
    with tempfile.TemporaryDirectory() as folder, killer if every_s else contextlib.nullcontext():
        summary = train(
            chosen, progress=False, observers=[watcher], out=Path(folder) / "run"
        ).summary
    kept = ("train_s", "train_samples", "samples_per_s", "test_accuracy", "history", "restarts")
    return {
        **{key: summary.get(key) for key in kept},
        "stages": {one["name"]: {k: one.get(k) for k in STAGE} for one in summary["stages"]},
        "lost_updates": summary.get("lost_updates"),
        "kills": [describe(watcher, moment, stage) for moment, stage in killer.kills],
    }


STAGE = ("batches", "missed", "updates", "samples")


def describe(watcher: Watcher, moment: float, stage: str) -> dict[str, Any]:
    """What one kill has cost."""
    after = [one["time_s"] for one in watcher.back if one["stage"] == stage]
    back_s = next((time_s for time_s in after if time_s >= moment), None)
    others = [name for name in watcher.updates if name != stage and back_s is not None]
    return {
        "at_s": moment - watcher.began_s,
        "stage": stage,
        "down_s": None if back_s is None else back_s - moment,
        "updates": {name: watcher.done(name, moment, back_s) for name in others},  # meanwhile
        "per_s": {
            name: watcher.done(name, moment - BEFORE_S, moment) / BEFORE_S for name in others
        },
    }


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    args = parsed()
    try:
        if args.readme:
            fill_in(README, tables_of(json.loads(RESULTS.read_text())))
            return
        found = {"machine": describe_machine(), "epochs": args.epochs, "every_s": args.every}
        found["kills"] = measure(args, args.every)
        found["peace"] = measure(args, None)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")
        for content in tables_of(found).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--schedule", default="synthetic")
    parser.add_argument("--epochs", type=int, default=900)
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    return parser.parse_args()


# --- tables --------------------------------------------------------------------------------------


def tables_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {"kills": outcome(found), "kills-stages": by_stage(found)}


def outcome(found: Mapping[str, Any]) -> str:
    peace, killed = found["peace"], found["kills"]
    downs = sorted(one["down_s"] for one in killed["kills"] if one["down_s"] is not None)
    rows = [
        ["workers killed", "0", str(len(killed["kills"]))],
        ["training, s", f"{peace['train_s']:.0f}", f"{killed['train_s']:.0f}"],
        [
            "samples that reached the loss",
            *(f"{one['train_samples']:,}" for one in (peace, killed)),
        ],
        ["samples/s", *(f"{one['samples_per_s']:,.0f}" for one in (peace, killed))],
        ["test accuracy, %", *(f"{100 * one['test_accuracy']:.2f}" for one in (peace, killed))],
        ["updates lost since a snapshot", "0", f"{killed['lost_updates'] or 0:,}"],
    ]
    if downs:
        middle, worst = downs[len(downs) // 2], downs[-1]
        rows.append(["kill to learning again, s", "-", f"{middle:.2f}, {worst:.2f} at worst"])
    return table(["", "in peace", f"a kill every {found['every_s']:g} s"], rows)


def by_stage(found: Mapping[str, Any]) -> str:
    """Of the pace that a stage had just before, how much it keeps while another one is dead."""
    names, kills = list(found["kills"]["stages"]), found["kills"]["kills"]
    rows = []
    for dead in names:
        known = [one for one in kills if one["stage"] == dead and one["down_s"] is not None]
        down_s = sum(one["down_s"] for one in known)
        row = [dead, str(len(known)), f"{down_s / max(1, len(known)):.2f}"]
        for name in names:
            usual = sum(one["per_s"].get(name, 0.0) * one["down_s"] for one in known)
            done = sum(one["updates"].get(name, 0.0) for one in known)
            row.append("-" if name == dead or not usual else f"{100 * done / usual:.0f}")
        rows.append(row)
    return table(["dead", "kills", "down, s each", *(f"{name}, %" for name in names)], rows)


if __name__ == "__main__":
    main()
