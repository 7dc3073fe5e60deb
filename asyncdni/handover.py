"""Objects that a process hands to the workers it starts: a model, data sets.

```
train(model, …) ──► anonymous file ──► inherited by each worker ──► received("model-1")
```

The file has no name and never leaves this machine, so what is in it comes from the very process
that started the worker; nothing that arrives over a socket is ever unpickled. A worker that is
started again reads the file again.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

from asyncdni.errors import ConfigError

__all__ = ["GIVEN", "VARIABLE", "Handover", "is_here", "received"]

#: What stands in place of a module's name where an object has been handed over: "given:model-1".
GIVEN = "given"
#: Environment variable with the number of the inherited file.
VARIABLE = "ASYNCDNI_HANDOVER"

_numbers = itertools.count(1)
#: The handovers of this process, by the names of their objects.
_handovers: WeakValueDictionary[str, Handover] = WeakValueDictionary()
#: What this process has been handed.
_inherited: dict[str, Any] = {}


class Handover:
    """The objects that this process hands to its workers, in a file that they inherit.

    This process finds them too, by the same names, for as long as it keeps the handover.
    """

    def __init__(self, objects: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """`own` are objects for this process alone. Raises `ConfigError` for objects that can't be
        sent to another process."""
        self._number = next(_numbers)
        named = {self._named(name): value for name, value in objects.items()}
        text = _pickled(named, of=", ".join(objects))
        self.objects = named | {self._named(name): value for name, value in own.items()}
        self._file: BinaryIO = _anonymous_file()
        self._file.write(text)
        self._file.flush()
        _handovers.update(dict.fromkeys(self.objects, self))

    def name_of(self, name: str) -> str:
        """How an experiment names the object: "given:model-1" for `name` "model"."""
        return f"{GIVEN}:{self._named(name)}"

    def _named(self, name: str) -> str:
        """Numbered, so that the objects of two runs of one process are told apart."""
        return f"{name}-{self._number}"

    @property
    def descriptor(self) -> int:
        """The number of the file, which workers inherit."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file. This process keeps the objects, to use the network once it is trained."""
        self._file.close()


def is_here(name: str) -> bool:
    """Whether this process has been handed the object `name`, or keeps it."""
    return name in _handovers or name in _inherited


def received(name: str) -> Any:
    """The object that was handed over as `name`, such as "model-1". Raises `ConfigError` in a
    process that has been handed none, or does not keep it any more."""
    if name in _handovers:
        return _handovers[name].objects[name]
    if not _inherited and VARIABLE in os.environ:
        _inherited.update(_read(int(os.environ[VARIABLE])))
    if name not in _inherited:
        raise ConfigError(
            f"the {name.partition('-')[0]} of this run was given as an object in Python, which "
            "this process does not have: use the run from the program that trained it, or train "
            'with build = "module:callable"'
        )
    return _inherited[name]


def _pickled(objects: Mapping[str, Any], *, of: str) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise ConfigError(
            "objects of Python's are handed to workers by cloudpickle, which is not installed: "
            "pip install cloudpickle"
        ) from None
    try:
        text: bytes = cloudpickle.dumps(dict(objects))
    except Exception as error:  # an object may refuse in any way
        raise ConfigError(
            f"{of} can't be handed to worker processes: "
            f"{type(error).__name__}: {error}; leave out open files, locks and generators, or "
            "name a function that makes it"
        ) from error
    return text


def _read(descriptor: int) -> dict[str, Any]:
    import pickle

    size = os.fstat(descriptor).st_size
    try:
        found: dict[str, Any] = pickle.loads(_read_all(descriptor, size))
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"the objects that were given to train can't be made in a worker: "
            f"{type(error).__name__}: {error}"
        ) from error
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
