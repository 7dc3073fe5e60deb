"""What feature maps cost: our convolutions and their neighbours against PyTorch's.

    python benchmarks/layers/maps.py [--maps mnist-2 …] [--samples 64] [--out FILE.json]
    python benchmarks/layers/maps.py --readme

Sizes of the networks of the DNI paper: convolutions of 5 x 5 that keep height and width, each with
batch norm, relu and pooling of 3 x 3, stride 2. float32, one thread, timed as in `run.py`. The
backward gives the gradients of the parameters and, but for images, of the inputs. PyTorch's
convolutions use AVX-512 where there is such a thing, whatever NumPy's BLAS does, so compare like
with like:

    OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/layers/maps.py
    OPENBLAS_CORETYPE=SkylakeX python benchmarks/layers/maps.py

`--readme` fills in the tables of README.md from the results that are kept here. See README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "shared"))

from run import FLOAT, Operation, Rounds, Side, measure, numbers, torch  # noqa: E402
from sweep import fill_in  # noqa: E402

from asyncdni.nn.base import Layer, Slot, forwarded  # noqa: E402
from asyncdni.nn.layers.activations import Relu  # noqa: E402
from asyncdni.nn.layers.convolution import Conv2d  # noqa: E402
from asyncdni.nn.layers.normalisation import BatchNorm2d  # noqa: E402
from asyncdni.nn.layers.pooling import AveragePool, MaxPool  # noqa: E402
from asyncdni.nn.streams import layer_streams  # noqa: E402
from asyncdni.report.machine import describe_machine  # noqa: E402
from asyncdni.store.tensors import write_atomically  # noqa: E402

KERNEL, BORDER = 5, 2


@dataclass(frozen=True)
class Stage:
    """(inputs, size, size) to (filters, size, size), and then pooling."""

    inputs: int
    filters: int
    size: int

    @property
    def images(self) -> bool:
        return self.inputs <= 3


STAGES = {
    "mnist-1": Stage(1, 64, 28),
    "mnist-2": Stage(64, 64, 14),
    "mnist-3": Stage(64, 64, 7),
    "cifar-1": Stage(3, 128, 32),
    "cifar-2": Stage(128, 128, 16),
    "cifar-3": Stage(128, 128, 8),
}
#: Kept results, by the name of their marker in README.md.
KEPT = {
    "maps-avx2": HERE / "results/maps-avx2.json",
    "maps-avx512": HERE / "results/maps-avx512.json",
}
CONVOLUTIONS = "conv2d, forward and backward"


def operations(stage: Stage, samples: int) -> Iterator[Operation]:
    """PyTorch's side in its usual layout, and as the floor that with channels last."""
    maps = stage.filters, stage.size, stage.size
    conv = Conv2d(stage.filters, kernel=KERNEL, padding="same")
    yield from both(
        "conv2d", conv, (stage.inputs, stage.size, stage.size), samples, send=not stage.images
    )
    yield from both("batch_norm", BatchNorm2d(), maps, samples)
    yield from both("relu", Relu(), maps, samples)
    pool = MaxPool if stage.images else AveragePool
    name = "max_pool" if stage.images else "average_pool"
    yield from both(name, pool(3, stride=2, padding=1), maps, samples)


def both(
    name: str, layer: Layer, shape: tuple[int, ...], samples: int, *, send: bool = True
) -> Iterator[Operation]:
    """Forward, and backward right after the forward of its batch."""
    layer.build(shape, FLOAT, layer_streams(0, "layer"))
    x = np.maximum(numbers(samples, *shape), 0)
    slot: Slot = {}
    grad = numbers(*layer.forward(x, slot).shape)
    peers = [
        None if torch is None else Peer(name, layer, x, grad, last, send) for last in (False, True)
    ]

    def backward() -> None:
        layer.fresh = True
        forwarded(slot)  # the memory of the gradient before this one is free again
        layer.backward(grad, slot, learn=True, send=send)

    def forward() -> None:
        layer.forward(x, slot)

    yield Operation(
        f"{name}, forward", Side(forward), *(peer and Side(peer.forward) for peer in peers)
    )
    yield Operation(
        f"{name}, backward",
        Side(backward, forward),
        *(peer and Side(peer.backward, peer.forward) for peer in peers),
    )


class Peer:
    """The same layer of PyTorch, with the gradients of parameters and of x."""

    def __init__(
        self, name: str, layer: Any, x: Any, grad: Any, channels_last: bool, send: bool
    ) -> None:
        kind = torch.channels_last if channels_last else torch.contiguous_format
        pool = {"kernel_size": 3, "stride": 2, "padding": 1}
        made = {
            "conv2d": lambda: torch.nn.Conv2d(x.shape[1], grad.shape[1], KERNEL, padding=BORDER),
            "batch_norm": lambda: torch.nn.BatchNorm2d(x.shape[1]),
            "relu": torch.nn.ReLU,
            "max_pool": lambda: torch.nn.MaxPool2d(**pool),
            "average_pool": lambda: torch.nn.AvgPool2d(**pool),
        }
        self.layer = made[name]().to(memory_format=kind)
        self.x = torch.from_numpy(x).contiguous(memory_format=kind).requires_grad_(send)
        self.grad = torch.from_numpy(grad).contiguous(memory_format=kind)

    def forward(self) -> None:
        self.layer.zero_grad()
        self.x.grad = None
        self.y = self.layer(self.x)

    def backward(self) -> None:
        self.y.backward(self.grad)


# --- tables --------------------------------------------------------------------------------------


def summed(rounds: Rounds) -> Rounds:
    """Forward and backward of the convolution together, before all else: the claim."""
    parts = [rounds["conv2d, forward"], rounds["conv2d, backward"]]
    total = {
        side: [sum(pair) for pair in zip(*(part[side] for part in parts), strict=True)]
        for side in parts[0]
    }
    return {CONVOLUTIONS: total, **rounds}


def table(found: dict[str, Any], names: list[str]) -> str:
    lines = [
        "| maps | operation | asyncdni ms | PyTorch ms | ratio | channels last ms | ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        for operation, sides in summed(found[name]).items():
            cells = [f"{statistics.median(sides['ours']) / 1e3:.2f}"]
            for other in ("theirs", "floor"):
                if other in sides:
                    pairs = zip(sides["ours"], sides[other], strict=True)
                    ratio = statistics.median(a / b for a, b in pairs)
                    cells += [f"{statistics.median(sides[other]) / 1e3:.2f}", f"{ratio:.2f}"]
                else:
                    cells += ["", ""]
            mark = "**" if operation == CONVOLUTIONS else ""
            lines.append(f"| {name} | {mark}{operation}{mark} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--samples", type=int, default=64, help="in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all rounds, in microseconds")
    parser.add_argument("--readme", action="store_true", help="fill in its tables, measure nothing")
    args = parser.parse_args()
    if args.readme:
        found = {name: path for name, path in KEPT.items() if path.exists()}
        kept = {name: json.loads(path.read_text()) for name, path in found.items()}
        fill_in(HERE / "README.md", {name: table(one, list(STAGES)) for name, one in kept.items()})
        return
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    found: dict[str, Any] = {"machine": describe_machine(), "samples": args.samples}
    with threadpool_limits(1):
        for name in args.maps:
            found[name] = measure(list(operations(STAGES[name], args.samples)), args.rounds)
            print(table(found, [name]), flush=True)
    if args.out:
        write_atomically(args.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
