"""A block: one declared stage, which joins its inputs and has layers, a loss and an optimizer.

A worker computes one block, or several that were fused. Weights, optimizer and random streams
belong to the block and are named after it, so they are the same however blocks are split over
workers. The parts of a block come first in this file: what it keeps of a batch (`BlockSlot`), its
loss (`Scoring`), its learning-rate decay (`Pace`), its watch over numbers that go wrong (`Watch`)
and the joining of its inputs (`join`, `split`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from asyncdni import config
from asyncdni.errors import DataError, NumericalError
from asyncdni.imports import Allowed
from asyncdni.network import Node
from asyncdni.nn import fused
from asyncdni.nn.base import Array, Layer, Loss, Optimizer, Slot, rows
from asyncdni.nn.check import FirstBatch
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.normalisation import rectify_in_norms
from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.nn.losses import WindowLoss, by_step, counted, make_loss
from asyncdni.nn.metrics import Average, Metric
from asyncdni.nn.optimizers import Adam, Sgd, clip_by_norm, flatten, norm, scale
from asyncdni.nn.streams import layer_streams
from asyncdni.schedules.base import Groups
from asyncdni.schedules.options import Late
from asyncdni.stages.base import Context, Score
from asyncdni.stages.numpy.versions import Copy, DoubleBuffer, Version, Versions

if TYPE_CHECKING:
    from asyncdni.nn.torch.layer import ModuleLayer

__all__ = [
    "Block",
    "BlockSlot",
    "Pace",
    "Scoring",
    "StageSlot",
    "Watch",
    "add_in_order",
    "join",
    "make_rate_scale",
    "split",
    "with_own_losses",
]


@dataclass(slots=True)
class BlockSlot:
    """What one block keeps of one batch from its forward to its backward."""

    layers: list[Slot]
    batch: int = 0  # its id
    own: Slot = field(default_factory=dict)  # joined inputs, summed gradients
    loss: Slot = field(default_factory=dict)
    y: Array | None = None  # the activation
    pushed: dict[int, Array] = field(default_factory=dict)  # by layer: gradients kept for `learn`
    version: Version | None = None  # the weights of its forward; None: late gradients don't occur


@dataclass(slots=True)
class StageSlot:
    """What a stage keeps of one batch between its ops: in each block, and at the exit."""

    blocks: dict[str, BlockSlot]
    context: Context = field(default_factory=dict)
    samples: int = 0
    gradients: Mapping[str, Array] = field(default_factory=dict)  # kept for `learn`
    prediction: Array | None = None
    generator: Slot = field(default_factory=dict)
    own: Slot = field(default_factory=dict)

    def drop_gradients(self) -> None:
        """Drop the gradients kept for `learn`: their memory may belong to a received message."""
        self.gradients = {}
        for block in self.blocks.values():
            block.pushed.clear()


class Scoring:
    """The loss that `node` names, of outputs (B, K) or, where samples are windows, (B, T, K)."""

    def __init__(
        self,
        node: Node,
        layers: Sequence[Layer],
        metrics: Sequence[Metric],
        allow_import: Allowed,
    ) -> None:
        """Raises `ConfigError` for an unknown loss."""
        assert node.loss is not None
        self._name = node.name
        self._answers = node.answers
        self._metrics = metrics
        self._loss = _make_loss(node.loss, layers, allow_import)
        # The same loss over windows, whose steps have targets of their own.
        self._windows = WindowLoss(self._loss) if len(node.output_shape) == 2 else None

    def forward(self, x: Array, context: Context, slot: Slot) -> Score:
        """The score of outputs x. Raises `DataError` where the context has no targets."""
        targets = context.get("y")
        if targets is None:
            raise DataError(f"stage {self._name} has a loss but its input carries no targets")
        outputs = 1 if targets.ndim < x.ndim else targets.shape[-1]
        if self._windows is None:
            loss, correct = self._loss.forward(x, targets, slot)
            return self._score(len(x), loss, correct, outputs)
        loss, correct, steps = self._windows.forward(x, targets, context.get("mask"), slot)
        return self._score(len(x), loss, correct, outputs, steps)

    def metrics(self, x: Array, context: Context) -> dict[str, Average]:
        """The further metrics of outputs x, by name. Raises `ConfigError` where a function of the
        user's fails."""
        y, chosen = context["y"], None
        if not self._metrics:
            return {}
        if self._windows is not None:
            x, y, chosen = by_step(x), by_step(y), counted(context.get("mask"))
        if chosen is not None:
            x, y = x[chosen], y[chosen]
        return {m.name: m.average(x, y) for m in self._metrics} if len(x) else {}

    def _score(
        self, count: int, loss: float, correct: int | None, outputs: int, steps: int | None = None
    ) -> Score:
        right = correct if self._answers else None
        return Score(self._name, count, float(loss), right, outputs, steps)

    def backward(self, slot: Slot) -> Array:
        """The gradient of the loss with respect to the last outputs; it belongs to the slot."""
        return (self._windows or self._loss).backward(slot)


