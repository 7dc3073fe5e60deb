"""What all tables have in common: unknown keys are refused, numbers have bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["COUNT_MAX", "Count", "Fraction", "NonNegative", "Positive", "Seconds", "Table", "Whole"]

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
#: Of anything that is counted or numbered: what machine integers of 32 bits hold.
COUNT_MAX = 2**31 - 1
Count = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
Whole = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
NonNegative = Annotated[float, Meta(ge=0)]
#: A limit on time: none that is shorter can be kept, and nobody waits longer than eleven days.
Seconds = Annotated[float, Meta(ge=0.01, le=1e6)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: unknown keys are refused."""
