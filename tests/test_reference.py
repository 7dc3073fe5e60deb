"""`asyncdni explain` and docs/reference.md tell what the code has, all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdni import reference
from asyncdni.__main__ import main
from asyncdni.nn.layers import LAYERS

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == reference.document(), "stale: write it anew with `just reference`"


def test_every_option_has_a_reason() -> None:
    bare = [
        f"{entry.name}.{option.name}"
        for entry in reference.entries().values()
        for option in entry.options
        if not option.reason
    ]
    assert not bare, "put a comment beside each of them"


def test_comments_are_read_from_above_and_from_the_end_of_the_line() -> None:
    options = {option.name: option for option in reference.entries()["run"].options}
    assert options["evaluate_every"].unit == "epochs"
    assert options["evaluate_every"].default == "1.0"
    assert options["split"].default == "not given"
    assert options["split"].unit == "" and options["split"].reason.startswith("[2, 1, 1]: how many")
    assert options["init_stages"].reason.endswith("not given: all do")


def test_every_layer_takes_the_options_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "layer"]) == 0
    shown = capsys.readouterr().out
    assert all(f"layer.{name} " in shown for name in LAYERS)
    dense = [option.name for option in reference.entries()["layer.dense"].options]
    assert dense == ["width", "bias", "init"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("generator.error", "head_learning_rate: a number above 0; default 0.01"),
        ("run.split", "run.split: a list, each an integer of at least 1; not given by default"),
        ("schedule.fit_every", "in batches"),
        ("init", "he_normal"),
        ("", "decay.cosine"),
    ],
)
def test_a_name_is_explained(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name] if name else ["explain"]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "near"), [("layer.dens", "layer.dense"), ("fit_evry", "schedule.synthetic.fit_every")]
)
def test_an_unknown_name_gets_the_nearest(
    name: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", name]) == 2
    said = capsys.readouterr().err
    assert near in said and said.count("\n") == 1
