"""Cuts one `nn.Module` into parts that run one after the other and compute what it computes.

The module's forward is traced into a list of calls (`torch.fx`), which is divided where a named
submodule is called first:

```
    conv1  bn1  relu  maxpool │ layer1.0.conv1  …  add  relu │ layer2.0.conv1 …  │ …  flatten  fc
    ──────── first part ────────┴──────── "layer1" ────────────┴──── "layer2" ────┴────── …
```

A submodule that can't be traced, because its forward depends on numbers in tensors, is one call as
a whole. Several tensors that cross a cut, such as a skip connection, travel as one: each sample's
numbers behind one another. Names of parameters stay those of the whole module.

Where batches differ in length, the module is tried at two lengths. What crosses a cut then has the
same shape at both, or the steps in front.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError
from asyncdni.nn.torch.compiler import without_compiler
from asyncdni.nn.torch.fields import (
    Field,
    as_kind,
    fields_of,
    join,
    named,
    part,
    separate,
    take,
    varies,
)
from asyncdni.nn.torch.layer import first_line, lengths, main_output
from asyncdni.nn.torch.recurrent import OneStep

__all__ = ["Trace", "trace"]

_Shape = tuple[int, ...]
#: How many names a message lists.
_NAMES_MAX = 8
#: Batch sizes at which the module is run on the meta device; see `layer`.
_TRIED = (2, 3)
#: Functions of `torch` that make a tensor of nothing but lengths and numbers.
_MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")


@dataclass(frozen=True)
class _Value:
    """What one call returns: a tensor's form for one sample, or why it can't cross a cut."""

    shape: _Shape = ()
    dtype: torch.dtype = torch.float32
    why_not: str = ""
    varies: bool = False  # whether its first axis is the batch's length, of which `shape` has most


class Trace:
    """The calls of a module's forward, in order, and where it may be cut."""

    def __init__(self, model: nn.Module, graph: fx.Graph, values: dict[fx.Node, _Value]) -> None:
        self.model = model
        self._nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        self._input, *others = [node for node in graph.nodes if node.op == "placeholder"]
        self._constants = _constants(model, others)
        self._output = next(node for node in graph.nodes if node.op == "output")
        self._values = values
        self._place = {node: index for index, node in enumerate(self._nodes)}
        self._called = self._find_called()
        self._starts = {path: self._prepared(place) for path, place in self._called.items()}

    @property
    def takes_integers(self) -> bool:
        """Whether the model takes whole numbers, such as the ids of tokens."""
        return not self._values[self._input].dtype.is_floating_point

    @property
    def first(self) -> str:
        """The submodule that is called first."""
        return next(name for name in self._starts if not self._is_list(name))

    def names(self) -> list[str]:
        """The submodules with weights at which a part may begin without cutting a skip connection,
        in order: just one floating tensor crosses a cut before them, beside tensors of a sample
        that later modules need, such as a mask. Weights that are used on both sides of such a cut
        can be parted from all others (see `parting`)."""
        found, parted = [], bool(self.parting())
        for name, start in self._starts.items():
            crossing = self._crossing(start)
            if start <= self._starts[self.first] or self._skips(crossing) or self._is_list(name):
                continue
            has_weights = any(True for _ in self.model.get_submodule(name).parameters())
            shares = self._is_shared(start) and not parted
            if has_weights and not self._why_not(crossing) and not shares:
                found.append((start, name))
        outermost: dict[int, str] = {}
        for start, name in sorted(found, key=lambda one: (one[0], one[1].count("."))):
            outermost.setdefault(start, name)
        return list(outermost.values())

    def parting(self) -> list[str]:
        """The submodules before which cuts make each use of weights that are used several times,
        such as those of a tied embedding and head, a stage of its own. Empty where there are no
        such weights, or where they can't be parted from others."""
        uses: dict[int, list[int]] = {}
        weighted = [place for place, node in enumerate(self._nodes) if self._has_weights(node)]
        for place in weighted:
            for _, parameter in self._parameters(place, place + 1):
                uses.setdefault(id(parameter), []).append(place)
        found: dict[int, str | None] = {}
        for places in uses.values():
            for place in places if len(places) > 1 else ():
                at = weighted.index(place)
                names = {index: self._name_at(weighted, index) for index in (at, at + 1)}
                if "" in names.values() or len(self._weights(place, place + 1)) > 1:
                    return []
                found |= names
        return [name for place in sorted(found) if (name := found[place]) is not None]

    def _name_at(self, weighted: Sequence[int], index: int) -> str | None:
        """The outermost submodule whose first call with weights is that at `weighted[index]`, and
        before which no skip connection crosses a cut; empty if there is none. None at the model's
        ends, where no cut is needed."""
        if not 0 < index < len(weighted):
            return None
        found, path = "", _owner(self._nodes[weighted[index]])
        while path and self._called[path] > weighted[index - 1]:
            crossing = self._crossing(self._starts[path])
            skips = self._skips(crossing) or self._why_not(crossing)
            if not self._is_list(path) and not skips:
                found = path
            path = path.rpartition(".")[0]
        return found

    def sharers(self, begins: Sequence[str]) -> dict[int, int]:
        """{stage: the first stage with the same weights}, for all stages that have no weights of
        their own when the model is cut before the submodules `begins`."""
        weights = [self._weights(*ends) for ends in self._ends(begins)]
        return {
            index: weights.index(own)
            for index, own in enumerate(weights)
            if own and own in weights[:index]
        }

    def _ends(self, begins: Sequence[str]) -> list[tuple[int, int]]:
        starts = [0, *map(self._start, begins)]
        return list(zip(starts, [*starts[1:], len(self._nodes)], strict=True))

    def _weights(self, start: int, stop: int) -> list[int]:
        """The identities of the weights that calls use, each once."""
        return list(dict.fromkeys(id(one) for _, one in self._parameters(start, stop)))

    def part(self, begin: str, end: str) -> fx.GraphModule:
        """The part from submodule `begin` (empty: the module's start) up to `end` (empty: its end).

        Raises `ConfigError` for a name that is no submodule, and for a cut that is not possible,
        with the reason and names at which it is."""
        start = self._start(begin) if begin else 0
        stop = self._start(end) if end else len(self._nodes)
        if start >= stop:
            raise ConfigError(
                f"the part that begins at {begin!r} is empty, as {end!r} is called before it or "
                "with it; name the submodules in the order in which they are called"
            )
        return self._extract(start, stop)

    def packs(self, end: str) -> bool:
        """Whether what crosses a cut before submodule `end` is several tensors, or whole numbers.
        Raises as `part` does."""
        crossing = self._crossing(self._start(end)) if end else []
        kinds = {_kind(self._values[node].dtype) for node in crossing}
        return len(crossing) > 1 or not kinds <= {"float"}

    def varies(self, begin: str) -> bool:
        """Whether what the part from submodule `begin` on gets is as long as the batch. Raises as
        `part` does."""
        return self._vary(self._crossing(self._start(begin) if begin else 0))

    def _vary(self, crossing: Sequence[fx.Node]) -> bool:
        return any(self._values[node].varies for node in crossing)

    def tail(self, begin: str) -> fx.GraphModule:
        """What comes behind the last skip connection of the part from submodule `begin` on: the
        longest end of it through which one tensor passes at a time. A module that can't be traced
        and has submodules may have a skip connection inside. Raises `ConfigError` where nothing
        comes behind."""
        return self._extract(self._tail_start(begin), len(self._nodes))

    def shape_before(self, begin: str) -> _Shape:
        """The shape, for one sample, of the first tensor that crosses a cut before submodule
        `begin`. Raises as `part` does."""
        return self._values[self._crossing(self._start(begin))[0]].shape

    def shape_before_tail(self, begin: str) -> _Shape:
        """The shape, for one sample, of what `tail` takes. Raises as it does."""
        return self._values[self._crossing(self._tail_start(begin))[0]].shape

    def _tail_start(self, begin: str) -> int:
        start = self._start(begin) if begin else 0
        stop = first = len(self._nodes)
        while first > start and not self._may_skip(first - 1):
            first -= 1
            if first > start and len(self._crossing(first)) > 1:
                first += 1
                break
        if first == stop:
            raise ConfigError(
                "the model ends in a block, so which of its layers are the readout must be said: "
                f"name the submodule at which it begins; {self._hint()}"
            )
        return first

    def _may_skip(self, index: int) -> bool:
        node = self._nodes[index]
        if node.op != "call_module":
            return False
        return any(True for _ in self.model.get_submodule(str(node.target)).children())

    def check(self, begins: Sequence[str]) -> None:
        """Check cuts before each of the named submodules. Raises `ConfigError` as `part` does, and
        for weights that are used on both sides of a cut."""
        starts = [0, *map(self._start, begins)]
        if begins and starts[1] <= self._starts[self.first]:
            raise ConfigError(
                f"stages: {begins[0]!r} begins the first stage already; leave it out of the list, "
                "which names where all other stages begin"
            )
        for before, after, name in zip(starts, starts[1:], begins, strict=False):
            if after <= before:
                raise ConfigError(
                    f"stages: {name!r} is not called after what comes before it in the list; "
                    "expected submodules in the order in which they are called"
                )
        owners: dict[int, tuple[int, str]] = {}
        sharers = self.sharers(begins)
        for index, ends in enumerate(self._ends(begins)):
            for name, parameter in self._parameters(*ends):
                other, known = owners.setdefault(id(parameter), (index, name))
                if other not in (index, sharers.get(index)):
                    raise ConfigError(
                        f"stages: the weights of {name} are also those of {known}, in another "
                        f"stage; {self._cure(begins)}"
                    )

    def _cure(self, begins: Sequence[str]) -> str:
        """What to do about weights that a cut before the submodules `begins` parts."""
        also = [name for name in self.parting() if name not in begins]
        if not also:
            return "cut so that both are in one stage, or untie them"
        names = " and ".join(also)
        return f"cut before {names} too, so that each is a stage of its own, or untie them"

    def bytes_at(self, name: str) -> int:
        """The number of bytes that one sample sends across a cut before the submodule."""
        crossing = self._crossing(self._start(name))
        return sum(_size(self._values[node].shape) * 4 for node in crossing)

    def _is_list(self, name: str) -> bool:
        return isinstance(self.model.get_submodule(name), nn.ModuleList | nn.ModuleDict)

    # --- places ----------------------------------------------------------------------------------

    def _find_called(self) -> dict[str, int]:
        """{submodule: the index of its first call}."""
        starts: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            path = _owner(node)
            while path:
                starts.setdefault(path, index)
                path = path.rpartition(".")[0]
        return starts

    def _prepared(self, start: int) -> int:
        """Where a part that begins with the call at `start` may begin earlier, so that less crosses
        the cut: calls just before it may make what that part alone uses, such as positions."""
        best, best_crossing = start, self._crossing(start)
        for index in range(start - 1, 0, -1):
            node = self._nodes[index]
            if self._has_weights(node) or any(not self._is_after(u, start) for u in node.users):
                break
            start, crossing = index, self._crossing(index)
            if self._burden(crossing) < self._burden(best_crossing):
                best, best_crossing = index, crossing
        return best

    def _has_weights(self, node: fx.Node) -> bool:
        place = self._place[node]
        return bool(self._parameters(place, place + 1))

    def _burden(self, crossing: Sequence[fx.Node]) -> tuple[bool, int]:
        """Orders cuts: a possible one before others, then by how many values cross."""
        return bool(self._why_not(crossing)), len(crossing)

    def _start(self, name: str) -> int:
        start = self._starts.get(name)
        if start is None:
            raise ConfigError(f"stages: {name!r} {self._why_unknown(name)}; {self._hint()}")
        if start and (why := self._why_not(self._crossing(start))):
            raise ConfigError(
                f"stages: a cut before {name!r} is not possible: {why}; {self._hint()}"
            )
        return start

    def _why_unknown(self, name: str) -> str:
        known = [one for one, _ in self.model.named_modules() if one]
        if name not in known:
            near = get_close_matches(name, known)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            return f"is no submodule of the model{meant}"
        targets = [str(node.target) for node in self._nodes if node.op == "call_module"]
        inside = next((one for one in targets if name.startswith(f"{one}.")), None)
        return "is never called" if inside is None else f"is inside {inside}, which is one call"

    def _hint(self) -> str:
        names = self.names()
        listed = ", ".join(names[:_NAMES_MAX])
        more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
        return f"a stage may begin at {listed}{more}" if names else "this model can't be cut"

    def _crossing(self, start: int) -> list[fx.Node]:
        """The values made before `start` and needed from there on, in the order of their making."""
        if start == 0:
            return [self._input]
        before = [self._input, *self._nodes[:start]]
        return [
            node
            for node in before
            if node.op != "get_attr" and any(self._is_after(user, start) for user in node.users)
        ]

    def _is_after(self, user: fx.Node, start: int) -> bool:
        return user is self._output or self._place.get(user, -1) >= start

    def _skips(self, crossing: Sequence[fx.Node]) -> bool:
        """Whether more than one value that modules have made crosses a cut."""
        return sum(node.target is not take for node in crossing) > 1

    def _why_not(self, crossing: Sequence[fx.Node]) -> str:
        found = next((v.why_not for n in crossing if (v := self._values[n]).why_not), "")
        lasting = [node.name for node in crossing if not self._values[node].varies]
        if not found and lasting and self._vary(crossing):
            found = (
                f"{lasting[0]}, which has no row a step, would cross it beside others that are as "
                "long as the batch"
            )
        return found

    def _is_shared(self, start: int) -> bool:
        """Whether weights are used before and after `start`."""
        before = {id(one) for _, one in self._parameters(0, start)}
        return any(id(one) in before for _, one in self._parameters(start, len(self._nodes)))

    def _parameters(self, start: int, stop: int) -> list[tuple[str, nn.Parameter]]:
        found = []
        for node in self._nodes[start:stop]:
            if node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                found += [(f"{node.target}.{name}", p) for name, p in module.named_parameters()]
            elif node.op == "get_attr":
                value = _attribute(self.model, str(node.target))
                if isinstance(value, nn.Parameter):
                    found.append((str(node.target), value))
        return found

    # --- extraction ------------------------------------------------------------------------------

    def _extract(self, start: int, stop: int) -> fx.GraphModule:
        graph = fx.Graph()
        copies: dict[fx.Node, Any] = dict(self._constants)
        self._unpack(graph, self._crossing(start), copies)
        for node in self._nodes[start:stop]:
            for used in node.all_input_nodes:  # a buffer read before the cut is read again
                if used not in copies and used.op == "get_attr":
                    copies[used] = graph.node_copy(used)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if stop == len(self._nodes):
            result = fx.node.map_arg(self._output.args[0], copies.__getitem__)
            graph.output(graph.call_function(main_output, (result,)))
        else:
            graph.output(self._pack(graph, [copies[node] for node in self._crossing(stop)], stop))
        return fx.GraphModule(self.model, graph, type(self.model).__name__)

    def _unpack(
        self, graph: fx.Graph, crossing: Sequence[fx.Node], copies: dict[fx.Node, Any]
    ) -> None:
        given = graph.placeholder("x")
        if len(crossing) == 1:
            copies[crossing[0]] = given
            return
        steps = self._vary(crossing)
        shapes = [self._values[node].shape[steps:] for node in crossing]
        kinds = [_kind(self._values[node].dtype) for node in crossing]
        parts = graph.call_function(unpack, (given, shapes, kinds, steps))
        for index, node in enumerate(crossing):
            copies[node] = graph.call_function(take, (parts, index))

    def _pack(self, graph: fx.Graph, values: Sequence[fx.Node], stop: int) -> fx.Node:
        steps = self._vary(self._crossing(stop))
        return values[0] if len(values) == 1 else graph.call_function(pack, (list(values), steps))


