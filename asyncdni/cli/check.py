"""`asyncdni check`: try out a layer, a generator or a module of one's own, before it trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from asyncdni.errors import ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.imports import import_named, look_in_current_folder
from asyncdni.nn.check import Finding, check_generator, check_layer
from asyncdni.nn.generators import GENERATORS, Generator, make_generator
from asyncdni.nn.layers import make_layer
from asyncdni.nn.losses import LOSSES
from asyncdni.report.columns import counted

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "check a layer, a generator or a module of your own: gradients, shapes, slots, replay"
EXAMPLE = """\
  asyncdni check mylayers:Scale --shape 8
  asyncdni check mymodels:Block --shape 16,8,8 --option channels=16
  asyncdni check mymodels:MyGenerator --generator --shape 128 --outputs 10 --option width=128
  asyncdni check lstm --shape 5,8 --option units=4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help='"package.module:Class" of your own, which is imported, or a layer or generator of '
        "this package",
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        required=True,
        metavar="N,N",
        help="shape of one sample that it is given, such as 8 or 3,32,32",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of its class; may be given several times",
    )
    parser.add_argument(
        "--generator",
        action="store_true",
        help="check a generator; a class with the methods predict and fit is one anyway",
    )
    parser.add_argument(
        "--outputs", type=int, default=10, metavar="K", help="a generator's targets (default: 10)"
    )
    parser.add_argument(
        "--loss",
        choices=sorted(LOSSES),
        default="cross_entropy",
        help="the loss that a generator's targets are of (default: cross_entropy)",
    )


def run(args: argparse.Namespace) -> int:
    """Check and print; return 1 if anything is wrong. Raises `ConfigError` for what can't be
    made."""
    look_in_current_folder()
    name, options = args.name, _options(args.option)
    found = import_named(name, "class", allow_import=True) if ":" in name else None
    if args.generator or _is_generator(found):
        if args.outputs < 1:
            raise ConfigError(f"--outputs {args.outputs}: expected at least 1")
        make = _generator_maker(name, found, options)
        findings = check_generator(make, args.shape, args.outputs, args.loss)
    else:
        spec = {name: options}
        if found is not None and (_is_module(found) or not isinstance(found, type)):
            spec = {"module": {"build": name, "arguments": options}}
        make_layer(spec, where="check", allow_import=True)  # raises for what can't be made
        findings = check_layer(
            lambda: make_layer(spec, where="check", allow_import=True), args.shape
        )
    print("\n".join(_lines(findings)))
    return int(any(one.wrong for one in findings))


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines = [f"{'WRONG' if one.wrong else 'ok':6} {_told(one)}" for one in findings]
    wrong = sum(bool(one.wrong) for one in findings)
    lines.append(f"{counted(len(findings), 'check')}, {wrong or 'nothing'} wrong")
    return lines


def _told(one: Finding) -> str:
    return f"{one.what}: {one.wrong}" if one.wrong else one.what


def _generator_maker(name: str, found: Any, options: dict[str, Any]) -> Callable[[], Generator]:
    if found is None:
        if name not in GENERATORS:
            raise ConfigError(
                f"generator {name!r} is unknown: expected one of {', '.join(GENERATORS)}, or a "
                'class of your own as "package.module:Class"'
            )
        return lambda: make_generator(name, **options)
    if _is_generator(found):
        return lambda: _made(name, found, options)
    from asyncdni.nn.torch.generator import module_generator

    return lambda: module_generator(name, options, learning_rate=3e-3, allow_import=True)


def _made(name: str, kind: Callable[..., Generator], options: dict[str, Any]) -> Generator:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} can't be made from {options!r}: {error}") from error


def _is_generator(found: object) -> bool:
    return all(callable(getattr(found, method, None)) for method in ("predict", "fit"))


def _is_module(found: object) -> bool:
    """Tell whether it is a class of modules of PyTorch. Whoever has one has imported PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(found, type) and issubclass(found, torch.nn.Module)


def _options(texts: Sequence[str]) -> dict[str, Any]:
    options = {}
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"--option {text}: expected NAME=VALUE, such as width=8")
        keys, value = parse_setting(text)
        options[".".join(keys)] = value
    return options


def _shape(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers from 1, such as 3,32,32")
    return found
