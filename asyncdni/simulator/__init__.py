"""The same loop, virtual: one seed replays one run."""

from __future__ import annotations

from asyncdni.simulator.conditions import SENDING, Burden, Costs, Hop, Hosts, Links, Span
from asyncdni.simulator.faults import Faults
from asyncdni.simulator.result import Result
from asyncdni.simulator.round import TimedOp
from asyncdni.simulator.simulation import simulate

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
