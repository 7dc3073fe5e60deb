"""Which code may be imported: none, all, or that of some modules."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from asyncdni.cli.common import add_allow_import
from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed, as_allowed, import_flags, import_named
from asyncdni.launch.local import typed_command, worker_command


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ([], False),
        (["--allow-import"], True),
        (["--allow-import", "mymodels"], ("mymodels",)),
        (["--allow-import", "mymodels", "--allow-import", "torch.nn"], ("mymodels", "torch.nn")),
        (["--allow-import", "mymodels", "--allow-import"], True),
        (["--allow-import", "--allow-import", "mymodels"], True),
    ],
)
def test_the_flag_alone_allows_all_and_with_names_those(line: list[str], allowed: Allowed) -> None:
    parser = argparse.ArgumentParser()
    add_allow_import(parser, help="import code")
    assert parser.parse_args(line).allow_import == allowed
    # Workers get the same words.
    assert parser.parse_args(import_flags(allowed)).allow_import == allowed
    flags = import_flags(allowed)
    command = worker_command("top", "tcp://a:1", allow_import=allowed)
    assert command[len(command) - len(flags) :] == flags
    assert typed_command("top", "tcp://a:1", allow_import=allowed).endswith(" ".join(flags))


def test_in_python_it_is_a_name_or_several() -> None:
    assert as_allowed("mymodels") == ("mymodels",)
    assert as_allowed(["a", "b.c"]) == ("a", "b.c")
    assert (as_allowed(True), as_allowed(False)) == (True, False)


@pytest.mark.parametrize(
    "name", ["json:JSONDecoder", "json.decoder:JSONDecoder", "collections:OrderedDict.fromkeys"]
)
def test_what_is_inside_is_found(name: str) -> None:
    found: Any = import_named(name, "layer", allow_import=("json", "collections"))
    assert callable(found)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("os:system", "os"),
        ("logging:os.system", "os"),
        ("logging:os", "os"),
        ("logginghandlers:x", "logginghandlers"),
        ("logging:Template", "string"),
    ],
)
def test_what_is_of_another_module_is_refused(name: str, module: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_named(name, "layer", allow_import=("logging",))
    assert str(caught.value) == (
        f"layer {name!r} is code of the module {module}, but --allow-import allows logging alone"
    )


def test_nothing_outside_is_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="code of the module outside"):
        import_named("outside:x", "model", allow_import=("inside",))
    with pytest.raises(ConfigError, match="only if it is started with --allow-import"):
        import_named("outside:x", "model", allow_import=())
