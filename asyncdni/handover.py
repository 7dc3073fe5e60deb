"""Objects that a process hands to the workers it starts: a model, data sets, a loss.

```
train(model, …) ──► anonymous file ──► inherited by each worker ──► received("model")
```

The file has no name and never leaves this machine, so what is in it comes from the very process
that started the worker; nothing that arrives over a socket is ever unpickled. A worker that is
started again reads the file again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from asyncdni.errors import ConfigError

__all__ = ["GIVEN", "VARIABLE", "Handover", "keep", "received"]

#: What stands in place of a module's name where an object has been handed over: "given:model".
GIVEN = "given"
#: Environment variable with the number of the inherited file.
VARIABLE = "ASYNCDNI_HANDOVER"

_objects: dict[str, Any] = {}


class Handover:
    """The objects that this process hands to its workers, in a file that they inherit."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Raises `ConfigError` for objects that can't be sent to another process."""
        try:
            import cloudpickle
        except ImportError:
            raise ConfigError(
                "objects of Python's are handed to workers by cloudpickle, which is not installed: "
                "pip install 'asyncdni[torch]'"
            ) from None
        try:
            text = cloudpickle.dumps(dict(objects))
        except Exception as error:  # an object may refuse in any way
            raise ConfigError(
                f"{', '.join(objects)} can't be handed to worker processes: "
                f"{type(error).__name__}: {error}; leave out open files, locks and generators, or "
                "name a function that makes it"
            ) from error
        self._file: BinaryIO = _anonymous_file()
        self._file.write(text)
        self._file.flush()
        _objects.update(objects)

    @property
    def descriptor(self) -> int:
        """The number of the file, which workers inherit."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file. This process keeps the objects, to use the network once it is trained."""
        self._file.close()


def keep(name: str, value: object) -> None:
    """Keep an object for this process alone."""
    _objects[name] = value


def received(name: str) -> Any:
    """The object that was handed over as `name`. Raises `ConfigError` in a process that has been
    handed none."""
    if not _objects and VARIABLE in os.environ:
        _objects.update(_read(int(os.environ[VARIABLE])))
    if name not in _objects:
        raise ConfigError(
            f"the {name} of this run was given as an object in Python, which this process does not "
            "have: use the run from the program that trained it, or train with "
            'build = "module:callable"'
        )
    return _objects[name]


def _read(descriptor: int) -> dict[str, Any]:
    import pickle

    size = os.fstat(descriptor).st_size
    found: dict[str, Any] = pickle.loads(_read_all(descriptor, size))
    return found


def _read_all(descriptor: int, size: int) -> bytes:
    """All of the file. Workers share its position, so each reads by place."""
    parts, at = [], 0
    while at < size:
        parts.append(os.pread(descriptor, size - at, at))
        at += len(parts[-1])
    return b"".join(parts)


def _anonymous_file() -> BinaryIO:
    create = getattr(os, "memfd_create", None)
    if create is not None:  # Linux: in memory alone
        return open(create("asyncdni"), "w+b")
    return tempfile.TemporaryFile()
