"""What outlives a process: cuts of the whole run, weights, and rolling snapshots of single stages.

```
DIR/checkpoints/000012/STAGE.safetensors    all state of one declared stage, at a drained barrier
DIR/checkpoints/000012/manifest.json        written last: without it there is no cut
DIR/final, DIR/best                         weights alone, and a manifest: see `weights`
DIR/snapshots/STAGE.{0,1}.safetensors       the last two snapshots, overwritten in turn
DIR/owners/STAGE                            the process that may write them
```

Functions over folders, which keep nothing in memory. Every error is a `CheckpointError`, one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from zlib import crc32

import msgspec

from asyncdni import config, experiment
from asyncdni.core.counts import farthest_first
from asyncdni.data.meta import Meta, other_parts
from asyncdni.errors import CheckpointError
from asyncdni.files import check_file, open_file, read_file
from asyncdni.messages import COORDINATOR, DATA
from asyncdni.store.tensors import (
    LENGTH_BYTES,
    Array,
    Piece,
    decode,
    encode,
    header_length,
    load_stage,
    metadata_of,
    save_stages,
    sync_folder,
    write_atomically,
)

__all__ = [
    "OWNERS",
    "VERSION",
    "Claim",
    "Manifest",
    "WeightsManifest",
    "commit",
    "commit_weights",
    "compare",
    "cut_folder",
    "cuts_until",
    "differences",
    "discard_snapshots",
    "identity",
    "latest",
    "manifest_file",
    "new_term",
    "next_cut",
    "read_manifest",
    "read_newest",
    "read_snapshots",
    "read_state",
    "read_weights",
    "settle_weights",
    "slots",
    "stage_file",
    "weights_manifest",
    "write_manifest",
    "write_snapshots",
    "write_state",
    "write_weights",
]

# --- manifest ------------------------------------------------------------------------------------
#
# The file that makes a cut, or weights, whole: which files belong to it, where training stood, of
# which experiment.
#
# JSON, so that anybody can read it, with the SHA-256 of its own content: a change by hand is
# noticed.

#: Of the format of manifests, and of the files that they are about.
VERSION = 1

_Number = Annotated[int, msgspec.Meta(ge=0)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
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


# --- identity ------------------------------------------------------------------------------------
#
# What a checkpoint belongs to: network, kinds of optimizer, data and how they are cut up.
#
# The rest of an experiment means nothing to it: length, split, schedule, rates, limits, conditions.

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
        "schedule": {"microbatches": chosen.schedule.microbatches},
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


# --- snapshots -----------------------------------------------------------------------------------
#
# Rolling snapshots: the last two of each stage, overwritten in turn.
#
# Overwriting a file that is there costs the copying of its bytes and no more; replacing it by a
# rename makes ext4 write them out at once (20 ms for 12.6 MB against 1). The file in the making
# begins with a length of zero until its last byte has been written, so a kill at any moment leaves
# it recognisably torn and the other one whole. A worker's stages share a serial number, and what is
# read is of one serial: never one stage of now and the other of before. Those of a later process
# are newer, whatever their numbers: see `claims`.

Content = tuple[dict[str, Array], dict[str, str]]

#: Which of two is newer: term and incarnation of the process that wrote it, and its serial, from 1.
Age = tuple[int, int, int]
_NONE: Age = (0, 0, 0)


def slots(folder: Path, stage: str) -> tuple[Path, Path]:
    """The two files of a declared stage. (No stage has a dot in its name.)"""
    return folder / f"{stage}.0.safetensors", folder / f"{stage}.1.safetensors"


def write_snapshots(
    folder: Path,
    state: Mapping[str, Mapping[str, Array]],
    noted: Mapping[str, str],
    order: tuple[int, int] = (0, 0),
) -> None:
    """Overwrite one file of each stage, keeping those that belong together; `order` is the writer's
    (see `claims.Claim`). Raises `OSError`."""
    ages = {stage: [_age(path) for path in slots(folder, stage)] for stage in state}
    whole = set.intersection(*(set(own) for own in ages.values())) - {_NONE} if state else set()
    kept = max(whole, default=_NONE)
    serial = 1 + max((age[2] for own in ages.values() for age in own), default=0)
    term, incarnation = map(str, order)
    named = {"term": term, "incarnation": incarnation, "serial": str(serial), **noted}
    for stage, arrays in state.items():
        own = ages[stage]
        older = min((0, 1), key=lambda i: (own[i] == kept > _NONE, own[i]))
        pieces = encode(arrays, {"stage": stage, **named})
        _overwrite(slots(folder, stage)[older], pieces)


def _overwrite(path: Path, pieces: Sequence[Piece]) -> None:
    """Torn, to whoever looks, until it is done."""
    head = pieces[0]
    assert isinstance(head, bytes)
    check_file(path)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        file.write(bytes(LENGTH_BYTES))
        file.flush()
        file.write(head[LENGTH_BYTES:])
        for piece in pieces[1:]:
            file.write(piece)
        file.truncate()
        file.flush()
        file.seek(0)
        file.write(head[:LENGTH_BYTES])


def _age(path: Path) -> Age:
    """`_NONE` for a file that is missing, torn or not a snapshot. Raises `OSError` where no file
    can be opened just now: the newest must not be taken for the one to be overwritten."""
    try:
        with open_file(path) as file:
            length = header_length(file.read(LENGTH_BYTES))
            return _age_of(metadata_of(file.read(length))) if length else _NONE
    except (ValueError, KeyError):
        return _NONE
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return _NONE


def _age_of(noted: Mapping[str, str]) -> Age:
    """Files of early versions do not say who has written them."""
    term, incarnation = (int(noted.get(name, "0")) for name in ("term", "incarnation"))
    return term, incarnation, int(noted["serial"])


def read_snapshots(folder: Path, stages: Sequence[str]) -> dict[str, Content]:
    """By stage, the newest that is whole, all of one moment. Raises `CheckpointError` for none."""
    found: list[dict[Age, Content]] = []
    wrong = f"no snapshot of {', '.join(stages)} in {folder}"
    for stage in stages:
        own: dict[Age, Content] = {}
        for path in slots(folder, stage):
            try:
                arrays, noted = decode(read_file(path), str(path))
                if noted.get("stage") != stage:
                    raise CheckpointError(f"{path} holds stage {noted.get('stage')!r}")
                own[_age_of(noted)] = arrays, noted
            except FileNotFoundError:
                continue
            except (KeyError, ValueError):
                wrong = f"{path} is no snapshot"
            except OSError as error:
                wrong = f"can't read {path}: {error.strerror}"
            except CheckpointError as error:
                wrong = str(error)
        found.append(own)
    whole = set.intersection(*(set(own) for own in found)) if found else set()
    if not whole:
        raise CheckpointError(f"no whole snapshot: {wrong}")
    newest = max(whole)
    return {stage: own[newest] for stage, own in zip(stages, found, strict=True)}


def discard_snapshots(folder: Path) -> None:
    """Remove all, as when training goes back to before them. Raises `CheckpointError`."""
    try:
        for path in folder.glob("*.[01].safetensors"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't remove snapshots in {folder}: {error.strerror}") from error


# --- claims --------------------------------------------------------------------------------------
#
# Who may write to a run's folder: of all processes that have had a part of the run, the last one.
#
# ```
# DIR/owners/coordinator    the term of the coordinator that has the run
# DIR/owners/STAGE          term and incarnation of the worker process that has the stage
# ```
#
# A process that was stopped (SIGSTOP, a suspended machine, swap) does not know that it has been
# held to be dead and replaced. When it wakes, it finds here that somebody came later, and keeps its
# hands off. Each start of a coordinator is a new term, larger than all before; incarnations grow
# within one. The files are overwritten in place, which costs no flush to the disk.

#: In the folder of a run.
OWNERS = "owners"

#: Term and incarnation; the later process has the larger one.
Order = tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """What one process has of a run, and since when."""

    folder: Path  # of the run
    stages: Sequence[str]  # declared ones; or COORDINATOR
    order: Order

    def make(self) -> None:
        """From now on they belong to this process. Raises `CheckpointError` where they belong to a
        later one, or the folder can't be written."""
        self.check()
        try:
            (self.folder / OWNERS).mkdir(exist_ok=True)
            for stage in self.stages:
                _write(self._file(stage), self.order)
        except OSError as error:
            path = self.folder / OWNERS
            raise CheckpointError(f"can't write to {path}: {error.strerror}") from error

    def check(self) -> None:
        """Raises `CheckpointError` where a later process has taken them over."""
        for stage in self.stages:
            if _read_claim(self._file(stage)) > self.order:
                who = "the run" if stage == COORDINATOR else f"stage {stage}"
                raise CheckpointError(
                    f"{self.folder}: a later process has taken over {who}, so this one writes "
                    "nothing more"
                )

    @property
    def sees_coordinator(self) -> bool:
        """The folder is the coordinator's own, and not another one with its name on this host."""
        return _read_claim(self._file(COORDINATOR))[0] == self.order[0] > 0

    def _file(self, stage: str) -> Path:
        return self.folder / OWNERS / stage


