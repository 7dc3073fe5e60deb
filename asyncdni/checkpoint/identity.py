"""What a checkpoint belongs to: network, kinds of optimizer, data and how they are cut up.

The rest of an experiment means nothing to it: length, split, schedule, rates, limits, conditions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from asyncdni import config, experiment
from asyncdni.checkpoint.manifest import Manifest
from asyncdni.datasets.meta import Meta, other_parts
from asyncdni.messages import DATA

__all__ = ["compare", "differences", "identity"]

#: What follows from the rest, and checkpoints of earlier versions do not tell.
_FOLLOWING = frozenset({"data.targets", "data.shapes.answers"})

_SHOWN_MAX = 60  # characters of one value


def identity(chosen: config.Experiment, meta: Meta) -> dict[str, Any]:
    """For a manifest: what must be the same for its state to be used, as plain JSON."""
    data, shapes = msgspec.to_builtins(chosen.data), msgspec.to_builtins(meta)
    data.pop("path", None)  # the same samples may lie elsewhere today
    shapes.pop("inputs", None)  # follow from the samples
    found = {
        "network": {stage.name: _stage(chosen, i) for i, stage in enumerate(chosen.stages)},
        "samples": shapes.pop("checksums", {}),
        "data": data | {"shapes": shapes},
        "run": {"seed": chosen.run.seed, "dtype": chosen.run.dtype} | _given(chosen.run),
        # positions count them
        "schedule": {"microbatches": getattr(chosen.schedule, "microbatches", 1)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists from here on
    return plain


def _given(run: config.Run) -> dict[str, Any]:
    """The weights that it has begun with, where those are not the seed's."""
    return {"init_sha256": run.init_sha256} if run.init_sha256 else {}


def _stage(chosen: config.Experiment, index: int) -> dict[str, Any]:
    """With defaults filled in: a stage reads the one before it."""
    stage = chosen.stages[index]
    before = chosen.stages[index - 1].name if index else DATA
    optimizer = experiment.stage_optimizer(chosen, stage)
    shared = {"weights": stage.weights} if stage.weights else {}
    return shared | {
        "layers": stage.layers,
        "inputs": stage.inputs or [before],
        "join": stage.join,
        "loss": stage.loss,
        "optimizer": str(optimizer.__struct_config__.tag),
    }


def differences(manifest: Manifest, chosen: config.Experiment, meta: Meta) -> list[str]:
    """Why the checkpoint is not of this experiment, a line each; none where it is.

    Each names the place, what the checkpoint has there and what the experiment has:
    `network.hidden2.layers[0].dense: 128 in the checkpoint, 64 in the experiment`. Lists of
    different lengths are shown whole.
    """
    then, now = dict(manifest.identity), identity(chosen, meta)
    samples = other_parts(then.pop("samples", {}), now.pop("samples"))
    others = [f"data: other contents in {', '.join(samples)}"] if samples else []
    return [*compare(then, now), *others]


def compare(then: Any, now: Any, place: str = "", of: str = "the checkpoint") -> Iterator[str]:
    """The differences of two identities, or of parts of them at `place`; `of`: what has `then`."""
    if place in _FOLLOWING and (then is None or now is None):
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*then, *now)):
            inner = f"{place}.{key}" if place else str(key)
            yield from compare(then.get(key), now.get(key), inner, of)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (before, after) in enumerate(zip(then, now, strict=True)):
            yield from compare(before, after, f"{place}[{index}]", of)
    elif then != now:
        yield f"{place}: {_shown(then)} in {of}, {_shown(now)} in the experiment"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."
