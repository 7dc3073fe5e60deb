"""Stages in NumPy, with hand-written backward passes."""

from __future__ import annotations

from asyncdni.stages.numpy.stage import NumpyStage

__all__ = ["NumpyStage"]
