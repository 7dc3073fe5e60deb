"""The maths of one worker in NumPy: its blocks as a small graph, and a generator at its exit.

```
 from producers ──► block ──► block ──┬──► exit ──► to consumers
                      └──► block (own loss)   │
                                              └──► generator: ĝ of the exit's activation
```

Inside the stage gradients are exact; only the gradient at the exit may be synthetic. `Sharing`
makes the steps of weights that several stages use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from itertools import zip_longest

import numpy as np

from asyncdni.errors import CheckpointError, NumericalError, RemoteProtocolError
from asyncdni.messages import DATA
from asyncdni.nn.base import Array, fits
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.input_model import InputModel
from asyncdni.schedules.base import Source
from asyncdni.stages.base import Agreement, Context, Forwarded
from asyncdni.stages.numpy.block import Block, StageSlot
from asyncdni.stages.numpy.exit import AGREEMENT_EVERY, LATE, Exit, in_order
from asyncdni.stages.numpy.state import Part, parts_of, restore, snapshot

__all__ = ["AGREEMENT_EVERY", "NumpyStage", "Sharing"]


class Sharing:
    """Updates weights that several stages use, for the blocks of one worker.

    Each of these stages has a copy of the weights, and copies start equal. The gradients of all are
    summed in one order, and every copy's optimizer makes the same step on the sum. So copies stay
    equal to the last bit, whether their stages are in one worker or in several.

    The order is that of automatic differentiation, which adds up the gradients of all uses in a
    microbatch, the last use first, and then those sums. So each microbatch's gradients are kept:

    ```
                     microbatch 1    microbatch 2
    head                 H1              H2
    embedding            E1              E2            (H1 + E1) + (H2 + E2) + …
    ```
    """

    def __init__(self, blocks: Iterable[Block] = (), sharers: Iterable[Sequence[str]] = ()) -> None:
        """`sharers` gives, for each block, the stages that use its weights, in declared order."""
        self._blocks = {block.node.name: block for block in blocks if block.parameters()}
        sets = {names: None for names in map(tuple, sharers) if len(names) > 1}
        here = [names for names in sets if self._blocks.keys() & set(names)]
        self._inside = [names for names in here if self._blocks.keys() >= set(names)]
        self._across = [names for names in here if names not in self._inside]
        #: The stages of this worker that share their weights.
        self.stages = {name for names in here for name in names} & set(self._blocks)
        #: By stage, the gradient (N,) of each microbatch since the last update.
        self._kept: dict[str, list[Array]] = {}
        #: For each update that waits for other workers: its samples, and this worker's gradients.
        self._waiting: deque[tuple[int, dict[str, Array]]] = deque()

    @property
    def pending(self) -> str:
        """What an update still has to be made of; empty: nothing."""
        if self._waiting:
            return "gradients of other workers awaited"
        return "gradients not applied" if self._kept else ""

    def keep(self) -> None:
        """Keep the gradients of a microbatch, or of what has been learned since the last call."""
        for name in self.stages:
            block = self._blocks[name]
            if block.learned:
                self._kept.setdefault(name, []).append(block.gradient.copy())
                block.forget()

    def update(self, samples: int) -> dict[str, Array]:
        """Make the step of weights whose stages are all in this worker. Return the gradients (M, N)
        of M microbatches of all other shared weights, by declared stage; they are also kept for
        `apply`."""
        self.keep()
        found = {name: np.stack(kept) for name, kept in self._kept.items()}
        self._kept.clear()
        for names in self._inside:
            self._step(names, found, samples, None)
        if not self._across:
            return {}
        given = {name: found[name] for names in self._across for name in names if name in found}
        self._waiting.append((samples, given))
        return given

    def apply(self, batch: int, gradients: Mapping[str, Array]) -> None:
        """Make the step of the oldest update that waits, with the gradients of other workers.

        Raises `RemoteProtocolError` for a gradient of another shape or type."""
        samples, own = self._waiting.popleft()
        for names in self._across:
            self._step(names, {**own, **gradients}, samples, batch)

    def forget(self) -> None:
        """Drop what is kept, and the updates that wait: the gradients of other workers will not
        come."""
        self._kept.clear()
        self._waiting.clear()

    def _step(
        self,
        names: Sequence[str],
        gradients: Mapping[str, Array],
        samples: int,
        batch: int | None,
    ) -> None:
        """Make one step of the weights of stages `names`, at the rate of `batch` (None: the
        newest)."""
        terms = [gradients[name] for name in reversed(names) if name in gradients]
        blocks = [self._blocks[name] for name in names if name in self._blocks]
        for term in terms:
            _check(term, blocks[0])
        total = _sum(terms)
        for block in blocks:
            block.update_on(total, samples, batch)


def _sum(terms: Sequence[Array]) -> Array | None:
    """The sum (N,) of gradients (M, N): of all terms in a microbatch, then of all microbatches.
    None: there are no terms."""
    total: Array | None = None
    for rows in zip_longest(*terms):
        found = reduce(np.add, [row for row in rows if row is not None])
        total = found if total is None else total + found
    return total


def _check(gradient: Array, block: Block) -> None:
    if gradient.shape[1:] != (block.parameters(),) or gradient.dtype != block.dtype:
        raise RemoteProtocolError(
            f"a gradient of the weights that stage {block.node.name} shares is {gradient.dtype} "
            f"{gradient.shape}, expected {block.dtype} (M, {block.parameters()}) of M microbatches"
        )


#: The most slots kept for later batches. More are free after many batches have been in flight.
_RETIRED_MAX = 16


class NumpyStage:
    """A stage in NumPy, made of blocks; see `stages.base.Stage`."""

    def __init__(
        self,
        blocks: Sequence[Block],
        exit_name: str | None,
        generator: Generator | None = None,
        *,
        mix: float = 0.0,
        input_models: Mapping[str, InputModel] | None = None,
        agreement_every: int = AGREEMENT_EVERY,
        steps: int = 0,
        sharing: Sharing | None = None,
        remainders: Mapping[str, Mapping[str, Array]] | None = None,
    ) -> None:
        """Args:
        exit_name: the block whose activation leaves the stage; None: there is none.
        mix: the share of the true gradient in an update, from 0 to 1.
        input_models: the models of synthetic inputs, by producer.
        agreement_every: the generator's agreement is measured on one fit in so many.
        steps: the length of windows whose steps have targets of their own; 0: there are none.
        sharing: makes the steps of weights that several stages use.
        remainders: zeros; see `stages.base.Stage`.
        """
        self.remainders = remainders or {}
        self._blocks = {block.node.name: block for block in blocks}
        self._exit: Exit | None = None
        if exit_name is not None:
            block = self._blocks[exit_name]
            self._exit = Exit(
                block, generator, mix=mix, agreement_every=agreement_every, steps=steps
            )
        self._slots: dict[int, StageSlot] = {}
        self._retired: list[tuple[StageSlot, Callable[[], bool]]] = []
        self._sharing = sharing or Sharing()
        self._samples = 0  # the samples in the accumulated gradients
        self._corrected = False  # whether these hold late corrections, as means over their batches
        self._input_models = dict(input_models or {})
        #: The block that an input model belongs to: the first to read what it predicts.
        self._readers = {
            producer: next(block for block in blocks if producer in block.node.inputs)
            for producer in self._input_models
        }
        self._relays = self._find_relays()
        self._shapes = {
            name: shape
            for block in blocks
            for name, shape in zip(block.node.inputs, block.node.input_shapes, strict=True)
        }

    def _find_relays(self) -> set[str]:
        """Return the blocks through which a gradient reaches a producer outside the stage."""
        relays: set[str] = set()
        for name, block in self._blocks.items():
            outside = any(i not in self._blocks and i != DATA for i in block.node.inputs)
            if outside or relays.intersection(block.node.inputs):
                relays.add(name)
        return relays

    def parameters(self) -> int:
        """Return the number of weights, without the generator's."""
        return sum(block.parameters() for block in self._blocks.values())

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, batch: int, inputs: Mapping[str, Array], context: Context) -> Forwarded:
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
        result.activation = known[self._exit.block.node.name] if self._exit else None
        return result

    def evaluate(
        self, inputs: Mapping[str, Array], context: Context, copy: int | None = None
    ) -> Forwarded:
        result = Forwarded(None)
        known = dict(inputs)
        for name, block in self._blocks.items():
            known[name], score = block.evaluate(self._inputs(block, known), context, copy)
            if score is not None:
                result.scores.append(score)
        result.activation = known[self._exit.block.node.name] if self._exit else None
        return result

    def copy(self, number: int) -> None:
        for block in self._blocks.values():
            block.copy(number)

    def discard(self, number: int) -> None:
        for block in self._blocks.values():
            block.copies.pop(number, None)

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the activation of every block, with running statistics and without any loss."""
        known = dict(inputs)
        for name, block in self._blocks.items():
            known[name] = block.activation(self._inputs(block, known))
        return known

    def _inputs(self, block: Block, known: Mapping[str, Array]) -> list[Array]:
        """Return the block's inputs in declared order. Their shapes and dtypes are checked, as they
        may have come over the wire; raises `RemoteProtocolError`."""
        xs = [known[name] for name in block.node.inputs]
        node = block.node
        forms = zip(node.inputs, xs, node.input_shapes, node.inputs_vary, strict=True)
        for name, x, shape, varying in forms:
            if (
                not fits(x.shape[1:], shape, varying)
                or x.dtype != block.dtype
                or len(x) != len(xs[0])
            ):
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
            start = self._exit.gradients(batch, slot, gradients, source)
            found[self._exit.block.node.name] = start
        sent: dict[str, dict[str, Array]] = {}
        for name, block in reversed(self._blocks.items()):
            if not (learn or name in self._relays):
                continue
            pushed = block.backward(
                in_order(block, found[name]),
                slot.blocks[name],
                own_loss=source not in LATE,
                learn=learn,
                send=self._needs_input_gradient(block, learn, send),
            )
            for producer, grad in zip(block.node.inputs, pushed or (), strict=False):
                if producer in self._blocks:
                    found[producer][name] = grad
                elif producer != DATA:
                    sent.setdefault(producer, {})[name] = grad
        if learn and source not in LATE:  # corrections belong to the batch that follows them
            self._sharing.keep()
        return sent if send else {}

    def learn(self, batch: int) -> None:
        slot = self._slots[batch]
        if len(self._relays) < len(self._blocks):  # the backward left some blocks out
            self.backward(batch, slot.gradients, source=Source.TRUE, learn=True, send=False)
        else:
            self._count(slot, Source.TRUE)
            for name, block in reversed(self._blocks.items()):
                block.learn(slot.blocks[name])
            self._sharing.keep()
        slot.drop_gradients()

    def _needs_input_gradient(self, block: Block, learn: bool, send: bool) -> bool:
        """Return whether a producer needs the gradient of the block's inputs."""
        return any(
            (learn or name in self._relays) if name in self._blocks else send
            for name in block.node.inputs
            if name != DATA
        )

    def _count(self, slot: StageSlot, source: Source) -> None:
        """Count the batch's samples in the accumulated gradients. Late corrections, which are
        means, come before the batch that they are added to; they are scaled to sums over its
        samples."""
        if source in LATE:
            assert not self._samples, "a correction in the middle of a batch's own update"
            self._corrected = True
            return
        self._samples += slot.samples
        if self._corrected:
            for block in self._blocks.values():
                block.scale_gradients(slot.samples)
            self._corrected = False

    def update(self) -> dict[str, Array]:
        # Without a batch (at a segment's end) there are only corrections, which are means already.
        samples = self._samples or 1
        for name, block in self._blocks.items():
            if name not in self._sharing.stages:
                block.update(samples)
        self._samples, self._corrected = 0, False
        return self._sharing.update(samples)

    def apply(self, batch: int, gradients: Mapping[str, Array]) -> None:
        assert not self._samples, "a shared update in the middle of a batch's own"
        self._sharing.apply(batch, gradients)

    # --- generator -------------------------------------------------------------------------------

    def predict(self, batch: int) -> None:
        assert self._exit is not None
        self._exit.predict(batch, self._slots[batch])

    def adopt(self, version: int, weights: Mapping[str, Array]) -> None:
        assert self._exit is not None
        self._exit.adopt(version, weights)

    def fit(self, batch: int, gradients: Mapping[str, Array]) -> Agreement | None:
        assert self._exit is not None
        return self._exit.fit(batch, self._slots[batch], gradients)

    # --- synthetic inputs ------------------------------------------------------------------------

    def _predicted_inputs(self, inputs: Mapping[str, Array], context: Context) -> dict[str, Array]:
        """Return the predicted activations of producers that have an input model."""
        if not self._input_models:
            return {}
        x = inputs[DATA]
        found = {}
        for producer, model in self._input_models.items():
            h = model.predict(x.reshape(len(x), -1), context.get("y"))
            found[producer] = h.reshape(len(x), *self._shapes[producer])
        return found

    def fit_input(self, inputs: Mapping[str, Array], context: Context) -> None:
        x = inputs[DATA]
        rate_scale = next(iter(self._blocks.values())).rate_scale()
        for producer, model in self._input_models.items():
            h, shape = inputs[producer], (len(x), *self._shapes[producer])
            if h.shape != shape or h.dtype != x.dtype:
                raise RemoteProtocolError(
                    f"the input model got {h.dtype} {h.shape} from {producer}, "
                    f"expected {x.dtype} {shape}"
                )
            y = context.get("y")
            try:
                model.fit(x.reshape(len(x), -1), y, h.reshape(len(h), -1), rate_scale)
            except NumericalError as error:
                reader = self._readers[producer]
                what = f"the input model of stage {reader.node.name} for {producer}: {error}"
                reader.watch.fit_left_out(what)

    # --- slots -----------------------------------------------------------------------------------

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        slot = self._slots.pop(batch, None)
        if slot is None:
            return  # `forget` has dropped the batch
        slot.drop_gradients()
        for name, block in self._blocks.items():
            block.release(slot.blocks[name])
        self._retired.append((slot, sent))
        if len(self._retired) > _RETIRED_MAX:
            del self._retired[0]  # ZeroMQ keeps arrays that it has still to send

    def forget(self) -> None:
        for slot in self._slots.values():
            for name, block in self._blocks.items():
                block.release(slot.blocks[name])
        self._slots.clear()
        for block in self._blocks.values():
            block.forget()
            block.copies.clear()
            if block.versions is not None:
                block.versions.forget()
        self._sharing.forget()
        self._samples, self._corrected = 0, False

    def _acquire(self) -> StageSlot:
        """Return a slot for a new batch: the one released last of those whose arrays have been
        sent, since its memory is still in the cache, or a new one."""
        for i in range(len(self._retired) - 1, -1, -1):
            slot, sent = self._retired[i]
            if sent():
                del self._retired[i]
                return slot
        return StageSlot({name: block.slot() for name, block in self._blocks.items()})

    # --- weights ---------------------------------------------------------------------------------

    def state(self, copy: int | None = None) -> dict[str, dict[str, Array]]:
        return {name: block.state(copy) for name, block in self._blocks.items()}

    def load(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        for name, arrays in self.state().items():
            given = state.get(name, {})
            for key, array in arrays.items():
                found = given.get(key)  # read from a file, it may be
                if found is None or found.shape != array.shape:
                    was = "nothing" if found is None else found.shape
                    raise CheckpointError(
                        f"weights of stage {name}: {key} is {was}, expected {array.shape}"
                    )
                np.copyto(array, found)
        for block in self._blocks.values():
            block.weights_moved()
            if block.versions is not None:
                block.versions.begin(block.updates)

    def snapshot(self, *, copied: bool = True) -> dict[str, dict[str, Array]]:
        assert not any(block.learned for block in self._blocks.values()), "gradients not applied"
        assert not self._sharing.pending, self._sharing.pending
        return {name: snapshot(parts, copied) for name, parts in self._parts().items()}

    def restore(self, state: Mapping[str, Mapping[str, Array]]) -> list[str]:
        self.forget()
        notes = restore(self._parts(), state)
        for block in self._blocks.values():
            block.weights_moved()
        return notes

    def readout(self) -> dict[str, int]:
        """Return "readout_version", the owner's updates at the copy (0: initial weights),
        "readout_age", the updates that this stage has made beyond those, and "readout_private", the
        batches that have trained its own copy, where that was asked for."""
        copy = getattr(self._exit.generator, "readout", None) if self._exit else None
        if self._exit is None or copy is None:
            return {}
        age = max(0, self._exit.block.updates - copy.version)
        found = {"readout_version": copy.version, "readout_age": age}
        return found if copy.private is None else {**found, "readout_private": copy.private}

    def skips(self) -> dict[str, int]:
        """Return how many updates ("skipped_updates") and how many fits and late gradients
        ("skipped_fits") `numbers.policy = "skip"` has left out, summed over declared stages."""
        watches = [block.watch for block in self._blocks.values()]
        return {
            "skipped_updates": sum(watch.updates_left_out for watch in watches),
            "skipped_fits": sum(watch.fits_left_out for watch in watches),
        }

    def _parts(self) -> dict[str, list[Part]]:
        found = {}
        for name, block in self._blocks.items():
            own = self._exit if self._exit is not None and self._exit.block is block else None
            models = {
                producer: model
                for producer, model in self._input_models.items()
                if self._readers[producer] is block
            }
            found[name] = parts_of(block, own, models, self.remainders.get(name, {}))
        return found
