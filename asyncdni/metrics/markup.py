"""HTML as nested calls, safe by default: text is escaped unless it was made here.

>>> element("td", "a < b", element("b", "c"), class_="name")
'<td class="name">a &lt; b<b>c</b></td>'
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Markup", "element", "together"]

_VOID = {"br", "meta"}


class Markup(str):
    """HTML that needs no escaping any more."""


def element(tag: str, *children: str, **attributes: str | None) -> Markup:
    """One element. A name may end in `_` (`class_`); an attribute that is None is left out."""
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if tag in _VOID else f"{opening}{together(children)}</{tag}>")


def together(parts: Iterable[str]) -> Markup:
    """One after the other; those that are not `Markup` are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))
