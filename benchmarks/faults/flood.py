"""A run under a flood of nonsense at every one of its sockets, beside the same run left in peace.

    ASYNCDNI_DATA=… python benchmarks/faults/flood.py --results runs/flood.json       # some 15 min
    python benchmarks/faults/flood.py --readme

Random bytes and damaged messages (`nonsense.py`) go to the coordinator's socket and to the data
socket of every worker, as fast as they are taken, while the run trains. What is reported: how many
were sent, how many were thrown away by name, the memory of all processes before the flood and at
most during it, and whether the run has learned the same: to the last bit under `locked`, the same
test accuracy under the others. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

import zmq
from by_hand import Run, free_port, started
from nonsense import make_nonsense, templates
from sweep import fill_in, table

from asyncdni.errors import AsyncDNIError
from asyncdni.report.machine import describe_machine

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "flood.json", HERE / "README.md"
FILE = HERE.parents[1] / "launch" / "mnist.toml"
BURST = 50  # messages to one socket at a time
LOOK_EVERY_S = 0.5

# --- where to send -------------------------------------------------------------------------------


def sockets_of(run: Run, address: str) -> dict[str, str]:
    """Addresses by process. A worker's data socket is its one that listens."""
    found = {"coordinator": address}
    for name, process in run.processes.items():
        if name != "coordinator":
            found[name] = _listening(process.pid, Path(address.removeprefix("ipc://")).parent)
    return found


def _listening(pid: int, folder: Path) -> str:
    """The tcp port, or the socket file in `folder`, that a process listens at."""
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(os.readlink(link))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in held:
            return f"tcp://127.0.0.1:{int(words[1].rpartition(':')[2], 16)}"
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        named = len(words) == 8 and words[7].startswith(f"{folder}/")
        if named and words[5] == "01" and f"socket:[{words[6]}]" in held:
            return f"ipc://{words[7]}"
    raise AsyncDNIError(f"process {pid} listens nowhere")


# --- the flood -----------------------------------------------------------------------------------


@dataclass
class Flood:
    """What was sent, and what it did to memory (KiB by process)."""

    sent: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    before: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    def look(self, run: Run) -> None:
        self.after = run.rss_kib()
        for name, kib in self.after.items():
            self.most[name] = max(kib, self.most.get(name, 0))


def pour(run: Run, address: str, messages: int, seed: int) -> Flood:
    """Send until `messages` have been taken, or the run has ended."""
    flood = Flood(before=run.rss_kib())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    targets = {}
    for name, where in sockets_of(run, address).items():
        socket = context.socket(zmq.DEALER if name == "coordinator" else zmq.PUSH)
        socket.connect(where)
        targets[name] = socket
        flood.sent[name] = 0
    source = make_nonsense(seed, templates([n for n in targets if n != "coordinator"]))
    began, look_at = time.monotonic(), 0.0
    while sum(flood.sent.values()) < messages and run.running():
        for name, socket in targets.items():
            for _ in range(BURST):
                if not socket.poll(0, zmq.POLLOUT):  # its queue is full: the receiver is busy
                    break
                socket.send_multipart(next(source), zmq.NOBLOCK)
                flood.sent[name] += 1
        if time.monotonic() >= look_at:
            flood.look(run)
            look_at = time.monotonic() + LOOK_EVERY_S
        if not any(socket.poll(0, zmq.POLLOUT) for socket in targets.values()):
            time.sleep(0.001)
    flood.seconds = time.monotonic() - began
    context.destroy(linger=1000)
    flood.look(run)
    return flood


# --- runs ----------------------------------------------------------------------------------------


