"""What options can't go together, each with its reason. Raised before anything starts."""

from __future__ import annotations

import msgspec

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.wording import stage_place
from asyncdni.plan import Group, Plan
from asyncdni.rules.lag import check_lag
from asyncdni.rules.own import (
    hears_synthetic,
    is_locked_to_consumers,
    own_schedule,
    sends_at_once,
)
from asyncdni.rules.sharing import check_sharing_rules
from asyncdni.rules.windows import check_windows

__all__ = ["check_rules"]

#: All stages must agree on these: they say which gradients travel.
_RUN_WIDE = (
    "target",
    "fit_every",
    "fit_first",
    "mix",
    "update_probability",
    "synthetic_inputs",
    "on_full",
)


def check_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for a schedule whose options contradict each other, or the network."""
    if isinstance(experiment.schedule, config.Synthetic):
        _check_synthetic(experiment.schedule)
    _check_own(experiment, plan)
    for group in plan.groups:
        own = own_schedule(experiment, group)
        if isinstance(own, config.Synthetic):
            _check_synthetic(own)
            _refuse(
                own.guard is not None and hears_synthetic(experiment, plan, group),
                f"schedule.guard: what comes back to stage {group.exit} is synthetic: a consumer "
                "sends it at once, as stages are locked to it; a guard needs true gradients",
            )
    check_windows(experiment, plan)
    check_lag(experiment, plan)
    check_sharing_rules(experiment, plan)


def _check_synthetic(options: config.Synthetic) -> None:
    true = options.target == "true"
    _refuse(
        options.mix > 0 and not true,
        f"schedule.mix: a share of the true gradient needs target = 'true', got {options.target!r}",
    )
    _refuse(
        options.mix > 0 and options.fit_every > 1,
        f"schedule.mix: with fit_every = {options.fit_every} most batches get no true gradient to "
        "take a share of; expected fit_every = 1",
    )
    _refuse(
        options.mix > 0 and options.correct,
        "schedule.mix: a correction replaces the synthetic gradient already; expected one of mix "
        "and correct",
    )
    _refuse(
        options.mix == 1 and options.update_probability < 1,
        "schedule.mix: with mix = 1 nothing is synthetic, and update_probability belongs to what "
        "is; expected mix below 1",
    )
    guard = options.guard
    _refuse(
        options.mix == 1 and guard is not None,
        "schedule.guard: with mix = 1 no generator is asked, so there is none to guard; expected "
        "mix below 1",
    )
    _refuse(
        guard is not None and not true,
        "schedule.guard: it compares with true gradients, so it needs target = 'true', got "
        f"{options.target!r}",
    )
    _refuse(
        guard is not None and guard.above < guard.below,
        "schedule.guard: above must not be less than below, or a stage would go back and forth",
    )


def _check_own(experiment: config.Experiment, plan: Plan) -> None:
    """Schedules of single stages."""
    base = experiment.schedule
    name = str(base.__struct_config__.tag)
    decoupled = isinstance(base, config.Synthetic | config.LocalLoss)
    for index, stage in enumerate(experiment.stages):
        place = f"{stage_place(index, stage.name)}.schedule"
        _refuse(
            bool(stage.schedule) and not decoupled,
            f"{place}: under {name} all stages go by one schedule; a stage may have its own under "
            "synthetic and local_loss",
        )
    for group in plan.groups:
        own = own_schedule(experiment, group)
        place = f"stage {group.exit or group.members[-1].name}, schedule"
        if own is not base and not isinstance(own, config.Locked):
            _check_same(base, own, place)
    for group in plan.groups:
        if is_locked_to_consumers(experiment, group):
            _check_with_locked(base, group)
        if sends_at_once(experiment, plan, group):
            _check_exit(own_schedule(experiment, group), group.name)


def _check_same(base: config.Schedule, own: config.Schedule, place: str) -> None:
    name, other = base.__struct_config__.tag, own.__struct_config__.tag
    _refuse(
        name != other,
        f"{place}: {other} can't stand beside {name}; expected {name} or locked",
    )
    for field in msgspec.structs.fields(base):
        key = field.encode_name
        _refuse(
            key in _RUN_WIDE and getattr(base, key) != getattr(own, key),
            f"{place}.{key}: it is the same for all stages; set it in [schedule]",
        )


def _check_with_locked(base: config.Schedule, group: Group) -> None:
    """A stage that waits for its consumers' gradients must get one of each batch."""
    _refuse(
        bool(getattr(base, "synthetic_inputs", False)),
        f"schedule.synthetic_inputs: stage {group.name} is locked, which rules it out",
    )
    if not group.consumers:
        return
    for key in ("replay", "mix"):
        _refuse(
            bool(getattr(base, key, False)),
            f"schedule.{key}: stage {group.name} is locked to its consumers, which rules it out",
        )
    _refuse(
        getattr(base, "update_probability", 1) < 1,
        f"schedule.update_probability: stage {group.name} is locked to its consumers and needs a "
        "gradient of each batch; expected 1",
    )


def _check_exit(own: config.Schedule, stage: str) -> None:
    _refuse(
        isinstance(own, config.Synthetic) and own.guard is not None and own.fit_every > 1,
        f"schedule.guard: stages locked to {stage} need a gradient of each batch, also while it "
        "waits; expected fit_every = 1",
    )


def _refuse(wrong: bool, text: str) -> None:
    if wrong:
        raise ConfigError(text)
