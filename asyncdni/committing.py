"""Make what the workers have saved a checkpoint of the run, or its best or final weights."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from hashlib import sha256

from asyncdni.build import Design
from asyncdni.checkpoint import (
    Claim,
    Manifest,
    WeightsManifest,
    commit,
    commit_weights,
    identity,
    weights_manifest,
)
from asyncdni.core.events import Commit
from asyncdni.core.steps import is_cut
from asyncdni.run import CHECKPOINTS, EXPERIMENT

__all__ = ["make_commit"]


def make_commit(
    claim: Claim, design: Design, hosts: Mapping[str, str], tell: Callable[[str], None]
) -> Callable[[Commit], None]:
    """What writes the manifest of a cut, or of weights, in the run's folder.

    `hosts` are those of the workers, by name, as they are known by then. Where a worker writes to a
    disk of its own host, the workers can go back to such a cut, but no run can be taken up again
    from this folder: `tell` gets that, once. Raises `CheckpointError` where a manifest can't be
    written.
    """
    folder = claim.folder
    experiment = sha256((folder / EXPERIMENT).read_bytes()).hexdigest()
    told: list[str] = []

    def committed(cut: Commit) -> None:
        claim.check()
        if not is_cut(cut.tag):
            commit_weights(folder / cut.tag, _weights(cut, design, experiment))
            return
        missing = [s for s in cut.files if not (folder / cut.tag / f"{s}.safetensors").is_file()]
        if missing and set(hosts.values()) != {socket.gethostname()}:
            if not told:
                told.append(missing[0])
                tell(
                    f"{folder / cut.tag} lacks the state of {', '.join(missing)}, which is on "
                    "other hosts: to take this run up again its folder must be a shared one"
                )
            return
        manifest = _manifest(cut, design, experiment)
        commit(folder / CHECKPOINTS, manifest, design.experiment.checkpoint.keep)

    return committed


def _weights(kept: Commit, design: Design, experiment: str) -> WeightsManifest:
    belongs = {"identity": identity(design.experiment, design.meta), "experiment": experiment}
    return weights_manifest(kept.tag, kept.files, kept.state, **belongs)


def _manifest(cut: Commit, design: Design, experiment: str) -> Manifest:
    state = cut.state
    return Manifest(
        number=int(cut.tag.rpartition("/")[2]),
        files=cut.files,
        start=state["start"],
        planned=state["planned"],
        barrier=state["barrier"],
        identity=identity(design.experiment, design.meta),
        coordinator=state,
        experiment=experiment,
    )
