"""Where Python looks for modules, and a guard against training while the user's modules are
imported.

Until it imports the user's layers, a process of ours finds no modules in the current folder or in a
script's folder, where somebody's `token.py` may lie. From then on a worker looks exactly where its
parent does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from asyncdni.errors import ConfigError

__all__ = [
    "PATH_VARIABLE",
    "being_worker",
    "check_may_train",
    "current_folder",
    "importing",
    "leave_out_current_folder",
    "look_in_current_folder",
    "look_where_parent_does",
    "path_of_this_process",
]

#: Environment variable with what `path_of_this_process` returns; `launch.entry` reads it first.
PATH_VARIABLE = "ASYNCDNI_SYS_PATH"
#: Environment variable with a worker's stage, for its process and those that it starts.
_WORKER_VARIABLE = "ASYNCDNI_WORKER"

#: The module that is being imported for a layer; empty: none.
_importing: ContextVar[str] = ContextVar("importing", default="")


def path_of_this_process() -> str:
    """Return, as JSON, `path`, where this process looks for modules, and `own`, the folders among
    them that are there only because it, or its script, was started in them."""
    entries = [entry or current_folder() for entry in sys.path if _is_text(entry)]
    path = [os.path.abspath(entry) for entry in entries if entry]
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    starting = {current_folder(), os.path.dirname(os.path.realpath(script)) if script else ""} - {
        ""
    }
    own = [entry for entry in path if os.path.realpath(entry) in starting]
    return json.dumps({"path": path, "own": own})


def leave_out_current_folder() -> None:
    """Remove the current folder, which `python -m` puts first, from the search path."""
    if not sys.flags.safe_path and sys.path[0] == current_folder():
        del sys.path[0]


def look_in_current_folder() -> None:
    """Append the current folder to the search path, so that its files can't replace modules of
    Python or of packages that we need."""
    here = current_folder()
    if here and here not in sys.path:
        sys.path.append(here)


def look_where_parent_does() -> None:
    """Take over the parent's search path, in a worker that has imported all it needs itself."""
    text = os.environ.get(PATH_VARIABLE)
    if text is not None:
        sys.path[:] = json.loads(text)["path"]


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Forbid training while `module` is imported for a layer."""
    token = _importing.set(module)
    try:
        yield
    finally:
        _importing.reset(token)


@contextmanager
def being_worker(stage: str) -> Iterator[None]:
    """Forbid training in this process and those it starts while it is the worker of a stage."""
    os.environ[_WORKER_VARIABLE] = stage
    try:
        yield
    finally:
        del os.environ[_WORKER_VARIABLE]


def check_may_train() -> None:
    """Raise `ConfigError` if each worker of a run would start a run of its own, without end."""
    module, stage = _importing.get(), os.environ.get(_WORKER_VARIABLE)
    if module:
        where = f"module {module} trains while it is imported for its layers"
    elif stage is not None:
        where = f"training was begun inside the worker of stage {stage}"
    else:
        return
    raise ConfigError(
        f"{where}; every worker imports it too, so put what trains under "
        '`if __name__ == "__main__":`, or into another file'
    )


def current_folder() -> str:
    """Return the current folder; empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)
