"""The file that makes a cut, or weights, whole: which files belong to it, where training stood, of
which experiment.

JSON, so that anybody can read it, with the SHA-256 of its own content: a change by hand is noticed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from asyncdni.errors import CheckpointError
from asyncdni.files import read_file
from asyncdni.weights import write_atomically

__all__ = [
    "VERSION",
    "Manifest",
    "WeightsManifest",
    "manifest_file",
    "read_manifest",
    "write_manifest",
]

#: Of the format of manifests, and of the files that they are about.
VERSION = 1

_Number = Annotated[int, Meta(ge=0)]
_Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_SUM = "sha256"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cut of the whole run at a drained barrier."""

    number: _Number  # its own
    files: dict[str, _Digest]  # SHA-256 of STAGE.safetensors, by declared stage
    start: _Number  # id of the next batch to read
    planned: _Number  # barriers of the plan that are done
    barrier: _Number  # number of the next barrier
    identity: dict[str, Any]  # of the experiment: see `identity`
    coordinator: dict[str, Any] = {}  # its own state (train_s, history, best, …); plain JSON
    experiment: str = ""  # SHA-256 of experiment.toml as it was; empty: of an early version
    version: int = VERSION


class WeightsManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of the whole network at a drained barrier, and the result of their evaluation."""

    tag: str  # "best" or "final"
    files: dict[str, _Digest]  # SHA-256 of STAGE.safetensors, by declared stage
    batches: _Number  # that they have learned from
    accuracy: float | None  # on the test set; None as well where there was no evaluation
    loss: float | None
    identity: dict[str, Any]  # of the experiment: see `identity`
    experiment: str  # SHA-256 of experiment.toml as it was
    version: int = VERSION


_Kind = TypeVar("_Kind", Manifest, WeightsManifest)


def manifest_file(folder: Path) -> Path:
    """Of the cut, or the weights, in `folder`."""
    return folder / "manifest.json"


def write_manifest(folder: Path, manifest: Manifest | WeightsManifest) -> None:
    """Write it, in one go and through to the disk. Raises `CheckpointError`.

    Numbers that are not finite are kept (as NaN and Infinity, which JSON proper has no words for).
    """
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    content[_SUM] = _digest(content)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomically(manifest_file(folder), text.encode())


def read_manifest(folder: Path, kind: type[_Kind]) -> _Kind:
    """Of the cut, or the weights, in `folder`. Raises `CheckpointError` for one that is missing,
    damaged, edited or of another version."""
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
        raise CheckpointError(f"{path} is not a manifest: expected a table, not a {_kind(content)}")
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
    """Of what the JSON says, however it is laid out."""
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def _kind(value: object) -> str:
    return type(value).__name__
