"""Refuse options that can't be combined, with the reason, before anything starts.

Contradictions within one schedule are found by its own options (`Options.conflicts`). The checks
here depend on the network, the data, and the schedules of other stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import stage_place
from asyncdni.network import Node
from asyncdni.plan.plan import Group, Plan, shared_with
from asyncdni.plan.rules import (
    is_locked_to_consumers,
    lag_bounds,
    receives_synthetic,
    sends_at_once,
)
from asyncdni.schedules import SCHEDULES

__all__ = ["check_lag", "check_rules", "check_sharing_rules", "check_windows"]


def check_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Check all options together. Raises `ConfigError` for a schedule whose options contradict each
    other or the network."""
    _refuse_first(experiment.schedule.conflicts())
    _check_own(experiment, plan)
    _refuse(
        experiment.run.evaluate == "behind" and experiment.schedule.synchronous,
        "run.evaluate: 'behind' is for schedules whose stages do not wait for one another, but "
        f"those of {experiment.schedule.tag} do; expected 'drained'",
    )
    for group in plan.groups:
        own = group.schedule
        _refuse_first(own.conflicts())
        _refuse(
            own.guard is not None and receives_synthetic(experiment, plan, group),
            f"schedule.guard: what comes back to stage {group.exit} is synthetic: a consumer "
            "sends it at once, as stages are locked to it; a guard needs true gradients",
        )
    check_windows(experiment, plan)
    check_lag(experiment, plan)
    check_sharing_rules(experiment, plan)


def _refuse(wrong: bool, text: str) -> None:
    if wrong:
        raise ConfigError(text)


def _refuse_first(conflicts: Iterator[str]) -> None:
    for text in conflicts:
        raise ConfigError(text)


# --- schedules of single stages ------------------------------------------------------------------


def _check_own(experiment: config.Experiment, plan: Plan) -> None:
    base = experiment.schedule
    for index, stage in enumerate(experiment.stages):
        place = f"{stage_place(index, stage.name)}.schedule"
        _refuse(
            bool(stage.schedule) and not base.decoupled,
            f"{place}: under {base.tag} all stages go by one schedule; a stage may have its own "
            f"under {_decoupled_names()}",
        )
    for group in plan.groups:
        own = group.schedule
        if own is not base and not own.locks:
            _check_same(base, own, f"stage {group.exit or group.members[-1].name}, schedule")
    for group in plan.groups:
        if is_locked_to_consumers(experiment, group):
            waits = bool(group.consumers)
            _refuse_first(base.conflicts_with_locked(group.name, waits=waits))
        if sends_at_once(experiment, plan, group):
            _refuse_first(group.schedule.conflicts_at_once(group.name))


def _decoupled_names() -> str:
    return " and ".join(sorted((n for n, one in SCHEDULES.items() if one.decoupled), reverse=True))


def _check_same(base: config.Schedule, own: config.Schedule, place: str) -> None:
    name, other = base.tag, own.tag
    _refuse(
        name != other,
        f"{place}: {other} can't be combined with {name}; expected {name} or locked",
    )
    for field in msgspec.structs.fields(base):
        key = field.encode_name
        _refuse(
            key in base.run_wide and getattr(base, key) != getattr(own, key),
            f"{place}.{key}: it is the same for all stages; set it in [schedule]",
        )
    _refuse(
        base.asked != own.asked,
        f"{place}.generator: stages send gradients up for the generators of all stages or for "
        "none, and readout needs none; set it in [schedule], or a guard there, which needs them",
    )


# --- lag -----------------------------------------------------------------------------------------


def check_lag(experiment: config.Experiment, plan: Plan) -> None:
    """Check the [staleness] table. Raises `ConfigError` for bounds that the schedule can't keep or
    has no use for."""
    schedule, staleness = experiment.schedule, experiment.staleness
    name = schedule.tag
    if schedule.greedy and staleness != config.Staleness():
        raise ConfigError(
            f"staleness: nothing comes back under {name}, so there is no lag to bound; limit "
            "how far a stage is ahead of its consumers with limits.window"
        )
    if staleness.at_bound == "drop" and not schedule.learns_alone:
        raise ConfigError(
            f"staleness.at_bound: under {name} every gradient is waited for, so none can be "
            "dropped; expected 'wait'"
        )
    for group in plan.groups:
        needed = group.schedule.lag_needed(group.depth)
        for to, bound in lag_bounds(experiment, plan, group)[0].items():
            if bound < needed:
                raise ConfigError(
                    f"staleness: a lag of {bound} on the link {group.name}->{to} is below what "
                    f"{name} needs there: {needed} batches; raise it or choose fewer microbatches"
                )


# --- sharing -------------------------------------------------------------------------------------