def pack(tensors: Sequence[torch.Tensor], steps: bool) -> torch.Tensor:
    """Several tensors as one, see `fields.join`; booleans become 0 and 1."""
    kind = next((one.dtype for one in tensors if one.is_floating_point()), torch.float32)
    if any(_kind(one.dtype) == "int" for one in tensors):
        kind = torch.promote_types(kind, torch.float32)  # one of 16 bits would round ids
    return join([one.to(kind) for one in tensors], steps=steps)


def unpack(
    packed: torch.Tensor, shapes: Sequence[_Shape], kinds: Sequence[str], steps: bool
) -> list[torch.Tensor]:
    """What `pack` was given, of these shapes, see `fields.part`, and of these kinds."""
    # Copied, as a convolution has other last bits on numbers that do not lie behind one another.
    tensors = [
        one.clone(memory_format=torch.contiguous_format)
        for one in part(packed, shapes, steps=steps)
    ]
    return [as_kind(one, kind) for one, kind in zip(tensors, kinds, strict=True)]


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "int"


def _size(shape: _Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _owner(node: fx.Node) -> str:
    """The innermost submodule whose forward makes the call; empty: the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""


def _attribute(model: nn.Module, target: str) -> Any:
    found: Any = model
    for name in target.split("."):
        found = getattr(found, name)
    return found


# --- tracing -------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Traces all but the modules in `whole`, and remembers which module it is in."""

    # A buffer is a call too, as weights are: it belongs to the parts that read it.
    proxy_buffer_attributes = True

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.inside: list[str] = []
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._whole or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.inside.append(path)
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an exception, which tells where it came from
        return result


def trace(model: nn.Module, form: Sequence[Any], begins: Sequence[str] | None = None) -> Trace:
    """The calls of `model`, which is on the meta device, for samples of the shape `form`, or of
    several tensors: see `fields.fields_of`.

    With `begins`, the submodules before which it is to be cut, only the modules around these are
    traced, and all others stay what they are: what a forward does by `self.training` is decided
    anew in each call then. Without, all are traced, to find where the model may be cut.

    Raises `ConfigError` where its own forward can't be traced, or does not take such samples."""
    whole = set() if begins is None else _not_around(model, begins)
    shape, fields = fields_of(form)
    fields = named(model, fields) if fields else ()
    graph = _traced(model, whole, fields)
    if begins is not None:
        _check_training(model, graph, whole, fields)
    return Trace(model, graph, _run(model, graph, shape, varies(form)))


def _not_around(model: nn.Module, begins: Sequence[str]) -> set[str]:
    """The submodules inside which no part begins."""
    around = {""}
    for name in begins:
        while name := name.rpartition(".")[0]:
            around.add(name)
    return {name for name, _ in model.named_modules()} - around


def _traced(model: nn.Module, whole: set[str], fields: Sequence[Field]) -> fx.Graph:
    """The graph of a model; modules that can't be traced are added to `whole`. It has one argument
    for samples, also where these are made of `fields`."""
    fixed = _defaults(model)
    for field in fields:
        fixed.pop(field.name, None)
    while True:
        tracer = _Tracer(whole)
        try:
            with _new_tensors_recorded(tracer):
                graph = _without_assertions(tracer.trace(model, fixed))
            if fields:
                separate(graph, fields)
            return graph
        except Exception as error:  # a forward may fail in any way
            if not tracer.inside:
                raise ConfigError(
                    f"the model's own forward, that of {type(model).__name__}, can't be traced, so "
                    "it can't be cut: "
                    f"{first_line(error)}; move what depends on the numbers in tensors into a "
                    "submodule, or give an nn.Sequential"
                ) from error
            whole.add(tracer.inside[-1])


@contextmanager
def _new_tensors_recorded(tracer: fx.Tracer) -> Iterator[None]:
    """Within this context, the functions `_MAKERS` of `torch` are calls of the trace. Otherwise a
    model that makes its positions by `torch.arange` could not be traced."""

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            return tracer.create_proxy("call_function", function, args, kwargs)

        return record

    own = {name: getattr(torch, name) for name in _MAKERS}
    try:
        for name, function in own.items():
            setattr(torch, name, recorded(function))
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)


