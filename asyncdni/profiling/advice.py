"""Which schedule and split to train with on given machines and links, and what limits that: all
schedules predicted, and the predictions compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asyncdni.errors import ConfigError
from asyncdni.profiling.candidates import SCHEDULES, Candidate, Scene, is_slow
from asyncdni.profiling.prediction import Prediction, predict
from asyncdni.quantities import seconds

__all__ = ["Advice", "Row", "advise"]

#: Of a prediction without a condition over that with it: from here on the condition is what limits.
_LIMITING = 1.1
#: Schedules whose stages learn without a gradient from above.
_DECOUPLED = ("local_loss", "synthetic")
#: Whose stages learn what the network's loss asks for.
_TRUE = tuple(one for one in SCHEDULES if one != "local_loss")
#: Rates as near as this to the best are as good, where something else speaks for them.
_NEAR = 0.9


@dataclass(frozen=True)
class Row:
    """One candidate; either it is predicted or it can't be made."""

    name: str  # "synthetic", "delayed, lag 12", "one worker"
    schedule: str
    workers: int
    prediction: Prediction | None = None
    refused: str = ""


@dataclass(frozen=True)
class Advice:
    """`best` of all, of those `decoupled` by local gradients, and of the others: `waiting`.

    `local_loss` is advised only where the experiment asks for it: its stages learn greedily, each
    by a loss of its own, which is another thing than being quicker."""

    rows: tuple[Row, ...]
    best: Row
    decoupled: Row | None
    waiting: Row
    alone: Row  # all stages in one worker
    #: What holds `best` back: "worker", "cores", "latency", "bandwidth" or "locking".
    limit: str


def advise(scene: Scene, workers: int) -> Advice:
    """Predict every schedule over `workers` workers, and all stages in one.

    Raises `ConfigError` where not even `locked` can be priced, and what measuring raises.
    """
    candidates: dict[str, Candidate] = {}
    rows = [_row(scene, candidates, "locked", 1, "one worker")]
    if workers > 1:
        for schedule in SCHEDULES:
            rows.append(_row(scene, candidates, schedule, workers, schedule))
        rows += _with_lag(scene, candidates, rows, workers)
        rows += _with_fewer(scene, candidates, rows, workers)
    own = scene.chosen.schedule.__struct_config__.tag
    known = [row for row in rows if row.prediction and row.schedule in (*_TRUE, own)]
    alone = known[0]
    best = _fastest(known, alone)
    return Advice(
        rows=tuple(rows),
        best=best,
        decoupled=_best_of([row for row in known if row.schedule in _DECOUPLED]),
        waiting=_fastest([row for row in known if row.schedule not in _DECOUPLED], alone),
        alone=alone,
        limit=_limit(scene, candidates[best.name], best),
    )


def _row(
    scene: Scene,
    candidates: dict[str, Candidate],
    schedule: str,
    workers: int,
    name: str,
    lag: int | None = None,
) -> Row:
    try:
        candidate = scene.candidate(schedule, workers, lag=lag)
    except ConfigError as error:
        if schedule == "locked":  # then so is all else
            raise
        return Row(name, schedule, workers, refused=str(error))
    candidates[name] = candidate
    return Row(name, schedule, workers, _predicted(scene, candidate))


def _predicted(scene: Scene, candidate: Candidate) -> Prediction:
    hosts = min(scene.hosts, len(candidate.design.plan.groups))
    return predict(
        *(candidate.design, candidate.prices),
        cores=scene.cores,
        hosts=hosts,
        events=scene.events,
    )


def _with_lag(
    scene: Scene, candidates: dict[str, Candidate], rows: Sequence[Row], workers: int
) -> list[Row]:
    """`delayed`, as far ahead of its gradients as slow links need, so that it is always busy."""
    plain = next(row for row in rows if row.schedule == "delayed")
    if plain.prediction is None or not is_slow(scene.chosen.links):
        return []
    design = candidates[plain.name].design
    busiest_s = max(plain.prediction.work_s.values())
    depth = max(group.depth for group in design.plan.groups)
    latency_s = seconds(scene.chosen.links.latency, "links.latency")
    slow_hops = min(depth, scene.hosts - 1) if scene.hosts < workers else depth
    lag = depth + math.ceil(2 * slow_hops * latency_s / busiest_s)
    if lag <= depth:
        return []
    return [_row(scene, candidates, "delayed", workers, f"delayed, lag {lag}", lag)]


def _with_fewer(
    scene: Scene, candidates: dict[str, Candidate], rows: Sequence[Row], workers: int
) -> list[Row]:
    """`synthetic` over as few workers as arithmetic needs for the same rate."""
    if rows[-1].refused and rows[-1].schedule == "synthetic":
        return []
    fewer = scene.fewest("synthetic", workers, _NEAR)
    if fewer in (1, workers):
        return []
    return [_row(scene, candidates, "synthetic", fewer, f"synthetic, {fewer} workers")]


def _fastest(rows: Sequence[Row], fallback: Row) -> Row:
    found = _best_of(rows)
    return fallback if found is None else found


def _best_of(rows: Sequence[Row]) -> Row | None:
    """The fastest; of those that are nearly as fast the fastest with the fewest workers."""
    rates = {row.name: row.prediction.samples_per_s for row in rows if row.prediction}
    if not rates:
        return None
    near = [row for row in rows if rates[row.name] >= _NEAR * max(rates.values())]
    return min(near, key=lambda row: (row.workers, -rates[row.name]))


def _limit(scene: Scene, candidate: Candidate, best: Row) -> str:
    found = best.prediction
    assert found is not None
    if found.limit != "waiting":
        return found.limit
    for what, names in (("bandwidth", ["bandwidth"]), ("latency", ["latency", "jitter"])):
        freed = _predicted(scene, scene.without(candidate, *names))
        if freed.samples_per_s > _LIMITING * found.samples_per_s:
            return what
    return "locking"
