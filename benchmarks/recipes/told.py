"""What an experiment says, without what goes without saying."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["told"]


def told(value: Any) -> Any:
    """Plain tables without options that have their default, which stay the same when the program
    gets new options; `experiment.parse` makes the same experiment of them."""
    if isinstance(value, msgspec.Struct):
        kind = value.__struct_config__
        found: dict[str, Any] = {kind.tag_field: kind.tag} if kind.tag_field else {}
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            if own != _default(field):
                found[field.encode_name] = told(own)
        return found
    if isinstance(value, list | tuple):
        return [told(one) for one in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()
