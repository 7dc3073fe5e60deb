"""A module of PyTorch as a layer: beside the NumPy layers, and behind a stage's own demands."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

import torch_models as models  # noqa: E402
from torch import nn  # noqa: E402

from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.layers import make_layer  # noqa: E402
from asyncdni.nn.optimizers import flatten  # noqa: E402
from asyncdni.nn.streams import layer_streams, stream  # noqa: E402
from asyncdni.nn.torch import compiler  # noqa: E402
from asyncdni.nn.torch.layer import ModuleLayer  # noqa: E402
from asyncdni.stages.numpy.versions import Versions  # noqa: E402

SAMPLES = 5
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
Make = Callable[[], Any]
Slot = dict[str, Any]


def numbers(*shape: int, key: int = 0) -> np.ndarray:
    return stream(0, "numbers", "test", key).normal(size=shape).astype(np.float32)


def layer_of(make: Make, shape: tuple[int, ...], *, empty: bool = False) -> ModuleLayer:
    """The layer, built, with its parameters on one flat vector as in a stage."""

    def made(device: str) -> Any:
        with torch.device(device):
            return make()

    layer = ModuleLayer("the module", made)
    build = layer.build_empty if empty else layer.build
    build(shape, np.dtype("float32"), layer_streams(0, "layer"))
    return layer


def stage_of(make: Make, shape: tuple[int, ...]) -> tuple[ModuleLayer, np.ndarray, np.ndarray]:
    """The layer, its weights and its gradients as vectors."""
    layer = layer_of(make, shape)
    return (layer, *flatten([layer]))


# --- beside NumPy's layers -----------------------------------------------------------------------


@each(
    "spec, make, shape",
    [
        ({"dense": 4}, lambda: nn.Linear(6, 4), (6,)),
        ({"dense": {"width": 4, "bias": False}}, lambda: nn.Linear(6, 4, bias=False), (6,)),
        ("batch_norm", lambda: nn.BatchNorm1d(6), (6,)),
        ("batch_norm", lambda: nn.BatchNorm2d(3), (3, 4, 4)),
        ("relu", lambda: nn.ReLU(), (6,)),
        ("relu", lambda: nn.ReLU(inplace=True), (6,)),
        ("tanh", lambda: nn.Tanh(), (6,)),
        ("sigmoid", lambda: nn.Sigmoid(), (6,)),
        ("flatten", lambda: nn.Flatten(), (3, 4, 4)),
        ("layer_norm", lambda: nn.LayerNorm(6), (6,)),
        (
            {"conv2d": {"channels": 4, "kernel": 3, "padding": 1}},
            lambda: nn.Conv2d(3, 4, 3, padding=1),
            (3, 6, 6),
        ),
        ({"max_pool": 2}, lambda: nn.MaxPool2d(2), (3, 6, 6)),
        ({"average_pool": 2}, lambda: nn.AvgPool2d(2), (3, 6, 6)),
    ],
)
def test_a_module_does_what_the_numpy_layer_of_its_kind_does(
    spec: Any, make: Make, shape: tuple[int, ...]
) -> None:
    own = make_layer(spec, where="test")
    assert own.build(shape, np.dtype("float32"), layer_streams(0, "own")) == layer_of(
        make, shape
    ).output_shape(shape)
    layer, _, _ = stage_of(make, shape)
    for name, array in own.params.items():
        np.copyto(layer.params[name], array)
    slots: tuple[Slot, Slot] = {}, {}
    for batch in range(3):  # gradients add up
        x = numbers(SAMPLES - batch, *shape, key=batch)
        mine, theirs = layer.forward(x.copy(), slots[0]), own.forward(x.copy(), slots[1])
        np.testing.assert_allclose(mine, theirs, **CLOSE)
        grad_y = numbers(*mine.shape, key=9 + batch)
        given = layer.backward(grad_y.copy(), slots[0], learn=True, send=True)
        expected = own.backward(grad_y.copy(), slots[1], learn=True, send=True)
        np.testing.assert_allclose(given, expected, **CLOSE)
        for name, array in own.grads.items():
            np.testing.assert_allclose(layer.grads[name], array, **CLOSE)
    for name, array in own.buffers.items():
        np.testing.assert_allclose(layer.buffers[name], array, **CLOSE)
    x = numbers(SAMPLES, *shape, key=20)
    np.testing.assert_allclose(layer.evaluate(x.copy()), own.evaluate(x.copy()), **CLOSE)


# --- many batches in flight ----------------------------------------------------------------------


def by_hand(module: Any, x: np.ndarray, grad_y: np.ndarray) -> tuple[Any, list[Any]]:
    """The gradients of the input and of the weights, by PyTorch alone."""
    given = torch.from_numpy(x.copy()).requires_grad_()
    wanted = [given, *(p for p in module.parameters() if p.requires_grad)]
    grad_x, *found = torch.autograd.grad(module(given), wanted, torch.from_numpy(grad_y))
    return grad_x.numpy(), [one.numpy() for one in found]


def hidden() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def copy_of(layer: ModuleLayer, vector: np.ndarray) -> Any:
    """A module of its own with the weights in `vector`."""
    module, start = hidden(), 0
    with torch.no_grad():
        for one in module.parameters():
            part = vector[start : start + one.numel()].reshape(tuple(one.shape))
            one.copy_(torch.from_numpy(part.copy()))
            start += one.numel()
    return module


def vector_of(grads: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([one.ravel() for one in grads])


def test_batches_in_flight_go_back_in_any_order() -> None:
    layer, params, grads = stage_of(hidden, (6,))
    slots: list[Slot] = [{} for _ in range(4)]
    xs = [numbers(SAMPLES, 6, key=i) for i in range(4)]
    grad_y = numbers(SAMPLES, 4, key=8)
    for x, slot in zip(xs, slots, strict=True):
        layer.forward(x, slot)
    for index in (2, 0, 3, 1):
        layer.fresh = True
        grad_x = layer.backward(grad_y, slots[index], learn=True, send=True)
        expected, own = by_hand(copy_of(layer, params), xs[index], grad_y)
        np.testing.assert_array_equal(grad_x, expected)
        np.testing.assert_array_equal(grads, vector_of(own))


@each("stash, look_ahead", [(False, 0.0), (True, 0.0), (False, 1.5), (True, 1.5)])
def test_late_gradients_go_through_the_weights_that_the_schedule_asks_for(
    stash: bool, look_ahead: float
) -> None:
    """Three batches are forwarded before two updates each; all go back after the last one. With
    the present weights, a backward computes with the forward's activations and with the weights
    of now, which PyTorch alone would refuse to do."""
    layer, params, grads = stage_of(hidden, (6,))
    versions = Versions([layer], params, stash=stash, look_ahead=look_ahead)
    grad_y = numbers(SAMPLES, 4, key=8)
    flight, ahead = [], params.copy()
    for batch in range(3):
        x, slot, version = numbers(SAMPLES, 6, key=batch), {}, versions.take(batch)
        with versions.forward(version):
            y = layer.forward(x, slot)
        used = copy_of(layer, ahead)
        np.testing.assert_array_equal(y, used(torch.from_numpy(x)).detach().numpy())
        flight.append((x, slot, version, ahead))
        for step in range(2):
            versions.before_update()
            before = params.copy()
            params += 0.1 * numbers(params.size, key=30 + 2 * batch + step)
            ahead = params + np.float32(look_ahead) * (params - before)
            versions.after_update()
        if not look_ahead:
            ahead = params.copy()
    for x, slot, version, weights in flight:
        layer.fresh = True
        before = params.copy()
        with versions.backward(version):
            grad_x = layer.backward(grad_y, slot, learn=True, send=True)
        np.testing.assert_array_equal(params, before)
        expected_x, own = late_by_hand(x, grad_y, weights, weights if stash else params)
        np.testing.assert_allclose(grad_x, expected_x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grads, own, rtol=1e-5, atol=1e-6)


def late_by_hand(
    x: np.ndarray, grad_y: np.ndarray, then: np.ndarray, now: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Backpropagation through `hidden` whose forward went through the weights `then` and whose
    backward goes through the weights `now`."""
    first, bias, second = (then[:48].reshape(8, 6), then[48:56], now[56:88].reshape(4, 8))
    h = np.tanh(x @ first.T + bias)
    before = (grad_y @ second) * (1 - h**2)
    grads = [before.T @ x, before.sum(0), grad_y.T @ h, grad_y.sum(0)]
    return before @ now[:48].reshape(8, 6), vector_of(grads)


