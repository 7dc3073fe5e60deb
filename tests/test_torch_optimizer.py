"""Optimizers of `torch.optim` on a stage's flat vector, against `torch.optim` itself."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

from asyncdni import experiment  # noqa: E402
from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.streams import stream  # noqa: E402
from asyncdni.nn.torch.optimizer import OPTIMIZERS, TorchOptimizer, check_class  # noqa: E402
from asyncdni.plan.build import make_design  # noqa: E402

SHAPES = [(4, 3), (3,), (2, 3, 2, 2), (1,)]
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
RATES = [0.1, 0.05, 0.2, 0.2, 0.01, 0.3]
SCALE = 1 / 8
FUSED = "SGD", "Adam", "AdamW", "Adagrad"
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in OPTIMIZERS if kind not in ("Muon", "SOAP")),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"amsgrad": True, "betas": [0.8, 0.99], "weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.3, "eps": 1e-6}),
    ("NAdam", {"momentum_decay": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("SGD", {"momentum": 0.9, "fused": False}),
    ("Adam", {"weight_decay": 0.1, "fused": False}),
]


def numbers(key: int) -> np.ndarray:
    return stream(0, "optimizer", "test", key).normal(size=SIZE).astype(np.float32)


def plain(kind: str, options: dict[str, Any], steps: int) -> np.ndarray:
    """The weights after so many steps of a plain loop."""
    vector, tensors = torch.from_numpy(numbers(99)), []
    for part, shape in zip(split(vector), SHAPES, strict=True):
        tensors.append(torch.nn.Parameter(part.clone().reshape(shape)))
    fused = {"fused": True} if kind in FUSED and "fused" not in options else {}
    package = sys.modules["pytorch_optimizer"] if kind == "SOAP" else torch.optim
    optimizer = getattr(package, kind)(tensors, **options, **fused)
    for step in range(steps):
        grads = split(torch.from_numpy(numbers(step)))
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = grad.clone().reshape(tensor.shape).mul_(SCALE)
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.step()
    return np.concatenate([one.detach().numpy().ravel() for one in tensors])


def split(vector: Any) -> Any:
    return torch.split(vector, [int(np.prod(shape)) for shape in SHAPES])


def started(kind: str, options: dict[str, Any]) -> tuple[TorchOptimizer, np.ndarray]:
    optimizer, params = TorchOptimizer(kind, options, SHAPES), numbers(99)
    optimizer.start(params)
    np.testing.assert_array_equal(params, numbers(99))
    return optimizer, params


def step(optimizer: TorchOptimizer, params: np.ndarray, grads: np.ndarray, index: int) -> None:
    grads[...] = numbers(index)  # one vector for all steps, as in a stage
    optimizer.step(params, grads, RATES[index], SCALE)


@each("kind, options", OPTIONS)
def test_steps_are_those_of_a_plain_loop(kind: str, options: dict[str, Any]) -> None:
    optimizer, params = started(kind, options)
    grads = np.empty_like(params)
    for index in range(len(RATES)):
        step(optimizer, params, grads, index)
        np.testing.assert_array_equal(params, plain(kind, options, index + 1))


@each("kind, options", OPTIONS)
def test_a_state_that_is_copied_into_another_goes_on(kind: str, options: dict[str, Any]) -> None:
    first, params = started(kind, options)
    grads = np.empty_like(params)
    for index in range(3):
        step(first, params, grads, index)
    state = {name: array.copy() for name, array in first.state.items()}
    other, moved = started(kind, options)
    assert {n: (a.shape, a.dtype) for n, a in other.state.items()} == {
        n: (a.shape, a.dtype) for n, a in state.items()
    }
    np.copyto(moved, params)
    for name, array in state.items():
        np.copyto(other.state[name], array)
    for index in range(3, len(RATES)):
        step(other, moved, np.empty_like(params), index)
    np.testing.assert_array_equal(moved, plain(kind, options, len(RATES)))


def test_gradients_may_come_in_another_vector_each_time() -> None:
    optimizer, params = started("Adam", {})
    for index in range(3):
        step(optimizer, params, np.empty_like(params), index)
    np.testing.assert_array_equal(params, plain("Adam", {}, 3))


def test_steps_are_not_told_to_the_profiler_which_costs_as_much_as_a_small_one() -> None:
    optimizer, params = started("SGD", {})
    tensor = torch.nn.Parameter(torch.ones(3))
    tensor.grad = torch.ones(3)
    of_pytorch = torch.optim.SGD([tensor], lr=0.1, fused=True)

    def told(make_step: Callable[[], object]) -> list[str]:
        with torch.autograd.profiler.profile() as seen:
            make_step()
        return [one.name for one in seen.function_events]

    names = told(of_pytorch.step)
    assert "Optimizer.step#SGD.step" in names and "aten::_fused_sgd_" in names
    names = told(lambda: step(optimizer, params, numbers(0), 0))
    assert "Optimizer.step#SGD.step" not in names and "aten::_fused_sgd_" in names


def test_a_stage_without_weights_needs_no_optimizer() -> None:
    TorchOptimizer("Adam", {}, []).start(np.empty(0, np.float32))


@each(
    "kind, options, words",
    [
        ("Adam2", {}, ["optimizer.kind", "'Adam2'", "RMSprop"]),
        ("LBFGS", {}, ["optimizer.kind", "'LBFGS'"]),
        ("Adam", {"beta": 1}, ["optimizer.options", "Adam", "beta"]),
        ("Adam", {"betas": [2, 3]}, ["optimizer.options", "beta"]),
        ("SGD", {"nesterov": True}, ["optimizer.options", "momentum"]),
        ("Muon", {"momentum": -1}, ["optimizer.options", "Muon", "momentum"]),
        ("Adam", {"lr": 0.1}, ["optimizer.options", "optimizer.learning_rate"]),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, ["optimizer.options", "dampening"]),
        ("Adam", {"foreach": "yes", "fused": "no"}, ["optimizer.options"]),
    ],
)
def test_what_pytorch_does_not_have_is_refused(
    kind: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        TorchOptimizer(kind, options, SHAPES)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon since 2.9")
def test_muon_moves_matrices_and_adamw_all_else() -> None:
    tensors = [
        torch.nn.Parameter(part.clone().reshape(shape))
        for part, shape in zip(split(torch.from_numpy(numbers(99))), SHAPES, strict=True)
    ]
    plain = (
        torch.optim.Muon(tensors[:1], weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(tensors[1:], weight_decay=0.3),
    )
    options = {"weight_decay": 0.3}
    first, params = started("Muon", options)
    for index in range(len(RATES)):
        for tensor, grad in zip(tensors, split(torch.from_numpy(numbers(index))), strict=True):
            tensor.grad = grad.clone().reshape(tensor.shape).mul_(SCALE)
        for own in plain:
            own.param_groups[0]["lr"] = RATES[index]
            own.step()
        if index == 3:
            first, params = restored("Muon", options, first, params)
        step(first, params, np.empty_like(params), index)
        expected = np.concatenate([one.detach().numpy().ravel() for one in tensors])
        np.testing.assert_array_equal(params, expected)


def restored(
    kind: str, options: dict[str, Any], first: TorchOptimizer, params: np.ndarray
) -> tuple[TorchOptimizer, np.ndarray]:
    """Another optimizer that goes on from the first one's checkpoint."""
    second, moved = started(kind, options)
    np.copyto(moved, params)
    for name, array in first.state.items():
        np.copyto(second.state[name], array)
    return second, moved


