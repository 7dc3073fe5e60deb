"""Which stages run where: neighbouring ones together, and no machine with too much work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncdni.errors import ConfigError

__all__ = ["Placement", "as_asked", "balanced", "spread"]

Placement = dict[str, int]  # worker -> rank


def balanced(costs: Mapping[str, float], ranks: int) -> Placement:
    """Give each rank neighbouring workers, so that the largest sum of their costs is the least.

    `costs` maps the workers, in order, to what each costs, in any unit. Of equally good placements
    it is the one that fills the first ranks. With more ranks than workers the last ones get none.
    """
    names = list(costs)
    sums = [0.0]
    for name in names:
        sums.append(sums[-1] + costs[name])
    # best[r][n]: the least largest sum of the first n workers on r ranks, and where the last begins
    best = [[(0.0, 0)] + [(float("inf"), 0)] * len(names)]
    for _ in range(min(ranks, len(names))):
        before = best[-1]
        row = [(0.0, 0)]
        for end in range(1, len(names) + 1):
            row.append(min((max(before[k][0], sums[end] - sums[k]), -k) for k in range(end)))
        best.append([(cost, abs(k)) for cost, k in row])
    placement: Placement = {}
    end = len(names)
    for rank in range(len(best) - 1, 0, -1):
        begin = best[rank][end][1]
        placement.update(dict.fromkeys(names[begin:end], rank - 1))
        end = begin
    return {name: placement[name] for name in names}


def as_asked(workers: Sequence[str], counts: Sequence[int], ranks: int) -> Placement:
    """Give the first rank the first `counts[0]` workers, the next the `counts[1]` after them, ….

    Raises `ConfigError` unless there is a count for each rank, and all together are the workers.
    """
    if len(counts) != ranks or sum(counts) != len(workers) or min(counts) < 0:
        raise ConfigError(
            f"--place {','.join(map(str, counts))}: expected a number for each rank, {ranks} in "
            f"all, that sum to {len(workers)}, the workers of the run: {', '.join(workers)}"
        )
    each = [rank for rank, count in enumerate(counts) for _ in range(count)]
    return dict(zip(workers, each, strict=True))


def spread(
    names: Sequence[str],
    where: Mapping[str, int],
    costs: Mapping[str, float],
    needs: Mapping[str, int],
    room: Mapping[int, float],
) -> Placement:
    """Give each of the workers `names` to the rank that then has the least work, the costliest
    worker first, and leave all others `where` they are.

    `costs` is what each worker costs, in any unit, `needs` the memory that it needs and `room` the
    memory of each rank that may be given something, both in bytes. Workers that fit nowhere are
    left out. Of equally good ranks it is the first.
    """
    work, free = dict.fromkeys(room, 0.0), dict(room)
    for name, rank in where.items():
        if rank in room and name not in names:
            work[rank] += costs[name]
            free[rank] -= needs[name]
    found: Placement = {}
    for name in sorted(names, key=lambda one: -costs[one]):
        fitting = [rank for rank in sorted(room) if free[rank] >= needs[name]]
        if fitting:
            rank = min(fitting, key=lambda one: work[one])
            found[name] = rank
            work[rank] += costs[name]
            free[rank] -= needs[name]
    return {name: found[name] for name in names if name in found}