def new_term(folder: Path) -> int:
    """Of a coordinator that takes over the run in `folder`, later than all that there were."""
    return max(time.time_ns(), *(term + 1 for term, _ in _all(folder / OWNERS)), 1)


def _all(folder: Path) -> Iterator[Order]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            yield _read_claim(path)


def _read_claim(path: Path) -> Order:
    """Before everybody where there is no such file, or a damaged one."""
    try:
        line, checksum = path.read_bytes()[:100].rsplit(None, 1)
        term, incarnation = map(int, line.split())
    except (OSError, ValueError):
        return 0, 0
    return (term, incarnation) if checksum == b"%08x" % crc32(line) else (0, 0)


def _write(path: Path, order: Order) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        line = b"%020d %010d" % order  # always as long: nothing of an older one is left
        file.write(b"%b %08x\n" % (line, crc32(line)))


# --- files ---------------------------------------------------------------------------------------
#
# The state of stages on disk: durable for a cut, cheap for a rolling snapshot.

State = dict[str, dict[str, Array]]


def stage_file(folder: Path, stage: str) -> Path:
    """Of a declared stage in a cut."""
    return folder / f"{stage}.safetensors"


def write_state(
    folder: Path,
    state: Mapping[str, Mapping[str, Array]],
    counts: Mapping[str, int],
    *,
    durable: bool,
    claim: Claim | None = None,
) -> dict[str, str]:
    """Write `{declared stage: {name: array}}`, one file a stage, `counts` in each.

    Args:
        folder: `DIR/checkpoints/000012`, or with `durable=False` `DIR/snapshots`. It is made where
            it is missing, but `DIR` is not: a run whose folder was removed must not go on as if
            nothing had happened.
        state: as `Stage.snapshot` gives it.
        counts: what the worker has done up to here.
        durable: through to the disk, replacing each file in one go. Otherwise the older of each
            stage's last two snapshots is overwritten, which no power cut but any kill survives.
        claim: of the process that writes; None: nobody else can be there.

    Returns:
        The SHA-256 of each file by stage, for the manifest; of snapshots nothing.

    Raises:
        CheckpointError: the folder can't be written, or a later process has taken over a stage.
            What was committed is as it was.
    """
    noted = {"counts": json.dumps(dict(counts))}
    try:
        if not durable:
            if claim is not None:
                claim.check()
            folder.mkdir(exist_ok=True)
            write_snapshots(folder, state, noted, claim.order if claim is not None else (0, 0))
            return {}
        for made in (folder.parent, folder):
            made.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write to {folder}: {error.strerror}") from error
    digests = {}
    for stage, arrays in state.items():
        pieces = encode(arrays, {"stage": stage, **noted})
        if claim is not None:
            claim.check()
        write_atomically(stage_file(folder, stage), *pieces)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        digests[stage] = digest.hexdigest()
    for touched in (folder, folder.parent):
        sync_folder(touched)
    return digests


