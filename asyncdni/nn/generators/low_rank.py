"""A linear map of activation and targets through a few units."""

from __future__ import annotations

from asyncdni.nn.generators.regression import Regression
from asyncdni.nn.layers import Dense

__all__ = ["LowRankGenerator"]


class LowRankGenerator(Regression):
    """[h, onehot(y)] -> `rank` linear units -> ĝ: a fraction of the full map's arithmetic.

    Only the second map starts at zero; were both to, neither would ever move."""

    def __init__(
        self,
        *,
        rank: int = 32,
        labels: bool = True,
        learning_rate: float = 3e-3,
        scale_targets: bool = True,
    ) -> None:
        super().__init__(
            hidden=[Dense(rank)],
            labels=labels,
            learning_rate=learning_rate,
            scale_targets=scale_targets,
        )
