"""The machine on which measurements are taken."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from asyncdni import __version__

__all__ = ["cores", "describe_machine", "usable"]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(usable())


def usable() -> list[int]:
    """Return the numbers of the CPU cores that this process may use, rising."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return list(range(os.cpu_count() or 1))


def describe_machine() -> dict[str, Any]:
    """Return cores, processor and versions, fit for JSON. `blas` has one entry for each library in
    use."""
    return {
        "cores": cores(),
        "cpu": _cpu_model() or platform.processor() or None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture")}
            for pool in threadpool_info()
            if pool.get("user_api") == "blas"
        ],
        "asyncdni": __version__,
    }


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    models = (line.partition(":") for line in lines if line.startswith("model name"))
    return next((value.strip() for _, _, value in models), None)
