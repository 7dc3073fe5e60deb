"""What a process computes with, so that two hosts can be compared: versions, and the source of the
user's code.

Source is compared by its digest: of the module's file, or, for a module of a package, of all Python
files in the folder that the module lies in. Nothing is imported for it: what has not been imported
is not used. Modules that these in turn import from other folders are not looked at.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from asyncdni import __version__

__all__ = ["source_digests", "versions"]

#: How an experiment names code: "package.module:name".
_CODE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and PyTorch by name; without PyTorch where it is
    not installed. It is not imported."""
    found = {"Python": platform.python_version(), "asyncdni": __version__}
    if find_spec("torch") is not None:
        from importlib import metadata  # takes a while to load

        with suppress(metadata.PackageNotFoundError):
            found["torch"] = metadata.version("torch")
    return found


def source_digests(experiment: object) -> dict[str, str]:
    """Return the SHA-256 of the source of each imported module that a text "module:name" anywhere
    in the tables `experiment` names, by the module's name. Modules without Python source are left
    out."""
    named = {found[1] for text in _texts(experiment) if (found := _CODE.fullmatch(text))}
    files = {name: _source(name) for name in sorted(named)}
    return {name: _digest(paths) for name, paths in files.items() if paths}


def _texts(value: object) -> Iterator[str]:
    """All texts in tables and lists, keys included: a layer's name may be one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (*_texts(key), *_texts(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _source(name: str) -> list[Path]:
    """The Python files that a module is compared by; none where it has not been imported."""
    module = sys.modules.get(name)
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py":
        return []
    return sorted(path.parent.glob("*.py")) if getattr(module, "__package__", "") else [path]


def _digest(paths: list[Path]) -> str:
    whole = sha256()
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError:  # it has been removed since it was imported
            continue
        whole.update(f"{path.name} {len(text)}\n".encode())
        whole.update(text)
    return whole.hexdigest()
