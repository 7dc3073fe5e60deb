"""What all tests share: a package that is compiled once, and one thread for a process' BLAS."""

from __future__ import annotations

import compileall
import os
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


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute in the thread that calls it.

    With a thread for each core in each process of `-n`, threads spin while they wait for others
    that have no core, and a second of training takes ten.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
