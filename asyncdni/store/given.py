"""The weights that a run is given to begin with: read, held against the network, and kept.

```
--init runs/x               the last weights of that run (those that `evaluate` takes)
--init runs/x/best          any folder of STAGE.safetensors with arrays "0.weight", "0.bias"
--init weights.safetensors  one file with arrays "STAGE.0.weight", as `Result.save` writes it
--init s3://bucket/run      any of these at a URL of fsspec
model.weights               one file with arrays "h.2.attn.weight", by the names of a [model]
DIR/init                    what was taken of them, in the folder of the run that has begun with it
```

Running statistics come along; optimizers, generators and input models begin anew. A run that goes
back to its start, or is taken up again before its first checkpoint, begins with DIR/init again, and
needs what it was given no more. Its digests are part of the experiment, so that every worker knows
whether it has read the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.experiment.schema import nearest
from asyncdni.files import read_file
from asyncdni.plan.build import Design, make_whole_stage
from asyncdni.plan.model import arrays_by_stage, check_cut, initial_model
from asyncdni.store.mirror import copied_here
from asyncdni.store.run import EXPERIMENT, INIT, by_stage, load_experiment, load_weights
from asyncdni.store.tensors import Array, StoredStage, decode_arrays, save_stages
from asyncdni.store.weights import read_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = ["begin_with", "begins_with", "kept", "save_given"]

Weights = dict[str, dict[str, Array]]  # {stage: {"0.weight": array}}

_SUFFIX = ".safetensors"
#: PyTorch's batch norms count their batches, which means nothing here.
_NOT_NEEDED = "num_batches_tracked"
#: Of names that do not fit a model, which may have thousands, how many a message shows.
_SHOWN = 5


def begin_with(design: Design, arrays: Mapping[str, ArrayLike] | None = None) -> Design:
    """`design` with the weights that its experiment's `run.init` names, or with `arrays`
    ("STAGE.0.weight"), and with their digests in its experiment; as it is where none are given.

    Raises `ConfigError` in one line that names every array that is missing, superfluous, of another
    shape or type, or not finite.
    """
    run = design.experiment.run
    if arrays is None and not run.init and design.given is not None and design.given.model:
        return _of_model(design, design.given, design.given.model)
    if arrays is None and not run.init:
        if run.init_sha256 or run.init_stages is not None:
            raise ConfigError(
                "run.init: missing; expected the weights that run.init_stages and run.init_sha256 "
                "refer to"
            )
        return design
    place = f"run.init: {run.init}" if arrays is None else "init"
    given = _read(run.init, place) if arrays is None else by_stage(_plain(arrays))
    stage = make_whole_stage(design)
    init = _taken(given, stage.state(), run, place)
    _check_shared(design, init, place)
    digests = {name: _digest(own) for name, own in init.items()}
    if run.init_sha256 and run.init_sha256 != digests:
        changed = [n for n in digests if run.init_sha256.get(n) != digests[n]]
        raise ConfigError(
            f"{place}: the weights of {', '.join(changed) or 'some stages'} are not those that "
            "run.init_sha256 describes; leave it out to begin with these"
        )
    return _with_init(design, init)


def _with_init(design: Design, init: Weights) -> Design:
    digests = {name: _digest(own) for name, own in init.items()}
    begun = msgspec.structs.replace(design.experiment.run, init_sha256=digests)
    chosen = msgspec.structs.replace(design.experiment, run=begun)
    return replace(design, experiment=chosen, init=init)


def begins_with(design: Design) -> str:
    """For the user: what a run has begun with; empty where that is the seed's weights."""
    run = design.experiment.run
    if not run.init_sha256:
        return ""
    if design.given is not None and design.given.model is not None and not run.init:
        return design.begun
    where = run.init or "the arrays that were given"
    return (
        f"{', '.join(run.init_sha256)} begin with the weights of {where}; optimizers, generators "
        "and input models begin anew"
    )


def save_given(folder: Path, design: Design) -> None:
    """Write them to `folder`/init. Raises `CheckpointError`."""
    if design.init is not None:
        save_stages(folder / INIT, design.init)


