"""What a worker process of this machine runs first: a file, not a module of the package.

`python -m` would look for every module in the current folder before anywhere else, and for the
package where Python alone would look. Here it looks where the parent does, but in no folder that is
there only because the parent was started in it; and the package is the parent's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys

__all__ = ["main"]


def main() -> None:
    """Be `asyncdni` with the arguments of this process; raises `SystemExit` at its end."""
    parents = json.loads(os.environ.get("ASYNCDNI_SYS_PATH", "{}"))
    if parents:
        left_out = set(parents["own"]) - set(sys.path)  # PYTHONPATH may name the same folder
        sys.path[:] = [entry for entry in parents["path"] if entry not in left_out]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = importlib.util.spec_from_file_location(
        "asyncdni", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["asyncdni"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runpy.run_module("asyncdni", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