def with_own_losses(
    score: Score | None, layers: Iterable[Slot], name: str, samples: int
) -> Score | None:
    """Add to `score` the losses that layers have of their own, such as a `gaussian` layer's
    divergence. `name` is the stage's; `samples` is the batch's size. None: there is no loss."""
    terms = [own["loss"] for own in layers if "loss" in own]
    if terms:
        score = score or Score(name, samples)
        score.loss += sum(terms)
    return score


@dataclass(frozen=True)
class Pace:
    """How far a run has come, for the learning-rate decay.

    Time is measured by the batches that have arrived and not by the updates made, since a stage may
    make more or fewer updates than planned (replays, random updates).
    """

    updates_per_epoch: int
    total_updates: int
    per_update: int = 1  # how many batches or microbatches make one update
    batches_per_epoch: int = 0  # (micro)batches; read only where an update has several

    def update_of(self, batch: int) -> int:
        """The index of the update that the batch or microbatch of this id is meant for."""
        return Groups(self.per_update, self.batches_per_epoch).index(batch)


def make_rate_scale(decay: config.Decay, pace: Pace) -> Callable[[int], float]:
    """A function that maps an update's index to the factor of its learning rate."""
    options = {
        name: getattr(decay, name) for name in ("epochs", "factor", "final") if hasattr(decay, name)
    }
    return partial(
        scale,
        str(decay.__struct_config__.tag),
        updates_per_epoch=pace.updates_per_epoch,
        total_updates=pace.total_updates,
        warmup_epochs=decay.warmup_epochs,
        **options,
    )


#: A running mean is the plain mean of so many first values; explosions are looked for after them.
_WARM_UP = 100
#: The weight of each later value in the running mean.
_SHARE = 0.01
_CURE = "lower optimizer.learning_rate or set optimizer.clip_norm"


class Watch:
    """Notices losses and gradients of one declared stage that are not finite or that explode, and
    does about them what the experiment's `[numbers]` says.

    Gradients are judged by their norm before any weight moves. The squared norm is one product of
    the vector with itself, and it is not finite as soon as one element is not. It also overflows
    for very large finite elements (1.8e19 in float32), which no training recovers from: they count
    as infinite.

    `means` holds, for each quantity, its running mean and the number of values in it, (2,) float64;
    it is empty where `[numbers]` does not ask to watch for explosions. Zeros are not counted,
    because generators predict zero at first.
    """

    def __init__(self, options: config.Numbers, stage: str) -> None:
        self.updates_left_out = 0
        self.fits_left_out = 0
        self._options = options
        self._stage = stage
        self._in_a_row = 0
        watched = ("loss", "gradient", "true_gradient") if options.explode is not None else ()
        self.means: dict[str, Array] = {name: np.zeros(2) for name in watched}

    def fault(self, quantity: str, value: float) -> str | None:
        """Say what is wrong with a value (the loss per sample, or a norm). Return None for a sound
        value, which then enters the running mean of its quantity."""
        if not math.isfinite(value):
            return f"is {value}"
        running = self.means.get(quantity)
        if running is None or value == 0.0:
            return None
        mean, seen = running.tolist()
        explode = self._options.explode
        if seen >= _WARM_UP and explode is not None and value > explode * mean:
            return (
                f"is {value:.4g}, more than {explode:g} (numbers.explode) times its running mean "
                f"of {mean:.4g}"
            )
        running += (value - mean) * max(1.0 / (seen + 1.0), _SHARE), 1.0
        return None

    def leave_out(self, what: str) -> None:
        """Accept under the policy "skip" that something is left out; `what` says what was wrong.
        Raises `NumericalError` under the other policies."""
        if self._options.policy != "skip":
            raise NumericalError(
                f'{what}: {_CURE}, or leave such updates out with numbers.policy = "skip"'
            )

    def update_left_out(self, what: str) -> None:
        """Count an update that is left out. Raises `NumericalError` as `leave_out` does, and after
        too many in a row."""
        self.leave_out(what)
        self.updates_left_out += 1
        self._in_a_row += 1
        if self._in_a_row >= self._options.skips_max:
            raise NumericalError(
                f"stage {self._stage} has left out {self._in_a_row} updates in a row "
                f"(numbers.skips_max), so skipping does not help: {_CURE}; the last time {what}"
            )

    def fit_left_out(self, what: str) -> None:
        """Count a fit of a generator, an input model or a late gradient that is left out. Raises
        `NumericalError` as `leave_out` does."""
        self.leave_out(what)
        self.fits_left_out += 1

    def updated(self) -> None:
        """Reset the count of left-out updates in a row: the stage has made an update."""
        self._in_a_row = 0


