"""Learning-rate schedules: pure functions of the count of updates, with linear warm-up.

Each gives the factor, from 1 down, that the learning rate is multiplied by. Time is counted in
epochs (1.5: the middle of the second), so that a schedule means the same at any batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from asyncdni.errors import ConfigError

__all__ = ["RATES", "constant", "cosine", "scale", "step", "warmup"]


def constant(epoch: float, total_epochs: float) -> float:
    """1 throughout."""
    return 1.0


def step(
    epoch: float, total_epochs: float, *, epochs: Sequence[float], factor: float = 0.1
) -> float:
    """`factor` to the number of `epochs` that are over."""
    return float(factor) ** sum(epoch >= end for end in epochs)


def cosine(epoch: float, total_epochs: float, *, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final` over the run (Loshchilov and Hutter 2017, no restarts)."""
    progress = min(1.0, epoch / total_epochs) if total_epochs > 0 else 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def warmup(update: int, updates: float) -> float:
    """Rises linearly to 1 over the first `updates`; the first of them is not wasted on a 0."""
    return min(1.0, (update + 1) / updates) if updates > 0 else 1.0


RATES: dict[str, Callable[..., float]] = {"constant": constant, "step": step, "cosine": cosine}


def scale(
    name: str,
    update: int,
    *,
    updates_per_epoch: float,
    total_updates: float,
    warmup_epochs: float = 0.0,
    **options: float | Sequence[float],
) -> float:
    """What the learning rate is multiplied by for the update of that index (from 0).

    Args:
        name: of `RATES`.
        update: how many updates were made before this one.
        updates_per_epoch: may be a fraction.
        total_updates: of the whole run.
        warmup_epochs: how long the warm-up lasts; it multiplies the schedule, not delays it.
        options: of the schedule: `epochs` and `factor` of step, `final` of cosine.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in RATES:
        raise ConfigError(f"unknown learning-rate schedule {name!r}: one of {', '.join(RATES)}")
    epoch = update / updates_per_epoch
    total_epochs = total_updates / updates_per_epoch
    decay = RATES[name](epoch, total_epochs, **options)
    return decay * warmup(update, warmup_epochs * updates_per_epoch)
