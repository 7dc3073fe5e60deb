"""Backpropagation through any graph in one process: no worker, no stage object, only layers, losses
and optimizers. What workers give is held against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni import config
from asyncdni.data import open_batches
from asyncdni.messages import DATA
from asyncdni.network import Node
from asyncdni.nn.base import Array
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.nn.losses import WindowLoss, make_loss
from asyncdni.nn.optimizers import Adam, Sgd, flatten
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.build import Design

__all__ = ["Weights", "train"]

Weights = dict[str, dict[str, Array]]
#: Arrays of layers that are no weights: see `stages.numpy.block`.
_TRAINING = ("carried.", "future.")


def train(design: Design) -> Weights:
    """Weights and running statistics after the whole run, by stage and name."""
    run, data = design.experiment.run, design.experiment.data
    batches = open_batches(data, run.seed)
    per_epoch = batches.batches_per_epoch(data.batch_size)
    stages = {node.name: _Stage(node, design) for node in design.network.nodes}
    for number in range(run.epochs * per_epoch):
        epoch, index = divmod(number, per_epoch)
        context = batches.read(epoch, index, data.batch_size, run.seed, run.dtype)
        x = context.pop("h")
        _learn(stages, number, x, context)
        for stage in stages.values():
            stage.update(len(x))
    return {name: stage.weights() for name, stage in stages.items()}


def _learn(stages: dict[str, _Stage], number: int, x: Array, context: dict[str, Array]) -> None:
    known = {DATA: x}
    for name, stage in stages.items():
        inputs = [known[one].copy() for one in stage.node.inputs]
        known[name] = stage.forward(number, inputs, context)
    grads: dict[str, dict[str, Array]] = {name: {} for name in known}
    for name, stage in reversed(stages.items()):
        terms = [grads[name][consumer] for consumer in stage.node.consumers]
        for producer, grad in zip(stage.node.inputs, stage.backward(terms), strict=True):
            grads[producer][name] = grad.copy()


class _Stage:
    """The layers of one declared stage."""

    def __init__(self, node: Node, design: Design) -> None:
        run, options = design.experiment.run, design.experiment.optimizer
        self.node, self._rate = node, options.learning_rate
        self._layers = [make_layer(spec, where=node.name) for spec in node.layers]
        shape = node.joined_shape
        for i, layer in enumerate(self._layers):
            streams = layer_streams(run.seed, f"{node.name}.{i}")
            shape = layer.build(shape, np.dtype(run.dtype), streams)
        self._params, self._grads = flatten(self._layers)
        adam = isinstance(options, config.Adam)
        self._optimizer = Adam() if adam else Sgd(getattr(options, "momentum", 0.0))
        self._optimizer.start(self._params)
        if "first" in design.meta.context:
            for layer in self._layers:
                if isinstance(layer, Recurrent):
                    layer.start(design.experiment.data.batch_size)
        self._loss = make_loss(node.loss) if node.loss else None
        # Kept from batch to batch, as futures of recurrent layers wait for the next window.
        self._slots: list[dict[str, Any]] = [{} for _ in self._layers]

    def forward(self, number: int, inputs: list[Array], context: dict[str, Array]) -> Array:
        x = inputs[0]
        if len(inputs) > 1 and self.node.join == "sum":
            x = sum(inputs[1:], x)
        elif len(inputs) > 1:
            x = np.concatenate(inputs, axis=self._axis())
        for layer, slot in zip(self._layers, self._slots, strict=True):
            slot.update(batch=number, context=context, own_loss=True, rate_scale=1.0)
            x = layer.forward(x, slot)
        self._errors = self._error(x, context) if self._loss is not None else []
        return x

    def _error(self, x: Array, context: dict[str, Array]) -> list[Array]:
        assert self._loss is not None
        slot: dict[str, Any] = {}
        if x.ndim == 3:
            windows = WindowLoss(self._loss)
            windows.forward(x, context["y"], context.get("mask"), slot)
            return [windows.backward(slot)]
        self._loss.forward(x, context["y"], slot)
        return [self._loss.backward(slot)]

    def backward(self, terms: list[Array]) -> list[Array]:
        """From the consumers' gradients in declared order to the gradient of each input."""
        first, *others = self._errors + terms
        grad = sum(others, first)
        for layer, slot in zip(self._layers[::-1], self._slots[::-1], strict=True):
            grad = layer.backward(grad, slot, learn=True, send=True)
        if self.node.join == "sum" or len(self.node.inputs) == 1:
            return [grad] * len(self.node.inputs)
        axis = self._axis()
        edges = np.cumsum([shape[axis] for shape in self.node.input_shapes])[:-1]
        return [np.ascontiguousarray(part) for part in np.split(grad, edges, axis=axis)]

    def _axis(self) -> int:
        """Channels of feature maps, else the last one."""
        return -3 if len(self.node.joined_shape) == 3 else -1

    def update(self, samples: int) -> None:
        if self._params.size:
            self._grads *= 1.0 / samples
            self._optimizer.step(self._params, self._grads, self._rate)
        for layer in self._layers:
            layer.fresh = True

    def weights(self) -> dict[str, Array]:
        return {
            f"{i}.{key}": array
            for i, layer in enumerate(self._layers)
            for key, array in [*layer.params.items(), *layer.buffers.items()]
            if not key.startswith(_TRAINING)
        }
