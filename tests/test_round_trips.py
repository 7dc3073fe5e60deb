"""Experiments that mean the same after the wire, after a file, and whatever is changed in them."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment import dumps, load, parse, schema, tables

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True).filter(
    lambda name: name not in ("data", "coordinator")
)
SCALARS = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
OPTIONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
LAYERS = st.lists(TEXT | st.dictionaries(TEXT, OPTIONS, max_size=2), min_size=1, max_size=3)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Tables and values of a type of `config`, from its own bounds."""
    match kind:
        case inspect.IntType():
            return st.integers(kind.ge, 2**63 - 1 if kind.le is None else kind.le)
        case inspect.FloatType():
            low = kind.ge if kind.ge is not None else kind.gt
            high = kind.le if kind.le is not None else kind.lt
            return st.floats(
                low,
                high,
                exclude_min=kind.ge is None and low is not None,
                exclude_max=kind.le is None and high is not None,
                allow_nan=False,
                allow_infinity=False,
            )
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():  # options that only the user's own code knows
            return OPTIONS
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.StrType():
            return st.sampled_from(["/a b", "/ä\"'\\"])
        case inspect.ListType() | inspect.VarTupleType():
            return st.lists(values(kind.item_type), min_size=kind.min_length or 0, max_size=3)
        case inspect.DictType():
            items = values(kind.key_type), values(kind.value_type)
            return st.dictionaries(*items, max_size=2)
        case inspect.UnionType():
            return st.one_of([values(one) for one in kind.types])
        case inspect.StructType() if schema.variants(kind):
            return st.one_of([values(one) for one in schema.variants(kind).values()])
        case inspect.StructType():
            fields = {one.encode_name: values(one.type) for one in kind.fields}
            tag = {kind.tag_field: st.just(kind.tag)} if kind.tag_field else {}
            required = [one.encode_name for one in kind.fields if one.required]
            optional = {name: one for name, one in fields.items() if name not in required}
            return st.fixed_dictionaries(
                {**tag, **{name: fields[name] for name in required}}, optional=optional
            )
        case _:
            raise TypeError(kind)


STAGE = st.fixed_dictionaries(
    {"layers": LAYERS},
    optional={
        "inputs": st.none() | st.lists(TEXT, min_size=1, max_size=3),
        "join": st.sampled_from(["concat", "sum"]),
        "loss": st.sampled_from([None, "mse", "cross_entropy", "sigmoid_cross_entropy"]),
        "optimizer": st.sampled_from(
            [{}, {"learning_rate": 0.5}, {"name": "sgd", "decay": {"name": "step", "epochs": [1]}}]
        ),
    },
)


TIME = st.sampled_from(["0ms", "250us", "1.5 s", "1min"])
LINK = st.fixed_dictionaries(
    {}, optional={"latency": TIME, "jitter": TIME, "bandwidth": st.sampled_from(["", "1MB/s"])}
)
PAUSES = st.sampled_from([{}, {"pause": "10ms", "chance": 0.25}])
SLOW = st.builds(lambda factor, pauses: {"factor": factor, **pauses}, st.floats(1, 99), PAUSES)
LINK_NAMES = st.tuples(NAMES, NAMES).map("->".join)
CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "links": st.builds(
        lambda link, between: {**link, "between": between},
        LINK,
        st.dictionaries(LINK_NAMES, LINK, max_size=2),
    ),
    "slow": st.dictionaries(TEXT, SLOW, max_size=2),
    "staleness": st.fixed_dictionaries(
        {},
        optional={
            "lag": st.none() | st.integers(0, 9),
            "links": st.dictionaries(LINK_NAMES, st.integers(0, 9), max_size=2),
            "at_bound": st.sampled_from([None, "wait", "drop"]),
        },
    ),
}


@st.composite
def experiments(draw: st.DrawFn) -> config.Experiment:
    sections = {
        name: values(field.type)
        for name, field in schema.SECTIONS.items()
        if name not in ("stages", "model", *CONDITIONS)  # a model takes the stages' place
    }
    given_tables = draw(st.fixed_dictionaries({**sections, **CONDITIONS}))
    if not given_tables["optimizer"].get("momentum"):
        given_tables["optimizer"].pop("nesterov", None)  # refused without
    # No link may be as long as a run may stand still.
    given_tables["limits"]["stuck_s"] = draw(st.floats(1000, 1e6))
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    given_tables["stages"] = [{"name": name, **draw(STAGE)} for name in names]
    return parse(given_tables)


#: Whole experiments take long to draw where other tests keep the machine busy.
PATIENT = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@PATIENT
@given(experiments())
def test_tables_over_the_wire_make_the_same_experiment(experiment: config.Experiment) -> None:
    sent = msgpack.unpackb(msgpack.packb(tables(experiment)))
    assert parse(sent) == parse(tables(experiment)) == experiment


@PATIENT
@given(experiments())
def test_the_written_text_reads_as_the_same_experiment(
    tmp_path_factory: pytest.TempPathFactory, experiment: config.Experiment
) -> None:
    file = tmp_path_factory.getbasetemp() / "written.toml"
    file.write_bytes(dumps(experiment).encode())
    assert load(file) == experiment


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return [path]
    return [path, *(leaf for key, one in pairs for leaf in leaves(one, (*path, key)))]


@PATIENT
@given(experiments(), st.data())
def test_any_value_anywhere_is_taken_or_refused_in_one_line(
    experiment: config.Experiment, data: st.DataObject
) -> None:
    given_tables = msgpack.unpackb(msgpack.packb(tables(experiment)))
    *outer, last = data.draw(st.sampled_from(leaves(given_tables)[1:]))
    node = given_tables
    for key in outer:
        node = node[key]
    node[last] = data.draw(OPTIONS | st.none() | st.just(math.nan) | st.integers())
    try:
        taken = parse(given_tables)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert parse(tables(taken)) == taken
