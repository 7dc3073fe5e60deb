"""What a generator costs: its arithmetic beside that of its stage, and what stages send each other.

    ASYNCDNI_DATA=… python benchmarks/transformers/counts.py

fills the two tables in README.md. Both are counted, not timed, while a few batches run in the
simulator: PyTorch's FlopCounterMode counts the products of every op, and messages have their
tensors' bytes. Needs PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

import run
import torch
from sweep import fill_in, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import Activation, Message, WithTensors
from asyncdni.plan.build import Design, make_stage
from asyncdni.plan.plan import Group

STAGES = 4
RULES = (
    *("readout", "readout, narrow block", "readout, full block"),
    "readout, full block, learns from every 4th batch",
)
MIDDLE = "h_1"  # the stage whose arithmetic is told: a block and nothing else
LEARNING = "forward", "backward", "learn"
PREDICTING = "predict", "fit"
BATCHES = 200  # four copies of the readout, or one
SCHEDULES: dict[str, run.Table] = {
    "1f1b": {"name": "1f1b", "microbatches": 4},
    "readout": run.readout(),
    "readout, refresh 200": run.readout(refresh=200),
}
#: Of messages, and what they carry.
KINDS = {"Activation": "activations, labels", "Gradient": "gradients", "Weights": "readout"}


class NoModules(contextlib.nullcontext[None]):
    """In the place of the counter's list of modules being called, whose hooks don't go together
    with `autograd.grad`."""

    parents = ("Global",)


class Counted:
    """A stage that adds up the products of its ops in `counts`, by (worker, op)."""

    def __init__(self, design: Design, group: Group, counts: Counter[tuple[str, str]]) -> None:
        self._stage = make_stage(design, group)
        self._name, self._counts = group.name, counts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stage, name)
        if name not in (*LEARNING, *PREDICTING):
            return found

        def op(*args: Any, **options: Any) -> Any:
            # The attention that is counted is the one that consists of two products.
            counter = FlopCounterMode(display=False)
            counter.mod_tracker = NoModules()
            with sdpa_kernel(SDPBackend.MATH), counter:
                done = found(*args, **options)
            self._counts[self._name, name] += counter.get_total_flops()
            return done

        return op


def flops(rule: str) -> tuple[float, float]:
    """A batch's at the stage in the middle: without its generator, and of the generator alone."""
    counts, batches = Counter[tuple[str, str]](), 4
    simulate(
        design(rule, batches),
        seed=0,
        maths=True,
        check=False,
        stages=lambda design, group: Counted(design, group, counts),
    )
    own, generator = (
        sum(counts[MIDDLE, op] for op in ops) / batches for ops in (LEARNING, PREDICTING)
    )
    return own, generator


def sent(schedule: run.Table) -> dict[str, float]:
    """Bytes a character that pass between two stages in training, the mean over all neighbours, by
    kind of message."""
    found = Counter[str]()

    def note(sender: str, to: str, message: Message) -> bool:
        tested = isinstance(message, Activation) and message.evaluate
        if isinstance(message, WithTensors) and not tested:
            kind = type(message).__name__
            found[kind] += sum(tensor.nbytes for tensor in message.tensors.values())
        return False

    chosen = design(run.BACKPROP, BATCHES, schedule=schedule)
    simulate(chosen, seed=0, maths=True, check=False, lose=note)
    each = BATCHES * run.BATCH * run.WINDOW * (STAGES - 1)
    return {kind: count / each for kind, count in found.items()}


def design(rule: str, batches: int, **changes: Any) -> Design:
    tables = json.loads(json.dumps(dict(run.job(rule, STAGES, batches, 1e-3, 0).tables)))
    tables["data"]["test_part"] = 0.003
    tables["run"] |= {"epochs": 10, "evaluate_every": 10.0}
    return run.design_of(tables | changes)


def arithmetic() -> str:
    rows = []
    for rule in RULES:
        own, generator = flops(rule)
        cells = f"{own / 1e6:.1f}", f"{generator / 1e6:.1f}", f"{generator / own:.3f}"
        rows.append([rule, *cells])
    return table(["rule", "stage, Mflop a batch", "generator", "ratio"], rows)


def traffic() -> str:
    found = {rule: sent(schedule) for rule, schedule in SCHEDULES.items()}
    base = sum(found["1f1b"].values())
    rows = []
    for rule, kinds in found.items():
        cells = [f"{kinds.get(kind, 0):.2f}" for kind in KINDS]
        total = sum(kinds.values())
        rows.append([rule, *cells, f"{total:.2f}", f"{total / base:.4f}"])
    return table(["rule", *KINDS.values(), "all", "over 1f1b"], rows)


def main() -> None:
    torch.set_num_threads(1)
    fill_in(run.README, {"arithmetic": arithmetic(), "traffic": traffic()})


if __name__ == "__main__":
    main()
