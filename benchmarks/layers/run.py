"""What each operation costs: our NumPy layers against PyTorch's ops and the bare matrix product.

    python benchmarks/layers/run.py [--widths 256 1024] [--rounds 15] [--out FILE.json]

float32, one thread. Every round times every operation on each side in turn, so that a disturbance
hits all alike; the table gives medians over rounds, and medians of the ratios within a round. Where
PyTorch is not installed its columns stay empty. See README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in

from asyncdni.nn.base import Layer, Slot
from asyncdni.nn.generators import make_generator
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.losses import CrossEntropy
from asyncdni.nn.optimizers import Adam
from asyncdni.nn.streams import layer_streams
from asyncdni.report.machine import describe_machine
from asyncdni.store.tensors import write_atomically

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

HERE = Path(__file__).parent
INPUTS, CLASSES = 784, 10
FLOAT = np.dtype(np.float32)
GENERATORS = ("error", "low_rank")
#: Seconds that one side of one operation takes of a round, about.
SPAN_S = 0.01
#: Small enough that hundreds of fits on one batch leave a generator where it was.
SLOWLY = 1e-6

Call = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """A call to be timed, and what has to come before each."""

    call: Call
    before: Call | None = None


@dataclass(frozen=True)
class Operation:
    name: str
    ours: Side
    theirs: Side | None = None
    floor: Side | None = None  # the matrix product alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all rounds, in microseconds")
    parser.add_argument("--readme", action="store_true", help="fill in its tables, measure nothing")
    args = parser.parse_args()
    if args.readme:
        fill_in(HERE / "README.md", {name: kept_tables(name) for name in ("avx2", "avx512")})
        return
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    found: dict[str, Any] = {"machine": describe_machine()}
    with threadpool_limits(1):
        for width in args.widths:
            rounds = measure(list(operations(width, args.batch_size)), args.rounds)
            print(table(width, rounds), flush=True)
            found[f"width {width}"] = rounds
    if args.out:
        write_atomically(args.out, (json.dumps(found, indent=1) + "\n").encode())


# --- timing --------------------------------------------------------------------------------------

#: By operation and side ("ours", "theirs", "floor"): microseconds a call, one number a round.
Rounds = dict[str, dict[str, list[float]]]


def measure(found: list[Operation], rounds: int) -> Rounds:
    times: Rounds = {}
    counts = {}
    for operation in found:
        sides = {side: getattr(operation, side) for side in ("ours", "theirs", "floor")}
        times[operation.name] = {side: [] for side, one in sides.items() if one is not None}
        for side in times[operation.name]:
            median_us(sides[side], 3)  # warm-up
            counts[operation.name, side] = max(3, int(SPAN_S / 1e-6 / median_us(sides[side], 3)))
    for _ in range(rounds):
        for operation in found:
            for side, kept in times[operation.name].items():
                kept.append(median_us(getattr(operation, side), counts[operation.name, side]))
    return times


def median_us(side: Side, calls: int) -> float:
    """Each call is timed on its own, as some need another one before them."""
    taken = []
    for _ in range(calls):
        if side.before is not None:
            side.before()
        start = time.perf_counter_ns()
        side.call()
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken) / 1e3


def table(width: int, rounds: Rounds) -> str:
    lines = [
        f"### width {width}\n",
        "| operation | asyncdni µs | PyTorch µs | ratio | bare product µs | ratio |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, sides in rounds.items():
        cells = [f"{statistics.median(sides['ours']):.0f}"]
        for other in ("theirs", "floor"):
            if other in sides:
                pairs = zip(sides["ours"], sides[other], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                cells += [f"{statistics.median(sides[other]):.0f}", f"{ratio:.2f}"]
            else:
                cells += ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def kept_tables(name: str) -> str:
    """Those of results/NAME.json, one for each width."""
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    widths = [(int(key.split()[1]), one) for key, one in found.items() if key.startswith("width")]
    return "\n".join(table(width, rounds) for width, rounds in widths)


# --- operations ----------------------------------------------------------------------------------


def operations(width: int, samples: int) -> Iterator[Operation]:
    """All that a hidden stage of `width` does with a batch, the loss, and generators."""
    for inputs in (INPUTS, width):
        yield from dense(inputs, width, samples)
    yield from batch_norm(width, samples)
    yield from relu(width, samples)
    yield cross_entropy(samples)
    yield adam(width)
    for kind in GENERATORS:
        yield from generator(kind, width, samples)


def numbers(*shape: int) -> Any:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape, FLOAT)


def built(layer: Layer, width: int) -> Layer:
    layer.build((width,), FLOAT, layer_streams(0, "layer"))
    return layer


def shared(*arrays: Any) -> list[Any]:
    """The same numbers as tensors; None for each without PyTorch."""
    return [None if torch is None else torch.from_numpy(array) for array in arrays]


def theirs(call: Call) -> Side | None:
    return None if torch is None else Side(call)


def backward(layer: Layer, x: Any, grad: Any, *, learn: bool, send: bool) -> Side:
    """A backward, right after the forward of its batch."""
    slot: Slot = {}

    def before() -> None:
        layer.forward(x, slot)
        layer.fresh = True

    return Side(lambda: layer.backward(grad, slot, learn=learn, send=send), before)


def dense(inputs: int, width: int, samples: int) -> Iterator[Operation]:
    layer = built(Dense(width), inputs)
    weight, bias = layer.params["weight"], layer.params["bias"]
    x, grad = np.maximum(numbers(samples, inputs), 0), numbers(samples, width)
    y, grad_w, grad_x = np.empty_like(grad), np.empty_like(weight), np.empty_like(x)
    slot: Slot = {}
    tx, tw, tb, tg = shared(x, weight, bias, grad)
    name = f"dense {inputs} to {width}"
    yield Operation(
        f"{name}, forward",
        Side(lambda: layer.forward(x, slot)),
        theirs(lambda: torch.nn.functional.linear(tx, tw, tb)),
        Side(lambda: np.matmul(x, weight.T, out=y)),
    )
    yield Operation(
        f"{name}, gradient of weight and bias",
        backward(layer, x, grad, learn=True, send=False),
        theirs(lambda: (torch.mm(tg.t(), tx), tg.sum(0))),
        Side(lambda: np.matmul(grad.T, x, out=grad_w)),
    )
    yield Operation(
        f"{name}, gradient of inputs",
        backward(layer, x, grad, learn=False, send=True),
        theirs(lambda: torch.mm(tg, tw)),
        Side(lambda: np.matmul(grad, weight, out=grad_x)),
    )


def batch_norm(width: int, samples: int) -> Iterator[Operation]:
    layer = built(BatchNorm(), width)
    x, grad = numbers(samples, width), numbers(samples, width)
    slot: Slot = {}
    tx, tg, weight, bias = shared(x, grad, layer.params["weight"], layer.params["bias"])
    mean, var = shared(np.zeros(width, FLOAT), np.ones(width, FLOAT))

    def forward() -> Any:
        return torch.native_batch_norm(tx, weight, bias, mean, var, True, 0.1, 1e-5)

    saved = forward()[1:] if torch is not None else ()
    mask = [True, True, True]
    yield Operation("batch_norm, forward", Side(lambda: layer.forward(x, slot)), theirs(forward))
    yield Operation(
        "batch_norm, backward",
        backward(layer, x, grad, learn=True, send=True),
        theirs(
            lambda: torch.ops.aten.native_batch_norm_backward(
                tg, tx, weight, mean, var, *saved, True, 1e-5, mask
            )
        ),
    )


def relu(width: int, samples: int) -> Iterator[Operation]:
    layer = built(Relu(), width)
    x, grad = numbers(samples, width), numbers(samples, width)
    slot: Slot = {}
    tx, tg, ty = shared(x, grad, np.maximum(x, 0))
    yield Operation(
        "relu, forward", Side(lambda: layer.forward(x, slot)), theirs(lambda: torch.relu(tx))
    )
    yield Operation(
        "relu, backward",
        backward(layer, x, grad, learn=False, send=True),
        theirs(lambda: torch.ops.aten.threshold_backward(tg, ty, 0)),
    )


def cross_entropy(samples: int) -> Operation:
    loss = CrossEntropy()
    x, y = numbers(samples, CLASSES), np.arange(samples) % CLASSES
    slot: Slot = {}
    tx, ty = shared(x, y)

    def ours() -> None:
        loss.forward(x, y, slot)
        loss.backward(slot)

    def peer() -> None:
        aten, total = torch.ops.aten, 2  # 2: the sum over samples
        logs = torch.log_softmax(tx, 1)
        _, weight = aten.nll_loss_forward(logs, ty, None, total, -100)
        grad = aten.nll_loss_backward(one, logs, ty, None, total, -100, weight)
        aten._log_softmax_backward_data(grad, logs, 1, tx.dtype)

    one = None if torch is None else torch.ones(())
    return Operation("cross_entropy, forward and backward", Side(ours), theirs(peer))


def adam(width: int) -> Operation:
    """Of the parameters of a hidden stage: dense `width` to `width` and its batch norm."""
    shapes = ((width, width), (width,), (width,), (width,))
    size = sum(int(np.prod(shape)) for shape in shapes)
    # Of ones, as ours may leave the squares of the gradients behind.
    params, grads = np.zeros(size, FLOAT), np.ones(size, FLOAT)
    optimizer = Adam()
    optimizer.start(params)
    peer = None
    if torch is not None:
        tensors = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        peer = Side(torch.optim.Adam(tensors, lr=1e-3, fused=True).step)
    return Operation(
        f"Adam, {size:,} parameters", Side(lambda: optimizer.step(params, grads, 1e-3)), peer
    )


def generator(kind: str, width: int, samples: int) -> Iterator[Operation]:
    """There is none in PyTorch to compare with."""
    model = make_generator(kind)
    model.build(width, CLASSES, "cross_entropy", FLOAT, layer_streams(0, "generator"))
    h, y = np.maximum(numbers(samples, width), 0), np.arange(samples) % CLASSES
    grad = numbers(samples, width)
    slot: Slot = {}
    model.predict(h, y, slot, 1.0)
    model.fit(grad, slot, 1.0)

    def predict() -> object:
        return model.predict(h, y, slot, SLOWLY)

    yield Operation(f"generator {kind}, predict", Side(predict))
    yield Operation(f"generator {kind}, fit", Side(lambda: model.fit(grad, slot, SLOWLY), predict))


if __name__ == "__main__":
    main()
