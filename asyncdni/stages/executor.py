"""The executor turns ops that the core asks for into calls of a stage, and the results into what
the core sends on.

Both drivers use it: the real one in a worker process, and the simulator when it does the maths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from asyncdni.core.events import Compute, Computed
from asyncdni.messages import DATA
from asyncdni.nn.base import Array
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.base import Agreement, Context, Forwarded, Stage

__all__ = ["Executor", "Source"]


class Source(Protocol):
    """The data set, at the worker that hosts it; see `data.base`."""

    def read(self, op: Op) -> Mapping[str, Array]: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...


class Executor:
    """Carries out the ops of one worker, with its stage and, where it hosts the data, its source.

    `loss_sum` and `loss_samples` add up the losses of training batches, without replays, until
    `take_loss`. For windows, the steps that count stand in place of samples.
    """

    def __init__(
        self,
        stage: Stage,
        exits: Mapping[str, str],
        source: Source | None = None,
        note: Callable[[Agreement | None], None] | None = None,
        shares: Mapping[str, Sequence[str]] | None = None,
        readout: tuple[str, Collection[str]] | None = None,
    ) -> None:
        """Args:
        exits: maps each producing worker to the declared stage whose activation it sends.
        note: is called with what each Fit measured: see `stages.base.Stage.fit`.
        shares: maps each worker that has stages with the same weights to those stages here.
        readout: the stage here that others read out through, and the names of those weights.
        """
        self.stage = stage
        self.loss_sum = 0.0
        self.loss_samples = 0
        self._stage_of = {**exits, DATA: DATA}
        self._worker_of = {stage: name for name, stage in exits.items()}
        self._source = source
        self._note = note
        self._shares = shares or {}
        self._readout = readout
        self._do: dict[OpKind, Callable[[Compute], Computed]] = {
            OpKind.READ: self._read,
            OpKind.FORWARD: self._forward,
            OpKind.PREDICT: self._predict,
            OpKind.BACKWARD: self._backward,
            OpKind.LEARN: self._learn,
            OpKind.UPDATE: self._update,
            OpKind.APPLY: self._apply,
            OpKind.COPY: self._copy,
            OpKind.ADOPT: self._adopt,
            OpKind.FIT: self._fit,
            OpKind.FIT_INPUT: self._fit_input,
            OpKind.EVALUATE: self._evaluate,
            OpKind.HOLD: self._hold,
        }

    def compute(self, compute: Compute) -> Computed:
        """Carry out the op now, on this thread, and return its result."""
        return self._do[compute.op.kind](compute)

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        """Release a training batch; its arrays are used again once `sent()` is true."""
        self.stage.release(batch, sent)
        if self._source is not None:
            self._source.release(batch, sent)

    def discard(self, copy: int) -> None:
        """Drop a copy of the weights."""
        self.stage.discard(copy)

    def take_loss(self) -> tuple[float, int]:
        """Return (loss summed over samples, samples) since the last call, and start again at 0."""
        taken = self.loss_sum, self.loss_samples
        self.loss_sum, self.loss_samples = 0.0, 0
        return taken

    # --- ops -------------------------------------------------------------------------------------

    def _read(self, compute: Compute) -> Computed:
        assert self._source is not None
        tensors = self._source.read(compute.op)
        return Computed(compute.op, len(tensors["h"]), tensors)

    def _forward(self, compute: Compute) -> Computed:
        inputs, context = self._inputs(compute)
        result = self.stage.forward(compute.op.batch, inputs, context)
        samples = len(next(iter(inputs.values())))
        if result.scores and not compute.op.replay:
            self.loss_sum += sum(score.loss for score in result.scores)
            self.loss_samples += max(score.count for score in result.scores)
        return Computed(compute.op, samples, _tensors(result, context))

    def _evaluate(self, compute: Compute) -> Computed:
        inputs, context = self._inputs(compute)
        result = self.stage.evaluate(inputs, context, compute.op.copy)
        samples = len(next(iter(inputs.values())))
        return Computed(compute.op, samples, _tensors(result, context), tuple(result.scores))

    def _hold(self, compute: Compute) -> Computed:
        self.stage.copy(compute.op.batch)
        return Computed(compute.op)

    def _predict(self, compute: Compute) -> Computed:
        self.stage.predict(compute.op.batch)
        return Computed(compute.op)

    def _backward(self, compute: Compute) -> Computed:
        op = compute.op
        gradients = self.stage.backward(
            op.batch, compute.inputs, source=op.source, learn=op.learn, send=op.send
        )
        return Computed(op, outputs={self._worker_of[name]: g for name, g in gradients.items()})

    def _learn(self, compute: Compute) -> Computed:
        self.stage.learn(compute.op.batch)
        return Computed(compute.op)

    def _update(self, compute: Compute) -> Computed:
        gradients = self.stage.update()
        outputs = {
            sharer: {stage: gradients[stage] for stage in stages if stage in gradients}
            for sharer, stages in self._shares.items()
        }
        return Computed(compute.op, outputs=outputs)

    def _apply(self, compute: Compute) -> Computed:
        inputs = compute.inputs.values()
        gradients = {stage: array for part in inputs for stage, array in part.items()}
        self.stage.apply(compute.op.batch, gradients)
        return Computed(compute.op)

    def _copy(self, compute: Compute) -> Computed:
        assert self._readout is not None
        stage, names = self._readout
        arrays = self.stage.state()[stage]
        return Computed(compute.op, outputs={name: arrays[name].copy() for name in names})

    def _adopt(self, compute: Compute) -> Computed:
        (weights,) = compute.inputs.values()
        self.stage.adopt(compute.op.batch, weights)
        return Computed(compute.op)

    def _fit(self, compute: Compute) -> Computed:
        agreement = self.stage.fit(compute.op.batch, compute.inputs)
        if self._note is not None:
            self._note(agreement)
        cosine = agreement.cosine if agreement is not None else None
        return Computed(compute.op, cosine=cosine)

    def _fit_input(self, compute: Compute) -> Computed:
        self.stage.fit_input(*self._inputs(compute))
        return Computed(compute.op)

    def _inputs(self, compute: Compute) -> tuple[dict[str, Array], Context]:
        """The activations by declared stage, and the context that came with them."""
        inputs: dict[str, Array] = {}
        context: dict[str, Array] = {}
        for node, tensors in compute.inputs.items():
            inputs[self._stage_of[node]] = tensors["h"]
            if not context:
                context = {name: array for name, array in tensors.items() if name != "h"}
        return inputs, context


def _tensors(result: Forwarded, context: Context) -> dict[str, Array]:
    """The arrays that are sent on to the consumers."""
    return {} if result.activation is None else {"h": result.activation, **context}
