"""Many small cases of one test, in a loop: a test each would cost more than it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Test = Callable[..., None]


def each(names: str | Sequence[str], cases: Iterable[Any]) -> Callable[[Test], Test]:
    """Like `pytest.mark.parametrize`, for tests without fixtures: all cases are one test.

    What fails says by which case."""
    keys = [names] if isinstance(names, str) else list(names)
    rows = [(case,) if isinstance(names, str) else tuple(case) for case in cases]
    assert rows, "no cases"

    def decorate(test: Test) -> Test:
        def looped(**outer: Any) -> None:
            for row in rows:
                values = dict(zip(keys, row, strict=True))
                try:
                    test(**outer, **values)
                except BaseException as error:
                    error.add_note(f"in the case {values!r}")
                    raise

        looped.__name__, looped.__doc__ = test.__name__, test.__doc__
        return looped

    return decorate