def read_state(
    folder: Path, stages: Sequence[str], digests: Mapping[str, str] | None
) -> tuple[State, dict[str, int]]:
    """The state of `stages`, and what the worker that wrote it had done.

    With `digests` (SHA-256 by stage, of the manifest) files of a cut are held against them. Without
    the files' own sums are trusted, and `folder` may be one of snapshots: the newest that is whole
    for all of `stages` is read.

    Where stages come from several workers the counts are those of the one that has learned from the
    fewest batches. Raises `CheckpointError` naming the file that is missing, cut off or damaged.
    """
    if digests is None and any(path.exists() for stage in stages for path in slots(folder, stage)):
        found = read_snapshots(folder, stages)
    else:
        found = {stage: _read(folder, stage, digests) for stage in stages}
    state = {stage: arrays for stage, (arrays, _) in found.items()}
    counts = [_counts(stage_file(folder, stage), noted) for stage, (_, noted) in found.items()]
    return state, min(counts, key=lambda one: one.get("batches", 0), default={})


def read_newest(
    run: Path, stages: Sequence[str], snapshots: str, cuts: Sequence[str]
) -> tuple[str, State, dict[str, int], list[str]]:
    """What stages that learn by themselves go on from: of their snapshots and their states in
    `cuts` (folders in that of the run, the newest first), the whole one that has come farthest.

    Returns the folder that it is from, the state, what its worker had done, and what is wrong with
    those that had to be passed over. Raises `CheckpointError` where none is whole.
    """
    wrong: list[str] = []
    known = {cut: found for cut in cuts if (found := _glance(run / cut, stages))}
    try:
        state, counts = read_state(run / snapshots, stages, None)
        known = {snapshots: counts, **known}
    except CheckpointError as error:
        wrong.append(str(error))
    for place in farthest_first(known):
        if place == snapshots:
            return place, state, counts, wrong
        try:
            return place, *read_state(run / place, stages, None), wrong
        except CheckpointError as error:
            wrong.append(str(error))
    raise CheckpointError("; ".join(wrong))


