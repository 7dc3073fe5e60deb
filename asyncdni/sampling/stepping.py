"""A trained network that goes on from step to step, its recurrent layers carrying their states."""

from __future__ import annotations

import numpy as np

from asyncdni.datasets.meta import Array
from asyncdni.errors import ConfigError
from asyncdni.messages import DATA
from asyncdni.nn.base import Layer
from asyncdni.nn.layers.recurrent.base import Recurrent
from asyncdni.run import Result
from asyncdni.sampling.stages import joined, load_stages

__all__ = ["Stepper"]


class Stepper:
    """The network of a run on windows, one step at a time, from the state zero."""

    def __init__(self, run: Result, *, allow_import: bool = False) -> None:
        """Raises `ConfigError` where no stage carries a state, or a layer can't go step by step."""
        self._stages = load_stages(run, steps=1, allow_import=allow_import)
        self._dtype = np.dtype(run.experiment.run.dtype)
        self._states: dict[tuple[str, int], Array] = {}
        #: The last stage in declared order that has a loss: its output is the network's.
        self._output = [stage.node.name for stage in self._stages if stage.node.loss][-1]
        if not any(isinstance(one, Recurrent) for stage in self._stages for one in stage.layers):
            raise ConfigError(
                "the network has no recurrent layer, so nothing of what came before reaches the "
                "next step; expected an rnn or lstm among its stages"
            )

    def step(self, x: Array) -> Array:
        """The network's output (B, K) for the next step's inputs (B, …); B must stay the same."""
        known = {DATA: np.ascontiguousarray(x[:, None], self._dtype)}
        for stage in self._stages:
            h = joined(stage.node, known)
            for i, layer in enumerate(stage.layers):
                h = self._apply(layer, h, (stage.node.name, i))
            known[stage.node.name] = h
        return known[self._output][:, 0]

    def _apply(self, layer: Layer, x: Array, place: tuple[str, int]) -> Array:
        if not isinstance(layer, Recurrent):
            return layer.evaluate(x)
        y, self._states[place] = layer.continued(x, self._states.get(place))
        return y
