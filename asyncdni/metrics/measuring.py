"""How a comparison is measured, in words: what a reader has to know to believe its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asyncdni.metrics.markup import Markup, element

__all__ = ["how_it_was_measured"]


def how_it_was_measured(found: Mapping[str, Any]) -> Markup:
    """A list; what this comparison has none of is left out."""
    return element("ul", *(element("li", text) for text in _sentences(found)))


def _sentences(found: Mapping[str, Any]) -> Iterable[str]:
    names = {row["name"] for row in found["rows"]}
    yield (
        "One run at a time. Runs are interleaved: all rows with the first seed, then all with the "
        "next in an order that is rotated by one, so that a machine that grows slower or faster "
        "does so for every row."
    )
    yield (
        "Runs of asyncdni with one seed start from the same weights and see the same batches in "
        "the same order. Rows are compared seed by seed: a speed-up is the geometric mean of the "
        "ratios of such pairs, and its interval that of the mean of their logarithms."
    )
    yield (
        "Intervals hold 95 % (Student's t over the seeds). They tell how far chance between runs "
        "on this machine goes, and nothing about other machines. One seed has no interval."
    )
    yield (
        "Training time runs from the first batch until the last update, with the time in which the "
        "pipe drains before an evaluation. Evaluations themselves, start-up and writing of weights "
        "are left out; wall time has all of it."
    )
    if found.get("targets"):
        yield (
            "An accuracy counts as reached at the first of two consecutive evaluations at or above "
            "it: one alone may be luck. Where some runs of a row never reach it, no mean is given, "
            "and ratios are over the pairs in which both did."
        )
    if any(row.get("ceiling_samples_per_s") for row in found["rows"]):
        yield (
            "The ceiling is arithmetic on the CPU times of the run's own ops: no more batches a "
            "second than the slowest worker can do, and no more than all cores can do of the work "
            "of all workers together. Rows that wait for true gradients are held back further: a "
            "locked one by each batch's way down and back before the next, gpipe and 1f1b by that "
            "of each group of microbatches, delayed by that of as many batches as it may be ahead; "
            "the latency that links were given is on that way. Efficiency is the part of it that "
            "was reached. An op that grows slower because cores share caches and memory lowers the "
            "ceiling too."
        )
    if found.get("latencies"):
        yield (
            "Latency is emulated: each message between workers is handed over so much later than "
            "it was sent, and holds up no other link. A comparison at several latencies is one at "
            "each of them, in the same interleaved order."
        )
    if "single" in names:
        yield (
            "single: all stages in one worker process and in strict order, with as many BLAS "
            "threads as the table says, no links and no other worker running: what training "
            "without asyncdni would be."
        )
    if any(row.get("control") for row in found["rows"]):
        yield (
            "A control is not a competitor: it lacks what is to be shown to matter, such as "
            "generators that predict anything but zero."
        )
