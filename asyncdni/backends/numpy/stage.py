"""The maths of one worker in NumPy: its blocks as a small graph, and a generator at its exit.

```
 from producers ──► block ──► block ──┬──► exit ──► to consumers
                      └──► block (own loss)   │
                                              └──► generator: ĝ of the exit's activation
```

Inside the stage gradients are exact; only what comes back to the exit may be synthetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asyncdni.backends.base import Agreement, Array, Forwarded
from asyncdni.backends.numpy.block import Block, BlockSlot, add_in_order
from asyncdni.errors import CheckpointError, RemoteProtocolError
from asyncdni.messages import DATA
from asyncdni.nn.base import Slot
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.input_model import InputModel
from asyncdni.nn.layers.slots import rows
from asyncdni.schedules.base import Source

__all__ = ["AGREEMENT_EVERY", "NumpyStage"]

#: Stands for the consumers outside, where their gradient is predicted or corrected.
_SYNTHETIC = ""
#: Late parts of an update: they come without the stage's own loss, as means over their batch.
_LATE = (Source.DIFFERENCE, Source.SHARE)
#: It costs three passes over a gradient: it is measured on one fit in so many. An odd number, or
#: with `target = "half"` it would be measured on targets of one kind alone.
AGREEMENT_EVERY = 7
#: Slots kept for use again. More are free where many batches were in flight once and no longer are.
_RETIRED_MAX = 16


@dataclass(slots=True)
class _Slot:
    """The forward state of one batch."""

    blocks: dict[str, BlockSlot]
    context: Array | None = None
    samples: int = 0
    gradients: Mapping[str, Array] = field(default_factory=dict)  # kept for `learn`
    prediction: Array | None = None
    generator: Slot = field(default_factory=dict)
    own: Slot = field(default_factory=dict)

    def let_go(self) -> None:
        """Of gradients that came for `learn`: their memory may be a message's."""
        self.gradients = {}
        for block in self.blocks.values():
            block.pushed.clear()


