"""The schedule of each worker: the run's, or its own where a stage has one."""

from __future__ import annotations

from asyncdni import config, experiment
from asyncdni.plan import Group, Plan

__all__ = ["is_locked_to_consumers", "own_schedule", "sends_at_once"]


def own_schedule(chosen: config.Experiment, group: Group) -> config.Schedule:
    """Of the stage whose activation leaves the group (within it gradients are exact anyway), or of
    its last one."""
    name = group.exit or group.members[-1].name
    stage = next(stage for stage in chosen.stages if stage.name == name)
    return experiment.stage_schedule(chosen, stage)


def is_locked_to_consumers(chosen: config.Experiment, group: Group) -> bool:
    """In a decoupled run it waits for the gradient that its consumers send."""
    decoupled = isinstance(chosen.schedule, config.Synthetic | config.LocalLoss)
    return decoupled and isinstance(own_schedule(chosen, group), config.Locked)


def sends_at_once(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """Some producer is locked to it, and learns from whatever gradient it learns from."""
    return any(
        is_locked_to_consumers(chosen, one) and bool(one.consumers)
        for one in plan.groups
        if one.name in group.producers
    )
