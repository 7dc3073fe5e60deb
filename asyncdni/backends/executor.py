"""From what the core asks for to calls of a stage, and from arrays back to what the core sends on.

Both drivers use it: the engine of a worker process, and the simulator when it does the maths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from asyncdni.backends.base import Array, Stage
from asyncdni.core.events import Compute, Computed
from asyncdni.messages import DATA
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Executor", "Source"]


class Source(Protocol):
    """The data of the worker that hosts them; see `datasets.source`."""

    def read(self, op: Op) -> Mapping[str, Array]: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...


class Executor:
    """Carries out the ops of one worker, with its stage and, where it hosts the data, its source.

    `loss_sum` and `loss_samples` add up the losses of training batches until somebody takes them.
    """

    def __init__(
        self,
        stage: Stage,
        exits: Mapping[str, str],
        source: Source | None = None,
        note_cosine: Callable[[float | None], None] | None = None,
    ) -> None:
        """`exits` maps each producing worker to the declared stage whose activation it sends.

        `note_cosine` gets what each Fit measured: see `backends.base.Stage.fit`.
        """
        self.stage = stage
        self.loss_sum = 0.0
        self.loss_samples = 0
        self._stage_of = {**exits, DATA: DATA}
        self._worker_of = {stage: name for name, stage in exits.items()}
        self._source = source
        self._note_cosine = note_cosine

    def compute(self, compute: Compute) -> Computed:
        """Do it now, on this thread."""
        op, stage = compute.op, self.stage
        match op.kind:
            case OpKind.READ:
                assert self._source is not None
                tensors = self._source.read(op)
                return Computed(op, len(tensors["h"]), tensors)
            case OpKind.FORWARD | OpKind.EVALUATE:
                return self._forward(compute)
            case OpKind.PREDICT:
                stage.predict(op.batch)
            case OpKind.BACKWARD:
                gradients = stage.backward(
                    op.batch, compute.inputs, source=op.source, learn=op.learn, send=op.send
                )
                return Computed(
                    op, outputs={self._worker_of[name]: g for name, g in gradients.items()}
                )
            case OpKind.LEARN:
                stage.learn(op.batch)
            case OpKind.UPDATE:
                stage.update()
            case OpKind.FIT:
                cosine = stage.fit(op.batch, compute.inputs)
                if self._note_cosine is not None:
                    self._note_cosine(cosine)
            case _:
                raise TypeError(f"{op} is no op that a stage can carry out")
        return Computed(op)

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """Give up a training batch; its arrays are used again once `sent()` is true."""
        self.stage.release(batch, sent)
        if self._source is not None:
            self._source.release(batch, sent)

    def take_loss(self) -> tuple[float, int]:
        """(sum over samples, samples) since the last call."""
        taken = self.loss_sum, self.loss_samples
        self.loss_sum, self.loss_samples = 0.0, 0
        return taken

    def _forward(self, compute: Compute) -> Computed:
        op = compute.op
        inputs: dict[str, Array] = {}
        context: Array | None = None
        for node, tensors in compute.inputs.items():
            inputs[self._stage_of[node]] = tensors["h"]
            context = tensors.get("y") if context is None else context
        samples = len(next(iter(inputs.values())))
        if op.kind is OpKind.EVALUATE:
            result = self.stage.evaluate(inputs, context)
        else:
            result = self.stage.forward(op.batch, inputs, context)
            self.loss_sum += sum(score.loss for score in result.scores)
            self.loss_samples += samples if result.scores else 0
        tensors = {}
        if result.activation is not None:
            tensors["h"] = result.activation
            if context is not None:
                tensors["y"] = context
        scores = tuple(result.scores) if op.kind is OpKind.EVALUATE else ()
        return Computed(op, samples, tensors, scores)
