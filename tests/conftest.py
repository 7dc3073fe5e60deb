"""What all tests share: code that is compiled once, and one thread for a process' BLAS."""

from __future__ import annotations

import compileall
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy  # noqa: F401 - limits are set on the libraries that are loaded
import pytest
from threadpoolctl import threadpool_limits

PACKAGE = Path(__file__).parents[1] / "asyncdni"


def pytest_configure(config: pytest.Config) -> None:
    """Write the bytecode of all modules where PYTHONDONTWRITEBYTECODE keeps imports from it.

    Tests start hundreds of processes, and without bytecode each of them compiles the package
    again, for longer than all else that it does. For the same reason none of them imports numba.
    """
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    if not hasattr(config, "workerinput"):  # the process that the others of `-n` are started by
        compileall.compile_dir(PACKAGE, quiet=1)
    # Rewriting the asserts of all files takes longer than the rest of collecting them: keep it.
    sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector, and have it pass over what was collected.

    Rewriting asserts makes millions of objects of which few are garbage: looking through them
    again and again would take a third of the time. Test files and cases stay to the end.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute in the thread that calls it.

    With a thread for each core in each process of `-n`, threads spin while they wait for others
    that have no core, and a second of training takes ten.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