def test_soap_is_that_of_its_package_and_goes_on_from_a_checkpoint() -> None:
    pytest.importorskip("pytorch_optimizer")
    options = {"precondition_frequency": 2, "max_precondition_dim": 3}  # one side has no basis
    first, params = started("SOAP", options)
    for index in range(len(RATES)):
        if index == 3:
            first, params = restored("SOAP", options, first, params)
        step(first, params, np.empty_like(params), index)
        np.testing.assert_array_equal(params, plain("SOAP", options, index + 1))


def test_soap_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install pytorch-optimizer"):
        TorchOptimizer("SOAP", {}, SHAPES)


# --- classes of the user's -----------------------------------------------------------------------

CLASSES = '''
import torch


class Heavy(torch.optim.Optimizer):
    """Momentum, and a rate that falls with the steps, which the group counts."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "step": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] += 1
            for one in group["params"]:
                state = self.state[one]
                if not state:
                    state["sum"] = self.first(one)
                self.add(state, group["momentum"], one)
                one.sub_(state["sum"], alpha=group["lr"] / group["step"])

    def first(self, one):
        return torch.zeros_like(one)

    def add(self, state, momentum, one):
        state["sum"].mul_(momentum).add_(one.grad)


class FromOne(Heavy):
    def first(self, one):
        return torch.ones_like(one)


class Listed(Heavy):
    def add(self, state, momentum, one):
        state["seen"] = [*state.get("seen", []), one.grad.clone()]
        state["sum"] = sum(state["seen"])


class Broken(Heavy):
    def add(self, state, momentum, one):
        raise KeyError("nothing")


Function = len
'''


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with the classes above."""
    (tmp_path / "heavy_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "heavy_classes"
    sys.modules.pop("heavy_classes", None)


def test_a_class_of_the_user_steps_as_in_a_plain_loop_and_goes_on_from_its_state(
    classes: str,
) -> None:
    options = {"momentum": 0.8}
    check_class(f"{classes}:Heavy", options, allow_import=(classes,))
    optimizer = TorchOptimizer(f"{classes}:Heavy", options, [(2, 2)], allow_import=True)
    params, total = np.zeros(4, np.float32), np.zeros(4, np.float32)
    expected = params.copy()
    optimizer.start(params)
    for index in range(4):
        grads = numbers(index)[:4]
        total = np.float32(0.8) * total + grads
        expected -= np.float32(0.1 / (index + 1)) * total
        optimizer.step(params, grads.copy(), 0.1)
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)
    assert set(optimizer.state) == {"0.sum", "step"}
    assert optimizer.state["step"] == 4


@each(
    "name, allow, words",
    [
        ("FromOne", True, ["state that can't be saved", "begin at zero"]),
        ("Listed", True, ["state that can't be saved"]),
        ("Broken", True, ["fails in a trial", "KeyError"]),
        ("Function", True, ["no class derived from torch.optim.Optimizer"]),
        ("Absent", True, ["has no 'Absent'"]),
        ("Heavy", False, ["--allow-import"]),
        ("Heavy", ("other",), ["--allow-import allows other alone"]),
    ],
)
def test_a_class_that_can_not_be_used_is_refused(
    classes: str, name: str, allow: Any, words: list[str]
) -> None:
    kind = f"{classes}:{name}"
    tables = {"name": "torch", "kind": kind}
    design = networks.design(networks.chain(2), {"name": "locked"})
    chosen = experiment.parse({**experiment.tables(design.experiment), "optimizer": tables})
    with pytest.raises(ConfigError) as caught:
        make_design(chosen, design.meta, allow_import=allow)
    for word in words:
        assert word in str(caught.value)
