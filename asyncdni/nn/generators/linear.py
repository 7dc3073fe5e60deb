"""A linear map of activation and targets."""

from __future__ import annotations

from asyncdni.nn.generators.regression import Regression

__all__ = ["LinearGenerator"]


class LinearGenerator(Regression):
    """ĝ = h A + onehot(y) B + c, all zero at the start: one dense layer on [h, onehot(y)]."""

    def __init__(
        self, *, labels: bool = True, learning_rate: float = 3e-3, scale_targets: bool = True
    ) -> None:
        super().__init__(
            hidden=[], labels=labels, learning_rate=learning_rate, scale_targets=scale_targets
        )
