"""Which op next: one pure file a schedule, and the table of all. Pictures: docs/schedules.md."""

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
from asyncdni.schedules.delayed import Delayed, DelayedOptions
from asyncdni.schedules.gpipe import Gpipe, GpipeOptions
from asyncdni.schedules.local_loss import LocalLoss, LocalLossOptions
from asyncdni.schedules.locked import Locked, LockedOptions
from asyncdni.schedules.one_f_one_b import OneF1B, OneF1BOptions
from asyncdni.schedules.options import Options
from asyncdni.schedules.synthetic import Synthetic, SyntheticOptions

__all__ = [
    "ALWAYS",
    "NEVER",
    "SCHEDULES",
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
    "Options",
    "Schedule",
    "Source",
    "Synthetic",
    "View",
    "draw",
]

#: By the name that `[schedule]` in an experiment file gives it; messages list them in this order.
SCHEDULES: dict[str, type[Options]] = {
    "locked": LockedOptions,
    "gpipe": GpipeOptions,
    "1f1b": OneF1BOptions,
    "delayed": DelayedOptions,
    "local_loss": LocalLossOptions,
    "synthetic": SyntheticOptions,
}
