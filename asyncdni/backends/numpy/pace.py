"""The learning-rate decay of a stage: how far the run has come, and what the rate is then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from asyncdni import config
from asyncdni.nn.rates import scale

__all__ = ["Pace", "make_rate_scale"]


@dataclass(frozen=True)
class Pace:
    """What a learning-rate schedule measures time by: the batches that have come, not the updates,
    of which a stage may make more or fewer than planned (replays, random updates)."""

    updates_per_epoch: int
    total_updates: int
    microbatches: int = 1  # of an update
    batches_per_epoch: int = 0  # microbatches; not needed where there is one an update

    def update_of(self, batch: int) -> int:
        """The index of the update that a batch or microbatch is meant for."""
        if self.microbatches == 1:
            return batch
        epoch, position = divmod(batch, self.batches_per_epoch)
        return epoch * self.updates_per_epoch + position // self.microbatches


def make_rate_scale(decay: config.Decay, pace: Pace) -> Callable[[int], float]:
    """The factor of the learning rate, from the index of an update."""
    options = {
        name: getattr(decay, name) for name in ("epochs", "factor", "final") if hasattr(decay, name)
    }
    return partial(
        scale,
        str(decay.__struct_config__.tag),
        updates_per_epoch=pace.updates_per_epoch,
        total_updates=pace.total_updates,
        warmup_epochs=decay.warmup_epochs,
        **options,
    )
