"""Trains the network of an experiment file with PyTorch in one process; prints a summary as JSON.

    python benchmarks/peers/torch_mlp.py launch/mnist.toml --threads 2 [--set KEY=VALUE] [--seed 0]

Same initial weights, same batches in the same order, same optimizer and decay, evaluation after the
same batches as `asyncdni` has them for that file; the summary has the form of a run's summary.json.
Whatever can be had ready before the clock starts is: data as one float32 tensor, the orders of all
epochs, the learning rate of every step, and a few batches of warm-up whose effect is undone. With
--out DIR the summary is kept there, and printed again where it is there already. See README.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from asyncdni import config, experiment
from asyncdni.data import load
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.train import design_of
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.activations import Relu, Sigmoid, Tanh
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.optimizers import scale
from asyncdni.plan.build import Design, make_whole_stage
from asyncdni.store.tensors import write_atomically

# Else helper processes of torch.compile are still busy when training begins.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
try:
    import torch
except ImportError:
    sys.exit("this peer needs PyTorch: pip install 'asyncdni[torch]'")

WARM_UP = 20  # batches
EVALUATED_AT_ONCE = 2048  # samples

Tensor = torch.Tensor
#: The mean loss of a batch, to be differentiated.
LossOf = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    args = parsed()
    kept = args.out / "summary.json" if args.out else None
    if kept is None or not kept.is_file():
        text = json.dumps(run(args), indent=2) + "\n"
        if kept is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, text.encode())
    print(kept.read_text() if kept else text, end="")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--mode",
        choices=("eager", "compiled", "onednn"),
        default="eager",
        help="compiled: torch.compile of forward and loss, which needs a C++ compiler; onednn: "
        "matrix products by PyTorch's oneDNN in place of its MKL",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep DIR/summary.json")
    return parser.parse_args()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and returns the summary."""
    began = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    try:
        chosen = experiment.load(args.file, args.set, schedule="locked", seed=args.seed)
        design = design_of(chosen)
        model = build(design, args.mode)
        data = read(design)
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    trainer = Trainer(design, model, data, compiled=args.mode == "compiled")
    trainer.warm_up()
    measured = trainer.train()
    return {
        "version": f"torch {torch.__version__}",
        "schedule": "torch",
        "mode": args.mode,
        "seed": chosen.run.seed,
        "batch_size": chosen.data.batch_size,
        "epochs": chosen.run.epochs,
        "threads": args.threads,
        "data": msgspec.to_builtins(design.meta),
        "workers": 1,
        **measured,
        "wall_s": time.perf_counter() - began,
        "startup_s": None,
        "stages": [],
    }


# --- the same experiment -------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Everything a run reads, as tensors."""

    x_train: Tensor  # (N, D) float32
    y_train: Tensor  # (N,) int64
    x_test: Tensor
    y_test: Tensor
    orders: list[Tensor]  # of each epoch, (N,) int64


def read(design: Design) -> Data:
    """The experiment's data set, scaled as in our batches. Raises `DataError`."""
    run = design.experiment.run
    dataset = load(design.experiment.data, run.seed)
    orders = [torch.from_numpy(dataset.order(run.seed, e).copy()) for e in range(run.epochs)]
    x_train, x_test = (scaled(x) for x in (dataset.x_train, dataset.x_test))
    labels = (dataset.y_train, dataset.y_test)
    y_train, y_test = (torch.from_numpy(y.astype(np.int64)) for y in labels)
    return Data(x_train, y_train, x_test, y_test, orders)


def scaled(x: Any) -> Tensor:
    tensor = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
    return tensor.mul_(np.float32(1 / 255).item()) if x.dtype == np.uint8 else tensor


