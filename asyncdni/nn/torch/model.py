"""Modules by name: what `{ module = … }`, `{ part = … }` and `[model]` in an experiment file mean.

A worker never gets a module, only what it is made by: `package.module:callable` and plain
arguments, or the name of an object that the process which started it has handed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError
from asyncdni.handover import GIVEN
from asyncdni.imports import Allowed, import_named
from asyncdni.nn.torch.compiler import without_compiler
from asyncdni.nn.torch.cut import Trace, trace
from asyncdni.nn.torch.fields import Field, call_joined, fields_of, join, varies
from asyncdni.nn.torch.huggingface import as_chain, check_chain
from asyncdni.nn.torch.layer import ModuleLayer, empty_copy, first_line, main_output

__all__ = ["check_parts", "make_model", "make_readout", "module_maker", "part_maker", "trace_model"]


#: How many models, and traces of them, stay in memory: those of one network.
_KEPT = 32


def module_maker(allow_import: Allowed) -> Callable[..., ModuleLayer]:
    """The maker of layers `{ module = { build = …, arguments = … } }`: all of what `build`
    returns."""

    def make_module(
        build: str,  # "module:callable", which returns an nn.Module
        arguments: Mapping[str, Any] | None = None,  # keyword arguments of that callable
    ) -> ModuleLayer:
        """All of a module of PyTorch."""

        def make(device: str) -> nn.Module:
            return make_model(build, arguments or {}, device, allow_import=allow_import)

        return ModuleLayer(f"module {build}", make)

    return make_module


def part_maker(allow_import: Allowed) -> Callable[..., ModuleLayer]:
    """The maker of layers `{ part = { … } }`: what `build` returns, from submodule `begin` up to
    `end`, when it is given samples of shape `input`."""

    def make_part(
        build: str,  # "module:callable", which returns an nn.Module
        # shape of a sample that the whole module takes; where a sample has several tensors, [name,
        # kind, shape] of each: an argument of its forward, "float", "int" or "bool". -T in front of
        # a shape: up to T steps, as many as the batch has
        input: Sequence[Any],
        begin: str = "",  # the submodule that the part begins with; empty: the module's start
        end: str = "",  # the submodule that the next part begins with; empty: the module's end
        arguments: Mapping[str, Any] | None = None,  # keyword arguments of that callable
    ) -> ModuleLayer:
        """A part of a module of PyTorch, from one of its submodules up to another."""
        given = arguments or {}
        begins = [name for name in (begin, end) if name]

        def make(device: str) -> nn.Module:
            cut = trace_model(build, given, input, begins, allow_import=allow_import)
            return _of_whole(cut.part(begin, end), build, given, device, allow_import)

        def packs() -> bool:
            return trace_model(build, given, input, begins, allow_import=allow_import).packs(end)

        def takes_lengths() -> bool:
            if not varies(input):
                return False
            cut = trace_model(build, given, input, begins, allow_import=allow_import)
            return cut.varies(begin)

        name = f"the part of {build} from {begin or 'its start'}"
        return ModuleLayer(name, make, packs, takes_lengths)

    return make_part


def make_readout(
    part: Mapping[str, Any], begin: str, device: str, *, allow_import: Allowed
) -> nn.Module:
    """What the last stage of a model, whose layer is { part = `part` }, does from submodule `begin`
    on, or where that is empty, behind its last skip connection. Raises `ConfigError`."""
    cut = _readout_trace(part, begin, allow_import)
    found = cut.part(begin, "") if begin else cut.tail(part.get("begin", ""))
    return _of_whole(found, part["build"], part.get("arguments", {}), device, allow_import)


def readout_input(part: Mapping[str, Any], begin: str, *, allow_import: Allowed) -> tuple[int, ...]:
    """The shape of a sample that such a readout takes in the last stage; see `make_readout`."""
    cut = _readout_trace(part, begin, allow_import)
    return cut.shape_before(begin) if begin else cut.shape_before_tail(part.get("begin", ""))


def _readout_trace(part: Mapping[str, Any], begin: str, allow_import: Allowed) -> Trace:
    return trace_model(
        part["build"],
        part.get("arguments", {}),
        part["input"],
        [begin] if begin else None,
        allow_import=allow_import,
    )


def make_model(
    build: str, arguments: Mapping[str, Any], device: str, *, allow_import: Allowed = False
) -> nn.Module:
    """The whole model that `build` returns, on device "cpu" with initial weights, or on "meta",
    without memory, where it is not to be changed. Raises `ConfigError`."""
    make = _meta_model if device == "meta" else _real_model
    return make(build, _text(arguments), allow_import)


def trace_model(
    build: str,
    arguments: Mapping[str, Any],
    input: Sequence[Any],
    begins: Sequence[str] | None = None,
    *,
    allow_import: Allowed = False,
) -> Trace:
    """The trace of the model that `build` returns, for samples of the form `input`; see
    `cut.trace`. Raises `ConfigError`."""
    names = None if begins is None else tuple(begins)
    return _trace(build, _text(arguments), json.dumps(list(input)), names, allow_import)


def _of_whole(
    part: fx.GraphModule,
    build: str,
    arguments: Mapping[str, Any],
    device: str,
    allow_import: Allowed,
) -> nn.Module:
    """The part, which is on the meta device, with the weights of the whole model on `device`."""
    if device == "meta":
        return part
    whole = make_model(build, arguments, device, allow_import=allow_import)
    return fx.GraphModule(whole, part.graph)


def _text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(dict(arguments), sort_keys=True)


@lru_cache(_KEPT)
def _trace(
    build: str,
    arguments: str,
    form: str,
    begins: tuple[str, ...] | None,
    allow_import: Allowed,
) -> Trace:
    return trace(_meta_model(build, arguments, allow_import), json.loads(form), begins)


@lru_cache(_KEPT)
def _meta_model(build: str, arguments: str, allow_import: Allowed) -> nn.Module:
    try:
        return _made(build, arguments, "meta", allow_import)
    except ConfigError:  # its constructor may compute with its weights
        return empty_copy(_made(build, arguments, "cpu", allow_import), "meta")


def _real_model(build: str, arguments: str, allow_import: Allowed) -> nn.Module:
    return _made(build, arguments, "cpu", allow_import)


def _made(build: str, arguments: str, device: str, allow_import: Allowed) -> nn.Module:
    """What `build` returns; a model of Hugging Face as the chain of its submodules."""
    found = _returned(build, arguments, device, allow_import)
    chain = as_chain(found)
    is_given = build.startswith(f"{GIVEN}:")  # without weights: it was checked with them
    if device != "meta" and not is_given:
        check_chain(found, chain)
    return chain


@without_compiler()
def _returned(build: str, arguments: str, device: str, allow_import: Allowed) -> nn.Module:
    make = import_named(build, "model", allow_import=allow_import)
    if isinstance(make, nn.Module):  # handed over by the process that started this one
        return make if device == "meta" else empty_copy(make, device)
    if not callable(make):
        raise ConfigError(f"model {build!r} is a {type(make).__name__}, expected a callable")
    try:
        with torch.device(device):
            found = make(**json.loads(arguments))
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(f"model {build!r} can't be built: {first_line(error)}") from error
    if isinstance(found, list | tuple) and all(isinstance(one, nn.Module) for one in found):
        found = nn.Sequential(*found)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"model {build!r} returned a {type(found).__name__}, expected an nn.Module"
        )
    return found


def check_parts(
    model: nn.Module, parts: Sequence[Mapping[str, Any]], *, allow_import: Allowed
) -> None:
    """Compare the model, which has weights, on two samples with its parts one after the other, each
    of which gets its input in memory of its own, as over a wire; and try its backward.

    Raises `ConfigError` where they differ: something behind a cut changes in place what is used
    elsewhere too. Also where the model itself fails, forward or backward."""
    chain = as_chain(model)
    first = parts[0]
    arguments = first.get("arguments", {})
    graphs = []
    for part in parts:
        begins = [part[end] for end in ("begin", "end") if part.get(end)]
        cut = trace_model(
            part["build"], arguments, part["input"], begins, allow_import=allow_import
        )
        graphs.append(cut.part(part.get("begin", ""), part.get("end", "")).graph)
    dtype = next((one.dtype for one in model.parameters()), torch.float32)
    shape, fields = fields_of(first["input"])
    x = _two_samples(shape, fields, cut.takes_integers, dtype)
    was = chain.training
    try:
        with torch.random.fork_rng(devices=()):
            chain.eval()
            torch.manual_seed(0)
            expected = main_output(call_joined(chain, x.clone(), fields))
            if expected.requires_grad:
                learned = [one for one in chain.parameters() if one.requires_grad]
                torch.autograd.grad(expected.sum(), learned, allow_unused=True)
            torch.manual_seed(0)
            with torch.no_grad():
                found = x
                for graph in graphs:
                    found = fx.GraphModule(chain, graph).eval()(found.clone())
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"the model that {first['build']} makes fails on two samples of shape "
            f"{shape}: {first_line(error)}"
        ) from error
    finally:
        chain.train(was)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ConfigError(
            f"the model that {first['build']} makes gives other outputs when it is cut before "
            f"{', '.join(part['begin'] for part in parts[1:])} (by up to "
            f"{(found - expected).abs().max():.2g}): a module behind a cut changes in place what "
            "others still use; let it change a copy (inplace=False), or cut elsewhere"
        )


def _two_samples(
    shape: Sequence[int], fields: Sequence[Field], integers: bool, dtype: torch.dtype
) -> torch.Tensor:
    if fields:  # masks of ones, as a row that attends to nothing is no number
        steps = fields[0].shape[:1] < (0,)
        shapes = [tuple(map(abs, one.shape)) for one in fields]
        each = [
            _two_samples(one, (), field.kind != "float", dtype)
            for one, field in zip(shapes, fields, strict=True)
        ]
        ones = [
            torch.ones_like(x) if "mask" in one.name else x
            for one, x in zip(fields, each, strict=True)
        ]
        return join([x.to(dtype) for x in ones], steps=steps)
    if integers:
        return (torch.arange(2 * math.prod(shape)) % 2).reshape(2, *shape)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, generator=generator).to(dtype)
