"""Which workers run where: neighbouring ones together, and no machine with too much work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncdni.errors import ConfigError

__all__ = ["Placement", "as_asked", "balanced", "spread"]

Placement = dict[str, int]  # worker -> rank


def balanced(
    costs: Mapping[str, float],
    slots: Sequence[int],
    needs: Mapping[str, int] | None = None,
    room: Sequence[float] | None = None,
) -> Placement:
    """Give each rank neighbouring workers, so that the slowest rank takes the least time.

    A rank takes as long as its costliest worker, or as all of them in its slots, if that is longer.
    Of placements that are equally fast it is the one in which the largest sum of costs is the
    least, and then the one that fills the first ranks. With more ranks than workers those with the
    fewest slots, the last ones of equal ones, get none.

    Args:
        costs: what each worker costs, in any unit, in order.
        slots: how many workers each rank can run at a time, such as its cores; 0: it gets none.
        needs, room: the memory of each worker and of each rank, in bytes, which is heeded where
            there is a placement at all that fits.
    """
    names, ranks = list(costs), _able(slots, len(costs))
    able = [slots[rank] or 1 for rank in ranks]
    found = _split(names, costs, able, lambda *_: True)
    if needs is not None and room is not None:

        def fits(at: int, begin: int, end: int) -> bool:
            return sum(needs[name] for name in names[begin:end]) <= room[ranks[at]]

        found = _split(names, costs, able, fits) or found
    return {name: ranks[at] for name, at in zip(names, found, strict=True)}


def _able(slots: Sequence[int], workers: int) -> list[int]:
    """The ranks that get workers: those with the most slots, at most one rank for each worker."""
    able = [rank for rank, own in enumerate(slots) if own] or list(range(len(slots)))
    return sorted(sorted(able, key=lambda rank: -slots[rank])[:workers])


def _split(
    names: Sequence[str],
    costs: Mapping[str, float],
    slots: Sequence[int],
    fits: Callable[[int, int, int], bool],
) -> list[int]:
    """Return for each worker at which of the ranks, which have these `slots`, it is best; empty
    where nothing fits. `fits` tells whether the rank at a place can have the workers from one
    position to another."""
    sums = [0.0]
    for name in names:
        sums.append(sums[-1] + costs[name])
    never = (float("inf"), float("inf"))
    # best[r][n]: how the first n workers are best on r ranks - the time of the slowest rank and the
    # largest sum of costs - and where the last of these ranks begins
    best = [[((0.0, 0.0), 0), *((never, 0) for _ in names)]]
    for at, own in enumerate(slots):
        before, row = best[-1], [((0.0, 0.0), 0)]
        for end in range(1, len(names) + 1):
            options, longest = [(never, 0)], 0.0
            for k in reversed(range(end)):
                total, longest = sums[end] - sums[k], max(longest, costs[names[k]])
                if fits(at, k, end):
                    time, largest = before[k][0]
                    here = max(time, longest, total / own), max(largest, total)
                    options.append((here, -k))
            found, k = min(options)
            row.append((found, abs(k)))
        best.append(row)
    if best[-1][-1][0] == never:
        return []
    places, end = [0] * len(names), len(names)
    for at in reversed(range(len(slots))):
        begin = best[at + 1][end][1]
        places[begin:end] = [at] * (end - begin)
        end = begin
    return places


def as_asked(workers: Sequence[str], counts: Sequence[int], ranks: int) -> Placement:
    """Give the first rank the first `counts[0]` workers, the next the `counts[1]` after them, ….

    Raises `ConfigError` unless there is a count for each rank, and all together are the workers.
    """
    if len(counts) != ranks or sum(counts) != len(workers) or min(counts) < 0:
        raise ConfigError(
            f"--place {','.join(map(str, counts))} (run.place): expected a number for each rank, "
            f"{ranks} in all, that sum to {len(workers)}, the workers of the run: "
            f"{', '.join(workers)}"
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
