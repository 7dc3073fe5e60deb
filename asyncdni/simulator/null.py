"""Ops without arithmetic: only what the core needs to know of them, for runs that are about order
and time. Tensors are one small token, which the codec can carry too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asyncdni.backends.base import Score
from asyncdni.build import Design
from asyncdni.core.events import Compute, Computed
from asyncdni.messages import DATA
from asyncdni.plan import Group, shared_with
from asyncdni.schedules.base import OpKind

__all__ = ["NullExecutor"]

_TOKEN = np.zeros(1, np.uint8)
_TOKEN.setflags(write=False)
#: What nobody else gets anything of.
_ALONE = frozenset(OpKind) - {
    *(OpKind.READ, OpKind.FORWARD, OpKind.EVALUATE, OpKind.BACKWARD, OpKind.UPDATE),
}


class NullExecutor:
    """Stands for `backends.executor.Executor`: same samples, same addressees, no values.

    Its scores count samples; their loss is 0, and they have no right answers.
    """

    def __init__(self, design: Design, group: Group) -> None:
        plan, meta = design.plan, design.meta
        self._rows = plan.rows
        self._losses = [node.name for node in group.members if node.scored]
        self._activation = {name: _TOKEN for name in ("h", "y", *meta.context)}
        self._gradients: dict[str, dict[str, np.ndarray]] = {}
        for node in group.members:
            for name in node.inputs:
                if name != DATA and plan.group_of(name) is not group:
                    home = plan.group_of(name).name
                    self._gradients.setdefault(home, {})[node.name] = _TOKEN
        self._shares = {
            sharer: dict.fromkeys(names, _TOKEN)
            for sharer, names in shared_with(plan.groups, group).items()
        }

    def compute(self, compute: Compute) -> Computed:
        op = compute.op
        if op.kind in _ALONE:
            return Computed(op)
        if op.kind is OpKind.UPDATE:
            return Computed(op, outputs=self._shares)
        if op.kind is OpKind.BACKWARD:
            return Computed(op, outputs=self._gradients if op.send else {})
        tests = op.evaluate or op.kind is OpKind.EVALUATE
        samples = self._rows.of_test(op.batch) if tests else self._rows.of(op.batch)
        scores: tuple[Score, ...] = ()
        if op.kind is OpKind.EVALUATE:
            scores = tuple(Score(name, samples) for name in self._losses)
        return Computed(op, samples, self._activation, scores)

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        pass
