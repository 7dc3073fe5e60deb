"""What the plots of a comparison show: bars and curves with the document's numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from reported import CURVES, at_latencies, document, estimate, rows, run

from asyncdni.report import breakdown, columns
from asyncdni.report.plots import (
    SHARE_COLOURS,
    Plot,
    draw_curves,
    draw_plots,
    draw_shares,
    draw_speed,
    draw_speed_over_latency,
    draw_times,
    draw_times_over_latency,
    inline,
    mean_curve,
    row_colours,
)

pytest.importorskip("matplotlib")

ALL = {
    *("accuracy_over_time", "accuracy_over_samples", "samples_per_s", "time_to_target", "shares"),
}
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]


def bars(axes: Any) -> list[tuple[float, float]]:
    """(left, width) of each."""
    return [(bar.get_x(), bar.get_width()) for bar in axes.patches]


def errors(axes: Any) -> dict[str, list[float]]:
    """y of each mean curve, by its label."""
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(line.get_ydata()) for line in lines}


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plots() -> dict[str, Plot]:
    """All plots of `document()`, which take a second to draw."""
    return draw_plots(document())


def test_every_plot_is_an_svg_and_a_png(plots: dict[str, Plot]) -> None:
    assert plots.keys() == ALL
    for plot in plots.values():
        assert ElementTree.fromstring(plot.svg).tag == f"{SVG}svg"
        assert plot.png.startswith(b"\x89PNG\r\n")


def test_the_same_numbers_give_the_same_files_and_leave_matplotlib_as_it_was(
    plots: dict[str, Plot],
) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert draw_plots(document()) == plots
    assert dict(matplotlib.rcParams) == before


def test_plots_without_numbers_are_not_drawn() -> None:
    planned = [{"name": "locked", "runs": 0, "control": False}]
    assert draw_plots(document(rows=planned, runs=[])) == {}
    assert draw_plots(document(rows=[], runs=[])) == {}
    assert draw_plots(document(rows=rows()[3:], runs=[run("other", 0)], targets=[])).keys() == {
        *("accuracy_over_time", "accuracy_over_samples", "samples_per_s"),
    }


# --- curves --------------------------------------------------------------------------------------


def test_a_mean_curve_is_the_mean_of_evaluations_after_the_same_samples() -> None:
    first, second = [(10, 1.0, 0.5), (20, 2.0, 0.7)], [(10, 3.0, 0.7), (20, 4.0, 0.8)]
    assert mean_curve([first, second]) == [[2.0, pytest.approx(0.6)], [3.0, pytest.approx(0.75)]]


def test_a_mean_curve_ends_with_the_shortest_of_its_runs() -> None:
    assert mean_curve([[(10, 1.0, 0.5), (20, 2.0, 0.7)], [(10, 3.0, 0.7)]]) == [
        [2.0, pytest.approx(0.6)]
    ]


def test_curves_are_means_over_the_seeds_beside_every_run() -> None:
    figure = draw_curves(document(), "samples")
    assert figure is not None
    (axes,) = figure.axes
    found = errors(axes)
    assert found["locked"] == pytest.approx([0.175, 0.085, 0.045, 0.03])
    assert found["synthetic-zero (control)"] == pytest.approx([0.5, 0.45, 0.45, 0.45])
    assert len(axes.lines) == 2 + 4 * 3, "two targets, and of each row a mean and two runs"


def test_the_axis_of_accuracies_has_the_best_at_the_top() -> None:
    figure = draw_curves(document(), "train_s")
    assert figure is not None
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low > high > 0.0
    labels = [label.get_text() for label in axes.get_yticklabels()]
    ticks = list(axes.get_yticks())
    assert ticks[labels.index("95 %")] == pytest.approx(0.05)
    assert sorted(ticks, reverse=True) == ticks


def test_a_network_without_fault_is_on_the_plot_too() -> None:
    found = document()
    found["runs"][0]["summary"]["history"][-1]["accuracy"] = 1.0
    figure = draw_curves(found, "samples")
    assert figure is not None
    thin = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert min(min(line.get_ydata()) for line in thin) == pytest.approx(0.03 / 2), "half the least"


def test_losses_are_drawn_where_there_are_no_accuracies() -> None:
    found = document(targets=[])
    for one in found["runs"]:
        for evaluation in one["summary"]["history"]:
            evaluation["accuracy"] = None
    figure = draw_curves(found, "samples")
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "test loss"
    assert errors(figure.axes[0])["locked"] == pytest.approx([0.175, 0.085, 0.045, 0.03])


# --- bars ----------------------------------------------------------------------------------------


def test_speeds_are_bars_with_the_ceiling_beside_them() -> None:
    figure = draw_speed(document())
    assert figure is not None
    (axes,) = figure.axes
    assert bars(axes) == [(0.0, 1125.0), (1125.0, 375.0), (0.0, 2250.0), (0.0, 2500.0), (0, 1600)]
    assert [text.get_text() for text in axes.texts] == [
        *("1,125 of 1,500 (75\N{NO-BREAK SPACE}%)", "2,250", "2,500", "1,600"),
    ]


def test_intervals_and_single_runs_are_drawn_on_the_bars() -> None:
    figure = draw_speed(document(rows=rows()[:1]))
    assert figure is not None
    (axes,) = figure.axes
    rings, interval = axes.collections
    if len(rings.get_offsets()) != 2:
        rings, interval = interval, rings
    assert [x for x, _ in rings.get_offsets()] == [1000.0, 1250.0]
    (segment,) = interval.get_segments()
    assert [x for x, _ in segment] == pytest.approx([1012.5, 1237.5])


def test_a_control_is_hatched_and_called_one() -> None:
    figure = draw_speed(document())
    assert figure is not None
    (axes,) = figure.axes
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, False, False, True, False]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("locked", "synthetic", "synthetic-zero (control)", "other"),
    ]


def test_times_have_a_bar_only_where_every_run_reached_the_target() -> None:
    figure = draw_times(document())
    assert figure is not None
    first, second = figure.axes
    assert (bars(first), bars(second)) == ([(0.0, 1.8)], [(0.0, 3.1)])
    assert [text.get_text() for text in first.texts] == [
        *("1.80 s", "reached by 1 of 2 runs", "reached by 0 of 2 runs", "reached by 2 of 2 runs"),
    ]
    assert first.get_title(loc="left") == "to 90 % test accuracy"


def test_targets_that_no_run_reached_have_no_panel() -> None:
    figure = draw_times(document(targets=[0.9, 0.99]))
    assert figure is not None
    assert len(figure.axes) == 1
    assert draw_times(document(targets=[0.99])) is None


def test_shares_are_stacked_to_the_whole() -> None:
    figure = draw_shares(document(rows=rows()[:1]))
    assert figure is not None
    found = bars(figure.axes[0])
    assert [width for _, width in found] == pytest.approx([0.4, 0.0, 0.0, 0.59, 0.01])
    assert [left for left, _ in found] == pytest.approx([0.0, 0.4, 0.4, 0.4, 0.99])
    assert [text.get_text() for text in figure.axes[0].texts] == ["40 %", "59 %"]


def test_the_parts_of_the_time_are_those_that_are_measured() -> None:
    assert tuple(SHARE_COLOURS) == breakdown.SHARES
    assert tuple(one.name for one in columns.SHARES) == breakdown.SHARES


# --- over the latency ----------------------------------------------------------------------------


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """(x, y) of each row's line, by its label."""
    found = {}
    for container in axes.containers:
        line = container.lines[0]
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_speed_is_a_line_a_row_over_the_milliseconds() -> None:
    figure = draw_speed_over_latency(at_latencies())
    assert figure is not None
    (axes,) = figure.axes
    found = lines_of(axes)
    assert found["locked"] == ([0.0, 10.0], pytest.approx([1125.0, 112.5]))
    assert found["synthetic-zero (control)"][1] == pytest.approx([2500.0, 2500.0])
    assert found["other"] == ([0.0, 10.0], [1600.0, 1600.0]), "what has no links is level"
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "10"]


