"""What a worker of several neighbouring stages spends on a batch, from what each stage spends.

Fused stages cost what they cost apart, but for the edge between them: no generator stands there
(no P, no T), the true gradient comes down at once (no b), and the upper stage's backward always
computes the gradient of its inputs. At the ends of the fused stage all is as the schedule says.

Where no whole backward with the gradient of the inputs was measured, its halves b and W stand for
it. They take a little longer: a batch norm does some of its sums in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncdni import config
from asyncdni.messages import DATA
from asyncdni.network import Network, Node
from asyncdni.profiling.measurement import SENDING

__all__ = ["Seconds", "op_costs", "producers_of", "worker_costs"]

#: By declared stage and op: seconds on a batch for which the op is done.
Seconds = Mapping[str, Mapping[str, float]]


def worker_costs(
    members: Sequence[Node], seconds: Seconds, schedule: config.Schedule
) -> dict[str, float] | None:
    """Seconds per training batch by the letter of the op, as `metrics.ceilings.ceiling` takes them.

    An op that is done on every m-th batch counts 1/m, as does the update of m microbatches. None
    where such a worker can't be: it would send on the activations of two stages.
    """
    inside = {node.name for node in members}
    exits = [node.name for node in members if set(node.consumers) - inside]
    if len(exits) > 1:
        return None
    price = _Price(members, inside, seconds)
    costs = {"F": price.every("F"), "U": price.every("U") / getattr(schedule, "microbatches", 1)}
    costs["R"] = sum(seconds[name].get("R", 0.0) for name in inside)
    if isinstance(schedule, config.LocalLoss):
        head = {"P": seconds[exits[0]]["P"]} if exits else {}
        return {**costs, **head, "B": price.backward(sending=0.0)}
    if not isinstance(schedule, config.Synthetic):
        if schedule.split_backward and price.relays:
            return {**costs, "b": price.relay(), "W": price.learning()}
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


def op_costs(members: Sequence[Node], seconds: Seconds) -> dict[str, float]:
    """Seconds of each op of such a worker, by its letter or SENDING, each time that it is done.

    Ops whose parts have not all been measured are left out."""
    inside = {node.name for node in members}
    price = _Price(members, inside, seconds)
    ways: dict[str, Callable[[], float]] = {
        "F": lambda: price.every("F"),
        "U": lambda: price.every("U"),
        "B": lambda: price.backward(sending=0.0),
        SENDING: lambda: price.backward(sending=1.0),
        "b": price.relay,
        "W": price.learning,
        "C": lambda: price.backward(sending=0.0),
    }
    exits = [node.name for node in members if set(node.consumers) - inside]
    for letter in ("P", "T"):
        ways[letter] = lambda letter=letter: seconds[exits[0]][letter]  # type: ignore[misc]
    found = {"R": sum(seconds[name].get("R", 0.0) for name in inside)}
    for letter, way in ways.items():
        try:
            found[letter] = way()
        except (KeyError, IndexError, StopIteration):
            continue
    return found


class _Price:
    """Sums over the members of one worker."""

    def __init__(self, members: Sequence[Node], inside: set[str], seconds: Seconds) -> None:
        self._members = members
        self._inside = inside
        self._seconds = seconds
        #: Through which a gradient reaches producers outside.
        self.relays: set[str] = set()
        for node in members:
            if self._outside(node) or self.relays.intersection(node.inputs):
                self.relays.add(node.name)

    def every(self, letter: str) -> float:
        return sum(self._seconds[node.name][letter] for node in self._members)

    def backward(self, *, sending: float) -> float:
        """Learning from a gradient; on that share of the batches producers outside get one too."""
        total = 0.0
        for node in self._members:
            share = sending if self._outside(node) else 0.0
            if self._inside.intersection(node.inputs):
                share = 1.0
            if share > 0.0:
                total += share * self._sending(node)
            if share < 1.0:
                total += (1.0 - share) * self._learning_alone(node)
        return total

    def relay(self) -> float:
        """Passing a true gradient on to producers outside, through all stages on its way."""
        on_the_way = [node.name for node in self._members if node.name in self.relays]
        return sum(self._seconds[name]["b"] for name in on_the_way)

    def learning(self) -> float:
        """What is left to learn after that; a backward of all where some were not on its way."""
        if len(self.relays) < len(self._members):  # as in `NumpyStage.learn`
            return self.backward(sending=0.0)
        return self.every("W")

    def _outside(self, node: Node) -> bool:
        return bool(set(node.inputs) - self._inside - {DATA})

    def _sending(self, node: Node) -> float:
        ops = self._seconds[node.name]
        return ops[SENDING] if SENDING in ops else ops["b"] + ops["W"]

    def _learning_alone(self, node: Node) -> float:
        """Of the ops that were measured; the later ones take nearly as long."""
        ops = self._seconds[node.name]
        return next(ops[letter] for letter in ("B", "C", "W") if letter in ops)


def producers_of(network: Network, split: Sequence[Sequence[Node]]) -> list[list[int]]:
    """For each worker, the indices of those whose activations it takes."""
    home = {node.name: index for index, members in enumerate(split) for node in members}
    assert len(home) == len(network.nodes)
    return [
        sorted({home[name] for node in members for name in node.inputs if name != DATA} - {index})
        for index, members in enumerate(split)
    ]