def test_a_second_backward_of_one_batch_gives_the_same() -> None:
    layer, _, grads = stage_of(hidden, (6,))
    slot: Slot = {}
    layer.forward(numbers(SAMPLES, 6), slot)
    grad_y = numbers(SAMPLES, 4, key=8)
    first = layer.backward(grad_y, slot, learn=True, send=True)
    once = grads.copy()
    second = layer.backward(grad_y, slot, learn=True, send=True)
    np.testing.assert_array_equal(first, second)
    assert first is not second
    np.testing.assert_array_equal(grads, 2 * once)


def test_gradients_may_be_sent_first_and_learned_from_later() -> None:
    layer, _, grads = stage_of(hidden, (6,))
    x, grad_y, slot = numbers(SAMPLES, 6), numbers(SAMPLES, 4, key=8), dict[str, Any]()
    layer.forward(x, slot)
    whole = layer.backward(grad_y, slot, learn=True, send=True)
    expected = grads.copy()
    layer.fresh = True
    np.testing.assert_array_equal(layer.backward(grad_y, slot, learn=False, send=True), whole)
    assert layer.fresh
    assert layer.backward(grad_y, slot, learn=True, send=False) is None
    np.testing.assert_array_equal(grads, expected)


def test_the_memory_of_a_released_batch_is_freed() -> None:
    layer, _, _ = stage_of(hidden, (6,))
    slot: Slot = {}
    layer.forward(numbers(SAMPLES, 6), slot)
    layer.backward(numbers(SAMPLES, 4), slot, learn=True, send=True)
    graph = weakref.ref(slot["graph"][1])
    layer.release(slot)
    gc.collect()
    assert graph() is None


