"""A curve, continued by a network from its own outputs: each is the next step's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asyncdni.config.data import Trigonometry
from asyncdni.datasets.meta import Array
from asyncdni.datasets.trigonometry import points
from asyncdni.errors import ConfigError
from asyncdni.run import Result
from asyncdni.sampling.stepping import Stepper

__all__ = ["Curve", "as_csv", "continue_curve", "tells_points"]


@dataclass(frozen=True)
class Curve:
    """What a network made of the first points of a curve."""

    truth: Array  # (given + N, 2): cosine and sine of all steps
    generated: Array  # (N, 2): from step `given` on

    @property
    def given(self) -> int:
        """Points that the network was shown."""
        return len(self.truth) - len(self.generated)

    @property
    def error(self) -> float:
        """Mean absolute error over all generated numbers."""
        return float(np.abs(self.generated - self.truth[self.given :]).mean())


def tells_points(run: Result) -> bool:
    """Whether the run was trained to tell the next point of a curve."""
    return isinstance(run.experiment.data, Trigonometry)


def continue_curve(
    run: Result, *, length: int = 100, start: float = 0.0, allow_import: bool = False
) -> Curve:
    """`length` points that follow the first window's of the curve, the truth beside them.

    `start`: the step at which the curve begins, a fraction between the points of training.

    Raises `ConfigError` for a length below 1.
    """
    if length < 1:
        raise ConfigError(f"length {length}: expected a number of points, 1 or more")
    data = run.experiment.data
    assert isinstance(data, Trigonometry), "see tells_points"
    given = data.window
    truth = points(np.array([start]), given + length, data.period)[0]
    stepper = Stepper(run, allow_import=allow_import)
    for point in truth[:given]:
        following = stepper.step(point[None])
    generated = [following[0]]
    while len(generated) < length:
        generated.append(stepper.step(generated[-1][None])[0])
    return Curve(truth, np.stack(generated).astype(np.float64))


def as_csv(curve: Curve) -> str:
    """A line a step: its number, the true cosine and sine, and the generated ones."""
    lines = ["step,true_cos,true_sin,cos,sin"]
    for step, (cosine, sine) in enumerate(curve.truth):
        made = ("", "")
        if step >= curve.given:
            x, y = curve.generated[step - curve.given]
            made = f"{x:.6f}", f"{y:.6f}"
        lines.append(f"{step},{cosine:.6f},{sine:.6f},{made[0]},{made[1]}")
    return "\n".join(lines) + "\n"
