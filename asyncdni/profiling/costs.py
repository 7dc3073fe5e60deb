"""What a worker of several neighbouring stages spends on a batch, from what each stage spends.

Fused stages cost what they cost apart, but for the edge between them: no generator stands there
(no P, no T), the true gradient comes down at once (no b), and the upper stage's backward always
computes the gradient of its inputs. At the ends of the fused stage all is as the schedule says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncdni import config
from asyncdni.messages import DATA
from asyncdni.network import Network, Node
from asyncdni.profiling.measurement import SENDING

__all__ = ["Seconds", "producers_of", "worker_costs"]

#: By declared stage and op: seconds on a batch for which the op is done.
Seconds = Mapping[str, Mapping[str, float]]


def worker_costs(
    members: Sequence[Node], seconds: Seconds, schedule: config.Schedule
) -> dict[str, float] | None:
    """Seconds per training batch by the letter of the op, as `metrics.ceilings.ceiling` takes them.

    An op that is done on every m-th batch counts 1/m. None where such a worker can't be: it would
    send on the activations of two stages.
    """
    inside = {node.name for node in members}
    exits = [node.name for node in members if set(node.consumers) - inside]
    if len(exits) > 1:
        return None
    price = _Price(members, inside, seconds)
    costs = {"F": price.every("F"), "U": price.every("U")}
    costs["R"] = sum(seconds[name].get("R", 0.0) for name in inside)
    if isinstance(schedule, config.Locked):
        return {**costs, "B": price.backward(sending=1.0)}
    share = 1.0 / schedule.fit_every
    sends_on_learning = not exits or schedule.target == "bootstrap"
    costs["B"] = price.backward(sending=share if sends_on_learning else 0.0)
    if exits:
        exit_ops = seconds[exits[0]]
        costs["P"] = exit_ops["P"]
        costs["T"] = share * exit_ops["T"]
        if schedule.target == "true":
            costs["b"] = share * price.relay()
        if schedule.correct:
            costs["C"] = share * price.backward(sending=0.0)
    return costs


class _Price:
    """Sums over the members of one worker."""

    def __init__(self, members: Sequence[Node], inside: set[str], seconds: Seconds) -> None:
        self._members = members
        self._inside = inside
        self._seconds = seconds

    def every(self, letter: str) -> float:
        return sum(self._seconds[node.name][letter] for node in self._members)

    def backward(self, *, sending: float) -> float:
        """Learning from a gradient; on that share of the batches producers outside get one too."""
        total = 0.0
        for node in self._members:
            share = sending if self._outside(node) else 0.0
            if self._inside.intersection(node.inputs):
                share = 1.0
            total += share * self._first_of(node, SENDING, "B")
            total += (1.0 - share) * self._first_of(node, "B", SENDING)
        return total

    def relay(self) -> float:
        """Passing a true gradient on to producers outside, through all stages on its way."""
        relays: set[str] = set()
        for node in self._members:
            if self._outside(node) or relays.intersection(node.inputs):
                relays.add(node.name)
        # A stage that nobody reads is never seen passing on alone: its learning stands for it.
        on_the_way = [node for node in self._members if node.name in relays]
        return sum(self._first_of(node, "b", SENDING) for node in on_the_way)

    def _outside(self, node: Node) -> bool:
        return bool(set(node.inputs) - self._inside - {DATA})

    def _first_of(self, node: Node, *letters: str) -> float:
        """Of the ops that were measured; the later ones take nearly as long."""
        ops = self._seconds[node.name]
        return next(ops[letter] for letter in letters if letter in ops)


def producers_of(network: Network, split: Sequence[Sequence[Node]]) -> list[list[int]]:
    """For each worker, the indices of those whose activations it takes."""
    home = {node.name: index for index, members in enumerate(split) for node in members}
    assert len(home) == len(network.nodes)
    return [
        sorted({home[name] for node in members for name in node.inputs if name != DATA} - {index})
        for index, members in enumerate(split)
    ]
