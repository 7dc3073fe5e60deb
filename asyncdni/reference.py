"""What an experiment file may hold, told from the code: `asyncdni explain` and docs/reference.md.

An option's type, bounds and default are those that the file is checked against. Its reason is the
comment beside it in the source: at the end of its line, or on the lines above. Where that begins
with a unit in brackets, as in "[batches] sent ahead", the unit gets a column of its own.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as structs

from asyncdni import config, nn
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import EXPERIMENT, expected, listed, shown, tag_key, variants
from asyncdni.nn import initialisers
from asyncdni.nn.layers import LAYERS
from asyncdni.nn.layers.future import Future
from asyncdni.nn.losses import LOSSES

__all__ = ["Entry", "Option", "document", "entries", "explain"]


@dataclass(frozen=True)
class Option:
    """One option of an entry, in words."""

    name: str
    type: str  # "an integer of at least 1"
    default: str  # as in the file; "required", or "not given"
    unit: str = ""  # "batches"; empty: a number without one, or none
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """Something that an experiment file can name: a table of it, or one kind of such a table."""

    name: str  # "run", "generator.error"
    about: str  # the docstring
    options: tuple[Option, ...] = ()

    @property
    def summary(self) -> str:
        """The first sentence of `about`, on one line."""
        first = " ".join(self.about.split("\n\n")[0].split())
        return re.split(r"(?<!et al)(?<=[.])\s", first)[0]


#: What the entries with one word before the dot are, and how such a thing is written in the file.
GROUPS = {
    "data": ("Data sets", '[data] name = "digits"'),
    "layer": ("Layers", '[[stages]] layers = [{ dense = { width = 256 } }, "relu"]'),
    "loss": ("Losses", '[[stages]] loss = "cross_entropy"'),
    "schedule": ("Schedules", '[schedule] name = "synthetic"'),
    "generator": ("Generators", '[schedule] generator = { kind = "error" }'),
    "optimizer": ("Optimizers", '[optimizer] name = "adam"'),
    "decay": ("Learning rates over time", '[optimizer] decay = { name = "cosine" }'),
}


# --- comments beside options ---------------------------------------------------------------------


def _comments(source: str, owner: str) -> dict[str, str]:
    """Return the comment beside each field of the class `owner`, or each parameter of the function
    `owner`, in a source text."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    lines = {token.start[0]: token.string.lstrip("#: ") for token in comments}
    alone = {token.start[0] for token in comments if token.line.lstrip().startswith("#")}
    found = {}
    for name, first, last in _places(ast.parse(source), owner):
        start = first
        while start - 1 in alone:
            start -= 1
        words = [lines[n] for n in range(start, first)] + [lines.get(last, "")]
        found[name] = " ".join(filter(None, words))
    return found


