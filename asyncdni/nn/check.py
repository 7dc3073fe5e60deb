"""Check that a layer or a generator does what a stage relies on, one `Finding` for each rule.

`check_layer` compares the backward with finite differences in float64, and tries out what
`nn.base.Layer` promises: shapes, dtypes, several batches in flight, a batch that is pushed back or
forwarded again. `check_generator` does so for what `nn.generators.base.Generator` promises.
`FirstBatch` has the few rules that every run checks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Layer, Slot, fits
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.streams import layer_streams, stream

__all__ = ["Finding", "FirstBatch", "check_generator", "check_layer"]


@dataclass(frozen=True)
class Finding:
    """What was checked, and what is wrong with it; nothing is where `wrong` is empty."""

    what: str
    wrong: str = ""


# --- the first batch of a run --------------------------------------------------------------------


class FirstBatch:
    """Checks the first output of each layer of a stage, and the first gradient that it returns.

    `outputs` and `gradients` are the numbers of the layers that have not been looked at yet.
    """

    def __init__(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: np.dtype[Any],
        varying: tuple[bool, bool] = (False, False),
    ) -> None:
        """`names` are those of the layers, for messages; `shapes` are those of one sample before,
        between and after them; `varying`: whether the first axis of the first and of the last of
        these is the batch's length, of which they have the most."""
        self._names, self._shapes, self._dtype = names, shapes, dtype
        self._varying = {0: varying[0], len(names): varying[1]}
        self.outputs = set(range(len(names)))
        self.gradients = set(range(len(names)))

    def check_output(self, i: int, y: Any, samples: int) -> None:
        """Raise `ConfigError` unless y, which layer `i` has returned from a forward, has the shape
        that it has declared and the run's dtype; the last layer's output must be in C order too, as
        it is sent on."""
        self.outputs.discard(i)
        what = f"{self._names[i]}: its forward returned"
        shape = self._shape(i + 1, y, samples)
        _check_array(y, shape, self._dtype, what, sent=i == len(self._names) - 1)

    def check_gradient(self, i: int, grad: Any, samples: int) -> None:
        """Raise `ConfigError` unless `grad`, which layer `i` has returned from a backward, has the
        shape of its inputs and the run's dtype; that of the first layer must be in C order too."""
        self.gradients.discard(i)
        what = f"{self._names[i]}: its backward returned"
        _check_array(grad, self._shape(i, grad, samples), self._dtype, what, sent=i == 0)

    def _shape(self, place: int, found: Any, samples: int) -> tuple[int, ...]:
        """The shape that an array must have, given the one that was found."""
        shape, varying = self._shapes[place], self._varying.get(place, False)
        own = tuple(np.shape(found)[1:])
        return (samples, *(own if fits(own, shape, varying) else shape))


def _check_array(
    found: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str, *, sent: bool = True
) -> None:
    expected = f"expected {dtype} {shape}"
    if not isinstance(found, np.ndarray):
        raise ConfigError(f"{what} a {type(found).__name__}, {expected}, a NumPy array")
    if (found.shape, found.dtype) != (shape, dtype):
        raise ConfigError(f"{what} {found.dtype} {found.shape}, {expected}")
    if sent and not found.flags.c_contiguous:
        raise ConfigError(
            f"{what} an array that is not in C order, which no message can carry; return "
            "np.ascontiguousarray(…) of it"
        )


# --- layers --------------------------------------------------------------------------------------

_SAMPLES, _FEWER = 4, 3
#: Steps of finite differences, and how far a gradient may be from them, as a share of the largest
#: element: in float64 differences are exact to some 1e-9, wrong gradients are off by far more.
_STEP, _TOLERANCE = 1e-5, 1e-5
#: Of each array so many elements are moved, drawn at random: each takes two forwards.
_ELEMENTS = 40


