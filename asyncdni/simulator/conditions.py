"""What a simulated run takes for granted: how long ops and messages take. All of it virtual.

The conditions of the experiment ([links], [slow]) come on top: see `delays`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncdni.delays import Slow
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Costs", "Links", "Pace", "around"]


@dataclass(frozen=True)
class Costs:
    """Microseconds of each op at one stage, and by how much they vary.

    The defaults are in proportion to a dense layer of 256 on a batch of 256: a backward is two
    matrix products where a forward is one, the generator's share is small.
    """

    read_us: float = 50.0
    forward_us: float = 100.0
    predict_us: float = 30.0
    backward_us: float = 200.0
    relay_us: float = 100.0  # a backward that only passes a gradient on
    learn_us: float = 100.0  # the rest of such a backward
    update_us: float = 50.0
    fit_us: float = 50.0
    fit_input_us: float = 100.0
    evaluate_us: float = 100.0
    save_us: float = 1000.0
    startup_us: float = 100_000.0  # from the start of a process to its Hello
    jitter: float = 0.0  # each takes between 1 - jitter and 1 + jitter times as long
    scale: Mapping[str, float] = field(default_factory=dict)  # by declared stage; default 1

    def of(self, op: Op) -> float:
        """Microseconds of an op at a stage of scale 1."""
        match op.kind:
            case OpKind.READ:
                return self.read_us
            case OpKind.FORWARD:
                return self.forward_us
            case OpKind.PREDICT:
                return self.predict_us
            case OpKind.BACKWARD:
                return self.backward_us if op.learn else self.relay_us
            case OpKind.LEARN:
                return self.learn_us
            case OpKind.UPDATE:
                return self.update_us
            case OpKind.FIT:
                return self.fit_us
            case OpKind.FIT_INPUT:
                return self.fit_input_us
            case OpKind.EVALUATE:
                return self.evaluate_us
        raise ValueError(f"{op} takes no time of its own")


@dataclass(frozen=True)
class Links:
    """Microseconds of each message on its way, one way. Each link keeps the order of sending."""

    latency_us: float = 100.0  # between workers
    control_latency_us: float = 100.0  # to and from the coordinator, on links of their own
    jitter: float = 0.0  # each takes between 1 - jitter and 1 + jitter times as long
    between: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (sender, receiver)


#: Ops of the generator, which stands at a worker's exit, and of the data: no stage's own.
_NOT_OF_LAYERS = frozenset({OpKind.READ, OpKind.PREDICT, OpKind.FIT, OpKind.FIT_INPUT})


class Pace:
    """How long each op of one worker takes. A worker of several stages takes as long as all."""

    def __init__(
        self,
        costs: Costs,
        name: str,
        members: tuple[str, ...],
        seed: int,
        slow: Slow | None = None,
    ) -> None:
        self._costs = costs
        self._random = random.Random(f"{seed}/{name}/pace")
        self._scale = sum(costs.scale.get(member, 1.0) for member in members)
        self._slow = slow

    def op_s(self, op: Op) -> float:
        """Seconds, those included that a slowed worker sleeps after it."""
        scale = 1.0 if op.kind in _NOT_OF_LAYERS else self._scale
        took_s = self._seconds(self._costs.of(op) * scale)
        return took_s if self._slow is None else took_s + self._slow.after(op, took_s)

    def save_s(self) -> float:
        return self._seconds(self._costs.save_us)

    def startup_s(self) -> float:
        return self._seconds(self._costs.startup_us)

    def _seconds(self, microseconds: float) -> float:
        return around(microseconds, self._costs.jitter, self._random) * 1e-6


def around(mean: float, jitter: float, source: random.Random) -> float:
    """Uniform between (1 - jitter) and (1 + jitter) times the mean."""
    return mean * (1.0 + jitter * (2.0 * source.random() - 1.0)) if jitter else mean
