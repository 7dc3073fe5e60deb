"""Timelines: boxes where the ops were, and one clear line for what can't be drawn."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from processes import TINY, make_site
from tracing import assert_well_formed, ops, trace

from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.report.timeline import COLOURS, Box, Drawing, Line, Panel, Words, draw, png, svg
from asyncdni.report.traces import OP, OP_NAMES, WorkerTrace, read_trace

SVG = "{http://www.w3.org/2000/svg}"


def panel(*traces: WorkerTrace) -> Panel:
    return Panel("a & b", traces)


def boxes(drawing: Drawing) -> list[tuple[str, float, float]]:
    """(title, x, width) of each box with a title."""
    shapes = [shape for shape in drawing.shapes if isinstance(shape, Box) and shape.title]
    return [(shape.title, shape.x, shape.width) for shape in shapes]


def words(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Words)]


def test_an_op_is_as_wide_as_its_share_of_the_window() -> None:
    drawing = draw([panel(ops(("F", 0, 5.0, 5.5), ("B", 0, 5.5, 5.75)))], 1.0, at=0.0)
    (title_f, x_f, width_f), (title_b, x_b, width_b) = boxes(drawing)
    assert (title_f, title_b) == ("F0: 500000 µs", "B0: 250000 µs")
    assert width_f == pytest.approx(2 * width_b)
    assert x_b == pytest.approx(x_f + width_f)


def test_ops_outside_of_the_window_are_left_out_and_those_across_its_end_are_cut() -> None:
    found = boxes(draw([panel(ops(*(("F", n, n, n + 0.8) for n in range(5))))], 1.5, at=0.0))
    assert [title.split(":")[0] for title, _, _ in found] == ["F0", "F1"]
    assert found[1][2] == pytest.approx(found[0][2] * 0.5 / 0.8)


def test_the_sleep_of_a_slow_worker_is_no_work() -> None:
    slow = trace(
        "low",
        ("op", "F", "", 0, 5.0, 5.25),
        ("slow", "", "", None, 5.25, 6.0),
        ("op", "B", "", 0, 6.0, 6.0),
    )
    drawing = draw([panel(slow)], 1.0, at=0.0)
    assert boxes(drawing)[0][0] == "made slow: 750000 µs"
    assert "25%" in words(drawing) and "made slow" in words(drawing)


def test_the_window_begins_with_a_forward_of_the_first_stage() -> None:
    first = ops(
        *(
            (letter, n, n + i / 2, n + i / 2 + 0.5)
            for n in range(10)
            for i, letter in enumerate("FB")
        )
    )
    found = boxes(draw([panel(first)], 2.0, at=0.31))
    assert [title.split(":")[0] for title, _, _ in found] == ["F3", "B3", "F4", "B4"]


def test_the_share_of_time_in_ops_is_that_of_the_window_alone() -> None:
    low = ops(("F", 0, 0.0, 0.5), ("F", 1, 0.8, 5.0), worker="low")
    top = ops(("F", 0, 0.5, 0.6), worker="top")
    shown = words(draw([panel(low, top)], 1.0, at=0.0))
    assert [text for text in shown if text.endswith("%")] == ["70%", "10%"]


def test_waits_are_hatched_and_what_is_too_short_to_see_is_not_drawn() -> None:
    low = trace(
        "low",
        ("op", "F", "", 0, 0.0, 0.5),
        ("wait", "", "", None, 0.5, 0.75),
        ("wait", "", "", None, 0.75, 0.75001),
    )
    drawing = draw([panel(low)], 1.0, at=0.0)
    hatched = [s for s in drawing.shapes if isinstance(s, Box) and s.hatched and s.title]
    assert [box.title for box in hatched] == ["waited 250000 µs"]
    assert "waiting" in words(drawing)
    assert "waiting" not in words(draw([panel(ops(("F", 0, 0.0, 1.0)))], 1.0))


def test_messages_are_lines_from_row_to_row_if_asked_for() -> None:
    low = trace(
        "low",
        ("op", "F", "", 0, 0.0, 0.25),
        ("sent", "activation", "top", 0, 0.25, 0.3),
        ("received", "gradient", "top", 0, 1.0, 1.0),
    )
    top = trace(
        "top",
        ("received", "activation", "low", 0, 0.5, 0.5),
        ("sent", "gradient", "low", 0, 0.75, 0.8),
    )
    plain = draw([panel(low, top)], 1.0, at=0.0)
    drawing = draw([panel(low, top)], 1.0, at=0.0, messages=True)
    lines = [s for s in drawing.shapes if isinstance(s, Line) and s not in plain.shapes]
    down, up, *legend = lines
    assert down.y2 > down.y1 and up.y2 < up.y1  # rows further down are nearer to the loss
    width = up.x2 - down.x1
    assert (down.x2 - down.x1) / width == pytest.approx(1 / 3)
    assert (up.x2 - up.x1) / width == pytest.approx(1 / 3)
    assert [line.colour for line in legend] == [down.colour, up.colour]
    assert {"activation", "gradient"} <= set(words(drawing)) - set(words(plain))


def test_the_legend_names_what_is_shown_and_nothing_else() -> None:
    shown = words(draw([panel(ops(("P", 3, 0.0, 1.0), ("U", 4, 9.0, 10.0)))], 1.0, at=0.0))
    assert "generator predicts" in shown and "update" not in shown


def test_every_op_has_a_colour_and_a_name() -> None:
    assert COLOURS.keys() == OP_NAMES.keys()
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_nothing_leaves_the_sheet() -> None:
    every = [(letter, n, n * 1.0, n + 0.9) for n, letter in enumerate(OP_NAMES)]
    long = ops(*every, worker="identity_number_0..identity_number_30")
    drawing = draw([panel(long, ops(("F", 0, 0.0, 0.5)))] * 2, 9.0, at=0.0)
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            assert 0 <= shape.x <= shape.x + shape.width <= drawing.width
            assert 0 <= shape.y <= shape.y + shape.height <= drawing.height
        elif isinstance(shape, Words):
            assert 0 < shape.y <= drawing.height - 3
            length = 0.62 * shape.size * len(shape.text)
            left = {"start": 0.0, "middle": length / 2, "end": length}[shape.anchor]
            x = shape.x - left
            assert 0 <= x <= x + length <= drawing.width, shape
    assert "identity_n…" in words(drawing)


def test_a_run_without_ops_can_not_be_drawn() -> None:
    with pytest.raises(CheckpointError, match="holds no ops"):
        draw([panel(trace("low", ("wait", "", "", None, 0.0, 1.0)))], 1.0)


def test_names_are_escaped_in_svg() -> None:
    named = ops(("F", 0, 0.0, 1.0), worker="stage <1>")
    root = ElementTree.fromstring(svg(draw([panel(named)], 1.0)))
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert "a & b" in shown and "stage <1>" in shown


def test_svg_has_each_shape_of_the_drawing() -> None:
    drawing = draw([panel(ops(("F", 0, 0.0, 1.0)))], 1.0)
    root = ElementTree.fromstring(svg(drawing))
    assert root.attrib["viewBox"] == f"0 0 960 {drawing.height}"
    for kind, name in ((Box, "rect"), (Line, "line"), (Words, "text")):
        ground = kind is Box  # the sheet itself
        count = sum(isinstance(shape, kind) for shape in drawing.shapes)
        assert len(list(root.iter(f"{SVG}{name}"))) == count + ground


def test_png_is_a_picture_of_two_pixels_a_unit() -> None:
    pytest.importorskip("matplotlib")
    low = trace("low", ("op", "F", "", 0, 0.0, 0.5), ("wait", "", "", None, 0.5, 1.0))
    drawing = draw([panel(low)], 1.0)
    content = png(drawing)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1920, 2 * drawing.height)


def test_png_has_its_boxes_where_the_drawing_has_them() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    sheet = Drawing(40, 20, [Box(10, 5, 20, 10, "#ff0000"), Box(20, 5, 10, 10, "#0000ff")])
    pixels = imread(io.BytesIO(png(sheet)))[..., :3]
    assert pixels[20, 30].tolist() == [1, 0, 0]  # row, column
    assert pixels[20, 50].tolist() == [0, 0, 1]  # the later box is on top
    assert pixels[20, 10].tolist() == pixels[4, 30].tolist() == [1, 1, 1]


def test_png_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'asyncdni\[plot\]'"):
        png(Drawing(10, 10, []))


def test_the_commands_trace_and_draw_a_real_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    with make_site(tmp_path) as site:
        trained = site.call("train", "tiny.toml", "--trace", "--out", "run", "--quiet")
        assert trained.code == 0, trained.err
        drawn = site.call("timeline", "run", "--out", "t.svg", "--ms", "5", "--messages")
        assert drawn.code == 0, drawn.err
        site.call("timeline", "run", "--out", "u.svg", "--ms", "-1").refused("--ms")
        site.call("timeline", "run", "--out", "u.gif").refused("u.gif", ".svg or .png")
    assert not (tmp_path / "u.svg").exists()
    assert ElementTree.parse(tmp_path / "t.svg").getroot().tag == f"{SVG}svg"
    document = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert_well_formed(document, ["hidden", "top"])
    assert document["otherData"]["missing"] == {}
    # An epoch is 4 batches; a decoupled hidden stage predicts, learns, updates and fits on each.
    hidden = read_trace(tmp_path / "run", "hidden")
    found = [(hidden.names[e[1]], e[3]) for e in hidden.on(OP).tolist()]
    assert re.fullmatch("[RFPBUTE]+", "".join(letter for letter, _ in found))
    assert [batch for letter, batch in found if letter == "U"] == list(range(8))
    arrows = [e["name"] for e in document["traceEvents"] if e["ph"] == "s"]
    assert arrows == ["activation"] * 8 + ["gradient"] * 8


def test_an_animation_draws_a_curtain_away_from_the_rows_of_each_run() -> None:
    panels = [panel(ops(("F", 0, 0.0, 0.5))), panel(ops(("B", 0, 0.0, 0.5)))]
    moving, still = (draw(panels, 1.0, at=0.0, animate_s=s) for s in (8.0, 0.0))
    animated = ElementTree.fromstring(svg(moving))
    widths = [one for one in animated.iter(f"{SVG}animate") if one.get("attributeName") == "width"]
    assert [one.get("dur") for one in widths] == ["8s", "8s"]
    assert all(one.get("values", "").endswith(";0;0") for one in widths)
    assert "animate" not in svg(still)
    pytest.importorskip("matplotlib")
    assert png(moving) == png(still)
