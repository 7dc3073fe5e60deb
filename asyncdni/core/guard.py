"""Whether a stage may trust its generator: the mean cosine to the true gradients over a window.

```
above  . . . . . . . . . . . . . . *  . . .     a full window at or over `above`: go on
       *                       *
below  . . * . . . . . . . * . . . . . . .      a full window under `below`: wait
               *   *   *
       learns  | waits             | learns at once
```

Each change empties the window, so that what it was decided by is not used twice.
"""

from __future__ import annotations

from collections import deque
from math import isfinite

__all__ = ["Guard"]


class Guard:
    """`waiting`: learn from true gradients alone."""

    def __init__(self, window: int, below: float, above: float) -> None:
        self.waiting = False
        self.mean = 0.0  # of the window that made the last change
        self._below = below
        self._above = above
        self._cosines: deque[float] = deque(maxlen=window)

    def note(self, cosine: float | None) -> bool:
        """One more fit; True where it changes `waiting`. None and NaN agree with nothing."""
        cosines = self._cosines
        cosines.append(cosine if cosine is not None and isfinite(cosine) else 0.0)
        if len(cosines) < (cosines.maxlen or 1):
            return False
        mean = sum(cosines) / len(cosines)
        change = mean >= self._above if self.waiting else mean < self._below
        if change:
            self.waiting = not self.waiting
            self.mean = mean
            cosines.clear()
        return change
