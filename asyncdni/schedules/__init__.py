"""Which op next: one short, pure file a schedule. Pictures of all: docs/schedules.md."""

from __future__ import annotations

from asyncdni.schedules.base import Flight, Op, OpKind, Schedule, Source, View
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.synthetic import Synthetic

__all__ = [
    "Flight",
    "Locked",
    "Op",
    "OpKind",
    "Schedule",
    "Source",
    "Synthetic",
    "View",
]