def test_ceilings_are_dotted_in_the_colour_of_their_row() -> None:
    figure = draw_speed_over_latency(at_latencies())
    assert figure is not None
    (line,) = [one for one in figure.axes[0].lines if one.get_linestyle() == ":"]
    assert list(line.get_ydata()) == [1500.0, 1500.0]
    assert line.get_color() == row_colours(rows())["locked"]


def test_drains_are_left_out_of_speeds_only_if_all_rows_know_them() -> None:
    found = at_latencies()
    figure = draw_speed_over_latency(found)
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "samples per second", "other knows nothing of drains"
    for row in found["rows"]:
        row["stream_samples_per_s"] = estimate(7.0)
    figure = draw_speed_over_latency(found)
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "samples per second, fills and drains left out"
    assert lines_of(figure.axes[0])["locked"][1] == [7.0, 7.0]


def test_times_have_a_panel_for_each_target_that_all_runs_of_a_row_reached() -> None:
    found = at_latencies()
    empty = [{"accuracy": accuracy, "reached": 0, "time_s": None} for accuracy in (0.9, 0.96)]
    found["rows"] = [{"targets": empty, **row} for row in found["rows"]]
    figure = draw_times_over_latency(found)
    assert figure is not None
    assert [axes.get_title("left") for axes in figure.axes] == [
        *("to 90 % test accuracy", "to 96 % test accuracy"),
    ]
    assert lines_of(figure.axes[0]) == {"locked": ([0.0, 10.0], [1.8, 1.8])}


