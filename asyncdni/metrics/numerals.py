"""Numbers of a comparison's document as text: what is null or missing there is a dash here."""

from __future__ import annotations

from typing import Any

from asyncdni.metrics.comparison import Estimate

__all__ = ["MISSING", "as_estimate", "fixed", "interval", "percent"]

MISSING = "\N{EN DASH}"


def as_estimate(value: Any) -> Estimate | None:
    """Of an `Estimate` that went through JSON, or of a bare number: one without an interval."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return Estimate(float(value), None, None, 1)
    return Estimate(value["mean"], value.get("low"), value.get("high"), value.get("n", 1))


def fixed(value: Any, digits: int = 0, unit: str = "", scale: float = 1.0) -> str:
    """`29,310`, `97.25 %`; bare words stay what they are."""
    if value is None:
        return MISSING
    if not isinstance(value, int | float):
        return str(value)
    return f"{scale * value:,.{digits}f}{unit}"


def percent(value: Any, digits: int = 2) -> str:
    """`97.25 %` of 0.9725, with a space that does not break."""
    return fixed(value, digits, "\N{NO-BREAK SPACE}%", 100.0)


def interval(one: Estimate | None, digits: int = 0, scale: float = 1.0) -> str:
    """`28,623 to 29,996`; empty where there is none, or none of any width."""
    if one is None or one.low is None or one.high is None or one.low == one.high:
        return ""
    return f"{fixed(one.low, digits, scale=scale)} to {fixed(one.high, digits, scale=scale)}"