def join(node: Node, inputs: Sequence[Array], own: Slot) -> Array:
    """The sum or concatenation of a stage's inputs, as `node` says, in an array of the slot `own`.
    A single input is returned as it is."""
    if len(inputs) == 1:
        return inputs[0]
    joined = rows(own, "joined", (len(inputs[0]), *node.joined_shape), inputs[0].dtype)
    if node.join == "concat":
        return np.concatenate(inputs, axis=node.join_axis, out=joined)
    return add_in_order(inputs, joined)


def split(node: Node, grad: Array) -> list[Array]:
    """The gradient of each input, in declared order, from the gradient `grad` of the joined one."""
    shapes = node.input_shapes
    if len(shapes) == 1 or node.join == "sum":
        return [grad] * len(shapes)
    axis = node.join_axis
    edges = np.cumsum([shape[axis] for shape in shapes])[:-1]
    return [np.ascontiguousarray(part) for part in np.split(grad, edges, axis=axis)]


def add_in_order(terms: Sequence[Array], out: Array) -> Array:
    """Write the sum of `terms` into `out`. Terms are added in the given order, because the last
    bits of a floating-point sum depend on it."""
    np.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        out += term
    return out


#: The context of an op that goes through the present weights.
_LIVE_WEIGHTS = nullcontext()
#: Arrays of layers whose names begin so serve training only: the state carried from window to
#: window belongs to the data streams of a run, and a `Future` is a generator.
_CARRIED = "carried."
_TRAINING = (_CARRIED, "future.")
_STOP = config.Numbers()


