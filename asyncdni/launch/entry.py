"""The first file that a worker process of this machine runs; it is not imported as a module.

`python -m` would search the current folder first, for every module. This file sets the parent's
search path instead, without folders that are in it only because the parent was started there, and
loads the parent's own copy of the package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys

__all__ = ["main"]


def main() -> None:
    """Run `asyncdni` with this process's arguments; raises `SystemExit` at its end."""
    parents = json.loads(os.environ.get("ASYNCDNI_SYS_PATH", "{}"))
    if parents:
        left_out = set(parents["own"]) - set(sys.path)  # keep folders that PYTHONPATH names too
        sys.path[:] = [entry for entry in parents["path"] if entry not in left_out]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = importlib.util.spec_from_file_location(
        "asyncdni", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["asyncdni"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if sys.argv[1:2] == ["--fork"]:
        from asyncdni.launch.forkserver import serve_forks

        serve_forks()  # returns in each process that it forks
    runpy.run_module("asyncdni", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
