"""[links] and [slow]: conditions to train under."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from asyncdni.config.base import Fraction, Table

__all__ = ["Link", "Links", "Slow"]


class Link(Table, frozen=True, kw_only=True):
    """How slow a link between workers is made, beside what it takes anyway."""

    latency: str = "0ms"  # one way
    jitter: str = "0ms"  # up to so much more, evenly drawn; messages stay in order
    bandwidth: str = ""  # "100Mbit/s"; empty: as it is


class Links(Link, frozen=True, kw_only=True):
    """All links, and those that are named ("hidden1->hidden2": messages that way)."""

    between: dict[str, Link] = {}


class Slow(Table, frozen=True, kw_only=True):
    """A worker on a slower or a busy machine: it sleeps after what it has done."""

    factor: Annotated[float, Meta(ge=1, le=100_000)] = 1.0  # each op takes so many times as long
    pause: str = "0ms"  # in addition, after a forward …
    chance: Fraction = 0.0  # … with this probability