def _glance(folder: Path, stages: Sequence[str]) -> dict[str, int]:
    """What the first of `stages` has done by its file in a cut, unchecked; empty if that is not to
    be had."""
    path = stage_file(folder, stages[0])
    try:
        with path.open("rb") as file:
            header = file.read(header_length(file.read(LENGTH_BYTES)))
        return _counts(path, metadata_of(header))
    except (OSError, CheckpointError):
        return {}


def _read(
    folder: Path, stage: str, digests: Mapping[str, str] | None
) -> tuple[dict[str, Array], dict[str, str]]:
    path = stage_file(folder, stage)
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no state of stage {stage}: {path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    if digests is not None and digests.get(stage) != hashlib.sha256(content).hexdigest():
        raise CheckpointError(f"{path} is not the file that its manifest is about: damaged?")
    arrays, noted = decode(content, str(path))
    if noted.get("stage") != stage:
        raise CheckpointError(f"{path} holds stage {noted.get('stage')!r}, expected {stage!r}")
    return arrays, noted


def _counts(path: Path, noted: Mapping[str, str]) -> dict[str, int]:
    try:
        return {str(name): int(count) for name, count in json.loads(noted["counts"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} does not say what its worker has done") from None


# --- cuts ----------------------------------------------------------------------------------------
#
# The cuts of a run, in `DIR/checkpoints`: commit one, find the newest that is whole.

_NUMBERED = re.compile(r"[0-9]{6,18}")


def cut_folder(folder: Path, cut: int) -> Path:
    """Where cut number `cut` of `DIR/checkpoints` is: "000012"."""
    return folder / f"{cut:06d}"


def next_cut(folder: Path) -> int:
    """A number that no cut in `folder` has had, whole or not; 1 at first. Raises
    `CheckpointError`."""
    return max(_numbers(folder), default=0) + 1


def cuts_until(folder: Path, newest: int) -> list[int]:
    """Numbers of all cuts up to `newest`, whole or not, the newest first. Raises
    `CheckpointError`."""
    return sorted((n for n in _numbers(folder) if n <= newest), reverse=True)


def commit(folder: Path, manifest: Manifest, keep: int) -> None:
    """Make the files that workers have written a cut, and remove older ones.

    The manifest is written last, durably. Then cuts before the last `keep` go, and whatever is left
    of earlier ones that never became whole; what can't be removed stays. Raises `CheckpointError`
    where the manifest can't be written, or a file that it names is missing: then there is no such
    cut, and the ones before it are as they were.
    """
    own = cut_folder(folder, manifest.number)
    for stage in manifest.files:
        if not stage_file(own, stage).is_file():
            raise CheckpointError(f"{stage_file(own, stage)} is missing: no checkpoint is made")
    write_manifest(own, manifest)
    for touched in (own, folder, folder.parent):
        sync_folder(touched)
    _clear(own, manifest)
    kept = 1
    for number in sorted((n for n in _numbers(folder) if n < manifest.number), reverse=True):
        if kept < keep and _has_manifest(cut_folder(folder, number)):
            kept += 1
        else:
            _remove(cut_folder(folder, number))


def latest(folder: Path) -> tuple[Manifest | None, list[str]]:
    """The newest whole cut of `DIR/checkpoints`, every file of it checked; None where none has been
    committed. And what is wrong with those after it, a line each.

    Raises `CheckpointError` where cuts have been committed and none is whole.
    """
    passed: list[str] = []
    committed = False
    for number in sorted(_numbers(folder), reverse=True):
        own = cut_folder(folder, number)
        try:
            return _whole(own, number), passed
        except CheckpointError as error:
            passed.append(str(error))
            committed |= manifest_file(own).exists()
    if committed:
        raise CheckpointError(f"no whole checkpoint is left in {folder}: {'; '.join(passed)}")
    return None, passed


def _whole(own: Path, number: int) -> Manifest:
    manifest = read_manifest(own, Manifest)
    if manifest.number != number:
        raise CheckpointError(
            f"{own} holds the manifest of cut {manifest.number}, expected {number}"
        )
    for stage, digest in manifest.files.items():
        path = stage_file(own, stage)
        try:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"can't read {path}: {error.strerror}") from error
        if found != digest:
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of its manifest")
    return manifest


def _numbers(folder: Path) -> list[int]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"can't read {folder}: {error.strerror}") from error
    return [int(name) for name in names if _NUMBERED.fullmatch(name) and name == f"{int(name):06d}"]


def _has_manifest(own: Path) -> bool:
    try:
        read_manifest(own, Manifest)
    except CheckpointError as error:
        return isinstance(error.__cause__, OSError)  # one that can't be read just now may be whole
    return True


def _clear(own: Path, manifest: Manifest) -> None:
    """Of what interrupted attempts at the same cut have left."""
    known = {manifest_file(own), *(stage_file(own, stage) for stage in manifest.files)}
    with contextlib.suppress(OSError):
        for path in own.iterdir():
            if path not in known:
                path.unlink()


def _remove(own: Path) -> None:
    """The manifest first: what is half removed is no cut."""
    with contextlib.suppress(OSError):
        manifest_file(own).unlink(missing_ok=True)
        shutil.rmtree(own, ignore_errors=True)


# --- weights -------------------------------------------------------------------------------------
#
# Weights of the whole network by name, `best` or `final`: all of one moment, or not at all.
#
# ```
# DIR/best.new/STAGE.safetensors    as the workers write them
# DIR/best.new/manifest.json        once all have: the two folders change places, and
# DIR/best.old/…                    what was there before is removed
# ```
#
# A kill at any moment leaves those of before, or the new ones. Where the system can let two folders
# change places in one step, nobody ever sees none; elsewhere a reader finds them under one of the
# other names. Folders of early versions have no manifest: they are read as they are.

#: Of renameat2(2): relative to the current folder; atomically exchange.
_HERE, _EXCHANGE = -100, 2

Weights = dict[str, dict[str, Array]]


def write_weights(
    folder: Path, state: Mapping[str, Mapping[str, Array]], claim: Claim | None, *, shared: bool
) -> dict[str, str]:
    """Write those of some stages, to be committed as `folder`; returns their SHA-256 by stage.

    Where the folder is not `shared` with the coordinator, nobody will commit them: they are written
    where they belong. Raises `CheckpointError`; what was committed is as it was.
    """
    into = _new(folder) if shared else folder
    try:
        if shared:  # of an attempt that was cut short just before its end
            manifest_file(into).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write to {into}: {error.strerror}") from error
    digests: dict[str, str] = {}
    for stage, arrays in state.items():
        if claim is not None:
            claim.check()
        digests |= save_stages(into, {stage: arrays})
    return digests


def weights_manifest(
    tag: str, files: Mapping[str, str], result: Mapping[str, Any], **belongs: Any
) -> WeightsManifest:
    """Of the weights `tag` with the SHA-256 of their `files` by stage, and the `result` of their
    evaluation; what they belong to: `identity`, and `experiment`."""
    return WeightsManifest(tag=tag, files=dict(files), **result, **belongs)


def commit_weights(folder: Path, manifest: WeightsManifest) -> None:
    """What workers have written takes the place of what is in `folder`. Files that are on the disk
    of another host may be missing. Raises `CheckpointError`."""
    new = _new(folder)
    write_manifest(new, manifest)
    sync_folder(new)
    _swap(folder)


def settle_weights(folder: Path) -> None:
    """End what a coordinator that was killed had begun. Raises `CheckpointError`."""
    new, old = _new(folder), _old(folder)
    place = _present(folder)
    if place != folder:
        with _writing(folder):
            os.rename(place, folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def read_weights(folder: Path, stages: Iterable[str]) -> tuple[Weights, WeightsManifest | None]:
    """Those of `stages` in `folder`, each held against the manifest; None where there is none.

    Raises `CheckpointError` naming the file that is missing, damaged, or not of these weights.
    """
    for attempt in (1, 2):
        place = _present(folder)
        manifest = None
        try:
            if manifest_file(place).exists():
                manifest = read_manifest(place, WeightsManifest)
            return {stage: _load(place, stage, manifest) for stage in stages}, manifest
        except CheckpointError:
            # Others may have been put in their place meanwhile, by a run that goes on.
            if attempt == 2 or not _has_changed(folder, place, manifest):
                raise
    raise AssertionError("unreachable")


def _load(folder: Path, stage: str, manifest: WeightsManifest | None) -> dict[str, Array]:
    if manifest is None:
        return load_stage(folder, stage)
    digest = manifest.files.get(stage)
    if digest is None:
        raise CheckpointError(f"{manifest_file(folder)} knows no stage {stage}")
    return load_stage(folder, stage, digest)


def _has_changed(folder: Path, place: Path, manifest: WeightsManifest | None) -> bool:
    try:
        return _present(folder) != place or read_manifest(place, WeightsManifest) != manifest
    except CheckpointError:
        return False


def _present(folder: Path) -> Path:
    """Where the weights are: a kill may have come while folders took each other's place."""
    if folder.exists():
        return folder
    if _is_committed(_new(folder)):
        return _new(folder)
    return _old(folder) if _old(folder).exists() else folder


def _is_committed(new: Path) -> bool:
    try:
        read_manifest(new, WeightsManifest)
    except CheckpointError:
        return False
    return True


def _swap(folder: Path) -> None:
    new, old = _new(folder), _old(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"can't write {folder}: it is there and no folder; move it away")
    with _writing(folder):
        shutil.rmtree(old, ignore_errors=True)
        if not folder.exists():
            os.rename(new, folder)
        elif _exchange(new, folder):
            os.rename(new, old)  # by its name no longer what is to come
        else:
            os.rename(folder, old)
            os.rename(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the disk can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # Linux has it
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror}") from error


def _new(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")
