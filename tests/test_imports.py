"""Where modules are looked for, and what may not happen meanwhile."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import asyncdni
from asyncdni import imports
from asyncdni.errors import ConfigError


def test_folders_that_are_there_by_chance_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current one, under either name, and the one of the script; not what was added."""
    here, scripts, added = (tmp_path / name for name in ("here", "scripts", "added"))
    for folder in (here, scripts, added):
        folder.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(scripts / "run.py"), raising=False)
    chance = ["", str(here), str(tmp_path / "link"), str(scripts)]
    monkeypatch.setattr(sys, "path", [*chance, str(added), "below", Path("/no/text")])
    found = json.loads(imports.path_of_this_process())
    assert found["own"] == [str(here), *chance[1:]]
    assert found["path"] == [*found["own"], str(added), str(here / "below")]


def test_a_current_folder_that_is_gone_is_nowhere_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(sys, "path", ["", "/added"])
    gone.rmdir()
    assert json.loads(imports.path_of_this_process()) == {"path": ["/added"], "own": []}
    imports.look_in_current_folder()
    assert sys.path == ["", "/added"]


def test_code_that_needs_pytorch_where_there_is_none_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_torch.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'asyncdni\[torch\]'$") as caught:
        imports.import_named("needs_torch:Net", "model", allow_import=True)
    assert "\n" not in str(caught.value)


def test_the_current_folder_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/added"])
    for _ in range(2):
        imports.look_in_current_folder()
        assert sys.path == ["/added", str(tmp_path)]


def test_nothing_trains_while_a_layer_is_imported_or_in_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        imports.importing("mine"),
        pytest.raises(ConfigError, match=r"module mine trains while it is imported .* under `if"),
    ):
        asyncdni.train("no.toml")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with (
        imports.being_worker("top"),
        pytest.raises(ConfigError, match=r"inside the worker of stage top; .* under `if"),
    ):
        asyncdni.train("no.toml")
    imports.check_may_train()
