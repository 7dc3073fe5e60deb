"""The same loop, virtual: one seed replays one run."""

from __future__ import annotations

from asyncdni.simulator.conditions import Costs, Links
from asyncdni.simulator.result import Result
from asyncdni.simulator.simulation import simulate
from asyncdni.simulator.worker import TimedOp

__all__ = ["Costs", "Links", "Result", "TimedOp", "simulate"]
