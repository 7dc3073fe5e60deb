"""The rules that each worker follows, from the experiment and its plan: schedule, lag, guard,
replay.

The coordinator, the workers and the simulator all get them from here. What depends only on a
schedule is in its options (`schedules.options`). This module has what depends on the place of a
worker among the others: which workers are locked to which, what kind of gradients come back, and
which bounds on lag apply.
"""

from __future__ import annotations

from asyncdni import config
from asyncdni.core.counts import Counts
from asyncdni.core.flights import Copies, Guard, Lag, Shares
from asyncdni.core.inputs import Replay
from asyncdni.core.position import Position
from asyncdni.core.post import patience_s
from asyncdni.core.worker import Worker
from asyncdni.messages import DATA
from asyncdni.plan.conditions import find_link
from asyncdni.plan.plan import Group, Plan, read_by, shared_with
from asyncdni.schedules import SCHEDULES
from asyncdni.schedules.base import ALWAYS, Groups, Schedule
from asyncdni.schedules.options import Late, Role

__all__ = [
    "SHARED_LAG",
    "is_locked_to_consumers",
    "is_repeatable",
    "lag_bounds",
    "late_gradients",
    "learns_alone",
    "make_position",
    "make_schedule",
    "make_worker",
    "receives_synthetic",
    "repeatable_words",
    "sends_at_once",
    "sharing_bounds",
]

#: How far a stage that shares weights and learns at once may be ahead of the oldest shared update
#: that is missing, in batches.
SHARED_LAG = 16


# --- who learns from what ------------------------------------------------------------------------


def is_locked_to_consumers(chosen: config.Experiment, group: Group) -> bool:
    """Tell whether `group` waits for the gradient of its consumers although the run is
    decoupled."""
    return chosen.schedule.decoupled and group.schedule.locks