def check_sharing_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Check the options of stages that share weights with a stage of another worker.

    An update of shared weights needs one gradient of each batch from every sharer, in the same
    order everywhere. Stages of the same worker may share weights under any options, as they learn
    from the same batches at the same time. Raises `ConfigError` for an option that breaks this.
    """
    for group in plan.groups:
        for stages in shared_with(plan.groups, group).values():
            _check_one_by_one(group.schedule, stages[0])
            _check_one_by_one(experiment.schedule, stages[0])


def _check_one_by_one(options: config.Schedule, stage: str) -> None:
    for key, wanted in options.one_by_one.items():
        given = getattr(options, key)
        if given != wanted:
            what = f"{key} = {given!r}" if isinstance(given, str | int | float) else f"a {key}"
            raise ConfigError(
                f"schedule.{key}: stage {stage} shares its weights with a stage of another worker, "
                f"so each batch must give one gradient and one update, which {what} rules out; "
                "leave it out, or put both into one worker with run.split"
            )


# --- sequences and feature maps ------------------------------------------------------------------

_RECURRENT = ("rnn", "lstm")
_MAPS = "(C, H, W)"


def check_windows(experiment: config.Experiment, plan: Plan) -> None:
    """Check options against sequences and feature maps. Raises `ConfigError` where windows of
    sequences would be torn apart or come twice, and where a generator can't take the shape of its
    stage's activation."""
    schedule, data = experiment.schedule, experiment.data
    if isinstance(data, config.Windows):
        _check_streams(schedule)
    nodes = [node for group in plan.groups for node in group.members]
    if isinstance(data, config.Windows) and schedule.microbatches > 1:
        _check_independent(nodes, schedule.microbatches)
    found = next((node for node in nodes if any(map(_is_recurrent, node.layers))), None)
    if found is not None:
        _check_recurrent(experiment, found)
    for group in plan.groups:
        if group.exit is not None:
            exit_ = next(node for node in group.members if node.name == group.exit)
            _check_map_exit(experiment, group, exit_)


def _is_recurrent(spec: object) -> bool:
    name = next(iter(spec)) if isinstance(spec, dict) else spec
    return name in _RECURRENT


def _check_independent(nodes: Sequence[Node], microbatches: int) -> None:
    """Check that no layer carries a state from window to window, which microbatches of some of the
    streams would tear apart. Whether a layer of the user's own does, nobody knows."""
    for node in nodes:
        for layer in node.layers:
            name = next(iter(layer)) if isinstance(layer, dict) else layer
            if _is_recurrent(layer) or ":" in name:
                carries = "carries" if _is_recurrent(layer) else "may carry"
                raise ConfigError(
                    f"schedule.microbatches: {microbatches} would tear the streams of a window "
                    f"apart, and layer {name} of stage {node.name} {carries} their state to the "
                    "next one; expected 1"
                )


def _check_streams(schedule: config.Schedule) -> None:
    if schedule.synthetic_inputs:
        raise ConfigError(
            "schedule.synthetic_inputs: an input model predicts one activation a sample, not one a "
            "step; expected false for windows of sequences"
        )


def _check_recurrent(experiment: config.Experiment, node: Node) -> None:
    schedule = experiment.schedule
    why = f"stage {node.name} is recurrent and takes every batch once, in order"
    if schedule.replay:
        raise ConfigError(f"schedule.replay: {why}; expected 0")
    if not isinstance(experiment.data, config.Windows):
        return  # each sample is a whole sequence, so batches may be left out
    if schedule.on_full == "skip":
        raise ConfigError(f"schedule.on_full: {why}, without gaps; expected 'wait', got 'skip'")
    if experiment.staleness.at_bound == "drop":
        raise ConfigError(f"staleness.at_bound: {why}, without gaps; expected 'wait', got 'drop'")


def _check_map_exit(experiment: config.Experiment, group: Group, node: Node) -> None:
    """Check that the generator at the exit of `group` can take the output of `node`, its exit."""
    model = group.schedule.predictor
    if model is None:
        return
    shape, data = node.output_shape, experiment.data
    if isinstance(data, config.Windows):
        if len(shape) < 2 or shape[0] != data.window:
            raise ConfigError(
                f"{node.place}: it ends in shape {shape}, but its generator needs the "
                f"{data.window} steps of a window apart, as each has targets of its own; keep "
                f"({data.window}, …) to the stage's end"
            )
        shape = shape[1:]
    if model.maps_only and len(shape) != 3:
        raise ConfigError(
            f"{node.place}: it ends in shape {shape}, and a {model.title} expects "
            f"feature maps {_MAPS}; give the stage one of its own, as in "
            'schedule = { generator = { kind = "error" } }'
        )