class _Trial:
    """A layer that has just been built, with parameters that differ from each other."""

    def __init__(
        self, make: Callable[[], Layer], shape: tuple[int, ...], dtype: str = "float64"
    ) -> None:
        self.layer, self.dtype = make(), np.dtype(dtype)
        self.inputs = shape
        self.outputs = tuple(self.layer.build(shape, self.dtype, layer_streams(0, "check")))
        rng = stream(0, "check", "parameters")
        for value in self.layer.params.values():
            value += 0.3 * rng.normal(size=value.shape)

    def x(self, key: int = 0, samples: int = _SAMPLES) -> Array:
        """Return inputs that nobody may write to, as those that come from another worker."""
        return _numbers((samples, *self.inputs), self.dtype, key)

    def grad_y(self, key: int = 7, samples: int = _SAMPLES) -> Array:
        """Return a gradient of the output that nobody may write to."""
        return _numbers((samples, *self.outputs), self.dtype, key)

    def forward(self, batch: int = 1, slot: Slot | None = None, **of_x: int) -> tuple[Array, Slot]:
        """Forward a batch in a slot, by default a new one."""
        x, slot = self.x(**of_x), {} if slot is None else slot
        sequences = np.ones(len(x), np.bool_)
        slot |= {"batch": batch, "context": {"first": sequences, "last": sequences}}
        return self.layer.forward(x, slot), slot

    def backward(self, slot: Slot, *, learn: bool = True, **of_grad: int) -> Array:
        """Push a gradient back; return a copy of that of the inputs."""
        found = self.layer.backward(self.grad_y(**of_grad), slot, learn=learn, send=True)
        assert found is not None, "backward with send returned None, expected the gradient of x"
        return found.copy()

    def pushed(self, slot: Slot, samples: int = _SAMPLES) -> list[Array]:
        """Push a gradient back, as the first of an update; return copies of the gradients of the
        inputs and of all parameters."""
        self.layer.fresh = True
        grad_x = self.backward(slot, samples=samples)
        return [grad_x, *_copies(self.layer.grads).values()]

    def value(self, x: Array, batch: int = 1) -> float:
        """Return the sum of outputs times `grad_y` for x, with the loss that a layer may have of
        its own, from a layer in the state of now."""
        layer = self.layer if hasattr(self.layer, "bind") else copy.deepcopy(self.layer)
        sequences = np.ones(len(x), np.bool_)
        slot: Slot = {"batch": batch, "context": {"first": sequences, "last": sequences}}
        y = layer.forward(x, slot)
        return float(np.vdot(y, self.grad_y())) + float(slot.get("loss", 0.0))


def check_layer(make: Callable[[], Layer], shape: tuple[int, ...]) -> list[Finding]:
    """Check a layer for inputs (B, *shape). `make` makes a new one each time, not yet built.

    Nothing is raised for what the layer does wrong: that is in the findings.
    """
    built = _tried("build: shapes and dtypes of parameters", lambda: _built(make, shape))
    if built.wrong:
        return [built]
    passes = [
        _tried(
            f"forward and backward in {dtype}: shapes and dtypes",
            partial(_on_trial, _passes, make, shape, dtype),
        )
        for dtype in ("float32", "float64")
    ]
    if any(one.wrong for one in passes):  # what else is wrong would follow from that
        return [built, *passes]
    names = list(_Trial(make, shape).layer.params)
    rules: dict[str, Callable[[_Trial], str]] = {
        "gradient of the inputs": _gradient_of_inputs,
        **{f"gradient of {name}": partial(_gradient_of_parameter, name) for name in names},
        "backward: learn and send": _learn_and_send,
        "backward: fresh and added gradients": _fresh,
        "slots: two batches in flight": _two_in_flight,
        "slots: a smaller batch after a larger one": _smaller_batch,
        "replay: a batch pushed back twice": _pushed_back_twice,
        "replay: a batch forwarded again": _forwarded_again,
        "evaluate: shape, dtype, no traces": _evaluated,
    }
    found = [_tried(what, partial(_on_trial, rule, make, shape)) for what, rule in rules.items()]
    return [built, *passes, *found]


def _on_trial(
    rule: Callable[[_Trial], str],
    make: Callable[[], Layer],
    shape: tuple[int, ...],
    dtype: str = "float64",
) -> str:
    return rule(_Trial(make, shape, dtype))


def _tried(what: str, rule: Callable[[], str]) -> Finding:
    """Check one rule; an exception of the user's code is what is wrong."""
    try:
        return Finding(what, rule())
    except AssertionError as error:
        return Finding(what, str(error) or "AssertionError")
    except ConfigError as error:
        return Finding(what, str(error))
    except Exception as error:  # the user's code may fail in any way
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0] if lines else ''}"
        if "read-only" in text:
            text += ": it writes into an array that is not its own"
        return Finding(what, text)


