"""At the end of a run: every batch and every sample, learned or missed, once."""

from __future__ import annotations

from collections.abc import Iterable

from asyncdni.plan import Plan
from asyncdni.simulator.worker import WorkerProcess

__all__ = ["check_account"]


def check_account(plan: Plan, workers: Iterable[WorkerProcess]) -> None:
    """Asserts it, of the last process of each worker, by what it says and by the ids that the
    simulator has noted of each forward behind its state."""
    host = plan.groups[plan.host].name
    for process in workers:
        counts, ids, name = process.worker.counts, process.ids, process.key
        said = f"{counts.batches} learned, {counts.missed} missed of {plan.batches}"
        assert counts.position == plan.batches, f"{name}: {said}"
        if process.name == host:
            assert counts.read == plan.batches, f"{name}: {counts.read} read of {plan.batches}"
        if ids is None:
            continue
        assert len(ids) == counts.batches, f"{name}: {len(ids)} ids, but {said}"
        assert not ids or 0 <= min(ids) <= max(ids) < plan.batches, f"{name}: {min(ids)}"
        samples = sum(map(plan.rows.of, ids))
        assert samples == counts.samples, f"{name}: {samples} samples, but it says {counts.samples}"