def train(args: argparse.Namespace, schedule: str, wire: str, *, flooded: bool) -> dict[str, Any]:
    """One run; with what it came to, and what the flood did."""
    changes = [f"run.epochs={args.epochs}", f"run.evaluate_every={float(args.epochs)}"]
    changes += ["recovery.restarts=1000"] if flooded else []
    with tempfile.TemporaryDirectory() as place:
        sockets = Path(place, "sockets")
        sockets.mkdir(mode=0o700)
        address = f"ipc://{sockets}/coordinator"
        if wire == "tcp":
            address = f"tcp://127.0.0.1:{free_port()}"
        folder = Path(place, "run")
        with started(
            args.file, changes, schedule=schedule, seed=0, address=address, folder=folder
        ) as run:
            run.await_start()
            time.sleep(args.settle)
            flood = pour(run, address, args.messages, seed=1) if flooded else Flood()
            still_on = run.running()
            summary = run.summary()
            reports = {one["stage"]: one["values"] for one in run.records("report")}
            kinds = {kind: len(run.records(kind)) for kind in ("rejected", "accused", "lost")}
        paths = sorted((folder / "final").glob("*.safetensors"))
        weights = {path.name: path.read_bytes().hex() for path in paths}
    if flooded and not still_on:
        raise AsyncDNIError("the run has ended before the flood: raise --epochs")
    rejected = {name: values.get("rejected_messages") for name, values in reports.items()}
    return {
        **{key: summary[key] for key in ("samples_per_s", "train_s", "test_accuracy")},
        **{"weights": weights, "rejected": rejected, "records": kinds, "flood": vars(flood)},
    }


def compare(args: argparse.Namespace, schedule: str, wire: str) -> dict[str, Any]:
    peace = train(args, schedule, wire, flooded=False)
    war = train(args, schedule, wire, flooded=True)
    same = peace.pop("weights") == war.pop("weights")
    return {"schedule": schedule, "wire": wire, "same_weights": same, "peace": peace, "war": war}


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Those that the file has not; it is written after each."""
    document: dict[str, Any] = {"machine": describe_machine(), "runs": []}
    if args.resume and args.results.exists():
        document["runs"] = json.loads(args.results.read_text())["runs"]
    runs: list[dict[str, Any]] = document["runs"]
    for schedule in args.schedules:
        for wire in args.wires:
            if any((run["schedule"], run["wire"]) == (schedule, wire) for run in runs):
                continue
            runs.append(compare(args, schedule, wire))
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(document, indent=1) + "\n")
    return runs


# --- what is shown -------------------------------------------------------------------------------


def tables_of(runs: list[dict[str, Any]]) -> Mapping[str, str]:
    """The table of README.md by its name there."""
    rows = []
    for run in runs:
        flood, sent = run["war"]["flood"], sum(run["war"]["flood"]["sent"].values())
        growth = max(flood["most"][name] - kib for name, kib in flood["before"].items())
        rows.append(
            [
                *(run["schedule"], run["wire"], f"{sent:,}", f"{sent / flood['seconds']:,.0f}"),
                f"{sum(filter(None, run['war']['rejected'].values())):,}",
                f"{growth / 1024:.1f}",
                str(run["war"]["records"]["lost"]),
                f"{100 * run['peace']['test_accuracy']:.2f} %",
                f"{100 * run['war']['test_accuracy']:.2f} %",
                _same(run),
            ]
        )
    head = ["schedule", "wire", "messages", "a second", "thrown away by workers"]
    head += ["most growth of a process, MiB", "workers lost", "accuracy, in peace", "flooded"]
    return {"flood": table([*head, "same weights"], rows)}


def _same(run: Mapping[str, Any]) -> str:
    """Whether the weights are equal to the last bit, where they are between any two runs."""
    if run["schedule"] in ("locked", "gpipe"):
        return "yes" if run["same_weights"] else "no"
    return "asynchronous"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument(
        "--file", type=Path, default=FILE, metavar="FILE.toml", help="what to train"
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="of training before memory is looked at for the first time (default: 3)",
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--schedules", nargs="+", default=["locked", "synthetic"], metavar="NAME")
    parser.add_argument("--wires", nargs="+", default=["ipc", "tcp"], choices=("ipc", "tcp"))
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    args = parser.parse_args()
    try:
        if args.readme:
            fill_in(README, tables_of(json.loads(args.results.read_text())["runs"]))
            return
        runs = measure_all(args)
        print(tables_of(runs)["flood"])
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
