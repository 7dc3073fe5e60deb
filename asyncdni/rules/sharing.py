"""What weights that stages of several workers share ask of a schedule.

An update needs one gradient of each batch from every sharer, in the same order everywhere.
"""

from __future__ import annotations

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.plan import Group, Plan, shared_with
from asyncdni.rules.lag import lag_bounds
from asyncdni.rules.own import learns_alone, own_schedule

__all__ = ["SHARED_LAG", "check_sharing_rules", "goes_on", "sharing_bounds"]

#: Batches that a stage which learns at once is ahead of the oldest update that it shares.
SHARED_LAG = 16

#: Under these options a stage learns from some batches not at all, more than once, or later, or its
#: step depends on more than the gradient; with what they must be.
_ONE_BY_ONE: dict[str, object] = {
    "on_full": "wait",
    "update_probability": 1,
    "correct": False,
    "mix": 0,
    "guard": None,
    "replay": 0,
    "anneal_epochs": 0,
}


def check_sharing_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for an option that shared weights rule out. Within one worker any will
    do: its stages learn from the same batches at the same time."""
    for group in plan.groups:
        for stages in shared_with(plan.groups, group).values():
            _check_options(own_schedule(experiment, group), stages[0])
            _check_options(experiment.schedule, stages[0])


def _check_options(options: config.Schedule, stage: str) -> None:
    for key, wanted in _ONE_BY_ONE.items():
        given = getattr(options, key, wanted)
        if given != wanted:
            what = f"{key} = {given!r}" if isinstance(given, str | int | float) else f"a {key}"
            raise ConfigError(
                f"schedule.{key}: stage {stage} shares its weights with a stage of another worker, "
                f"so each batch must give one gradient and one update, which {what} rules out; "
                "leave it out, or put both into one worker with run.split"
            )


def goes_on(experiment: config.Experiment, plan: Plan) -> bool:
    """While a worker is dead the others learn on: none waits for a gradient of another."""
    return all(
        learns_alone(own_schedule(experiment, group)) and not shared_with(plan.groups, group)
        for group in plan.groups
    )


def sharing_bounds(experiment: config.Experiment, plan: Plan, group: Group) -> tuple[int, int]:
    """(how many batches it may forward beyond the oldest update that it shares, the most that any
    of its sharers may)."""
    sharers = shared_with(plan.groups, group)
    if not sharers:
        return 0, 0
    usual = _usual(experiment, plan)
    others = [one for one in plan.groups if one.name in sharers]
    bounds = [_bound(experiment, one, usual) for one in (group, *others)]
    return bounds[0], max(bounds)


def _bound(experiment: config.Experiment, group: Group, usual: int) -> int:
    """A stage that is locked to its consumers keeps the weights of a batch until its update."""
    return 0 if isinstance(own_schedule(experiment, group), config.Locked) else usual


def _usual(experiment: config.Experiment, plan: Plan) -> int:
    """Of the run: no less than the lag that its links may have."""
    match experiment.schedule:
        case config.Locked() | config.Gpipe() | config.OneF1B():
            return 0
        case config.Delayed():
            bounds = [lag_bounds(experiment, plan, group)[0] for group in plan.groups]
            return max((n for one in bounds for n in one.values()), default=0)
    lag = experiment.staleness.lag
    return SHARED_LAG if lag is None else lag
