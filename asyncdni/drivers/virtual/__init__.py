"""The same loop, virtual: one seed replays one run."""

from __future__ import annotations

from asyncdni.drivers.virtual.costs import SENDING, Burden, Costs, Hop, Hosts, Links, Span
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.process import TimedOp
from asyncdni.drivers.virtual.simulation import Result, simulate

__all__ = [
    "SENDING",
    "Burden",
    "Costs",
    "Faults",
    "Hop",
    "Hosts",
    "Links",
    "Result",
    "Span",
    "TimedOp",
    "simulate",
]