@pytest.mark.long
def test_at_several_latencies_every_plot_is_drawn_at_each() -> None:
    found = at_latencies()
    found["rows"] = [row for row in found["rows"] if row["name"] != "other"]
    plots = draw_plots(found)
    assert plots.keys() == {
        *(f"{name}-{at}" for name in ALL for at in ("0ms", "10ms")),
        *("speed_over_latency", "time_over_latency"),
    }
    assert any(text.startswith("112 of") for text in words(plots["samples_per_s-10ms"].svg))


def test_one_latency_has_nothing_over_it() -> None:
    assert draw_speed_over_latency(document()) is None
    assert draw_times_over_latency(document()) is None


# --- colours and words ---------------------------------------------------------------------------


def test_a_row_has_one_colour_in_all_plots(plots: dict[str, Plot]) -> None:
    for name, colour in row_colours(rows()).items():
        assert len(set(row_colours(rows()).values())) == len(CURVES)
        for plot in ("accuracy_over_time", "accuracy_over_samples", "samples_per_s"):
            assert colour in plots[plot].svg.decode(), (name, plot)


def test_colours_of_rows_stay_when_a_row_appears_twice() -> None:
    assert row_colours([*rows(), *rows()]) == row_colours(rows())


def test_a_name_with_dollars_and_brackets_is_drawn_as_it_is() -> None:
    name = r"$\frac$ <b>&"
    found = document(rows=[{**rows()[0], "name": name}], runs=[{**run("locked", 0), "name": name}])
    for plot in draw_plots(found).values():
        assert name in words(plot.svg)


@pytest.mark.long
def test_many_rows_still_find_room_and_colours() -> None:
    names = [f"row{k}" for k in range(9)]
    found = document(
        rows=[{**rows()[0], "name": name} for name in names],
        runs=[{**run("locked", seed), "name": name} for seed in (0, 1) for name in names],
    )
    assert draw_plots(found).keys() == ALL


# --- in a page -----------------------------------------------------------------------------------


def test_plots_in_a_page_share_no_ids_and_find_their_own(plots: dict[str, Plot]) -> None:
    made = {name: inline(name, plot.svg) for name, plot in plots.items()}
    ids = [one for text in made.values() for one in re.findall(r'\bid="([^"]*)"', text)]
    assert len(ids) == len(set(ids))
    for text in made.values():
        used = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
        assert used
        assert set(used) <= set(re.findall(r'\bid="([^"]*)"', text))


def test_plots_in_a_page_are_well_formed_and_take_nothing_from_elsewhere(
    plots: dict[str, Plot],
) -> None:
    for name, plot in plots.items():
        text = inline(name, plot.svg)
        assert ElementTree.fromstring(text).tag == "svg"
        assert not re.search(r"https?:|<style|<metadata|<script|<image|xlink", text)


def test_plots_in_a_page_follow_its_colours_and_width(plots: dict[str, Plot]) -> None:
    plot = plots["samples_per_s"]
    text = inline("speed", plot.svg)
    assert "#ffffff" in plot.svg.decode()
    for colour in ("#ffffff", "#1f2329", "#68707a", "#dfe3e8"):
        assert colour not in text
    for variable in ("var(--ink)", "var(--muted)", "var(--line)"):
        assert variable in text
    assert set(ElementTree.fromstring(text).attrib) == {"viewBox"}
