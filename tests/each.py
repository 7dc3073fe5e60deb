"""Tests that say one thing of many values, as one case: what fails is noted with its value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["case", "each"]

Test = Callable[..., None]


@contextmanager
def case(**values: Any) -> Iterator[None]:
    """Note on whatever is raised within that it was raised for these values."""
    try:
        yield
    except BaseException as error:
        error.add_note("with " + ", ".join(f"{name} = {v!r:.500}" for name, v in values.items()))
        raise


def each(names: str, values: Iterable[Any]) -> Callable[[Test], Test]:
    """Call a test with each of `values` in turn, where `pytest.mark.parametrize` makes each of
    them a case of its own.

    `names` are the arguments that a value gives, separated by commas. The first failure ends the
    test, with a note of the arguments that it was called with. Fixtures are made once for all
    values, but `tmp_path`, of which each value gets an empty folder of its own.
    """
    own_names, own_values = [name.strip() for name in names.split(",")], list(values)
    assert own_values, f"no values of {names} to test with"

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def test_each(**fixtures: Any) -> None:
            for number, value in enumerate(own_values):
                given = dict(fixtures)
                if "tmp_path" in given:
                    given["tmp_path"] = given["tmp_path"] / str(number)
                    given["tmp_path"].mkdir()
                own = dict(zip(own_names, value if len(own_names) > 1 else [value], strict=True))
                with case(**own):
                    test(**given, **own)

        signature = inspect.signature(test)
        kept = [value for name, value in signature.parameters.items() if name not in own_names]
        test_each.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return test_each

    return decorate
