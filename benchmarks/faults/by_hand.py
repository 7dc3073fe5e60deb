"""A run whose processes are started by their command lines, so that its addresses are known."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncdni import experiment
from asyncdni.errors import AsyncDNIError

__all__ = ["Run", "free_port", "started"]

#: Until the coordinator has made the run's folder, and everybody has joined.
_PATIENCE_S = 60.0


class Run:
    """The processes of one run: its coordinator, and a worker a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What the coordinator has recorded of one kind so far."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in whole if record["kind"] == kind]

    def await_start(self) -> None:
        """Until it trains. Raises `AsyncDNIError` where it does not."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.records("start"):
            if time.monotonic() > deadline or not self.running():
                raise AsyncDNIError(f"the run in {self.folder} has not started to train")
            time.sleep(0.05)

    def running(self) -> bool:
        """Whether the coordinator is still there."""
        return self.processes["coordinator"].poll() is None

    def summary(self) -> dict[str, Any]:
        """Wait for the end. Raises `AsyncDNIError` where a process has failed."""
        for name, process in self.processes.items():  # the coordinator first
            code = process.wait()
            if code:
                log = _log(self.folder, name).read_text().strip().splitlines()
                told = log[-1] if log else ""
                raise AsyncDNIError(f"{self.folder}: {name} exits with {code}: {told}")
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return found

    def rss_kib(self) -> dict[str, int]:
        """Resident memory of each process that lives, in KiB."""
        found = {}
        for name, process in self.processes.items():
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("VmRSS:"):
                    found[name] = int(line.split()[1])
        return found


@contextmanager
def started(
    file: Path,
    changes: Sequence[str],
    *,
    schedule: str,
    seed: int,
    address: str,
    folder: Path,
    flags: Sequence[str] = (),
) -> Iterator[Run]:
    """Start all processes; at the end none is left. `flags` are for coordinator and workers."""
    chosen = experiment.load(file, changes, schedule=schedule, seed=seed)
    names = [stage.name for stage in chosen.stages]
    sets = [word for change in [*changes, f"run.seed={seed}"] for word in ("--set", change)]
    command = ["coordinator", str(file), *sets, "--schedule", schedule]
    command += ["--bind", address, "--out", str(folder), "--quiet", *flags]
    run = Run(folder)
    try:
        run.processes["coordinator"] = _start(command, _log(folder, "coordinator"))
        for name in names:
            worker = ["worker", "--stage", name, "--coordinator", address, *flags]
            run.processes[name] = _start(worker, _log(folder, name))
        yield run
    finally:
        for process in run.processes.values():
            process.kill()
        for process in run.processes.values():
            process.wait()


def free_port() -> int:
    """A tcp port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _log(folder: Path, name: str) -> Path:
    """What a process of the run in `folder` says; beside it, where it is in nobody's way."""
    return folder.with_name(f"{folder.name}-{name}.log")


def _start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "asyncdni", *words]
    with open(log, "wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)
