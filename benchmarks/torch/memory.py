"""Peak memory of workers with a quarter of a model each, beside one process with all of it.

    python benchmarks/torch/memory.py
    python benchmarks/torch/memory.py --width 2048

The model is a perceptron of four equal stages in PyTorch (default: 400 MB of weights), trained for
some batches of random numbers with SGD and momentum. `plain` is a PyTorch loop in one process, the
workers those of `asyncdni.train` under `locked`; `runtime` is a process that has imported what a
worker imports, and has no model. Prints a line of JSON; all figures are peaks of resident memory in
bytes (`ru_maxrss`, on Linux). `ratio` is the largest worker above `runtime` over `plain` above
`runtime`: at most 0.4 is aimed at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where workers find `equal_stages`

BATCH, BATCHES, STAGES, LAYERS = 32, 8, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=3584, help="of each of the eight layers")
    parser.add_argument("--alone", choices=ALONE, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        ALONE[args.alone](args.width)
        print(peak_bytes())
        return
    runtime, plain = (in_own_process(way, args.width) for way in ("runtime", "plain"))
    workers = train_in_workers(args.width)
    found = {
        "weight_bytes": 4 * STAGES * LAYERS * (args.width + 1) * args.width,
        "runtime": runtime,
        "plain": plain,
        "workers": workers,
        "ratio": round((max(workers) - runtime) / (plain - runtime), 3),
    }
    print(json.dumps(found))


def equal_stages(width: int) -> Any:
    """Return a chain of linear layers, cut into equal stages, with ten outputs at the end."""
    from torch import nn

    layers = (nn.Linear(width, width) for _ in range(STAGES * LAYERS))
    return nn.Sequential(*layers, nn.Linear(width, 10))


# --- one process ---------------------------------------------------------------------------------


def in_own_process(way: str, width: int) -> int:
    command = [sys.executable, __file__, "--alone", way, "--width", str(width)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def runtime(width: int) -> None:
    import torch

    import asyncdni.drivers.real.process
    import asyncdni.nn.torch.model  # noqa: F401

    torch.ones(1, requires_grad=True).sum().backward()


def plain(width: int) -> None:
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    model = equal_stages(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(BATCHES):
        optimizer.zero_grad()
        x, y = torch.randn(BATCH, width), torch.randint(10, (BATCH,))
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


ALONE = {"runtime": runtime, "plain": plain}


# --- workers -------------------------------------------------------------------------------------


def train_in_workers(width: int) -> list[int]:
    """Return the peak of each worker."""
    import numpy as np

    import asyncdni

    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", BATCH * BATCHES), ("test", BATCH)):
        arrays[f"x_{part}"] = random.standard_normal((count, width), np.float32)
        arrays[f"y_{part}"] = random.integers(0, 10, count)
    tables: dict[str, Any] = {
        "model": {
            "build": "memory:equal_stages",
            "arguments": {"width": width},
            "stages": [str(LAYERS * stage) for stage in range(1, STAGES)],
        },
        "data": {"name": "npz", "path": "given", "batch_size": BATCH},
        "schedule": {"name": "locked"},
        "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
        "run": {"epochs": 1, "seed": 0},
    }
    peaks: dict[int, int] = {}
    ended = threading.Event()
    watch = threading.Thread(target=watch_children, args=(peaks, ended))
    watch.start()
    try:
        asyncdni.train(tables, data=arrays, progress=False, allow_import=True)
    finally:
        ended.set()
        watch.join()
    return sorted(peaks.values(), reverse=True)[:STAGES]


def watch_children(peaks: dict[int, int], ended: threading.Event) -> None:
    """Note the peak of each child process, by its id, until the run has ended. The last one counts:
    before it runs its own program, a child has the peak of its parent."""
    while not ended.wait(0.05):
        for listed in Path("/proc/self/task").glob("*/children"):
            for pid in listed.read_text().split():
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path("/proc", pid, "status").read_text().splitlines()
                    line = next(line for line in lines if line.startswith("VmHWM"))
                    peaks[int(pid)] = int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
