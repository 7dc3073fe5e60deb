"""What workers say to the coordinator in numbers, held against what the plan lets be.

A count that can't be would end as a checkpoint that nobody can load, a jump to the end of the data
or a file of records that nothing can read. Whether a number that can be is true, nobody can tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from asyncdni.core.members import Roster
from asyncdni.core.position import KINDS
from asyncdni.messages import Built, Drained, Evaluated, Guarded, Message, Report, Saved

__all__ = ["Claims"]

#: More than anything here is ever counted to; floats hold every count below it.
_COUNT_MAX = 2**53
#: A round may go on behind batches that went wrong at the very end of the data.
_BEHIND_THE_END = 1000
#: Counters of a report that decisions are made by.
_COUNTERS = ("samples", "updates", "batches", "missed", "ops")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class Claims:
    """`roster` says what there is to be counted."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._positions = roster.batches + _BEHIND_THE_END if roster.batches else _COUNT_MAX
        self._faults: dict[type[Message], Callable[[str, Any], str | None]] = {
            Built: self._of_built,
            Report: self._of_report,
            Drained: self._of_drained,
            Evaluated: self._of_evaluated,
            Saved: self._of_saved,
            Guarded: self._of_guarded,
        }

    def fault(self, name: str, message: Message) -> str | None:
        """What can't be in a message of this worker; None where all can."""
        found = self._faults.get(type(message))
        return None if found is None else found(name, message)

    def _of_built(self, name: str, built: Built) -> str | None:
        return (
            _beyond("parameters", built.parameters)
            or _beyond("updates", built.updates)
            or _beyond("position", built.position, self._positions)
            or _beyond("read", built.read, self._positions)
        )

    def _of_report(self, name: str, report: Report) -> str | None:
        counts = {key: report.counters.get(key) for key in _COUNTERS}
        for key, count in counts.items():
            fault = None if count is None else _beyond(key, count)
            if fault is not None:
                return fault
        passed = (counts["batches"] or 0) + (counts["missed"] or 0)
        if not math.isfinite(report.loss_sum):
            return f"its loss_sum is {report.loss_sum}"
        return _beyond("loss_samples", report.loss_samples) or _beyond(
            "batches and missed", passed, self._positions
        )

    def _of_drained(self, name: str, drained: Drained) -> str | None:
        if drained.kind not in KINDS:
            return f"its kind is {drained.kind[:20]!r}"
        return _beyond("position", drained.position, self._positions)

    def _of_evaluated(self, name: str, score: Evaluated) -> str | None:
        tests = self._roster.meta.get("test_samples", score.samples)
        if score.samples != tests:
            return f"its samples are {score.samples}, not {tests}"
        if not math.isfinite(score.loss):
            return f"its loss is {score.loss}"
        count = score.samples if score.steps is None else score.steps
        return (
            _beyond("samples or steps", count)
            or _beyond("outputs", score.outputs)
            or _beyond("correct", score.correct or 0, count * score.outputs)
        )

    def _of_saved(self, name: str, saved: Saved) -> str | None:
        others = set(saved.files) - set(self._roster.members[name])
        if others:
            return f"it names files of {len(others)} stages of others"
        wrong = [stage for stage, digest in saved.files.items() if not _DIGEST.fullmatch(digest)]
        return f"the sha256 of {wrong[0]} is none" if wrong else None

    def _of_guarded(self, name: str, guarded: Guarded) -> str | None:
        return None if math.isfinite(guarded.cosine) else f"its cosine is {guarded.cosine}"


def _beyond(what: str, count: float, most: int = _COUNT_MAX) -> str | None:
    if isinstance(count, int) and 0 <= count <= most:
        return None
    return f"its {what} are {count}, expected a whole number from 0 to {most}"
