"""Which batches a gradient is sent up for: the id alone decides, so that all stages agree."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALWAYS", "NEVER", "Asked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """The first `first` batches, and then each whose id is a multiple of `every` (0: none)."""

    every: int = 1
    first: int = 0

    def of(self, batch: int) -> bool:
        return batch < self.first or (self.every > 0 and batch % self.every == 0)


ALWAYS = Asked()
NEVER = Asked(every=0)
