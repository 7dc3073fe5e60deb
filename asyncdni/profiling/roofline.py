"""What the arithmetic of each stage would take at least on one core of this machine: its roofline.

Of Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (2009): no program is faster than its floating-point operations at the processor's
speed, nor than its memory traffic at the memory's bandwidth.

```
 products   operations of a stage's matrix products and convolutions, at the measured speed of a
            product with as many outputs
 traffic    bytes of what its layers, written as they are, must read and write, at the measured
            bandwidth of copying as many
 roofline   the longer of the two
```

What a stage takes beyond its products is all that is around them: activations, normalisation, the
optimizer, the generator, Python. Generators count on neither side of the roofline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config, experiment
from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.messages import DATA
from asyncdni.plan.build import Design
from asyncdni.plan.sizes import LayerWork, stage_work
from asyncdni.profiling.prediction import worker_costs
from asyncdni.report.breakdown import ceiling

__all__ = ["Arithmetic", "arithmetic_of", "roofline_samples_per_s"]


# --- one stage -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arithmetic:
    """What one stage's ops on one batch ask of one core, by the letter of the op (or SENDING)."""

    flops: Mapping[str, float]  # operations of products
    products_s: Mapping[str, float]  # the time that these take
    traffic_bytes: Mapping[str, float]
    traffic_s: Mapping[str, float]  # the time that those take

    @cached_property
    def roofline_s(self) -> Mapping[str, float]:
        """The times of the products, or of the traffic if that takes longer in a whole batch."""
        whole = ("F", SENDING, "U")
        products, traffic = (
            sum(times[letter] for letter in whole) for times in (self.products_s, self.traffic_s)
        )
        return self.products_s if products >= traffic else self.traffic_s


def arithmetic_of(design: Design) -> dict[str, Arithmetic] | None:
    """Measure the speed of this machine's products and memory, and return what each stage asks of
    it, by name. None if the operations of a stage are not known: see `plan.sizes.stage_work`.

    A measurement takes some milliseconds for each shape of a product that is new in this process.
    """
    chosen = design.experiment
    samples = min(design.plan.batch_size, design.meta.train_samples)
    by_name = {stage.name: stage for stage in chosen.stages}
    found = {}
    for node in design.network.nodes:
        work = stage_work(node, samples, allow_import=design.allow_import)
        if work is None:
            return None
        kept = _kept_numbers(experiment.stage_optimizer(chosen, by_name[node.owner]))
        found[node.name] = _arithmetic(work, np.dtype(chosen.run.dtype), kept)
    return found


def _kept_numbers(optimizer: config.Optimizer) -> int:
    """Return how many numbers an optimizer keeps for each weight. Those of PyTorch are counted as
    two, as the best known ones keep two."""
    return int(optimizer.momentum > 0) if isinstance(optimizer, config.Sgd) else 2


def _arithmetic(work: Sequence[LayerWork], dtype: np.dtype[Any], kept: int) -> Arithmetic:
    """`kept`: the numbers that the optimizer keeps for each weight."""
    each = [_products_s(one, dtype) for one in work]
    flops = _by_letter([(one.forward, one.learn, one.push) for one in work], update=0)
    # A backward reads the gradient of the output and the input, and writes the gradients.
    moved = [
        (
            one.inputs + one.outputs + one.weights,
            one.inputs + one.outputs + one.weights,
            one.inputs + one.weights,
        )
        for one in work
    ]
    # An update reads gradients, and reads and writes weights and what the optimizer keeps.
    weights = sum(one.weights for one in work)
    numbers = _by_letter(moved, update=(3 + 2 * kept) * weights)
    traffic = {letter: dtype.itemsize * count for letter, count in numbers.items()}
    speed = _copied_bytes_per_s(_rounded(sum(traffic[letter] for letter in ("F", SENDING, "U"))))
    return Arithmetic(
        flops=flops,
        products_s=_by_letter(each, update=0.0),
        traffic_bytes=traffic,
        traffic_s={letter: count / speed for letter, count in traffic.items()},
    )


def _by_letter(layers: Sequence[tuple[float, float, float]], update: float) -> dict[str, float]:
    """Add up what layers take in (forward, learning, pushing the gradient on), by op. Inside a
    stage a gradient is pushed on to the first layer, and through it where the stage sends one."""
    forward, learn, push = (sum(one[part] for one in layers) for part in range(3))
    inside = sum(one[2] for one in layers[1:])
    return {
        **{"F": forward, "B": learn + inside, SENDING: learn + push, "C": learn + inside},
        **{"b": push, "W": learn, "U": update, "P": 0.0, "T": 0.0},
    }


# --- workers -------------------------------------------------------------------------------------


