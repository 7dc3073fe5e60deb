"""One set of weights used by several stages: which stage uses whose, and whether it can.

    [[stages]]
    name = "stamp2"
    layers = [{ dense = 64 }, "tanh"]     # the same as those of stamp1
    weights = "stamp1"

Each of them has a copy of the weights; all copies begin alike and make the same steps, on the sum
of the gradients of all. Running statistics, random masks and generators stay each stage's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.wording import nearest, shown, stage_place

__all__ = ["check_alike", "check_sharing"]

#: (joined shape of the inputs, layers) of a stage.
_Form = tuple[tuple[int, ...], Sequence[object]]


def check_sharing(stages: Sequence[config.Stage]) -> None:
    """Raises `ConfigError` where `weights` names no other stage that has weights of its own, or an
    optimizer is said twice for one set."""
    by_name = {stage.name: stage for stage in stages}
    for index, stage in enumerate(stages):
        if not stage.weights:
            continue
        place = f"{stage_place(index, stage.name)}.weights"
        owner = by_name.get(stage.weights)
        if owner is None:
            close = nearest(stage.weights, by_name) or ";"
            raise ConfigError(
                f"{place}: there is no stage {shown(stage.weights)}{close} known: "
                f"{', '.join(by_name)}"
            )
        if owner is stage:
            raise ConfigError(f"{place}: the stage names itself; leave it out, or name another")
        if owner.weights:
            raise ConfigError(
                f"{place}: {owner.name} itself uses the weights of {shown(owner.weights)}; "
                "expected the stage that has them"
            )
        if stage.optimizer:
            raise ConfigError(
                f"{stage_place(index, stage.name)}.optimizer: the weights are those of "
                f"{owner.name}, whose optimizer moves them; set it there"
            )


def check_alike(place: str, own: _Form, owner: str, there: _Form) -> None:
    """Raises `ConfigError` where the stage at `place` can't use the weights of `owner`."""
    if own[0] != there[0]:
        raise ConfigError(
            f"{place}.weights: its layers get shape {own[0]}, those of {owner} {there[0]}; "
            "expected the same, as they use one set of weights"
        )
    if list(own[1]) != list(there[1]):
        raise ConfigError(
            f"{place}.weights: its layers are {shown(list(own[1]))}, those of {owner} "
            f"{shown(list(there[1]))}; expected the same, as they use one set of weights"
        )