def kept(folder: Path, design: Design, stages: Iterable[str]) -> Design:
    """`design` with what `folder`/init has of `stages`, for a stage that begins with it; arrays are
    read from there when they are needed.

    Raises `CheckpointError` where that is not what the run was given.
    """
    digests = design.experiment.run.init_sha256
    init: dict[str, Mapping[str, Array]] = {}
    for stage in (name for name in stages if name in digests):
        try:
            own = StoredStage(folder / INIT, stage)
            digest = _digest(own)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; the run begins with given weights, so every host must find the copy in "
                f"{folder / INIT}: share the run's folder, or copy it there"
            ) from error
        if digest != digests[stage]:
            raise CheckpointError(
                f"{folder / INIT / (stage + _SUFFIX)} is not what this run was given: "
                "it is damaged, or of another run"
            )
        init[stage] = own
    return replace(design, init=init or None)


# --- a model of PyTorch --------------------------------------------------------------------------


def _of_model(design: Design, given: config.Experiment, options: config.Model) -> Design:
    """`design` with the weights that its `[model]` has under the run's seed, and over them those of
    its file `weights`."""
    model = initial_model(given, allow_import=design.allow_import)
    begun = _load_named(model, options) if options.weights else ""
    check_cut(design.experiment, model, allow_import=design.allow_import)
    names = make_whole_stage(design).state()
    begun_design = _with_init(design, by_stage(arrays_by_stage(model, names)))
    return replace(begun_design, begun=begun)


def _load_named(model: nn.Module, options: config.Model) -> str:
    """Load the file `model.weights`, by the model's own names, into the model; returns what the
    user is told of it. Raises `ConfigError`."""
    place = f"model.weights: {options.weights}"
    arrays = _read_named(Path(options.weights), place)
    own = model.state_dict(keep_vars=True)
    given = {
        id(own[name]) for name in arrays if name in own
    }  # tied weights need one of their names
    missing = [
        name
        for name, tensor in own.items()
        if id(tensor) not in given and name.rpartition(".")[2] != _NOT_NEEDED
    ]
    unexpected = [name for name in sorted(arrays) if name not in own]
    likes = {n: own[n].detach().numpy() for n in arrays if n in own}
    wrong = [text for n, like in likes.items() for text in _mismatches({n: arrays[n]}, {n: like})]
    if options.strict:
        wrong += [f"{name} is missing, expected {tuple(own[name].shape)}" for name in missing]
        wrong += [f"{name} is not expected" for name in unexpected]
    if wrong:
        cure = " (model.strict = false lets missing ones begin from the seed)" if missing else ""
        raise ConfigError(f"{place}: not the weights of this model: {_some(wrong)}{cure}")
    for name in likes:
        likes[name][...] = arrays[name]
    text = f"the model begins with the weights of {options.weights}"
    text += f"; not in that file, so drawn from the seed: {_some(missing, ', ')}" if missing else ""
    return text + (f"; not used: {_some(unexpected, ', ')}" if unexpected else "")


def _read_named(path: Path, place: str) -> dict[str, Array]:
    try:
        return decode_arrays(read_file(path), str(path))
    except CheckpointError as error:
        raise ConfigError(f"{place}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{place}: can't be read: {error.strerror or error}") from error


def _some(texts: Sequence[str], between: str = "; ") -> str:
    """The first few of them, and how many there are where there are more."""
    more = f"{between}… ({len(texts)} in all)" if len(texts) > _SHOWN else ""
    return between.join(texts[:_SHOWN]) + more


# --- reading -------------------------------------------------------------------------------------


def _read(text: str, place: str) -> Weights:
    with copied_here(text, "run.init:") as path:
        return _read_here(path, place)


