"""The manifest: the file that makes a cut, or a set of weights, whole.

It names the files that belong together with their SHA-256, says where training stood, and holds
the identity of the experiment: what must be the same for the state to be used again. It is JSON, so
that people can read it, with the SHA-256 of its own content, so that a change by hand is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from asyncdni import config, experiment
from asyncdni.data.meta import Meta, other_parts
from asyncdni.errors import CheckpointError
from asyncdni.files import read_file
from asyncdni.messages import DATA
from asyncdni.store.tensors import write_atomically

__all__ = [
    "VERSION",
    "Manifest",
    "WeightsManifest",
    "compare",
    "differences",
    "identity",
    "manifest_file",
    "read_manifest",
    "write_manifest",
]

#: The format of manifests and of the files that they name.
VERSION = 1

_Number = Annotated[int, msgspec.Meta(ge=0)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_SUM = "sha256"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of the whole run at a drained barrier."""

    number: _Number  # of the cut
    files: dict[str, _Digest]  # SHA-256 of STAGE.safetensors, by declared stage
    start: _Number  # id of the next batch to read
    planned: _Number  # barriers of the plan that are done
    barrier: _Number  # index of the next barrier
    identity: dict[str, Any]  # of the experiment: see `identity`
    coordinator: dict[str, Any] = {}  # the ledger (train_s, history, best, …) as plain JSON
    experiment: str = ""  # SHA-256 of experiment.toml at the time; early versions left it out
    version: int = VERSION


class WeightsManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of the whole network at a drained barrier, and the result of their evaluation."""

    tag: str  # "best" or "final"
    files: dict[str, _Digest]  # SHA-256 of STAGE.safetensors, by declared stage
    batches: _Number  # that the network has learned from
    accuracy: float | None  # on the test set; None without one, or without an evaluation
    loss: float | None
    identity: dict[str, Any]  # of the experiment: see `identity`
    experiment: str  # SHA-256 of experiment.toml at the time
    version: int = VERSION


_Kind = TypeVar("_Kind", Manifest, WeightsManifest)


def manifest_file(folder: Path) -> Path:
    """The path of the manifest of the cut, or of the weights, in `folder`."""
    return folder / "manifest.json"


def write_manifest(folder: Path, manifest: Manifest | WeightsManifest) -> None:
    """Write the manifest atomically and flush it to the disk. Raises `CheckpointError`.

    Non-finite numbers are kept as NaN and Infinity, an extension of JSON.
    """
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    content[_SUM] = _digest(content)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomically(manifest_file(folder), text.encode())


def read_manifest(folder: Path, kind: type[_Kind]) -> _Kind:
    """The manifest of the cut, or of the weights, in `folder`.

    Raises `CheckpointError` for one that is missing, damaged, edited or of another version.
    """
    path = manifest_file(folder)
    try:
        content = json.loads(read_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {path.name}: it was not finished") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON: cut off or edited") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is not a manifest: expected a table, not a {type(content).__name__}"
        )
    version = content.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path} is of version {version!r}; this asyncdni reads version {VERSION}"
        )
    if content.pop(_SUM, None) != _digest(content):
        raise CheckpointError(
            f"{path} was edited by hand or is damaged: its {_SUM} does not fit its content"
        )
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} is not a manifest: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    """The SHA-256 of the content, whatever the layout of the JSON text."""
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


#: Entries that follow from the others and that checkpoints of earlier versions lack.
_FOLLOWING = frozenset({"data.targets", "data.shapes.answers"})

_SHOWN_MAX = 60  # characters of one value


def identity(chosen: config.Experiment, meta: Meta) -> dict[str, Any]:
    """What of an experiment must stay the same for a state to be used again, as plain JSON.

    That is the network, the kinds of optimizer, and the data and how they are cut into batches.
    Length, split, schedule, rates, limits and slowed links may change.
    """
    data, shapes = msgspec.to_builtins(chosen.data), msgspec.to_builtins(meta)
    data.pop("path", None)  # the same samples may lie elsewhere today
    shapes.pop("inputs", None)  # follow from the samples
    found = {
        "network": {stage.name: _stage(chosen, i) for i, stage in enumerate(chosen.stages)},
        "samples": shapes.pop("checksums", {}),
        "data": data | {"shapes": shapes},
        "run": {"seed": chosen.run.seed, "dtype": chosen.run.dtype} | _given(chosen.run),
        # positions count them
        "schedule": {"microbatches": chosen.schedule.microbatches} | _accumulated(chosen.schedule),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists from here on
    return plain


def _accumulated(schedule: config.Schedule) -> dict[str, Any]:
    """How many batches make an update, where it is several: none is cut in two by a checkpoint."""
    return {"accumulate": schedule.accumulate} if schedule.accumulate > 1 else {}


def _given(run: config.Run) -> dict[str, Any]:
    """The digests of the initial weights, where a user gave some (`run.init`)."""
    return {"init_sha256": run.init_sha256} if run.init_sha256 else {}


def _stage(chosen: config.Experiment, index: int) -> dict[str, Any]:
    """The identity of one stage, defaults filled in: a stage reads the one before it."""
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
    """The lines that say why a checkpoint does not belong to this experiment; none if it does.

    Each line names the place, what the checkpoint has there and what the experiment has:
    `network.hidden2.layers[0].dense: 128 in the checkpoint, 64 in the experiment`. Lists of
    different lengths are shown whole.
    """
    then, now = dict(manifest.identity), identity(chosen, meta)
    samples = other_parts(then.pop("samples", {}), now.pop("samples"))
    others = [f"data: other contents in {', '.join(samples)}"] if samples else []
    return [*compare(then, now), *others]


def compare(then: Any, now: Any, place: str = "", of: str = "the checkpoint") -> Iterator[str]:
    """The differences between two identities, or between their parts at `place`.

    `of` names, for the message, what holds `then`.
    """
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
