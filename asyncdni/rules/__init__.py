"""From an experiment's tables to the rules that each worker goes by: schedule, lag, guard, replay.

The coordinator, the workers and the simulator all get them from here, so that none of them knows
what a schedule's options mean.
"""

from __future__ import annotations

import msgspec

from asyncdni import config
from asyncdni.core.counts import Counts
from asyncdni.core.greetings import PATIENCE_S
from asyncdni.core.guard import Guard
from asyncdni.core.lag import Lag
from asyncdni.core.position import Position
from asyncdni.core.replay import Replay
from asyncdni.core.shares import Shares
from asyncdni.core.worker import Worker
from asyncdni.messages import DATA
from asyncdni.plan import Group, Plan, shared_with
from asyncdni.rules.checks import check_rules
from asyncdni.rules.lag import lag_bounds
from asyncdni.rules.own import learns_alone, own_schedule
from asyncdni.rules.schedule import is_repeatable, make_schedule, repeatable_words
from asyncdni.rules.sharing import goes_on, sharing_bounds

__all__ = [
    "check_rules",
    "goes_on",
    "is_repeatable",
    "late_gradients",
    "learns_alone",
    "make_position",
    "make_schedule",
    "make_worker",
    "own_schedule",
    "repeatable_words",
]


#: A short `startup_s` must not be over before anybody has said why.
_PATIENCES_OF_STARTUP = 4


def make_position(plan: Plan, group: Group) -> Position:
    """Where the worker of `group` stands."""
    hosts = group.index == plan.host
    train_feeds = tuple(name for name in plan.feeds if name not in plan.test_feeds)
    ahead = any(one.synthetic_inputs for one in plan.groups if one.name in group.consumers)
    return Position(
        name=group.name,
        index=group.index,
        count=len(plan.groups),
        inputs=group.producers,
        consumers=group.consumers,
        sharers=tuple(shared_with(plan.groups, group)),
        has_loss=group.has_loss,
        host=plan.groups[plan.host].name,
        feeds=plan.test_feeds if hosts else (),
        train_feeds=train_feeds if hosts else (),
        synthetic_inputs=group.synthetic_inputs,
        consumers_ahead=ahead,
        reads_data=group.reads_data,
        barriers=plan.barriers if hosts else (),
        cuts=plan.cut_barriers if hosts else (),
        microbatches=plan.microbatches if hosts else 1,
        per_epoch=plan.batches_per_epoch if hosts else 0,
        test_batches=plan.test_batches if hosts else 0,
        rows=plan.rows,
    )


def make_worker(
    experiment: config.Experiment, plan: Plan, group: Group, counts: Counts | None = None
) -> Worker:
    """The logic of one worker for one round; `counts` go on from earlier ones."""
    options = own_schedule(experiment, group)
    limits = experiment.limits
    bounds, drop = lag_bounds(experiment, plan, group)
    position = make_position(plan, group)
    bound, ahead = sharing_bounds(experiment, plan, group)
    return Worker(
        position,
        make_schedule(experiment, plan, group),
        window=limits.window,
        window_max=limits.window_max,
        lag=Lag(bounds, drop=drop),
        skips=getattr(options, "on_full", "wait") == "skip",
        replay=_make_replay(options, plan, group),
        guard=_make_guard(options, group),
        shares=Shares(position.sharers, bound=bound, ahead=ahead),
        counts=counts,
        patience_s=min(PATIENCE_S, limits.startup_s / _PATIENCES_OF_STARTUP),
    )


def late_gradients(
    experiment: config.Experiment, plan: Plan, group: Group
) -> config.Delayed | None:
    """What the maths of a stage must know of gradients that come late; None where none does."""
    options = own_schedule(experiment, group)
    if not isinstance(options, config.Delayed):
        return None
    bounds, _ = lag_bounds(experiment, plan, group)
    if not any(bounds.values()):  # weights are kept for nobody
        return msgspec.structs.replace(options, weights="current")
    return options


def _make_replay(options: config.Schedule, plan: Plan, group: Group) -> Replay | None:
    """For inputs that come from other workers; the host of the data has new ones at any time, and
    its buffers are used again."""
    fed = DATA not in group.producers or group.index != plan.host
    if isinstance(options, config.LocalLoss) and options.replay and fed:
        return Replay(options.replay, options.uses_max)
    return None


def _make_guard(options: config.Schedule, group: Group) -> Guard | None:
    if not isinstance(options, config.Synthetic) or options.guard is None or group.exit is None:
        return None
    return Guard(options.guard.window, options.guard.below, options.guard.above)
