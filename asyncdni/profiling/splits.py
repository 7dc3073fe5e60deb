"""The best way to cut a row of stages into so many workers, found exactly."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["best_split"]

#: Seconds per batch of one worker that has the stages first, …, end - 1; None: there can't be one.
Cost = Callable[[int, int], float | None]


def best_split(stages: int, workers: int, cores: int, cost: Cost) -> list[int] | None:
    """How many stages each worker gets, so that a decoupled run has the highest ceiling.

    A batch takes as long as the slowest worker, or as all together on `cores` cores; of splits that
    are equal in that the one with the faster slowest worker is taken. None: no split is possible.

    Every limit that can matter is tried: with no worker above it, dynamic programming over the
    stages finds the least total. A limit above the best batch time so far can't better it, so of
    the n^2 there are few that are tried.
    """
    table = {
        (first, end): seconds
        for first in range(stages)
        for end in range(first + 1, stages + 1)
        if (seconds := cost(first, end)) is not None
    }
    best: tuple[float, list[int]] | None = None
    for limit in sorted(set(table.values())):
        if best is not None and limit >= best[0]:
            break
        allowed = {span: seconds for span, seconds in table.items() if seconds <= limit}
        found = _least_total(stages, workers, allowed)
        if found is not None:
            period = max(limit, found[0] / cores)
            if best is None or period < best[0]:
                best = period, found[1]
    return best[1] if best else None


def _least_total(
    stages: int, workers: int, allowed: dict[tuple[int, int], float]
) -> tuple[float, list[int]] | None:
    """(seconds of all workers, stages each) of the cheapest way through the row."""
    # reached[end]: the cheapest way to give the first `end` stages to the workers so far.
    reached: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for _ in range(workers):
        further: dict[int, tuple[float, list[int]]] = {}
        for (first, end), seconds in allowed.items():
            if first in reached:
                total, counts = reached[first]
                if end not in further or total + seconds < further[end][0]:
                    further[end] = total + seconds, [*counts, end - first]
        reached = further
    return reached.get(stages)
