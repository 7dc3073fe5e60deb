"""Which op next: one short, pure file a schedule. Pictures of all: docs/schedules.md."""

from __future__ import annotations

from asyncdni.schedules.base import (
    ALWAYS,
    NEVER,
    Asked,
    Flight,
    Groups,
    Op,
    OpKind,
    Schedule,
    Source,
    View,
    draw,
)
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

__all__ = [
    "ALWAYS",
    "NEVER",
    "Asked",
    "Delayed",
    "Flight",
    "Gpipe",
    "Groups",
    "LocalLoss",
    "Locked",
    "OneF1B",
    "Op",
    "OpKind",
    "Schedule",
    "Source",
    "Synthetic",
    "View",
    "draw",
]