def _built(make: Callable[[], Layer], shape: tuple[int, ...]) -> str:
    declared = tuple(make().output_shape(shape))
    for dtype in ("float32", "float64"):
        trial = _Trial(make, shape, dtype)
        if trial.outputs != declared:
            return f"build returned {trial.outputs}, output_shape {declared}: expected the same"
        layer = trial.layer
        if layer.params.keys() != layer.grads.keys():
            return f"grads has {sorted(layer.grads)}, expected {sorted(layer.params)} as params"
        for name, value in layer.params.items():
            _check_array(value, value.shape, trial.dtype, f"parameter {name} is")
            _check_array(layer.grads[name], value.shape, trial.dtype, f"grads[{name!r}] is")
    return ""


def _passes(trial: _Trial) -> str:
    y, slot = trial.forward()
    _check_array(y, (_SAMPLES, *trial.outputs), trial.dtype, "forward returned")
    grad_x = trial.layer.backward(trial.grad_y(), slot, learn=True, send=True)
    _check_array(grad_x, (_SAMPLES, *trial.inputs), trial.dtype, "backward returned")
    for name, grad in trial.layer.grads.items():
        expected = trial.layer.params[name]
        _check_array(grad, expected.shape, expected.dtype, f"grads[{name!r}] became")
    return ""


def _gradient_of_inputs(trial: _Trial) -> str:
    x = trial.x().copy()
    numeric = _differences(lambda: trial.value(x), x)
    _, slot = trial.forward()
    return _compared(trial.backward(slot), numeric)


def _gradient_of_parameter(name: str, trial: _Trial) -> str:
    x = trial.x()
    if hasattr(trial.layer, "bind"):
        trial.layer.bind()
    numeric = _differences(lambda: trial.value(x), trial.layer.params[name])
    _, slot = trial.forward()
    trial.backward(slot)
    return _compared(trial.layer.grads[name], numeric)


def _differences(value: Callable[[], float], at: Array) -> dict[tuple[int, ...], float]:
    """Return d value() / d at by central differences, for some elements of `at`, which is changed
    in place and back."""
    rng, found = stream(0, "check", "elements"), {}
    for flat in sorted(rng.permutation(at.size)[:_ELEMENTS]):
        index = tuple(int(i) for i in np.unravel_index(flat, at.shape))
        kept = at[index]
        at[index] = kept + _STEP
        above = value()
        at[index] = kept - _STEP
        found[index] = (above - value()) / (2 * _STEP)
        at[index] = kept
    return found


def _compared(found: Array, numeric: Mapping[tuple[int, ...], float]) -> str:
    """Say where a gradient differs most from finite differences, and what the difference looks
    like; empty if it does not differ."""
    if not numeric:
        return ""
    expected = np.array(list(numeric.values()))
    given = np.array([found[index] for index in numeric])
    scale = max(1.0, float(np.abs(expected).max()))

    def close(to: Array) -> bool:
        return bool(np.abs(given - to).max() <= _TOLERANCE * scale)

    if close(expected):
        return ""
    worst = int(np.abs(given - expected).argmax())
    index = list(numeric)[worst]
    text = f"it is {given[worst]:.6g} at {index}, expected {expected[worst]:.6g} (by differences)"
    looks = {
        "its sign is reversed": -expected,
        "it is 0": 0 * expected,
        "it is divided by the number of samples, which the stage does": expected / _SAMPLES,
        "it is multiplied by the number of samples": expected * _SAMPLES,
    }
    return next((f"{text}: {words}" for words, to in looks.items() if close(to)), text)


def _learn_and_send(trial: _Trial) -> str:
    layer = trial.layer
    _, slot = trial.forward()
    layer.fresh = True
    before = _copies(layer.grads)
    trial.backward(slot, learn=False)
    if not layer.fresh or not _same(layer.grads, before):
        return "without learn it changed grads or fresh, expected both as before"
    if layer.backward(trial.grad_y(), slot, learn=True, send=False) is not None:
        return "without send it returned a gradient, expected None"
    if layer.params and layer.fresh:
        return "with learn it left fresh True, expected False"
    return ""


def _fresh(trial: _Trial) -> str:
    layer = trial.layer
    _, slot = trial.forward()
    for grad in layer.grads.values():
        grad.fill(np.nan)
    layer.fresh = True
    trial.backward(slot)
    once = _copies(layer.grads)
    for name, grad in once.items():
        if not np.isfinite(grad).all():
            return f"where fresh, grads[{name!r}] was added to what it held, expected overwritten"
    trial.backward(slot)
    for name, grad in layer.grads.items():
        if not np.allclose(grad, 2 * once[name], rtol=1e-9, atol=1e-12):
            return f"where not fresh, grads[{name!r}] was not added to, expected twice the first"
    return ""


