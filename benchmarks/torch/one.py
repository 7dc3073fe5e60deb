"""One training of one model in one way; prints a line of JSON.

    python benchmarks/torch/one.py plain mlp --width 256 --threads 2
    python benchmarks/torch/one.py synthetic mlp --width 256
    python benchmarks/torch/one.py pipelining mlp --width 256

Ways: `plain` is a PyTorch loop in one process, `accumulated` the same over four microbatches a
batch; `alone` is asyncdni with all stages in one worker;
`locked`, `1f1b`, `gpipe`, `synthetic` … are its schedules over four, `recipe` is `synthetic` with
the options of launch/mnist.toml; `pipelining` is torch.distributed.pipelining over four processes
(gloo).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2] / "launch" / "torch"))

import models
import numpy as np
import torch
from torch.nn import functional

import asyncdni
from asyncdni import experiment
from asyncdni.data import identify, open_batches

#: The schedules of those ways that are not named after one. `recipe` is that of launch/mnist.toml:
#: after the first epoch the true gradients of every 16th batch train the generators, and workers
#: are sent many batches ahead.
SCHEDULES: dict[str, dict[str, Any]] = {
    **{way: {"name": "locked"} for way in ("plain", "accumulated", "alone", "pipelining")},
    "recipe": {"name": "synthetic", "fit_every": 16, "fit_first": 235},
}
LIMITS: dict[str, dict[str, Any]] = {"recipe": {"window": 64}}
STAGES, MICROBATCHES, RATE, MOMENTUM = 4, 4, 0.05, 0.9
#: The steps of a sample of text, over which its loss is summed.
WINDOW = 64
#: Models whose stages have several products each: going back through them in two halves repeats
#: most of the way, and is not worth it in a pipeline (see docs/torch.md).
DEEP = "gpt", "tied_gpt", "resnet18"
#: The models that learn a text.
TEXT = "gpt", "tied_gpt", "lstm"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way")
    parser.add_argument("model", choices=models.CUTS)
    parser.add_argument("--width", type=int, help="default: that of launch/torch/models.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="end after so many updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--text", help="what GPTs and LSTMs learn; default: tinyshakespeare")
    parser.add_argument("--latency", default="0ms", help="of all links, in asyncdni's ways")
    args = parser.parse_args()
    ways = {"plain": plain, "accumulated": plain, "pipelining": pipelining}
    print(json.dumps(ways.get(args.way, ours)(args)))


# --- asyncdni ------------------------------------------------------------------------------------


def tables(args: argparse.Namespace) -> dict[str, Any]:
    """The experiment of all ways."""
    cuts = models.CUTS[args.model]
    arguments = widths(args)
    if args.model in TEXT:
        data = {"name": "text", "encoding": "ids", "window": WINDOW, "batch_size": 32}
        data |= {"path": args.text} if args.text else {}
    else:
        data = {"name": args.data, "batch_size": 256, "planes": args.model == "resnet18"}
    schedule = dict(SCHEDULES.get(args.way, {"name": args.way}))
    if schedule["name"] in ("1f1b", "gpipe"):
        schedule |= {"microbatches": MICROBATCHES, "split_backward": args.model not in DEEP}
    run = {"epochs": args.epochs, "seed": args.seed, "evaluate_every": float(args.epochs)}
    if args.steps:
        run["max_steps"] = args.steps
    if args.way == "alone":
        run["split"] = [len(cuts) + 1]
    return {
        "model": {"build": f"models:{args.model}", "arguments": arguments, "stages": cuts},
        "data": data,
        "schedule": schedule,
        "optimizer": {"name": "sgd", "learning_rate": rate(args), "momentum": MOMENTUM},
        "links": {"latency": args.latency},
        "limits": LIMITS.get(args.way, {}),
        "run": run,
    }


def rate(args: argparse.Namespace) -> float:
    return RATE / WINDOW if args.model in TEXT else RATE


def widths(args: argparse.Namespace) -> dict[str, int]:
    return {"width": args.width} if args.width else {}


def ours(args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    first: list[float] = []

    def observe(design: object, recorder: object, kind: str, values: object) -> None:
        if kind == "start" and not first:
            first.append(time.perf_counter() - start)

    result = asyncdni.train(tables(args), allow_import=True, observers=[observe], progress=False)
    summary = result.summary
    return {
        "samples_per_s": summary["samples_per_s"],
        "test_accuracy": summary["test_accuracy"],
        "first_batch_s": first[0] if first else None,
        "digest": digest(result.state_dict()),
        "memory_bytes": [stage["memory_bytes"] for stage in summary["stages"]],
    }


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Of all weights and buffers, by the model's own names: equal where all bits are."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


# --- plain PyTorch -------------------------------------------------------------------------------


class Data:
    """The experiment's batches as tensors, made before the clock starts where they fit."""

    def __init__(self, args: argparse.Namespace) -> None:
        chosen = experiment.parse(tables(args))
        self.size, self.seed = chosen.data.batch_size, chosen.run.seed
        self.epochs, self.steps = args.epochs, args.steps
        self.integers = args.model in TEXT
        self.batches = open_batches(chosen.data, self.seed)
        self.meta = identify(chosen.data)

    def train(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        count = self.batches.batches_per_epoch(self.size)
        for batch in range(min(self.epochs * count, self.steps or self.epochs * count)):
            place = *divmod(batch, count), self.size, self.seed
            yield self._tensors(self.batches.read(*place, np.float32))

    def test(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(self.batches.test_batches(self.size)):
            yield self._tensors(self.batches.read_test(index, self.size, np.float32))

    def _tensors(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(batch["h"])
        return (x.long() if self.integers else x), torch.from_numpy(batch["y"])


def build(args: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(args.seed)
    model: torch.nn.Module = getattr(models, args.model)(**widths(args))
    return model


def plain(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    data, model = Data(args), build(args)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(args), momentum=MOMENTUM, fused=True)
    parts = MICROBATCHES if args.way == "accumulated" else 1
    size = data.size // parts
    warm_up(model, data, size)
    samples, start = 0, time.perf_counter()
    for x, y in data.train():
        optimizer.zero_grad()
        # By a power of two the loss may be divided in place of gradients, which have the same bits.
        within = len(x) if len(x) == data.size else 1
        for some, targets in zip(x.split(size), y.split(size), strict=True):
            (summed(model(some), targets) / within).backward()
        for parameter in model.parameters() if within == 1 else ():
            parameter.grad.div_(len(x))
        optimizer.step()
        samples += len(x)
    speed = samples / (time.perf_counter() - start)
    found = {"samples_per_s": speed, "digest": digest(model.state_dict())}
    return {**found, "test_accuracy": accuracy(model, data)}


def warm_up(model: torch.nn.Module, data: Data, rows: int) -> None:
    """Go forward and back once through a copy, so that what PyTorch does in its first pass alone is
    not measured. The model stays as it is."""
    spare = copy.deepcopy(model)
    x, y = next(data.train())
    summed(spare(x[:rows]), y[:rows]).backward()


def summed(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The cross-entropy as asyncdni takes it: summed over steps, to be divided by samples."""
    return functional.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="sum")


def accuracy(model: torch.nn.Module, data: Data) -> float:
    model.eval()
    right = count = 0
    with torch.no_grad():
        for x, y in data.test():
            right += int((model(x).flatten(0, -2).argmax(1) == y.flatten()).sum())
            count += y.numel()
    return right / count


# --- torch.distributed.pipelining ----------------------------------------------------------------


def pipelining(args: argparse.Namespace) -> dict[str, Any]:
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    options = (args, found)
    torch.multiprocessing.spawn(stage_process, options, nprocs=STAGES, join=True)
    result: dict[str, Any] = found.get()
    return result


def stage_process(rank: int, args: argparse.Namespace, found: Any) -> None:
    """One of four processes. The last, smaller batch of an epoch is left out: shapes are static."""
    from torch import distributed
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    from asyncdni.nn.torch.cut import trace

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    distributed.init_process_group("gloo", rank=rank, world_size=STAGES)
    data, model = Data(args), build(args)
    cuts = models.CUTS[args.model]
    with torch.device("meta"):
        shape_of = trace(build(args), data.meta.input_shape, cuts)
    graph = shape_of.part(["", *cuts][rank], [*cuts, ""][rank]).graph
    part = torch.fx.GraphModule(model, graph)
    stage = PipelineStage(part, rank, STAGES, torch.device("cpu"))
    kinds = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
    schedule = kinds["1f1b"](stage, MICROBATCHES, loss_fn=loss)
    optimizer = torch.optim.SGD(part.parameters(), lr=rate(args), momentum=MOMENTUM, fused=True)
    samples, start = 0, time.perf_counter()
    for x, y in data.train():
        if len(x) < data.size:
            continue
        optimizer.zero_grad()
        given = (x,) if rank == 0 else ()
        schedule.step(*given, **({"target": y} if rank == STAGES - 1 else {}))
        optimizer.step()
        samples += len(x)
    distributed.barrier()
    if rank == STAGES - 1:
        found.put({"samples_per_s": samples / (time.perf_counter() - start), "test_accuracy": None})
    distributed.destroy_process_group()


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return summed(output, target) / len(target)


if __name__ == "__main__":
    main()
