"""What is accepted runs: any experiment file is refused in one line, or can be built and trained.

Values are drawn from the very structs that say what a file may hold, edges first.
"""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from asyncdni import experiment
from asyncdni.__main__ import main
from asyncdni.core.events import Finish
from asyncdni.data import describe
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.experiment.schema import EXPERIMENT, variants
from asyncdni.launch.conduct import check_host
from asyncdni.launch.local import worker_command
from asyncdni.messages import Welcome
from asyncdni.nn.layers import LAYERS
from asyncdni.plan.build import Design, make_design, make_roster, make_source, make_stage
from asyncdni.plan.sizes import check_memory, worker_bytes
from asyncdni.wire.codec import encode

INTEGERS = (0, -1, 1, 2, 3, 4, 5, 7, 64, 10**6, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**63, 10**30)
FLOATS = (0.0, -1.0, 0.5, 1.0, 2.5, 1e-320, 1e-9, 1e9, 1e300, 1e308, float("nan"), float("inf"))
TEXTS = (
    *("", "x", "a b", "a\0b", "a\nb", "\x1b[2J", "a/b", "..", "-x", "--help", "ä", "😀", "\ud800"),
    *("CON", "nul", "data", "coordinator", "final", "init", "~", "~root", "%s", "{}", "../../etc"),
    *("S0", "s0", "s0->s1", "s1->s0", "s0+s1", "a.b", "*", "x" * 64, "x" * 65, "x" * 5000),
    *("0s", "10ms", "60s", "1e9s", "9" * 20 + "s", "never", "1Gbit/s", "relu", "auto", "\u202e"),
)
SCHEDULES = ("locked", "delayed", "local_loss", "synthetic")
LINE_MAX = 9000  # characters of a refusal: a path has up to 4096, and may be named twice
#: Numbers that may be trained on within a test.
SMALL = {"batches": 8, "bytes": 2**22}

