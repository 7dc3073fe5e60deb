"""Where data files are kept: a given folder, or else $ASYNCDNI_DATA, then the user's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_folder", "data_folders"]


def data_folders(given: str, name: str) -> list[Path]:
    """The folders to look in for data set `name`, in order.

    These are `given` alone or, where it is empty, $ASYNCDNI_DATA and the cache folder; and of each
    also its subfolder `name`.
    """
    if given:
        bases = [Path(given)]
    else:
        named = os.environ.get("ASYNCDNI_DATA", "")
        bases = [*([Path(named)] if named else []), cache_folder()]
    return [folder for base in bases for folder in (base, base / name)]


def cache_folder() -> Path:
    """The user's folder for files that can be fetched again, `asyncdni` in it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    if given and Path(given).is_absolute():
        base = Path(given)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "asyncdni"
