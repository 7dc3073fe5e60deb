"""Points on a circle, (cos wt, sin wt) at step t with w = 2π / period: the target is the next
point.

One sequence fills an epoch; each window goes on where the one before it ended. Of B streams, stream
b starts b / B of a period into the curve. Test points are shifted by half a step against those of
training, with `validation` by a quarter of a step.

Source of the task: a curve of period 20 in windows of 5 steps, continued by an LSTM from its first
5 points.
"""

from __future__ import annotations

import numpy as np

from asyncdni.config import Trigonometry
from asyncdni.data.meta import Array, Meta
from asyncdni.data.sequences import Sequence, Sequences, describe_windows
from asyncdni.errors import ConfigError

__all__ = ["Circle", "describe", "load", "points"]


def points(start: Array, steps: int, period: float) -> Array:
    """Return cosine and sine (B, steps, 2) float64, from step `start` (B,) on, which may be a
    fraction."""
    times = start[:, None] + np.arange(steps)
    # With modulo before the multiplication, step 1,000,000 is as exact as step 0.
    angles = 2 * np.pi * (times % period) / period
    return np.stack([np.cos(angles), np.sin(angles)], axis=2)


class Circle:
    """The task of predicting the next point, as a `sequences.Task`."""

    def __init__(
        self,
        period: float,
        *,
        streams: int,
        steps: int,
        windows: int,
        test_windows: int,
        test_shift: float,
    ) -> None:
        """
        Args:
            period: steps of one turn.
            streams: B.
            steps: T, the steps of a window.
            windows, test_windows: how many the sequence of an epoch has, and that of the test part.
            test_shift: by which fraction of a step the test part starts later.
        """
        self._period = period
        self._streams = streams
        self._steps = steps
        self._windows = windows
        self._test_windows = test_windows
        self._test_shift = test_shift

    def windows(self, epoch: int | None) -> int:
        return self._test_windows if epoch is None else self._windows

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        """Return x and y (B, L, 2), the same for every seed and epoch."""
        starts = np.arange(self._streams) * self._period / self._streams
        if epoch is None:
            starts += self._test_shift
        curve = points(starts, self.windows(epoch) * self._steps + 1, self._period)
        return Sequence(curve[:, :-1], curve[:, 1:])


def describe(data: Trigonometry) -> Meta:
    """Return the shapes: windows (T, 2), two values per step.

    Raises `ConfigError` for windows longer than the curve."""
    windows, test_windows = _windows(data)
    meta = Meta(
        input_shape=(data.window, 2),
        targets="values",
        outputs=2,
        train_samples=windows,
        test_samples=test_windows,
        steps=data.window,
    )
    return describe_windows(meta, streams=data.batch_size, ahead=data.ahead, masked=False)


def load(data: Trigonometry, seed: int) -> Sequences:
    """Load the curve; nothing in it depends on the seed."""
    windows, test_windows = _windows(data)
    task = Circle(
        data.period,
        streams=data.batch_size,
        steps=data.window,
        windows=windows,
        test_windows=test_windows,
        test_shift=0.25 if data.validation else 0.5,
    )
    return Sequences(
        "trigonometry",
        describe(data),
        task,
        streams=data.batch_size,
        ahead=data.ahead,
        seed=seed,
    )


def _windows(data: Trigonometry) -> tuple[int, int]:
    """Return how many whole windows there are in training and in the test; points left over are not
    used."""
    for name in ("points", "test_points"):
        given = getattr(data, name)
        if given < data.window:
            raise ConfigError(
                f"data.window: {data.window} steps are more than the data.{name} = {given} of a "
                "sequence; expected at most as many"
            )
    return data.points // data.window, data.validation or data.test_points // data.window