def _without_assertions(graph: fx.Graph) -> fx.Graph:
    """The graph without the calls by which a trace asserts that arguments have their defaults."""
    for node in reversed(list(graph.nodes)):
        is_assertion = node.op == "call_function" and node.target is torch._assert
        if is_assertion or (node.target is operator.eq and not node.users):
            graph.erase_node(node)
    return graph


def _check_training(
    model: nn.Module, graph: fx.Graph, whole: set[str], fields: Sequence[Field]
) -> None:
    """Raises `ConfigError` where a traced forward does something else in training, as a trace
    follows one way only."""
    was = model.training
    other = _traced(model.train(not was), whole, fields)
    model.train(was)
    if str(graph) != str(other):
        raise ConfigError(
            "the model can't be cut there: the forward of a module around the cut reads "
            "self.training; use nn.Dropout in place of functional.dropout there, or cut elsewhere"
        )


def _defaults(model: nn.Module) -> dict[str, Any]:
    """All arguments of the model's forward but the first, at their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        one.name: one.default
        for one in parameters[1:]
        if one.kind not in kinds and one.default is not inspect.Parameter.empty
    }


def _constants(model: nn.Module, others: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    """The value of each argument but the first: a trace calls the argument `mask` "mask_1"."""
    defaults = _defaults(model)
    return {node: defaults.get(str(node.target).rpartition("_")[0]) for node in others}


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the form of every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # to log it, PyTorch would import its compiler: seconds
        self.forms: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_tensor = isinstance(result, torch.Tensor)
        self.forms[n] = (tuple(result.shape), result.dtype) if is_tensor else type(result).__name__
        return result


def _run(model: nn.Module, graph: fx.Graph, shape: _Shape, varying: bool) -> dict[fx.Node, _Value]:
    failures = []
    for dtype in (torch.float32, torch.int64):
        try:
            runs = [
                _recorded(model, graph, (rows, *one), dtype)
                for rows, one in zip(_TRIED, lengths(shape, varying), strict=True)
            ]
        except Exception as error:
            failures.append(first_line(error))
            continue
        return {node: _value(node, [run[node] for run in runs], shape) for node in graph.nodes}
    if varying and _takes(model, graph, shape):
        raise ConfigError(
            f"batches differ in length, and the model takes samples of shape {shape}, but not of "
            f"{lengths(shape, varying)[1][0]} steps: {failures[0]}; pad all samples to one length "
            "in the data set or its collate_fn"
        )
    raise ConfigError(
        f"the model does not take samples of shape {shape}: {failures[0]}; its forward gets one "
        "tensor with a row a sample: change the samples of the data set, or wrap the model in a "
        "module that takes them"
    )


@without_compiler()
def _recorded(
    model: nn.Module, graph: fx.Graph, shape: _Shape, dtype: torch.dtype
) -> dict[fx.Node, Any]:
    module = fx.GraphModule(model, graph)
    recorder = _Recorder(module)
    _, *others = [node for node in module.graph.nodes if node.op == "placeholder"]
    x = torch.zeros(shape, dtype=dtype, device="meta")
    with torch.no_grad(), torch.device("meta"), OneStep():
        recorder.run(x, *_constants(model, others).values())
    mine = {node.name: form for node, form in recorder.forms.items()}
    return {node: mine[node.name] for node in graph.nodes}


def _takes(model: nn.Module, graph: fx.Graph, shape: _Shape) -> bool:
    for dtype in (torch.float32, torch.int64):
        with suppress(Exception):  # a module may fail in any way
            _recorded(model, graph, (1, *shape), dtype)
            return True
    return False


def _value(node: fx.Node, forms: Sequence[Any], longest: _Shape) -> _Value:
    if isinstance(forms[0], str):
        return _Value(why_not=f"{node.name}, a value of type {forms[0]}, would cross it")
    (first, dtype), (second, _) = forms
    if not first or (first[0], second[0]) != _TRIED:
        return _Value(why_not=f"{node.name}, of shape {first}, has no row a sample and would cross")
    is_given = node.op == "placeholder" or node.target is take
    if not (dtype.is_floating_point or dtype == torch.bool or is_given):
        return _Value(first[1:], dtype, f"{node.name}, of type {dtype}, would cross it")
    varying = first[1:] != second[1:]
    if varying and (first[1] != longest[0] or first[2:] != second[2:]):
        return _Value(
            why_not=f"{node.name}, of shape {first[1:]} in a longer batch and {second[1:]} in a "
            "shorter one, would cross it: only its first axis may be the batch's length"
        )
    return _Value(first[1:], dtype, varies=varying)