def _two_in_flight(trial: _Trial) -> str:
    alone = []
    for key, batch in ((0, 1), (1, 2)):
        other = copy.deepcopy(trial) if not hasattr(trial.layer, "bind") else trial
        y, slot = other.forward(batch, key=key)
        alone.append((y.copy(), other.pushed(slot)))
    (first, one), (second, two) = trial.forward(1), trial.forward(2, key=1)
    if _carries(trial.layer):
        return ""  # the second batch begins where the first has ended
    for y, slot, (y_alone, grads) in ((second, two, alone[1]), (first, one, alone[0])):
        if not np.array_equal(y, y_alone):
            return (
                "the output of one batch changed with the forward of another: keep it in the slot"
            )
        if not _near(trial.pushed(slot), grads):
            return (
                "the backward of one batch uses what the forward of another has left: keep what "
                "backward needs in the slot, not in the layer"
            )
    return ""


def _smaller_batch(trial: _Trial) -> str:
    _, slot = trial.forward()
    trial.backward(slot)
    if _carries(trial.layer):
        return ""
    y, slot = trial.forward(2, slot, key=1, samples=_FEWER)
    expected = copy.deepcopy(trial) if not hasattr(trial.layer, "bind") else trial
    _check_array(y, (_FEWER, *trial.outputs), trial.dtype, "forward returned")
    y, grads = y.copy(), trial.pushed(slot, samples=_FEWER)
    y_new, slot_new = expected.forward(2, key=1, samples=_FEWER)
    if not np.array_equal(y, y_new) or not _near(expected.pushed(slot_new, samples=_FEWER), grads):
        return "in a slot that has been used it gives other numbers than in a new one"
    return ""


def _pushed_back_twice(trial: _Trial) -> str:
    _, slot = trial.forward()
    first = trial.layer.backward(trial.grad_y(), slot, learn=False, send=True)
    assert first is not None
    kept = first.copy()
    other = trial.layer.backward(trial.grad_y(key=8), slot, learn=True, send=True)
    if not np.array_equal(first, kept):
        return (
            "the second backward overwrote the gradient that the first has returned and that may "
            "still be on its way: return a new array, see nn.base.gradient"
        )
    assert other is not None
    again = trial.backward(slot, learn=False)
    if not np.allclose(again, kept, rtol=1e-12):
        return "the same gradient pushed back again gives another one: backward changes its slot"
    return ""


def _forwarded_again(trial: _Trial) -> str:
    y, _ = trial.forward()
    y = y.copy()
    try:
        again, _ = trial.forward()
    except DataError:
        return ""  # it refuses: so schedules with replays refuse it
    if not np.array_equal(y, again):
        return (
            "the same batch forwarded again gives other outputs: draw random numbers from "
            "streams(…) by the batch's id, slot['batch']"
        )
    return ""


def _evaluated(trial: _Trial) -> str:
    trial.forward()
    layer = trial.layer
    before = _copies({**layer.params, **layer.buffers})
    y = layer.evaluate(trial.x(samples=_FEWER))
    _check_array(y, (_FEWER, *trial.outputs), trial.dtype, "evaluate returned")
    if not _same({**layer.params, **layer.buffers}, before):
        return "evaluate changed params or buffers, expected none changed"
    return ""


def _near(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    return all(
        np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True)
    )


