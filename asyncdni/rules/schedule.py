"""The schedule that a worker goes by, made from its options and its place in the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

from asyncdni import config
from asyncdni.plan import Group, Plan
from asyncdni.rules.own import hears_synthetic, own_schedule, sends_at_once
from asyncdni.schedules import (
    ALWAYS,
    NEVER,
    Asked,
    Delayed,
    Gpipe,
    Groups,
    LocalLoss,
    Locked,
    OneF1B,
    Schedule,
    Synthetic,
    draw,
)

__all__ = ["make_schedule"]


def make_schedule(experiment: config.Experiment, plan: Plan, group: Group) -> Schedule:
    """Of the worker of `group`."""
    options = own_schedule(experiment, group)
    at_once = sends_at_once(experiment, plan, group)
    match options:
        case config.Locked():
            asked = ALWAYS if at_once else _asked(experiment.schedule)
            return Locked(split_backward=options.split_backward, asked=asked)
        case config.Gpipe():
            return Gpipe(_groups(plan), split_backward=options.split_backward)
        case config.OneF1B():
            split = options.split_backward
            return OneF1B(_groups(plan), warmup=group.depth, split_backward=split)
        case config.Delayed():
            return Delayed(split_backward=options.split_backward)
        case config.LocalLoss():
            return LocalLoss(send_at_once=at_once)
        case config.Synthetic():
            return Synthetic(
                bootstrap=options.target == "bootstrap",
                half=options.target == "half",
                asked=_asked(options),
                correct=options.correct,
                mix=options.mix,
                draws=_draws(options, experiment.run.seed, group),
                send_at_once=at_once,
                hears_synthetic=options.target != "true"
                or hears_synthetic(experiment, plan, group),
            )


def _groups(plan: Plan) -> Groups:
    return Groups(plan.microbatches, plan.batches_per_epoch)


def _asked(schedule: config.Schedule) -> Asked:
    """Which batches a decoupled run sends gradients up for."""
    match schedule:
        case config.Synthetic():
            return Asked(schedule.fit_every, schedule.fit_first)
        case config.LocalLoss():
            return NEVER
    return ALWAYS


def _draws(options: config.Synthetic, seed: int, group: Group) -> Callable[[int], bool] | None:
    """Whether the stage learns from a batch; keyed by its name, so that no two agree."""
    if options.update_probability == 1:
        return None
    name = group.members[-1].name
    digest = hashlib.sha256(f"{seed}/{name}/update".encode()).digest()
    key = int.from_bytes(digest[:8], "little")
    return partial(_below, key, options.update_probability)


def _below(key: int, probability: float, batch: int) -> bool:
    return draw(key, batch) < probability
