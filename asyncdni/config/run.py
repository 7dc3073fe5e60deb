"""[run] and [limits]: how long, over how many workers, and no more than what."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from asyncdni.config.base import Count, Positive, Seconds, Table, Whole

__all__ = ["MESSAGE_BYTES_MAX", "Limits", "Run"]

#: The most that `[limits] message_bytes` may be: what a worker's data socket takes at all.
MESSAGE_BYTES_MAX = 2**32 - 1


class Run(Table, frozen=True, kw_only=True):
    """How long, from which seed, over how many workers."""

    epochs: Whole = 5  # 0 writes the initial weights
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    split: list[Count] | None = None  # [2, 1, 1]: how many stages each worker gets; None: one
    evaluate_every: Positive = 1.0  # epochs between evaluations; fractions allowed
    threads: Count = 1  # BLAS threads a worker
    # cores: "auto" gives neighbours of a locked chain different ones, "none" leaves all to the
    # system, [0, 1, 0] says the core of each worker; see docs/speed.md
    pin: Literal["auto", "none"] | list[Whole] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    # weights to begin with: a run folder, a folder of STAGE.safetensors, or one .safetensors file
    init: str = ""
    # stages that take theirs from there, the others begin as the seed says; None: all of them
    init_stages: Annotated[list[str], Meta(min_length=1)] | None = None
    init_sha256: dict[str, str] = {}  # by stage, of what was taken; a run fills it in


class Limits(Table, frozen=True, kw_only=True):
    """A limit on everything, so that nothing grows or waits for ever."""

    window: Count | Literal["auto"] = "auto"  # activations a producer may send ahead
    window_max: Count = 256  # what `auto` may reach
    # one message between workers, frames and all
    message_bytes: Annotated[int, Meta(ge=1, le=MESSAGE_BYTES_MAX)] = 256 * 1024 * 1024
    startup_s: Seconds = 60.0  # until every worker has joined
    # without a sign of life: dead; more where a worker's signs have been coming irregularly
    silence_s: Seconds = 1.0
    stuck_s: Seconds = 60.0  # alive, but not through with one op: as good as dead
    # address space of a worker; one that grows beyond it is started again; None: no limit
    memory_bytes: Annotated[int, Meta(ge=2**28)] | None = None
