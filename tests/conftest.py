"""Compile the package once, before any test: its commands and workers need not do it each time."""

from __future__ import annotations

import compileall
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "asyncdni"


def pytest_configure(config: pytest.Config) -> None:
    """Write the bytecode of all modules where PYTHONDONTWRITEBYTECODE keeps imports from it.

    Tests start hundreds of processes, and without bytecode each of them compiles the package
    again, for longer than all else that it does.
    """
    if not hasattr(config, "workerinput"):  # the process that the others of `-n` are started by
        compileall.compile_dir(PACKAGE, quiet=1)