def _places(tree: ast.Module, owner: str) -> Iterator[tuple[str, int, int]]:
    """The name, first and last line of each field or parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == owner:
            for arg in (*node.args.args, *node.args.kwonlyargs):
                yield arg.arg, arg.lineno, arg.lineno
        elif isinstance(node, ast.ClassDef) and node.name == owner:
            for one in ast.walk(node):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    yield one.target.id, one.lineno, one.end_lineno or one.lineno


def _reasons(table: type) -> dict[str, str]:
    """The comments beside the fields of a class and of its bases; those of the class go first."""
    found: dict[str, str] = {}
    for owner in table.__mro__:
        if issubclass(owner, config.Table):
            for name, text in _comments(_source(owner), owner.__name__).items():
                found[name] = found.get(name) or text
    return found


def _source(found: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(found))
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        return ""


# --- entries -------------------------------------------------------------------------------------

_UNIT = re.compile(r"\[([a-zA-Z ]+)\]\s*(.*)")
#: What the file has in the place of Python's None.
_NOT_GIVEN = "not given"
#: Units that names of options end with.
_ENDINGS = {"epochs": "epochs", "_s": "seconds", "bytes": "bytes", "samples": "samples"}


def _option(name: str, kind: str, default: str, reason: str) -> Option:
    unit = next((unit for end, unit in _ENDINGS.items() if name.endswith(end)), "")
    given = _UNIT.fullmatch(reason)
    if given:
        unit, reason = given.groups()
    return Option(name, kind, default, unit, re.sub(r"\bNone\b", _NOT_GIVEN, reason))


def _table(name: str, kind: structs.StructType) -> Entry:
    """The entry of a table of the file."""
    reasons = _reasons(kind.cls)
    options = [
        _option(
            field.encode_name, expected(field.type), _default(field), reasons.get(field.name, "")
        )
        for field in kind.fields
    ]
    return Entry(name, inspect.getdoc(kind.cls) or "", tuple(options))


def _default(field: structs.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not NODEFAULT else field.default_factory()
    if not isinstance(value, msgspec.Struct):
        return _written(value)
    tag = value.__struct_config__.tag
    return "{}" if tag is None else f"{{ {tag_key(field.type)} = {json.dumps(tag)} }}"


def _written(value: object) -> str:
    return _NOT_GIVEN if value is None else json.dumps(value)


def _tables(kind: structs.Type, name: str) -> Iterator[Entry]:
    """The entries of a table of type `kind`, and of the tables that are options of it."""
    found = variants(kind)
    if found:
        name = name.rpartition(".")[2]  # "schedule.synthetic.generator" has a group of its own
        for tag, one in found.items():
            yield _table(f"{name}.{tag}", one)
            yield from _inner(one, f"{name}.{tag}")
    elif isinstance(kind, structs.StructType):
        yield _table(name, kind)
        yield from _inner(kind, name)
    elif isinstance(kind, structs.UnionType):
        for part in kind.types:
            yield from _tables(part, name)
    elif isinstance(kind, structs.ListType):
        yield from _tables(kind.item_type, name)
    elif isinstance(kind, structs.DictType):
        yield from _tables(kind.value_type, name)


def _inner(kind: structs.StructType, name: str) -> Iterator[Entry]:
    for field in kind.fields:
        yield from _tables(field.type, f"{name}.{field.encode_name}")


#: Layers that are modules of PyTorch: the functions that make them, in nn/torch/model.py, which is
#: read and not imported, as PyTorch may be missing.
_MODULES = {"module": "make_module", "part": "make_part"}


def _layers() -> Iterator[Entry]:
    for name, made in LAYERS.items():
        yield Entry(f"layer.{name}", inspect.getdoc(made) or "", _constructed(made))
    source = (Path(nn.__path__[0]) / "torch" / "model.py").read_text(encoding="utf-8")
    for name, function in _MODULES.items():
        yield Entry(f"layer.{name}", _docstring(source, function), _parameters(source, function))
    yield Entry(
        "layer.future",
        "Options `future` of the layers rnn and lstm: a generator at the window's end, which "
        "predicts the gradient that comes from all later windows.\n\n"
        + (inspect.getdoc(Future) or ""),
        _constructed(Future),
    )


def _docstring(source: str, function: str) -> str:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node) or ""
    return ""


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Sequence[int]": "a list of integers",
    "Sequence[Any]": "a list",
    "Mapping[str, Any]": "a table",
}


def _constructed(made: Any) -> tuple[Option, ...]:
    """The options that a class takes."""
    return _parameters(_source(made.__init__), "__init__")


def _parameters(source: str, function: str) -> tuple[Option, ...]:
    """The options that a function takes, from its source."""
    reasons = _comments(source, function)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return tuple(
                _option(arg.arg.rstrip("_"), _annotated(arg), default, reasons[arg.arg])
                for arg, default in _with_defaults(node.args)
            )
    return ()


def _with_defaults(args: ast.arguments) -> Iterator[tuple[ast.arg, str]]:
    missing = [None] * (len(args.args) - len(args.defaults))
    pairs = [*zip(args.args, [*missing, *args.defaults], strict=True)]
    pairs += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    for arg, default in pairs:
        if arg.arg != "self":
            given = "required" if default is None else _written(ast.literal_eval(default))
            yield arg, given


def _annotated(arg: ast.arg) -> str:
    kinds = [kind.strip() for kind in ast.unparse(arg.annotation or ast.Name("")).split("|")]
    return " or ".join(_WORDS.get(kind, kind) for kind in kinds if kind != "None")


@cache
def entries() -> dict[str, Entry]:
    """Return all entries by name: tables of the file in its order, then what they name.

    An option without a comment means what it does in the first of its group that has one.
    """
    found: dict[str, Entry] = {}
    assert isinstance(EXPERIMENT, structs.StructType)
    for field in EXPERIMENT.fields:
        for entry in _tables(field.type, field.encode_name):
            found.setdefault(entry.name, entry)
    losses = (Entry(f"loss.{name}", inspect.getdoc(made) or "") for name, made in LOSSES.items())
    starts = f"{inspect.getdoc(initialisers)}\n\nKnown: `{'`, `'.join(initialisers.INITIALISERS)}`."
    for entry in (*_layers(), *losses, Entry("init", starts)):
        found.setdefault(entry.name, entry)
    meant: dict[tuple[str, str], Option] = {}
    for name, entry in found.items():
        group = name.partition(".")[0]
        options = []
        for one in entry.options:
            known = (
                meant.setdefault((group, one.name), one)
                if one.reason
                else meant.get((group, one.name), one)
            )
            options.append(
                one if one.reason else replace(one, unit=known.unit, reason=known.reason)
            )
        found[name] = replace(entry, options=tuple(options))
    return found


# --- what `asyncdni explain` prints --------------------------------------------------------------


def explain(name: str = "") -> str:
    """Return what is known of an entry ("generator.error"), a group of them ("generator") or an
    option ("run.split"); without a name, what there is. Raises `ConfigError` for other names."""
    known = entries()
    if not name:
        return _overview()
    group = [entry for entry in known.values() if entry.name.startswith(f"{name}.")]
    if name in known:
        return _text(known[name])
    if name in GROUPS:
        title, written = GROUPS[name]
        return "\n".join([f"{title}: {written}", "", *_rows(group)])
    owner, _, key = name.rpartition(".")
    owners = [one for one in known.values() if one.name == owner]
    owners = owners or [one for one in known.values() if one.name.startswith(f"{owner}.") and owner]
    options = [(one.name, option) for one in owners for option in one.options if option.name == key]
    if options:
        return "\n".join(line for place, option in options for line in _said(option, f"{place}."))
    raise ConfigError(f"explain: unknown name {shown(name)}{_nearest(name)}")


def _nearest(name: str) -> str:
    names = [*GROUPS, *entries()]
    names += [f"{one.name}.{option.name}" for one in entries().values() for option in one.options]
    by_end: dict[str, list[str]] = {}
    for one in names:
        by_end.setdefault(one.rpartition(".")[2], []).append(one)
    ends = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.75)
    found = by_end[ends[0]] if ends else names
    close = difflib.get_close_matches(name, found, n=3, cutoff=0.0 if ends else 0.5)
    said = f"; the nearest: {listed(close)}" if close else ""
    return f"{said}; `asyncdni explain` lists all"


def _overview() -> str:
    known = entries().values()
    lines = ["Tables of an experiment file:", ""]
    lines += _rows([entry for entry in known if entry.name.partition(".")[0] not in GROUPS])
    for group, (title, written) in GROUPS.items():
        lines += ["", f"{title}, as in: {written}", ""]
        lines += _rows([entry for entry in known if entry.name.startswith(f"{group}.")])
    return "\n".join(
        [*lines, "", "`asyncdni explain NAME` says more; NAME.OPTION names an option."]
    )


def _rows(found: Sequence[Entry]) -> list[str]:
    wide = max(len(entry.name) for entry in found)
    return [
        textwrap.fill(
            f"{entry.name:{wide}}  {entry.summary}", 80, subsequent_indent=" " * (wide + 4)
        )
        for entry in found
    ]


def _text(entry: Entry) -> str:
    lines = [entry.name, "", entry.about]
    for option in entry.options:
        lines += ["", *_said(option)]
    return "\n".join(lines)


def _said(option: Option, place: str = "") -> list[str]:
    unit = f", in {option.unit}" if option.unit else ""
    default = {"required": "required", _NOT_GIVEN: f"{_NOT_GIVEN} by default"}.get(
        option.default, f"default {option.default}"
    )
    lines = [f"{place}{option.name}: {option.type}{unit}; {default}"]
    reason = textwrap.wrap(option.reason, 76)
    return lines + [f"    {line}" for line in reason]


# --- docs/reference.md ---------------------------------------------------------------------------

_INTRODUCTION = """\
# Reference