class NumpyStage:
    """See `backends.base.Stage`."""

    def __init__(
        self,
        blocks: Sequence[Block],
        exit_name: str | None,
        generator: Generator | None = None,
        *,
        mix: float = 0.0,
        input_models: Mapping[str, InputModel] | None = None,
        agreement_every: int = AGREEMENT_EVERY,
    ) -> None:
        """`mix`: the true gradient's share; `input_models`: by producer, for synthetic inputs;
        `agreement_every`: fits from one measurement of the generator to the next."""
        self._blocks = {block.node.name: block for block in blocks}
        self._exit = exit_name
        self._generator = generator
        self._slots: dict[int, _Slot] = {}
        self._retired: list[tuple[_Slot, Callable[[], bool]]] = []
        self._samples = 0  # in the accumulated gradients
        self._corrected = False  # they hold late corrections, as means over their batches
        self._mix = mix
        self._input_models = dict(input_models or {})
        self._agreement_every = agreement_every
        self._fits = 0
        self._relays = self._find_relays()
        self._shapes = {
            name: shape
            for block in blocks
            for name, shape in zip(block.node.inputs, block.node.input_shapes, strict=True)
        }

    def _find_relays(self) -> set[str]:
        """Blocks through which a gradient reaches a producer outside."""
        relays: set[str] = set()
        for name, block in self._blocks.items():
            outside = any(i not in self._blocks and i != DATA for i in block.node.inputs)
            if outside or relays.intersection(block.node.inputs):
                relays.add(name)
        return relays

    def parameters(self) -> int:
        """How many, without the generator's."""
        return sum(block.parameters() for block in self._blocks.values())

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, batch: int, inputs: Mapping[str, Array], context: Array | None) -> Forwarded:
        slot = self._slots[batch] = self._acquire()
        slot.context, slot.prediction = context, None
        result = Forwarded(None)
        known = {**inputs, **self._predicted_inputs(inputs, context)}
        for name, block in self._blocks.items():
            xs = self._inputs(block, known)
            slot.samples = len(xs[0])
            known[name], score = block.forward(batch, xs, context, slot.blocks[name])
            if score is not None:
                result.scores.append(score)
        result.activation = known[self._exit] if self._exit else None
        return result

    def evaluate(self, inputs: Mapping[str, Array], context: Array | None) -> Forwarded:
        result = Forwarded(None)
        known = dict(inputs)
        for name, block in self._blocks.items():
            known[name], score = block.evaluate(self._inputs(block, known), context)
            if score is not None:
                result.scores.append(score)
        result.activation = known[self._exit] if self._exit else None
        return result

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Activation of every block, with running statistics and without any loss."""
        known = dict(inputs)
        for name, block in self._blocks.items():
            known[name] = block.activation(self._inputs(block, known))
        return known

    def _inputs(self, block: Block, known: Mapping[str, Array]) -> list[Array]:
        """In declared order, checked: they may have come over the wire."""
        xs = [known[name] for name in block.node.inputs]
        for name, x, shape in zip(block.node.inputs, xs, block.node.input_shapes, strict=True):
            if x.shape[1:] != shape or x.dtype != block.dtype or len(x) != len(xs[0]):
                raise RemoteProtocolError(
                    f"stage {block.node.name} got {x.dtype} {x.shape} from {name}, expected "
                    f"{block.dtype} {(len(xs[0]), *shape)}"
                )
        return xs

    # --- backward --------------------------------------------------------------------------------

    def backward(
        self,
        batch: int,
        gradients: Mapping[str, Array],
        *,
        source: Source,
        learn: bool,
        send: bool,
    ) -> dict[str, dict[str, Array]]:
        slot = self._slots[batch]
        if learn:
            self._count(slot, source)
        else:
            slot.gradients = gradients
        found: dict[str, dict[str, Array]] = {name: {} for name in self._blocks}
        if self._exit is not None:
            found[self._exit] = self._outside(slot, gradients, source)
        sent: dict[str, dict[str, Array]] = {}
        for name, block in reversed(self._blocks.items()):
            if not (learn or name in self._relays):
                continue
            pushed = block.backward(
                _in_order(block, found[name]),
                slot.blocks[name],
                own_loss=source not in _LATE,
                learn=learn,
                send=self._wants(block, learn, send),
            )
            for producer, grad in zip(block.node.inputs, pushed or (), strict=False):
                if producer in self._blocks:
                    found[producer][name] = grad
                elif producer != DATA:
                    sent.setdefault(producer, {})[name] = grad
        return sent if send else {}

    def learn(self, batch: int) -> None:
        slot = self._slots[batch]
        if len(self._relays) < len(self._blocks):  # some blocks have not been pushed through
            self.backward(batch, slot.gradients, source=Source.TRUE, learn=True, send=False)
        else:
            self._count(slot, Source.TRUE)
            for name, block in reversed(self._blocks.items()):
                block.learn(slot.blocks[name])
        slot.let_go()

    def _outside(
        self, slot: _Slot, gradients: Mapping[str, Array], source: Source
    ) -> dict[str, Array]:
        """What comes back to the exit from other workers, or instead of it."""
        assert self._exit is not None
        y = slot.blocks[self._exit].y
        assert y is not None
        for name, grad in gradients.items():
            if grad.shape != y.shape or grad.dtype != y.dtype:
                raise RemoteProtocolError(
                    f"stage {self._exit} got a gradient {grad.dtype} {grad.shape} from {name}, "
                    f"expected {y.dtype} {y.shape}"
                )
        if source is Source.TRUE:
            return dict(gradients)
        if source is Source.SYNTHETIC:
            return {_SYNTHETIC: self._synthetic(slot)}
        true = self._true(slot, gradients)
        late = rows(slot.own, "late", true.shape, true.dtype)
        if source is Source.DIFFERENCE:
            assert slot.prediction is not None, "a synthetic gradient was not asked for"
            np.subtract(true, slot.prediction, out=late)
        share = self._mix if source is Source.SHARE else 1.0
        # A mean over samples: it goes with a batch of any size.
        np.multiply(true if source is Source.SHARE else late, share / slot.samples, out=late)
        return {_SYNTHETIC: late}

    def _synthetic(self, slot: _Slot) -> Array:
        """The prediction, or what a mix leaves of it."""
        assert slot.prediction is not None, "a synthetic gradient was not asked for"
        if not self._mix:
            return slot.prediction
        mixed = rows(slot.own, "mixed", slot.prediction.shape, slot.prediction.dtype)
        return np.multiply(slot.prediction, 1.0 - self._mix, out=mixed)

    def _true(self, slot: _Slot, gradients: Mapping[str, Array]) -> Array:
        assert self._exit is not None
        terms = _in_order(self._blocks[self._exit], gradients)
        if len(terms) == 1:
            return terms[0]
        return add_in_order(terms, rows(slot.own, "true", terms[0].shape, terms[0].dtype))

    def _wants(self, block: Block, learn: bool, send: bool) -> bool:
        """Somebody needs the gradient of the block's inputs."""
        return any(
            (learn or name in self._relays) if name in self._blocks else send
            for name in block.node.inputs
            if name != DATA
        )

    def _count(self, slot: _Slot, source: Source) -> None:
        """Late corrections come before the batch that they go with: make them sums like its own."""
        if source in _LATE:
            assert not self._samples, "a correction in the middle of a batch's own update"
            self._corrected = True
            return
        self._samples += slot.samples
        if self._corrected:
            for block in self._blocks.values():
                block.scale_gradients(slot.samples)
            self._corrected = False

    def update(self) -> None:
        # Corrections that no batch took along (the end of a segment) are means already.
        samples = self._samples or 1
        for block in self._blocks.values():
            block.update(samples)
        self._samples, self._corrected = 0, False

    # --- generator -------------------------------------------------------------------------------

    def predict(self, batch: int) -> None:
        slot = self._slots[batch]
        block, generator = self._at_exit()
        h = slot.blocks[block.node.name].y
        assert h is not None
        assert slot.context is not None
        flat = h.reshape(len(h), -1)
        predicted = generator.predict(flat, slot.context, slot.generator, block.rate_scale())
        slot.prediction = predicted.reshape(h.shape)

    def fit(self, batch: int, gradients: Mapping[str, Array]) -> Agreement | None:
        slot = self._slots[batch]
        block, generator = self._at_exit()
        true = self._true(slot, gradients)
        self._fits += 1
        agreement = None
        measured = (self._fits - 1) % self._agreement_every == 0
        if measured and slot.prediction is not None:
            agreement = _compare(slot.prediction, true)
        generator.fit(true.reshape(len(true), -1), slot.generator, block.rate_scale())
        return agreement

    def _at_exit(self) -> tuple[Block, Generator]:
        assert self._exit is not None and self._generator is not None
        return self._blocks[self._exit], self._generator

    # --- synthetic inputs ------------------------------------------------------------------------

    def _predicted_inputs(
        self, inputs: Mapping[str, Array], context: Array | None
    ) -> dict[str, Array]:
        """Of producers whose activations are not waited for."""
        if not self._input_models:
            return {}
        x = inputs[DATA]
        found = {}
        for producer, model in self._input_models.items():
            h = model.predict(x.reshape(len(x), -1), context)
            found[producer] = h.reshape(len(x), *self._shapes[producer])
        return found

    def fit_input(self, inputs: Mapping[str, Array], context: Array | None) -> None:
        x = inputs[DATA]
        rate_scale = next(iter(self._blocks.values())).rate_scale()
        for producer, model in self._input_models.items():
            h, shape = inputs[producer], (len(x), *self._shapes[producer])
            if h.shape != shape or h.dtype != x.dtype:
                raise RemoteProtocolError(
                    f"the input model got {h.dtype} {h.shape} from {producer}, "
                    f"expected {x.dtype} {shape}"
                )
            model.fit(x.reshape(len(x), -1), context, h.reshape(len(h), -1), rate_scale)

    # --- slots -----------------------------------------------------------------------------------

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        slot = self._slots.pop(batch)
        slot.let_go()  # of what was only passed on
        for name, block in self._blocks.items():
            block.release(slot.blocks[name])
        self._retired.append((slot, sent))
        if len(self._retired) > _RETIRED_MAX:
            del self._retired[0]  # ZeroMQ keeps what it has still to send

    def _acquire(self) -> _Slot:
        """The slot retired last whose arrays have left: its memory is still in the cache."""
        for i in range(len(self._retired) - 1, -1, -1):
            slot, sent = self._retired[i]
            if sent():
                del self._retired[i]
                return slot
        return _Slot({name: block.slot() for name, block in self._blocks.items()})

    # --- weights ---------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Array]]:
        return {name: block.state() for name, block in self._blocks.items()}

    def load(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        for name, arrays in self.state().items():
            given = state.get(name, {})
            for key, array in arrays.items():
                if key not in given or given[key].shape != array.shape:
                    found = given[key].shape if key in given else "nothing"
                    raise CheckpointError(
                        f"weights of stage {name}: {key} is {found}, expected {array.shape}"
                    )
                np.copyto(array, given[key])


def _in_order(block: Block, gradients: Mapping[str, Array]) -> list[Array]:
    names = (*block.node.consumers, _SYNTHETIC)
    return [gradients[name] for name in names if name in gradients]


def _compare(prediction: Array, true: Array) -> Agreement:
    """|p - g|² is worked out from three products, without an array of differences."""
    p, g = prediction.ravel(), true.ravel()
    pp, gg, pg = float(np.dot(p, p)), float(np.dot(g, g)), float(np.dot(p, g))
    apart = pp - 2 * pg + gg
    apart = 0.0 if apart < 0 else apart  # rounding; a NaN stays one
    norms = math.sqrt(pp * gg)
    return Agreement(
        cosine=pg / norms if norms > 0 else 0.0,
        relative_error=math.sqrt(apart / gg) if gg > 0 else 0.0,
        loss=apart / len(true),
    )
