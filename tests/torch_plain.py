"""The training loop that a user of PyTorch would write, to hold runs over workers against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from asyncdni import config
from asyncdni.data import describe, open_batches
from asyncdni.imports import allowing, import_named
from asyncdni.nn.torch.fields import Field, call_joined
from asyncdni.nn.torch.layer import main_output

__all__ = ["batches_of", "differences", "one_thread", "plain_loop", "trained"]

#: How optimizers of an experiment are made in PyTorch.
_OPTIMIZERS: dict[type[Any], Callable[[Any, Any], Any]] = {
    config.Sgd: lambda given, parameters: torch.optim.SGD(
        parameters, given.learning_rate, given.momentum, nesterov=given.nesterov, fused=True
    ),
    config.Adam: lambda given, parameters: torch.optim.Adam(
        parameters, given.learning_rate, (given.beta1, given.beta2), given.epsilon, fused=True
    ),
    config.TorchOptimizer: lambda given, parameters: getattr(torch.optim, given.kind)(
        parameters, lr=given.learning_rate, **given.options
    ),
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this context, PyTorch computes with one thread, as workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trained(chosen: config.Experiment, microbatches: int = 1) -> nn.Module:
    """The model of the experiment's `[model]`, trained by a plain loop."""
    assert chosen.model is not None
    torch.manual_seed(chosen.run.seed)
    make: Any = import_named(chosen.model.build, "model", allow_import=True)
    model: nn.Module = make(**chosen.model.arguments)
    with one_thread():
        plain_loop(model, chosen, microbatches)
    return model


def plain_loop(model: nn.Module, chosen: config.Experiment, microbatches: int = 1) -> None:
    """Train `model` on the experiment's data: cross-entropy, summed over a microbatch; one step a
    batch on the gradients divided by its number of samples."""
    learned = [one for one in model.parameters() if one.requires_grad]
    optimizer = _OPTIMIZERS[type(chosen.optimizer)](chosen.optimizer, learned)
    fields = _fields(chosen)
    for parts in _split(chosen, model, microbatches):
        optimizer.zero_grad()
        for some, targets in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=chosen.run.autocast is not None):
                outputs = main_output(call_joined(model, some, fields))
            loss = functional.cross_entropy(
                outputs.float().flatten(0, -2), targets.flatten(), reduction="sum"
            )
            loss.backward()
        for one in learned:
            one.grad.div_(sum(len(some) for some, _ in parts))
        optimizer.step()


def _split(
    chosen: config.Experiment, model: nn.Module, microbatches: int
) -> Iterator[list[tuple[Any, Any]]]:
    """Each batch as its microbatches, which may have lengths of their own."""
    size = chosen.data.batch_size // microbatches
    with allowing(True):
        meta = describe(chosen.data)
    if not meta.varying:
        for x, y in batches_of(chosen, model):
            yield list(zip(x.split(size), y.split(size), strict=True))
        return
    parts: list[tuple[Any, Any]] = []
    read = 0  # of an epoch
    for part in batches_of(chosen, model, size):
        parts.append(part)
        read += len(part[0])
        if read % chosen.data.batch_size == 0 or read == meta.train_samples:
            yield parts
            parts, read = [], read % meta.train_samples


def batches_of(
    chosen: config.Experiment, model: nn.Module, size: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """All training batches, of the experiment's size if no other is given."""
    size, run = size or chosen.data.batch_size, chosen.run
    integers = any(isinstance(one, nn.Embedding) for one in model.modules())
    with allowing(True):
        batches = open_batches(chosen.data, run.seed)
    for epoch in range(run.epochs):
        for index in range(batches.batches_per_epoch(size)):
            batch = batches.read(epoch, index, size, run.seed, np.dtype(run.dtype))
            x = torch.tensor(batch["h"])
            y = torch.tensor(batch["y"])
            if "mask" in batch:
                y[~torch.tensor(batch["mask"])] = -100  # cross_entropy leaves these out
            yield x.long() if integers and not batches.meta.fields else x, y


def _fields(chosen: config.Experiment) -> tuple[Field, ...]:
    with allowing(True):
        meta = describe(chosen.data)
    sign = -1 if meta.varying else 1
    return tuple(
        Field(one.name, one.kind, (sign * one.shape[0], *one.shape[1:]) if one.shape else ())
        for one in meta.fields
    )


def differences(weights: Mapping[str, np.ndarray], model: nn.Module) -> list[str]:
    """What in "STAGE.0.NAME" arrays has other bits than the model's NAME, with how far apart they
    are; also names that are missing."""
    parameters = model.named_parameters(remove_duplicate=False)
    own = {**dict(parameters), **dict(model.named_buffers())}
    found = {name.split(".", 2)[2]: array for name, array in weights.items()}
    wrong = [f"{name} is missing" for name in sorted(own.keys() ^ found.keys())]
    for name in own.keys() & found.keys():
        expected = own[name].detach().numpy()
        if not np.array_equal(found[name], expected):
            apart = np.abs(found[name].astype(float) - expected).max()
            wrong.append(f"{name} differs by up to {apart:.3g}")
    return wrong