FIELDS = {field.encode_name: field for field in EXPERIMENT.fields}  # type: ignore[union-attr]


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Of one field, now and then of another type."""
    odd = st.sampled_from([None, True, "x", 1.5, [], {}, [1], {"a": 1}])
    return st.one_of(fitting(kind), fitting(kind), fitting(kind), odd)


def fitting(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.IntType():
            return st.sampled_from(INTEGERS)
        case inspect.FloatType():
            return st.sampled_from(FLOATS)
        case inspect.StrType():
            return st.sampled_from(TEXTS)
        case inspect.BoolType():
            return st.booleans()
        case inspect.LiteralType(values=choices):
            return st.sampled_from(list(choices))
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=3)
        case inspect.DictType(value_type=inspect.AnyType()):
            return st.just({})
        case inspect.DictType(value_type=item):
            return st.dictionaries(st.sampled_from(TEXTS), values(item), max_size=2)
        case inspect.StructType() if variants(kind):
            return st.one_of([tables(one) for one in variants(kind).values()])
        case inspect.UnionType(types=types):
            return st.one_of([fitting(one) for one in types])
        case inspect.StructType():
            return tables(kind)
    return st.none()


def tables(kind: inspect.StructType) -> st.SearchStrategy[dict[str, Any]]:
    """Of one struct: all that it needs, and up to two of the rest."""
    tag = {kind.tag_field: kind.tag} if kind.tag_field is not None else {}
    needed = {one.encode_name: values(one.type) for one in kind.fields if one.required}
    rest = [one for one in kind.fields if not one.required]
    some = st.lists(st.sampled_from(rest), max_size=2, unique_by=id) if rest else st.just([])
    optional = some.flatmap(
        lambda chosen: st.fixed_dictionaries({one.encode_name: values(one.type) for one in chosen})
    )
    return st.builds(lambda a, b: {**tag, **a, **b}, st.fixed_dictionaries(needed), optional)


LAYER = st.sampled_from(list(LAYERS)).flatmap(
    lambda name: st.one_of(
        st.just(name),
        st.sampled_from([*INTEGERS, *FLOATS, *TEXTS]).map(lambda value: {name: value}),
        st.dictionaries(
            st.sampled_from(
                ["width", "units", "channels", "kernel", "tokens", "p", "shape", "init"]
            ),
            st.sampled_from([*INTEGERS, 0.5, "zeros", [2, 2], True]),
            max_size=3,
        ).map(lambda options: {name: options}),
    )
)


def base(schedule: str) -> dict[str, Any]:
    """An experiment that runs."""
    return {
        "data": {
            "name": "addition",
            "bits": 4,
            "examples": 10,
            "test_examples": 3,
            "batch_size": 4,
        },
        "stages": [
            {"name": "s0", "layers": [{"dense": 5}, "batch_norm", "relu"]},
            {"name": "s1", "layers": [{"dense": 3}, "tanh"]},
            {"name": "top", "layers": [{"dense": 4}], "loss": "mse"},
        ],
        "schedule": {"name": schedule},
        "run": {"epochs": 1},
    }


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """One that runs, with one to three changes."""
    found = base(draw(st.sampled_from(SCHEDULES)))
    for _ in range(draw(st.integers(1, 3))):
        stage = found["stages"][draw(st.integers(0, 2))]
        match draw(st.sampled_from(["section", "key", "key", "key", "stage", "layer"])):
            case "section":
                name = draw(st.sampled_from([one for one in FIELDS if one != "stages"]))
                found[name] = draw(values(FIELDS[name].type))
            case "key":
                _change(draw, found)
            case "stage":
                kind = FIELDS["stages"].type.item_type  # type: ignore[union-attr]
                field = draw(st.sampled_from(kind.fields))
                stage[field.encode_name] = draw(values(field.type))
            case "layer" if isinstance(stage["layers"], list):
                stage["layers"] = [*stage["layers"], draw(LAYER)]
    return found


def _change(draw: st.DrawFn, found: dict[str, Any]) -> None:
    """One key of a section, which is of its own kind or becomes of another."""
    name = draw(st.sampled_from([one for one in FIELDS if one not in ("stages", "slow", "model")]))
    kind = FIELDS[name].type
    own = found.get(name)
    kinds = variants(kind)
    if kinds:
        tag = own.get("name") if isinstance(own, dict) else None
        tag = tag if isinstance(tag, str) and tag in kinds else draw(st.sampled_from([*kinds]))
        kind, own = kinds[tag], {**(own if isinstance(own, dict) else {}), "name": tag}
    elif isinstance(kind, inspect.UnionType):  # a section that may be left out
        (kind,) = (one for one in kind.types if isinstance(one, inspect.StructType))
    assert isinstance(kind, inspect.StructType)
    field = draw(st.sampled_from(kind.fields))
    own = own if isinstance(own, dict) else {}
    found[name] = {**own, field.encode_name: draw(values(field.type))}


def accepted(given_tables: dict[str, Any]) -> Design | None:
    """All that is looked at before a process starts; None where it was refused in one line."""
    try:
        chosen = experiment.parse(given_tables)
        design = make_design(chosen, describe(chosen.data))
        check_host(design)
    except AsyncDNIError as error:
        assert 0 < len(str(error)) < LINE_MAX and len(str(error).splitlines()) == 1, error
        return None
    return design


def runs(design: Design, folder: Path) -> None:
    """It can be named, told, built and, where it is small, trained."""
    chosen = design.experiment
    assert experiment.parse(tomllib.loads(experiment.dumps(chosen))) == chosen
    roster = make_roster(design, folder=str(folder))
    encode(Welcome("top", 1, dict(roster.experiment), dict(roster.meta), str(folder), "initial"))
    for group in design.plan.groups:
        assert all(word.isprintable() for word in worker_command(group.name, "ipc://x"))
        (folder / f"{group.name}.log").touch()
        for node in group.members:
            (folder / f".{node.name}.safetensors.12345678").touch()
    parts = chosen, design.network, design.plan, design.meta
    if any(worker_bytes(*parts, group) > SMALL["bytes"] for group in design.plan.groups):
        return
    for group in design.plan.groups:
        make_stage(design, group)
    if max(design.plan.batches, design.plan.test_batches) > SMALL["batches"]:
        return
    try:
        for group in design.plan.groups:
            make_source(design, group)
    except AsyncDNIError:
        return  # what the data hold is seen when they are read
    result = simulate(design, seed=0, maths=True)
    failure = result.failure
    assert failure is None or failure.kind == "NumericalError", failure
    assert failure is not None or isinstance(result.end, Finish)


def test_what_is_changed_runs_as_it_stands(tmp_path: Path) -> None:
    for name in SCHEDULES:
        design = accepted(base(name))
        assert design is not None
        runs(design, tmp_path)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(found=experiments())
def test_an_experiment_is_refused_in_one_line_or_runs(
    found: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with np.errstate(all="ignore"):
        design = accepted(copy.deepcopy(found))
        if design is not None:
            runs(design, tmp_path_factory.mktemp("run"))


# --- single cases that were once found -----------------------------------------------------------


def refused(*words: str, **sections: Any) -> None:
    found = base("synthetic")
    for name, table in sections.items():
        found[name] = {**found.get(name, {}), **table} if isinstance(table, dict) else table
    with pytest.raises(ConfigError) as caught:
        design = make_design(experiment.parse(found), describe(experiment.parse(found).data))
        check_host(design)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def test_what_workers_would_fail_at_is_refused_before_they_start() -> None:
    refused("optimizer.nesterov", "momentum above 0", optimizer={"name": "sgd", "nesterov": True})
    refused("limits.message_bytes", "worker s0", "Activation of", limits={"message_bytes": 100})
    refused("limits.silence_s", "at least 0.01", limits={"silence_s": 1e-300})
    refused("limits.stuck_s", "at most 1000000", limits={"stuck_s": 1e308})
    refused("run.threads", "above 2147483647", run={"threads": 2**40})
    refused("run.pin", "may not run on core 99999", run={"pin": [99999, 0, 0]})
    refused("slow.s1.factor", "at most 100000", slow={"s1": {"factor": 1e9}})
    refused("limits.stuck_s = 60", links={"latency": "59s", "jitter": "1s"})
    refused("control characters", run={"init": "a\nb"})
    refused("at most 4096 characters", run={"init": "x" * 5000})
    refused("at most 256 characters", slow={"x" * 300: {}})


def test_names_of_files_that_the_system_does_not_take_are_refused_as_data() -> None:
    for name in ("npz", "text", "cifar10"):
        with pytest.raises(AsyncDNIError) as caught:
            describe(
                experiment.parse({**base("locked"), "data": {"name": name, "path": "x" * 999}}).data
            )
        assert len(str(caught.value).splitlines()) == 1


def test_networks_that_this_machine_cannot_hold_are_refused_with_their_size() -> None:
    """By shapes alone: none of it is allocated."""
    huge = 2**31 - 1
    wide = [{"dense": 2**40}, {"dense": 3}, "tanh"]
    stages = [
        {**one, "layers": wide} if one["name"] == "s1" else one for one in base("x")["stages"]
    ]
    refused("GiB of memory", "s1 alone", stages=stages)
    for generator in (
        {"kind": "mlp", "hidden": [huge, huge]},
        {"kind": "low_rank", "rank": huge},
    ):
        refused("GiB of memory", "s0 alone", schedule={"generator": generator})
    refused("GiB of memory", schedule={"name": "local_loss", "head": {"hidden": [huge]}})
    model = {"hidden": [huge, huge]}
    refused("GiB of memory", schedule={"synthetic_inputs": True, "input_model": model})
    refused("GiB of memory", data={"examples": huge})


@each(
    "layers, shape",
    [
        ([{"dense": 7}], {}),
        ([{"reshape": [1, 4, 2]}, {"conv2d": {"channels": 3, "kernel": [2, 1]}}, "flatten"], {}),
        ([{"reshape": [4, 2]}, {"lstm": 3}, "flatten"], {}),
        ([{"reshape": [4, 2]}, {"rnn": {"units": 5, "last_only": True}}], {}),
    ],
)
def test_sizes_by_shape_are_those_of_the_weights_that_are_built(
    layers: list[Any], shape: dict[str, Any]
) -> None:
    found = {**base("locked"), "run": {"split": [3]}}
    found["stages"][0]["layers"] = layers
    chosen = experiment.parse(found)
    design = make_design(chosen, describe(chosen.data))
    (group,) = design.plan.groups
    weights = [
        array
        for arrays in make_stage(design, group).state().values()
        for name, array in arrays.items()
        if "weight" in name
    ]
    rows = sum(int(np.prod(node.output_shape)) for node in group.members)
    data = 13 * (8 + 4)
    expected = 4 * (4 * sum(a.size for a in weights) + 4 * rows + data)
    assert worker_bytes(chosen, design.network, design.plan, design.meta, group) == expected
    check_memory(chosen, design.network, design.plan, design.meta, allow_import=False)


# --- text ----------------------------------------------------------------------------------------

TEXT_CASES = {
    "a key twice": "[run]\nepochs = 1\nepochs = 2\n",
    "a table twice": "[run]\nepochs = 1\n[run]\nseed = 2\n",
    "a table as a list": "[[run]]\nepochs = 1\n",
    "a list as a table": "[stages]\nname = 's0'\n",
    "a date": "[run]\nseed = 2020-01-01\n",
    "a thousand lists": "[run]\nsplit = " + "[" * 1000 + "]" * 1000 + "\n",
    "a thousand tables": "[run" + ".x" * 1000 + "]\ny = 1\n",
    "a number without end": "[run]\nseed = " + "9" * 10_000 + "\n",
    "a control character": '[data]\nname = "npz"\npath = "a\\u0000b"\n',
    "not a number": "[optimizer]\nlearning_rate = nan\n",
    "nothing": "",
}


@each("case", TEXT_CASES)
def test_text_of_any_kind_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    whole = experiment.dumps(experiment.parse(base("locked"))) if "twice" in case else ""
    path.write_text(whole + TEXT_CASES[case])
    with pytest.raises(ConfigError) as caught:
        experiment.load(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < LINE_MAX
    assert msgspec.json.encode(str(caught.value))  # and is Unicode


# --- command lines -------------------------------------------------------------------------------

ENDLESS = "9" * 5000
COMMANDS = (
    ("simulate", "FILE", "--seed", ENDLESS),
    ("simulate", "FILE", "--runs", ENDLESS),
    ("simulate", "FILE", "--batches", ENDLESS),
    ("train", "FILE", "--seed", ENDLESS),
    ("train", "FILE", "--seed", str(2**63)),
    ("train", "FILE", "--init", ""),
    ("train", "FILE", "--out", ""),
    ("train", ""),
    ("compare", "FILE", "--seeds", "1000000000000"),
    ("coordinator", "FILE", "--bind", "tcp://127.0.0.1:99999"),
    ("worker", "--stage", "0", "--coordinator", "tcp://127.0.0.1:1", "--timeout", "nan"),
)


@each("words", COMMANDS)
def test_numbers_and_paths_of_a_command_line_are_refused_in_one_line(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.toml"
    file.write_text(experiment.dumps(experiment.parse(base("locked"))))
    try:
        code = main([str(file) if word == "FILE" else word for word in words])
    except SystemExit as ended:  # argparse's
        code = int(ended.code or 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and line.startswith("asyncdni: ") and len(line) < 700
    assert [path.name for path in tmp_path.iterdir()] == ["some.toml"]
