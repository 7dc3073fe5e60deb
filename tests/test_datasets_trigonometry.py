"""The circle, step by step and window by window."""

from __future__ import annotations

import numpy as np
import pytest

from asyncdni import data as datasets
from asyncdni.config import Trigonometry
from asyncdni.data.meta import Array
from asyncdni.data.trigonometry import points
from asyncdni.errors import ConfigError


def curves(data: Trigonometry, *, test: bool = False) -> tuple[Array, Array]:
    """All inputs and all targets of an epoch (B, L, 2), float64."""
    opened, size = datasets.open_batches(data, 0), data.batch_size
    if test:
        windows = [opened.read_test(i, size, np.float64) for i in range(opened.test_batches(size))]
    else:
        count = opened.batches_per_epoch(size)
        windows = [opened.read(0, i, size, 0, np.float64) for i in range(count)]
    x, y = (np.concatenate([window[name] for window in windows], axis=1) for name in "hy")
    return x, y


def test_the_curve_has_the_period_and_goes_round() -> None:
    x, _ = curves(Trigonometry())
    assert x.shape == (1, 500, 2)
    np.testing.assert_allclose(np.linalg.norm(x, axis=2), 1)
    np.testing.assert_allclose(x[:, 20:], x[:, :-20], atol=1e-12)
    np.testing.assert_allclose(x[0, [0, 5, 10, 15]], [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-12)


def test_the_target_is_the_next_point_across_windows_too() -> None:
    x, y = curves(Trigonometry(points=60))
    np.testing.assert_array_equal(y[:, :-1], x[:, 1:])
    turn = np.array([[0, -1], [1, 0]])
    angle = 2 * np.pi / 20
    expected = x[0, -1] * np.cos(angle) + turn @ x[0, -1] * np.sin(angle)
    np.testing.assert_allclose(y[0, -1], expected, atol=1e-12)


def test_streams_start_at_equal_parts_of_the_period() -> None:
    x, _ = curves(Trigonometry(batch_size=4, points=20))
    np.testing.assert_allclose(x[:, 0], [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-12)


@pytest.mark.parametrize(("validation", "shift"), [(0, 0.5), (6, 0.25)])
def test_test_points_lie_between_those_of_training(validation: int, shift: float) -> None:
    data = Trigonometry(validation=validation)
    x, _ = curves(data, test=True)
    assert x.shape[1] == (5 * validation or 100)
    np.testing.assert_allclose(x, points(np.array([shift]), x.shape[1], 20.0), atol=1e-12)


def test_far_points_are_as_exact_as_near_ones() -> None:
    near, far = (points(np.array([start]), 20, 20.0) for start in (0.0, 2e9))
    np.testing.assert_allclose(far, near, atol=1e-12)


def test_what_is_coming_goes_on_in_the_next_window_and_ends_with_the_curve() -> None:
    data = Trigonometry(points=10, ahead=3)
    opened = datasets.open_batches(data, 0)
    first, second = (opened.read(0, i, 1, 0, np.float64) for i in (0, 1))
    np.testing.assert_array_equal(first["coming"].reshape(1, 3, 2), second["y"][:, :3])
    assert not second["coming"].any() and second["last"].all()


@pytest.mark.parametrize("option", ["points", "test_points"])
def test_a_window_longer_than_the_curve_is_refused(option: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"data.window: 5 steps are more than the data.{option} = 4"
    ):
        datasets.describe(Trigonometry(**{option: 4}))
    assert datasets.describe(Trigonometry(**{option: 9})) == datasets.describe(
        Trigonometry(**{option: 5})
    )