def build(design: Design, mode: str) -> torch.nn.Sequential:
    """The network with the very weights that our run of that seed starts from."""
    if mode == "onednn" and not torch.backends.mkldnn.is_available():
        refuse("this PyTorch has no oneDNN; use --mode eager")
    for node, before in zip(design.network.nodes, (None, *design.network.nodes), strict=False):
        if node.inputs != ((before.name,) if before else ("data",)):
            refuse(f"stage {node.name} reads {', '.join(node.inputs)}; expected a chain of stages")
    *hidden, last = design.network.nodes
    if any(node.loss for node in hidden) or last.loss != "cross_entropy":
        refuse("expected one loss, cross_entropy, at the last stage")
    stages: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for node in design.network.nodes:
        (width,) = node.joined_shape
        layers = []
        for spec in node.layers:
            layers.append(peer_of(make_layer(spec, where=node.place), width, mode))
            width = getattr(layers[-1], "out_features", width)
        stages[node.name] = torch.nn.Sequential(*layers)
    model = torch.nn.Sequential(stages)
    model.load_state_dict(
        {
            f"{stage}.{name}": torch.from_numpy(array.copy())
            for stage, arrays in make_whole_stage(design).state().items()
            for name, array in arrays.items()
        }
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.num_batches_tracked = None  # a count that nobody reads, at 2 us a batch
    return model


def peer_of(layer: object, inputs: int, mode: str) -> torch.nn.Module:
    """PyTorch's layer that does the same."""
    match layer:
        case Dense():
            kind = OneDNNLinear if mode == "onednn" else torch.nn.Linear
            return kind(inputs, layer.width, bias=layer.bias)
        case BatchNorm():
            return torch.nn.BatchNorm1d(inputs, eps=layer.epsilon, momentum=layer.momentum)
        case Relu():
            return torch.nn.ReLU()
        case Tanh():
            return torch.nn.Tanh()
        case Sigmoid():
            return torch.nn.Sigmoid()
        case _:
            refuse(f"layer {layer} has no peer here")


class OneDNNLinear(torch.nn.Linear):
    """The same with all three products by oneDNN.

    PyTorch leaves float32 products to MKL, which does without AVX-512 on processors that are not
    Intel's; oneDNN, in the same package, uses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        return grad_x, product(grad.t(), x.t()), grad.sum(0) if ctx.biased else None


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ (+ bias)."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def make_optimizer(options: config.Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    if not isinstance(options, config.Adam) or options.clip_norm is not None:
        refuse("expected optimizer adam without clip_norm")
    kind = torch.optim.AdamW if options.weight_decay else torch.optim.Adam
    return kind(
        model.parameters(),
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        fused=True,
    )


def learning_rates(design: Design) -> list[float]:
    """Of every update of the run."""
    options, plan = design.experiment.optimizer, design.plan
    decay = msgspec.to_builtins(options.decay)
    return [
        options.learning_rate
        * scale(
            **{"warmup_epochs": 0.0, **decay},
            update=update,
            updates_per_epoch=plan.batches_per_epoch,
            total_updates=plan.batches,
        )
        for update in range(plan.batches)
    ]


def refuse(why: str) -> NoReturn:
    sys.exit(f"error: this peer can't train that experiment: {why}")


# --- training ------------------------------------------------------------------------------------


class Trainer:
    """One run; clocks go from the first batch to the last and stand still during evaluations."""

    def __init__(
        self, design: Design, model: torch.nn.Sequential, data: Data, *, compiled: bool
    ) -> None:
        self.design, self.model, self.data = design, model, data
        self.batch_size = min(design.experiment.data.batch_size, len(data.x_train))
        self.rates = learning_rates(design)
        self.optimizer = make_optimizer(design.experiment.optimizer, model)
        self.loss_of: LossOf = lambda x, y: torch.nn.functional.cross_entropy(model(x), y)
        if compiled:
            # Static shapes: one graph for whole batches, one for the smaller last of an epoch.
            self.loss_of = torch.compile(self.loss_of, dynamic=False)
        self.x = torch.empty(self.batch_size, data.x_train.shape[1])

    def warm_up(self) -> None:
        """Batches of both sizes, so that threads, kernels and graphs are there; then undone."""
        initial = copy.deepcopy(self.model.state_dict())
        left_over = len(self.data.x_train) % self.batch_size
        for k in range(WARM_UP):
            size = left_over if left_over and k % 2 else self.batch_size
            self.step(torch.arange(size))
        self.model.load_state_dict(initial)
        self.optimizer = make_optimizer(self.design.experiment.optimizer, self.model)

    def train(self) -> dict[str, Any]:
        """What a summary says of time and scores."""
        train_s = cpu_s = 0.0
        history: list[dict[str, Any]] = []
        samples = start = 0
        for barrier in self.design.plan.barriers:
            wall, cpu = time.perf_counter(), time.process_time()
            for batch in range(start, barrier):
                samples += self.train_batch(batch)
            train_s += time.perf_counter() - wall
            cpu_s += time.process_time() - cpu
            start = barrier
            accuracy, loss = self.evaluate()
            history.append(
                {"samples": samples, "train_s": train_s, "accuracy": accuracy, "loss": loss}
            )
        return {
            "train_samples": samples,
            "train_s": train_s,
            "samples_per_s": samples / train_s if samples else None,
            "cpu_s": cpu_s,
            "test_accuracy": history[-1]["accuracy"],
            "test_loss": history[-1]["loss"],
            "history": history,
        }

    def train_batch(self, batch: int) -> int:
        """Returns the number of its samples."""
        epoch, index = divmod(batch, self.design.plan.batches_per_epoch)
        rows = self.data.orders[epoch][index * self.batch_size : (index + 1) * self.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[batch]
        self.step(rows)
        return len(rows)

    def step(self, rows: Tensor) -> None:
        # Into one buffer again and again: it stays in the cache.
        x = torch.index_select(self.data.x_train, 0, rows, out=self.x[: len(rows)])
        self.loss_of(x, self.data.y_train[rows]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean loss on the test set, with running statistics."""
        self.model.eval()
        right, total = 0, 0.0
        parts = zip(
            self.data.x_test.split(EVALUATED_AT_ONCE),
            self.data.y_test.split(EVALUATED_AT_ONCE),
            strict=True,
        )
        for x, y in parts:
            logits = self.model(x)
            total += torch.nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += int((logits.argmax(1) == y).sum().item())
        self.model.train()
        return right / len(self.data.y_test), total / len(self.data.y_test)


if __name__ == "__main__":
    main()
