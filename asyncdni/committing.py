"""Make what the workers have saved a checkpoint of the run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from asyncdni.build import Design
from asyncdni.checkpoint import Claim, Manifest, commit, identity
from asyncdni.core.events import Commit
from asyncdni.run import CHECKPOINTS

__all__ = ["make_commit"]


def make_commit(
    claim: Claim, design: Design, hosts: Mapping[str, str], tell: Callable[[str], None]
) -> Callable[[Commit], None]:
    """What writes the manifest of a cut in the run's folder.

    `hosts` are those of the workers, by name, as they are known by then. Where a worker writes to a
    disk of its own host, the workers can go back to such a cut, but no run can be taken up again
    from this folder: `tell` gets that, once. Raises `CheckpointError` where a manifest can't be
    written.
    """
    folder = claim.folder
    told: list[str] = []

    def committed(cut: Commit) -> None:
        claim.check()
        missing = [s for s in cut.files if not (folder / cut.tag / f"{s}.safetensors").is_file()]
        if missing and set(hosts.values()) != {socket.gethostname()}:
            if not told:
                told.append(missing[0])
                tell(
                    f"{folder / cut.tag} lacks the state of {', '.join(missing)}, which is on "
                    "other hosts: to take this run up again its folder must be a shared one"
                )
            return
        commit(folder / CHECKPOINTS, _manifest(cut, design), design.experiment.checkpoint.keep)

    return committed


def _manifest(cut: Commit, design: Design) -> Manifest:
    state = cut.state
    return Manifest(
        number=int(cut.tag.rpartition("/")[2]),
        files=cut.files,
        start=state["start"],
        planned=state["planned"],
        barrier=state["barrier"],
        identity=identity(design.experiment, design.meta),
        coordinator=state,
    )
