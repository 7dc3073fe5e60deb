"""The schedule of each worker: the run's, or its own where a stage has one."""

from __future__ import annotations

from asyncdni import config
from asyncdni.plan import Group, Plan, own_schedule

__all__ = [
    "hears_synthetic",
    "is_locked_to_consumers",
    "learns_alone",
    "own_schedule",
    "sends_at_once",
]


def is_locked_to_consumers(chosen: config.Experiment, group: Group) -> bool:
    """In a decoupled run it waits for the gradient that its consumers send."""
    decoupled = isinstance(chosen.schedule, config.Synthetic | config.LocalLoss)
    return decoupled and isinstance(own_schedule(chosen, group), config.Locked)


def learns_alone(schedule: config.Schedule) -> bool:
    """A stage of this schedule goes on learning while no gradient comes."""
    if isinstance(schedule, config.Synthetic):
        return schedule.mix < 1
    return isinstance(schedule, config.LocalLoss)


def sends_at_once(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """Some producer is locked to it, and learns from whatever gradient it learns from."""
    return any(
        is_locked_to_consumers(chosen, one) and bool(one.consumers)
        for one in plan.groups
        if one.name in group.producers
    )


def hears_synthetic(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """What comes back to it is itself synthetic, at least in part."""
    return any(
        _sends_synthetic(chosen, plan, one) for one in plan.groups if one.name in group.consumers
    )


def _sends_synthetic(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    own = own_schedule(chosen, group)
    if not group.consumers:
        return False  # it has the true loss
    if isinstance(own, config.Synthetic):
        return own.target != "true" or sends_at_once(chosen, plan, group)
    return hears_synthetic(chosen, plan, group)