def sends_at_once(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """Tell whether `group` passes each gradient on at once: some producer is locked to it and
    learns from the same gradient, synthetic or true, as `group` itself."""
    return any(
        is_locked_to_consumers(chosen, one) and bool(one.consumers)
        for one in plan.groups
        if one.name in group.producers
    )


def receives_synthetic(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """Tell whether the gradient that `group` gets from its consumers is synthetic, at least in
    part.

    Consumers that only pass on the gradients that they receive don't make them true or synthetic:
    their own consumers decide.
    """
    if not chosen.schedule.decoupled:
        return False
    groups = {one.name: one for one in plan.groups}
    seen: set[str] = set()
    left = list(group.consumers)
    while left:
        one = groups[left.pop()]
        if one.name in seen or not one.consumers:  # the last group has the true loss
            continue
        seen.add(one.name)
        if not one.schedule.decoupled or one.schedule.greedy:
            left += one.consumers
        elif one.schedule.sends_synthetic or sends_at_once(chosen, plan, one):
            return True
    return False


# --- what a run promises -------------------------------------------------------------------------


def is_repeatable(experiment: config.Experiment, plan: Plan) -> bool:
    """Tell whether the same seed gives the same weights, to the last bit. A run with a single
    worker always repeats: it waits for no message."""
    own = [group.schedule for group in plan.groups]
    if len(own) == 1:
        return True
    if any(shared_with(plan.groups, group) for group in plan.groups):
        return all(one.synchronous for one in own)
    return all(one.repeats for one in (experiment.schedule, *own))


def repeatable_words() -> str:
    """Say under which schedules the same seed repeats a run."""
    always: list[str] = []
    never: list[str] = []
    for name, options in SCHEDULES.items():
        condition = f" (this one {options.repeatable_if})" if options.repeatable_if else ""
        (always if options.repeatable else never).append(f"{name}{condition}")
    return (
        f"the same seed repeats a run to the last bit under {', '.join(always)}, and in one "
        f"worker; {', '.join(never)} are not repeatable: their weights depend on when messages "
        "arrive; `asyncdni simulate` repeats any run"
    )


def learns_alone(plan: Plan) -> bool:
    """Tell whether the other workers learn on while one is dead: none waits for a gradient of
    another."""
    return all(
        group.schedule.learns_alone and not shared_with(plan.groups, group) for group in plan.groups
    )


# --- lag -----------------------------------------------------------------------------------------


def lag_bounds(
    experiment: config.Experiment, plan: Plan, group: Group
) -> tuple[dict[str, int], bool]:
    """Return the bounds on lag of `group`: (batches by consumer, whether to give up the oldest
    gradient at the bound).

    They are the user's, or else what the schedule needs. A greedy stage gets no gradients back, so
    it has no bounds.
    """
    options, staleness = group.schedule, experiment.staleness
    if options.greedy:
        return {}, False
    usual = options.lag_usual(group.depth)
    if not is_locked_to_consumers(experiment, group) and staleness.lag is not None:
        usual = staleness.lag
    named = {find_link(plan, key, "staleness.links"): n for key, n in staleness.links.items()}
    bounds = {to: named.get((group.name, to), usual) for to in group.consumers}
    return bounds, options.learns_alone and staleness.at_bound != "wait"


def late_gradients(experiment: config.Experiment, plan: Plan, group: Group) -> Late | None:
    """Return what a stage's maths must know about gradients that arrive after later forwards; None
    if no gradient is late."""
    bounds, _ = lag_bounds(experiment, plan, group)
    return group.schedule.late(any(bounds.values()))


def sharing_bounds(experiment: config.Experiment, plan: Plan, group: Group) -> tuple[int, int]:
    """Return (how many batches `group` may forward beyond the oldest missing shared update, the
    largest such number among the workers that share its weights); (0, 0) if it shares none."""
    sharers = shared_with(plan.groups, group)
    if not sharers:
        return 0, 0
    usual = _usual_of_sharing(experiment, plan)
    others = [one for one in plan.groups if one.name in sharers]
    # A stage that is locked to its consumers uses a batch's weights until its update.
    bounds = [0 if one.schedule.locks else usual for one in (group, *others)]
    return bounds[0], max(bounds)


def _usual_of_sharing(experiment: config.Experiment, plan: Plan) -> int:
    """Return the default bound of a sharing worker: no less than the lag that links may have."""
    schedule, lag = experiment.schedule, experiment.staleness.lag
    if schedule.synchronous:
        return 0
    if not schedule.learns_alone:
        bounds = [lag_bounds(experiment, plan, group)[0] for group in plan.groups]
        return max((n for one in bounds for n in one.values()), default=0)
    return SHARED_LAG if lag is None else lag


# --- the worker ----------------------------------------------------------------------------------


def make_schedule(experiment: config.Experiment, plan: Plan, group: Group) -> Schedule:
    """Make the schedule of a group's worker."""
    at_once = sends_at_once(experiment, plan, group)
    role = Role(
        name=group.members[-1].name,
        seed=experiment.run.seed,
        depth=group.depth,
        groups=Groups(plan.per_update, plan.batches_per_epoch),
        asked=ALWAYS if at_once else experiment.schedule.asked,
        send_at_once=at_once,
        receives_synthetic=receives_synthetic(experiment, plan, group),
    )
    return group.schedule.rule(role)


def make_position(plan: Plan, group: Group) -> Position:
    """Make the place of a group's worker: its neighbours, and what it does for the whole run."""
    hosts = group.index == plan.host
    train_feeds = tuple(name for name in plan.feeds if name not in plan.test_feeds)
    ahead = any(one.synthetic_inputs for one in plan.groups if one.name in group.consumers)
    readers, owner = read_by(plan.groups), plan.groups[-1].name
    return Position(
        name=group.name,
        inputs=group.producers,
        consumers=group.consumers,
        sharers=tuple(shared_with(plan.groups, group)),
        readers=tuple(readers.items()) if group.name == owner else (),
        reads=owner if group.name in readers else "",
        host=plan.groups[plan.host].name,
        feeds=plan.test_feeds if hosts else (),
        train_feeds=train_feeds if hosts else (),
        synthetic_inputs=group.synthetic_inputs,
        consumers_ahead=ahead,
        reads_data=group.reads_data,
        barriers=plan.barriers if hosts else (),
        cuts=plan.cut_barriers if hosts else (),
        per_update=plan.per_update if hosts else 1,
        per_epoch=plan.batches_per_epoch if hosts else 0,
        test_batches=plan.test_batches if hosts else 0,
        marks=plan.marks,
        rows=plan.rows,
    )


def make_worker(
    experiment: config.Experiment, plan: Plan, group: Group, counts: Counts | None = None
) -> Worker:
    """Make the logic of a worker for one round; `counts` continue those of earlier rounds."""
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
        skips=group.schedule.on_full == "skip",
        replay=_make_replay(plan, group),
        guard=_make_guard(group),
        shares=Shares(position.sharers, bound=bound, ahead=ahead),
        copies=Copies(position.readers, position.reads),
        counts=counts,
        patience_s=patience_s(limits.startup_s),
    )


def _make_replay(plan: Plan, group: Group) -> Replay | None:
    """Make the replay buffer for inputs that come from other workers; None if replay is off. The
    host of the data needs none: it can read new samples at any time, and it reuses its buffers."""
    options = group.schedule
    fed = DATA not in group.producers or group.index != plan.host
    return Replay(options.replay, options.uses_max) if options.replay and fed else None


def _make_guard(group: Group) -> Guard | None:
    guard = group.schedule.guard
    if guard is None or group.exit is None:
        return None
    return Guard(guard.window, guard.below, guard.above)
