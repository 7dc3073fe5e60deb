"""Microbatches in groups: the accumulated gradients of each group make one update."""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.schedules.base import View

__all__ = ["Groups"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Which ids belong together: `size` a group; the last group of an epoch may be shorter."""

    size: int
    per_epoch: int  # microbatches

    def ends(self, batch: int) -> bool:
        """The batch is the last of its group."""
        position = batch % self.per_epoch
        return position == self.per_epoch - 1 or position % self.size == self.size - 1

    def end_from(self, batch: int) -> int:
        """The first id from `batch` on before which no group is cut in two."""
        if self.size == 1:
            return batch
        epoch, index = divmod(batch, self.per_epoch)
        groups = -(-index // self.size)
        return epoch * self.per_epoch + min(groups * self.size, self.per_epoch)

    def forwarded(self, view: View) -> bool:
        """The whole group has been; a barrier may cut one short where nothing more comes."""
        return self.ends(view.last) or (view.closed and not view.queued)
