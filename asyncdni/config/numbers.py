"""[numbers]: what to do about a loss, gradient or generator that is no longer a finite number."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from asyncdni.config.base import Count, Table

__all__ = ["Numbers"]


class Numbers(Table, frozen=True, kw_only=True):
    """NaN, infinity, and norms that explode."""

    # end the run; leave the update out; or go back to the last cut and on with later batches
    policy: Literal["stop", "skip", "roll_back"] = "stop"
    # a loss or a norm of a gradient that is so many times its running mean is as bad as NaN. None:
    # no limit, as what is a healthy jump depends on the task; on MNIST all stay below 4
    explode: Annotated[float, Meta(gt=1)] | None = None
    # updates that a stage may leave out one after the other: by then skipping has not helped
    skips_max: Count = 100
