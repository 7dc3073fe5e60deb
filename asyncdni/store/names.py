"""The weights of a whole network by the names that PyTorch gives them.

```
[model], cut into stages         "h_2.0.h.2.attn.weight"  ───►  "h.2.attn.weight"    the model's own
a chain of stages of layers      "hidden2.0.weight"       ───►  "3.weight"           nn.Sequential's
```

In a chain all layers are counted, also those without weights, so an `nn.Sequential` of the same
layers takes the file. The batch norms of PyTorch count their batches, which no layer of ours needs:
what they have counted is added. Its recurrent layers have two biases, whose sum counts, in place of
our one: the first is ours, the second 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncdni import config
from asyncdni.errors import ConfigError

__all__ = ["has_modules", "named_weights"]

Array = NDArray[Any]


def has_modules(chosen: config.Experiment) -> bool:
    """Whether a layer of the network is a module of PyTorch."""
    names = {_name(layer) for stage in chosen.stages for layer in stage.layers}
    return not names.isdisjoint(("module", "part"))


def named_weights(
    chosen: config.Experiment, weights: Mapping[str, Array], summary: Mapping[str, Any]
) -> dict[str, Array]:
    """The arrays "STAGE.POSITION.NAME" of a trained network by the names of the module that was cut
    into stages, or of an equal `nn.Sequential`; see `plan.model.state_facts` for what the run's
    `summary` tells of a module.

    Raises `ConfigError` for stages that are no chain, which has no equal `nn.Sequential`."""
    layers = [(stage.name, layer) for stage in chosen.stages for layer in stage.layers]
    if all(_name(layer) == "part" for _, layer in layers) or (
        len(layers) == 1 and _name(layers[0][1]) == "module"
    ):
        own = {name.split(".", 2)[2]: array for name, array in weights.items()}
        return _as_saved(own, summary.get("model") or {})
    _check_chain(chosen.stages)
    return dict(_in_sequence(chosen, weights, summary))


def _as_saved(own: dict[str, Array], facts: Mapping[str, Any]) -> dict[str, Array]:
    """With every name of tied weights, and without the buffers that the module does not save."""
    for names in facts.get("tied", ()):
        known = next((own[name] for name in names if name in own), None)
        if known is not None:
            own |= dict.fromkeys(names, known)
    return {name: array for name, array in own.items() if name not in facts.get("unsaved", ())}


def _in_sequence(
    chosen: config.Experiment, weights: Mapping[str, Array], summary: Mapping[str, Any]
) -> list[tuple[str, Array]]:
    counted = {one["name"]: one["batches"] for one in summary.get("stages") or ()}
    found, before = [], 0
    for stage in chosen.stages:
        for position, layer in enumerate(stage.layers):
            prefix, number = f"{stage.name}.{position}.", before + position
            own = {n.removeprefix(prefix): a for n, a in weights.items() if n.startswith(prefix)}
            if _name(layer) in _RECURRENT:
                own = _with_two_biases(own)
            found += [(f"{number}.{name}", array) for name, array in own.items()]
            if _name(layer) == "batch_norm":
                batches = np.array(counted.get(stage.name, 0), np.int64)
                found.append((f"{number}.num_batches_tracked", batches))
        before += len(stage.layers)
    return found


#: Layers whose weights `nn.LSTM` and `nn.RNN` call otherwise; those of one layer end in "_l0".
_RECURRENT = ("lstm", "rnn")


def _with_two_biases(own: Mapping[str, Array]) -> dict[str, Array]:
    """The weights of a recurrent layer by PyTorch's names."""
    found = {f"{name}_l0": array for name, array in own.items() if name != "bias"}
    if "bias" in own:
        found |= {"bias_ih_l0": own["bias"], "bias_hh_l0": np.zeros_like(own["bias"])}
    return found


def _check_chain(stages: Sequence[config.Stage]) -> None:
    for before, stage in pairwise(stages):
        if stage.inputs not in (None, [before.name]):
            raise ConfigError(
                f"stage {stage.name} reads {', '.join(stage.inputs or ())}: only a chain of stages "
                "has the names of an nn.Sequential; see Result.save for those of any network"
            )


def _name(layer: str | dict[str, Any]) -> str:
    return layer if isinstance(layer, str) else next(iter(layer))
