"""The bounds on lag that a worker keeps: what the user has set, or what the schedule needs."""

from __future__ import annotations

from asyncdni import config
from asyncdni.conditions import find_link
from asyncdni.errors import ConfigError
from asyncdni.plan import Group, Plan
from asyncdni.rules.own import is_locked_to_consumers, own_schedule

__all__ = ["SYNTHETIC_LAG", "check_lag", "lag_bounds"]

#: Batches whose gradient a synthetic stage awaits before it gives the oldest up.
SYNTHETIC_LAG = 256


def lag_bounds(
    experiment: config.Experiment, plan: Plan, group: Group
) -> tuple[dict[str, int], bool]:
    """(batches by consumer, whether the oldest is given up at the bound). Nothing comes back to a
    stage with a local loss, so it has no bounds."""
    options, staleness = own_schedule(experiment, group), experiment.staleness
    if isinstance(options, config.LocalLoss):
        return {}, False
    usual = _usual(options, plan, group)
    if not is_locked_to_consumers(experiment, group) and staleness.lag is not None:
        usual = staleness.lag
    named = {find_link(plan, key, "staleness.links"): n for key, n in staleness.links.items()}
    bounds = {to: named.get((group.name, to), usual) for to in group.consumers}
    return bounds, _drops(options, staleness)


def check_lag(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for bounds that the schedule can't keep, or has no use for."""
    schedule, staleness = experiment.schedule, experiment.staleness
    name = schedule.__struct_config__.tag
    if isinstance(schedule, config.LocalLoss) and staleness != config.Staleness():
        raise ConfigError(
            "staleness: nothing comes back under local_loss, so there is no lag to bound; limit "
            "how far a stage is ahead of its consumers with limits.window"
        )
    if staleness.at_bound == "drop" and not _may_drop(schedule):
        raise ConfigError(
            f"staleness.at_bound: under {name} every gradient is waited for, so none can be "
            "dropped; expected 'wait'"
        )
    for group in plan.groups:
        needed = _needed(own_schedule(experiment, group), plan, group)
        for to, bound in lag_bounds(experiment, plan, group)[0].items():
            if bound < needed:
                raise ConfigError(
                    f"staleness: a lag of {bound} on the link {group.name}->{to} is below what "
                    f"{name} needs there: {needed} batches; raise it or choose fewer microbatches"
                )


def _usual(options: config.Schedule, plan: Plan, group: Group) -> int:
    """The bound where nothing is said."""
    match options:
        case config.Synthetic() if options.mix < 1:
            return SYNTHETIC_LAG
        case config.Synthetic() | config.Delayed():
            return group.depth
    return _needed(options, plan, group)


def _needed(options: config.Schedule, plan: Plan, group: Group) -> int:
    """The least lag that the schedule runs with."""
    match options:
        case config.Gpipe():
            return plan.microbatches - 1
        case config.OneF1B():
            return min(plan.microbatches - 1, group.depth)
    return 0


def _may_drop(options: config.Schedule) -> bool:
    return isinstance(options, config.Synthetic) and options.mix < 1


def _drops(options: config.Schedule, staleness: config.Staleness) -> bool:
    return _may_drop(options) and staleness.at_bound != "wait"
