"""How many bytes messages would have on the wire, headers left out: links of limited bandwidth
take their time by it."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from asyncdni.build import Design
from asyncdni.describe import parameters
from asyncdni.messages import DATA, Activation, Gradient, Message, Shared
from asyncdni.plan import shared_with

__all__ = ["EstimatedBytes", "MessageBytes", "tensor_bytes"]

_BATCHES_KEPT = 4096  # of a link; no gradient comes back later than that


class MessageBytes(Protocol):
    """Bytes of a message from one worker to another."""

    def __call__(self, sender: str, to: str, message: Message) -> int: ...


def tensor_bytes(sender: str, to: str, message: Message) -> int:
    """Of the tensors that `message` carries."""
    if isinstance(message, Activation | Gradient | Shared):
        return sum(tensor.nbytes for tensor in message.tensors.values())
    return 0


class EstimatedBytes:
    """The same for runs without arithmetic, whose tensors are tokens: by the shapes of the network.

    A gradient has as many samples as the activation of its batch that went the other way.
    """

    def __init__(self, design: Design) -> None:
        network = design.network
        itemsize = np.dtype(design.experiment.run.dtype).itemsize
        data_bytes = math.prod(network.data_shape) * itemsize
        self._sample_bytes = {DATA: data_bytes}  # of an activation, by producing node
        for group in design.plan.groups:
            if group.exit is not None:
                width = math.prod(network.node(group.exit).output_shape)
                self._sample_bytes[group.name] = width * itemsize
        targets = 8 if network.targets == "classes" else network.outputs * itemsize
        # Of a sample, by tensor.
        self._context_bytes = {"y": targets * max(1, network.steps), "x": data_bytes}
        for name, tensor in design.meta.context.items():
            size = 1 if tensor.dtype == "bool" else itemsize
            self._context_bytes[name] = math.prod(tensor.shape) * size
        #: Of the gradient of weights that several workers have, by declared stage.
        self._weights_bytes = {
            name: parameters(network.node(name), allow_import=design.allow_import) * itemsize
            for group in design.plan.groups
            for names in shared_with(design.plan.groups, group).values()
            for name in names
        }
        # By (producing worker, consumer), the samples of batches whose gradient has not come yet.
        self._samples: dict[tuple[str, str], dict[int, int]] = {}

    def __call__(self, sender: str, to: str, message: Message) -> int:
        match message:
            case Activation(sender=node, samples=samples, tensors=tensors):
                if not message.evaluate:
                    self._note((sender, to), message.batch, samples)
                context = sum(self._context_bytes.get(name, 0) for name in tensors)
                return samples * (self._sample_bytes[node] + context)
            case Gradient(batch=batch, tensors=tensors):
                samples = self._samples.get((to, sender), {}).pop(batch, 0)
                return samples * self._sample_bytes[to] * len(tensors)
            case Shared(tensors=tensors):
                return sum(self._weights_bytes[name] for name in tensors)
        return 0

    def _note(self, link: tuple[str, str], batch: int, samples: int) -> None:
        kept = self._samples.setdefault(link, {})
        kept[batch] = samples
        if len(kept) > _BATCHES_KEPT:  # some schedules send no gradients back
            del kept[next(iter(kept))]
