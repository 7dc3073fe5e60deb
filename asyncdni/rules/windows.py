"""What sequences ask of a schedule, and feature maps of a generator."""

from __future__ import annotations

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.network import Node
from asyncdni.plan import Group, Plan
from asyncdni.rules.own import own_schedule

__all__ = ["check_windows"]

_RECURRENT = ("rnn", "lstm")
_MAPS = "(C, H, W)"


def check_windows(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` where windows of sequences would be torn apart or come twice, and where
    a generator can't make rows of its stage's activation."""
    schedule, data = experiment.schedule, experiment.data
    if isinstance(data, config.Windows):
        _check_streams(schedule)
    nodes = [node for group in plan.groups for node in group.members]
    found = next((node for node in nodes if any(map(_is_recurrent, node.layers))), None)
    if found is not None:
        _check_recurrent(experiment, found)
    for group in plan.groups:
        if group.exit is not None:
            exit_ = next(node for node in group.members if node.name == group.exit)
            _check_exit(experiment, group, exit_)


def _is_recurrent(spec: object) -> bool:
    name = next(iter(spec)) if isinstance(spec, dict) else spec
    return name in _RECURRENT


def _check_streams(schedule: config.Schedule) -> None:
    count = getattr(schedule, "microbatches", 1)
    if count > 1:
        raise ConfigError(
            f"schedule.microbatches: {count} would tear the streams of a window apart, whose state "
            "goes on in the next one; expected 1"
        )
    if getattr(schedule, "synthetic_inputs", False):
        raise ConfigError(
            "schedule.synthetic_inputs: an input model knows no steps; expected false for windows "
            "of sequences"
        )


def _check_recurrent(experiment: config.Experiment, node: Node) -> None:
    schedule = experiment.schedule
    why = f"stage {node.name} is recurrent and takes every batch once, in order"
    if getattr(schedule, "replay", 0):
        raise ConfigError(f"schedule.replay: {why}; expected 0")
    if not isinstance(experiment.data, config.Windows):
        return  # each sample is a whole sequence
    if getattr(schedule, "on_full", "wait") == "skip":
        raise ConfigError(f"schedule.on_full: {why}, without gaps; expected 'wait', got 'skip'")
    if experiment.staleness.at_bound == "drop":
        raise ConfigError(f"staleness.at_bound: {why}, without gaps; expected 'wait', got 'drop'")


def _check_exit(experiment: config.Experiment, group: Group, node: Node) -> None:
    """A stage whose gradient is predicted."""
    own = own_schedule(experiment, group)
    synthetic = isinstance(own, config.Synthetic) and own.mix < 1
    if not (synthetic or isinstance(own, config.LocalLoss)):
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
    generator = own.generator if isinstance(own, config.Synthetic) else None
    if isinstance(generator, config.ConvolutionalGenerator) and len(shape) != 3:
        raise ConfigError(
            f"{node.place}: it ends in shape {shape}, and a convolutional generator expects "
            f"feature maps {_MAPS}; give the stage one of its own, as in "
            'schedule = { generator = { kind = "error" } }'
        )
