"""Hidden layers of activation and targets: the DNI paper's generator of feed-forward networks."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdni.nn.base import Layer
from asyncdni.nn.generators.regression import Regression
from asyncdni.nn.layers import BatchNorm, Dense, Relu

__all__ = ["MlpGenerator"]


class MlpGenerator(Regression):
    """[h, onehot(y)] -> (dense, batch norm, relu) for each of `hidden` -> ĝ.

    The running statistics of the batch norms are never used, so they are no part of `buffers`."""

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (256,),
        labels: bool = True,
        learning_rate: float = 3e-3,
        scale_targets: bool = True,
    ) -> None:
        layers: list[Layer] = []
        for units in hidden:
            layers += Dense(units), BatchNorm(), Relu()
        super().__init__(
            hidden=layers,
            labels=labels,
            learning_rate=learning_rate,
            scale_targets=scale_targets,
        )
