"""Where data files are kept: a given folder, or else $ASYNCDNI_DATA, then the user's cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cache_folder", "data_folders", "listed"]


def data_folders(given: str, name: str) -> list[Path]:
    """The folders to look in for data set `name`, in order.

    These are `given` alone or, where it is empty, $ASYNCDNI_DATA and the cache folder; and of each
    also its subfolder `name`.
    """
    if given:
        bases = [Path(given)]
    else:
        named = os.environ.get("ASYNCDNI_DATA", "")
        cache = cache_folder()
        bases = [*([Path(named)] if named else []), *([cache] if cache else [])]
    return [folder for base in bases for folder in (base, base / name)]


def listed(folders: Sequence[Path]) -> str:
    """In an error message, where has been looked."""
    return ", ".join(map(str, folders)) or "$ASYNCDNI_DATA, which is not set (nor is there a home)"


def cache_folder() -> Path | None:
    """The user's folder for files that can be fetched again, `asyncdni` in it; None where the user
    has no home, as in a container with a user id that has no name."""
    try:
        return _caches() / "asyncdni"
    except RuntimeError:
        return None


def _caches() -> Path:
    """Raises `RuntimeError` without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    if given and Path(given).is_absolute():
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"
