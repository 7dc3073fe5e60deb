"""The TOML writer: what `tomllib` reads back."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asyncdni.experiment import as_toml as dumps

SCALARS = st.one_of(
    st.text(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
TABLE = st.dictionaries(st.text(), VALUES, max_size=4)


@given(st.dictionaries(st.text(), TABLE | st.lists(TABLE, min_size=1, max_size=3), max_size=4))
def test_any_tables_are_read_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(tables)) == tables


def test_none_is_left_out() -> None:
    assert dumps({"run": {"split": None, "epochs": 1}}) == "[run]\nepochs = 1\n"


def test_tables_in_tables_follow_their_parent() -> None:
    text = dumps({"a": {"b": {"c": 1}, "d": 2}, "e": [{"f": {"g": 3}}, {}]})
    assert text == "[a]\nd = 2\n\n[a.b]\nc = 1\n\n[[e]]\nf = { g = 3 }\n\n[[e]]\n"


def test_a_long_list_has_a_line_an_item() -> None:
    items = ["x" * 60, "y" * 60]
    assert dumps({"a": {"b": items}}) == f'[a]\nb = [\n    "{items[0]}",\n    "{items[1]}",\n]\n'
