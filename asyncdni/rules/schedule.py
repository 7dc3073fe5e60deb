"""The schedule that a worker goes by, made from its options and its place in the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import get_args

from asyncdni import config
from asyncdni.plan import Group, Plan, shared_with
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

__all__ = ["is_repeatable", "make_schedule", "repeatable_words"]


def is_repeatable(experiment: config.Experiment, plan: Plan) -> bool:
    """Another run of the experiment ends with the same weights, to the last bit; so does any with
    one worker, which waits for nobody."""
    own = [own_schedule(experiment, group) for group in plan.groups]
    if len(own) == 1:
        return True
    if any(shared_with(plan.groups, group) for group in plan.groups):
        return all(isinstance(one, config.Locked | config.Gpipe | config.OneF1B) for one in own)
    return all(
        one.repeatable and not getattr(one, "replay", 0) and getattr(one, "on_full", "") != "skip"
        for one in (experiment.schedule, *own)
    )


def repeatable_words() -> str:
    """Which schedules repeat a run by its seed, for the user."""
    by_answer: dict[bool, list[str]] = {True: [], False: []}
    for kind in get_args(config.Schedule):
        by_answer[kind.repeatable].append(str(kind.__struct_config__.tag))
    always, never = (", ".join(by_answer[answer]) for answer in (True, False))
    return (
        f"the same seed repeats a run to the last bit under {always} (this one while no worker "
        f"dies, without replay and skipping), and in one worker; {never} are not repeatable: their "
        "weights depend on when messages arrive; `asyncdni simulate` repeats any run"
    )


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
