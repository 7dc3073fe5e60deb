"""Chooses where a model is cut, so that no stage takes much longer than the others.

The model runs a few batches in this process, part by part between all places where it may be cut.
A stage costs what its parts take forward and backward, and the bytes that cross its two ends. Of
all ways to cut, the one with the cheapest dearest stage is taken.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError
from asyncdni.nn.torch.cut import Trace
from asyncdni.nn.torch.huggingface import as_chain
from asyncdni.nn.torch.layer import first_line

__all__ = ["choose_cuts"]

#: Seconds that a byte across a cut costs: what a message takes to be packed and copied.
_SECONDS_A_BYTE = 0.5e-9
#: How many times each part runs; the fastest counts, as nothing makes a run too fast.
_RUNS = 3


def choose_cuts(
    model: nn.Module, trace: Trace, shape: Sequence[int], count: int, samples: int
) -> list[str]:
    """The submodules at which all of `count` stages but the first begin, for batches of `samples`;
    fewer where the model has no more places to cut. `model` has weights, `trace` is its trace,
    whose `parting` cuts are all made. Raises `ConfigError` where the model fails on a batch."""
    names = trace.names()
    fixed = [names.index(name) + 1 for name in trace.parting()] if count > 1 else []
    try:
        seconds = _measured(as_chain(model), trace, names, shape, samples)
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"the model fails forward or backward on {samples} samples of zeros, with which its "
            f"parts are timed: {first_line(error)}"
        ) from error
    bytes_at = [0.0, *(samples * _SECONDS_A_BYTE * trace.bytes_at(name) for name in names), 0.0]
    places = _divided(seconds, bytes_at, min(count, len(seconds)), fixed)
    return [names[place - 1] for place in places]


def _measured(
    model: nn.Module, trace: Trace, names: Sequence[str], shape: Sequence[int], samples: int
) -> list[float]:
    """Seconds that each part between two names takes, forward and backward."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=()):
            return _timed(model, trace, names, torch.zeros(samples, *shape))
    finally:
        torch.set_num_threads(threads)


def _timed(model: nn.Module, trace: Trace, names: Sequence[str], x: torch.Tensor) -> list[float]:
    found = []
    if trace.takes_integers:
        x = x.long()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for begin, end in zip(["", *names], [*names, ""], strict=True):
        part = fx.GraphModule(model, trace.part(begin, end).graph)
        runs = [_run(part, x) for _ in range(_RUNS)]
        found.append(min(seconds for seconds, _ in runs))
        x = runs[-1][1]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return found


def _run(part: nn.Module, x: torch.Tensor) -> tuple[float, torch.Tensor]:
    x = x.detach()
    wanted: list[torch.Tensor] = [one for one in part.parameters() if one.requires_grad]
    if x.is_floating_point():
        wanted.append(x.requires_grad_())
        inputs = x.clone()  # the part may change what it is given
    else:
        inputs = x
    start = time.perf_counter()
    y = part(inputs)
    if wanted and y.requires_grad:
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
    return time.perf_counter() - start, y.detach()


def _divided(
    seconds: Sequence[float], cuts: Sequence[float], count: int, fixed: Sequence[int] = ()
) -> list[int]:
    """The places (1 to N - 1), all `fixed` ones among them, that divide N parts into `count` runs
    so that the largest cost is least: a run's seconds, and those of the cuts at its two ends."""
    parts = len(seconds)
    before = [0.0, *accumulate(seconds)]
    # best[k][j]: of all ways to divide the first j parts into k runs, the best: its largest cost,
    # the sum of the squares of its costs, which decides between equals, and where its last run
    # begins.
    none = float("inf"), float("inf"), 0
    best = [[none] * (parts + 1) for _ in range(count + 1)]
    best[0][0] = 0.0, 0.0, 0
    for runs in range(1, count + 1):
        for end in range(runs, parts + 1):
            ways = []
            for begin in range(runs - 1, end):
                largest, squares, _ = best[runs - 1][begin]
                if any(begin < place < end for place in fixed):
                    continue
                cost = before[end] - before[begin] + cuts[begin] + cuts[end]
                ways.append((max(largest, cost), squares + cost**2, begin))
            best[runs][end] = min(ways, default=none)
    places, end = [], parts
    for runs in range(count, 0, -1):
        end = best[runs][end][2]
        places.append(end)
    return places[-2::-1]