Every table and option of an experiment file, every data set, layer, loss, schedule, generator and
optimizer. This page is made from the code: don't edit it, run `just reference`. `asyncdni explain`
lists the same on the command line, `asyncdni explain generator.error` or `asyncdni explain
run.split` prints one of them.
"""


def document() -> str:
    """Return the text of docs/reference.md."""
    known = entries().values()
    plain = [entry for entry in known if entry.name.partition(".")[0] not in GROUPS]
    parts = [_INTRODUCTION, "## Tables of the file\n", *map(_section, plain)]
    for group, (title, written) in GROUPS.items():
        parts += [f"## {title}\n", f"```toml\n{_toml(written)}\n```\n"]
        parts += [_section(entry) for entry in known if entry.name.startswith(f"{group}.")]
    return "\n".join(parts)


def _toml(written: str) -> str:
    table, _, line = written.partition("] ")
    return f"{table}]\n{line}"


def _section(entry: Entry) -> str:
    lines = [f"### {entry.name}", "", entry.about, ""]
    if entry.options:
        lines += ["| option | type | default | unit | reason |", "|---|---|---|---|---|"]
        lines += [_row(option) for option in entry.options] + [""]
    return "\n".join(lines)


def _row(option: Option) -> str:
    plain = option.default in ("required", _NOT_GIVEN)
    default = option.default if plain else f"`{option.default}`"
    cells = (f"`{option.name}`", option.type, default, option.unit, option.reason)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