class Block:
    """Forward, backward and update of one declared stage; see `stages.base.Stage`."""

    def __init__(
        self,
        node: Node,
        optimizer: config.Optimizer,
        *,
        dtype: np.dtype[Any],
        seed: int,
        pace: Pace,
        delayed: Late | None = None,
        numbers: config.Numbers = _STOP,
        allow_import: Allowed = False,
        streams: int | None = None,
        empty: bool = False,
        computing: Mapping[str, Any] | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        """Args:
        delayed: what to do about gradients that come late; None: none do.
        numbers: what to do about losses and gradients that are not finite.
        streams: the number of parallel streams whose state recurrent layers carry from one batch to
            the next; None: each sample is a whole sequence.
        empty: whether layers may go without initial weights, as others are loaded in their place.
        computing: how modules of PyTorch compute; see `nn.torch.layer.ModuleLayer.compute_with`.
        metrics: what is computed of the test set beside the loss.
        """
        self.node = node
        self.updates, self.newest = 0, 0  # newest: the highest id of a batch so far; see `_meet`
        self.watch = Watch(numbers, node.name)
        self._pace = pace
        # Cached: the factor is needed several times between two updates.
        self._rate_scale = lru_cache(maxsize=2)(make_rate_scale(optimizer.decay, pace))
        self._options = optimizer
        self.dtype = dtype
        self._layers, shapes = _built(node, node.name, dtype, seed, allow_import, empty)
        ends = any(node.inputs_vary), node.varying
        self._first_batch = FirstBatch(_layer_names(node), shapes, dtype, ends)
        self._params, self._grads = flatten(self._layers)
        self._modules = _bound(self._layers, computing)
        if not self._modules and self._params.size >= fused.PAYS_FROM:
            fused.prepare(dtype)
        if node.weights:  # weights start as the named stage's; other random streams are its own
            there, _ = _built(node, node.weights, dtype, seed, allow_import)
            np.copyto(self._params, flatten(there)[0])
        self.optimizer = _make_optimizer(optimizer, self._layers, allow_import)
        self.optimizer.start(self._params)
        scored = bool(node.loss)
        self._scoring = Scoring(node, self._layers, metrics, allow_import) if scored else None
        self._recurrent = {
            i: layer for i, layer in enumerate(self._layers) if isinstance(layer, Recurrent)
        }
        #: By position: what layers do about a batch that is released, where they do anything.
        self._releases = [
            (i, layer.release) for i, layer in enumerate(self._layers) if hasattr(layer, "release")
        ]
        self._streams = streams
        if streams is not None:
            for layer in self._recurrent.values():
                layer.start(streams)  # makes the arrays that a checkpoint is copied into
        self.copies: dict[int, Copy] = {}  # of the weights, to be evaluated; by number
        self._test_states: dict[int, Array] = {}  # by layer: the state after the last test window
        self.versions = self._make_versions(delayed, pace) if delayed is not None else None
        self._doubled = delayed is not None and delayed.weights == "double"
        self._staleness = 0  # of the gradient learned from last, in updates

    @property
    def learned(self) -> bool:
        """Whether gradients have been accumulated since the last update."""
        return any(not layer.fresh for layer in self._layers)

    @property
    def gradient(self) -> Array:
        """The accumulated gradient (N,), in the order of the parameters; valid where `learned`."""
        return self._grads

    def slot(self) -> BlockSlot:
        return BlockSlot(layers=[{} for _ in self._layers])

    # --- forward ---------------------------------------------------------------------------------

    def forward(
        self, batch: int, inputs: Sequence[Array], context: Context, slot: BlockSlot
    ) -> tuple[Array, Score | None]:
        """The activation and score of a training batch; `inputs` come in declared order.

        A loss that is not finite, or explodes, raises `NumericalError`. Under `numbers.policy =
        "skip"` the score is None instead and the loss's gradient becomes NaN, so that every stage
        leaves the batch's update out."""
        if not self._doubled:
            self._meet(batch)
        x = join(self.node, inputs, slot.own)
        slot.batch = batch
        self._pass_context(batch, context, len(x), slot)
        with self._weights_of_forward(batch, slot):
            for i, (layer, own) in enumerate(zip(self._layers, slot.layers, strict=True)):
                x = layer.forward(x, own)
                if i in self._first_batch.outputs:
                    self._first_batch.check_output(i, x, len(inputs[0]))
        slot.y = x
        score = self._score(x, context, slot.loss)
        score = with_own_losses(score, slot.layers, self.node.name, len(x))
        if score is None:
            return x, None
        fault = self.watch.fault("loss", score.loss / max(1, score.count))
        if fault is None:
            return x, score
        self.watch.leave_out(f"the loss of stage {self.node.name} {fault} at batch {batch}")
        if self._scoring is not None:
            self._scoring.backward(slot.loss).fill(np.nan)
        return x, None

    def _pass_context(self, batch: int, context: Context, samples: int, slot: BlockSlot) -> None:
        """Tell the layers the batch's id and its context, through their slots."""
        if self._recurrent and "first" not in context:
            always = np.ones(samples, np.bool_)
            context = {**context, "first": always, "last": always}
        for own in slot.layers:
            own["batch"], own["context"] = batch, context

    def copy(self, number: int) -> None:
        """Copy weights and running statistics."""
        self.copies[number] = Copy(self._layers, self._params)

    def evaluate(
        self, inputs: Sequence[Array], context: Context, copy: int | None = None
    ) -> tuple[Array, Score | None]:
        """The activation and score of a test batch, with running statistics; of a copy, or (None)
        of the present weights.

        The score includes the losses that layers have of their own. Raises `NumericalError` for a
        loss that is not finite, under every `numbers.policy`: a test batch cannot be skipped."""
        x, own = join(self.node, inputs, {}), list[Slot]()
        with _LIVE_WEIGHTS if copy is None else self.copies[copy].in_use():
            for i, layer in enumerate(self._layers):
                if hasattr(layer, "own_loss"):
                    own.append({"loss": layer.own_loss(x)})
                if i in self._recurrent and "first" in context:
                    x = self._continued(i, x, context["first"])
                else:
                    x = layer.evaluate(x)
        score = with_own_losses(self._score(x, context, {}), own, self.node.name, len(x))
        if score is not None and not math.isfinite(score.loss):
            raise NumericalError(
                f"the loss of stage {self.node.name} is {score.loss} on the test set: "
                "lower optimizer.learning_rate or set optimizer.clip_norm"
            )
        if score is not None and self._scoring is not None:
            score.metrics = self._scoring.metrics(x, context)
        return x, score

    def _continued(self, i: int, x: Array, first: Array) -> Array:
        """The output of recurrent layer `i` for a test window x that follows the last one."""
        state = self._test_states.get(i)
        if state is not None and len(state) == len(x):
            state = np.where(first[:, None], 0, state).astype(state.dtype, copy=False)
        else:
            state = None
        y, end = self._recurrent[i].continued(x, state)
        self._test_states[i] = end
        return y

    def activation(self, inputs: Sequence[Array]) -> Array:
        """The activation, with running statistics and without the loss; each sample counts as a
        whole sequence."""
        x = join(self.node, inputs, {})
        for layer in self._layers:
            x = layer.evaluate(x)
        return x

    def _score(self, x: Array, context: Context, slot: Slot) -> Score | None:
        return None if self._scoring is None else self._scoring.forward(x, context, slot)

    # --- backward --------------------------------------------------------------------------------

    def backward(
        self,
        gradients: Sequence[Array],
        slot: BlockSlot,
        *,
        own_loss: bool,
        learn: bool,
        send: bool,
    ) -> list[Array] | None:
        """Push the sum of the consumers' `gradients`, which come in declared order, and of the own
        loss's gradient (if `own_loss`) back through the layers.

        Returns the gradient of each input in declared order, an empty list without `send`, or None
        where there is no gradient at all. Without `learn`, the gradient at each layer is kept in
        the slot, for a later call of `learn`.
        """
        if self._doubled:
            self._meet(slot.batch)
        terms = list(gradients)
        if own_loss and self._scoring is not None:
            terms.insert(0, self._scoring.backward(slot.loss))
        if not terms:
            return None
        grad: Array | None = self._sum(terms, slot)
        rate_scale = self.rate_scale()
        for own in slot.layers:
            own["own_loss"], own["rate_scale"] = own_loss, rate_scale
        with self._weights_of_backward(slot, learn):
            for i in range(len(self._layers) - 1, -1, -1):
                assert grad is not None
                if not learn:
                    slot.pushed[i] = grad
                layer, own, samples = self._layers[i], slot.layers[i], len(grad)
                grad = layer.backward(grad, own, learn=learn, send=send or i > 0)
                if i in self._first_batch.gradients and (send or i > 0):
                    self._first_batch.check_gradient(i, grad, samples)
        return split(self.node, grad) if send and grad is not None else []

    def learn(self, slot: BlockSlot) -> None:
        """Accumulate the gradients of the weights for a batch whose `backward` did not `learn`."""
        with self._weights_of_backward(slot, learn=True):
            for i, grad in slot.pushed.items():
                slot.layers[i]["own_loss"] = True
                self._layers[i].backward(grad, slot.layers[i], learn=True, send=False)

    def release(self, slot: BlockSlot) -> None:
        """Give back the weights and graphs kept for the batch: it needs them no longer."""
        for i, release in self._releases:
            release(slot.layers[i])
        if self.versions is not None and slot.version is not None:
            self.versions.give_back(slot.version)
            slot.version = None

    def _meet(self, batch: int) -> None:
        """Note that the run has come to this batch, which decides the learning rate: with its
        forward or, where results must not depend on how far forwards are ahead, with its backward.
        """
        self.newest = max(self.newest, batch)  # a replayed batch is older

    def _weights_of_forward(self, batch: int, slot: BlockSlot) -> AbstractContextManager[None]:
        if self.versions is None:
            return _LIVE_WEIGHTS
        slot.version = self.versions.take(self._pace.update_of(batch))
        return self.versions.forward(slot.version)

    def _weights_of_backward(self, slot: BlockSlot, learn: bool) -> AbstractContextManager[None]:
        if self.versions is None or slot.version is None:
            return _LIVE_WEIGHTS
        if learn:
            self._staleness = self.updates - slot.version.number
        return self.versions.backward(slot.version)

    def _sum(self, terms: list[Array], slot: BlockSlot) -> Array:
        if len(terms) == 1:
            return terms[0]
        assert slot.y is not None
        return add_in_order(terms, rows(slot.own, "grad_y", slot.y.shape, self.dtype))

    # --- update ----------------------------------------------------------------------------------

    def rate_scale(self, batch: int | None = None) -> float:
        """The factor of the learning rate at `batch` (None: at the newest); 1 at the start of a run
        without warm-up."""
        return self._rate_scale(self._pace.update_of(self.newest if batch is None else batch))

    def scale_gradients(self, factor: float) -> None:
        """Multiply the accumulated gradients by `factor`."""
        if self.learned:
            self._grads *= factor

    def update(self, samples: int) -> None:
        """Make one optimizer step on the accumulated gradients divided by `samples`.

        A gradient whose norm is not finite, or explodes, raises `NumericalError`. Under
        `numbers.policy = "skip"` the step is left out and counted instead.
        """
        self._keep_weights()
        if self._params.size and self.learned:
            self._update(1.0 / samples)
        else:
            self.updates += 1
        self.forget()

    def update_on(self, gradient: Array | None, samples: int, batch: int | None) -> None:
        """Make the step of `update` on a `gradient` (N,) that the caller has summed; None: no stage
        with these weights has learned. The learning rate is that of `batch` (None: the newest)."""
        self._keep_weights()
        if gradient is None:
            self.updates += 1
        else:
            np.copyto(self._grads, gradient)
            self._update(1.0 / samples, batch)
        self.forget()

    def _keep_weights(self) -> None:
        if self.versions is not None:
            self.versions.before_update()

    def forget(self) -> None:
        """Drop the gradients accumulated since the last update."""
        for layer in self._layers:
            layer.fresh = True

    def _update(self, scale: float, batch: int | None = None) -> None:
        most = self._options.clip_norm
        if most is not None:
            self._grads *= scale
            scale = 1.0
        found = norm(self._grads)
        fault = self.watch.fault("gradient", found * scale)
        if fault is not None:
            where = f"stage {self.node.name}, update {self.updates}"
            self.watch.update_left_out(f"{where}: the norm of its gradient {fault}")
            return
        if most is not None:
            clip_by_norm(self._grads, found, most)
        self._step(scale, batch)
        self.updates += 1
        self.watch.updated()

    def _step(self, scale: float, batch: int | None) -> None:
        rate = self._options.learning_rate * self.rate_scale(batch)
        if self.versions is not None:
            rate *= self.versions.rate_factor(self._staleness)
        self.optimizer.step(self._params, self._grads, rate, scale)
        if self.versions is not None:
            self.versions.after_update()
        self.weights_moved()

    def weights_moved(self) -> None:
        """Tell modules of PyTorch that their weights, or running statistics, have changed."""
        for module in self._modules:
            module.weights_moved()

    def _make_versions(self, delayed: Late, pace: Pace) -> Versions:
        anneal_updates = delayed.anneal_epochs * pace.updates_per_epoch
        if delayed.weights == "double":
            return DoubleBuffer(self._layers, self._params, anneal_updates=anneal_updates)
        return Versions(
            self._layers,
            self._params,
            stash=delayed.weights == "stash",
            look_ahead=delayed.look_ahead,
            anneal_updates=anneal_updates,
        )

    # --- weights ---------------------------------------------------------------------------------

    def parameters(self) -> int:
        """The number of weights."""
        return int(self._params.size)

    def state(self, copy: int | None = None) -> dict[str, Array]:
        """Weights and running statistics, named as in torch.nn.Sequential: "0.weight"; of a copy,
        or (None) the present ones."""
        with _LIVE_WEIGHTS if copy is None else self.copies[copy].in_use():
            return {
                f"{i}.{name}": array
                for i, name, array in _named(self._layers)
                if not name.startswith(_TRAINING)
            }

    def training_state(self) -> dict[str, Array]:
        """The other arrays that layers need to go on training, named as in `state`: the generators
        of recurrent layers and, unless each sample is a whole sequence, the state of the
        streams."""
        wanted = _TRAINING if self._streams is not None else _TRAINING[1:]
        return {
            f"{i}.{name}": array
            for i, name, array in _named(self._layers)
            if name.startswith(wanted)
        }


def _built(
    node: Node,
    name: str,
    dtype: np.dtype[Any],
    seed: int,
    allow_import: Allowed,
    empty: bool = False,
) -> tuple[list[Layer], list[tuple[int, ...]]]:
    """Build the layers of `node`; initial weights are those of a stage called `name`, or none where
    `empty` allows that. Returns the layers, and the shapes of one sample before, between and after
    them."""
    layers = [
        make_layer(spec, where=f"stage {node.name}, layer {i}", allow_import=allow_import)
        for i, spec in enumerate(node.layers)
    ]
    rectify_in_norms(layers)
    shapes = [tuple(node.joined_shape)]
    for i, layer in enumerate(layers):
        build = layer.build_empty if empty and _is_module(layer) else layer.build
        shapes.append(tuple(build(shapes[-1], dtype, layer_streams(seed, f"{name}.{i}"))))
    return layers, shapes


def _bound(layers: Sequence[Layer], computing: Mapping[str, Any] | None) -> list[ModuleLayer]:
    """Return those of the layers that are modules of PyTorch, ready to compute."""
    modules = [one for one in layers if _is_module(one)]
    for module in modules:
        if computing is not None:
            module.compute_with(**computing)
        module.bind()
    return modules


def _layer_names(node: Node) -> list[str]:
    """What messages call the layers of `node`: `stage hidden, layer 2 (mylayer:Scale)`."""
    names = [spec if isinstance(spec, str) else next(iter(spec)) for spec in node.layers]
    return [f"stage {node.name}, layer {i} ({name})" for i, name in enumerate(names)]


def _named(layers: Sequence[Layer]) -> list[tuple[int, str, Array]]:
    return [
        (i, name, array)
        for i, layer in enumerate(layers)
        for name, array in [*layer.params.items(), *layer.buffers.items()]
    ]


def _is_module(layer: Any) -> TypeGuard[ModuleLayer]:
    """Whether the layer is a module of PyTorch; told without importing PyTorch."""
    return hasattr(layer, "build_empty")


def _in_torch(layers: Iterable[Layer]) -> bool:
    """Whether one of the layers is a module of PyTorch. Then the stage's loss and optimizer are
    PyTorch's too, so that it has the bits of a plain PyTorch loop."""
    return any(_is_module(layer) for layer in layers)


def _make_optimizer(
    options: config.Optimizer, layers: Sequence[Layer], allow_import: Allowed
) -> Optimizer:
    if isinstance(options, config.TorchOptimizer) or _in_torch(layers):
        from asyncdni.nn.torch.optimizer import TorchOptimizer

        shapes = [array.shape for layer in layers for array in layer.params.values()]
        return TorchOptimizer(*_as_in_torch(options), shapes, allow_import=allow_import)
    match options:
        case config.Sgd():
            return Sgd(options.momentum, options.nesterov, options.weight_decay)
        case config.Adam():
            return Adam(options.beta1, options.beta2, options.epsilon, options.weight_decay)


def _as_in_torch(options: config.Optimizer) -> tuple[str, dict[str, Any]]:
    """The name of a class in `torch.optim`, and its options but the learning rate."""
    match options:
        case config.Sgd():
            names = "momentum", "nesterov", "weight_decay"
            return "SGD", {name: getattr(options, name) for name in names}
        case config.Adam():
            kind = "AdamW" if options.weight_decay else "Adam"
            betas = options.beta1, options.beta2
            return kind, {
                "betas": betas,
                "eps": options.epsilon,
                "weight_decay": options.weight_decay,
            }
        case config.TorchOptimizer():
            return options.kind, options.options


def _make_loss(name: str, layers: Sequence[Layer], allow_import: Allowed) -> Loss:
    if not _in_torch(layers):
        return make_loss(name)
    from asyncdni.nn.torch.loss import torch_loss

    return torch_loss(name, allow_import)