# --- weights -------------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_are_saved() -> None:
    layer, params, grads = stage_of(lambda: models.frozen_below(8, 6, 4), (6,))
    assert set(layer.params) == {"6.weight", "6.bias"}
    assert {"0.weight", "1.weight", "1.running_mean"} <= set(layer.buffers)
    before = layer.buffers["0.weight"].copy()
    slot: Slot = {}
    layer.forward(numbers(SAMPLES, 6), slot)
    assert layer.backward(numbers(SAMPLES, 4), slot, learn=True, send=True).any()
    assert np.isfinite(grads).all()
    params -= 0.1 * grads
    np.testing.assert_array_equal(layer.buffers["0.weight"], before)
    layer.buffers["0.weight"][...] = 0  # a checkpoint is copied into it, and the module has it
    layer.buffers["0.bias"][...] = 0
    np.testing.assert_array_equal(
        layer.evaluate(numbers(2, 6)), layer.evaluate(numbers(2, 6, key=1))
    )


def test_a_module_without_anything_to_learn_passes_gradients_on() -> None:
    def make() -> Any:
        module = hidden()
        module.requires_grad_(False)
        return module

    layer, params, _ = stage_of(make, (6,))
    assert not params.size
    slot: Slot = {}
    x, grad_y = numbers(SAMPLES, 6), numbers(SAMPLES, 4, key=8)
    layer.forward(x, slot)
    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    assert grad_x is not None and grad_x.any() and not layer.fresh


def test_dropout_is_that_of_the_batch_whenever_it_is_forwarded() -> None:
    layer, _, _ = stage_of(lambda: models.dropped(16, 6, 4), (6,))
    x = numbers(SAMPLES, 6)
    first = layer.forward(x, {"batch": 3}).copy()
    other = layer.forward(x, {"batch": 4}).copy()
    torch.manual_seed(99)
    again = layer.forward(x, {"batch": 3})
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, layer.evaluate(x))


def test_evaluation_leaves_buffers_weights_and_training_alone() -> None:
    layer, params, _ = stage_of(lambda: models.mlp(8, 6, 4), (6,))
    layer.forward(numbers(SAMPLES, 6), {})
    before = {name: one.copy() for name, one in layer.buffers.items()}, params.copy()
    layer.evaluate(3 + numbers(SAMPLES, 6))
    for name, one in layer.buffers.items():
        np.testing.assert_array_equal(one, before[0][name])
    np.testing.assert_array_equal(params, before[1])
    layer.forward(numbers(SAMPLES, 6), {})
    assert layer.buffers["1.num_batches_tracked"] == 2


def test_an_evaluation_that_fails_leaves_the_module_in_training() -> None:
    layer, _, _ = stage_of(lambda: models.dropped(16, 6, 4), (6,))
    with pytest.raises(RuntimeError):
        layer.evaluate(numbers(SAMPLES, 7))
    x = numbers(SAMPLES, 6)
    assert not np.array_equal(layer.forward(x, {"batch": 1}), layer.forward(x, {"batch": 2}))


def test_whole_numbers_come_in_as_floating_ones() -> None:
    layer, _, grads = stage_of(lambda: models.lstm(12, 6), (8,))
    ids = np.arange(3 * 8).reshape(3, 8) % 12
    slot: Slot = {}
    y = layer.forward(ids.astype(np.float32), slot)
    assert y.shape == (3, 8, 12)
    sent = layer.backward(np.ones_like(y), slot, learn=True, send=True)
    assert sent is not None and not sent.any() and grads.any()


