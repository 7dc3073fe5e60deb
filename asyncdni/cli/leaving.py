"""The end of `asyncdni train`: what the network has learnt, to look at, in the run's folder."""

from __future__ import annotations

from asyncdni.errors import AsyncDNIError
from asyncdni.run import Result

__all__ = ["leave"]


def leave(run: Result, *, allow_import: bool, quiet: bool) -> None:
    """Write pictures and samples, and say so; the run is over and can't fail by them any more."""
    from asyncdni.metrics import plots  # late: no run needs them before its end
    from asyncdni.sampling.album import has_something_to_show, leave_samples

    if not has_something_to_show(run):
        return
    try:
        files = leave_samples(run, allow_import=allow_import)
    except Exception as error:  # drawing needs fonts, caches and more of the user's machine
        name = "" if isinstance(error, AsyncDNIError) else f"{type(error).__name__}: "
        said = f"No pictures of the run: {name}{' | '.join(str(error).splitlines())}"
    else:
        missing = [] if plots.available() else [plots.MISSING_EXTRA]
        names = ", ".join(path.name for path in files)
        said = "\n".join([*([f"To look at: {names}"] if files else []), *missing])
    if not quiet:
        print(said)
