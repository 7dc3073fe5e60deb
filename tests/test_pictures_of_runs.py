"""The pictures that a run leaves: what is drawn, and that it can be read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from asyncdni.report import album as pictures

matplotlib = pytest.importorskip("matplotlib")

HISTORY = [
    {"samples": 100 * k, "train_s": 1.0 * k, "accuracy": 1 - 0.1 / k, "loss": 4.0 / k}
    for k in (1, 2, 3)
]


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Any, *given: Any) -> Any:
    """The figure that a picture was made of."""
    figures: list[Any] = []

    def keep(make: Any) -> bytes:
        figures.append(make())
        return b""

    monkeypatch.setattr(pictures, "_png", keep)
    draw(*given)
    return figures[0]


def texts(figure: Any) -> list[str]:
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in found if text.get_text()]


def images(figure: Any) -> list[np.ndarray]:
    return [np.asarray(one.get_array()) for axes in figure.axes for one in axes.images]


def test_the_cost_is_the_loss_and_the_wrong_answers_over_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = drawn(monkeypatch, pictures.cost_picture, HISTORY, 50)
    loss, wrong = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[2, 4], [4, 2], [6, 4 / 3]])
    np.testing.assert_allclose(wrong.lines[0].get_ydata(), [10, 5, 10 / 3])
    assert [loss.get_xlabel(), wrong.get_xlabel()] == ["epochs", "epochs"]


def test_without_right_answers_the_cost_is_one_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [{**one, "accuracy": None} for one in HISTORY]
    assert len(drawn(monkeypatch, pictures.cost_picture, history, 50).axes) == 1


def test_a_loss_that_falls_far_is_drawn_over_its_logarithm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = [{**one, "loss": 10.0 ** -one["samples"]} for one in HISTORY]
    figure = drawn(monkeypatch, pictures.cost_picture, history, 50)
    assert figure.axes[0].get_yscale() == "log"


def test_a_curve_stands_on_the_truth_and_begins_behind_what_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth, generated = np.arange(24.0).reshape(12, 2), np.ones((7, 2))
    figure = drawn(monkeypatch, pictures.curve_picture, truth, generated, 0.125)
    for column, axes in enumerate(figure.axes):
        true, made = axes.lines
        np.testing.assert_array_equal(true.get_ydata(), truth[:, column])
        np.testing.assert_array_equal(made.get_xdata(), np.arange(5, 12))
    assert "generated, mean absolute error 0.125" in texts(figure)


@pytest.mark.parametrize("count", [1, 4, 13])
def test_all_images_of_a_grid_are_drawn_once(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    given = np.random.default_rng(0).random((count, 5, 5))
    figure = drawn(monkeypatch, pictures.grid_picture, given, "some")
    np.testing.assert_array_equal(images(figure), given)


def test_each_image_stands_above_its_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen of them: two bands, the second of three columns that are filled."""
    given = np.random.default_rng(0).random((13, 5, 5))
    figure = drawn(monkeypatch, pictures.pairs_picture, given, given + 1)
    above, below = images(figure)[:10], images(figure)[10:20]
    np.testing.assert_array_equal(above, given[:10])
    np.testing.assert_array_equal(below, given[:10] + 1)
    assert len(images(figure)) == 26


def test_predictions_say_what_wrong_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.zeros((3, 5, 5))
    figure = drawn(
        monkeypatch, pictures.predictions_picture, given, ["0", "1", "1"], ["0", "0", "1"]
    )
    said = texts(figure)
    assert "test images and their predicted classes: 2 of 3 right" in said
    assert [text for text in said if len(text) < 10] == ["0", "0, not 1", "1"]


def test_pictures_are_pngs_and_leave_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    content = pictures.grid_picture(np.zeros((3, 4, 4)), "some")
    assert dict(matplotlib.rcParams) == before
    assert content == pictures.grid_picture(np.zeros((3, 4, 4)), "some")
    pixels = matplotlib.image.imread(io.BytesIO(content))
    assert pixels.ndim == 3
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]
