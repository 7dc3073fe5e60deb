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

from asyncdni.checkpoint.claims import OWNERS, Claim, new_term
from asyncdni.checkpoint.cuts import commit, cut_folder, cuts_until, latest, next_cut
from asyncdni.checkpoint.files import read_newest, read_state, write_state
from asyncdni.checkpoint.identity import compare, differences, identity
from asyncdni.checkpoint.manifest import Manifest, WeightsManifest
from asyncdni.checkpoint.snapshots import discard_snapshots
from asyncdni.checkpoint.weights import (
    commit_weights,
    read_weights,
    settle_weights,
    weights_manifest,
    write_weights,
)

__all__ = [
    "OWNERS",
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
    "new_term",
    "next_cut",
    "read_newest",
    "read_state",
    "read_weights",
    "settle_weights",
    "weights_manifest",
    "write_state",
    "write_weights",
]