def _carries(layer: Layer) -> bool:
    """Tell whether the layer carries state from batch to batch."""
    return any(name.startswith("carried.") for name in layer.buffers)


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def _same(arrays: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return arrays.keys() == others.keys() and all(
        np.array_equal(array, others[name], equal_nan=array.dtype.kind == "f")
        for name, array in arrays.items()
    )


def _numbers(shape: tuple[int, ...], dtype: np.dtype[Any], key: int) -> Array:
    found = stream(0, "check", "numbers", key, *shape).normal(size=shape).astype(dtype)
    found.flags.writeable = False
    return found


# --- generators ----------------------------------------------------------------------------------


def check_generator(
    make: Callable[[], Generator], shape: tuple[int, ...], outputs: int, loss: str
) -> list[Finding]:
    """Check a generator for activations (B, *shape) and targets of `loss` with K = `outputs`.

    One that asks for `whole` samples is given them with all axes, others as vectors. Nothing is
    raised for what it does wrong: that is in the findings.
    """
    return list(_generator_findings(make, shape, outputs, loss))


class _GeneratorTrial:
    """A generator that has just been built, and a batch for it."""

    def __init__(
        self,
        make: Callable[[], Generator],
        shape: tuple[int, ...],
        outputs: int,
        loss: str,
        dtype: str = "float32",
    ) -> None:
        self.generator, self.dtype = make(), np.dtype(dtype)
        width = int(np.prod(shape))
        whole = bool(getattr(self.generator, "whole", False))
        self.shape = shape if whole else (width,)
        further: dict[str, Any] = {"shape": shape} if whole else {}
        streams = layer_streams(0, "check")
        self.generator.build(width, outputs, loss, self.dtype, streams, **further)
        self._classes = loss == "cross_entropy"
        self._outputs = outputs

    def h(self, key: int = 0, samples: int = _SAMPLES) -> Array:
        return _numbers((samples, *self.shape), self.dtype, key)

    def y(self, samples: int = _SAMPLES) -> Array:
        if self._classes:
            return np.arange(samples) % self._outputs
        return np.abs(_numbers((samples, self._outputs), self.dtype, 3)) % 1.0

    def predict(self, batch: int = 1, slot: Slot | None = None, **of_h: int) -> tuple[Array, Slot]:
        h, slot = self.h(**of_h), {} if slot is None else slot
        slot |= {"batch": batch, "context": {}}
        return self.generator.predict(h, self.y(len(h)), slot, 1.0), slot


def _generator_findings(
    make: Callable[[], Generator], shape: tuple[int, ...], outputs: int, loss: str
) -> Iterator[Finding]:
    trial = partial(_GeneratorTrial, make, shape, outputs, loss)
    built = _tried("build", lambda: _is_built(trial()))
    yield built
    if built.wrong:
        return
    for dtype in ("float32", "float64"):
        what = f"predict in {dtype}: shape and dtype"
        yield _tried(what, lambda dtype=dtype: _predicted(trial(dtype)))  # type: ignore[misc]
    yield _tried("fit: a step towards the true gradient", lambda: _fits(trial()))
    yield _tried("slots: fits that come late and out of order", lambda: _late(trial()))
    yield _tried("slots: a smaller batch after a larger one", lambda: _fewer(trial()))


def _is_built(trial: _GeneratorTrial) -> str:
    arrays = {**trial.generator.params, **trial.generator.buffers}
    wrong = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    return f"{', '.join(wrong)} in params or buffers: expected NumPy arrays" if wrong else ""


def _predicted(trial: _GeneratorTrial) -> str:
    found, _ = trial.predict()
    _check_array(found, (_SAMPLES, *trial.shape), trial.dtype, "predict returned")
    return "" if np.isfinite(found).all() else "predict returned numbers that are not finite"


def _fits(trial: _GeneratorTrial) -> str:
    """Fit one gradient over and over: what is predicted must come nearer to it, unless the
    generator learns from labels alone."""
    target = _numbers((_SAMPLES, *trial.shape), trial.dtype, 5)
    distances = []
    for batch in range(1, 41):
        found, slot = trial.predict(batch)
        distances.append(float(np.linalg.norm(found - target)))
        trial.generator.fit(target, slot, 1.0)
    if getattr(trial.generator, "has_loss", False) or not trial.generator.params:
        return ""
    if distances[-1] < distances[0]:
        return ""
    return (
        f"after 40 fits of one gradient the prediction is {distances[-1]:.3g} away from it, at "
        f"first it was {distances[0]:.3g}: expected it to come nearer"
    )


def _late(trial: _GeneratorTrial) -> str:
    target = _numbers((_SAMPLES, *trial.shape), trial.dtype, 5)
    (first, one), (_, two) = trial.predict(1), trial.predict(2, key=1)
    kept = first.copy()
    trial.generator.fit(target, two, 1.0)
    trial.predict(3, key=2)  # this batch's fit never comes
    trial.generator.fit(target, one, 1.0)
    if not np.array_equal(first, kept):
        return "a prediction changed after it was returned: give each slot an array of its own"
    return ""


def _fewer(trial: _GeneratorTrial) -> str:
    _, slot = trial.predict(1)
    found, _ = trial.predict(2, slot, samples=_FEWER)
    _check_array(found, (_FEWER, *trial.shape), trial.dtype, "predict returned")
    trial.generator.fit(_numbers((_FEWER, *trial.shape), trial.dtype, 5), slot, 1.0)
    return ""
