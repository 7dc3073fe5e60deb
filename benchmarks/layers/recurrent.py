"""What a window of a recurrent layer costs: ours against PyTorch's and the bare matrix products.

    python benchmarks/layers/recurrent.py [--units 64 256] [--out FILE.json]
    python benchmarks/layers/recurrent.py --readme

A window of 20 steps of 64 streams, as many inputs as units, float32, one thread, timed as in
`run.py`. PyTorch's backward is autograd's. Processors with AVX-512 need a word: PyTorch's LSTM uses
it, whatever NumPy's BLAS does, so compare like with like:

    OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/layers/recurrent.py
    OPENBLAS_CORETYPE=SkylakeX python benchmarks/layers/recurrent.py

`--readme` fills in the tables of README.md from the results that are kept here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "shared"))

from run import FLOAT, Operation, Side, measure, numbers, table, torch  # noqa: E402
from sweep import fill_in  # noqa: E402

from asyncdni.nn.base import Slot  # noqa: E402
from asyncdni.nn.layers.recurrent import Lstm, Rnn  # noqa: E402
from asyncdni.nn.streams import layer_streams  # noqa: E402
from asyncdni.report.machine import describe_machine  # noqa: E402
from asyncdni.store.tensors import write_atomically  # noqa: E402

STREAMS, STEPS = 64, 20
#: Kept results, by the name of their marker in README.md.
KEPT = {
    "recurrent-avx2": HERE / "results/recurrent-avx2.json",
    "recurrent-avx512": HERE / "results/recurrent-avx512.json",
}


def operations(units: int) -> Iterator[Operation]:
    for kind in (Rnn, Lstm):
        yield from window(kind, units)


def window(kind: type[Rnn] | type[Lstm], units: int) -> Iterator[Operation]:
    layer = kind(units)
    layer.build((STEPS, units), FLOAT, layer_streams(0, "layer"))
    x, grad = numbers(STREAMS, STEPS, units), numbers(STREAMS, STEPS, units)
    slot: Slot = {}
    name = kind.__name__.lower()
    floor = Products(layer.params["weight_hh"])
    theirs = None if torch is None else Peer(kind is Lstm, units, x, grad)

    def backward() -> None:
        layer.fresh = True
        layer.backward(grad, slot, learn=True, send=True)

    layer.forward(x, slot)
    yield Operation(
        f"{name}, forward",
        Side(lambda: layer.forward(x, slot)),
        theirs and Side(theirs.forward),
        Side(floor.forward),
    )
    yield Operation(
        f"{name}, backward",
        Side(backward, lambda: layer.forward(x, slot)),
        theirs and Side(theirs.backward, theirs.forward),
        Side(floor.backward),
    )


class Peer:
    """The same layer of PyTorch, with the gradients of parameters and inputs."""

    def __init__(self, lstm: bool, units: int, x: Any, grad: Any) -> None:
        kind = torch.nn.LSTM if lstm else torch.nn.RNN
        self.layer = kind(units, units, batch_first=True)
        self.x = torch.from_numpy(x).requires_grad_()
        self.grad = torch.from_numpy(grad)
        self.forward()

    def forward(self) -> None:
        self.layer.zero_grad()
        self.x.grad = None
        self.y = self.layer(self.x)[0]

    def backward(self) -> None:
        self.y.backward(self.grad)


class Products:
    """The matrix products that a window can't do without, one after another."""

    def __init__(self, weight: Any) -> None:
        """Weight (G H, H): as many inputs as units."""
        rows, units = weight.shape
        self.weight, self.turned = weight, np.ascontiguousarray(weight.T)
        self.flat, self.wide = numbers(STEPS * STREAMS, units), numbers(STEPS * STREAMS, rows)
        self.h, self.z = numbers(STREAMS, units), numbers(STREAMS, rows)
        self.grad = np.empty_like(weight)

    def forward(self) -> None:
        np.matmul(self.flat, self.turned, out=self.wide)
        for _ in range(STEPS):
            np.matmul(self.h, self.turned, out=self.z)

    def backward(self) -> None:
        for _ in range(STEPS):
            np.matmul(self.z, self.weight, out=self.h)
        for _ in range(2):
            np.matmul(self.wide.T, self.flat, out=self.grad)
        np.matmul(self.wide, self.weight, out=self.flat)


def tables(path: Path) -> str:
    """Of a kept result, one for each number of units."""
    found = json.loads(path.read_text())
    parts = [
        table(int(name.split()[1]), rounds).replace("### width", "Units:")
        for name, rounds in found.items()
        if name.startswith("units")
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all rounds, in microseconds")
    parser.add_argument("--readme", action="store_true", help="fill in its tables, measure nothing")
    args = parser.parse_args()
    if args.readme:
        fill_in(HERE / "README.md", {name: tables(path) for name, path in KEPT.items()})
        return
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    found: dict[str, Any] = {"machine": describe_machine()}
    with threadpool_limits(1):
        for units in args.units:
            rounds = measure(list(operations(units)), args.rounds)
            print(table(units, rounds), flush=True)
            found[f"units {units}"] = rounds
    if args.out:
        write_atomically(args.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
