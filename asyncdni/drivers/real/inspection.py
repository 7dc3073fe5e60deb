"""Tensors that neighbours send, held against the network before anybody computes with them.

The core knows which messages fit; to it tensors are opaque. A wrong shape, type or label would end
the worker in the middle of an op, for a fault that is its neighbour's. So would a NaN, which goes
through every layer until some later stage has a loss of NaN, and seems to be what has diverged.

Whether all elements are finite is seen from the product of a tensor with itself, one pass over
memory at the speed of a copy: 2 µs for 64 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from asyncdni.data.meta import mismatch
from asyncdni.errors import NumericalError
from asyncdni.messages import (
    DATA,
    Accused,
    Activation,
    Gradient,
    Message,
    Shared,
    Weights,
    WithTensors,
)
from asyncdni.nn.base import Array, fits
from asyncdni.plan.build import Design, find_exits, readout_forms
from asyncdni.plan.describe import parameters
from asyncdni.plan.plan import Group, read_by, shared_with
from asyncdni.schedules.base import Groups

__all__ = ["Inspection"]

_Shape = tuple[int, ...]


class Inspection:
    """Knows what each neighbour of one worker may send in one round: shapes of a sample, types.

    Where batches differ in length, an activation must have as many steps as the targets beside it,
    and no message more than the longest sample has. That a gradient is as long as the batch that it
    belongs to, the stage checks, which knows that batch."""

    def __init__(self, design: Design, group: Group, incarnations: Mapping[str, int]) -> None:
        """`incarnations` of the neighbours: what older ones have sent is not looked at."""
        network, meta = design.network, design.meta
        self._host = design.plan.groups[design.plan.host].name
        self._incarnations = dict(incarnations)
        self._dtype = np.dtype(design.experiment.run.dtype)
        self._rows = design.plan.rows
        self._name = group.name
        self._skips = design.experiment.numbers.policy == "skip"
        self._meta = meta
        self._classes = meta.outputs if meta.targets == "classes" else None
        self._tensors = {"h", "y", *meta.context}
        self._exits = exits = find_exits(design)
        self._activations: dict[str, tuple[_Shape, bool]] = {
            name: (meta.input_shape, meta.varying) if name == DATA else _form(design, exits[name])
            for name in group.producers
        }
        self._exit: tuple[_Shape, bool] = (), False
        self._readers: dict[str, set[str]] = {}  # by consumer, the stages that read from here
        if group.exit is not None:
            self._exit = _form(design, group.exit)
            for other in design.plan.groups:
                readers = {node.name for node in other.members if group.exit in node.inputs}
                if other.name in group.consumers:
                    self._readers[other.name] = readers
        groups = design.plan.groups
        self._groups = Groups(design.plan.per_update, design.plan.batches_per_epoch)
        #: By worker and stage there, the length of a microbatch's gradient of weights that are used
        #: here too.
        self._vectors = {
            other.name: {
                name: parameters(network.node(name), allow_import=design.allow_import)
                for name in shared_with(groups, other)[group.name]
            }
            for other in groups
            if group.name in shared_with(groups, other)
        }

        self._readout = readout_forms(design) if group.name in read_by(groups) else {}

    def message_bytes(self, rows: int) -> int:
        """Of all tensors of the longest message that a neighbour may send, where no batch has more
        samples than `rows`."""
        item = self._dtype.itemsize
        steps = max(1, self._meta.steps)
        context = steps * (8 if self._classes is not None else self._meta.outputs * item)
        context += sum(math.prod(one.shape) * item for one in self._meta.context.values())
        activations = [math.prod(shape) * item + context for shape, _ in self._activations.values()]
        readers = max(map(len, self._readers.values()), default=0)
        gradients = math.prod(self._exit[0]) * item * readers
        most = self._groups.size * item
        vectors = [most * sum(lengths.values()) for lengths in self._vectors.values()]
        weights = sum(math.prod(shape) * kind.itemsize for shape, kind in self._readout.values())
        return max(rows * max([gradients, *activations]), *vectors, weights)

    def accusation(self, message: Message) -> Accused | None:
        """What the coordinator is to be told of its sender; None where the tensors are right.

        A neighbour is accused once: from then on nothing of it is used. Raises `NumericalError`,
        with the stage that has sent it, for a tensor that is not finite: a stage that diverges is
        no worse than others, and would do so again. Under `numbers.policy = "skip"` those of
        training are let through, as every stage leaves such a batch out.
        """
        if not isinstance(message, WithTensors):
            return None
        home = self._host if message.sender == DATA else message.sender
        if self._incarnations.get(home) != message.incarnation:
            return None
        text = self._mismatch(message)
        if text is None:
            self._check_numbers(home, message)
            return None
        what = f"the {type(message).__name__} of {_number(message)} from worker {home}"
        return self.accuse(home, f"{what} does not fit: {text}")

    def accuse(self, worker: str, text: str) -> Accused | None:
        """What the coordinator is to be told of this neighbour; None where it has been already."""
        incarnation = self._incarnations.pop(worker, None)
        return None if incarnation is None else Accused(worker, incarnation, text)

    def _check_numbers(self, home: str, message: WithTensors) -> None:
        batch = -1  # of training: none is meant by weights, which last, and none by test batches
        if not isinstance(message, Weights) and not getattr(message, "evaluate", False):
            batch = message.batch
        if self._skips and batch >= 0:
            return
        for name, array in message.tensors.items():
            if array.dtype == self._dtype and not _is_finite(array):
                raise NumericalError(self._not_finite(home, message, name), batch)

    def _not_finite(self, home: str, message: WithTensors, name: str) -> str:
        what = f"of {_number(message)} to worker {self._name}, in which not all numbers are finite"
        if isinstance(message, Activation) and (message.sender == DATA or name != "h"):
            return (
                f"worker {home} has sent data {what}: look for NaN and infinity in the data set, "
                "or for a fault of that host"
            )
        kind = type(message).__name__.lower()
        stage = name
        if isinstance(message, Activation | Weights):
            stage = self._exits.get(home, home)
        return (
            f"stage {stage} has sent the {kind} {what}: its numbers have gone wrong, lower "
            "optimizer.learning_rate or set optimizer.clip_norm, or leave such updates out with "
            'numbers.policy = "skip"'
        )

    def _mismatch(self, message: Message) -> str | None:
        match message:
            case Activation(sender=sender, tensors=tensors):
                form = self._activations.get(sender)
                if form is None:
                    return None  # the core knows better what to say
                of = self._rows.of_test if message.evaluate else self._rows.of
                rows = max(0, of(message.batch))
                if message.samples != rows:
                    return f"it says that it has {message.samples} rows, expected {rows}"
                found = _named(tensors, self._tensors) or _mismatch(
                    "h", tensors["h"], rows, form, self._dtype
                )
                return found or self._wrong_context(tensors, rows, form[1])
            case Gradient(sender=sender, tensors=tensors, batch=batch):
                readers = self._readers.get(sender)
                if readers is None:
                    return None
                return _named(tensors, readers) or self._wrong_gradients(tensors, batch)
            case Shared(sender=sender, tensors=tensors, batch=batch):
                return self._wrong_vectors(tensors, self._vectors.get(sender, {}), batch)
            case Weights(tensors=tensors):
                return self._wrong_weights(tensors)
        return None

    def _wrong_weights(self, tensors: Mapping[str, Array]) -> str | None:
        found = _named(tensors, set(self._readout))
        for name, (shape, dtype) in self._readout.items():
            found = found or _wrong(name, tensors[name], shape, dtype)
        return found

    def _wrong_vectors(
        self, tensors: Mapping[str, Array], lengths: Mapping[str, int], batch: int
    ) -> str | None:
        if not set(tensors) <= set(lengths):
            return f"it has tensors {sorted(tensors)}, expected of {sorted(lengths)}"
        for name, gradient in tensors.items():
            shape = self._groups.length(batch), lengths[name]
            found = _wrong(f"gradient of {name}", gradient, shape, self._dtype)
            if found:
                return found
        return None

    def _wrong_context(
        self, tensors: Mapping[str, Array], samples: int, varying: bool
    ) -> str | None:
        y, steps = tensors["y"], None
        if self._meta.varying and self._meta.steps:
            steps = tensors["h"].shape[1] if varying else _steps(y, self._meta.steps)
        found = mismatch(self._meta, tensors, samples, self._dtype, steps)
        if found or self._classes is None or not len(y):
            return found and f"its {found}"
        least, most = int(y.min()), int(y.max())
        if least < 0 or most >= self._classes:
            return f"its y has labels from {least} to {most}, expected 0 to {self._classes - 1}"
        return None

    def _wrong_gradients(self, tensors: Mapping[str, Array], batch: int) -> str | None:
        rows = self._rows.of(batch)
        for name, grad in tensors.items():
            found = _mismatch(f"gradient for {name}", grad, rows, self._exit, self._dtype)
            if found:
                return found
        return None


def _number(message: WithTensors) -> str:
    if isinstance(message, Weights):
        return f"version {message.version}"
    return f"batch {message.batch}"


def _named(tensors: Mapping[str, Any], expected: set[str]) -> str | None:
    if set(tensors) == expected:
        return None
    return f"it has tensors {sorted(tensors)}, expected {sorted(expected)}"


def _form(design: Design, stage: str) -> tuple[_Shape, bool]:
    """The shape of a sample of the stage's output, and whether its first axis is the most that a
    batch's length may be."""
    node = design.network.node(stage)
    return node.output_shape, node.varying


def _steps(y: Array, longest: int) -> int:
    """The steps that targets (B, T) have, as far as there may be so many."""
    return y.shape[1] if y.ndim > 1 and 0 < y.shape[1] <= longest else longest


def _mismatch(
    name: str, found: Array, rows: int, form: tuple[_Shape, bool], dtype: np.dtype[Any]
) -> str | None:
    """Words for an array that has not so many rows of that form."""
    shape, varying = form
    if varying and fits(found.shape[1:], shape, varying):
        return _wrong(name, found, (rows, *found.shape[1:]), dtype)
    text = _wrong(name, found, (rows, *shape), dtype)
    return f"{text}, or fewer steps" if text and varying else text


def _wrong(name: str, found: Array, shape: _Shape, dtype: np.dtype[Any]) -> str | None:
    if found.shape == shape and found.dtype == dtype:
        return None
    return f"its {name} is {found.dtype} {found.shape}, expected {dtype} {shape}"


def _is_finite(array: Array) -> bool:
    flat = array.reshape(-1)
    # The product overflows before its elements do.
    return math.isfinite(float(flat.dot(flat))) or bool(np.isfinite(flat).all())