def _read_here(path: Path, place: str) -> Weights:
    try:
        if not path.is_dir():
            return by_stage(decode_arrays(read_file(path), str(path)))
        if (path / EXPERIMENT).is_file():
            return by_stage(load_weights(path / "final", load_experiment(path)))
        names = sorted(file.stem for file in path.glob(f"[!.]*{_SUFFIX}"))
        found, _ = read_weights(path, names)  # held against their manifest, where there is one
    except CheckpointError as error:
        raise ConfigError(f"{place}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{place}: can't be read: {error.strerror or error}") from error
    if not found:
        raise ConfigError(
            f"{place}: expected a run folder, a folder of STAGE{_SUFFIX} or one {_SUFFIX} file "
            f'with arrays such as "STAGE.0.weight"; this folder holds neither {EXPERIMENT} nor '
            f"a {_SUFFIX} file"
        )
    return found


def _plain(arrays: Mapping[str, ArrayLike]) -> dict[str, Array]:
    return {str(name): np.asarray(array) for name, array in arrays.items()}


# --- holding them against the network ------------------------------------------------------------


def _taken(
    given: Weights, own: Mapping[str, Mapping[str, Array]], run: config.Run, place: str
) -> Weights:
    """Of all stages, or of those in `run.init_stages`, in the precision of the network."""
    wanted = list(own) if run.init_stages is None else run.init_stages
    for name in wanted:
        if name not in own:
            known = f"{nearest(name, own) or ';'} known: {', '.join(own)}"
            raise ConfigError(f"run.init_stages: there is no stage {name!r}{known}")
    wrong = []
    if run.init_stages is None:
        wrong += [f"it has no stage {name}" for name in own if name not in given]
        wrong += [f"the network has no stage {name!r}" for name in given if name not in own]
    else:
        wrong += [f"it has no stage {name}" for name in wanted if name not in given]
    there = [name for name in wanted if name in given]
    for name in there:
        wrong += [f"{name}.{text}" for text in _mismatches(given[name], own[name])]
    if wrong:
        some = (
            " (run.init_stages names those to take, if not all)" if run.init_stages is None else ""
        )
        raise ConfigError(f"{place}: not the weights of this network: {'; '.join(wrong)}{some}")
    return {
        name: {key: given[name][key].astype(like.dtype) for key, like in own[name].items()}
        for name in there
    }


def _mismatches(given: Mapping[str, Array], own: Mapping[str, Array]) -> Iterator[str]:
    for key, like in own.items():
        if key not in given:
            yield f"{key} is missing, expected {like.shape}"
        elif given[key].shape != like.shape:
            yield f"{key} is {given[key].shape}, expected {like.shape}"
        elif given[key].dtype.kind != like.dtype.kind:
            yield f"{key} is {given[key].dtype}, expected {like.dtype}"
        elif not _is_finite(given[key], like):
            yield f"{key} holds NaN or infinity"
    for key in sorted(given):
        if key not in own and key.rpartition(".")[2] != _NOT_NEEDED:
            yield f"{key} is not expected"


def _is_finite(array: Array, like: Array) -> bool:
    """Also in the precision of the network."""
    with np.errstate(over="ignore"):
        return like.dtype.kind != "f" or bool(np.isfinite(array.astype(like.dtype)).all())


def _check_shared(design: Design, init: Weights, place: str) -> None:
    """Stages that use one set of weights get the same ones, or none."""
    for node in design.network.nodes:
        if node.owner == node.name:
            continue
        if (node.name in init) != (node.owner in init):
            raise ConfigError(
                f"run.init_stages: {node.name} uses the weights of {node.owner}; expected both of "
                "them, or neither"
            )
        own, there = init.get(node.name, {}), init.get(node.owner, {})
        differ = [k for k in own if ".running_" not in k and not np.array_equal(own[k], there[k])]
        if differ:
            raise ConfigError(
                f"{place}: {node.name} uses the weights of {node.owner}, but {', '.join(differ)} "
                "of the two are not the same"
            )


def _digest(arrays: Mapping[str, Array]) -> str:
    """Of names, shapes, types and numbers, however they are kept in a file."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        kind = array.dtype.newbyteorder("<")
        whole.update(f"{name} {kind.str} {array.shape}\n".encode())
        whole.update(np.ascontiguousarray(array, kind).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()