def test_a_module_may_be_built_without_memory_for_its_initial_weights() -> None:
    full, empty = (
        layer_of(lambda: models.mlp(8, 6, 4), (6,), empty=empty) for empty in (False, True)
    )
    for kind in ("params", "buffers", "grads"):
        mine, theirs = getattr(empty, kind), getattr(full, kind)
        assert {n: a.shape for n, a in mine.items()} == {n: a.shape for n, a in theirs.items()}
    for mine, theirs in ((empty.params, full.params), (empty.buffers, full.buffers)):
        for name, array in mine.items():
            np.copyto(array, theirs[name])
    x = numbers(SAMPLES, 6)
    np.testing.assert_array_equal(empty.forward(x, {}), full.forward(x, {}))
    np.testing.assert_array_equal(empty.evaluate(x), full.evaluate(x))


def test_the_initial_weights_are_those_of_the_stream() -> None:
    torch.manual_seed(5)
    one = layer_of(hidden, (6,))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the program's own random numbers go on
    other = layer_of(hidden, (6,))
    for name, array in one.params.items():
        np.testing.assert_array_equal(array, other.params[name])


# --- inputs and outputs --------------------------------------------------------------------------


def test_a_module_that_changes_its_input_does_not_change_the_message() -> None:
    layer, _, _ = stage_of(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), (6,))
    x = numbers(SAMPLES, 6)
    before = x.copy()
    x.setflags(write=False)
    slot: Slot = {}
    layer.forward(x, slot)
    grad_x = layer.backward(numbers(SAMPLES, 4), slot, learn=True, send=True)
    layer.evaluate(x)
    np.testing.assert_array_equal(x, before)
    assert grad_x is not None and not grad_x[before < 0].any()


def test_an_input_at_any_address_gives_the_same_bits() -> None:
    layer, _, _ = stage_of(lambda: models.mlp(33, 37, 5), (37,))
    x = numbers(SAMPLES, 37)
    expected = layer.evaluate(x)
    room = np.empty(x.size + 16, np.float32)
    for start in range(1, 16):
        moved = room[start : start + x.size].reshape(x.shape)
        moved[...] = x
        np.testing.assert_array_equal(layer.evaluate(moved), expected)


@each(
    "make, shape, words",
    [
        (lambda: nn.Linear(6, 4), (7,), ["does not take inputs of shape (7,)"]),
        (lambda: nn.LSTM(6, 4, batch_first=True), (3, 6), ["returns a tuple", "one tensor"]),
        (lambda: nn.Flatten(0), (6,), ["one row a sample"]),
        (models.Largest, (6,), ["torch.int64", "floating"]),
    ],
)
def test_a_module_that_does_not_fit_is_refused(
    make: Make, shape: tuple[int, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        layer_of(make, shape)
    for word in ["the module", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_replaces_a_buffer_is_refused_as_it_could_not_be_saved() -> None:
    layer, _, _ = stage_of(models.ReplacesBuffer, (6,))
    with pytest.raises(ConfigError, match=r"the buffer mean, .* in place"):
        layer.forward(numbers(SAMPLES, 6), {})


def test_a_table_is_read_as_its_logits() -> None:
    class Table(nn.Linear):
        def forward(self, input: Any) -> Any:
            y = super().forward(input)
            return {"hidden": y + 1, "logits": y}

    table, plain = layer_of(lambda: Table(6, 4), (6,)), layer_of(lambda: nn.Linear(6, 4), (6,))
    x = numbers(SAMPLES, 6)
    assert np.array_equal(table.forward(x, {}), plain.forward(x, {}))
    assert np.array_equal(table.evaluate(x), plain.evaluate(x))


# --- the compiler --------------------------------------------------------------------------------


def test_who_imports_a_part_of_the_compiler_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "slow_compiler"
    folder.mkdir()
    (folder / "__init__.py").write_text("loaded = True\n")
    (folder / "part.py").write_text("number = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiler, "_COMPILER", "slow_compiler")
    with compiler.without_compiler():
        stand_in: Any = importlib.import_module("slow_compiler")
        assert "loaded" not in vars(stand_in) and stand_in.disable(numbers) is numbers
    assert "slow_compiler" not in sys.modules
    with compiler.without_compiler():
        assert importlib.import_module("slow_compiler.part").number == 7
        assert sys.modules["slow_compiler"].loaded
    for name in ("slow_compiler", "slow_compiler.part"):
        monkeypatch.delitem(sys.modules, name)
