"""Runs over several machines that die, come back and become slow; agents of this host stand for
them.

    python benchmarks/clusters/machines.py kills --results runs/kills.json    # some 10 min
    python benchmarks/clusters/machines.py nodes --results runs/nodes.json    # some 20 min
    python benchmarks/clusters/machines.py start --results runs/start.json    # 1 min
    python benchmarks/clusters/machines.py slow --results runs/slow.json      # some 5 min

Each prints what it has measured as JSON, and writes it to --results if that is given. `--smoke`
makes it as short as it can be, to see that it works. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asyncdni.report.machine import describe_machine

FILE = Path(__file__).parents[2] / "launch" / "digits.toml"
#: The worker that has the loss, in every network here.
LOSS = "classifier"
#: Ends a benchmark in which nothing moves any more.
PATIENCE_S = 120.0
_LOOK_EVERY_S = 0.02
#: The period in which a slowed machine is stopped for a part of the time.
_PERIOD_S = 0.03

# --- machines ------------------------------------------------------------------------------------


class Machines:
    """The agents of one run, each a process of this host that can be killed and started again."""

    def __init__(self, folder: Path, file: Path, ranks: int, words: Sequence[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.run = folder / "run"
        self.ranks = ranks
        self._folder = folder
        self._command = [sys.executable, "-m", "asyncdni", "run", str(file), "--out", str(self.run)]
        self._command += ["--quiet", *words]
        self._place = {
            "ASYNCDNI_WORLD_SIZE": str(ranks),
            "ASYNCDNI_COORDINATOR": f"tcp://127.0.0.1:{port}",
        }
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._lines: list[dict[str, Any]] = []
        self._read = 0  # bytes of the records
        for rank in range(ranks):
            self.start(rank)

    def start(self, rank: int) -> None:
        """Start an agent, as an engine would once it has died; rank 0 coordinates as well."""
        environment = {**os.environ, **self._place, "ASYNCDNI_RANK": str(rank)}
        with open(self._folder / f"rank{rank}.log", "ab") as log:
            self._agents[rank] = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, rank: int) -> None:
        """Kill an agent by SIGKILL; its workers leave by themselves."""
        self._agents[rank].kill()
        self._agents[rank].wait()

    def ask_to_stop(self) -> None:
        """Have the run stop in good order."""
        self._agents[0].send_signal(signal.SIGUSR1)

    def ended(self) -> bool:
        """Whether the run is over, well or not."""
        return self._agents[0].poll() is not None

    def codes(self) -> list[int]:
        """Wait for all agents; their exit codes."""
        return [one.wait(PATIENCE_S) for one in self._agents.values()]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What the coordinator has recorded of one kind so far."""
        with suppress(FileNotFoundError), open(self.run / "metrics.jsonl", "rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
            self._read += len(whole[0]) + len(whole[1])
            self._lines += [json.loads(line) for line in whole[0].splitlines()]
        return [one for one in self._lines if one["kind"] == kind]

    def until(self, found: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for something; exits with the agents' last words where it does not come."""
        deadline = time.monotonic() + patience_s
        while not found():
            if time.monotonic() > deadline or self.ended():
                logs = [path.read_text()[-300:] for path in sorted(self._folder.glob("rank*.log"))]
                sys.exit(f"error: waited for {what} in vain: {logs}")
            time.sleep(_LOOK_EVERY_S)

    def pids(self) -> dict[str, int]:
        """The process of each worker, or its last one."""
        return {one["stage"]: one["pid"] for one in self.records("joined")}

    def workers(self, rank: int) -> dict[str, int]:
        """Worker -> its process, of those that live on a rank."""
        parent = self._agents[rank].pid
        return {name: pid for name, pid in self.pids().items() if _parent(pid) == parent}

    def batches(self) -> int:
        """Training batches that have reached the loss, by the last report of its worker."""
        found = [one for one in self.records("report") if one["stage"] == LOSS]
        with suppress(FileNotFoundError):  # where the newest ones are that the records leave out
            for line in (self.run / "reports.jsonl").read_text().splitlines():
                with suppress(ValueError):  # torn: it is being written
                    found.append(json.loads(line))
        counts = [one["values"]["batches"] for one in found if one.get("stage") == LOSS]
        return max(counts, default=0)

    def summary(self) -> dict[str, Any]:
        """That of the finished run."""
        found: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return found

    def close(self) -> None:
        """Kill whatever is left."""
        for agent in self._agents.values():
            agent.kill()
            agent.wait()


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@contextmanager
def machines(ranks: int, words: Sequence[str], file: Path = FILE) -> Iterator[Machines]:
    """A run over so many machines, in a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="machines-", ignore_cleanup_errors=True) as name:
        running = Machines(Path(name), file, ranks, words)
        try:
            yield running
        finally:
            running.close()


def changes(**values: object) -> list[str]:
    """Flags for changes of the experiment: run__epochs=3 is run.epochs=3."""
    return [f"--set={name.replace('__', '.')}={value}" for name, value in values.items()]


# --- kills ---------------------------------------------------------------------------------------


def _kill_stage(running: Machines, draw: random.Random) -> list[str]:
    stage, pid = draw.choice(sorted(running.pids().items()))
    os.kill(pid, signal.SIGKILL)
    return [stage]


def _kill_agent(running: Machines, draw: random.Random) -> list[str]:
    rank = draw.randrange(1, running.ranks)
    stages = list(running.workers(rank))
    running.kill(rank)
    running.start(rank)  # the engine's part
    return stages


#: What is killed -> kills one, and returns the workers that have to come back. A new kind needs a
#: line here.
KINDS: dict[str, Callable[[Machines, random.Random], list[str]]] = {
    "stage": _kill_stage,
    "agent": _kill_agent,
}


def kills(args: argparse.Namespace) -> dict[str, Any]:
    """Kill stages and agents in turn, each once the one before is back; compare with peace."""
    count, epochs = (2, 2000) if args.smoke else (args.kills, args.epochs)
    words = ["--schedule", "synthetic", "--place", "1,2,1"]
    words += changes(run__epochs=epochs, run__evaluate_every=epochs)
    draw, downs = random.Random(args.seed), {kind: list[float]() for kind in KINDS}
    with machines(3, words) as running:
        running.until(running.batches, "the first batches")
        for index in range(count):
            kind = list(KINDS)[index % len(KINDS)]
            known, killed_s = len(running.records("back")), time.monotonic()
            stages = KINDS[kind](running, draw)

            def back(known: int = known, awaited: Sequence[str] = stages) -> bool:
                here = {one["stage"] for one in running.records("back")[known:]}
                return set(awaited) <= here

            running.until(back, f"{', '.join(stages)} after the death of a {kind}")
            downs[kind].append(time.monotonic() - killed_s)
            time.sleep(0.5 if args.smoke else args.every)
        outcome = _ended(running, stop=args.smoke)
    found = {"kills": count, "down_s": {kind: _times(one) for kind, one in downs.items()}}
    if args.smoke:
        return found
    with machines(3, words) as running:
        peace = _ended(running)
    return {**found, "accuracy": outcome["test_accuracy"], "in_peace": peace["test_accuracy"]}


def _ended(running: Machines, *, stop: bool = False) -> dict[str, Any]:
    """The summary of the run at its end; empty if it is to `stop` now."""
    if stop:
        running.ask_to_stop()
    codes = running.codes()
    wrong = [code for code in codes if code != (128 + signal.SIGUSR1 if stop else 0)]
    if wrong:
        sys.exit(f"error: agents have left with {codes}")
    return {} if stop else running.summary()


def _times(found: Sequence[float]) -> dict[str, float]:
    if not found:
        return {}
    return {"median": round(statistics.median(found), 2), "most": round(max(found), 2)}


# --- goodput -------------------------------------------------------------------------------------


def nodes(args: argparse.Namespace) -> dict[str, Any]:
    """Lose a machine every so often, for good until it is started again half that time later."""
    every_s, lasts_s = (6.0, 8.0) if args.smoke else (args.every_s, args.lasts_s)
    found: dict[str, Any] = {}
    for schedule in ("synthetic",) if args.smoke else ("synthetic", "locked"):
        rates = {}
        for disturbed in (False, True):
            words = ["--schedule", schedule, "--place", "1,2,1"]
            words += changes(
                run__epochs=10**6, run__evaluate_every=10**6, elastic__away_s=args.away_s
            )
            with machines(3, words) as running:
                running.until(running.batches, "the first batches")
                rates[disturbed] = _goodput(running, every_s if disturbed else None, lasts_s)
                _ended(running, stop=True)
        share = rates[True] / rates[False]
        found[schedule] = {"undisturbed": rates[False], "disturbed": rates[True], "share": share}
    return found


def _goodput(running: Machines, every_s: float | None, lasts_s: float) -> float:
    """Batches a second over `lasts_s`, in which machines are lost in turn."""
    begun_s, before, lost = time.monotonic(), running.batches(), 0
    while (left_s := begun_s + lasts_s - time.monotonic()) > 0:
        if every_s is None:
            time.sleep(left_s)
            continue
        rank = 1 + lost % (running.ranks - 1)
        lost += 1
        running.kill(rank)
        time.sleep(every_s / 2)
        running.start(rank)
        time.sleep(every_s / 2)
    return (running.batches() - before) / (time.monotonic() - begun_s)


# --- a start of many -----------------------------------------------------------------------------

_STAGE = '[[stages]]\nname = "h{index}"\nlayers = [{{ dense = 8 }}, "relu"]\n'
_MANY = """\
[data]
name = "digits"
batch_size = 64
{stages}
[[stages]]
name = "classifier"
layers = [{{ dense = 10 }}]
loss = "cross_entropy"
[schedule]
name = "synthetic"
[run]
epochs = 1
[limits]
startup_s = 300.0
"""


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Start many agents of many stages, and have all leave."""
    agents, each = (2, 2) if args.smoke else (args.agents, args.stages)
    stages = "".join(_STAGE.format(index=index) for index in range(1, agents * each))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "many.toml"
        file.write_text(_MANY.format(stages=stages))
        begun_s = time.monotonic()
        place = ",".join([str(each)] * agents)
        words = ["--place", place, *changes(run__epochs=10**6, run__evaluate_every=10**6)]
        with machines(agents, words, file) as running:
            running.until(lambda: running.records("start"), "the start", 300.0)
            trains_s = time.monotonic() - begun_s
            running.until(running.batches, "a batch through all stages", 300.0)
            stopped_s = time.monotonic()
            _ended(running, stop=True)
            leave_s = time.monotonic() - stopped_s
            left = [name for name, pid in running.pids().items() if _parent(pid) is not None]
    return {
        "workers": agents * each,
        "to_training_s": trains_s,
        "to_leave_s": leave_s,
        "left": left,
    }


# --- a machine that becomes slow -----------------------------------------------------------------


class Slowed:
    """Stops all workers of a rank for a part of the time, as long as it is entered."""

    def __init__(self, running: Machines, rank: int, factor: float) -> None:
        self._running = running
        self._rank = rank
        self._runs_s = _PERIOD_S / factor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._pids: list[int] = []

    def __enter__(self) -> Slowed:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Find out which workers the machine has now."""
        self._pids = list(self._running.workers(self._rank).values())

    def _work(self) -> None:
        while not self._over.wait(self._runs_s):
            pids = self._pids
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                if number == signal.SIGSTOP:
                    time.sleep(_PERIOD_S - self._runs_s)


def slow(args: argparse.Namespace) -> dict[str, Any]:
    """Make one machine slower, and see what is moved and what that brings."""
    window_s = 3.0 if args.smoke else args.window_s
    words = ["--schedule", "synthetic", "--place", "1,2,1"]
    words += changes(run__epochs=10**6, run__evaluate_every=10**6)
    words += changes(elastic__window_s=window_s, elastic__away_s=1)
    with machines(3, words) as running:
        running.until(running.batches, "the first batches")
        time.sleep(2 * window_s)
        rates = {"before": _rate(running, window_s)}
        there = set(running.workers(1))

        def moved(kind: str) -> set[str]:
            return there & {one["stage"] for one in running.records(kind)}

        with Slowed(running, 1, args.factor) as slowed:
            rates["slow"] = _rate(running, window_s)
            running.until(lambda: moved("moved"), "a move off the slow machine", 60 * window_s)
            running.until(lambda: moved("back"), "the moved worker")
            slowed.look()
            rates["after"] = _rate(running, window_s)
        _ended(running, stop=True)
        notes = [one["text"] for one in running.records("note") if " goes " in one["text"]]
    return {
        "batches_per_s": rates,
        "after_over_before": rates["after"] / rates["before"],
        "notes": notes,
    }


def _rate(running: Machines, seconds: float) -> float:
    begun_s, before = time.monotonic(), running.batches()
    time.sleep(seconds)
    return (running.batches() - before) / (time.monotonic() - begun_s)


# --- the command ---------------------------------------------------------------------------------

PARTS = {"kills": kills, "nodes": nodes, "start": start, "slow": slow}


def main() -> None:
    args = parsed()
    found = {"machine": describe_machine(), args.part: PARTS[args.part](args)}
    text = json.dumps(found, indent=1)
    if args.results is not None:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(text + "\n")
    print(json.dumps(found[args.part], indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--smoke", action="store_true", help="as short as it can be")
    parser.add_argument("--results", type=Path, metavar="FILE.json")
    parser.add_argument("--seed", type=int, default=0, help="kills: of the draws")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=float, default=4.0, help="kills: s from back to kill")
    parser.add_argument("--epochs", type=int, default=10000, help="kills: of both runs")
    parser.add_argument("--every-s", type=float, default=30.0, help="nodes: s between losses")
    parser.add_argument("--lasts-s", type=float, default=300.0, help="nodes: s of each run")
    parser.add_argument("--away-s", type=float, default=3.0, help="nodes: elastic.away_s")
    parser.add_argument("--agents", type=int, default=8, help="start")
    parser.add_argument("--stages", type=int, default=8, help="start: of each agent")
    parser.add_argument("--factor", type=float, default=3.0, help="slow: times as slow")
    parser.add_argument("--window-s", type=float, default=30.0, help="slow: elastic.window_s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
