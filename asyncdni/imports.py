"""Where Python looks for modules, and a guard against training while the user's modules are
imported.

Until it imports the user's layers, a process of ours finds no modules in the current folder or in a
script's folder, where somebody's `token.py` may lie. From then on a worker looks exactly where its
parent does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from asyncdni import handover
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.handover import GIVEN

__all__ = [
    "PATH_VARIABLE",
    "Allowed",
    "allowing",
    "as_allowed",
    "being_worker",
    "check_may_train",
    "current_folder",
    "import_flags",
    "import_named",
    "importing",
    "is_allowed",
    "leave_out_current_folder",
    "look_in_current_folder",
    "look_where_parent_does",
    "path_of_this_process",
    "whose",
]

#: Environment variable with what `path_of_this_process` returns; `launch.entry` reads it first.
PATH_VARIABLE = "ASYNCDNI_SYS_PATH"
#: Environment variable with a worker's stage, for its process and those that it starts.
_WORKER_VARIABLE = "ASYNCDNI_WORKER"

#: Which of the user's code may be imported: any, none, or that of modules whose names begin with
#: one of these ("mymodels", "torchvision.models").
Allowed = bool | tuple[str, ...]

#: The module that is being imported for a layer; empty: none.
_importing: ContextVar[str] = ContextVar("importing", default="")
#: Whether data sets may import the user's code.
_allowed: ContextVar[Allowed] = ContextVar("allowed", default=False)


def path_of_this_process() -> str:
    """Return, as JSON, `path`, where this process looks for modules, and `own`, the folders among
    them that are there only because it, or its script, was started in them."""
    entries = [entry or current_folder() for entry in sys.path if _is_text(entry)]
    path = [_absolute(entry) for entry in entries if entry]
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
def allowing(allowed: Allowed) -> Iterator[None]:
    """Within this context, data sets may import the user's code, or may not."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def is_allowed() -> Allowed:
    """Whether the user's code may be imported: see `allowing`."""
    return _allowed.get()


def as_allowed(given: bool | str | Iterable[str]) -> Allowed:
    """`given` as people write it: true or false, one beginning of names, or several."""
    if isinstance(given, bool):
        return given
    return (given,) if isinstance(given, str) else tuple(given)


def import_flags(allowed: Allowed) -> list[str]:
    """The words of a command line that allow the same."""
    if isinstance(allowed, bool):
        return ["--allow-import"] if allowed else []
    return [word for prefix in allowed for word in ("--allow-import", prefix)]


def _check_within(module: str, named: str, allowed: Allowed) -> None:
    """Raises `ConfigError` for code of a module that is not allowed; `named` begins the message."""
    if isinstance(allowed, bool) or any(
        module == prefix or module.startswith(f"{prefix}.") for prefix in allowed
    ):
        return
    raise ConfigError(
        f"{named} is code of the module {module}, but --allow-import allows "
        f"{', '.join(allowed)} alone"
    )


def _home(found: object, module: ModuleType) -> str:
    """The name of the module that an object is really of: `logging.os.system` is not of logging."""
    if isinstance(found, ModuleType):
        return found.__name__
    return str(getattr(found, "__module__", None) or module.__name__)


def import_named(name: str, what: str, *, allow_import: Allowed) -> object:
    """The object that `package.module:name` means, or what has been handed over as `given:name`.

    `what` says for messages what it is used as: "layer", "model". Raises `ConfigError` where
    importing is not allowed, fails, or finds no such object.
    """
    module_name, _, attribute = name.partition(":")
    if module_name == GIVEN:
        look_where_parent_does()  # classes that it is made of are imported by name
        return handover.received(attribute)
    if not attribute:
        raise ConfigError(f'{what} {name!r}: expected "package.module:name"')
    if not allow_import:
        raise ConfigError(
            f"{what} {name!r} is code of yours: the worker imports it only if it is started with "
            "--allow-import"
        )
    if module_name == "__main__":
        raise ConfigError(
            f"{what} {name!r}: a worker is another program than yours; put it into a file FILE.py "
            f'of its own, and name it as "FILE:{attribute}"'
        )
    _check_within(module_name, f"{what} {name!r}", allow_import)
    try:
        with importing(module_name):
            module = importlib.import_module(module_name)
    except Exception as error:  # the user's code may fail in any way
        ours = isinstance(error, AsyncDNIError)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        cure = "; pip install 'asyncdni[torch]'" if getattr(error, "name", "") == "torch" else ""
        raise ConfigError(f"{what} {name!r}: can't import {module_name!r}: {text}{cure}") from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{what} {name!r}: module {module_name} has no {attribute!r}{whose(module)}"
            )
        found = getattr(found, part)
        _check_within(_home(found, module), f"{what} {name!r}", allow_import)
    return found


def whose(module: ModuleType) -> str:
    """The end of a message that says which file a module is: there may be another of its name."""
    file = getattr(module, "__file__", None) or "part of Python"
    own = module.__name__.partition(".")[0] in sys.stdlib_module_names
    return f"; it is {file}" + (", a module of Python's: give yours another name" if own else "")


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


def _absolute(entry: str) -> str:
    """Return an entry of the search path in a form that holds in any folder. One that stands for a
    package installed in place is no path, but the mark of a finder of setuptools."""
    return entry if entry.startswith("__editable__.") else os.path.abspath(entry)


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)