def roofline_samples_per_s(
    design: Design,
    found: Mapping[str, Arithmetic],
    cores: int,
    *,
    lag: int | None = None,
    latency_s: float = 0.0,
) -> float | None:
    """Return the samples per second that the design's workers would reach if its stages took no
    longer than their rooflines: see `report.breakdown.ceiling`, also for the arguments.

    A worker with several BLAS threads is taken to be so many times as fast. None where stages have
    schedules of their own, or ops differ from batch to batch.
    """
    schedule, threads = design.experiment.schedule, design.experiment.run.threads
    if schedule.unpriced() or any(stage.schedule for stage in design.experiment.stages):
        return None
    seconds = {name: one.roofline_s for name, one in found.items()}
    costs = {}
    for group in design.plan.groups:
        ops = worker_costs(group.members, seconds, schedule) or {}
        costs[group.name] = {letter: cost / threads for letter, cost in ops.items()}
    if not any(cost for ops in costs.values() for cost in ops.values()):
        return None
    batches_per_s = ceiling(
        schedule.tag,
        costs,
        {group.name: [p for p in group.producers if p != DATA] for group in design.plan.groups},
        max(1, cores // threads),
        microbatches=design.plan.per_update,
        lag=lag,
        latency_s=latency_s,
    )
    return batches_per_s * min(design.plan.batch_size, design.meta.train_samples)


# --- this machine --------------------------------------------------------------------------------

#: The longest side of a matrix that is measured: a larger product is hardly faster.
_SIDE_MAX = 1024
#: Bytes of the largest memory that is copied: more than caches of one core hold.
_COPIED_MAX = 2**27
_COPIED_MIN = 2**14
#: A measurement is repeated for so many seconds, and at least so often. The fastest counts, as
#: nothing makes a run too fast.
_LONG_S = 5e-3
_RUNS = 3


def _products_s(work: LayerWork, dtype: np.dtype[Any]) -> tuple[float, float, float]:
    """Return the seconds of a layer's products in a forward, for the gradients of its weights, and
    for that of its inputs, at the speed of one product that makes as many outputs of as many
    operations: a row for each sample, and for each of its steps or places."""
    if not work.forward:
        return 0.0, 0.0, 0.0
    rows = work.outputs // work.columns
    inner = max(1, round(work.forward / (2 * work.outputs)))
    sides = (min(side, _SIDE_MAX) for side in (rows, inner, work.columns))
    speeds = _flops_per_s(*sides, dtype.name, work.in_torch)
    counts = work.forward, work.learn, work.push
    forward, learn, push = (count / speed for count, speed in zip(counts, speeds, strict=True))
    return forward, learn, push


@lru_cache(maxsize=256)
def _flops_per_s(
    rows: int, inner: int, columns: int, dtype: str, in_torch: bool
) -> tuple[float, float, float]:
    """Measure y = x W', W's gradient g' x and x's gradient g W, by one thread, for x (rows, inner),
    W (columns, inner) and g (rows, columns); return operations per second of each."""
    product = _torch_product() if in_torch else _product
    rng = np.random.default_rng(0)
    x, w, g = (
        rng.random(shape).astype(dtype)
        for shape in ((rows, inner), (columns, inner), (rows, columns))
    )
    y, grad_w, grad_x = np.empty_like(g), np.empty_like(w), np.empty_like(x)
    runs = (
        lambda: product(x, w.T, y),
        lambda: product(g.T, x, grad_w),
        lambda: product(g, w, grad_x),
    )
    flops = 2 * rows * inner * columns
    with threadpool_limits(1):
        forward, learn, push = (flops / _fastest_s(run) for run in runs)
    return forward, learn, push


def _product(a: Any, b: Any, out: Any) -> None:
    np.matmul(a, b, out=out)


def _torch_product() -> Callable[[Any, Any, Any], None]:
    from asyncdni.nn.torch.layer import matrix_product

    return matrix_product


def _rounded(count: float) -> int:
    """Return the power of two next to a number of bytes, within what is measured."""
    power = round(math.log2(max(count, 1.0)))
    return min(max(1 << power, _COPIED_MIN), _COPIED_MAX)


@lru_cache
def _copied_bytes_per_s(count: int) -> float:
    """Measure the bandwidth of copying one half of `count` bytes to the other half, in bytes read
    and written per second. They may lie in a cache, as a stage's own arrays may."""
    there, here = (np.zeros(count // 2, np.uint8) for _ in range(2))
    return count / _fastest_s(lambda: np.copyto(here, there))


def _fastest_s(run: Callable[[], object]) -> float:
    """Return the CPU seconds, in this thread, of the fastest of several runs, after one that is not
    counted."""
    run()
    times: list[float] = []
    while len(times) < _RUNS or sum(times) < _LONG_S:
        began = time.thread_time()
        run()
        times.append(time.thread_time() - began)
    return max(min(times), 1e-9)
