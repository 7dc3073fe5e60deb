"""Snapshots of a stage: the named arrays that decide how training goes on, by declared stage.

```
0.weight 1.running_mean …    the layers               optimizer.first …  the optimizer
counters.updates …           updates and batches      versions.ahead …   weights for late gradients
generator.map … head.… exit.fits    the exit          input_model.PRODUCER.0.weight …
numbers.gradient …           running means, where explosions are watched for
remainder.PRODUCER.gradient  what rounding has left out of the gradients sent there
```

A snapshot may be restored under another split, which may need other models (generators, heads,
input models). Models that the snapshot lacks start anew, and models that are not needed are
ignored, both with a note. Everything else must fit exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from asyncdni.errors import CheckpointError
from asyncdni.nn.base import Array
from asyncdni.nn.generators.error import LocalHead
from asyncdni.nn.input_model import InputModel
from asyncdni.stages.numpy.block import Block
from asyncdni.stages.numpy.exit import Exit

__all__ = ["Part", "parts_of", "restore", "snapshot"]

#: The most differences that a message names.
_DIFFERENCES_MAX = 3

#: Notes about arrays that may be in a file without being needed, by the start of their names. An
#: empty note is not given.
_UNUSED = {
    "generator.": "its generator is not needed: the stage waits for true gradients",
    "head.": "its local head is not needed: the stage waits for true gradients",
    "input_model.": "an input model is not needed: the stage waits for the activations",
    "exit.": "",
    "versions.": "",
    "numbers.": "",
    "remainder.": "",
}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Part:
    """Live arrays whose names in a snapshot begin with `prefix`, and how they are restored."""

    prefix: str
    arrays: dict[str, Array]
    new: str | None = None  # the note given where a file has none of them; None: it must have them
    after: Callable[[], None] = _nothing  # called once the arrays have been written into
    otherwise: Callable[[], None] = _nothing  # called instead where a file has none of them
    strict: bool = True  # whether a file may not have them in another shape; else they start anew

    def named(self) -> dict[str, Array]:
        return {self.prefix + name: array for name, array in self.arrays.items()}


def parts_of(
    block: Block,
    exit_: Exit | None,
    models: Mapping[str, InputModel],
    remainders: Mapping[str, Array],
) -> list[Part]:
    """Return the parts of one declared stage. `exit_` is given where it is at this block; `models`
    are the input models that belong to the block, and `remainders` those of its gradients, by
    producer."""
    done = {"updates": _count(block.updates), "newest": _count(block.newest)}

    def count_on() -> None:
        block.updates, block.newest = int(done["updates"]), int(done["newest"])

    parts = [
        Part("", block.state() | block.training_state()),
        Part("optimizer.", block.optimizer.state),
        Part("counters.", done, after=count_on),
        Part("numbers.", block.watch.means, new=""),
        *_versions(block),
    ]
    if exit_ is not None and exit_.generator is not None:
        parts += _models_of(exit_)
    for producer, model in models.items():
        note = f"the input model for {producer} starts anew: the checkpoint has none"
        parts.append(Part(f"input_model.{producer}.", model.params | model.buffers, new=note))
    for producer, array in remainders.items():
        forget = partial(array.fill, 0.0)
        arrays = {"gradient": array}
        part = Part(f"remainder.{producer}.", arrays, new="", otherwise=forget, strict=False)
        parts.append(part)  # another encoding's remainder may have another shape
    return parts


def _versions(block: Block) -> list[Part]:
    versions = block.versions
    if versions is None:
        return []
    arrays = versions.snapshot()
    notes = {
        "ahead": "its first forwards use present weights: the checkpoint predicts no later ones",
        "last": "its first update uses the current weights: the checkpoint has no others",
    }
    return [
        Part(
            "versions.",
            arrays,
            new=next((note for name, note in notes.items() if name in arrays), ""),
            after=lambda: versions.restore(arrays),
            otherwise=lambda: versions.begin(block.updates),
        )
    ]


def _models_of(exit_: Exit) -> list[Part]:
    generator = exit_.generator
    assert generator is not None
    fits = _count(exit_.fits)

    def count_on() -> None:
        exit_.fits = int(fits)

    head = isinstance(generator, LocalHead)
    what = "local head" if head else "generator"
    note = f"its {what} starts anew: the checkpoint has none"
    arrays = generator.params | generator.buffers
    return [
        Part("head." if head else "generator.", arrays, new=note),
        Part("exit.", {"fits": fits}, new="", after=count_on),
    ]


def _count(number: int) -> Array:
    return np.array(number, np.int64)


def snapshot(parts: Iterable[Part], copied: bool) -> dict[str, Array]:
    """Return one declared stage's arrays, or copies of them."""
    arrays = {name: array for part in parts for name, array in part.named().items()}
    return {name: array.copy() for name, array in arrays.items()} if copied else arrays


def restore(parts: Mapping[str, list[Part]], given: Mapping[str, Mapping[str, Array]]) -> list[str]:
    """Write the arrays that `given` has of each stage into those of its parts; return the notes.

    Raises `CheckpointError`, before anything is written, where names, shapes or dtypes differ.
    """
    notes: list[str] = []
    for stage, own in parts.items():
        arrays = given.get(stage, {})
        _check(stage, [part for part in own if _needs(part, arrays)], arrays)
        notes += [f"stage {stage}: {one}" for one in _notes(own, arrays)]
    for stage, own in parts.items():
        for part in own:
            _write(part, given.get(stage, {}))
    return notes


def _write(part: Part, arrays: Mapping[str, Array]) -> None:
    if not _needs(part, arrays):
        part.otherwise()
        return
    for name, array in part.named().items():
        np.copyto(array, arrays[name])
    part.after()


def _needs(part: Part, arrays: Mapping[str, Array]) -> bool:
    """Return whether the part is restored from `arrays`; else it starts anew."""
    if not part.strict:
        return all(_form(arrays.get(name)) == _form(own) for name, own in part.named().items())
    return part.new is None or (bool(part.arrays) and _has(arrays, part.prefix))


def _has(arrays: Mapping[str, Array], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in arrays)


def _check(stage: str, used: Iterable[Part], arrays: Mapping[str, Array]) -> None:
    expected = {name: array for part in used for name, array in part.named().items()}
    claimed = tuple(part.prefix for part in used if part.prefix)
    wrong = [
        f"{name} is {_form(arrays.get(name))}, expected {_form(array)}"
        for name, array in expected.items()
        if _form(arrays.get(name)) != _form(array)
    ]
    wrong += [
        f"{name} is {_form(array)}, expected no such array"
        for name, array in arrays.items()
        if name not in expected
        and (name.startswith(claimed) or not name.startswith(tuple(_UNUSED)))
    ]
    if wrong:
        more = len(wrong) - _DIFFERENCES_MAX
        shown = "; ".join(wrong[:_DIFFERENCES_MAX]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(f"the state of stage {stage} is not of this network: {shown}")


def _form(array: Array | None) -> str:
    return "missing" if array is None else f"{array.dtype} {array.shape}"


def _notes(parts: Iterable[Part], arrays: Mapping[str, Array]) -> Iterable[str]:
    for part in parts:
        if part.new and part.arrays and not _needs(part, arrays):
            yield part.new
    for prefix, note in _UNUSED.items():
        wanted = any(part.arrays and part.prefix.startswith(prefix) for part in parts)
        if note and not wanted and _has(arrays, prefix):
            yield note
